//! The convolution kernel of Mega's multi-dimensional damped moving average (Ma et al. 2023):
//! `k[l] = sum over n of c q^l` with `p = sigmoid(delta)`, `q = 1 - p sigmoid(alpha)`, `c = p beta gamma / sqrt(n)`.
//!
//! Kept for backward: nothing but the parameters; powers of q cost less to compute than to read. They are made in double
//! precision, so no error grows with l.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::for_device;
use crate::real::Real;
use crate::storage::{buffer, slices, tensor};
use crate::tape::{Value, assign_or_add_rounded};

/// The parameters of averages in one direction or two, each `[sides * h, n]` or `[sides * h, n, 1]`.
#[derive(Clone)]
pub struct DampedAverage {
    /// How much of an input enters, before the sigmoid.
    pub delta: Tensor,
    /// How much of that is forgotten, before the sigmoid.
    pub alpha: Tensor,
    /// Expands an input to n dimensions.
    pub beta: Tensor,
    /// Projects n dimensions back.
    pub gamma: Tensor,
    /// 1, or 2 with an average that looks ahead.
    pub sides: usize,
}

/// The sizes of one call.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub(super) sides: usize,
    pub(super) h: usize,
    pub(super) n: usize,
    pub(super) length: usize,
}

impl DampedAverage {
    /// The `length` taps `[sides, h, length]` for [`Value::causal_convolution`], recorded on the tape of `beside`. Mega
    /// adds the kernels of both directions, so that the present counts in both: tap 0 of the one that looks ahead is
    /// part of the other's, and what is left of it starts one step later.
    ///
    /// # Errors
    /// Parameters whose shapes do not fit each other, or length 0.
    pub fn taps(&self, length: usize, beside: &Value) -> Result<Value> {
        for_device!(self.delta, damped_taps(self, length, beside))
    }

    pub(super) fn size(&self, length: usize) -> Result<Size> {
        let (rows, n) = match *self.gamma.dims() {
            [rows, n] | [rows, n, 1] => (rows, n),
            _ => (0, 0),
        };
        let fits = self.tensors().into_iter().all(|t| t.elem_count() == rows * n);
        let sides = self.sides;
        if !fits || rows * n * length == 0 || !(1..=2).contains(&sides) || rows % sides != 0 {
            bail!(
                "damped average: {length} taps, {sides} sides, parameters {:?}; all are [sides * h, n]",
                self.tensors().map(Tensor::dims)
            );
        }
        Ok(Size { sides, h: rows / sides, n, length })
    }

    pub(super) fn tensors(&self) -> [&Tensor; 4] {
        [&self.delta, &self.alpha, &self.beta, &self.gamma]
    }
}

/// One dimension of a channel.
#[derive(Clone, Copy)]
struct Dimension {
    p: f64,
    a: f64,
    /// beta / sqrt(n)
    beta: f64,
    gamma: f64,
}

impl Dimension {
    fn q(self) -> f64 {
        1.0 - self.p * self.a
    }
}

fn dimensions<T: Real>(parameters: [&[T]; 4], row: usize, n: usize) -> Vec<Dimension> {
    let sigmoid = |x: T| 1.0 / (1.0 + (-x.to_f64()).exp());
    let [delta, alpha, beta, gamma] = parameters.map(|t| &t[row * n..][..n]);
    let scale = 1.0 / (n as f64).sqrt();
    let dimension = |i: usize| Dimension {
        p: sigmoid(delta[i]),
        a: sigmoid(alpha[i]),
        beta: scale * beta[i].to_f64(),
        gamma: gamma[i].to_f64(),
    };
    (0..n).map(dimension).collect()
}

fn damped_taps<T: Real>(average: &DampedAverage, length: usize, beside: &Value) -> Result<Value> {
    let size = average.size(length)?;
    let y = slices::<T, _, 4>(average.tensors(), |parameters| forward(parameters, size))?;
    let y = tensor(y, (size.sides, size.h, length))?;
    let Some(tape) = Value::recording(&[beside], &average.tensors()) else { return Ok(beside.unrecorded(y)) };
    let average = average.clone();
    Ok(tape.record(y, move |dy, flow| {
        let [delta, alpha, beta, gamma] = average.tensors();
        let gradients = slices::<T, _, 5>(
            [delta, alpha, beta, gamma, dy.tensor()],
            |[delta, alpha, beta, gamma, dy]| backward([delta, alpha, beta, gamma], dy, size),
        )?;
        for (i, parameter) in average.tensors().into_iter().enumerate() {
            flow.add_to_parameter::<T>(parameter, |to, fresh| {
                assign_or_add_rounded(to, gradients.iter().flatten().map(|g| g[i]), fresh);
            })?;
        }
        Ok(())
    }))
}

fn forward<T: Real>(parameters: [&[T]; 4], size: Size) -> Vec<T> {
    let Size { h, n, length, .. } = size;
    let mut y = buffer::<T>(size.sides * h * length);
    y.par_chunks_mut(length).enumerate().for_each(|(row, y)| {
        let dimensions = dimensions(parameters, row, n);
        let q: Vec<f64> = dimensions.iter().map(|d| d.q()).collect();
        let mut terms: Vec<f64> = dimensions.iter().map(|d| d.p * d.beta * d.gamma).collect();
        for y in y {
            *y = T::from_f64(terms.iter().sum());
            terms.iter_mut().zip(&q).for_each(|(term, q)| *term *= q);
        }
    });
    if size.sides == 2 {
        let (behind, ahead) = y.split_at_mut(h * length);
        for (behind, ahead) in behind.chunks_exact_mut(length).zip(ahead.chunks_exact_mut(length)) {
            behind[0] += ahead[0];
            ahead.rotate_left(1);
            ahead[length - 1] = T::zero();
        }
    }
    y
}

/// By row and dimension: derivatives by delta, alpha, beta and gamma. With `S0 = sum of dk q^l` and
/// `S1 = sum of dk l q^(l - 1)` the loss changes by `S0 dc + c S1 dq`.
fn backward<T: Real>(parameters: [&[T]; 4], dy: &[T], size: Size) -> Vec<Vec<[f64; 4]>> {
    let Size { h, n, length, .. } = size;
    let scale = 1.0 / (n as f64).sqrt();
    let row = |row: usize| {
        let dimensions = dimensions(parameters, row, n);
        let own = &dy[row * length..][..length];
        // tap 0 of the side that looks ahead is that of the other, its later ones stand one place before
        let (first, later) = if row < h { (own[0], &own[1..]) } else { (dy[(row - h) * length], own) };
        let (mut power, mut slope) = (vec![1.0; n], vec![0.0; n]);
        let (mut s0, mut s1) = (vec![first.to_f64(); n], vec![0.0; n]);
        for dk in &later[..length - 1] {
            let dk = dk.to_f64();
            for i in 0..n {
                let q = dimensions[i].q();
                slope[i] = slope[i] * q + power[i];
                power[i] *= q;
                s0[i] += dk * power[i];
                s1[i] += dk * slope[i];
            }
        }
        let derivatives = |i: usize| {
            let Dimension { p, a, beta, gamma } = dimensions[i];
            let by_q = p * beta * gamma * s1[i];
            let (by_p, by_a) = (s0[i] * beta * gamma - by_q * a, -by_q * p);
            let by_beta = s0[i] * p * gamma * scale;
            [by_p * p * (1.0 - p), by_a * a * (1.0 - a), by_beta, s0[i] * p * beta]
        };
        (0..n).map(derivatives).collect()
    };
    (0..size.sides * h).into_par_iter().map(row).collect()
}
