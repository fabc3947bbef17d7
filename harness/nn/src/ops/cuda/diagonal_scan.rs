//! A diagonal state-space model with many inputs and outputs: see `ops/diagonal_scan.rs`. Products in float32, the scan in
//! double precision; inputs and parameters in bfloat16 are converted first.
//!
//! Rows of states hold pairs (re, -im), twice as large where modes stand for their conjugates too: so their product with C as
//! it is stored is the output, and the gradient of C needs no other arrangement either.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Address, Argument, Gpu, Grid, address, int, launch};
use super::elementwise::{cast, float};
use super::gemm::{matmul_nn, matmul_nt, matmul_tn};
use super::{elements, parts, same_type, sum_parts};
use crate::ops::diagonal_scan::Size;
use crate::ops::{DiagonalScan, Discretisation};
use crate::tape::{Grad, Value};

const MODULE: &str = "diagonal_scan";

/// Steps of a chunk, and threads of its blocks.
const CHUNK: usize = 64;
const THREADS: usize = 64;

/// A call: its sizes, the model in float32, and how states lie.
struct Call {
    gpu: Gpu,
    size: Size,
    model: DiagonalScan,
    intervals: Option<Tensor>,
}

/// Where a direction's states lie: in which of the buffers, one a C, and from which number of its rows on.
struct Place {
    buffer: usize,
    column: usize,
}

impl Call {
    fn new(u: &Tensor, model: &DiagonalScan, intervals: Option<&Tensor>) -> Result<Self> {
        let size = Size::of(u, model, intervals)?;
        if model.c.len() != 1 && model.c.len() != size.directions {
            let (have, directions) = (model.c.len(), size.directions);
            bail!(
                "diagonal_scan: C in {have} parts; on a GPU one for all modes or one for each of {directions} directions"
            );
        }
        if model.c.iter().any(|c| c.elem_count() != model.c[0].elem_count()) {
            bail!(
                "diagonal_scan: C in parts of different sizes; on a GPU each has the modes of one direction"
            );
        }
        let gpu = Gpu::of(u)?;
        let floats = |t: &Tensor| float(&gpu, t);
        let model = DiagonalScan {
            lambda_re: floats(&model.lambda_re)?,
            lambda_im: floats(&model.lambda_im)?,
            log_step: floats(&model.log_step)?,
            b: floats(&model.b)?,
            c: model.c.iter().map(floats).collect::<Result<_>>()?,
            skip: floats(&model.skip)?,
            ..*model
        };
        let intervals = intervals.map(floats).transpose()?;
        Ok(Self { gpu, size, model, intervals })
    }

    /// Numbers in a row of a buffer of states.
    fn width(&self) -> usize {
        2 * self.size.p * self.size.directions / self.model.c.len()
    }

    fn place(&self, direction: usize) -> Place {
        if self.model.c.len() == 1 {
            Place { buffer: 0, column: 2 * self.size.p * direction }
        } else {
            Place { buffer: direction, column: 0 }
        }
    }

    /// A buffer of states a C.
    fn states(&self) -> Result<Vec<Tensor>> {
        let shape = (self.size.rows(), self.width());
        self.model.c.iter().map(|_| self.gpu.empty(shape, DType::F32)).collect()
    }

    /// A direction's states in such buffers.
    fn part(&self, buffers: &[Tensor], direction: usize) -> Result<Address> {
        let Place { buffer, column } = self.place(direction);
        Ok(address(&buffers[buffer])?.offset(column, size_of::<f32>()))
    }

    fn scale(&self) -> f32 {
        if self.model.conjugate_pairs { 2.0 } else { 1.0 }
    }

    fn chunks(&self) -> usize {
        self.size.l.div_ceil(CHUNK)
    }

    fn grid(&self, chunks: usize) -> Grid {
        Grid { blocks: (self.size.p.div_ceil(THREADS), chunks, self.size.batch), threads: THREADS, shared: 0 }
    }

    /// Launches a kernel that begins with the model's modes (`SCAN_ARGUMENTS`).
    fn launch(&self, function: &str, grid: Grid, arguments: &[Argument]) -> Result<()> {
        let Self { gpu, model, intervals, .. } = self;
        let mut all: Vec<Argument> = vec![
            address(&model.lambda_re)?.into(),
            address(&model.lambda_im)?.into(),
            address(&model.log_step)?.into(),
            intervals.as_ref().map_or(Ok(Address::NULL), address)?.into(),
            i32::from(model.discretisation == Discretisation::Bilinear).into(),
            i32::from(model.clip).into(),
            model.rate.into(),
        ];
        all.extend(arguments);
        // SAFETY: the kernel's arguments in its order; the sizes were checked by `Size::of`.
        unsafe { gpu.launch(MODULE, function, grid, &all) }
    }

