//! A diagonal state-space model with many inputs and outputs (S5, Smith et al. 2023): `x_t = z x_(t-1) + q B u_t`,
//! `y_t = 2 Re(C x_t) + D u_t` for u `[batch, l, h]`, by matrix products and a scan over time; O(l).
//!
//! Kept for backward: u and the states x, `[batch, l, 2 modes]` (twice that in both directions). B u_t is
//! computed again where steps differ, and not needed otherwise.
//!
//! The scan itself costs little next to the products, so it runs in double precision: a rounded z would be off by
//! t roundings after t steps.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use rustfft::num_complex::Complex64;

use super::discretisation::{Discretisation, Mode};
use super::for_device;
use super::gemm::{Matrix, gemm_on_all_threads, matmul_nn, matmul_nt, matmul_tn};
use super::linear::sum_products;
use crate::real::Real;
use crate::simd::vectorised;
use crate::storage::{SharedMut, buffer, slices, tensor};
use crate::tape::{Grad, Value, assign_or_add_rounded};

/// Modes that are worked on together.
const LANES: usize = 8;

/// The parameters of a diagonal model with `p` modes, `h` inputs and as many outputs.
#[derive(Clone)]
pub struct DiagonalScan {
    /// Real part of Lambda, `[p]`.
    pub lambda_re: Tensor,
    /// Imaginary part of Lambda, `[p]`.
    pub lambda_im: Tensor,
    /// Logarithm of every mode's step, `[p]` or `[p, 1]`.
    pub log_step: Tensor,
    /// `[p, h, 2]`, real and imaginary parts.
    pub b: Tensor,
    /// `[h, modes, 2]` each; side by side they have p modes, or 2 p in both directions, forward ones first.
    pub c: Vec<Tensor>,
    /// D `[h]`.
    pub skip: Tensor,
    /// How the model becomes discrete.
    pub discretisation: Discretisation,
    /// Whether a second scan runs from the end, over the same inputs.
    pub bidirectional: bool,
    /// Whether a mode stands for itself and its conjugate, which doubles the real part of its output.
    pub conjugate_pairs: bool,
    /// Whether real parts of Lambda are clipped to at most -1e-4, where they get no gradient.
    pub clip: bool,
    /// Factor on all steps: the sampling interval in units of that of training.
    pub rate: f64,
}

impl Value {
    /// The output of the model for inputs `self` `[batch, l, h]`. With `intervals` `[batch, l]` the step before
    /// input t of a sequence is its mode's step times the interval; they get no gradient.
    ///
    /// # Errors
    /// Shapes that do not fit each other; on a GPU a C that is neither whole nor one a direction.
    pub fn diagonal_scan(&self, model: &DiagonalScan, intervals: Option<&Tensor>) -> Result<Value> {
        for_device!(self.tensor(), diagonal_scan(self, model, intervals))
    }
}

/// The sizes of one call.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub(super) batch: usize,
    pub(super) l: usize,
    pub(super) h: usize,
    pub(super) p: usize,
    pub(super) directions: usize,
}

impl Size {
    pub(super) fn of(u: &Tensor, model: &DiagonalScan, intervals: Option<&Tensor>) -> Result<Self> {
        let (&[batch, l, h], &[p, _, 2]) = (u.dims(), model.b.dims()) else {
            bail!(
                "diagonal_scan: input {:?}, B {:?}; expected [batch, l, h], [p, h, 2]",
                u.dims(),
                model.b.dims()
            );
        };
        let directions = if model.bidirectional { 2 } else { 1 };
        let mut modes = 0;
        for c in &model.c {
            match *c.dims() {
                [outputs, more, 2] if outputs == h => modes += more,
                _ => bail!("diagonal_scan: C is {:?}, expected [{h}, modes, 2]", c.dims()),
            }
        }
        let fits = model.b.dims() == [p, h, 2]
            && model.lambda_re.dims() == [p]
            && model.lambda_im.dims() == [p]
            && model.log_step.elem_count() == p
            && model.skip.dims() == [h]
            && modes == directions * p
            && intervals.is_none_or(|i| i.dims() == [batch, l]);
        if !fits || batch * l * h * p == 0 {
            bail!(
                "diagonal_scan: input [{batch}, {l}, {h}], Lambda {:?} and {:?}, step {:?}, B {:?}, C of {modes} modes \
                 in {directions} directions, D {:?}, intervals {:?}",
                model.lambda_re.dims(),
                model.lambda_im.dims(),
                model.log_step.dims(),
                model.b.dims(),
                model.skip.dims(),
                intervals.map(Tensor::dims)
            );
        }
        Ok(Self { batch, l, h, p, directions })
    }

