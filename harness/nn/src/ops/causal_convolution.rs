//! Long convolution of every channel with a kernel of its own (Gu et al. 2022, S4): `y = k * u + D u` for
//! u `[batch, h, l]`, k `[1 or 2, h, taps]`, D `[h]`, by FFT; O(l log l).
//!
//! Kept for backward: the spectra of u and of the kernel, which costs as much memory as u twice over and saves
//! one of three transforms. Nothing for D, which is part of the kernel's first tap.
//!
//! Two sequences of a batch share a complex transform, one as its real, the other as its imaginary part: a real
//! kernel keeps them apart, so nothing has to be taken asunder. In the gradient of the kernel,
//! `sum of dY conj(U)`, the mixed terms fall into the imaginary part, which is dropped.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use rustfft::num_complex::Complex;

use super::for_device;
use super::fourier::{Plan, Transform, plan, transform_length};
use crate::real::Real;
use crate::simd::vectorised;
use crate::storage::{SharedMut, buffer, slices, tensor};
use crate::tape::{Grad, Value};

/// Pairs of sequences a task works on. It fixes the order in which the kernel's gradient is summed.
const PAIRS: usize = 8;

impl Value {
    /// Convolves each channel of `self` `[batch, h, l]` with `kernel[0]` `[h, taps]`, so that
    /// `y[t] = sum over s of kernel[0][s] u[t - s]`, and adds `skip[h] * u`. A second kernel looks ahead and,
    /// as in S4, starts one step later: it adds the sum over s of `kernel[1][s] u[t + 1 + s]`.
    ///
    /// # Errors
    /// Shapes that do not fit each other, or no elements; on a GPU more than 65,536 steps and taps together.
    pub fn causal_convolution(&self, kernel: &Value, skip: &Tensor) -> Result<Value> {
        for_device!(self.tensor(), causal_convolution(self, kernel, skip))
    }
}

/// The sizes of one call.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub(super) batch: usize,
    pub(super) h: usize,
    pub(super) l: usize,
    pub(super) taps: usize,
    pub(super) both_sides: bool,
    /// Length of the transforms.
    n: usize,
}

impl Size {
    pub(super) fn of(u: &Tensor, kernel: &Tensor, skip: &Tensor) -> Result<Self> {
        let (u, kernel) = (u.dims(), kernel.dims());
        let (&[batch, h, l], &[sides, channels, taps]) = (u, kernel) else {
            bail!("causal_convolution: input {u:?} and kernel {kernel:?}; both have three dimensions");
        };
        if channels != h || skip.elem_count() != h || !(1..=2).contains(&sides) || batch * h * l * taps == 0 {
            bail!(
                "causal_convolution: input [{batch}, {h}, {l}], kernel {kernel:?}, skip {:?}; the kernel is \
                 [1, {h}, taps] or [2, {h}, taps], the skip [{h}]",
                skip.dims()
            );
        }
        let mut size = Self { batch, h, l, taps, both_sides: sides == 2, n: 0 };
        // lags of either sign wrap around into what is zero
        size.n = transform_length((l + size.behind() - 1).max(l + size.ahead()));
        Ok(size)
    }

    /// Taps of the first kernel that reach into the sequence.
    fn behind(self) -> usize {
        self.taps.min(self.l)
    }

    /// Taps of the second kernel that reach into the sequence.
    fn ahead(self) -> usize {
        if self.both_sides { self.taps.min(self.l - 1) } else { 0 }
    }

    pub(super) fn pairs(self) -> usize {
        self.batch.div_ceil(2)
    }

    fn groups(self) -> usize {
        self.pairs().div_ceil(PAIRS)
    }

    /// The pairs of group `g`.
    fn group(self, g: usize) -> std::ops::Range<usize> {
        g * PAIRS..self.pairs().min((g + 1) * PAIRS)
    }
}

