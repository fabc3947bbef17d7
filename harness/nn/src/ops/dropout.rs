//! Dropout (Srivastava et al. 2014): elements are zeroed with probability `p`, the others scaled by 1 / (1 - p).
//!
//! Kept for backward: nothing. Element i of call c is dropped or kept by a hash of (key, c, i), so the mask
//! is made again in the backward pass and is the same for any number of threads. Tied over the steps of a sequence, i
//! counts sequences and channels.

use std::cell::Cell;

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::for_device;
use crate::real::Real;
use crate::simd::vectorised;
use crate::storage::{buffer, slice, tensor};
use crate::tape::{CHUNK, Grad, Value};

/// The source of a step's dropout masks: every call draws the next one.
pub struct Dropout {
    key: u64,
    calls: Cell<u64>,
    /// The key on the device that asked for it.
    #[cfg(feature = "cuda")]
    device_key: std::cell::OnceCell<Tensor>,
}

impl Dropout {
    /// Masks of training step `step`; `key` comes from the seed's `dropout` purpose.
    pub fn new(key: u64, step: u64) -> Self {
        Self {
            key: mix(key ^ mix(step)),
            calls: Cell::new(0),
            #[cfg(feature = "cuda")]
            device_key: std::cell::OnceCell::new(),
        }
    }

    pub(crate) fn next_call(&self) -> u64 {
        self.calls.replace(self.calls.get() + 1)
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn device_key(&self, gpu: &super::cuda::device::Gpu) -> Result<Tensor> {
        if let Some(key) = self.device_key.get() {
            return Ok(key.clone());
        }
        let key = gpu.number(self.key)?;
        Ok(self.device_key.get_or_init(|| key).clone())
    }
}

/// The finaliser of splitmix64 (Steele et al. 2014).
#[inline(always)]
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Value {
    /// Dropout with probability `p`; without a source of masks (inference) the value itself.
    ///
    /// # Errors
    /// `p` is not in [0, 1).
    pub fn dropout(&self, p: f64, masks: Option<&Dropout>) -> Result<Value> {
        if !(0.0..1.0).contains(&p) {
            bail!("dropout: the probability must lie in [0, 1), got {p}");
        }
        match masks {
            Some(masks) if p > 0.0 => for_device!(self.tensor(), dropout(self, p, masks)),
            _ => Ok(self.clone()),
        }
    }

    /// As [`Value::dropout`] of sequences `[batch, l, width]`, with one draw for all steps of a channel: channels are
    /// dropped as a whole (S4's `tie_dropout`).
    ///
    /// # Errors
    /// As [`Value::dropout`], or another number of dimensions.
    pub fn tied_dropout(&self, p: f64, masks: Option<&Dropout>) -> Result<Value> {
        if !(0.0..1.0).contains(&p) {
            bail!("dropout: the probability must lie in [0, 1), got {p}");
        }
        self.tensor().dims3()?;
        match masks {
            Some(masks) if p > 0.0 => for_device!(self.tensor(), tied_dropout(self, p, masks)),
            _ => Ok(self.clone()),
        }
    }
}

fn dropout<T: Real>(x: &Value, p: f64, masks: &Dropout) -> Result<Value> {
    record(x, masks, move |x, key| apply::<T>(x, p, key))
}

fn tied_dropout<T: Real>(x: &Value, p: f64, masks: &Dropout) -> Result<Value> {
    record(x, masks, move |x, key| apply_tied::<T>(x, p, key))
}

/// A call of dropout, `apply(x, key)`; its gradient is the same of the one that arrives.
fn record<T: Real>(
    x: &Value,
    masks: &Dropout,
    apply: impl Fn(&Tensor, u64) -> Result<Vec<T>> + 'static,
) -> Result<Value> {
    let key = mix(masks.key.wrapping_add(mix(masks.next_call())));
    let y = tensor(apply(x.tensor(), key)?, x.tensor().shape())?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let slot = x.slot();
    Ok(tape.record(y, move |dy, flow| {
        let dx = tensor(apply(dy.tensor(), key)?, dy.tensor().shape())?;
        flow.send_to_slot::<T>(slot, Grad::new(dx))
    }))
}

/// Numbers of 32 bits from here on keep an element.
fn threshold(p: f64) -> u32 {
    (p * 4_294_967_296.0) as u32
}

fn apply<T: Real>(x: &Tensor, p: f64, key: u64) -> Result<Vec<T>> {
    let threshold = threshold(p);
    let scale = T::from_f64(1.0 / (1.0 - p));
    let mut y = buffer::<T>(x.elem_count());
    slice::<T, _>(x, |x| {
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).enumerate().for_each(|(c, (y, x))| {
            let first = key.wrapping_add((c * CHUNK) as u64);
            vectorised(
                #[inline(always)]
                || {
                    for (i, (y, x)) in y.iter_mut().zip(x).enumerate() {
                        let keep = (mix(first.wrapping_add(i as u64)) >> 32) as u32 >= threshold;
                        *y = if keep { *x * scale } else { T::zero() };
                    }
                },
            );
        });
    })?;
    Ok(y)
}

/// Element i of a sequence's factors decides for its channel i.
fn apply_tied<T: Real>(x: &Tensor, p: f64, key: u64) -> Result<Vec<T>> {
    let (_, l, width) = x.dims3()?;
    let threshold = threshold(p);
    let scale = T::from_f64(1.0 / (1.0 - p));
    let mut y = buffer::<T>(x.elem_count());
    let sequence = (l * width).max(1);
    slice::<T, _>(x, |x| {
        y.par_chunks_mut(sequence).zip(x.par_chunks(sequence)).enumerate().for_each(|(b, (y, x))| {
            let factor = |c: usize| {
                let keep = (mix(key.wrapping_add((b * width + c) as u64)) >> 32) as u32 >= threshold;
                if keep { scale } else { T::zero() }
            };
            let factors: Vec<T> = (0..width).map(factor).collect();
            for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                y.iter_mut().zip(x).zip(&factors).for_each(|((y, x), factor)| *y = *x * *factor);
            }
        });
    })?;
    Ok(y)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// A channel of a sequence is dropped at all steps or at none, each on its own, and calls differ.
    #[test]
    fn tied_masks_are_one_draw_a_channel() {
        let (batch, l, width, p) = (4, 9, 500, 0.3);
        let x = Value::from(Tensor::ones((batch, l, width), candle_core::DType::F32, &Device::Cpu).unwrap());
        let masks = Dropout::new(3, 1);
        let draw = || x.tied_dropout(p, Some(&masks)).unwrap().tensor().to_vec3::<f32>().unwrap();
        let (first, second) = (draw(), draw());
        for sequence in &first {
            assert!(sequence.iter().all(|step| *step == sequence[0]));
            assert!(sequence[0].iter().all(|y| *y == 0.0 || (y - 1.0 / 0.7).abs() < 1e-6));
        }
        assert!(first[0][0] != first[1][0] && first[0] != second[0]);
        let kept = first.iter().flat_map(|sequence| &sequence[0]).filter(|y| **y != 0.0).count();
        // five standard deviations of 2,000 draws
        assert!((kept as f64 / 2000.0 - 0.7).abs() < 0.052, "{kept} of 2000 are kept");
        assert!(x.tied_dropout(1.0, Some(&masks)).is_err());
        let flat = Value::from(x.tensor().flatten_all().unwrap());
        assert!(flat.tied_dropout(p, Some(&masks)).is_err());
    }
}