    pub(super) fn rows(self) -> usize {
        self.batch * self.l
    }

    /// Numbers in a row of states: real parts, then imaginary parts, of each direction.
    fn width(self) -> usize {
        2 * self.p * self.directions
    }

    fn blocks(self) -> usize {
        self.p.div_ceil(LANES)
    }
}

/// The model in double precision.
struct Modes {
    lambda: Vec<Complex64>,
    step: Vec<f64>,
    discretisation: Discretisation,
    /// For steps that are all alike.
    uniform: Option<Vec<Mode>>,
}

impl Modes {
    fn new<T: Real>(model: &DiagonalScan, uniform: bool) -> Result<Self> {
        let (lambda, step) =
            slices::<T, _, 3>([&model.lambda_re, &model.lambda_im, &model.log_step], |[re, im, step]| {
                let limit = if model.clip { -1e-4 } else { f64::INFINITY };
                let lambda =
                    re.iter().zip(im).map(|(re, im)| Complex64::new(re.to_f64().min(limit), im.to_f64()));
                let step = step.iter().map(|s| model.rate * s.to_f64().exp());
                (lambda.collect::<Vec<_>>(), step.collect::<Vec<_>>())
            })?;
        let discretisation = model.discretisation;
        let modes = || lambda.iter().zip(&step).map(|(l, s)| discretisation.mode(*l, *s)).collect();
        let uniform = uniform.then(modes);
        Ok(Self { lambda, step, discretisation, uniform })
    }

    /// Mode `i` for a step of the given interval.
    fn at(&self, i: usize, interval: f64) -> Mode {
        self.discretisation.mode(self.lambda[i], self.step[i] * interval)
    }

    /// Its z and q alone.
    fn factors(&self, i: usize, interval: f64) -> (Complex64, Complex64) {
        self.discretisation.of(self.lambda[i], self.step[i] * interval)
    }

    /// What multiplies B: q where steps are alike, else 1, and q is applied by the scan.
    fn input_factor(&self, i: usize) -> Complex64 {
        self.uniform.as_ref().map_or(Complex64::ONE, |modes| modes[i].q)
    }
}

/// z and q of a block of modes, real and imaginary parts.
#[derive(Clone, Copy)]
struct Factors {
    z: [[f64; LANES]; 2],
    /// Absent where it is part of B.
    q: Option<[[f64; LANES]; 2]>,
}

/// The factors at each step of a sequence, for one block of modes.
struct Steps<'a, T> {
    modes: &'a Modes,
    intervals: Option<&'a [T]>,
    first: usize,
    count: usize,
    uniform: Factors,
}

impl<'a, T: Real> Steps<'a, T> {
    fn new(modes: &'a Modes, intervals: Option<&'a [T]>, block: usize, size: Size) -> Self {
        let first = block * LANES;
        let count = LANES.min(size.p - first);
        let mut uniform = Factors { z: [[0.0; LANES]; 2], q: None };
        for (i, mode) in modes.uniform.iter().flat_map(|modes| &modes[first..first + count]).enumerate() {
            (uniform.z[0][i], uniform.z[1][i]) = (mode.z.re, mode.z.im);
        }
        Self { modes, intervals, first, count, uniform }
    }

    #[inline(always)]
    fn at(&self, t: usize) -> Factors {
        match self.intervals {
            None => self.uniform,
            Some(intervals) => self.of_interval(intervals[t].to_f64()),
        }
    }

