//! Mean softmax cross-entropy over labels, on logits `[.., vocab]` or directly on a language model's last
//! hidden states, whose logits are then never kept whole.
//!
//! Kept for backward: on logits, the log-sum-exp of every row; on hidden states, the gradients themselves,
//! which are known up to the scalar that arrives from above once the loss of a group of rows is.

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use super::for_device;
use super::gemm::{matmul_nn, matmul_nt, matmul_tn};
use super::linear::sum_rows;
use crate::real::Real;
use crate::simd::{max, sum_map, vectorised};
use crate::storage::{buffer, slice, tensor};
use crate::tape::{CHUNK, Value};

/// Label of positions that are left out of the mean, as in PyTorch.
pub const IGNORE: i64 = -100;

/// Logits held at a time by [`Value::linear_cross_entropy`]: enough rows that packing the weight for each group of
/// them does not count.
const LOGITS: usize = 1 << 22;

impl Value {
    /// Mean cross-entropy of logits `[.., vocab]` against labels of type i64; a scalar.
    ///
    /// # Errors
    /// A label is neither [`IGNORE`] nor below `vocab`, or all are ignored.
    pub fn cross_entropy(&self, labels: &Tensor) -> Result<Value> {
        for_device!(self.tensor(), cross_entropy(self, labels))
    }

    /// Mean cross-entropy of `self w^T + b` against labels of type i64; a scalar. `self` is `[.., width]`,
    /// `weight` `[vocab, width]`.
    ///
    /// # Errors
    /// As [`Value::cross_entropy`].
    pub fn linear_cross_entropy(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        labels: &Tensor,
    ) -> Result<Value> {
        for_device!(self.tensor(), linear_cross_entropy(self, weight, bias, labels))
    }
}

/// Labels as class indices, nothing for ignored ones; and how many count.
fn targets(labels: &Tensor, rows: usize, vocab: usize) -> Result<(Vec<Option<usize>>, usize)> {
    if labels.dtype() != DType::I64 || labels.elem_count() != rows {
        bail!("cross_entropy: {rows} labels of type i64 are expected, got {labels:?}");
    }
    let targets: Vec<Option<usize>> = slice::<i64, _>(labels, |labels| {
        labels
            .iter()
            .map(|&label| match usize::try_from(label) {
                Ok(class) if class < vocab => Ok(Some(class)),
                _ if label == IGNORE => Ok(None),
                _ => bail!("cross_entropy: label {label} for {vocab} classes"),
            })
            .collect::<Result<_>>()
    })??;
    match targets.iter().flatten().count() {
        0 => bail!("cross_entropy: every label is ignored, the mean is undefined"),
        count => Ok((targets, count)),
    }
}

/// Log-sum-exp of a row.
#[inline(always)]
fn log_sum_exp<T: Real>(row: &[T]) -> T {
    let top = max(row);
    top + sum_map(row, |v| (v - top).exp()).ln()
}

/// Turns a row of logits into its gradient, (softmax - one_hot) * scale; zero for an ignored one.
#[inline(always)]
fn gradient<T: Real>(row: &mut [T], target: Option<usize>, z: T, scale: T) {
    match target {
        Some(class) => {
            row.iter_mut().for_each(|v| *v = (*v - z).exp() * scale);
            row[class] -= scale;
        }
        None => row.fill(T::zero()),
    }
}

/// Loss of a row given its log-sum-exp, in double precision for the mean.
fn row_loss<T: Real>(row: &[T], target: Option<usize>, z: T) -> f64 {
    target.map_or(0.0, |class| (z - row[class]).to_f64())
}

fn cross_entropy<T: Real>(logits: &Value, labels: &Tensor) -> Result<Value> {
    let Some(&vocab) = logits.tensor().dims().last() else { bail!("cross_entropy: logits are a scalar") };
    let rows = logits.tensor().elem_count() / vocab;
    let (targets, count) = targets(labels, rows, vocab)?;
    let (zs, losses): (Vec<T>, Vec<f64>) = slice::<T, _>(logits.tensor(), |logits| {
        let row = |(row, target): (&[T], &Option<usize>)| {
            let z = vectorised(
                #[inline(always)]
                || log_sum_exp(row),
            );
            (z, row_loss(row, *target, z))
        };
        logits.par_chunks(vocab).zip(&targets).with_min_len(8).map(row).unzip()
    })?;
    let loss = tensor(vec![T::from_f64(losses.iter().sum::<f64>() / count as f64)], ())?;
    let Some(tape) = Value::recording(&[logits], &[]) else { return Ok(logits.unrecorded(loss)) };
    let (slot, logits) = (logits.slot(), logits.tensor().clone());
    Ok(tape.record(loss, move |dy, flow| {
        let scale = dy.tensor().to_scalar::<T>()? / T::of(count);
        let mut dx = buffer::<T>(logits.elem_count());
        slice::<T, _>(&logits, |logits| {
            let rows = dx.par_chunks_mut(vocab).zip(logits.par_chunks(vocab)).zip(&targets).zip(&zs);
            rows.with_min_len(8).for_each(|(((dx, row), target), z)| {
                dx.copy_from_slice(row);
                vectorised(
                    #[inline(always)]
                    || gradient(dx, *target, *z, scale),
                );
            });
        })?;
        flow.send_to_slot::<T>(slot, crate::tape::Grad::new(tensor(dx, logits.shape())?))
    }))
}

