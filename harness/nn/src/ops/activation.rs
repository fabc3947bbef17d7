//! ReLU, GELU (exact and by tanh), SiLU, and gated units `f(gate) * up` (Shazeer 2020).
//!
//! Kept for backward: the inputs; for ReLU the result, which the next layer keeps anyway.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::for_device;
use crate::real::Real;
use crate::simd::vectorised;
use crate::storage::{buffer, slice, tensor};
use crate::tape::{CHUNK, Grad, Value};

/// An elementwise nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// max(x, 0); its gradient at 0 is 0, as in PyTorch.
    Relu,
    /// x times the normal distribution function (`gelu`).
    Gelu,
    /// GELU by its tanh approximation (`gelu_new`, `approximate="tanh"`).
    GeluTanh,
    /// 1 / (1 + e^-x).
    Sigmoid,
    /// x * sigmoid(x) (`swish`).
    Silu,
}

impl Value {
    /// `f(x)`, elementwise.
    ///
    /// # Errors
    /// A device failed.
    pub fn activate(&self, activation: Activation) -> Result<Value> {
        for_device!(self.tensor(), activate(self, activation))
    }

    /// `f(self) * up`, elementwise: a gated feed-forward layer's inner part, SwiGLU with [`Activation::Silu`].
    ///
    /// # Errors
    /// The shapes differ.
    pub fn gate(&self, up: &Value, activation: Activation) -> Result<Value> {
        for_device!(self.tensor(), gate(self, up, activation))
    }
}

/// A nonlinearity and its derivative, known when loops over them are compiled.
pub(crate) trait Curve: Copy + Sync + Send + 'static {
    /// f(x)
    fn value<T: Real>(x: T) -> T;
    /// f'(x)
    fn slope<T: Real>(x: T) -> T;
}

#[derive(Clone, Copy)]
pub(crate) struct Relu;
#[derive(Clone, Copy)]
pub(crate) struct Gelu;
#[derive(Clone, Copy)]
pub(crate) struct GeluTanh;
#[derive(Clone, Copy)]
pub(crate) struct Sigmoid;
#[derive(Clone, Copy)]
pub(crate) struct Silu;

/// Calls a function generic over a number type and a [`Curve`].
macro_rules! for_activation {
    ($activation:expr, $function:ident::<$t:ty>($($argument:expr),* $(,)?)) => {
        match $activation {
            $crate::ops::Activation::Relu => $function::<$t, $crate::ops::activation::Relu>($($argument),*),
            $crate::ops::Activation::Gelu => $function::<$t, $crate::ops::activation::Gelu>($($argument),*),
            $crate::ops::Activation::GeluTanh => $function::<$t, $crate::ops::activation::GeluTanh>($($argument),*),
            $crate::ops::Activation::Sigmoid => $function::<$t, $crate::ops::activation::Sigmoid>($($argument),*),
            $crate::ops::Activation::Silu => $function::<$t, $crate::ops::activation::Silu>($($argument),*),
        }
    };
}
pub(crate) use for_activation;

impl Curve for Relu {
    #[inline(always)]
    fn value<T: Real>(x: T) -> T {
        x.larger(T::zero())
    }

    /// The same for the result as for the input.
    #[inline(always)]
    fn slope<T: Real>(x: T) -> T {
        if x > T::zero() { T::one() } else { T::zero() }
    }
}

impl Curve for Gelu {
    #[inline(always)]
    fn value<T: Real>(x: T) -> T {
        x * normal_cdf(x)
    }

    #[inline(always)]
    fn slope<T: Real>(x: T) -> T {
        let density = T::from_f64(0.398_942_280_401_432_7) * (x * x * T::from_f64(-0.5)).exp();
        x.mul_add(density, normal_cdf(x))
    }
}