    #[inline(never)]
    fn of_interval(&self, interval: f64) -> Factors {
        let (mut z, mut q) = ([[0.0; LANES]; 2], [[0.0; LANES]; 2]);
        for i in 0..self.count {
            let (zi, qi) = self.modes.factors(self.first + i, interval);
            (z[0][i], z[1][i], q[0][i], q[1][i]) = (zi.re, zi.im, qi.re, qi.im);
        }
        Factors { z, q: Some(q) }
    }
}

#[inline(always)]
fn load<T: Real>(row: &[T]) -> [f64; LANES] {
    let mut lanes = [0.0; LANES];
    if row.len() == LANES {
        for i in 0..LANES {
            lanes[i] = row[i].to_f64();
        }
    } else {
        lanes.iter_mut().zip(row).for_each(|(l, v)| *l = v.to_f64());
    }
    lanes
}

/// # Safety
/// The first `count` elements from `to` are nobody else's.
#[inline(always)]
unsafe fn store<T: Real>(to: *mut T, lanes: &[f64; LANES], count: usize) {
    // SAFETY: passed on to the caller.
    let row = unsafe { std::slice::from_raw_parts_mut(to, count) };
    if let Ok(row) = <&mut [T; LANES]>::try_from(&mut *row) {
        for i in 0..LANES {
            row[i] = T::from_f64(lanes[i]);
        }
    } else {
        row.iter_mut().zip(lanes).for_each(|(v, l)| *v = T::from_f64(*l));
    }
}

/// A strided part of rows that tasks share: `[rows, width]` from column `column` on.
#[derive(Clone, Copy)]
struct Columns<T> {
    data: SharedMut<T>,
    width: usize,
    column: usize,
    imaginary: usize,
    count: usize,
}

impl<T: Real> Columns<T> {
    fn new(data: SharedMut<T>, direction: usize, block: usize, size: Size) -> Self {
        let (first, column) = (block * LANES, 2 * size.p * direction + block * LANES);
        Self { data, width: size.width(), column, imaginary: size.p, count: LANES.min(size.p - first) }
    }

    /// # Safety
    /// Nobody writes these columns of the row meanwhile.
    #[inline(always)]
    unsafe fn read(&self, row: usize) -> [[f64; LANES]; 2] {
        // SAFETY: passed on to the caller; the row has `width` elements.
        unsafe {
            let at = self.data.ptr().add(row * self.width + self.column);
            [at, at.add(self.imaginary)].map(|at| load(std::slice::from_raw_parts(at, self.count)))
        }
    }

    /// # Safety
    /// Nobody else touches these columns of the row meanwhile.
    #[inline(always)]
    unsafe fn write(&self, row: usize, [re, im]: &[[f64; LANES]; 2]) {
        // SAFETY: passed on to the caller; the row has `width` elements.
        unsafe {
            let at = self.data.ptr().add(row * self.width + self.column);
            store(at, re, self.count);
            store(at.add(self.imaginary), im, self.count);
        }
    }
}

/// `a b + c` of complex lanes; `conj(a) b + c` if `CONJUGATE`.
#[inline(always)]
fn multiply_add<const CONJUGATE: bool>(
    a: &[[f64; LANES]; 2],
    b: &[[f64; LANES]; 2],
    c: &[[f64; LANES]; 2],
) -> [[f64; LANES]; 2] {
    let mut y = [[0.0; LANES]; 2];
    for i in 0..LANES {
        let im = if CONJUGATE { -a[1][i] } else { a[1][i] };
        y[0][i] = f64::mul_add(a[0][i], b[0][i], f64::mul_add(-im, b[1][i], c[0][i]));
        y[1][i] = f64::mul_add(a[0][i], b[1][i], f64::mul_add(im, b[0][i], c[1][i]));
    }
    y
}

/// B as `[2 p, h]`: real parts, then imaginary parts, times the modes' input factors.
fn input_matrix<T: Real>(b: &[T], modes: &Modes, size: Size) -> Vec<T> {
    let Size { h, p, .. } = size;
    let mut matrix = buffer::<T>(2 * p * h);
    let (re, im) = matrix.split_at_mut(p * h);
    for i in 0..p * h {
        let value = Complex64::new(b[2 * i].to_f64(), b[2 * i + 1].to_f64()) * modes.input_factor(i / h);
        (re[i], im[i]) = (T::from_f64(value.re), T::from_f64(value.im));
    }
    matrix
}