fn linear_cross_entropy<T: Real>(
    x: &Value,
    weight: &Tensor,
    bias: Option<&Tensor>,
    labels: &Tensor,
) -> Result<Value> {
    let (vocab, width) = weight.dims2()?;
    super::linear::check_width("linear_cross_entropy", x.tensor().shape(), width)?;
    let rows = x.tensor().elem_count() / width;
    let (targets, count) = targets(labels, rows, vocab)?;
    let weights: Vec<&Tensor> = std::iter::once(weight).chain(bias).collect();
    let tape = Value::recording(&[x], &weights);
    let differentiate = tape.is_some();
    let wants = |w: &Tensor| differentiate && w.is_variable();
    let want_dx = differentiate && x.slot().is_some();

    let group = (LOGITS / vocab).clamp(16, rows.max(16));
    let scale = T::one() / T::of(count);
    let mut dx = buffer::<T>(if want_dx { rows * width } else { 0 });
    let mut dw = buffer::<T>(if wants(weight) { vocab * width } else { 0 });
    let mut db = buffer::<T>(if bias.is_some_and(wants) { vocab } else { 0 });
    let loss = slice::<T, _>(x.tensor(), |x| {
        slice::<T, _>(weight, |w| {
            let mut logits = buffer::<T>(group.min(rows) * vocab);
            let mut total = 0.0;
            for (g, (x, targets)) in x.chunks(group * width).zip(targets.chunks(group)).enumerate() {
                let n = targets.len();
                let logits = &mut logits[..n * vocab];
                if let Some(bias) = bias {
                    slice::<T, _>(bias, |b| {
                        logits.par_chunks_mut(vocab).with_min_len(16).for_each(|row| row.copy_from_slice(b));
                    })?;
                }
                matmul_nt(logits, bias.is_some(), x, w, (n, vocab, width));
                let row = |(row, target): (&mut [T], &Option<usize>)| {
                    vectorised(
                        #[inline(always)]
                        || {
                            let z = log_sum_exp(row);
                            let loss = row_loss(row, *target, z);
                            if differentiate {
                                gradient(row, *target, z, scale);
                            }
                            loss
                        },
                    )
                };
                let losses: Vec<f64> =
                    logits.par_chunks_mut(vocab).zip(targets).with_min_len(8).map(row).collect();
                total += losses.iter().sum::<f64>();
                if want_dx {
                    matmul_nn(&mut dx[g * group * width..][..n * width], false, logits, w, (n, vocab, width));
                }
                if !dw.is_empty() {
                    matmul_tn(&mut dw, g > 0, logits, x, (n, vocab, width));
                }
                if !db.is_empty() {
                    sum_rows(&mut db, g > 0, logits);
                }
            }
            Ok::<f64, candle_core::Error>(total / count as f64)
        })
    })???;
    let loss = tensor(vec![T::from_f64(loss)], ())?;
    let Some(tape) = tape else { return Ok(x.unrecorded(loss)) };
    let (slot, shape, weight, bias) = (x.slot(), x.tensor().shape().clone(), weight.clone(), bias.cloned());
    Ok(tape.record(loss, move |dy, flow| {
        let factor = dy.tensor().to_scalar::<T>()?;
        if !dw.is_empty() {
            flow.add_to_parameter::<T>(&weight, |to, fresh| scaled(to, &dw, factor, fresh))?;
        }
        if let Some(bias) = bias.filter(|_| !db.is_empty()) {
            flow.add_to_parameter::<T>(&bias, |to, fresh| scaled(to, &db, factor, fresh))?;
        }
        flow.add_to_slot::<T>(slot, &shape, |to, fresh| scaled(to, &dx, factor, fresh))
    }))
}

/// `to = factor * from` or `to += factor * from`.
fn scaled<T: Real>(to: &mut [T], from: &[T], factor: T, assign: bool) {
    to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| {
        vectorised(
            #[inline(always)]
            || {
                for (to, from) in to.iter_mut().zip(from) {
                    *to = if assign { *from * factor } else { from.mul_add(factor, *to) };
                }
            },
        );
    });
}
