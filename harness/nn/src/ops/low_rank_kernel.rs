//! The convolution kernel of a diagonal state-space model minus a rank-one term, `diag(A) - P P^*` (S4, Gu et al.
//! 2022), by its generating function at the roots of unity and an inverse Fourier transform; bilinear.
//!
//! Kept for backward: nothing but the parameters. All is done in double precision: near Nyquist the
//! function's terms are large and cancel.
//!
//! With `z = 2 (1 - w) / (1 + w)` and `r_ab = sum of a b step / (z - step A)` over modes and conjugates,
//! `K^(w) = (r_BC - r_BQ r_PC / (1 + r_PQ)) 2 / (1 + w)`, `Q = conj(P)`. At w = -1 the limit is `step Re(sum of B C)`.

#![allow(clippy::needless_range_loop, reason = "several arrays share an index")]

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;
use rustfft::num_complex::Complex64;

use super::diagonal_kernel::{Channel, ChannelGradient, DiagonalKernel, Size, pair, parts};
use super::fourier::plan;
use super::{Discretisation, for_device};
use crate::real::Real;
use crate::storage::{SharedMut, buffer, slices, tensor};
use crate::tape::{Value, assign_or_add_rounded};

/// The parameters of S4's kernel.
#[derive(Clone)]
pub struct LowRankKernel {
    /// The diagonal part; C is the trained one, `C (I - Ab^length)` for the discrete state matrix Ab and the length
    /// of training, and the discretisation is bilinear.
    pub diagonal: DiagonalKernel,
    /// P `[.., copies, n, 2]`, real and imaginary parts.
    pub p: Tensor,
}

impl LowRankKernel {
    /// The `length` taps `[c, h, length]` of the kernel, recorded on the tape of `beside`. C belongs to this length.
    ///
    /// # Errors
    /// Parameters whose shapes do not fit each other, no bilinear discretisation, or length 0.
    pub fn taps(&self, length: usize, beside: &Value) -> Result<Value> {
        for_device!(self.p, low_rank_taps(self, length, beside))
    }

    /// What C of a kernel as initialised becomes when it is to be trained for a length: `C (I - Ab^length)`, of the
    /// same shape. S4 does this once, at its first forward pass, and we when the model is made: on the host, of
    /// parameters that are there.
    ///
    /// # Errors
    /// As [`LowRankKernel::taps`], or parameters elsewhere.
    pub fn trained_c(&self, length: usize) -> Result<Tensor> {
        match self.p.dtype() {
            DType::F64 => trained_c::<f64>(self, length),
            _ => trained_c::<f32>(self, length),
        }
    }

    pub(super) fn size(&self, length: usize) -> Result<Size> {
        let size = self.diagonal.size(length)?;
        let (p, discretisation) = (self.p.dims(), self.diagonal.discretisation);
        if discretisation != Discretisation::Bilinear || self.p.elem_count() != 2 * size.copies * size.n {
            bail!(
                "low-rank kernel: P {p:?} for {} sets of {} modes, discretisation {discretisation:?}; it must be Bilinear",
                size.copies,
                size.n
            );
        }
        Ok(size)
    }

    pub(super) fn tensors(&self) -> [&Tensor; 6] {
        let [step, a_real, a_imag, c, b] = self.diagonal.tensors();
        [step, a_real, a_imag, c, b, &self.p]
    }
}

fn trained_c<T: Real>(kernel: &LowRankKernel, length: usize) -> Result<Tensor> {
    let size = kernel.size(length)?;
    let mut trained = vec![Complex64::ZERO; size.kernels * size.h * size.n];
    slices::<T, _, 6>(kernel.tensors(), |parameters| {
        for h in 0..size.h {
            let model = Model::new(kernel, parameters, h, size);
            for (k, c) in model.c.iter().enumerate() {
                let row = &mut trained[(k * size.h + h) * size.n..][..size.n];
                row.iter_mut().zip(model.after(c, length)).zip(c).for_each(|((t, after), c)| *t = c - after);
            }
        }
    })?;
    let numbers = trained.iter().flat_map(|c| [c.re, c.im]).map(T::from_f64).collect();
    tensor(numbers, kernel.diagonal.c.shape())
}

