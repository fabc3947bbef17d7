//! A constant factor: see `ops/scale.rs`.

use candle_core::{Result, Tensor};

use super::device::Gpu;
use super::elementwise;
use crate::tape::{Destination, Grad, Value};

pub(crate) fn scale(x: &Value, factor: f64) -> Result<Value> {
    let gpu = Gpu::of(x.tensor())?;
    let times = move |x: &Tensor| {
        let to = Destination { tensor: gpu.empty(x.shape(), x.dtype())?, accumulate: false };
        elementwise::scale(&gpu, x, &to, factor as f32, None)?;
        Ok::<_, candle_core::Error>(to.tensor)
    };
    let y = times(x.tensor())?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let slot = x.slot();
    Ok(tape.record(y, move |dy, flow| flow.send(slot, Grad::new(times(dy.tensor())?))))
}