/// Calls `f(place in C, place of the real part in the matrix, of the imaginary part)` for every element of every
/// C, where the matrix is `[h, width]` like a row of states.
fn output_places(model: &DiagonalScan, size: Size, mut f: impl FnMut(usize, usize, usize, usize)) {
    let mut first = 0;
    for (which, c) in model.c.iter().enumerate() {
        let modes = c.elem_count() / (2 * size.h);
        for output in 0..size.h {
            for i in 0..modes {
                let (direction, mode) = ((first + i) / size.p, (first + i) % size.p);
                let re = output * size.width() + 2 * size.p * direction + mode;
                f(which, output * modes + i, re, re + size.p);
            }
        }
        first += modes;
    }
}

/// C as `[h, width]`, such that the output is its product with a row of states.
fn output_matrix<T: Real>(model: &DiagonalScan, size: Size) -> Result<Vec<T>> {
    let factor = T::of(if model.conjugate_pairs { 2 } else { 1 });
    let mut matrix = buffer::<T>(size.h * size.width());
    let parts =
        model.c.iter().map(|c| slices::<T, _, 1>([c], |[c]| c.to_vec())).collect::<Result<Vec<_>>>()?;
    output_places(model, size, |which, i, re, im| {
        matrix[re] = factor * parts[which][2 * i];
        matrix[im] = T::zero() - factor * parts[which][2 * i + 1];
    });
    Ok(matrix)
}

fn diagonal_scan<T: Real>(u: &Value, model: &DiagonalScan, intervals: Option<&Tensor>) -> Result<Value> {
    let size = Size::of(u.tensor(), model, intervals)?;
    let modes = Modes::new::<T>(model, intervals.is_none())?;
    let intervals = intervals.map(|i| slices::<T, _, 1>([i], |[i]| i.to_vec())).transpose()?;
    let c = output_matrix::<T>(model, size)?;
    let (y, x) = slices::<T, _, 3>([u.tensor(), &model.b, &model.skip], |[u, b, d]| {
        let b = input_matrix(b, &modes, size);
        let x = states(u, &b, &modes, intervals.as_deref(), size);
        let mut y = buffer::<T>(u.len());
        y.par_chunks_mut(super::ROWS * size.h).zip(u.par_chunks(super::ROWS * size.h)).for_each(|(y, u)| {
            for (y, u) in y.chunks_exact_mut(size.h).zip(u.chunks_exact(size.h)) {
                y.iter_mut().zip(u).zip(d).for_each(|((y, u), d)| *y = *u * *d);
            }
        });
        matmul_nt(&mut y, true, &x, &c, (size.rows(), size.h, size.width()));
        (y, x)
    })?;
    let y = tensor(y, u.tensor().shape())?;
    let mut weights = vec![&model.lambda_re, &model.lambda_im, &model.log_step, &model.b, &model.skip];
    weights.extend(&model.c);
    let Some(tape) = Value::recording(&[u], &weights) else { return Ok(u.unrecorded(y)) };
    let (slot, u, model) = (u.slot(), u.tensor().clone(), model.clone());
    Ok(tape.record(y, move |dy, flow| {
        let intervals = intervals.as_deref();
        let gradients = slices::<T, _, 4>([&u, &model.b, &model.skip, dy.tensor()], |[u, b, d, dy]| {
            backward(u, b, d, dy, x, &c, &modes, intervals, size)
        })?;
        let factor = if model.conjugate_pairs { 2.0 } else { 1.0 };
        let mut dc: Vec<Vec<f64>> = model.c.iter().map(|c| vec![0.0; c.elem_count()]).collect();
        output_places(&model, size, |which, i, re, im| {
            dc[which][2 * i] = factor * gradients.c[re].to_f64();
            dc[which][2 * i + 1] = -factor * gradients.c[im].to_f64();
        });
        for (c, dc) in model.c.iter().zip(&dc) {
            flow.add_to_parameter::<T>(c, |t, fresh| assign_or_add_rounded(t, dc.iter().copied(), fresh))?;
        }
        let clipped = slices::<T, _, 1>([&model.lambda_re], |[re]| {
            re.iter().map(|re| model.clip && re.to_f64() > -1e-4).collect::<Vec<_>>()
        })?;
        let lambda = gradients.lambda.iter();
        flow.add_to_parameter::<T>(&model.lambda_re, |t, fresh| {
            let values = lambda.clone().zip(&clipped).map(|(g, clipped)| if *clipped { 0.0 } else { g.re });
            assign_or_add_rounded(t, values, fresh);
        })?;
        flow.add_to_parameter::<T>(&model.lambda_im, |t, fresh| {
            assign_or_add_rounded(t, lambda.clone().map(|g| -g.im), fresh);
        })?;
        flow.add_to_parameter::<T>(&model.log_step, |t, fresh| {
            assign_or_add_rounded(t, gradients.step.iter().copied(), fresh);
        })?;
        flow.add_to_parameter::<T>(&model.b, |t, fresh| {
            assign_or_add_rounded(t, gradients.b.iter().copied(), fresh);
        })?;
        slices::<T, _, 2>([&u, dy.tensor()], |[u, dy]| {
            flow.add_to_parameter::<T>(&model.skip, |t, fresh| sum_products(t, !fresh, dy, u))
        })??;
        flow.send_to_slot::<T>(slot, Grad::new(tensor(gradients.u, u.shape())?))
    }))
}

