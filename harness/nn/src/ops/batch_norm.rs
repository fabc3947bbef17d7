//! Batch norm (Ioffe and Szegedy 2015) of the last dimension over all others: `y = (x - mean) / sqrt(var + eps) * w + b`
//! with mean and variance of each column, of this batch or given.
//!
//! Kept for backward: `x`, and mean and 1 / sqrt(var + eps) of every column.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::linear::check_width;
use super::{ROWS, for_device};
use crate::real::Real;
use crate::storage::{buffer, slices, tensor};
use crate::tape::{Grad, Value, assign_or_add_rounded};

/// Mean and variance, not corrected for their number, of columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// One a column.
    pub mean: Vec<f64>,
    /// One a column.
    pub variance: Vec<f64>,
    /// How many numbers of a column they were taken over.
    pub count: usize,
}

impl Value {
    /// Mean and variance of the columns of the last dimension.
    ///
    /// # Errors
    /// The value is a scalar, or empty.
    pub fn column_moments(&self) -> Result<Moments> {
        for_device!(cpu self.tensor(), column_moments(self))
    }

    /// Batch norm by the moments of this value itself (`own`, through which gradients flow) or by given ones.
    ///
    /// # Errors
    /// Weight, bias and moments are not those of as many columns as there are.
    pub fn batch_norm(
        &self,
        moments: &Moments,
        own: bool,
        weight: &Tensor,
        bias: &Tensor,
        eps: f64,
    ) -> Result<Value> {
        for_device!(cpu self.tensor(), batch_norm(self, moments, own, weight, bias, eps))
    }
}

/// Sums of `f(row of x, row of y)`, added up by columns in double precision in the order of groups of rows.
fn column_sums<T: Real, const N: usize>(
    (x, y): (&[T], &[T]),
    width: usize,
    f: impl Fn(usize, f64, f64) -> [f64; N] + Sync,
) -> Vec<[f64; N]> {
    let group = |(x, y): (&[T], &[T])| {
        let mut sums = vec![[0.0; N]; width];
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact(width)) {
            for (i, sums) in sums.iter_mut().enumerate() {
                let terms = f(i, x[i].to_f64(), y[i].to_f64());
                sums.iter_mut().zip(terms).for_each(|(s, term)| *s += term);
            }
        }
        sums
    };
    let groups: Vec<_> = x.par_chunks(ROWS * width).zip(y.par_chunks(ROWS * width)).map(group).collect();
    let mut total = vec![[0.0; N]; width];
    for sums in groups.iter().flat_map(|sums| sums.iter().enumerate()) {
        total[sums.0].iter_mut().zip(sums.1).for_each(|(t, s)| *t += s);
    }
    total
}

fn column_moments<T: Real>(x: &Value) -> Result<Moments> {
    let Some(&width) = x.tensor().dims().last().filter(|_| x.tensor().elem_count() > 0) else {
        bail!("column_moments of {:?}: at least one column is expected", x.tensor().shape())
    };
    let count = x.tensor().elem_count() / width;
    slices::<T, _, 1>([x.tensor()], |[x]| {
        let mean: Vec<f64> =
            column_sums((x, x), width, |_, x, _| [x]).iter().map(|[sum]| sum / count as f64).collect();
        let squares = column_sums((x, x), width, |i, x, _| [(x - mean[i]) * (x - mean[i])]);
        let variance = squares.iter().map(|[sum]| sum / count as f64).collect();
        Moments { mean, variance, count }
    })
}

fn batch_norm<T: Real>(
    x: &Value,
    moments: &Moments,
    own: bool,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Value> {
    let width = weight.dims1()?;
    check_width("batch_norm", x.tensor().shape(), width)?;
    if moments.mean.len() != width || moments.variance.len() != width || bias.dims() != [width] {
        bail!("batch_norm: moments and bias of {width} columns are expected");
    }
    let mean: Vec<T> = moments.mean.iter().map(|m| T::from_f64(*m)).collect();
    let inverse: Vec<T> = moments.variance.iter().map(|v| T::from_f64(1.0 / (v + eps).sqrt())).collect();
    let mut y = buffer::<T>(x.tensor().elem_count());
    slices::<T, _, 3>([x.tensor(), weight, bias], |[x, w, b]| {
        y.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width)).for_each(|(y, x)| {
            for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                for i in 0..width {
                    y[i] = ((x[i] - mean[i]) * inverse[i]).mul_add(w[i], b[i]);
                }
            }
        });
    })?;
    let y = tensor(y, x.tensor().shape())?;
    let Some(tape) = Value::recording(&[x], &[weight, bias]) else { return Ok(x.unrecorded(y)) };
    let (slot, x, weight, bias) = (x.slot(), x.tensor().clone(), weight.clone(), bias.clone());
    Ok(tape.record(y, move |dy, flow| {
        let mut dx = buffer::<T>(x.elem_count());
        let share = if own { 1.0 / (x.elem_count() / width) as f64 } else { 0.0 };
        let sums = slices::<T, _, 3>([&x, &weight, dy.tensor()], |[x, w, dy]| {
            let normal = |i: usize, x: f64| (x - mean[i].to_f64()) * inverse[i].to_f64();
            let sums = column_sums((x, dy), width, |i, x, dy| [dy * normal(i, x), dy]);
            let part = |v: f64| T::from_f64(v * share);
            let means: Vec<[T; 2]> = sums.iter().map(|[dw, db]| [part(*dw), part(*db)]).collect();
            dx.par_chunks_mut(ROWS * width)
                .zip(x.par_chunks(ROWS * width))
                .zip(dy.par_chunks(ROWS * width))
                .for_each(|((dx, x), dy)| {
                    let rows =
                        dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(dy.chunks_exact(width));
                    for ((dx, x), dy) in rows {
                        for i in 0..width {
                            let ([along, level], normal) = (means[i], (x[i] - mean[i]) * inverse[i]);
                            dx[i] = w[i] * inverse[i] * (dy[i] - level - normal * along);
                        }
                    }
                });
            sums
        })?;
        flow.add_to_parameter::<T>(&weight, |dw, fresh| {
            assign_or_add_rounded(dw, sums.iter().map(|[dw, _]| *dw), fresh);
        })?;
        flow.add_to_parameter::<T>(&bias, |db, fresh| {
            assign_or_add_rounded(db, sums.iter().map(|[_, db]| *db), fresh);
        })?;
        flow.send_to_slot::<T>(slot, Grad::new(tensor(dx, x.shape())?))
    }))
}
