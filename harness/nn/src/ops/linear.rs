//! `y = f(x w^T + b)` for `x` `[.., k]`, `w` `[o, k]`, `b` `[o]` and an optional activation f.
//!
//! Kept for backward: `x`, if the weight is trainable (dw = dy^T x); with an activation the product before bias
//! and activation, for ReLU the result instead. Nothing for dx = dy w or db = sum of rows.

use candle_core::{Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::activation::{Curve, for_activation};
use super::gemm::{matmul_nn, matmul_nt, matmul_tn};
use super::{Activation, ROWS, for_device};
use crate::real::Real;
use crate::simd::vectorised;
use crate::storage::{buffer, slice, tensor};
use crate::tape::{Flow, Grad, Value};

/// Rows whose sum is one partial sum of db.
const GROUP: usize = 4 * ROWS;

impl Value {
    /// `x w^T + b`.
    ///
    /// # Errors
    /// The last dimension is not the weight's second one.
    pub fn linear(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Value> {
        for_device!(self.tensor(), linear(self, weight, bias))
    }

    /// `f(x w^T + b)`.
    ///
    /// # Errors
    /// As [`Value::linear`].
    pub fn linear_activation(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Value> {
        for_device!(self.tensor(), linear_activation(self, weight, bias, activation))
    }
}

/// Rows, outputs and inputs of a call, and the shape of its result.
fn size(x: &Tensor, weight: &Tensor) -> Result<((usize, usize, usize), Vec<usize>)> {
    let (o, k) = weight.dims2()?;
    let mut dims = x.dims().to_vec();
    match dims.last_mut() {
        Some(last) if *last == k => *last = o,
        _ => bail!("linear: input {dims:?} for a weight [{o}, {k}]"),
    }
    Ok(((x.elem_count() / k, o, k), dims))
}

/// The part of a linear layer's backward pass that every form shares.
struct Backward {
    size: (usize, usize, usize),
    x_slot: Option<usize>,
    x_shape: Shape,
    /// Kept if the weight is trainable.
    x: Option<Tensor>,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Backward {
    fn new(size: (usize, usize, usize), x: &Value, weight: &Tensor, bias: Option<&Tensor>) -> Self {
        Self {
            size,
            x_slot: x.slot(),
            x_shape: x.tensor().shape().clone(),
            x: weight.is_variable().then(|| x.tensor().clone()),
            weight: weight.clone(),
            bias: bias.cloned(),
        }
    }

    /// Sends dw and dx on; `dy` is the gradient of the product.
    fn send<T: Real>(&self, dy: &[T], flow: &mut Flow) -> Result<()> {
        if let Some(x) = &self.x {
            slice::<T, _>(x, |x| {
                flow.add_to_parameter::<T>(&self.weight, |dw, fresh| matmul_tn(dw, !fresh, dy, x, self.size))
            })??;
        }
        slice::<T, _>(&self.weight, |w| {
            flow.add_to_slot::<T>(self.x_slot, &self.x_shape, |dx, fresh| {
                matmul_nn(dx, !fresh, dy, w, self.size);
            })
        })?
    }
}

fn linear<T: Real>(x: &Value, weight: &Tensor, bias: Option<&Tensor>) -> Result<Value> {
    let (size, dims) = size(x.tensor(), weight)?;
    let (n, o, _) = size;
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
    let backward = Backward::new(size, x, weight, bias);
    Ok(tape.record(y, move |dy, flow| {
        slice::<T, _>(dy.tensor(), |dy| {
            if let Some(bias) = &backward.bias {
                flow.add_to_parameter::<T>(bias, |db, fresh| sum_rows(db, !fresh, dy))?;
            }
            backward.send(dy, flow)
        })?
    }))
}

fn linear_activation<T: Real>(
    x: &Value,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
) -> Result<Value> {
    for_activation!(activation, activated::<T>(x, weight, bias, activation == Activation::Relu))
}

fn activated<T: Real, C: Curve>(
    x: &Value,
    weight: &Tensor,
    bias: Option<&Tensor>,
    keep_result: bool,
) -> Result<Value> {
    let (size, dims) = size(x.tensor(), weight)?;
    let (n, o, _) = size;
    let weights: Vec<&Tensor> = std::iter::once(weight).chain(bias).collect();
    let tape = Value::recording(&[x], &weights);
    let b = bias.map_or_else(|| Ok(vec![T::zero(); o]), |b| slice::<T, _>(b, <[T]>::to_vec))?;
    let mut product = buffer::<T>(n * o);
    slice::<T, _>(x.tensor(), |x| slice::<T, _>(weight, |w| matmul_nt(&mut product, false, x, w, size)))??;
    if tape.is_none() || keep_result {
        product.par_chunks_mut(ROWS * o).for_each(|rows| {
            vectorised(
                #[inline(always)]
                || {
                    for row in rows.chunks_exact_mut(o) {
                        row.iter_mut().zip(&b).for_each(|(v, b)| *v = C::value(*v + *b));
                    }
                },
            );
        });
        let y = tensor(product, dims)?;
        return Ok(match tape {
            None => x.unrecorded(y),
            Some(tape) => {
                let (kept, backward) = (y.clone(), Backward::new(size, x, weight, bias));
                let zeros = vec![T::zero(); o];
                tape.record(y, move |dy, flow| backward_through::<T, C>(&kept, &zeros, dy, &backward, flow))
            }
        });
    }
    let mut y = buffer::<T>(n * o);
    y.par_chunks_mut(ROWS * o).zip(product.par_chunks(ROWS * o)).for_each(|(y, product)| {
        vectorised(
            #[inline(always)]
            || {
                for (y, product) in y.chunks_exact_mut(o).zip(product.chunks_exact(o)) {
                    y.iter_mut().zip(product).zip(&b).for_each(|((y, v), b)| *y = C::value(*v + *b));
                }
            },
        );
    });
    let (y, product) = (tensor(y, dims.clone())?, tensor(product, dims)?);
    let Some(tape) = tape else { return Ok(x.unrecorded(y)) };
    let backward = Backward::new(size, x, weight, bias);
    Ok(tape.record(y, move |dy, flow| backward_through::<T, C>(&product, &b, dy, &backward, flow)))
}

/// Turns dy into the product's gradient, sums its rows on the way, and goes on as a plain linear layer.
/// The activation's argument is `kept + b`.
fn backward_through<T: Real, C: Curve>(
    kept: &Tensor,
    b: &[T],
    dy: Grad,
    backward: &Backward,
    flow: &mut Flow,
) -> Result<()> {
    let o = b.len();
    let through = |dy: &mut [T], from: Option<&[T]>| {
        slice::<T, _>(kept, |kept| {
            let groups = dy.par_chunks_mut(GROUP * o).zip(kept.par_chunks(GROUP * o)).enumerate();
            let parts: Vec<Vec<T>> = groups
                .map(|(g, (dy, kept))| {
                    if let Some(from) = from {
                        dy.copy_from_slice(&from[g * GROUP * o..][..dy.len()]);
                    }
                    let mut sum = vec![T::zero(); o];
                    vectorised(
                        #[inline(always)]
                        || {
                            for (dy, kept) in dy.chunks_exact_mut(o).zip(kept.chunks_exact(o)) {
                                let arguments = kept.iter().zip(b);
                                dy.iter_mut().zip(arguments).zip(&mut sum).for_each(|((dy, (v, b)), sum)| {
                                    *dy *= C::slope(*v + *b);
                                    *sum += *dy;
                                });
                            }
                        },
                    );
                    sum
                })
                .collect();
            parts
        })
    };
    let mut finish = |dy: &[T], parts: &[Vec<T>]| {
        if let Some(bias) = &backward.bias {
            flow.add_to_parameter::<T>(bias, |db, fresh| add_partial(db, !fresh, parts))?;
        }
        backward.send(dy, flow)
    };
    if dy.is_unique() {
        // nobody else reads this gradient: it is overwritten where it is
        let mut parts = Ok(Vec::new());
        crate::storage::slice_mut::<T>(dy.tensor(), |dy| parts = through(dy, None))?;
        let parts = parts?;
        slice::<T, _>(dy.tensor(), |dy| finish(dy, &parts))?
    } else {
        let mut own = buffer::<T>(dy.tensor().elem_count());
        let parts = slice::<T, _>(dy.tensor(), |dy| through(&mut own, Some(dy)))??;
        finish(&own, &parts)
    }
}

/// `total[o] (+)= sum over rows of dy[n, o]`, by partial sums over fixed groups of rows.
pub(crate) fn sum_rows<T: Real>(total: &mut [T], accumulate: bool, dy: &[T]) {
    let o = total.len();
    let partial: Vec<Vec<T>> = dy
        .par_chunks(GROUP * o)
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

/// `total[o] (+)= sum over rows of a[n, o] * b[n, o]`, as [`sum_rows`].
pub(crate) fn sum_products<T: Real>(total: &mut [T], accumulate: bool, a: &[T], b: &[T]) {
    let o = total.len();
    let partial: Vec<Vec<T>> = a
        .par_chunks(4 * ROWS * o)
        .zip(b.par_chunks(4 * ROWS * o))
        .map(|(a, b)| {
            let mut sum = vec![T::zero(); o];
            vectorised(
                #[inline(always)]
                || {
                    for (a, b) in a.chunks_exact(o).zip(b.chunks_exact(o)) {
                        sum.iter_mut().zip(a).zip(b).for_each(|((s, a), b)| *s = a.mul_add(*b, *s));
                    }
                },
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
