//! Dropout: see `ops/dropout.rs`. The step's key lies on the device, so that a step is the same calls whatever
//! its number.

use candle_core::{Result, Tensor};

use super::device::{Address, Gpu, address, launch};
use super::{elements, kernel};
use crate::ops::Dropout;
use crate::tape::{Grad, Value};

pub(crate) fn dropout(x: &Value, p: f64, masks: &Dropout) -> Result<Value> {
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

fn apply(gpu: &Gpu, x: &Tensor, p: f64, key: &Tensor, call: u64) -> Result<Tensor> {
    let n = x.elem_count();
    let y = gpu.empty(x.shape(), x.dtype())?;
    launch!(
        gpu,
        "dropout",
        &kernel("dropout", x)?,
        elements(n),
        address(x)?,
        Address::NULL,
        address(&y)?,
        n,
        (p * 4_294_967_296.0) as u32,
        (1.0 / (1.0 - p)) as f32,
        address(key)?,
        call,
    )?;
    Ok(y)
}
