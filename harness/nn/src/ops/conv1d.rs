//! Short causal convolutions over time, padded on the left, for x `[batch, l, channels]`, with the weights of
//! `nn.Conv1d`: every output from all channels, weight `[out, in, taps]`, as one product per sequence whose rows
//! are overlapping windows; or every channel by itself, weight `[channels, 1, taps]`, as in Mamba, with SiLU.
//!
//! Kept for backward: x. The result before SiLU is computed again, which costs `taps` multiplications.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::activation::{Curve, Silu};
use super::for_device;
use super::gemm::{Matrix, gemm_on_all_threads};
use super::linear::{add_partial, sum_rows};
use crate::real::Real;
use crate::simd::vectorised;
use crate::storage::{buffer, slices, tensor};
use crate::tape::{Grad, Value, assign_or_add};

/// Time steps a task of the channel-wise convolution works on.
const STEPS: usize = 256;

impl Value {
    /// `y[t, o] = bias[o] + sum over i, j of weight[o, i, j] x[t - (taps - 1) + j, i]`, with x = 0 before the start.
    ///
    /// # Errors
    /// Shapes that do not fit each other.
    pub fn causal_conv1d(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Value> {
        for_device!(self.tensor(), causal_conv1d(self, weight, bias))
    }

    /// As [`Value::causal_conv1d`], every channel with its own taps and no other channel; then SiLU if wanted.
    ///
    /// # Errors
    /// Shapes that do not fit each other; on a GPU more than 16 taps.
    pub fn depthwise_conv1d(&self, weight: &Tensor, bias: Option<&Tensor>, silu: bool) -> Result<Value> {
        for_device!(self.tensor(), depthwise_conv1d(self, weight, bias, silu))
    }
}

/// The sizes of one call; `into` is 1 for the channel-wise form.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub(super) batch: usize,
    pub(super) l: usize,
    pub(super) from: usize,
    pub(super) into: usize,
    pub(super) taps: usize,
}

impl Size {
    pub(super) fn of(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, depthwise: bool) -> Result<Self> {
        let (batch, l, channels) = x.dims3()?;
        let (out, into, taps) = weight.dims3()?;
        let fits = if depthwise { out == channels && into == 1 } else { into == channels };
        if !fits || bias.is_some_and(|b| b.dims() != [out]) || batch * l * channels * taps * out == 0 {
            bail!(
                "conv1d: input [{batch}, {l}, {channels}], weight {:?}, bias {:?}; expected weight [{}, taps], bias [out]",
                weight.dims(),
                bias.map(Tensor::dims),
                if depthwise { "channels, 1" } else { "out, channels" }
            );
        }
        Ok(Self { batch, l, from: channels, into: out, taps })
    }
}

/// `y[l, o] (+)= windows(x) w` where a window is `taps` consecutive rows of `x` `[l + taps - 1, width]`.
fn windows<T: Real>(y: &mut [T], add: bool, x: &[T], w: &[T], (l, o, taps): (usize, usize, usize)) {
    let width = w.len() / (o * taps);
    assert!(y.len() == l * o && x.len() == (l + taps - 1) * width, "sizes of a convolution disagree");
    // SAFETY: row t of the first factor is x from t * width on, taps * width long: the last one ends with x.
    unsafe {
        gemm_on_all_threads(
            (l, o, taps * width),
            Matrix::rows(y.as_mut_ptr(), o),
            add,
            Matrix::rows(x.as_ptr(), width),
            Matrix::rows(w.as_ptr(), o),
        );
    }
}

fn causal_conv1d<T: Real>(x: &Value, weight: &Tensor, bias: Option<&Tensor>) -> Result<Value> {
    let size = Size::of(x.tensor(), weight, bias, false)?;
    let Size { batch, l, from, into, taps } = size;
    let padding = (taps - 1) * from;
    let mut y = buffer::<T>(batch * l * into);
    if let Some(bias) = bias {
        slices::<T, _, 1>([bias], |[b]| {
            y.par_chunks_mut(super::ROWS * into)
                .for_each(|rows| rows.chunks_exact_mut(into).for_each(|row| row.copy_from_slice(b)));
        })?;
    }
    slices::<T, _, 2>([x.tensor(), weight], |[x, w]| {
        // [taps, from, into]: rows in the order of a window
        let mut matrix = buffer::<T>(w.len());
        for (o, w) in w.chunks_exact(from * taps).enumerate() {
            for (i, w) in w.chunks_exact(taps).enumerate() {
                w.iter().enumerate().for_each(|(j, w)| matrix[(j * from + i) * into + o] = *w);
            }
        }
        let mut padded = vec![T::zero(); padding + l * from];
        for (y, x) in y.chunks_exact_mut(l * into).zip(x.chunks_exact(l * from)) {
            padded[padding..].copy_from_slice(x);
            windows(y, bias.is_some(), &padded, &matrix, (l, into, taps));
        }
    })?;
    let y = tensor(y, (batch, l, into))?;
    let weights: Vec<&Tensor> = std::iter::once(weight).chain(bias).collect();
    let Some(tape) = Value::recording(&[x], &weights) else { return Ok(x.unrecorded(y)) };
    let (slot, x, weight, bias) = (x.slot(), x.tensor().clone(), weight.clone(), bias.cloned());
    Ok(tape.record(y, move |dy, flow| {
        if let Some(bias) = &bias {
            slices::<T, _, 1>([dy.tensor()], |[dy]| {
                flow.add_to_parameter::<T>(bias, |db, fresh| sum_rows(db, !fresh, dy))
            })??;
        }
        if weight.is_variable() {
            let dw = slices::<T, _, 2>([&x, dy.tensor()], |[x, dy]| dense_weight(x, dy, size))?;
            flow.add_to_parameter::<T>(&weight, |total, fresh| assign_or_add(total, &dw, fresh))?;
        }
        if slot.is_none() {
            return Ok(());
        }
        let dx = slices::<T, _, 2>([&weight, dy.tensor()], |[w, dy]| dense_input(w, dy, size))?;
        flow.send_to_slot::<T>(slot, Grad::new(tensor(dx, x.shape())?))
    }))
}

