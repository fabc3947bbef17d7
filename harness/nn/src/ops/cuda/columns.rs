//! Some columns of the last dimension: see `ops/columns.rs`.

use std::ops::Range;

use candle_core::Result;

use super::device::{Address, Gpu, address, int, launch};
use super::{elements, kernel};
use crate::ops::columns::part_of;
use crate::tape::Value;

pub(crate) fn columns(x: &Value, range: Range<usize>) -> Result<Value> {
    let (shape, dtype) = (x.tensor().shape().clone(), x.tensor().dtype());
    let (dims, width) = part_of(&shape, &range)?;
    let gpu = Gpu::of(x.tensor())?;
    let (part, rows) = (range.len(), shape.elem_count() / width);
    let y = gpu.empty(dims, dtype)?;
    let function = kernel("copy_columns", &y)?;
    let copy = move |gpu: &Gpu, from: Address, to: Address, strides: (usize, usize), flag: i32| {
        let grid = elements(rows * part);
        launch!(gpu, "elementwise", &function, grid, from, to, rows, int(part)?, strides.0, strides.1, flag)
    };
    let first = range.start;
    let beginning = move |address: Address| address.offset(first, dtype.size_in_bytes());
    copy(&gpu, beginning(address(x.tensor())?), address(&y)?, (width, part), 0)?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let slot = x.slot();
    Ok(tape.record(y, move |dy, flow| {
        let dx = flow.take(&gpu, slot, &shape, dtype)?;
        if !dx.accumulate {
            gpu.clear(&dx.tensor)?;
        }
        copy(&gpu, address(dy.tensor())?, beginning(address(&dx.tensor)?), (part, width), dx.flag())?;
        flow.put(slot, dx);
        Ok(())
    }))
}
