//! The convolution kernel of a diagonal state-space model (S4D, Gu et al. 2022):
//! `K[c, h, l] = 2 Re sum over n of B C q z^l` with `z`, `q` of the discretised modes.
//!
//! Kept for backward: nothing but the parameters; the powers of z cost less to compute than to read.
//!
//! With `l = r + R q` the sum over modes is a product of two small matrices of powers, `z^r` and `z^(R q)`. Powers
//! are made in double precision and rounded once, so no error grows with l; only the product runs in `T`.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use rustfft::num_complex::Complex64;

use super::discretisation::{Discretisation, Mode};
use super::for_device;
use super::gemm::{Matrix, gemm_on_this_thread};
use crate::real::Real;
use crate::storage::{SharedMut, buffer, slices, tensor};
use crate::tape::{Flow, Value, assign_or_add, assign_or_add_rounded};

/// How the step of a channel is kept positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepTransform {
    /// step = exp(parameter).
    Exp,
    /// step = ln(1 + exp(parameter)).
    Softplus,
}

impl StepTransform {
    /// The step and its derivative.
    fn apply(self, parameter: f64) -> (f64, f64) {
        match self {
            Self::Exp => (parameter.exp(), parameter.exp()),
            Self::Softplus => {
                (parameter.max(0.0) + (-parameter.abs()).exp().ln_1p(), 1.0 / (1.0 + (-parameter).exp()))
            }
        }
    }
}

/// The parameters of a diagonal state-space model with one input and one output a channel. `h` channels share
/// `copies` sets of `n` modes: channel i uses set i mod copies. A mode stands for itself and its conjugate.
#[derive(Clone)]
pub struct DiagonalKernel {
    /// What `transform` makes the steps of, `[h]` or `[h, 1]`.
    pub step: Tensor,
    /// `[copies, n]`; the real part of A is `-exp(a_real)`.
    pub a_real: Tensor,
    /// `[copies, n]`, the imaginary part of A, or its negative if `conjugate`.
    pub a_imag: Tensor,
    /// `[.., copies, n, 2]`, real and imaginary parts; 1 if absent.
    pub b: Option<Tensor>,
    /// `[h, n, 2]`, or `[c, h, n, 2]` for c kernels.
    pub c: Tensor,
    /// How steps are kept positive.
    pub transform: StepTransform,
    /// Whether `a_imag` is stored with the opposite sign, as S4's code does.
    pub conjugate: bool,
    /// How the model becomes discrete.
    pub discretisation: Discretisation,
    /// Factor on all steps: the sampling interval in units of that of training.
    pub rate: f64,
}

impl DiagonalKernel {
    /// The first `length` taps `[c, h, length]` of the kernel, recorded on the tape of `beside`.
    ///
    /// # Errors
    /// Parameters whose shapes do not fit each other, or length 0.
    pub fn taps(&self, length: usize, beside: &Value) -> Result<Value> {
        for_device!(self.c, diagonal_taps(self, length, beside))
    }