fn low_rank_taps<T: Real>(kernel: &LowRankKernel, length: usize, beside: &Value) -> Result<Value> {
    let size = kernel.size(length)?;
    let y = slices::<T, _, 6>(kernel.tensors(), |parameters| forward(kernel, parameters, size))?;
    let y = tensor(y, (size.kernels, size.h, length))?;
    let Some(tape) = Value::recording(&[beside], &kernel.tensors()) else { return Ok(beside.unrecorded(y)) };
    let kernel = kernel.clone();
    Ok(tape.record(y, move |dy, flow| {
        let [step, a_real, a_imag, c, b, p] = kernel.tensors();
        let gradients =
            slices::<T, _, 7>([step, a_real, a_imag, c, b, p, dy.tensor()], |[s, ar, ai, c, b, p, dy]| {
                backward(&kernel, [s, ar, ai, c, b, p], dy, size)
            })?;
        let (channels, others): (Vec<_>, Vec<_>) = gradients.into_iter().unzip();
        flow.add_to_parameter::<T>(c, |t, fresh| {
            for k in 0..size.kernels {
                for (h, (dc, _)) in others.iter().enumerate() {
                    let row = &mut t[2 * (k * size.h + h) * size.n..][..2 * size.n];
                    assign_or_add_rounded(row, parts(&dc[k * size.n..][..size.n]), fresh);
                }
            }
        })?;
        let dp = size.shared(others.iter().map(|(_, dp)| &dp[..]));
        flow.add_to_parameter::<T>(p, |t, fresh| assign_or_add_rounded(t, parts(&dp), fresh))?;
        kernel.diagonal.send::<T>(&channels, size, flow)
    }))
}

/// A channel in double precision.
struct Model {
    channel: Channel,
    p: Vec<Complex64>,
    /// By kernel.
    c: Vec<Vec<Complex64>>,
}

/// The four sums at one node.
#[derive(Clone, Copy, Default)]
struct Sums {
    bc: Complex64,
    bq: Complex64,
    pc: Complex64,
    pq: Complex64,
}

impl Model {
    fn new<T: Real>(kernel: &LowRankKernel, parameters: [&[T]; 6], h: usize, size: Size) -> Self {
        let [step, a_real, a_imag, c, b, p] = parameters;
        let first = h % size.copies * size.n;
        let row = |k: usize| (0..size.n).map(|i| pair(c, (k * size.h + h) * size.n + i)).collect();
        Self {
            channel: Channel::new(&kernel.diagonal, [step, a_real, a_imag, c, b], h, size),
            p: (first..first + size.n).map(|i| pair(p, i)).collect(),
            c: (0..size.kernels).map(row).collect(),
        }
    }

    /// `C Ab^steps` for a row vector C of the kept modes; those of the conjugates are its conjugates. The inverse in
    /// `Ab = (I - step A / 2)^-1 (I + step A / 2)` is that of a diagonal plus a rank-one matrix.
    fn after(&self, c: &[Complex64], steps: usize) -> Vec<Complex64> {
        let half = 0.5 * self.channel.step;
        let lambda = &self.channel.lambda;
        let inverse: Vec<Complex64> = lambda.iter().map(|l| (1.0 - half * l).inv()).collect();
        // a sum over all modes is twice the real part of that over the kept ones
        let all = |terms: &mut dyn Iterator<Item = Complex64>| 2.0 * terms.sum::<Complex64>().re;
        let shrink = 1.0 + half * all(&mut self.p.iter().zip(&inverse).map(|(p, i)| p.norm_sqr() * i));
        let mut c = c.to_vec();
        for _ in 0..steps {
            let along = all(&mut c.iter().zip(&self.p).zip(&inverse).map(|((c, p), i)| c * p * i));
            for ((c, p), i) in c.iter_mut().zip(&self.p).zip(&inverse) {
                *c = (*c - half * along / shrink * p.conj()) * i;
            }
            let along = all(&mut c.iter().zip(&self.p).map(|(c, p)| c * p));
            for ((c, p), l) in c.iter_mut().zip(&self.p).zip(lambda) {
                *c = *c * (1.0 + half * l) - half * along * p.conj();
            }
        }
        c
    }

