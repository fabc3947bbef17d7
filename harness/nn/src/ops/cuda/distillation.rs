//! Divergence from a teacher: see `ops/distillation.rs`. The loss is float32.

use candle_core::{DType, Result, Tensor};

use super::device::{Address, Gpu, Grid, address, int, launch};
use super::elementwise::scale;
use super::kernel;
use super::sum::total;
use crate::ops::distillation::tokens;
use crate::tape::Value;

pub(crate) fn distillation(student: &Value, teacher: &Tensor, top_p: Option<f64>) -> Result<Value> {
    let (rows, vocab) = tokens(student.tensor())?;
    let (shape, dtype) = (student.tensor().shape().clone(), student.tensor().dtype());
    let gpu = Gpu::of(student.tensor())?;
    let tape = Value::recording(&[student], &[]);
    let gradient = tape.is_some().then(|| gpu.empty(&shape, dtype)).transpose()?;
    let losses = gpu.empty(rows, DType::F32)?;
    launch!(
        gpu,
        "distillation",
        &kernel("distillation", student.tensor())?,
        Grid { blocks: (rows, 1, 1), threads: 256, shared: 0 },
        address(student.tensor())?,
        address(teacher)?,
        gradient.as_ref().map_or(Ok(Address::NULL), address)?,
        address(&losses)?,
        int(vocab)?,
        top_p.unwrap_or(1.0) as f32,
        1.0 / rows as f32,
    )?;
    let loss = total(&gpu, &losses, 1.0 / rows as f32)?;
    let Some((tape, gradient)) = tape.zip(gradient) else { return Ok(student.unrecorded(loss)) };
    let slot = student.slot();
    Ok(tape.record(loss, move |dy, flow| {
        let dx = flow.take(&gpu, slot, &shape, dtype)?;
        scale(&gpu, &gradient, &dx, 1.0, Some(dy.tensor()))?;
        flow.put(slot, dx);
        Ok(())
    }))
}