    /// The same kernel with other tensors.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn map(&self, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self {
            step: f(&self.step)?,
            a_real: f(&self.a_real)?,
            a_imag: f(&self.a_imag)?,
            b: self.b.as_ref().map(&f).transpose()?,
            c: f(&self.c)?,
            ..*self
        })
    }

    pub(super) fn size(&self, length: usize) -> Result<Size> {
        let c = self.c.dims();
        let (kernels, h, n) = match *c {
            [h, n, 2] => (1, h, n),
            [kernels, h, n, 2] => (kernels, h, n),
            _ => bail!("diagonal kernel: C is {c:?}, expected [h, n, 2] or [c, h, n, 2]"),
        };
        let (copies, _) = self.a_real.dims2()?;
        let fits = self.a_real.dims() == [copies, n]
            && self.a_imag.dims() == [copies, n]
            && copies > 0
            && h.is_multiple_of(copies)
            && self.step.elem_count() == h
            && self.b.as_ref().is_none_or(|b| b.elem_count() == 2 * copies * n);
        if !fits || length == 0 || kernels * h * n == 0 {
            bail!(
                "diagonal kernel of length {length}: C {c:?}, A {:?} and {:?}, B {:?}, step {:?}; A is [copies, n] and \
                 h a multiple of copies",
                self.a_real.dims(),
                self.a_imag.dims(),
                self.b.as_ref().map(Tensor::dims),
                self.step.dims()
            );
        }
        let columns = (length as f64).sqrt().ceil() as usize;
        let columns = columns.next_power_of_two().max(64).min(length);
        Ok(Size { kernels, h, n, copies, length, rows: length.div_ceil(columns), columns })
    }

    /// Sends on what channels add to the gradients of A, B and the steps.
    pub(super) fn send<T: Real>(
        &self,
        gradients: &[ChannelGradient],
        size: Size,
        flow: &mut Flow,
    ) -> Result<()> {
        let da = size.shared(gradients.iter().map(|g| &g.a[..]));
        let sign = if self.conjugate { 1.0 } else { -1.0 };
        flow.add_to_parameter::<T>(&self.a_real, |t, fresh| {
            assign_or_add_rounded(t, da.iter().map(|g| g.re), fresh);
        })?;
        flow.add_to_parameter::<T>(&self.a_imag, |t, fresh| {
            assign_or_add_rounded(t, da.iter().map(|g| sign * g.im), fresh);
        })?;
        if let Some(b) = &self.b {
            let db = size.shared(gradients.iter().map(|g| &g.b[..]));
            flow.add_to_parameter::<T>(b, |t, fresh| assign_or_add_rounded(t, parts(&db), fresh))?;
        }
        flow.add_to_parameter::<T>(&self.step, |t, fresh| {
            assign_or_add_rounded(t, gradients.iter().map(|g| g.step), fresh);
        })
    }

    pub(super) fn tensors(&self) -> [&Tensor; 5] {
        // without B, C is read in its place and not used
        [&self.step, &self.a_real, &self.a_imag, &self.c, self.b.as_ref().unwrap_or(&self.c)]
    }
}

/// The sizes of one call; a kernel is `rows` rows of `columns` taps, of which the last may be incomplete.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub(super) kernels: usize,
    pub(super) h: usize,
    pub(super) n: usize,
    pub(super) copies: usize,
    pub(super) length: usize,
    rows: usize,
    columns: usize,
}

impl Size {
    /// Sums over the channels that share a set of modes, in the order of channels.
    pub(super) fn shared<'a>(self, channels: impl Iterator<Item = &'a [Complex64]>) -> Vec<Complex64> {
        let mut sums = vec![Complex64::ZERO; self.copies * self.n];
        for (h, gradient) in channels.enumerate() {
            let sums = &mut sums[h % self.copies * self.n..][..self.n];
            sums.iter_mut().zip(gradient).for_each(|(s, g)| *s += g);
        }
        sums
    }
}

/// Gradients by real and imaginary parts from analytic derivatives.
pub(super) fn parts(derivatives: &[Complex64]) -> impl Iterator<Item = f64> {
    derivatives.iter().flat_map(|g| [g.re, -g.im])
}

/// A channel's parameters in double precision.
pub(super) struct Channel {
    modes: Vec<Mode>,
    pub(super) lambda: Vec<Complex64>,
    pub(super) b: Vec<Complex64>,
    /// Of the channel, the rate included.
    pub(super) step: f64,
    /// Its derivative by the parameter.
    pub(super) step_slope: f64,
}

impl Channel {
    pub(super) fn new<T: Real>(kernel: &DiagonalKernel, parameters: [&[T]; 5], h: usize, size: Size) -> Self {
        let [step, a_real, a_imag, _, b] = parameters;
        let first = h % size.copies * size.n;
        let sign = if kernel.conjugate { -1.0 } else { 1.0 };
        let (step, step_slope) = kernel.transform.apply(step[h].to_f64());
        let lambda: Vec<Complex64> = (first..first + size.n)
            .map(|i| Complex64::new(-a_real[i].to_f64().exp(), sign * a_imag[i].to_f64()))
            .collect();
        let modes = lambda.iter().map(|l| kernel.discretisation.mode(*l, kernel.rate * step)).collect();
        let b = (first..first + size.n)
            .map(|i| if kernel.b.is_some() { pair(b, i) } else { Complex64::ONE })
            .collect();
        Self { modes, lambda, b, step: kernel.rate * step, step_slope: kernel.rate * step_slope }
    }
}

pub(super) fn pair<T: Real>(data: &[T], i: usize) -> Complex64 {
    Complex64::new(data[2 * i].to_f64(), data[2 * i + 1].to_f64())
}

