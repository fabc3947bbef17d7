//! Scaled dot-product attention (Vaswani et al. 2017) over heads that lie side by side in the last dimension:
//! q `[batch, t, heads * head_dim]`, k and v `[batch, s, heads * head_dim]`, result like q.
//!
//! Kept for backward: q, k, v, the result, and the log-sum-exp of every row of scores. Probabilities are
//! computed again block by block (FlashAttention-2, Dao 2023), so no `[t, s]` tensor is ever stored.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::for_device;
use super::gemm::{Matrix, gemm_on_this_thread};
use crate::real::Real;
use crate::simd::{dot, exp_in_place, max, vectorised};
use crate::storage::{SharedMut, buffer, slice, tensor};
use crate::tape::{Grad, Value};

/// How queries attend to keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Number of heads.
    pub heads: usize,
    /// Factor on the scores; 1 / sqrt(head_dim) unless a model says otherwise.
    pub scale: f64,
    /// Whether query i sees only keys up to i + (s - t): itself and what came before.
    pub causal: bool,
}

/// Queries a task works on at a time.
const BLOCK: usize = 64;

impl Value {
    /// softmax(scale * q k^T) v for every head; `self` is q.
    ///
    /// # Errors
    /// Shapes that do not fit each other, or more queries than keys in causal attention.
    pub fn attention(&self, k: &Value, v: &Value, attention: Attention) -> Result<Value> {
        for_device!(self.tensor(), attend(self, k, v, attention))
    }
}

/// The sizes of one call.
#[derive(Clone, Copy)]
struct Size {
    batch: usize,
    t: usize,
    s: usize,
    heads: usize,
    head_dim: usize,
    causal: bool,
}

impl Size {
    fn width(self) -> usize {
        self.heads * self.head_dim
    }

    /// Number of keys that query `i` sees.
    fn visible(self, i: usize) -> usize {
        if self.causal { i + 1 + self.s - self.t } else { self.s }
    }

    /// The first elements of a head of a batch entry in a `[batch, rows, width]` tensor.
    fn offset(self, task: usize, rows: usize) -> usize {
        (task / self.heads) * rows * self.width() + (task % self.heads) * self.head_dim
    }
}

fn attend<T: Real>(q: &Value, k: &Value, v: &Value, attention: Attention) -> Result<Value> {
    let (batch, t, width) = q.tensor().dims3()?;
    let (_, s, _) = k.tensor().dims3()?;
    let heads = attention.heads;
    let fits = k.tensor().dims() == [batch, s, width] && v.tensor().dims() == [batch, s, width];
    if !fits || heads == 0 || width % heads != 0 || (attention.causal && t > s) {
        let (q, k, v) = (q.tensor().dims(), k.tensor().dims(), v.tensor().dims());
        bail!("attention: q {q:?}, k {k:?}, v {v:?} with {heads} heads, causal {}", attention.causal);
    }
    let size = Size { batch, t, s, heads, head_dim: width / heads, causal: attention.causal };
    let scale = T::from_f64(attention.scale);
    let (y, log_sum_exp) = slice::<T, _>(q.tensor(), |q| {
        slice::<T, _>(k.tensor(), |k| slice::<T, _>(v.tensor(), |v| forward(q, k, v, scale, size)))
    })???;
    let y = tensor(y, q.tensor().shape())?;
    let Some(tape) = Value::recording(&[q, k, v], &[]) else { return Ok(q.unrecorded(y)) };
    let slots = [q.slot(), k.slot(), v.slot()];
    let kept: [Tensor; 4] = [q.tensor().clone(), k.tensor().clone(), v.tensor().clone(), y.clone()];
    Ok(tape.record(y, move |dy, flow| {
        let [q, k, v, y] = &kept;
        let gradients = slice::<T, _>(q, |q| {
            slice::<T, _>(k, |k| {
                slice::<T, _>(v, |v| {
                    slice::<T, _>(y, |y| {
                        slice::<T, _>(dy.tensor(), |dy| backward([q, k, v, y, dy], &log_sum_exp, scale, size))
                    })
                })
            })
        })?????;
        for ((slot, gradient), input) in slots.into_iter().zip(gradients).zip([q, k, v]) {
            flow.send_to_slot::<T>(slot, Grad::new(tensor(gradient, input.shape())?))?;
        }
        Ok(())
    }))
}

