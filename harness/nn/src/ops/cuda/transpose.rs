//! `[batch, a, b]` to `[batch, b, a]`: see `ops/transpose.rs`.

use candle_core::{Result, Tensor};

use super::device::{Gpu, Grid, address, int, launch};
use super::kernel;
use crate::tape::{Grad, Value};

pub(crate) fn transpose(x: &Value) -> Result<Value> {
    let gpu = Gpu::of(x.tensor())?;
    let y = swapped(&gpu, x.tensor())?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let slot = x.slot();
    Ok(tape.record(y, move |dy, flow| flow.send(slot, Grad::new(swapped(&gpu, dy.tensor())?))))
}

/// The last two of three dimensions swapped.
fn swapped(gpu: &Gpu, x: &Tensor) -> Result<Tensor> {
    let (batch, rows, cols) = x.dims3()?;
    let y = gpu.empty((batch, cols, rows), x.dtype())?;
    let grid = Grid { blocks: (cols.div_ceil(32), rows.div_ceil(32), batch), threads: 256, shared: 0 };
    let (function, from, to) = (kernel("transpose", x)?, address(x)?, address(&y)?);
    launch!(gpu, "elementwise", &function, grid, from, to, int(rows)?, int(cols)?)?;
    Ok(y)
}