    /// B as `[2 p, h]`.
    fn input_matrix(&self) -> Result<Tensor> {
        let Size { h, p, .. } = self.size;
        let matrix = self.gpu.empty((2 * p, h), DType::F32)?;
        let arguments = [address(&self.model.b)?.into(), address(&matrix)?.into(), int(h)?.into()];
        self.launch(
            "diagonal_scan_inputs_f32",
            Grid { blocks: (p, 1, 1), threads: 128, shared: 0 },
            &arguments,
        )?;
        Ok(matrix)
    }

    /// `B u` `[rows, 2 p]`.
    fn inputs(&self, u: &Tensor, matrix: &Tensor) -> Result<Tensor> {
        let Size { h, p, .. } = self.size;
        let v = self.gpu.empty((self.size.rows(), 2 * p), DType::F32)?;
        matmul_nt(&self.gpu, &v, false, u, matrix, (self.size.rows(), 2 * p, h))?;
        Ok(v)
    }

    /// The states that arrive at each chunk of a recurrence whose inputs are `from`.
    fn carry(&self, (from, stride): (Address, usize), backwards: bool, adjoint: bool) -> Result<Tensor> {
        let Size { batch, l, p, .. } = self.size;
        let chunks = self.chunks();
        // products and states, complex, in double precision
        let carry = self.gpu.empty((batch * chunks, 2 * p, 4), DType::F32)?;
        let (l, p, to) = (int(l)?, int(p)?, address(&carry)?);
        let arguments = [
            from.into(),
            stride.into(),
            self.scale().into(),
            to.into(),
            l.into(),
            p.into(),
            i32::from(backwards).into(),
            i32::from(adjoint).into(),
        ];
        self.launch("diagonal_scan_chunk_f32", self.grid(chunks), &arguments)?;
        launch!(self.gpu, MODULE, "diagonal_scan_carry_f64", self.grid(1), to, int(chunks)?, p)?;
        Ok(carry)
    }

    /// Runs the scans over the inputs v.
    fn scan(&self, v: &Tensor) -> Result<Vec<Tensor>> {
        let Size { l, p, directions, .. } = self.size;
        let (states, stride) = (self.states()?, 2 * p);
        for direction in 0..directions {
            let (from, backwards) = (address(v)?, direction == 1);
            let carry = self.carry((from, stride), backwards, false)?;
            let arguments = [
                from.into(),
                stride.into(),
                address(&carry)?.into(),
                self.part(&states, direction)?.into(),
                self.width().into(),
                self.scale().into(),
                int(l)?.into(),
                int(p)?.into(),
                i32::from(backwards).into(),
            ];
            self.launch("diagonal_scan_apply_f32", self.grid(self.chunks()), &arguments)?;
        }
        Ok(states)
    }

    /// Gradients of the inputs v, and what chunks add to the modes' derivatives.
    fn scan_backward(
        &self,
        v: Option<&Tensor>,
        states: &[Tensor],
        gradients: &[Tensor],
    ) -> Result<[Tensor; 2]> {
        let Size { batch, l, p, directions, .. } = self.size;
        let (width, per_direction) = (self.width(), batch * self.chunks());
        let dv = self.gpu.empty((self.size.rows(), 2 * p), DType::F32)?;
        let sums = self.gpu.empty((directions * per_direction, 3 * p), DType::F32)?;
        for direction in 0..directions {
            let (dx, backwards) = (self.part(gradients, direction)?, direction == 0);
            let carry = self.carry((dx, width), backwards, true)?;
            let arguments = [
                v.map_or(Ok(Address::NULL), address)?.into(),
                (2 * p).into(),
                address(&carry)?.into(),
                self.part(states, direction)?.into(),
                dx.into(),
                width.into(),
                self.scale().into(),
                address(&dv)?.into(),
                address(&sums)?.offset(direction * per_direction * 3 * p, size_of::<f32>()).into(),
                int(l)?.into(),
                int(p)?.into(),
                i32::from(backwards).into(),
                i32::from(direction > 0).into(),
            ];
            self.launch("diagonal_scan_backward_f32", self.grid(self.chunks()), &arguments)?;
        }
        Ok([dv, sums])
    }