/// What a task needs to transform.
struct Room<T> {
    plan: Plan<T>,
    a: Vec<Complex<T>>,
    b: Vec<Complex<T>>,
    scratch: Vec<Complex<T>>,
}

impl<T: Transform> Room<T> {
    fn new(n: usize) -> Self {
        let plan = plan::<T>(n);
        let lengths = [
            plan.forward.get_outofplace_scratch_len(),
            plan.inverse.get_outofplace_scratch_len(),
            plan.inverse.get_inplace_scratch_len(),
        ];
        let zeros = |n: usize| vec![Complex { re: T::zero(), im: T::zero() }; n];
        let scratch = zeros(lengths.into_iter().max().unwrap_or(0));
        Self { plan, a: zeros(n), b: zeros(n), scratch }
    }

    /// The spectrum of sequences `2 * pair` and `2 * pair + 1` of channel `h`.
    fn spectrum(&mut self, spectrum: &mut [Complex<T>], x: &[T], h: usize, pair: usize, size: Size) {
        let row = |b: usize| &x[(b * size.h + h) * size.l..][..size.l];
        let (filled, rest) = self.a.split_at_mut(size.l);
        let re = row(2 * pair);
        if 2 * pair + 1 < size.batch {
            let im = row(2 * pair + 1);
            filled.iter_mut().zip(re.iter().zip(im)).for_each(|(z, (&re, &im))| *z = Complex { re, im });
        } else {
            filled.iter_mut().zip(re).for_each(|(z, &re)| *z = Complex { re, im: T::zero() });
        }
        rest.fill(Complex { re: T::zero(), im: T::zero() });
        self.plan.forward.process_outofplace_with_scratch(&mut self.a, spectrum, &mut self.scratch);
    }
}

/// Memory for complex numbers that are written before they are read.
fn complex<T: Real>(data: &mut [T]) -> &mut [Complex<T>] {
    // SAFETY: `Complex` is two numbers side by side, of their alignment; the length is halved.
    unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast(), data.len() / 2) }
}

fn complex_ref<T: Real>(data: &[T]) -> &[Complex<T>] {
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), data.len() / 2) }
}

/// `z * k`, or `z * conj(k)`.
#[inline(always)]
fn product<T: Real>(z: Complex<T>, k: Complex<T>, conjugate: bool) -> Complex<T> {
    let im = if conjugate { T::zero() - k.im } else { k.im };
    Complex { re: z.re.mul_add(k.re, T::zero() - z.im * im), im: z.re.mul_add(im, z.im * k.re) }
}

fn causal_convolution<T: Transform>(u: &Value, kernel: &Value, skip: &Tensor) -> Result<Value> {
    let size = Size::of(u.tensor(), kernel.tensor(), skip)?;
    let tape = Value::recording(&[u, kernel], &[skip]);
    let mut spectra = buffer::<T>(if tape.is_some() { 2 * size.h * size.pairs() * size.n } else { 0 });
    let (y, kernels) = slices::<T, _, 3>([u.tensor(), kernel.tensor(), skip], |[u, k, d]| {
        let kernels = kernel_spectra(k, d, size);
        (forward(u, &kernels, complex(&mut spectra), size), kernels)
    })?;
    let y = tensor(y, u.tensor().shape())?;
    let Some(tape) = tape else { return Ok(u.unrecorded(y)) };
    let (u_slot, k_slot, skip) = (u.slot(), kernel.slot(), skip.clone());
    let (u_shape, k_shape) = (u.tensor().shape().clone(), kernel.tensor().shape().clone());
    Ok(tape.record(y, move |dy, flow| {
        let wanted = (u_slot.is_some(), k_slot.is_some() || skip.is_variable());
        let (du, dk) = slices::<T, _, 1>([dy.tensor()], |[dy]| {
            backward(dy, &kernels, complex_ref(&spectra), wanted, size)
        })?;
        if wanted.1 {
            flow.add_to_parameter::<T>(&skip, |dd, fresh| {
                for (dd, dk) in dd.iter_mut().zip(dk.chunks_exact(size.taps)) {
                    *dd = if fresh { dk[0] } else { *dd + dk[0] };
                }
            })?;
            flow.send_to_slot::<T>(k_slot, Grad::new(tensor(dk, k_shape)?))?;
        }
        if wanted.0 { flow.send_to_slot::<T>(u_slot, Grad::new(tensor(du, u_shape)?)) } else { Ok(()) }
    }))
}