/// Result and log-sum-exp `[batch * heads, t]`.
fn forward<T: Real>(q: &[T], k: &[T], v: &[T], scale: T, size: Size) -> (Vec<T>, Vec<T>) {
    let (t, s, width, d) = (size.t, size.s, size.width(), size.head_dim);
    let mut y = buffer::<T>(q.len());
    let mut log_sum_exp = buffer::<T>(size.batch * size.heads * t);
    let out = SharedMut::new(&mut y);
    log_sum_exp.par_chunks_mut(t).enumerate().for_each_init(
        || buffer::<T>(BLOCK.min(t) * s),
        |scores, (task, log_sum_exp)| {
            let (q0, k0) = (size.offset(task, t), size.offset(task, s));
            for first in (0..t).step_by(BLOCK) {
                let rows = BLOCK.min(t - first);
                let cols = size.visible(first + rows - 1);
                let scores = &mut scores[..rows * cols];
                // SAFETY: offsets and strides lie within the slices by the checked shapes; tasks write disjoint heads.
                unsafe {
                    gemm_on_this_thread(
                        (rows, cols, d),
                        Matrix::rows(scores.as_mut_ptr(), cols),
                        false,
                        scale,
                        Matrix::rows(q.as_ptr().add(q0 + first * width), width),
                        Matrix::rows(k.as_ptr().add(k0), width).t(),
                    );
                }
                vectorised(
                    #[inline(always)]
                    || {
                        for (i, row) in scores.chunks_exact_mut(cols).enumerate() {
                            let (seen, hidden) = row.split_at_mut(size.visible(first + i));
                            let top = max(seen);
                            let total = exp_in_place(seen, top);
                            log_sum_exp[first + i] = top + total.ln();
                            let inverse = T::one() / total;
                            seen.iter_mut().for_each(|p| *p *= inverse);
                            hidden.fill(T::zero());
                        }
                    },
                );
                // SAFETY: as above.
                unsafe {
                    gemm_on_this_thread(
                        (rows, d, cols),
                        Matrix::rows(out.ptr().add(q0 + first * width), width),
                        false,
                        T::one(),
                        Matrix::rows(scores.as_ptr(), cols),
                        Matrix::rows(v.as_ptr().add(k0), width),
                    );
                }
            }
        },
    );
    (y, log_sum_exp)
}

/// dq, dk, dv.
fn backward<T: Real>([q, k, v, y, dy]: [&[T]; 5], log_sum_exp: &[T], scale: T, size: Size) -> [Vec<T>; 3] {
    let (t, s, width, d) = (size.t, size.s, size.width(), size.head_dim);
    let (mut dq, mut dk, mut dv) = (buffer::<T>(q.len()), buffer::<T>(k.len()), buffer::<T>(v.len()));
    let (dq_out, dk_out, dv_out) =
        (SharedMut::new(&mut dq), SharedMut::new(&mut dk), SharedMut::new(&mut dv));
    let scratch = || (buffer::<T>(BLOCK.min(t) * s), buffer::<T>(BLOCK.min(t) * s));
    log_sum_exp.par_chunks(t).enumerate().for_each_init(scratch, |(p, ds), (task, log_sum_exp)| {
        let (q0, k0) = (size.offset(task, t), size.offset(task, s));
        // From the last block, which sees all keys and so assigns every row of dk and dv, to the first.
        for first in (0..t).step_by(BLOCK).rev() {
            let last_block = first + BLOCK >= t;
            let rows = BLOCK.min(t - first);
            let cols = size.visible(first + rows - 1);
            let (p, ds) = (&mut p[..rows * cols], &mut ds[..rows * cols]);
            let here = q0 + first * width;
            // SAFETY: offsets and strides lie within the slices by the checked shapes; tasks write disjoint heads.
            unsafe {
                let keys = Matrix::rows(k.as_ptr().add(k0), width);
                let values = Matrix::rows(v.as_ptr().add(k0), width);
                let queries = Matrix::rows(q.as_ptr().add(here), width);
                let out = Matrix::rows(dy.as_ptr().add(here), width);
                gemm_on_this_thread(
                    (rows, cols, d),
                    Matrix::rows(p.as_mut_ptr(), cols),
                    false,
                    scale,
                    queries,
                    keys.t(),
                );
                gemm_on_this_thread(
                    (rows, cols, d),
                    Matrix::rows(ds.as_mut_ptr(), cols),
                    false,
                    T::one(),
                    out,
                    values.t(),
                );
                vectorised(
                    #[inline(always)]
                    || {
                        for i in 0..rows {
                            let row = here + i * width;
                            let (visible, z) = (size.visible(first + i), log_sum_exp[first + i]);
                            let delta = dot(&y[row..row + d], &dy[row..row + d]);
                            let (p, hidden_p) = p[i * cols..(i + 1) * cols].split_at_mut(visible);
                            let (ds, hidden_ds) = ds[i * cols..(i + 1) * cols].split_at_mut(visible);
                            for (p, ds) in p.iter_mut().zip(ds) {
                                *p = (*p - z).exp();
                                *ds = *p * (*ds - delta) * scale;
                            }
                            hidden_p.fill(T::zero());
                            hidden_ds.fill(T::zero());
                        }
                    },
                );
                let (p, ds) = (Matrix::rows(p.as_ptr(), cols), Matrix::rows(ds.as_ptr(), cols));
                let one = T::one();
                gemm_on_this_thread(
                    (rows, d, cols),
                    Matrix::rows(dq_out.ptr().add(here), width),
                    false,
                    one,
                    ds,
                    keys,
                );
                let add = !last_block;
                gemm_on_this_thread(
                    (cols, d, rows),
                    Matrix::rows(dk_out.ptr().add(k0), width),
                    add,
                    one,
                    ds.t(),
                    queries,
                );
                gemm_on_this_thread(
                    (cols, d, rows),
                    Matrix::rows(dv_out.ptr().add(k0), width),
                    add,
                    one,
                    p.t(),
                    out,
                );
            }
        }
    });
    [dq, dk, dv]
}
