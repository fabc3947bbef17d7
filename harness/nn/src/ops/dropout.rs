//! Dropout (Srivastava et al. 2014): elements are zeroed with probability `p`, the others scaled by 1 / (1 - p).
//!
//! Kept for backward: nothing. Element i of call c is dropped or kept by a hash of (key, c, i), so the mask
//! is made again in the backward pass and is the same for any number of threads.

use std::cell::Cell;

use candle_core::{Result, bail};
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
    device_key: std::cell::OnceCell<candle_core::Tensor>,
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
    pub(crate) fn device_key(&self, gpu: &super::cuda::device::Gpu) -> Result<candle_core::Tensor> {
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
}

fn dropout<T: Real>(x: &Value, p: f64, masks: &Dropout) -> Result<Value> {
    let key = mix(masks.key.wrapping_add(mix(masks.next_call())));
    let y = tensor(apply::<T>(x.tensor(), p, key)?, x.tensor().shape())?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let slot = x.slot();
    Ok(tape.record(y, move |dy, flow| {
        let dx = tensor(apply::<T>(dy.tensor(), p, key)?, dy.tensor().shape())?;
        flow.send_to_slot::<T>(slot, Grad::new(dx))
    }))
}

fn apply<T: Real>(x: &candle_core::Tensor, p: f64, key: u64) -> Result<Vec<T>> {
    let threshold = (p * 4_294_967_296.0) as u32;
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
