//! Dropout: see `ops/dropout.rs`. The step's key lies on the device, so that a step is the same calls whatever
//! its number.

use candle_core::{Result, Tensor};

use super::device::{Address, Gpu, address, int, launch};
use super::{elements, kernel};
use crate::ops::Dropout;
use crate::tape::{Grad, Value};

pub(crate) fn dropout(x: &Value, p: f64, masks: &Dropout) -> Result<Value> {
    record(x, p, masks, apply)
}

pub(crate) fn tied_dropout(x: &Value, p: f64, masks: &Dropout) -> Result<Value> {
    record(x, p, masks, apply_tied)
}

/// `(gpu, x, p, key, call)`
type Apply = fn(&Gpu, &Tensor, f64, &Tensor, u64) -> Result<Tensor>;

fn record(x: &Value, p: f64, masks: &Dropout, apply: Apply) -> Result<Value> {
    let gpu = Gpu::of(x.tensor())?;
    let (key, call) = (masks.device_key(&gpu)?, masks.next_call());
    let y = apply(&gpu, x.tensor(), p, &key, call)?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let slot = x.slot();
    Ok(tape.record(y, move |dy, flow| {
        let dx = apply(&gpu, dy.tensor(), p, &key, call)?;
        flow.send(slot, Grad::new(dx))
    }))
}

/// What an element's number is compared with, and the factor of those that stay.
fn threshold_and_scale(p: f64) -> (u32, f32) {
    ((p * 4_294_967_296.0) as u32, (1.0 / (1.0 - p)) as f32)
}

fn apply(gpu: &Gpu, x: &Tensor, p: f64, key: &Tensor, call: u64) -> Result<Tensor> {
    let n = x.elem_count();
    let y = gpu.empty(x.shape(), x.dtype())?;
    let (threshold, scale) = threshold_and_scale(p);
    let (function, grid, from, to) = (kernel("dropout", x)?, elements(n), address(x)?, address(&y)?);
    let key = address(key)?;
    launch!(gpu, "dropout", &function, grid, from, Address::NULL, to, n, threshold, scale, key, call)?;
    Ok(y)
}

fn apply_tied(gpu: &Gpu, x: &Tensor, p: f64, key: &Tensor, call: u64) -> Result<Tensor> {
    let (batch, l, width) = x.dims3()?;
    let y = gpu.empty(x.shape(), x.dtype())?;
    let (threshold, scale) = threshold_and_scale(p);
    let (function, grid, from, to) =
        (kernel("tied_dropout", x)?, elements(x.elem_count()), address(x)?, address(&y)?);
    let (rows, steps, width, key) = (batch * l, int(l)?, int(width)?, address(key)?);
    launch!(gpu, "dropout", &function, grid, from, to, rows, steps, width, threshold, scale, key, call)?;
    Ok(y)
}