/// Spectra `[h, n]` of the kernels with the skip, divided by n.
fn kernel_spectra<T: Transform>(k: &[T], d: &[T], size: Size) -> Vec<T> {
    let mut spectra = buffer::<T>(2 * size.h * size.n);
    let scale = T::one() / T::of(size.n);
    complex(&mut spectra).par_chunks_mut(size.n).enumerate().for_each_init(
        || Room::<T>::new(size.n),
        |room, (h, spectrum)| {
            room.a.fill(Complex { re: T::zero(), im: T::zero() });
            let behind = &k[h * size.taps..][..size.behind()];
            room.a.iter_mut().zip(behind).for_each(|(z, k)| z.re = *k * scale);
            room.a[0].re += d[h] * scale;
            if size.both_sides {
                let ahead = &k[(size.h + h) * size.taps..][..size.ahead()];
                room.a.iter_mut().rev().zip(ahead).for_each(|(z, k)| z.re += *k * scale);
            }
            room.plan.forward.process_outofplace_with_scratch(&mut room.a, spectrum, &mut room.scratch);
        },
    );
    spectra
}

/// The result; the spectra `[h, pairs, n]` of u go into `spectra` unless it is empty.
fn forward<T: Transform>(u: &[T], kernels: &[T], spectra: &mut [Complex<T>], size: Size) -> Vec<T> {
    let Size { l, n, .. } = size;
    let mut y = buffer::<T>(u.len());
    let (keep, spectra, out) = (!spectra.is_empty(), SharedMut::new(spectra), SharedMut::new(&mut y));
    (0..size.h * size.groups()).into_par_iter().for_each_init(
        || Room::<T>::new(n),
        |room, task| {
            let h = task / size.groups();
            let kernel = &complex_ref(kernels)[h * n..][..n];
            let mut spare = std::mem::take(&mut room.b);
            for pair in size.group(task % size.groups()) {
                let spectrum = if keep {
                    // SAFETY: tasks own the pairs of their channel and group.
                    unsafe {
                        std::slice::from_raw_parts_mut(spectra.ptr().add((h * size.pairs() + pair) * n), n)
                    }
                } else {
                    &mut spare[..]
                };
                room.spectrum(spectrum, u, h, pair, size);
                vectorised(
                    #[inline(always)]
                    || {
                        for ((z, u), k) in room.a.iter_mut().zip(&*spectrum).zip(kernel) {
                            *z = product(*u, *k, false);
                        }
                    },
                );
                room.plan.inverse.process_with_scratch(&mut room.a, &mut room.scratch);
                // SAFETY: tasks own the rows of their channel and group.
                unsafe { unpack(&room.a, out, h, pair, size) };
            }
            room.b = spare;
        },
    );
    debug_assert_eq!(y.len(), size.batch * size.h * l);
    y
}

/// Writes real and imaginary parts into the rows of a pair.
///
/// # Safety
/// Nobody else touches these rows of `out`.
unsafe fn unpack<T: Real>(z: &[Complex<T>], out: SharedMut<T>, h: usize, pair: usize, size: Size) {
    // SAFETY: `out` is `[batch, h, l]`, and the caller owns its row.
    let row = |b: usize| unsafe {
        std::slice::from_raw_parts_mut(out.ptr().add((b * size.h + h) * size.l), size.l)
    };
    let re = row(2 * pair);
    if 2 * pair + 1 < size.batch {
        let im = row(2 * pair + 1);
        re.iter_mut().zip(im).zip(z).for_each(|((re, im), z)| (*re, *im) = (z.re, z.im));
    } else {
        re.iter_mut().zip(z).for_each(|(re, z)| *re = z.re);
    }
}