    /// `skip * u`, row by row.
    fn direct(&self, u: &Tensor) -> Result<Tensor> {
        let y = self.gpu.empty(u.shape(), DType::F32)?;
        let (from, skip, to) = (address(u)?, address(&self.model.skip)?, address(&y)?);
        let (grid, rows, h) = (elements(u.elem_count()), self.size.rows(), int(self.size.h)?);
        launch!(self.gpu, MODULE, "diagonal_scan_skip_f32", grid, from, skip, to, rows, h)?;
        Ok(y)
    }
}

pub(crate) fn diagonal_scan(u: &Value, model: &DiagonalScan, intervals: Option<&Tensor>) -> Result<Value> {
    let call = Call::new(u.tensor(), model, intervals)?;
    let mut weights = vec![&model.lambda_re, &model.lambda_im, &model.log_step, &model.b, &model.skip];
    weights.extend(&model.c);
    same_type("diagonal_scan", u.tensor(), &weights)?;
    let dtype = u.tensor().dtype();
    let input = float(&call.gpu, u.tensor())?;
    let states = call.scan(&call.inputs(&input, &call.input_matrix()?)?)?;
    let y = call.direct(&input)?;
    let output = (call.size.rows(), call.size.h, call.width());
    for (x, c) in states.iter().zip(&call.model.c) {
        matmul_nt(&call.gpu, &y, true, x, c, output)?;
    }
    let y = if dtype == DType::F32 { y } else { cast(&call.gpu, &y, dtype)? };
    let Some(tape) = Value::recording(&[u], &weights) else { return Ok(u.unrecorded(y)) };
    let (slot, model) = (u.slot(), model.clone());
    Ok(tape.record(y, move |dy, flow| {
        let (gpu, Size { h, p, .. }, rows) = (&call.gpu, call.size, call.size.rows());
        let dy = float(gpu, dy.tensor())?;
        let gradients = call.states()?;
        for (((dx, x), c), parameter) in gradients.iter().zip(&states).zip(&call.model.c).zip(&model.c) {
            matmul_nn(gpu, dx, false, &dy, c, output)?;
            if let Some(dc) = flow.parameter(parameter)? {
                matmul_tn(gpu, &dc.tensor, dc.accumulate, &dy, x, output)?;
            }
        }
        let matrix = call.input_matrix()?;
        let v = call.intervals.as_ref().map(|_| call.inputs(&input, &matrix)).transpose()?;
        let [dv, sums] = call.scan_backward(v.as_ref(), &states, &gradients)?;
        if let Some(to) = flow.parameter(&model.skip)? {
            let count = parts(rows, 64, 128);
            let partial = gpu.empty((count, h), DType::F32)?;
            let grid = Grid { blocks: (h.div_ceil(256), count, 1), threads: 256, shared: 0 };
            let (u, dy, sum) = (address(&input)?, address(&dy)?, address(&partial)?);
            launch!(gpu, MODULE, "diagonal_scan_backward_skip_f32", grid, u, dy, sum, rows, int(h)?)?;
            sum_parts(gpu, &partial, &to)?;
        }
        let dmatrix = gpu.empty((2 * p, h), DType::F32)?;
        matmul_tn(gpu, &dmatrix, false, &dv, &input, (rows, 2 * p, h))?;
        let floats = |n: usize| gpu.empty(n, DType::F32);
        let results = [floats(2 * p * h)?, floats(p)?, floats(p)?, floats(p)?];
        let mut arguments: Vec<Argument> =
            vec![address(&call.model.b)?.into(), address(&dmatrix)?.into(), address(&sums)?.into()];
        for result in &results {
            arguments.push(address(result)?.into());
        }
        let count = sums.elem_count() / (3 * p);
        arguments.extend::<[Argument; 3]>([int(count)?.into(), int(p)?.into(), int(h)?.into()]);
        let grid = Grid { blocks: (p, 1, 1), threads: 128, shared: 0 };
        call.launch("diagonal_scan_backward_modes_f32", grid, &arguments)?;
        let parameters = [&model.b, &model.lambda_re, &model.lambda_im, &model.log_step];
        for (parameter, result) in parameters.into_iter().zip(&results) {
            if let Some(to) = flow.parameter(parameter)? {
                sum_parts(gpu, result, &to)?;
            }
        }
        if slot.is_none() {
            return Ok(());
        }
        let du = call.direct(&dy)?;
        matmul_nn(gpu, &du, true, &dv, &matrix, (rows, 2 * p, h))?;
        flow.send(slot, Grad::new(if dtype == DType::F32 { du } else { cast(gpu, &du, dtype)? }))
    }))
}
