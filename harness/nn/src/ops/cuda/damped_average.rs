//! The convolution kernel of damped moving averages: see `ops/damped_average.rs`. Parameters are taken in float32, powers
//! made of them in double precision; the taps are float32 whatever the parameters' type.

use candle_core::{DType, Result, Tensor};

use super::device::{Argument, Gpu, Grid, address, int};
use super::elementwise::float;
use super::sum_parts;
use crate::ops::DampedAverage;
use crate::ops::damped_average::Size;
use crate::tape::Value;

pub(crate) fn damped_taps(average: &DampedAverage, length: usize, beside: &Value) -> Result<Value> {
    let size = average.size(length)?;
    let Size { sides, h, n, .. } = size;
    let gpu = Gpu::of(&average.delta)?;
    let parameters: Vec<Tensor> =
        average.tensors().into_iter().map(|t| float(&gpu, t)).collect::<Result<_>>()?;
    let y = gpu.empty((sides, h, length), DType::F32)?;
    let last = [address(&y)?.into(), int(sides)?.into(), int(length)?.into()];
    let grid = Grid { blocks: (length.div_ceil(256), sides * h, 1), threads: 256, shared: 0 };
    launch(&gpu, "damped_taps_forward_f32", grid, &parameters, size, last)?;
    let Some(tape) = Value::recording(&[beside], &average.tensors()) else { return Ok(beside.unrecorded(y)) };
    let average = average.clone();
    Ok(tape.record(y, move |dy, flow| {
        let shares = [(); 4].map(|()| gpu.empty((sides * h, n), DType::F32));
        let shares: Vec<Tensor> = shares.into_iter().collect::<Result<_>>()?;
        let mut last: Vec<Argument> = vec![address(dy.tensor())?.into()];
        last.extend(shares.iter().map(|t| Ok(address(t)?.into())).collect::<Result<Vec<Argument>>>()?);
        last.push(int(length)?.into());
        let grid = Grid { blocks: (n.div_ceil(8), sides * h, 1), threads: 256, shared: 0 };
        launch(&gpu, "damped_taps_backward_f32", grid, &parameters, size, last)?;
        for (parameter, share) in average.tensors().into_iter().zip(&shares) {
            if let Some(to) = flow.parameter(parameter)? {
                sum_parts(&gpu, share, &to)?;
            }
        }
        Ok(())
    }))
}

/// Launches a kernel with the parameters, their sizes (`DAMPED_ARGUMENTS`), and `last`.
fn launch(
    gpu: &Gpu,
    function: &str,
    grid: Grid,
    parameters: &[Tensor],
    size: Size,
    last: impl IntoIterator<Item = Argument>,
) -> Result<()> {
    let mut arguments =
        parameters.iter().map(|t| Ok(address(t)?.into())).collect::<Result<Vec<Argument>>>()?;
    arguments.extend::<[Argument; 2]>([int(size.h)?.into(), int(size.n)?.into()]);
    arguments.extend(last);
    // SAFETY: the kernels' arguments in their order; parameters, result and gradients have the sizes that `average.size`
    // checked.
    unsafe { gpu.launch("damped_average", function, grid, &arguments) }
}
