//! The convolution kernel of S4: see `ops/low_rank_kernel.rs`. All in double precision from parameters in float32; the taps
//! are float32 whatever the parameters' type. The Fourier transform of length R C with R near C costs R + C products
//! an element; a prime length has R = 1.

use candle_core::{DType, Result, Tensor};

use super::device::{Argument, Gpu, Grid, address, int, launch};
use super::diagonal_kernel::{Model, Shares};
use super::elementwise::float;
use super::sum_parts;
use crate::ops::LowRankKernel;
use crate::ops::diagonal_kernel::Size;
use crate::tape::Value;

const MODULE: &str = "low_rank_kernel";

pub(crate) fn low_rank_taps(kernel: &LowRankKernel, length: usize, beside: &Value) -> Result<Value> {
    let size = kernel.size(length)?;
    let gpu = Gpu::of(&kernel.p)?;
    let model = Model::new(&gpu, &kernel.diagonal, size)?;
    let p = float(&gpu, &kernel.p)?;
    let fourier = Fourier::new(&gpu, size)?;
    let Size { kernels, h, n, .. } = size;
    let nodes = Grid { blocks: ((length / 2 + 1).div_ceil(128), h, kernels), threads: 128, shared: 0 };
    let spectrum = fourier.complex(&gpu, length)?;
    let mut arguments = model.arguments()?;
    arguments.extend::<[Argument; 3]>([address(&p)?.into(), address(&spectrum)?.into(), int(length)?.into()]);
    // SAFETY: the kernel's arguments in its order; parameters and spectrum have the sizes that `kernel.size` checked.
    unsafe { gpu.launch(MODULE, "low_rank_spectrum_f32", nodes, &arguments) }?;
    let y = gpu.empty((kernels, h, length), DType::F32)?;
    let inverse = ["low_rank_inverse_columns_f64", "low_rank_inverse_rows_f32"];
    fourier.transform(&gpu, inverse, &spectrum, &y)?;
    let Some(tape) = Value::recording(&[beside], &kernel.tensors()) else { return Ok(beside.unrecorded(y)) };
    let kernel = kernel.clone();
    Ok(tape.record(y, move |dy, flow| {
        let spectrum = fourier.complex(&gpu, length)?;
        let forward = ["low_rank_forward_columns_f32", "low_rank_forward_rows_f64"];
        fourier.transform(&gpu, forward, dy.tensor(), &spectrum)?;
        let by_sums = fourier.complex(&gpu, 4 * (length / 2 + 1))?;
        let mut arguments = model.arguments()?;
        arguments.extend::<[Argument; 2]>([address(&p)?.into(), address(&spectrum)?.into()]);
        arguments.extend::<[Argument; 2]>([address(&by_sums)?.into(), int(length)?.into()]);
        // SAFETY: as above; four numbers a node.
        unsafe { gpu.launch(MODULE, "low_rank_backward_nodes_f32", nodes, &arguments) }?;
        let (shares, dp) = (Shares::new(&gpu, size)?, gpu.empty((h, 2 * n), DType::F32)?);
        let mut arguments = model.arguments()?;
        arguments.extend::<[Argument; 2]>([address(&p)?.into(), address(&by_sums)?.into()]);
        arguments.extend(shares.arguments()?);
        arguments.extend::<[Argument; 3]>([address(&dp)?.into(), int(kernels)?.into(), int(length)?.into()]);
        let grid = Grid { blocks: (n.div_ceil(4), h, 1), threads: 128, shared: 0 };
        // SAFETY: as above; `Shares` has the sizes that the kernel writes, dp two numbers a channel's mode.
        unsafe { gpu.launch(MODULE, "low_rank_backward_modes_f32", grid, &arguments) }?;
        if let Some(to) = flow.parameter(&kernel.p)? {
            sum_parts(&gpu, &dp, &to)?;
        }
        shares.send(&gpu, &kernel.diagonal, flow)
    }))
}

/// Transforms of all kernels and channels.
struct Fourier {
    count: usize,
    /// The length's largest factor up to its root, and the other one.
    rows: usize,
    cols: usize,
    roots: Tensor,
}

impl Fourier {
    fn new(gpu: &Gpu, Size { kernels, h, length, .. }: Size) -> Result<Self> {
        let rows = (1..=length.isqrt()).rev().find(|rows| length.is_multiple_of(*rows)).unwrap_or(1);
        let roots = doubles(gpu, (1, length))?;
        let grid = Grid { blocks: (length.div_ceil(256), 1, 1), threads: 256, shared: 0 };
        launch!(gpu, MODULE, "low_rank_roots_f64", grid, address(&roots)?, int(length)?)?;
        Ok(Self { count: kernels * h, rows, cols: length / rows, roots })
    }

    /// `[count, width]` complex numbers.
    fn complex(&self, gpu: &Gpu, width: usize) -> Result<Tensor> {
        doubles(gpu, (self.count, width))
    }

    /// Columns and rows by the two kernels.
    fn transform(&self, gpu: &Gpu, [columns, rows]: [&str; 2], from: &Tensor, to: &Tensor) -> Result<()> {
        let length = self.rows * self.cols;
        let grid = Grid { blocks: (length.div_ceil(128), self.count, 1), threads: 128, shared: 0 };
        let between = self.complex(gpu, length)?;
        let (z, roots) = (address(&between)?, address(&self.roots)?);
        let (r, c) = (int(self.rows)?, int(self.cols)?);
        launch!(gpu, MODULE, columns, grid, address(from)?, z, roots, r, c)?;
        launch!(gpu, MODULE, rows, grid, z, address(to)?, roots, r, c)
    }
}

/// Memory for complex numbers in double precision, four floats each.
fn doubles(gpu: &Gpu, (rows, width): (usize, usize)) -> Result<Tensor> {
    gpu.empty((rows, 4 * width), DType::F32)
}
