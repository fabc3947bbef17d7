//! Rotary position embedding: see `ops/rope.rs`.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda::DeviceId;
use candle_core::{Result, Tensor};

use super::device::{Gpu, address, int, launch};
use super::{elements, kernel};
use crate::ops::RopeTable;
use crate::tape::{Grad, Value};

/// A table's cosines and sines in float32 on the devices it has been used on, `[positions, head_dim / 2]` each.
#[derive(Clone, Default)]
pub(crate) struct Table(Arc<Mutex<Vec<(DeviceId, Tensor, Tensor)>>>);

impl Table {
    fn on(&self, gpu: &Gpu, cos: &[f64], sin: &[f64]) -> Result<(Tensor, Tensor)> {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, cos, sin)) = made.iter().find(|(id, ..)| *id == gpu.id()) {
            return Ok((cos.clone(), sin.clone()));
        }
        let upload =
            |v: &[f64]| Tensor::from_vec(v.iter().map(|x| *x as f32).collect(), v.len(), &gpu.device());
        let (cos, sin) = (upload(cos)?, upload(sin)?);
        made.push((gpu.id(), cos.clone(), sin.clone()));
        Ok((cos, sin))
    }
}

pub(crate) fn rope(x: &Value, table: &RopeTable, start: usize) -> Result<Value> {
    let (batch, t, width) = x.tensor().dims3()?;
    table.check(batch, t, width, start)?;
    let gpu = Gpu::of(x.tensor())?;
    let (cos, sin) = table.on_device(|device, cos, sin| device.on(&gpu, cos, sin))?;
    let turn = Turn { cos, sin, t, head_dim: table.head_dim(), start };
    let y = turn.apply(&gpu, x.tensor(), 1.0)?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let slot = x.slot();
    Ok(tape.record(y, move |dy, flow| {
        let dx = turn.apply(&gpu, dy.tensor(), -1.0)?;
        flow.send(slot, Grad::new(dx))
    }))
}

/// The positions of one call.
struct Turn {
    cos: Tensor,
    sin: Tensor,
    t: usize,
    head_dim: usize,
    start: usize,
}

impl Turn {
    /// Turns by `sign` times the angle.
    fn apply(&self, gpu: &Gpu, x: &Tensor, sign: f32) -> Result<Tensor> {
        let (batch, _, width) = x.dims3()?;
        let y = gpu.empty(x.shape(), x.dtype())?;
        launch!(
            gpu,
            "rope",
            &kernel("rope", x)?,
            elements(x.elem_count() / 2),
            address(x)?,
            address(&self.cos)?,
            address(&self.sin)?,
            address(&y)?,
            batch * self.t,
            int(self.t)?,
            int(width / self.head_dim)?,
            int(self.head_dim)?,
            width,
            width,
            int(self.start)?,
            sign,
        )?;
        Ok(y)
    }
}
