//! Batch norm (Ioffe and Szegedy 2015) of the last dimension over all others: `y = (x - mean) / sqrt(var + eps) * w + b`
//! with mean and variance of each column, of this batch or given.
//!
//! Kept for backward: `x`, and mean and 1 / sqrt(var + eps) of every column.

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use super::linear::check_width;
use super::{ROWS, for_device};
use crate::real::Real;
use crate::simd::{elementwise, vectorised};
use crate::storage::{buffer, slice_mut, slices, tensor};
use crate::tape::{Grad, Value, assign_or_add_rounded};

/// Mean and variance, not corrected for their number, of columns; where the columns are. Those of
/// [`Value::column_moments`] have double precision on the CPU and single precision on a GPU.
#[derive(Clone, Debug)]
pub struct Moments {
    /// `[width]`, one a column.
    pub mean: Tensor,
    /// `[width]`, one a column.
    pub variance: Tensor,
    /// How many numbers of a column they were taken over.
    pub count: usize,
}

impl Moments {
    /// Takes these into running ones: `running = (1 - share) running + share moments`, the variance times
    /// `correction` first.
    ///
    /// # Errors
    /// The running ones have another width.
    pub fn mix_into(&self, running: &Moments, share: f64, correction: f64) -> Result<()> {
        for (to, from, factor) in
            [(&running.mean, &self.mean, share), (&running.variance, &self.variance, share * correction)]
        {
            if to.dims() != from.dims() {
                bail!("moments of {:?} columns for running ones of {:?}", from.dims(), to.dims());
            }
            for_device!(to, mix(to, 1.0 - share, from, factor))?;
        }
        Ok(())
    }
}

impl Value {
    /// Mean and variance of the columns of the last dimension.
    ///
    /// # Errors
    /// The value is a scalar, or empty.
    pub fn column_moments(&self) -> Result<Moments> {
        for_device!(self.tensor(), column_moments(self))
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
        for_device!(self.tensor(), batch_norm(self, moments, own, weight, bias, eps))
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

/// `to = kept to + factor from`.
fn mix<T: Real>(to: &Tensor, kept: f64, from: &Tensor, factor: f64) -> Result<()> {
    let from = doubles(from)?;
    slice_mut::<T>(to, |to| {
        for (to, from) in to.iter_mut().zip(from) {
            *to = T::from_f64(kept * to.to_f64() + factor * from);
        }
    })
}

fn doubles(numbers: &Tensor) -> Result<Vec<f64>> {
    numbers.to_dtype(DType::F64)?.to_vec1()
}

/// Rows and columns of the last dimension.
pub(super) fn matrix(x: &Tensor) -> Result<(usize, usize)> {
    match x.dims().last() {
        Some(&width) if x.elem_count() > 0 => Ok((x.elem_count() / width, width)),
        _ => bail!("column_moments of {:?}: at least one column is expected", x.shape()),
    }
}

/// Rows and columns, which weight, bias and moments must fit.
pub(super) fn check_columns(
    x: &Tensor,
    moments: &Moments,
    weight: &Tensor,
    bias: &Tensor,
) -> Result<(usize, usize)> {
    let width = weight.dims1()?;
    check_width("batch_norm", x.shape(), width)?;
    if [&moments.mean, &moments.variance, bias].iter().any(|t| t.dims() != [width]) {
        bail!("batch_norm: moments and bias of {width} columns are expected");
    }
    Ok((x.elem_count() / width, width))
}

fn column_moments<T: Real>(x: &Value) -> Result<Moments> {
    let (count, width) = matrix(x.tensor())?;
    let (mean, variance) = slices::<T, _, 1>([x.tensor()], |[x]| {
        let mean: Vec<f64> =
            column_sums((x, x), width, |_, x, _| [x]).iter().map(|[sum]| sum / count as f64).collect();
        let squares = column_sums((x, x), width, |i, x, _| [(x - mean[i]) * (x - mean[i])]);
        let variance: Vec<f64> = squares.iter().map(|[sum]| sum / count as f64).collect();
        (mean, variance)
    })?;
    Ok(Moments { mean: tensor(mean, width)?, variance: tensor(variance, width)?, count })
}

fn batch_norm<T: Real>(
    x: &Value,
    moments: &Moments,
    own: bool,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Value> {
    let (rows, width) = check_columns(x.tensor(), moments, weight, bias)?;
    let mean: Vec<T> = doubles(&moments.mean)?.into_iter().map(T::from_f64).collect();
    let inverse = |v: f64| T::from_f64(1.0 / (v + eps).sqrt());
    let inverse: Vec<T> = doubles(&moments.variance)?.into_iter().map(inverse).collect();
    let mut y = buffer::<T>(x.tensor().elem_count());
    slices::<T, _, 3>([x.tensor(), weight, bias], |[x, w, b]| {
        y.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width)).for_each(|(y, x)| {
            vectorised(
                #[inline(always)]
                || {
                    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                        let inputs = [x, &mean, &inverse, w, b];
                        elementwise([y], inputs, |_, [x, mean, inverse, w, b]| {
                            [((x - mean) * inverse).mul_add(w, b)]
                        });
                    }
                },
            );
        });
    })?;
    let y = tensor(y, x.tensor().shape())?;
    let Some(tape) = Value::recording(&[x], &[weight, bias]) else { return Ok(x.unrecorded(y)) };
    let (slot, x, weight, bias) = (x.slot(), x.tensor().clone(), weight.clone(), bias.clone());
    Ok(tape.record(y, move |dy, flow| {
        let mut dx = buffer::<T>(x.elem_count());
        let share = if own { 1.0 / rows as f64 } else { 0.0 };
        let sums = slices::<T, _, 3>([&x, &weight, dy.tensor()], |[x, w, dy]| {
            let normal = |i: usize, x: f64| (x - mean[i].to_f64()) * inverse[i].to_f64();
            let sums = column_sums((x, dy), width, |i, x, dy| [dy * normal(i, x), dy]);
            let part = |v: f64| T::from_f64(v * share);
            let (along, level): (Vec<T>, Vec<T>) = sums.iter().map(|[dw, db]| (part(*dw), part(*db))).unzip();
            dx.par_chunks_mut(ROWS * width)
                .zip(x.par_chunks(ROWS * width))
                .zip(dy.par_chunks(ROWS * width))
                .for_each(|((dx, x), dy)| {
                    vectorised(
                        #[inline(always)]
                        || {
                            let rows = dx.chunks_exact_mut(width).zip(x.chunks_exact(width));
                            for ((dx, x), dy) in rows.zip(dy.chunks_exact(width)) {
                                let inputs = [x, dy, &mean, &inverse, w, &along, &level];
                                elementwise([dx], inputs, |_, [x, dy, mean, inverse, w, along, level]| {
                                    [w * inverse * (dy - level - (x - mean) * inverse * along)]
                                });
                            }
                        },
                    );
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