/// The states `[batch, l, width]`.
fn states<T: Real>(u: &[T], b: &[T], modes: &Modes, intervals: Option<&[T]>, size: Size) -> Vec<T> {
    let mut x = inputs(u, b, size);
    let shared = SharedMut::new(&mut x);
    (0..size.batch * size.blocks()).into_par_iter().for_each(|task| {
        let (entry, block) = (task / size.blocks(), task % size.blocks());
        let intervals = intervals.map(|i| &i[entry * size.l..][..size.l]);
        let steps = Steps::new(modes, intervals, block, size);
        let forward = Columns::new(shared, 0, block, size);
        let zero = [[0.0; LANES]; 2];
        let input = |t: usize, factors: &Factors| {
            // SAFETY: tasks own the columns of their modes in the rows of their entry.
            let v = unsafe { forward.read(entry * size.l + t) };
            factors.q.map_or(v, |q| multiply_add::<false>(&q, &v, &zero))
        };
        vectorised(
            #[inline(always)]
            || {
                // the other direction first: it reads inputs where the forward scan will put states
                if size.directions == 2 {
                    let ahead = Columns::new(shared, 1, block, size);
                    let mut state = zero;
                    for t in (0..size.l).rev() {
                        let factors = steps.at(t);
                        state = multiply_add::<false>(&factors.z, &state, &input(t, &factors));
                        // SAFETY: as above.
                        unsafe { ahead.write(entry * size.l + t, &state) };
                    }
                }
                let mut state = zero;
                for t in 0..size.l {
                    let factors = steps.at(t);
                    state = multiply_add::<false>(&factors.z, &state, &input(t, &factors));
                    // SAFETY: as above.
                    unsafe { forward.write(entry * size.l + t, &state) };
                }
            },
        );
    });
    x
}

/// `B u` in the first columns of rows of states; the others are left to be written.
fn inputs<T: Real>(u: &[T], b: &[T], size: Size) -> Vec<T> {
    let mut x = buffer::<T>(size.rows() * size.width());
    // SAFETY: the views lie within u `[rows, h]`, b `[2 p, h]` and the first 2 p columns of x `[rows, width]`.
    unsafe {
        gemm_on_all_threads(
            (size.rows(), 2 * size.p, size.h),
            Matrix::rows(x.as_mut_ptr(), size.width()),
            false,
            Matrix::rows(u.as_ptr(), size.h),
            Matrix::rows(b.as_ptr(), size.h).t(),
        );
    }
    x
}

/// Gradients: u and C in `T` as the matrices of the forward pass, B by its own elements, Lambda as an analytic
/// derivative, and the logarithm of the step.
struct Gradients<T> {
    u: Vec<T>,
    c: Vec<T>,
    b: Vec<f64>,
    lambda: Vec<Complex64>,
    step: Vec<f64>,
}

