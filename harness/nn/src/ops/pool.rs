//! Mean over the first positions of every sequence: `[batch, t, width]` to `[batch, width]`.
//!
//! Kept for backward: the lengths.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::for_device;
use crate::real::Real;
use crate::storage::{buffer, slice, tensor};
use crate::tape::Value;

impl Value {
    /// `y[b]` = mean of `x[b, 0..lengths[b]]`: what lies behind a sequence's end has no part in it.
    ///
    /// # Errors
    /// Not one length a sequence, one of 0, or one beyond the end.
    pub fn mean_of_first(&self, lengths: &[usize]) -> Result<Value> {
        for_device!(self.tensor(), mean_of_first(self, lengths))
    }
}

/// Batch, steps and width; one length from 1 to all steps for each sequence.
pub(super) fn check_lengths(x: &Tensor, lengths: &[usize]) -> Result<(usize, usize, usize)> {
    let (batch, t, width) = x.dims3()?;
    if lengths.len() != batch || lengths.iter().any(|n| *n == 0 || *n > t) {
        bail!("mean_of_first: lengths {lengths:?} of [{batch}, {t}, {width}]; 1 to {t} are expected");
    }
    Ok((batch, t, width))
}

fn mean_of_first<T: Real>(x: &Value, lengths: &[usize]) -> Result<Value> {
    let (batch, t, width) = check_lengths(x.tensor(), lengths)?;
    let lengths = lengths.to_vec();
    let mut y = buffer::<T>(batch * width);
    slice::<T, _>(x.tensor(), |x| {
        let rows = y.par_chunks_mut(width).zip(x.par_chunks(t * width)).zip(&lengths);
        rows.for_each(|((y, x), n)| {
            y.fill(T::zero());
            for x in x[..n * width].chunks_exact(width) {
                y.iter_mut().zip(x).for_each(|(y, x)| *y += *x);
            }
            let share = T::one() / T::of(*n);
            y.iter_mut().for_each(|y| *y *= share);
        });
    })?;
    let y = tensor(y, (batch, width))?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let (slot, shape) = (x.slot(), x.tensor().shape().clone());
    Ok(tape.record(y, move |dy, flow| {
        slice::<T, _>(dy.tensor(), |dy| {
            flow.add_to_slot::<T>(slot, &shape, |dx, fresh| {
                let rows = dx.par_chunks_mut(t * width).zip(dy.par_chunks(width)).zip(&lengths);
                rows.for_each(|((dx, dy), n)| {
                    if fresh {
                        dx[n * width..].fill(T::zero());
                    }
                    let share = T::one() / T::of(*n);
                    for dx in dx[..n * width].chunks_exact_mut(width) {
                        for (d, g) in dx.iter_mut().zip(dy) {
                            *d = if fresh { *g * share } else { g.mul_add(share, *d) };
                        }
                    }
                });
            })
        })?
    }))
}
