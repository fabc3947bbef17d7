//! ReLU, GELU (tanh form), SiLU and SwiGLU, `silu(gate) * up`.
//!
//! Kept for backward: the inputs; for ReLU the result, which the next layer keeps anyway.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::for_device;
use crate::real::Real;
use crate::simd::vectorised;
use crate::storage::{buffer, slice, tensor};
use crate::tape::{CHUNK, Grad, Value};

impl Value {
    /// max(x, 0); its gradient at 0 is 0, as in PyTorch.
    ///
    /// # Errors
    /// A device failed.
    pub fn relu(&self) -> Result<Value> {
        for_device!(self.tensor(), relu(self))
    }

    /// GELU by its tanh approximation (`gelu_new`, `approximate="tanh"`).
    ///
    /// # Errors
    /// A device failed.
    pub fn gelu_tanh(&self) -> Result<Value> {
        for_device!(self.tensor(), gelu_tanh(self))
    }

    /// x * sigmoid(x).
    ///
    /// # Errors
    /// A device failed.
    pub fn silu(&self) -> Result<Value> {
        for_device!(self.tensor(), silu(self))
    }

    /// silu(self) * up: the gate of a LLaMA-style feed-forward layer (Shazeer 2020).
    ///
    /// # Errors
    /// The shapes differ.
    pub fn swiglu(&self, up: &Value) -> Result<Value> {
        for_device!(self.tensor(), swiglu(self, up))
    }
}

/// `y = f(x)`, elementwise.
fn map<T: Real>(x: &Tensor, f: impl Fn(T) -> T + Sync) -> Result<Vec<T>> {
    let mut y = buffer::<T>(x.elem_count());
    slice::<T, _>(x, |x| {
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
            vectorised(
                #[inline(always)]
                || y.iter_mut().zip(x).for_each(|(y, x)| *y = f(*x)),
            );
        });
    })?;
    Ok(y)
}

/// `z = f(x, y)`, elementwise.
fn zip<T: Real>(x: &Tensor, y: &Tensor, f: impl Fn(T, T) -> T + Sync) -> Result<Vec<T>> {
    let mut z = buffer::<T>(x.elem_count());
    slice::<T, _>(x, |x| {
        slice::<T, _>(y, |y| {
            z.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(y.par_chunks(CHUNK)).for_each(
                |((z, x), y)| {
                    vectorised(
                        #[inline(always)]
                        || z.iter_mut().zip(x).zip(y).for_each(|((z, x), y)| *z = f(*x, *y)),
                    );
                },
            );
        })
    })??;
    Ok(z)
}

/// An activation whose derivative is `slope(kept)`, where `kept` is the input or the result.
fn activation<T: Real>(
    x: &Value,
    y: Vec<T>,
    keep_result: bool,
    slope: impl Fn(T) -> T + Sync + 'static,
) -> Result<Value> {
    let y = tensor(y, x.tensor().shape())?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let (slot, kept) = (x.slot(), if keep_result { y.clone() } else { x.tensor().clone() });
    Ok(tape.record(y, move |dy, flow| {
        let dx = zip::<T>(&kept, dy.tensor(), |v, dy| dy * slope(v))?;
        flow.send_to_slot::<T>(slot, Grad::new(tensor(dx, kept.shape())?))
    }))
}

fn relu<T: Real>(x: &Value) -> Result<Value> {
    let y = map::<T>(
        x.tensor(),
        #[inline(always)]
        |v| v.larger(T::zero()),
    )?;
    activation::<T>(
        x,
        y,
        true,
        #[inline(always)]
        |y| if y > T::zero() { T::one() } else { T::zero() },
    )
}

/// Logistic function.
#[inline(always)]
fn sigmoid<T: Real>(x: T) -> T {
    T::one() / (T::one() + (T::zero() - x).exp())
}

fn silu<T: Real>(x: &Value) -> Result<Value> {
    let y = map::<T>(
        x.tensor(),
        #[inline(always)]
        |v| v * sigmoid(v),
    )?;
    activation::<T>(x, y, false, silu_slope)
}

#[inline(always)]
fn silu_slope<T: Real>(x: T) -> T {
    let s = sigmoid(x);
    s * (T::one() + x * (T::one() - s))
}

/// With u = sqrt(2/pi) (x + 0.044715 x^3): (1 + tanh u) / 2 = sigmoid(2 u).
fn gelu_tanh<T: Real>(x: &Value) -> Result<Value> {
    let (a, b) = (T::from_f64(2.0 * (2.0 / std::f64::consts::PI).sqrt()), T::from_f64(0.044_715));
    let y = map::<T>(
        x.tensor(),
        #[inline(always)]
        |v| v * sigmoid(a * v * (b * v).mul_add(v, T::one())),
    )?;
    activation::<T>(
        x,
        y,
        false,
        #[inline(always)]
        move |v| {
            let s = sigmoid(a * v * (b * v).mul_add(v, T::one()));
            let du = a * (T::of(3) * b * v).mul_add(v, T::one());
            (v * s * (T::one() - s)).mul_add(du, s)
        },
    )
}

fn swiglu<T: Real>(gate: &Value, up: &Value) -> Result<Value> {
    if gate.tensor().shape() != up.tensor().shape() {
        bail!("swiglu: {:?} and {:?}", gate.tensor().shape(), up.tensor().shape());
    }
    let y = zip::<T>(
        gate.tensor(),
        up.tensor(),
        #[inline(always)]
        |g, u| g * sigmoid(g) * u,
    )?;
    let y = tensor(y, gate.tensor().shape())?;
    let Some(tape) = Value::recording(&[gate, up], &[]) else { return Ok(gate.unrecorded(y)) };
    let (slots, gate, up) = ((gate.slot(), up.slot()), gate.tensor().clone(), up.tensor().clone());
    Ok(tape.record(y, move |dy, flow| {
        let n = gate.elem_count();
        let (mut dg, mut du) = (buffer::<T>(n), buffer::<T>(n));
        slice::<T, _>(&gate, |g| {
            slice::<T, _>(&up, |u| {
                slice::<T, _>(dy.tensor(), |dy| {
                    let results = dg.par_chunks_mut(CHUNK).zip(du.par_chunks_mut(CHUNK));
                    let inputs = g.par_chunks(CHUNK).zip(u.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK));
                    results.zip(inputs).for_each(|((dg, du), ((g, u), dy))| {
                        vectorised(
                            #[inline(always)]
                            || {
                                for i in 0..g.len() {
                                    let s = sigmoid(g[i]);
                                    du[i] = dy[i] * g[i] * s;
                                    dg[i] = dy[i] * u[i] * s * (T::one() + g[i] * (T::one() - s));
                                }
                            },
                        );
                    });
                })
            })
        })???;
        flow.send_to_slot::<T>(slots.0, Grad::new(tensor(dg, gate.shape())?))?;
        flow.send_to_slot::<T>(slots.1, Grad::new(tensor(du, gate.shape())?))
    }))
}
