//! Mean over the first positions of every sequence: see `ops/pool.rs`.

use candle_core::{DType, Result};

use super::device::{Gpu, Grid, address, int, launch};
use super::{elements, kernel, parts};
use crate::ops::pool::check_lengths;
use crate::tape::Value;

const MODULE: &str = "pool";

pub(crate) fn mean_of_first(x: &Value, lengths: &[usize]) -> Result<Value> {
    let (batch, t, width) = check_lengths(x.tensor(), lengths)?;
    let gpu = Gpu::of(x.tensor())?;
    let (shape, dtype) = (x.tensor().shape().clone(), x.tensor().dtype());
    let words: Vec<u32> = lengths.iter().map(|n| *n as u32).collect();
    let lengths = gpu.empty(batch, DType::U32)?;
    gpu.write(address(&lengths)?, &words)?;
    let count = parts(t, 512, 64);
    let sums = gpu.empty((count, batch, width), DType::F32)?;
    let grid = Grid { blocks: (width.div_ceil(32), count, batch), threads: 256, shared: 0 };
    let (from, to, n) = (address(x.tensor())?, address(&sums)?, address(&lengths)?);
    let (steps, size) = (int(t)?, int(t.div_ceil(count))?);
    launch!(gpu, MODULE, &kernel("pool_sums", x.tensor())?, grid, from, n, to, steps, size, int(width)?)?;
    let y = gpu.empty((batch, width), dtype)?;
    let (grid, function, result) = (elements(batch * width), kernel("pool_mean", &y)?, address(&y)?);
    launch!(gpu, MODULE, &function, grid, to, n, result, int(count)?, batch, int(width)?)?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let slot = x.slot();
    Ok(tape.record(y, move |dy, flow| {
        let dx = flow.take(&gpu, slot, &shape, dtype)?;
        let (function, flag, n) = (kernel("pool_backward", &dx.tensor)?, dx.flag(), address(&lengths)?);
        let (from, to, grid) = (address(dy.tensor())?, address(&dx.tensor)?, elements(batch * t * width));
        launch!(gpu, MODULE, &function, grid, from, n, to, batch, steps, int(width)?, flag)?;
        flow.put(slot, dx);
        Ok(())
    }))
}