    /// `step / (z - step lambda)` and the same for the conjugate of lambda.
    fn poles(&self, z: Complex64, i: usize) -> [Complex64; 2] {
        let (step, lambda) = (self.channel.step, self.channel.lambda[i]);
        [lambda, lambda.conj()].map(|lambda| (z - step * lambda).inv() * step)
    }

    fn sums(&self, z: Complex64, k: usize) -> Sums {
        let mut sums = Sums::default();
        for (i, (b, p)) in self.channel.b.iter().zip(&self.p).enumerate() {
            let ([here, mirrored], c) = (self.poles(z, i), self.c[k][i]);
            let term = |v: Complex64| v * here + v.conj() * mirrored;
            sums.bc += term(b * c);
            sums.bq += term(b * p.conj());
            sums.pc += term(p * c);
            sums.pq += term(p * p.conj());
        }
        sums
    }
}

/// Node `j`: z and `2 / (1 + w)` for `w = exp(-2 pi i j / length)`; nothing at Nyquist, where they are infinite.
fn node(j: usize, length: usize) -> Option<(Complex64, Complex64)> {
    if 2 * j == length {
        return None;
    }
    // (1 - w) / (1 + w) = i tan(pi j / length), and 2 / (1 + w) = 1 + that
    let half = Complex64::new(0.0, (std::f64::consts::PI * j as f64 / length as f64).tan());
    Some((2.0 * half, 1.0 + half))
}

fn forward<T: Real>(kernel: &LowRankKernel, parameters: [&[T]; 6], size: Size) -> Vec<T> {
    let length = size.length;
    let mut y = buffer::<T>(size.kernels * size.h * length);
    let out = SharedMut::new(&mut y);
    (0..size.h).into_par_iter().for_each(|h| {
        let model = Model::new(kernel, parameters, h, size);
        let transform = plan::<f64>(length).inverse;
        for k in 0..size.kernels {
            let mut spectrum = vec![Complex64::ZERO; length];
            for j in 0..=length / 2 {
                let value = match node(j, length) {
                    Some((z, factor)) => {
                        let s = model.sums(z, k);
                        (s.bc - s.bq * s.pc / (1.0 + s.pq)) * factor
                    }
                    None => {
                        let sum: Complex64 =
                            model.channel.b.iter().zip(&model.c[k]).map(|(b, c)| b * c).sum();
                        (sum.re * model.channel.step).into()
                    }
                };
                spectrum[j] = value;
                if j > 0 {
                    spectrum[length - j] = value.conj();
                }
            }
            spectrum[0].im = 0.0;
            transform.process(&mut spectrum);
            // SAFETY: tasks own the rows of their channel.
            let row =
                unsafe { std::slice::from_raw_parts_mut(out.ptr().add((k * size.h + h) * length), length) };
            row.iter_mut().zip(&spectrum).for_each(|(y, z)| *y = T::from_f64(z.re / length as f64));
        }
    });
    y
}

/// By channel: what it adds to the gradients of A, B and its step; and the analytic derivatives by its C and by P.
#[allow(clippy::type_complexity, reason = "two parts that go different ways")]
fn backward<T: Real>(
    kernel: &LowRankKernel,
    parameters: [&[T]; 6],
    dy: &[T],
    size: Size,
) -> Vec<(ChannelGradient, (Vec<Complex64>, Vec<Complex64>))> {
    (0..size.h)
        .into_par_iter()
        .map(|h| {
            let model = Model::new(kernel, parameters, h, size);
            let mut total = Derivatives::new(size);
            for k in 0..size.kernels {
                let dy = &dy[(k * size.h + h) * size.length..][..size.length];
                total.add_kernel(&model, k, dy);
            }
            total.finish(&model)
        })
        .collect()
}