#[allow(clippy::too_many_arguments, reason = "the op's inputs")]
fn backward<T: Real>(
    u: &[T],
    b: &[T],
    d: &[T],
    dy: &[T],
    x: Vec<T>,
    c: &[T],
    modes: &Modes,
    intervals: Option<&[T]>,
    size: Size,
) -> Gradients<T> {
    let Size { h, p, .. } = size;
    let (rows, width) = (size.rows(), size.width());
    let b_matrix = input_matrix(b, modes, size);
    let mut dc = buffer::<T>(h * width);
    matmul_tn(&mut dc, false, dy, &x, (rows, h, width));
    let mut dx = buffer::<T>(rows * width);
    matmul_nn(&mut dx, false, dy, c, (rows, h, width));
    let sums = scan_backward(&x, &mut dx, intervals.map(|i| (i, inputs(u, &b_matrix, size))), modes, size);
    drop(x);

    let mut du = buffer::<T>(u.len());
    du.par_chunks_mut(super::ROWS * h).zip(dy.par_chunks(super::ROWS * h)).for_each(|(du, dy)| {
        for (du, dy) in du.chunks_exact_mut(h).zip(dy.chunks_exact(h)) {
            du.iter_mut().zip(dy).zip(d).for_each(|((du, dy), d)| *du = *dy * *d);
        }
    });
    let mut db_matrix = buffer::<T>(2 * p * h);
    // SAFETY: the views lie within dx `[rows, width]`, whose first 2 p columns are those of B u, u and du
    // `[rows, h]`, and b and its gradient `[2 p, h]`.
    unsafe {
        let dv = Matrix::rows(dx.as_ptr(), width);
        let (b, db) = (Matrix::rows(b_matrix.as_ptr(), h), Matrix::rows(db_matrix.as_mut_ptr(), h));
        gemm_on_all_threads((rows, h, 2 * p), Matrix::rows(du.as_mut_ptr(), h), true, dv, b);
        gemm_on_all_threads((2 * p, h, rows), db, false, dv.t(), Matrix::rows(u.as_ptr(), h));
    }

    let mut gradients = Gradients {
        u: du,
        c: dc,
        b: vec![0.0; 2 * p * h],
        lambda: vec![Complex64::ZERO; p],
        step: vec![0.0; p],
    };
    for i in 0..p {
        let (factor, mut dq) = (modes.input_factor(i), Complex64::ZERO);
        for j in i * h..(i + 1) * h {
            let g = Complex64::new(db_matrix[j].to_f64(), -db_matrix[p * h + j].to_f64());
            let by_b = g * factor;
            (gradients.b[2 * j], gradients.b[2 * j + 1]) = (by_b.re, -by_b.im);
            dq += g * Complex64::new(b[2 * j].to_f64(), b[2 * j + 1].to_f64());
        }
        // over the batch, in its order
        let mut sum = sums.iter().fold(ModeSum::default(), |a, entry| a.plus(entry[i]));
        if let Some(uniform) = &modes.uniform {
            let mode = &uniform[i];
            sum.lambda = sum.z * mode.z_by_lambda + dq * mode.q_by_lambda;
            sum.step = (sum.z * mode.z_by_step + dq * mode.q_by_step).re;
        }
        gradients.lambda[i] = sum.lambda;
        gradients.step[i] = sum.step * modes.step[i];
    }
    gradients
}

/// Analytic derivatives of one mode: by z where steps are alike, else by Lambda and the step.
#[derive(Clone, Copy, Default)]
struct ModeSum {
    z: Complex64,
    lambda: Complex64,
    step: f64,
}

impl ModeSum {
    fn plus(self, other: Self) -> Self {
        Self { z: self.z + other.z, lambda: self.lambda + other.lambda, step: self.step + other.step }
    }
}

