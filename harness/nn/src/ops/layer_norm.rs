//! Layer norm (Ba et al. 2016) over the last dimension: `y = (x - mean) / sqrt(var + eps) * w + b`.
//!
//! Kept for backward: `x`, and mean and 1 / sqrt(var + eps) of every row.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::linear::{add_partial, check_width};
use super::{ROWS, for_device};
use crate::real::Real;
use crate::simd::{dot, elementwise, sum, sum_map, vectorised};
use crate::storage::{buffer, slice, tensor};
use crate::tape::{Grad, Value};

impl Value {
    /// Layer norm over the last dimension with learned scale and shift, both `[width]`.
    ///
    /// # Errors
    /// The last dimension is not the weight's.
    pub fn layer_norm(&self, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Value> {
        for_device!(self.tensor(), layer_norm(self, weight, bias, eps))
    }
}

fn layer_norm<T: Real>(x: &Value, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Value> {
    let width = weight.dims1()?;
    check_width("layer_norm", x.tensor().shape(), width)?;
    let rows = x.tensor().elem_count() / width;
    let (mut y, mut moments) = (buffer::<T>(rows * width), buffer::<T>(2 * rows));
    let (eps, count) = (T::from_f64(eps), T::of(width));
    slice::<T, _>(x.tensor(), |x| {
        slice::<T, _>(weight, |w| {
            slice::<T, _>(bias, |b| {
                y.par_chunks_mut(ROWS * width)
                    .zip(x.par_chunks(ROWS * width))
                    .zip(moments.par_chunks_mut(2 * ROWS))
                    .for_each(|((y, x), moments)| {
                        vectorised(
                            #[inline(always)]
                            || {
                                for ((y, x), m) in y
                                    .chunks_exact_mut(width)
                                    .zip(x.chunks_exact(width))
                                    .zip(moments.chunks_exact_mut(2))
                                {
                                    let mean = sum(x) / count;
                                    let var = sum_map(x, |v| (v - mean) * (v - mean)) / count;
                                    let r = T::one() / (var + eps).sqrt();
                                    (m[0], m[1]) = (mean, r);
                                    elementwise([y], [x, w, b], |_, [x, w, b]| {
                                        [((x - mean) * r).mul_add(w, b)]
                                    });
                                }
                            },
                        );
                    });
            })
        })
    })???;
    let y = tensor(y, x.tensor().shape())?;
    let Some(tape) = Value::recording(&[x], &[weight, bias]) else { return Ok(x.unrecorded(y)) };
    let (slot, x, weight, bias) = (x.slot(), x.tensor().clone(), weight.clone(), bias.clone());
    Ok(tape.record(y, move |dy, flow| {
        let mut dx = buffer::<T>(rows * width);
        let (dws, dbs): (Vec<_>, Vec<_>) = slice::<T, _>(&x, |x| {
            slice::<T, _>(&weight, |w| slice::<T, _>(dy.tensor(), |dy| backward(&mut dx, dy, x, w, &moments)))
        })???
        .into_iter()
        .unzip();
        flow.add_to_parameter::<T>(&weight, |dw, fresh| add_partial(dw, !fresh, &dws))?;
        flow.add_to_parameter::<T>(&bias, |db, fresh| add_partial(db, !fresh, &dbs))?;
        let dx = tensor(dx, x.shape())?;
        flow.send_to_slot::<T>(slot, Grad::new(dx))
    }))
}

/// Writes dx, returns the gradients of weight and bias by groups of rows.
fn backward<T: Real>(dx: &mut [T], dy: &[T], x: &[T], w: &[T], moments: &[T]) -> Vec<(Vec<T>, Vec<T>)> {
    let width = w.len();
    let group = ROWS * width;
    dx.par_chunks_mut(group)
        .zip(dy.par_chunks(group))
        .zip(x.par_chunks(group))
        .zip(moments.par_chunks(2 * ROWS))
        .map(|(((dx, dy), x), moments)| {
            let (mut dw, mut db) = (vec![T::zero(); width], vec![T::zero(); width]);
            let mut normal = vec![T::zero(); width];
            vectorised(
                #[inline(always)]
                || {
                    for (((dx, dy), x), m) in dx
                        .chunks_exact_mut(width)
                        .zip(dy.chunks_exact(width))
                        .zip(x.chunks_exact(width))
                        .zip(moments.chunks_exact(2))
                    {
                        let (mean, r) = (m[0], m[1]);
                        let out = [&mut *dx, &mut normal[..], &mut dw[..], &mut db[..]];
                        elementwise(out, [x, dy, w], |[_, _, dw, db], [x, dy, w]| {
                            let normal = (x - mean) * r;
                            [dy * w, normal, dy.mul_add(normal, dw), db + dy]
                        });
                        let (m1, m2) = (sum(dx) / T::of(width), dot(dx, &normal) / T::of(width));
                        elementwise([dx], [&normal], |[dx], [normal]| [r * (dx - m1 - normal * m2)]);
                    }
                },
            );
            (dw, db)
        })
        .collect()
}