/// Analytic derivatives of one channel, summed over nodes and kernels.
struct Derivatives {
    lambda: Vec<Complex64>,
    b: Vec<Complex64>,
    p: Vec<Complex64>,
    c: Vec<Complex64>,
    step: f64,
}

impl Derivatives {
    fn new(size: Size) -> Self {
        let zeros = |n: usize| vec![Complex64::ZERO; n];
        Self {
            lambda: zeros(size.n),
            b: zeros(size.n),
            p: zeros(size.n),
            c: zeros(size.kernels * size.n),
            step: 0.0,
        }
    }

    fn add_kernel<T: Real>(&mut self, model: &Model, k: usize, dy: &[T]) {
        let (length, n, step) = (dy.len(), model.p.len(), model.channel.step);
        let mut spectrum: Vec<Complex64> = dy.iter().map(|g| g.to_f64().into()).collect();
        plan::<f64>(length).forward.process(&mut spectrum);
        // derivatives by the products B C, B conj(P), P C and |P|^2 of every mode
        let mut by_product = vec![Sums::default(); n];
        for j in 0..=length / 2 {
            // nodes in between count for their mirror image too
            let count = if j == 0 || 2 * j == length { 1.0 } else { 2.0 };
            let g = spectrum[j].conj() * (count / length as f64);
            let Some((z, factor)) = node(j, length) else {
                for (i, (b, c)) in model.channel.b.iter().zip(&model.c[k]).enumerate() {
                    by_product[i].bc += g.re * step;
                    self.step += g.re * (b * c).re;
                }
                continue;
            };
            let s = model.sums(z, k);
            let (g, inverse) = (g * factor, (1.0 + s.pq).inv());
            let by_sum = Sums {
                bc: g,
                bq: -g * s.pc * inverse,
                pc: -g * s.bq * inverse,
                pq: g * s.bq * s.pc * inverse * inverse,
            };
            for i in 0..n {
                let ([here, mirrored], b, p, c) =
                    (model.poles(z, i), model.channel.b[i], model.p[i], model.c[k][i]);
                let add = |to: &mut Complex64, g: Complex64| *to += g * here + (g * mirrored).conj();
                add(&mut by_product[i].bc, by_sum.bc);
                add(&mut by_product[i].bq, by_sum.bq);
                add(&mut by_product[i].pc, by_sum.pc);
                add(&mut by_product[i].pq, by_sum.pq);
                // poles are step / (z - step lambda): their derivatives by lambda are their squares, by the step
                // their squares times z / step^2
                let squares = [here * here, mirrored * mirrored];
                let terms = [
                    (by_sum.bc, b * c),
                    (by_sum.bq, b * p.conj()),
                    (by_sum.pc, p * c),
                    (by_sum.pq, p * p.conj()),
                ];
                for (g, v) in terms {
                    let ahead = [g * v * squares[0], g * v.conj() * squares[1]];
                    self.lambda[i] += ahead[0] + ahead[1].conj();
                    self.step += ((ahead[0] + ahead[1]) * z).re / (step * step);
                }
            }
        }
        for (i, by) in by_product.iter().enumerate() {
            let (b, p, c) = (model.channel.b[i], model.p[i], model.c[k][i]);
            self.c[k * n + i] += by.bc * b + by.pc * p;
            self.b[i] += by.bc * c + by.bq * p.conj();
            // P enters as itself and as its conjugate
            self.p[i] += by.pc * c + (by.bq * b).conj() + 2.0 * by.pq.re * p.conj();
        }
    }

    fn finish(self, model: &Model) -> (ChannelGradient, (Vec<Complex64>, Vec<Complex64>)) {
        // a_real is the logarithm of minus the real part
        let by_parameter = |(d, lambda): (&Complex64, &Complex64)| Complex64::new(d.re * lambda.re, d.im);
        let a = self.lambda.iter().zip(&model.channel.lambda).map(by_parameter).collect();
        let step = self.step * model.channel.step_slope;
        (ChannelGradient { a, b: self.b, step }, (self.c, self.p))
    }
}
