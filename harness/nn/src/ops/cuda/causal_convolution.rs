//! Long convolution of every channel with a kernel of its own: see `ops/causal_convolution.rs`. Transforms of a power of
//! two numbers, in one block up to 4,096 of them, else in three passes over memory; kernel and spectra are float32.
//!
//! Kept for backward: u and the kernel's spectrum. The spectrum of u is computed again, which costs less than to
//! write and read it.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Gpu, Grid, address, int, launch};
use super::elementwise::float;
use super::{kernel, sum_parts_to_slot};
use crate::ops::causal_convolution::Size;
use crate::tape::{Grad, Value};

/// A transform of one block, and a row of a longer one.
const ROW: usize = 4096;
/// The longest transform.
const LONGEST: usize = 65_536;
/// Pairs of sequences whose kernel gradients are summed in one block.
const PAIRS: usize = 4;

const MODULE: &str = "long_convolution";

/// A call: its sizes, and the launches of its transforms.
#[derive(Clone, Copy)]
struct Call {
    size: Size,
    sides: usize,
    /// Length of the transforms.
    n: usize,
}

impl Call {
    fn new(u: &Tensor, kernel: &Tensor, skip: &Tensor) -> Result<Self> {
        let size = Size::of(u, kernel, skip)?;
        // the kernels want the taps beyond the sequence to fit in too, on both sides
        let ahead = if size.both_sides { size.taps } else { 0 };
        let n = (size.l.max(ahead) + size.taps).next_power_of_two();
        if n > LONGEST {
            bail!(
                "causal_convolution: {} steps and {} taps; on a GPU at most {LONGEST} together",
                size.l,
                size.taps
            );
        }
        Ok(Self { size, sides: if size.both_sides { 2 } else { 1 }, n })
    }

    /// Whether a block holds a transform.
    fn one_block(self) -> bool {
        self.n <= ROW
    }

    /// One block a channel and entry.
    fn blocks(self, entries: usize) -> Grid {
        let threads = (self.n / 8).clamp(32, 512);
        Grid { blocks: (self.size.h, entries, 1), threads, shared: (self.n + self.n / 16) * 8 }
    }

    /// The rows of a transform in three passes.
    fn rows(self, entries: usize) -> Grid {
        let shared = (ROW + ROW / 16) * 8;
        Grid { blocks: (self.n / ROW, self.size.h, entries), threads: 512, shared }
    }

    /// Its columns.
    fn columns(self, entries: usize) -> Grid {
        Grid { blocks: (ROW / 128, self.size.h, entries), threads: 128, shared: 0 }
    }

    /// `[entries, h, n]` complex numbers.
    fn complex(self, gpu: &Gpu, entries: usize) -> Result<Tensor> {
        gpu.empty((entries, self.size.h, self.n, 2), DType::F32)
    }

    /// The kernel's spectrum.
    fn spectrum(self, gpu: &Gpu, taps: &Tensor) -> Result<Tensor> {
        let spectrum = self.complex(gpu, 1)?;
        let (k, to) = (address(taps)?, address(&spectrum)?);
        let (h, taps, sides, n) = (int(self.size.h)?, int(self.size.taps)?, int(self.sides)?, int(self.n)?);
        if self.one_block() {
            let function = "long_convolution_spectrum_f32";
            launch!(gpu, MODULE, function, self.blocks(1), k, to, h, taps, sides, n)?;
        } else {
            let function = "long_convolution_columns_spectrum_f32";
            launch!(gpu, MODULE, function, self.columns(1), k, to, h, taps, sides, n)?;
            launch!(gpu, MODULE, "long_convolution_rows_spectrum_f32", self.rows(1), to, h, n)?;
        }
        Ok(spectrum)
    }

    /// The columns of the transforms of u.
    fn transformed(self, gpu: &Gpu, u: &Tensor) -> Result<Tensor> {
        let Size { batch, h, l, .. } = self.size;
        let z = self.complex(gpu, self.size.pairs())?;
        let (grid, function) = (self.columns(self.size.pairs()), kernel("long_convolution_columns", u)?);
        let (from, to) = (address(u)?, address(&z)?);
        launch!(gpu, MODULE, &function, grid, from, to, int(batch)?, int(h)?, int(l)?, int(self.n)?)?;
        Ok(z)
    }

