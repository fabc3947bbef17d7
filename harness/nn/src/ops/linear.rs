//! `y = x w^T + b` for `x` `[.., k]`, `w` `[o, k]`, `b` `[o]`.
//!
//! Kept for backward: `x`, if the weight is trainable (dw = dy^T x). Nothing for dx = dy w or db = sum of rows.

use candle_core::{Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::gemm::{matmul_nn, matmul_nt, matmul_tn};
use super::{ROWS, for_device};
use crate::real::Real;
use crate::simd::vectorised;
use crate::storage::{buffer, slice, tensor};
use crate::tape::Value;

impl Value {
    /// `x w^T + b`.
    ///
    /// # Errors
    /// The last dimension is not the weight's second one.
    pub fn linear(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Value> {
        for_device!(self.tensor(), linear(self, weight, bias))
    }
}

fn linear<T: Real>(x: &Value, weight: &Tensor, bias: Option<&Tensor>) -> Result<Value> {
    let (o, k) = weight.dims2()?;
    let mut dims = x.tensor().dims().to_vec();
    if dims.last() != Some(&k) {
        bail!("linear: input {dims:?} for a weight [{o}, {k}]");
    }
    let n = x.tensor().elem_count() / k;
    if let Some(last) = dims.last_mut() {
        *last = o;
    }
    let size = (n, o, k);
    let mut y = buffer::<T>(n * o);
    slice::<T, _>(x.tensor(), |x| {
        slice::<T, _>(weight, |w| match bias {
            Some(bias) => slice::<T, _>(bias, |b| {
                y.par_chunks_mut(ROWS * o)
                    .for_each(|rows| rows.chunks_exact_mut(o).for_each(|row| row.copy_from_slice(b)));
                matmul_nt(&mut y, true, x, w, size);
            }),
            None => {
                matmul_nt(&mut y, false, x, w, size);
                Ok(())
            }
        })
    })???;
    let y = tensor(y, dims)?;
    let weights: Vec<&Tensor> = std::iter::once(weight).chain(bias).collect();
    let Some(tape) = Value::recording(&[x], &weights) else { return Ok(x.unrecorded(y)) };
    let (x_slot, x_shape, weight, bias) =
        (x.slot(), x.tensor().shape().clone(), weight.clone(), bias.cloned());
    let x = weight.is_variable().then(|| x.tensor().clone());
    Ok(tape.record(y, move |dy, flow| {
        slice::<T, _>(dy.tensor(), |dy| {
            if let Some(x) = &x {
                slice::<T, _>(x, |x| {
                    flow.add_to_parameter::<T>(&weight, |dw, fresh| matmul_tn(dw, !fresh, dy, x, size))
                })??;
            }
            if let Some(bias) = &bias {
                flow.add_to_parameter::<T>(bias, |db, fresh| sum_rows(db, !fresh, dy))?;
            }
            slice::<T, _>(&weight, |w| {
                flow.add_to_slot::<T>(x_slot, &x_shape, |dx, fresh| matmul_nn(dx, !fresh, dy, w, size))
            })?
        })?
    }))
}

/// `total[o] (+)= sum over rows of dy[n, o]`, by partial sums over fixed groups of rows.
pub(crate) fn sum_rows<T: Real>(total: &mut [T], accumulate: bool, dy: &[T]) {
    let o = total.len();
    let partial: Vec<Vec<T>> = dy
        .par_chunks(4 * ROWS * o)
        .map(|rows| {
            let mut sum = vec![T::zero(); o];
            vectorised(
                #[inline(always)]
                || rows.chunks_exact(o).for_each(|row| sum.iter_mut().zip(row).for_each(|(s, v)| *s += *v)),
            );
            sum
        })
        .collect();
    add_partial(total, accumulate, &partial);
}

/// `total (+)= sum of the parts`, in their order.
pub(crate) fn add_partial<T: Real>(total: &mut [T], accumulate: bool, parts: &[Vec<T>]) {
    if !accumulate {
        total.fill(T::zero());
    }
    for part in parts {
        total.iter_mut().zip(part).for_each(|(t, p)| *t += *p);
    }
}

/// The rows of a tensor whose last dimension is `width`.
pub(crate) fn check_width(name: &str, shape: &Shape, width: usize) -> Result<()> {
    if shape.dims().last() == Some(&width) {
        Ok(())
    } else {
        bail!("{name}: input {:?} for a width of {width}", shape.dims())
    }
}
