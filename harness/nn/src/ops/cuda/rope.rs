//! Rotary position embedding: see `ops/rope.rs`.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda::DeviceId;
use candle_core::{Result, Tensor, bail};

use super::device::{Address, Gpu, address, int, launch};
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
    let (_, t, width) = x.tensor().dims3()?;
    let head_dim = table.head_dim();
    if head_dim == 0 || width % head_dim != 0 {
        bail!("rope: width {width} is no multiple of the table's head_dim {head_dim}");
    }
    table.check(start, t, head_dim)?;
    let gpu = Gpu::of(x.tensor())?;
    let table = table.clone();
    let turned = move |x: &Tensor, sign: f32| {
        let y = gpu.empty(x.shape(), x.dtype())?;
        let rows = x.elem_count() / width.max(1);
        let (from, to) = ((address(x)?, width), (address(&y)?, width));
        turn(&gpu, &table, x, from, to, (rows, t, width / head_dim), start, sign)?;
        Ok::<_, candle_core::Error>(y)
    };
    let y = turned(x.tensor(), 1.0)?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let slot = x.slot();
    Ok(tape.record(y, move |dy, flow| {
        let dx = turned(dy.tensor(), -1.0)?;
        flow.send(slot, Grad::new(dx))
    }))
}

/// Turns `heads` heads of `rows` rows by `sign` times the angles of their positions, which are `start` + row % `t`.
/// `from` and `to` are the first element and the distance between rows, of numbers of `like`'s type; they may be one.
#[allow(clippy::too_many_arguments, reason = "the kernel's arguments")]
pub(super) fn turn(
    gpu: &Gpu,
    table: &RopeTable,
    like: &Tensor,
    from: (Address, usize),
    to: (Address, usize),
    (rows, t, heads): (usize, usize, usize),
    start: usize,
    sign: f32,
) -> Result<()> {
    let (cos, sin) = table.on_device(|device, cos, sin| device.on(gpu, cos, sin))?;
    launch!(
        gpu,
        "rope",
        &kernel("rope", like)?,
        elements(rows * heads * table.head_dim() / 2),
        from.0,
        address(&cos)?,
        address(&sin)?,
        to.0,
        rows,
        int(t)?,
        int(heads)?,
        int(table.head_dim())?,
        from.1,
        to.1,
        int(start)?,
        sign,
    )
}