/// Writes `z^r` for r < `columns` as two rows: real and imaginary parts. Returns `z^columns`.
fn powers<T: Real>(z: Complex64, re: &mut [T], im: &mut [T]) -> Complex64 {
    let mut power = Complex64::ONE;
    for (re, im) in re.iter_mut().zip(im) {
        (*re, *im) = (T::from_f64(power.re), T::from_f64(power.im));
        power *= z;
    }
    power
}

fn diagonal_taps<T: Real>(kernel: &DiagonalKernel, length: usize, beside: &Value) -> Result<Value> {
    let size = kernel.size(length)?;
    let y = slices::<T, _, 5>(kernel.tensors(), |parameters| forward(kernel, parameters, size))?;
    let y = tensor(y, (size.kernels, size.h, length))?;
    let weights: Vec<&Tensor> = kernel.tensors().into_iter().collect();
    let Some(tape) = Value::recording(&[beside], &weights) else { return Ok(beside.unrecorded(y)) };
    let kernel = kernel.clone();
    Ok(tape.record(y, move |dy, flow| {
        let [step, a_real, a_imag, c, b] = kernel.tensors();
        let (gradients, dc) = slices::<T, _, 6>(
            [step, a_real, a_imag, c, b, dy.tensor()],
            |[step, a_real, a_imag, c, b, dy]| backward(&kernel, [step, a_real, a_imag, c, b], dy, size),
        )?;
        flow.add_to_parameter::<T>(c, |total, fresh| assign_or_add(total, &dc, fresh))?;
        kernel.send::<T>(&gradients, size, flow)
    }))
}

fn forward<T: Real>(kernel: &DiagonalKernel, parameters: [&[T]; 5], size: Size) -> Vec<T> {
    let Size { kernels, h, n, length, rows, columns, .. } = size;
    let mut y = buffer::<T>(kernels * h * length);
    let out = SharedMut::new(&mut y);
    let room = || {
        let (left, right) = (buffer::<T>(kernels * rows * 2 * n), buffer::<T>(2 * n * columns));
        (left, right, buffer::<T>(kernels * rows * columns))
    };
    (0..h).into_par_iter().for_each_init(room, |(left, right, product), channel| {
        let c = Channel::new(kernel, parameters, channel, size);
        for i in 0..n {
            let (re, im) = right.split_at_mut(n * columns);
            let row = i * columns..(i + 1) * columns;
            let jump = powers(c.modes[i].z, &mut re[row.clone()], &mut im[row]);
            for k in 0..kernels {
                // 2 Re(w z^r) = 2 Re w Re z^r - 2 Im w Im z^r
                let mut w = 2.0 * c.b[i] * pair(parameters[3], (k * h + channel) * n + i) * c.modes[i].q;
                for row in left[k * rows * 2 * n..].chunks_exact_mut(2 * n).take(rows) {
                    (row[i], row[n + i]) = (T::from_f64(w.re), T::from_f64(-w.im));
                    w *= jump;
                }
            }
        }
        // SAFETY: the three matrices are these buffers.
        unsafe {
            gemm_on_this_thread(
                (kernels * rows, columns, 2 * n),
                Matrix::rows(product.as_mut_ptr(), columns),
                Matrix::rows(left.as_ptr(), 2 * n),
                Matrix::rows(right.as_ptr(), columns),
            );
        }
        for (k, product) in product.chunks_exact(rows * columns).enumerate() {
            // SAFETY: tasks own the rows of their channel.
            let row =
                unsafe { std::slice::from_raw_parts_mut(out.ptr().add((k * h + channel) * length), length) };
            row.copy_from_slice(&product[..length]);
        }
    });
    y
}

/// What a channel adds to the gradients of the set of modes it uses, and to its own step.
pub(super) struct ChannelGradient {
    /// By `a_real`, and the imaginary part of the analytic derivative by A.
    pub(super) a: Vec<Complex64>,
    /// Analytic.
    pub(super) b: Vec<Complex64>,
    pub(super) step: f64,
}