/// du and dk, each only if wanted.
fn backward<T: Transform>(
    dy: &[T],
    kernels: &[T],
    spectra: &[Complex<T>],
    (want_u, want_k): (bool, bool),
    size: Size,
) -> (Vec<T>, Vec<T>) {
    let n = size.n;
    let mut du = buffer::<T>(if want_u { dy.len() } else { 0 });
    let out = SharedMut::new(&mut du);
    // the kernel's gradient, still transformed, by channel and group
    let mut sums = vec![T::zero(); if want_k { 2 * size.h * size.groups() * n } else { 0 }];
    let shared_sums = SharedMut::new(complex(&mut sums));
    (0..size.h * size.groups()).into_par_iter().for_each_init(
        || Room::<T>::new(n),
        |room, task| {
            let h = task / size.groups();
            let kernel = &complex_ref(kernels)[h * n..][..n];
            let mut spectrum = std::mem::take(&mut room.b);
            for pair in size.group(task % size.groups()) {
                room.spectrum(&mut spectrum, dy, h, pair, size);
                if want_k {
                    // SAFETY: each task has a sum of its own.
                    let sum = unsafe { std::slice::from_raw_parts_mut(shared_sums.ptr().add(task * n), n) };
                    let u = &spectra[(h * size.pairs() + pair) * n..][..n];
                    vectorised(
                        #[inline(always)]
                        || {
                            for ((sum, dy), u) in sum.iter_mut().zip(&spectrum).zip(u) {
                                let p = product(*dy, *u, true);
                                sum.re += p.re;
                                sum.im += p.im;
                            }
                        },
                    );
                }
                if want_u {
                    vectorised(
                        #[inline(always)]
                        || spectrum.iter_mut().zip(kernel).for_each(|(z, k)| *z = product(*z, *k, true)),
                    );
                    room.plan.inverse.process_with_scratch(&mut spectrum, &mut room.scratch);
                    // SAFETY: tasks own the rows of their channel and group.
                    unsafe { unpack(&spectrum, out, h, pair, size) };
                }
            }
            room.b = spectrum;
        },
    );
    let dk = if want_k { kernel_gradient(&mut sums, size) } else { Vec::new() };
    (du, dk)
}

/// The kernel's gradient from its spectra by channel and group.
fn kernel_gradient<T: Transform>(sums: &mut [T], size: Size) -> Vec<T> {
    let (n, taps) = (size.n, size.taps);
    let scale = T::one() / T::of(n);
    let sides = if size.both_sides { 2 } else { 1 };
    let mut dk = vec![T::zero(); sides * size.h * taps];
    let out = SharedMut::new(&mut dk);
    complex(sums).par_chunks_mut(size.groups() * n).enumerate().for_each_init(
        || Room::<T>::new(n),
        |room, (h, sums)| {
            let (sum, others) = sums.split_at_mut(n);
            for other in others.chunks_exact(n) {
                sum.iter_mut().zip(other).for_each(|(a, b)| (a.re, a.im) = (a.re + b.re, a.im + b.im));
            }
            room.plan.inverse.process_with_scratch(sum, &mut room.scratch);
            // SAFETY: tasks own the rows of their channel.
            let row = |side: usize| unsafe {
                std::slice::from_raw_parts_mut(out.ptr().add((side * size.h + h) * taps), taps)
            };
            row(0)[..size.behind()].iter_mut().zip(&*sum).for_each(|(d, z)| *d = z.re * scale);
            if size.both_sides {
                row(1)[..size.ahead()].iter_mut().zip(sum.iter().rev()).for_each(|(d, z)| *d = z.re * scale);
            }
        },
    );
    dk
}