/// The weight's gradient.
fn dense_weight<T: Real>(x: &[T], dy: &[T], Size { l, from, into, taps, .. }: Size) -> Vec<T> {
    let padding = (taps - 1) * from;
    let mut padded = vec![T::zero(); padding + l * from];
    let mut matrix = buffer::<T>(into * taps * from);
    for (entry, (x, dy)) in x.chunks_exact(l * from).zip(dy.chunks_exact(l * into)).enumerate() {
        padded[padding..].copy_from_slice(x);
        // SAFETY: as in `windows`; dy is [l, into], the gradient [into, taps * from].
        unsafe {
            gemm_on_all_threads(
                (into, taps * from, l),
                Matrix::rows(matrix.as_mut_ptr(), taps * from),
                entry > 0,
                Matrix::rows(dy.as_ptr(), into).t(),
                Matrix::rows(padded.as_ptr(), from),
            );
        }
    }
    let mut dw = buffer::<T>(matrix.len());
    for (dw, rows) in dw.chunks_exact_mut(from * taps).zip(matrix.chunks_exact(taps * from)) {
        for (j, row) in rows.chunks_exact(from).enumerate() {
            row.iter().enumerate().for_each(|(i, v)| dw[i * taps + j] = *v);
        }
    }
    dw
}

/// The input's gradient: the convolution the other way round, with the taps in reverse.
fn dense_input<T: Real>(w: &[T], dy: &[T], Size { batch, l, from, into, taps }: Size) -> Vec<T> {
    let mut matrix = buffer::<T>(w.len());
    for (o, w) in w.chunks_exact(from * taps).enumerate() {
        for (i, w) in w.chunks_exact(taps).enumerate() {
            w.iter().rev().enumerate().for_each(|(j, w)| matrix[(j * into + o) * from + i] = *w);
        }
    }
    let mut padded = vec![T::zero(); (l + taps - 1) * into];
    let mut dx = buffer::<T>(batch * l * from);
    for (dx, dy) in dx.chunks_exact_mut(l * from).zip(dy.chunks_exact(l * into)) {
        padded[..l * into].copy_from_slice(dy);
        windows(dx, false, &padded, &matrix, (l, from, taps));
    }
    dx
}

/// Taps as rows `[taps, channels]`.
fn tap_rows<T: Real>(w: &[T], taps: usize) -> Vec<T> {
    let channels = w.len() / taps;
    let mut rows = buffer::<T>(w.len());
    for (channel, w) in w.chunks_exact(taps).enumerate() {
        w.iter().enumerate().for_each(|(j, w)| rows[j * channels + channel] = *w);
    }
    rows
}

/// The channel-wise convolution at step `t`, without SiLU.
#[inline(always)]
fn at_step<T: Real>(y: &mut [T], x: &[T], w: &[T], bias: &[T], t: usize) {
    let channels = y.len();
    y.copy_from_slice(bias);
    for (back, w) in w.chunks_exact(channels).rev().enumerate().take(t + 1) {
        let x = &x[(t - back) * channels..][..channels];
        for ((y, w), x) in y.iter_mut().zip(w).zip(x) {
            *y = w.mul_add(*x, *y);
        }
    }
}