/// With `S0 = sum of dy z^l` and `S1 = sum of dy l z^(l - 1)` the loss changes by `2 Re(S0 dw + w S1 dz)`, where
/// `w = B C q`. Both sums come from one product with the powers `z^r` and `r z^(r - 1)`; rows are added in double
/// precision.
fn backward<T: Real>(
    kernel: &DiagonalKernel,
    parameters: [&[T]; 5],
    dy: &[T],
    size: Size,
) -> (Vec<ChannelGradient>, Vec<T>) {
    let Size { kernels, h, n, length, rows, columns, .. } = size;
    let mut dc = buffer::<T>(2 * kernels * h * n);
    let out = SharedMut::new(&mut dc);
    let room = || {
        let (left, right) = (vec![T::zero(); kernels * rows * columns], buffer::<T>(4 * n * columns));
        (left, right, buffer::<T>(kernels * rows * 4 * n))
    };
    let channel = |(left, right, product): &mut (Vec<T>, Vec<T>, Vec<T>), channel: usize| {
        let c = Channel::new(kernel, parameters, channel, size);
        for (k, row) in left.chunks_exact_mut(rows * columns).enumerate() {
            row[..length].copy_from_slice(&dy[(k * h + channel) * length..][..length]);
        }
        let mut ends = Vec::with_capacity(n);
        for i in 0..n {
            let (values, slopes) = right.split_at_mut(2 * n * columns);
            let (re, im) = values.split_at_mut(n * columns);
            let row = i * columns..(i + 1) * columns;
            powers(c.modes[i].z, &mut re[row.clone()], &mut im[row.clone()]);
            let (re, im) = slopes.split_at_mut(n * columns);
            let mut power = Complex64::ONE;
            (re[row.start], im[row.start]) = (T::zero(), T::zero());
            for r in 1..columns {
                let slope = power * r as f64;
                (re[row.start + r], im[row.start + r]) = (T::from_f64(slope.re), T::from_f64(slope.im));
                power *= c.modes[i].z;
            }
            ends.push(power);
        }
        // SAFETY: the three matrices are these buffers.
        unsafe {
            gemm_on_this_thread(
                (kernels * rows, 4 * n, columns),
                Matrix::rows(product.as_mut_ptr(), 4 * n),
                Matrix::rows(left.as_ptr(), columns),
                Matrix::rows(right.as_ptr(), columns).t(),
            );
        }
        let mut gradient = ChannelGradient { a: Vec::with_capacity(n), b: Vec::with_capacity(n), step: 0.0 };
        for i in 0..n {
            let (mode, lambda) = (&c.modes[i], c.lambda[i]);
            // ends[i] is z^(columns - 1)
            let jump = ends[i] * mode.z;
            let (mut db, mut dq, mut dz) = (Complex64::ZERO, Complex64::ZERO, Complex64::ZERO);
            for (k, product) in product.chunks_exact(rows * 4 * n).enumerate() {
                let (mut s0, mut s1, mut later) = (Complex64::ZERO, Complex64::ZERO, Complex64::ZERO);
                // power = z^(columns q), before = q z^(columns (q - 1))
                let (mut power, mut before) = (Complex64::ONE, Complex64::ZERO);
                for (q, row) in product.chunks_exact(4 * n).enumerate() {
                    let at = |j: usize| row[j * n + i].to_f64();
                    let (sum, slope) = (Complex64::new(at(0), at(1)), Complex64::new(at(2), at(3)));
                    s0 += power * sum;
                    s1 += power * slope;
                    later += before * sum;
                    before = power * (q + 1) as f64;
                    power *= jump;
                }
                s1 += later * ends[i] * columns as f64;
                let index = (k * h + channel) * n + i;
                let weight = pair(parameters[3], index);
                let (dw, w) = (2.0 * s0, c.b[i] * weight * mode.q);
                let by_c = dw * c.b[i] * mode.q;
                // SAFETY: tasks own the elements of their channel.
                unsafe {
                    *out.ptr().add(2 * index) = T::from_f64(by_c.re);
                    *out.ptr().add(2 * index + 1) = T::from_f64(-by_c.im);
                }
                db += dw * weight * mode.q;
                dq += dw * c.b[i] * weight;
                dz += 2.0 * w * s1;
            }
            let da = dz * mode.z_by_lambda + dq * mode.q_by_lambda;
            gradient.a.push(Complex64::new(da.re * lambda.re, da.im));
            gradient.b.push(db);
            gradient.step += (dz * mode.z_by_step + dq * mode.q_by_step).re * c.step_slope;
        }
        gradient
    };
    let gradients = (0..h).into_par_iter().map_init(room, channel).collect();
    (gradients, dc)
}