/// Turns the gradients of states in `dx` into those of `B u`, in the first columns; returns what each entry of the
/// batch adds to the modes' derivatives. With intervals, `B u` is given too.
fn scan_backward<T: Real>(
    x: &[T],
    dx: &mut [T],
    varying: Option<(&[T], Vec<T>)>,
    modes: &Modes,
    size: Size,
) -> Vec<Vec<ModeSum>> {
    let mut varying = varying;
    let inputs = varying.as_mut().map(|(_, v)| SharedMut::new(v));
    let intervals = varying.as_ref().map(|(i, _)| *i);
    let shared = SharedMut::new(dx);
    // only read, through the same view
    let x = SharedMut::reading(x);
    let tasks: Vec<Vec<ModeSum>> = (0..size.batch * size.blocks())
        .into_par_iter()
        .map(|task| {
            let (entry, block) = (task / size.blocks(), task % size.blocks());
            let intervals = intervals.map(|i| &i[entry * size.l..][..size.l]);
            let steps = Steps::new(modes, intervals, block, size);
            let out = Columns::new(shared, 0, block, size);
            let inputs = inputs.map(|v| Columns::new(v, 0, block, size));
            let mut sums = vec![ModeSum::default(); steps.count];
            let zero = [[0.0; LANES]; 2];
            let mut dz = zero;
            vectorised(
                #[inline(always)]
                || {
                    for direction in 0..size.directions {
                        let (here, states) = (
                            Columns::new(shared, direction, block, size),
                            Columns::new(x, direction, block, size),
                        );
                        // gradient of the state, times the factor of the step that leads on from it
                        let mut carried = zero;
                        for s in 0..size.l {
                            // against the direction of the scan
                            let (t, first) = if direction == 0 {
                                (size.l - 1 - s, s + 1 == size.l)
                            } else {
                                (s, s + 1 == size.l)
                            };
                            let row = entry * size.l + t;
                            let factors = steps.at(t);
                            let one = [[1.0; LANES], [0.0; LANES]];
                            // SAFETY: tasks own the columns of their modes in the rows of their entry.
                            let g = unsafe { multiply_add::<false>(&one, &here.read(row), &carried) };
                            // SAFETY: nobody writes x; the state before t exists unless t comes first.
                            let before = if first {
                                zero
                            } else {
                                unsafe { states.read(if direction == 0 { row - 1 } else { row + 1 }) }
                            };
                            // sum of conj(before) g, whose conjugate is the analytic derivative by z
                            let by_z = multiply_add::<true>(&before, &g, &zero);
                            let mut dv = g;
                            if let (Some(q), Some(inputs)) = (factors.q, &inputs) {
                                // SAFETY: nobody writes B u.
                                let by_q = unsafe { multiply_add::<true>(&inputs.read(row), &g, &zero) };
                                dv = multiply_add::<true>(&q, &g, &zero);
                                accumulate(&mut sums, &steps, t, &by_z, &by_q);
                            } else {
                                dz = multiply_add::<false>(&one, &by_z, &dz);
                            }
                            carried = multiply_add::<true>(&factors.z, &g, &zero);
                            if direction == 1 {
                                // SAFETY: tasks own these columns.
                                dv = unsafe { multiply_add::<false>(&one, &dv, &out.read(row)) };
                            }
                            // SAFETY: as above.
                            unsafe { out.write(row, &dv) };
                        }
                    }
                },
            );
            for (i, sum) in sums.iter_mut().enumerate() {
                sum.z = Complex64::new(dz[0][i], -dz[1][i]);
            }
            sums
        })
        .collect();
    tasks.chunks(size.blocks()).map(|blocks| blocks.concat()).collect()
}

/// Adds one step's derivatives where steps differ.
#[inline(never)]
fn accumulate<T: Real>(
    sums: &mut [ModeSum],
    steps: &Steps<T>,
    t: usize,
    by_z: &[[f64; LANES]; 2],
    by_q: &[[f64; LANES]; 2],
) {
    let interval = steps.intervals.map_or(1.0, |i| i[t].to_f64());
    for (i, sum) in sums.iter_mut().enumerate() {
        let mode = steps.modes.at(steps.first + i, interval);
        let (dz, dq) = (Complex64::new(by_z[0][i], -by_z[1][i]), Complex64::new(by_q[0][i], -by_q[1][i]));
        sum.lambda += dz * mode.z_by_lambda + dq * mode.q_by_lambda;
        sum.step += (dz * mode.z_by_step + dq * mode.q_by_step).re * interval;
    }
}