fn depthwise_conv1d<T: Real>(x: &Value, weight: &Tensor, bias: Option<&Tensor>, silu: bool) -> Result<Value> {
    let size = Size::of(x.tensor(), weight, bias, true)?;
    let Size { batch, l, from: channels, taps, .. } = size;
    let w = slices::<T, _, 1>([weight], |[w]| tap_rows(w, taps))?;
    let shift = match bias {
        Some(bias) => slices::<T, _, 1>([bias], |[b]| b.to_vec())?,
        None => vec![T::zero(); channels],
    };
    let mut y = buffer::<T>(batch * l * channels);
    slices::<T, _, 1>([x.tensor()], |[x]| {
        let sequences = y.par_chunks_mut(l * channels).zip(x.par_chunks(l * channels));
        sequences.for_each(|(y, x)| {
            y.par_chunks_mut(STEPS * channels).enumerate().for_each(|(block, y)| {
                vectorised(
                    #[inline(always)]
                    || {
                        for (s, y) in y.chunks_exact_mut(channels).enumerate() {
                            at_step(y, x, &w, &shift, block * STEPS + s);
                            if silu {
                                y.iter_mut().for_each(|y| *y = Silu::value(*y));
                            }
                        }
                    },
                );
            });
        });
    })?;
    let y = tensor(y, x.tensor().shape())?;
    let weights: Vec<&Tensor> = std::iter::once(weight).chain(bias).collect();
    let Some(tape) = Value::recording(&[x], &weights) else { return Ok(x.unrecorded(y)) };
    let (slot, x, weight, bias) = (x.slot(), x.tensor().clone(), weight.clone(), bias.cloned());
    Ok(tape.record(y, move |dy, flow| {
        let (dx, dw, db) = slices::<T, _, 2>([&x, dy.tensor()], |[x, dy]| {
            depthwise_backward(x, dy, &w, &shift, silu, size)
        })?;
        flow.add_to_parameter::<T>(&weight, |total, fresh| add_partial(total, !fresh, &dw))?;
        if let Some(bias) = &bias {
            flow.add_to_parameter::<T>(bias, |total, fresh| add_partial(total, !fresh, &db))?;
        }
        flow.send_to_slot::<T>(slot, Grad::new(tensor(dx, x.shape())?))
    }))
}

/// dx, and the gradients of weight and bias by block of steps.
fn depthwise_backward<T: Real>(
    x: &[T],
    dy: &[T],
    w: &[T],
    bias: &[T],
    silu: bool,
    Size { l, from: channels, taps, .. }: Size,
) -> (Vec<T>, Vec<Vec<T>>, Vec<Vec<T>>) {
    let block = STEPS * channels;
    // the gradient before SiLU
    let mut before = Vec::new();
    if silu {
        before = buffer::<T>(dy.len());
        before
            .par_chunks_mut(l * channels)
            .zip(x.par_chunks(l * channels))
            .zip(dy.par_chunks(l * channels))
            .for_each(|((before, x), dy)| {
                before.par_chunks_mut(block).zip(dy.par_chunks(block)).enumerate().for_each(
                    |(b, (before, dy))| {
                        vectorised(
                            #[inline(always)]
                            || {
                                let rows = before.chunks_exact_mut(channels).zip(dy.chunks_exact(channels));
                                for (s, (before, dy)) in rows.enumerate() {
                                    at_step(before, x, w, bias, b * STEPS + s);
                                    before.iter_mut().zip(dy).for_each(|(g, dy)| *g = *dy * Silu::slope(*g));
                                }
                            },
                        );
                    },
                );
            });
    }
    let before = if silu { &before[..] } else { dy };
    let mut dx = buffer::<T>(dy.len());
    let sums: Vec<(Vec<T>, Vec<T>)> = dx
        .par_chunks_mut(l * channels)
        .zip(before.par_chunks(l * channels))
        .zip(x.par_chunks(l * channels))
        .flat_map(|((dx, before), x)| {
            dx.par_chunks_mut(block).enumerate().map(move |(b, dx)| {
                let (mut dw, mut db) = (vec![T::zero(); taps * channels], vec![T::zero(); channels]);
                vectorised(
                    #[inline(always)]
                    || {
                        for (s, dx) in dx.chunks_exact_mut(channels).enumerate() {
                            let t = b * STEPS + s;
                            dx.fill(T::zero());
                            for (ahead, w) in w.chunks_exact(channels).rev().enumerate().take(l - t) {
                                let g = &before[(t + ahead) * channels..][..channels];
                                for ((dx, w), g) in dx.iter_mut().zip(w).zip(g) {
                                    *dx = w.mul_add(*g, *dx);
                                }
                            }
                            let g = &before[t * channels..][..channels];
                            db.iter_mut().zip(g).for_each(|(db, g)| *db += *g);
                            for (back, dw) in dw.chunks_exact_mut(channels).rev().enumerate().take(t + 1) {
                                let x = &x[(t - back) * channels..][..channels];
                                for ((dw, g), x) in dw.iter_mut().zip(g).zip(x) {
                                    *dw = g.mul_add(*x, *dw);
                                }
                            }
                        }
                    },
                );
                (dw, db)
            })
        })
        .collect();
    // taps of a channel side by side, as in the weight
    let parts = sums.into_iter().map(|(dw, db)| (tap_columns(&dw, taps), db));
    let (dw, db) = parts.unzip();
    (dx, dw, db)
}

/// The inverse of [`tap_rows`].
fn tap_columns<T: Real>(rows: &[T], taps: usize) -> Vec<T> {
    tap_rows(rows, rows.len() / taps)
}
