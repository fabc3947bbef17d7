//! The convolution kernel of a diagonal state-space model: see `ops/diagonal_kernel.rs`. Parameters are taken in float32,
//! modes made of them in double precision; the taps are float32 whatever the parameters' type.

use candle_core::{DType, Result, Tensor};

use super::device::{Address, Argument, Gpu, Grid, address, int};
use super::elementwise::float;
use super::sum_parts;
use crate::ops::diagonal_kernel::Size;
use crate::ops::{DiagonalKernel, Discretisation, StepTransform};
use crate::tape::{Flow, Value};

pub(crate) fn diagonal_taps(kernel: &DiagonalKernel, length: usize, beside: &Value) -> Result<Value> {
    let size = kernel.size(length)?;
    let gpu = Gpu::of(&kernel.c)?;
    let model = Model::new(&gpu, kernel, size)?;
    let Size { kernels, h, n, .. } = size;
    let y = gpu.empty((kernels, h, length), DType::F32)?;
    let mut arguments = model.arguments()?;
    arguments.extend::<[Argument; 2]>([address(&y)?.into(), int(length)?.into()]);
    let grid = Grid { blocks: (length.div_ceil(1024), h, kernels), threads: 256, shared: 0 };
    // SAFETY: the kernel's arguments in its order; parameters and result have the sizes that `kernel.size` checked.
    unsafe { gpu.launch("diagonal_kernel", "diagonal_kernel_forward_f32", grid, &arguments) }?;
    let Some(tape) = Value::recording(&[beside], &kernel.tensors()) else { return Ok(beside.unrecorded(y)) };
    let kernel = kernel.clone();
    Ok(tape.record(y, move |dy, flow| {
        let shares = Shares::new(&gpu, size)?;
        let mut arguments = model.arguments()?;
        arguments.push(address(dy.tensor())?.into());
        arguments.extend(shares.arguments()?);
        arguments.extend::<[Argument; 2]>([int(kernels)?.into(), int(length)?.into()]);
        let grid = Grid { blocks: (n.div_ceil(8), h, 1), threads: 256, shared: 0 };
        // SAFETY: as above; `Shares` has the sizes that the kernel writes.
        unsafe { gpu.launch("diagonal_kernel", "diagonal_kernel_backward_f32", grid, &arguments) }?;
        shares.send(&gpu, &kernel, flow)
    }))
}

/// A model's parameters in float32.
pub(super) struct Model {
    kernel: DiagonalKernel,
    size: Size,
}

impl Model {
    pub(super) fn new(gpu: &Gpu, kernel: &DiagonalKernel, size: Size) -> Result<Self> {
        let kernel = DiagonalKernel {
            step: float(gpu, &kernel.step)?,
            a_real: float(gpu, &kernel.a_real)?,
            a_imag: float(gpu, &kernel.a_imag)?,
            b: kernel.b.as_ref().map(|b| float(gpu, b)).transpose()?,
            c: float(gpu, &kernel.c)?,
            ..*kernel
        };
        Ok(Self { kernel, size })
    }

    /// What kernels begin with (`DIAGONAL_ARGUMENTS`).
    pub(super) fn arguments(&self) -> Result<Vec<Argument>> {
        let Self { kernel, size } = self;
        Ok(vec![
            address(&kernel.step)?.into(),
            address(&kernel.a_real)?.into(),
            address(&kernel.a_imag)?.into(),
            kernel.b.as_ref().map_or(Ok(Address::NULL), address)?.into(),
            address(&kernel.c)?.into(),
            int(size.h)?.into(),
            int(size.n)?.into(),
            int(size.copies)?.into(),
            i32::from(kernel.transform == StepTransform::Softplus).into(),
            i32::from(kernel.conjugate).into(),
            i32::from(kernel.discretisation == Discretisation::Bilinear).into(),
            kernel.rate.into(),
        ])
    }
}

/// The gradient of C, and what each channel adds to those of A, B and the steps.
pub(super) struct Shares {
    c: Tensor,
    a_real: Tensor,
    a_imag: Tensor,
    b: Tensor,
    step: Tensor,
}

impl Shares {
    pub(super) fn new(gpu: &Gpu, Size { kernels, h, n, .. }: Size) -> Result<Self> {
        let floats = |rows: usize, width: usize| gpu.empty((rows, width), DType::F32);
        Ok(Self {
            c: floats(kernels * h, 2 * n)?,
            a_real: floats(h, n)?,
            a_imag: floats(h, n)?,
            b: floats(h, 2 * n)?,
            step: floats(n, h)?,
        })
    }

    /// In the order in which kernels take them.
    pub(super) fn arguments(&self) -> Result<Vec<Argument>> {
        let all = [&self.c, &self.a_real, &self.a_imag, &self.b, &self.step];
        all.into_iter().map(|t| Ok(address(t)?.into())).collect()
    }

    /// Adds them up, over channels that share a set of modes and over the modes of a channel, in their order.
    pub(super) fn send(&self, gpu: &Gpu, kernel: &DiagonalKernel, flow: &mut Flow) -> Result<()> {
        let parts = [
            (Some(&kernel.c), &self.c),
            (Some(&kernel.a_real), &self.a_real),
            (Some(&kernel.a_imag), &self.a_imag),
            (kernel.b.as_ref(), &self.b),
            (Some(&kernel.step), &self.step),
        ];
        for (parameter, partial) in parts {
            if let Some(to) = parameter.map_or(Ok(None), |parameter| flow.parameter(parameter))? {
                sum_parts(gpu, partial, &to)?;
            }
        }
        Ok(())
    }
}
