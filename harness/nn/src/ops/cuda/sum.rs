//! Sum of all elements: see `ops/sum.rs`. The result is float32.

use candle_core::{DType, Result, Tensor};

use super::device::{Gpu, Grid, address, int, launch};
use super::{elements, kernel, parts};
use crate::tape::Value;

pub(crate) fn sum(x: &Value) -> Result<Value> {
    let gpu = Gpu::of(x.tensor())?;
    let n = x.tensor().elem_count();
    let (partial, grid) = partial_sums(&gpu, n)?;
    let function = kernel("sum", x.tensor())?;
    launch!(gpu, "sums", &function, grid, address(x.tensor())?, address(&partial)?, n)?;
    let y = total(&gpu, &partial, 1.0)?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let (slot, shape, dtype) = (x.slot(), x.tensor().shape().clone(), x.tensor().dtype());
    Ok(tape.record(y, move |dy, flow| {
        let dx = flow.take(&gpu, slot, &shape, dtype)?;
        let (function, flag) = (kernel("fill", &dx.tensor)?, dx.flag());
        let (to, value) = (address(&dx.tensor)?, address(dy.tensor())?);
        launch!(gpu, "sums", &function, elements(n), to, value, n, flag)?;
        flow.put(slot, dx);
        Ok(())
    }))
}

/// A place for partial sums of `n` elements, and the launch that makes them.
pub(super) fn partial_sums(gpu: &Gpu, n: usize) -> Result<(Tensor, Grid)> {
    let count = parts(n, 8192, 1024);
    Ok((gpu.empty(count, DType::F32)?, Grid { blocks: (count, 1, 1), threads: 256, shared: 0 }))
}

/// `scale` times the sum of partial sums, a scalar.
pub(super) fn total(gpu: &Gpu, partial: &Tensor, scale: f32) -> Result<Tensor> {
    let y = gpu.empty((), DType::F32)?;
    let (grid, count) = (Grid { blocks: (1, 1, 1), threads: 256, shared: 0 }, int(partial.elem_count())?);
    launch!(gpu, "sums", "total_f32", grid, address(partial)?, address(&y)?, count, scale)?;
    Ok(y)
}