#[inline(always)]
fn normal_cdf<T: Real>(x: T) -> T {
    let half = T::from_f64(0.5);
    half.mul_add((x * T::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf(), half)
}

/// With u = sqrt(2/pi) (x + 0.044715 x^3): (1 + tanh u) / 2 = sigmoid(2 u).
impl GeluTanh {
    const A: f64 = 1.595_769_121_605_731;
    const B: f64 = 0.044_715;

    #[inline(always)]
    fn sigmoid<T: Real>(x: T) -> T {
        sigmoid(T::from_f64(Self::A) * x * (T::from_f64(Self::B) * x).mul_add(x, T::one()))
    }
}

impl Curve for GeluTanh {
    #[inline(always)]
    fn value<T: Real>(x: T) -> T {
        x * Self::sigmoid(x)
    }

    #[inline(always)]
    fn slope<T: Real>(x: T) -> T {
        let s = Self::sigmoid(x);
        let du = T::from_f64(Self::A) * (T::from_f64(3.0 * Self::B) * x).mul_add(x, T::one());
        (x * s * (T::one() - s)).mul_add(du, s)
    }
}

impl Curve for Sigmoid {
    #[inline(always)]
    fn value<T: Real>(x: T) -> T {
        sigmoid(x)
    }

    #[inline(always)]
    fn slope<T: Real>(x: T) -> T {
        let s = sigmoid(x);
        s * (T::one() - s)
    }
}

impl Curve for Silu {
    #[inline(always)]
    fn value<T: Real>(x: T) -> T {
        x * sigmoid(x)
    }

    #[inline(always)]
    fn slope<T: Real>(x: T) -> T {
        let s = sigmoid(x);
        s * (x * (T::one() - s) + T::one())
    }
}

/// Logistic function.
#[inline(always)]
pub(crate) fn sigmoid<T: Real>(x: T) -> T {
    T::one() / (T::one() + (T::zero() - x).exp())
}

fn activate<T: Real>(x: &Value, activation: Activation) -> Result<Value> {
    for_activation!(activation, activate_by::<T>(x, activation == Activation::Relu))
}

fn activate_by<T: Real, C: Curve>(x: &Value, keep_result: bool) -> Result<Value> {
    let mut y = buffer::<T>(x.tensor().elem_count());
    slice::<T, _>(x.tensor(), |x| {
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
            vectorised(
                #[inline(always)]
                || y.iter_mut().zip(x).for_each(|(y, x)| *y = C::value(*x)),
            );
        });
    })?;
    let y = tensor(y, x.tensor().shape())?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let (slot, kept) = (x.slot(), if keep_result { y.clone() } else { x.tensor().clone() });
    Ok(tape.record(y, move |dy, flow| {
        let mut dx = buffer::<T>(kept.elem_count());
        slice::<T, _>(&kept, |x| {
            slice::<T, _>(dy.tensor(), |dy| {
                let inputs = x.par_chunks(CHUNK).zip(dy.par_chunks(CHUNK));
                dx.par_chunks_mut(CHUNK).zip(inputs).for_each(|(dx, (x, dy))| {
                    vectorised(
                        #[inline(always)]
                        || {
                            let inputs = x.iter().zip(dy);
                            dx.iter_mut().zip(inputs).for_each(|(dx, (x, dy))| *dx = *dy * C::slope(*x));
                        },
                    );
                });
            })
        })??;
        flow.send_to_slot::<T>(slot, Grad::new(tensor(dx, kept.shape())?))
    }))
}

fn gate<T: Real>(gate: &Value, up: &Value, activation: Activation) -> Result<Value> {
    if gate.tensor().shape() != up.tensor().shape() {
        bail!("gate: {:?} and {:?}", gate.tensor().shape(), up.tensor().shape());
    }
    for_activation!(activation, gate_by::<T>(gate, up))
}

fn gate_by<T: Real, C: Curve>(gate: &Value, up: &Value) -> Result<Value> {
    let mut y = buffer::<T>(gate.tensor().elem_count());
    slice::<T, _>(gate.tensor(), |gate| {
        slice::<T, _>(up.tensor(), |up| {
            let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK));
            y.par_chunks_mut(CHUNK).zip(inputs).for_each(|(y, (gate, up))| {
                vectorised(
                    #[inline(always)]
                    || {
                        let inputs = gate.iter().zip(up);
                        y.iter_mut().zip(inputs).for_each(|(y, (gate, up))| *y = C::value(*gate) * *up);
                    },
                );
            });
        })
    })??;
    let y = tensor(y, gate.tensor().shape())?;
    let Some(tape) = Value::recording(&[gate, up], &[]) else { return Ok(gate.unrecorded(y)) };
    let (slots, kept): (_, [Tensor; 2]) =
        ((gate.slot(), up.slot()), [gate.tensor().clone(), up.tensor().clone()]);
    Ok(tape.record(y, move |dy, flow| {
        let [gate, up] = &kept;
        let n = gate.elem_count();
        let (mut dg, mut du) = (buffer::<T>(n), buffer::<T>(n));
        slice::<T, _>(gate, |g| {
            slice::<T, _>(up, |u| {
                slice::<T, _>(dy.tensor(), |dy| {
                    let results = dg.par_chunks_mut(CHUNK).zip(du.par_chunks_mut(CHUNK));
                    let inputs = g.par_chunks(CHUNK).zip(u.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK));
                    results.zip(inputs).for_each(|((dg, du), ((g, u), dy))| {
                        vectorised(
                            #[inline(always)]
                            || {
                                for i in 0..g.len() {
                                    du[i] = dy[i] * C::value(g[i]);
                                    dg[i] = dy[i] * u[i] * C::slope(g[i]);
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
