//! Root-mean-square norm (Zhang and Sennrich 2019) over the last dimension: `y = x / rms(x) * w`,
//! `rms(x) = sqrt(mean(x^2) + eps)`.
//!
//! Kept for backward: `x`, and 1 / rms of every row, which is cheaper than computing it again.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::linear::{add_partial, check_width};
use super::{ROWS, for_device};
use crate::real::Real;
use crate::simd::{dot, elementwise, vectorised};
use crate::storage::{buffer, slice, tensor};
use crate::tape::Value;

impl Value {
    /// Root-mean-square norm over the last dimension with a learned scale `[width]`.
    ///
    /// # Errors
    /// The last dimension is not the weight's.
    pub fn rms_norm(&self, weight: &Tensor, eps: f64) -> Result<Value> {
        for_device!(self.tensor(), rms_norm(self, weight, eps))
    }
}

fn rms_norm<T: Real>(x: &Value, weight: &Tensor, eps: f64) -> Result<Value> {
    let width = weight.dims1()?;
    check_width("rms_norm", x.tensor().shape(), width)?;
    let rows = x.tensor().elem_count() / width;
    let (mut y, mut inverse) = (buffer::<T>(rows * width), buffer::<T>(rows));
    let (eps, count) = (T::from_f64(eps), T::of(width));
    slice::<T, _>(x.tensor(), |x| {
        slice::<T, _>(weight, |w| {
            y.par_chunks_mut(ROWS * width)
                .zip(x.par_chunks(ROWS * width))
                .zip(inverse.par_chunks_mut(ROWS))
                .for_each(|((y, x), inverse)| {
                    vectorised(
                        #[inline(always)]
                        || {
                            for ((y, x), inverse) in
                                y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(inverse)
                            {
                                let r = T::one() / (dot(x, x) / count + eps).sqrt();
                                *inverse = r;
                                y.iter_mut().zip(x).zip(w).for_each(|((y, x), w)| *y = *x * r * *w);
                            }
                        },
                    );
                });
        })
    })??;
    let y = tensor(y, x.tensor().shape())?;
    let Some(tape) = Value::recording(&[x], &[weight]) else { return Ok(x.unrecorded(y)) };
    let (slot, x, weight) = (x.slot(), x.tensor().clone(), weight.clone());
    Ok(tape.record(y, move |dy, flow| {
        let mut dx = buffer::<T>(rows * width);
        let parts = slice::<T, _>(&x, |x| {
            slice::<T, _>(&weight, |w| slice::<T, _>(dy.tensor(), |dy| backward(&mut dx, dy, x, w, &inverse)))
        })???;
        flow.add_to_parameter::<T>(&weight, |dw, fresh| add_partial(dw, !fresh, &parts))?;
        let dx = tensor(dx, x.shape())?;
        flow.send_to_slot::<T>(slot, crate::tape::Grad::new(dx))
    }))
}

/// Writes dx, returns the weight's gradient by groups of rows.
fn backward<T: Real>(dx: &mut [T], dy: &[T], x: &[T], w: &[T], inverse: &[T]) -> Vec<Vec<T>> {
    let width = w.len();
    let group = ROWS * width;
    dx.par_chunks_mut(group)
        .zip(dy.par_chunks(group))
        .zip(x.par_chunks(group))
        .zip(inverse.par_chunks(ROWS))
        .map(|(((dx, dy), x), inverse)| {
            let mut dw = vec![T::zero(); width];
            vectorised(
                #[inline(always)]
                || {
                    for (((dx, dy), x), &r) in dx
                        .chunks_exact_mut(width)
                        .zip(dy.chunks_exact(width))
                        .zip(x.chunks_exact(width))
                        .zip(inverse)
                    {
                        elementwise([&mut *dx, &mut dw[..]], [x, dy, w], |[_, dw], [x, dy, w]| {
                            [dy * w, (dy * r).mul_add(x, dw)]
                        });
                        let m = dot(dx, x) * r * r * r / T::of(width);
                        dx.iter_mut().zip(x).for_each(|(d, x)| *d = *d * r - *x * m);
                    }
                },
            );
            dw
        })
        .collect()
}
