//! Sums: see `ops/add.rs`.

use candle_core::{Result, Tensor, bail};

use super::device::{Address, Gpu, address, int, launch};
use super::{elements, elementwise, kernel, same_type};
use crate::ops::add::sizes;
use crate::tape::Value;

pub(crate) fn add(a: &Value, b: &Value) -> Result<Value> {
    if a.tensor().shape() != b.tensor().shape() {
        bail!("add: {:?} and {:?}", a.tensor().shape(), b.tensor().shape());
    }
    let gpu = Gpu::of(a.tensor())?;
    let y = gpu.empty(a.tensor().shape(), a.tensor().dtype())?;
    elementwise::add(&gpu, a.tensor(), b.tensor(), &y)?;
    let Some(tape) = Value::recording(&[a, b], &[]) else { return Ok(a.unrecorded(y)) };
    let (a, b) = (a.slot(), b.slot());
    Ok(tape.record(y, move |dy, flow| {
        flow.send(a, dy.clone())?;
        flow.send(b, dy)
    }))
}

pub(crate) fn add_positions_from(x: &Value, table: &Tensor, start: usize) -> Result<Value> {
    let (batch, t, width) = sizes(x.tensor(), table, start)?;
    same_type("add_positions", x.tensor(), &[table])?;
    let gpu = Gpu::of(x.tensor())?;
    let (n, count) = (t * width, int(batch)?);
    let y = gpu.empty(x.tensor().shape(), x.tensor().dtype())?;
    let forward = kernel("add_positions_forward", &y)?;
    let positions = move |table: &Tensor| -> Result<Address> {
        Ok(address(table)?.offset(start * width, table.dtype().size_in_bytes()))
    };
    let (from, part, to) = (address(x.tensor())?, positions(table)?, address(&y)?);
    launch!(gpu, "positions", &forward, elements(batch * n), from, part, to, count, n)?;
    let Some(tape) = Value::recording(&[x], &[table]) else { return Ok(x.unrecorded(y)) };
    let (slot, table) = (x.slot(), table.clone());
    Ok(tape.record(y, move |dy, flow| {
        if let Some(to) = flow.parameter(&table)? {
            // the kernel leaves positions outside the sequence alone
            if !to.accumulate && n < to.tensor.elem_count() {
                gpu.clear(&to.tensor)?;
            }
            let backward = kernel("add_positions_backward", dy.tensor())?;
            let (from, flag) = (address(dy.tensor())?, to.flag());
            launch!(gpu, "positions", &backward, elements(n), from, positions(&to.tensor)?, count, n, flag)?;
        }
        flow.send(slot, dy)
    }))
}
