//! Windows over time: see `ops/windows.rs`.

use candle_core::{Result, Tensor};

use super::device::{Gpu, address, int, launch};
use super::{elements, kernel};
use crate::ops::windows::Size;
use crate::tape::{Destination, Value};

pub(crate) fn windows(x: &Value, size: Size) -> Result<Value> {
    let (shape, dtype) = (x.tensor().shape().clone(), x.tensor().dtype());
    let gpu = Gpu::of(x.tensor())?;
    let y = Destination { tensor: gpu.empty(size.of_windows().to_vec(), dtype)?, accumulate: false };
    cut(&gpu, x.tensor(), &y, size)?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y.tensor)) };
    let slot = x.slot();
    Ok(tape.record(y.tensor, move |dy, flow| {
        let dx = flow.take(&gpu, slot, &shape, dtype)?;
        add_up(&gpu, dy.tensor(), &dx, size)?;
        flow.put(slot, dx);
        Ok(())
    }))
}

pub(crate) fn joined(y: &Value, size: Size) -> Result<Value> {
    let (shape, dtype) = (y.tensor().shape().clone(), y.tensor().dtype());
    let gpu = Gpu::of(y.tensor())?;
    let x = Destination { tensor: gpu.empty(size.of_sequences().to_vec(), dtype)?, accumulate: false };
    add_up(&gpu, y.tensor(), &x, size)?;
    let Some(tape) = Value::recording(&[y], &[]) else { return Ok(y.unrecorded(x.tensor)) };
    let slot = y.slot();
    Ok(tape.record(x.tensor, move |dx, flow| {
        let dy = flow.take(&gpu, slot, &shape, dtype)?;
        cut(&gpu, dx.tensor(), &dy, size)?;
        flow.put(slot, dy);
        Ok(())
    }))
}

/// Copies sequences into windows.
fn cut(gpu: &Gpu, x: &Tensor, y: &Destination, size: Size) -> Result<()> {
    copy(gpu, "windows_cut", x, y, size.batch * size.pieces(), size)
}

/// Adds windows up to sequences.
fn add_up(gpu: &Gpu, y: &Tensor, x: &Destination, size: Size) -> Result<()> {
    copy(gpu, "windows_sum", y, x, size.batch, size)
}

/// Launches one of the two, whose results are `count` windows or sequences.
fn copy(gpu: &Gpu, stem: &str, from: &Tensor, to: &Destination, count: usize, size: Size) -> Result<()> {
    let (function, grid) = (kernel(stem, from)?, elements(to.tensor.elem_count()));
    let [pieces, steps, l] = [size.pieces(), size.steps(), size.l].map(int);
    let [length, before, width] = [size.length, size.before, size.width].map(int);
    let (flag, from, to) = (to.flag(), address(from)?, address(&to.tensor)?);
    launch!(
        gpu, "windows", &function, grid, from, to, count, pieces?, steps?, l?, length?, before?, width?, flag
    )
}