    /// u convolved with the kernel and the skip, or for its gradient with their mirror image.
    fn apply(
        self,
        gpu: &Gpu,
        u: &Tensor,
        spectrum: &Tensor,
        skip: &Tensor,
        mirrored: bool,
    ) -> Result<Tensor> {
        let y = gpu.empty(u.shape(), u.dtype())?;
        let pairs = self.size.pairs();
        let (from, factor, skip, to) = (address(u)?, address(spectrum)?, address(skip)?, address(&y)?);
        let (batch, h, l) = (int(self.size.batch)?, int(self.size.h)?, int(self.size.l)?);
        let (n, mirrored) = (int(self.n)?, i32::from(mirrored));
        if self.one_block() {
            let (function, grid) = (kernel("long_convolution_apply", u)?, self.blocks(pairs));
            launch!(gpu, MODULE, &function, grid, from, factor, skip, to, batch, h, l, n, mirrored)?;
        } else {
            let transformed = self.transformed(gpu, u)?;
            let z = address(&transformed)?;
            let rows = "long_convolution_rows_apply_f32";
            launch!(gpu, MODULE, rows, self.rows(pairs), z, factor, h, n, mirrored)?;
            let (function, grid) = (kernel("long_convolution_columns_inverse", u)?, self.columns(pairs));
            launch!(gpu, MODULE, &function, grid, z, from, skip, to, batch, h, l, n)?;
        }
        Ok(y)
    }

    /// Partial sums of the kernel's gradient.
    fn kernel_gradient(self, gpu: &Gpu, u: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let Size { batch, h, l, taps, .. } = self.size;
        let pairs = self.size.pairs();
        let parts = pairs.div_ceil(PAIRS);
        let partial = gpu.empty((parts, self.sides * h * taps), DType::F32)?;
        let to = address(&partial)?;
        let (channels, taps, sides, n) = (int(h)?, int(taps)?, int(self.sides)?, int(self.n)?);
        if self.one_block() {
            let (grid, function) = (self.blocks(parts), kernel("long_convolution_backward_kernel", u)?);
            let (u, dy, batch, l) = (address(u)?, address(dy)?, int(batch)?, int(l)?);
            launch!(gpu, MODULE, &function, grid, u, dy, to, batch, channels, l, taps, sides, n)?;
        } else {
            let (u, dy) = (self.transformed(gpu, u)?, self.transformed(gpu, dy)?);
            let sums = self.complex(gpu, parts)?;
            let (u, dy, z) = (address(&u)?, address(&dy)?, address(&sums)?);
            let rows = "long_convolution_rows_backward_f32";
            launch!(gpu, MODULE, rows, self.rows(parts), u, dy, z, int(pairs)?, channels, n)?;
            let columns = "long_convolution_columns_kernel_f32";
            launch!(gpu, MODULE, columns, self.columns(parts), z, to, channels, taps, sides, n)?;
        }
        Ok(partial)
    }
}

pub(crate) fn causal_convolution(u: &Value, taps: &Value, skip: &Tensor) -> Result<Value> {
    let call = Call::new(u.tensor(), taps.tensor(), skip)?;
    let gpu = Gpu::of(u.tensor())?;
    let skip_of_floats = float(&gpu, skip)?;
    let spectrum = call.spectrum(&gpu, &float(&gpu, taps.tensor())?)?;
    let y = call.apply(&gpu, u.tensor(), &spectrum, &skip_of_floats, false)?;
    let Some(tape) = Value::recording(&[u, taps], &[skip]) else { return Ok(u.unrecorded(y)) };
    let (u_slot, taps_slot) = (u.slot(), taps.slot());
    let (u, taps, skip) = (u.tensor().clone(), taps.tensor().clone(), skip.clone());
    Ok(tape.record(y, move |dy, flow| {
        let dy = dy.tensor();
        if let Some(to) = flow.parameter(&skip)? {
            let Size { batch, h, l, .. } = call.size;
            let (function, grid) = (
                kernel("long_convolution_backward_skip", &u)?,
                Grid { blocks: (h, 1, 1), threads: 256, shared: 0 },
            );
            let (u, dy, sum, flag) = (address(&u)?, address(dy)?, address(&to.tensor)?, to.flag());
            launch!(gpu, MODULE, &function, grid, u, dy, sum, int(batch)?, int(h)?, int(l)?, flag)?;
        }
        if taps_slot.is_some() {
            let partial = call.kernel_gradient(&gpu, &u, dy)?;
            sum_parts_to_slot(&gpu, flow, taps_slot, &partial, &taps)?;
        }
        if u_slot.is_some() {
            let du = call.apply(&gpu, dy, &spectrum, &skip_of_floats, true)?;
            flow.send(u_slot, Grad::new(du))?;
        }
        Ok(())
    }))
}
