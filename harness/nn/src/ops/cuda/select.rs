//! One position of every sequence: see `ops/select.rs`.

use candle_core::{Result, Tensor, bail};

use super::device::{Gpu, address, int, launch};
use super::{elements, embedding, kernel};
use crate::tape::Value;

pub(crate) fn select(x: &Value, positions: &[usize]) -> Result<Value> {
    let (batch, t, width) = x.tensor().dims3()?;
    if positions.len() != batch || positions.iter().any(|p| *p >= t) {
        bail!("select_positions: {positions:?} of [{batch}, {t}, {width}]");
    }
    let gpu = Gpu::of(x.tensor())?;
    let rows: Vec<u32> = positions.iter().enumerate().map(|(b, p)| (b * t + p) as u32).collect();
    let rows = Tensor::from_vec(rows, batch, &gpu.device())?;
    let y = embedding::rows(&gpu, &x.tensor().reshape((batch * t, width))?, &rows, vec![batch, width])?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let (slot, shape) = (x.slot(), x.tensor().shape().clone());
    Ok(tape.record(y, move |dy, flow| {
        let dx = flow.take(&gpu, slot, &shape, dy.tensor().dtype())?;
        if !dx.accumulate {
            gpu.clear(&dx.tensor)?;
        }
        let scatter = kernel("scatter_rows", dy.tensor())?;
        let (from, to) = (address(dy.tensor())?, address(&dx.tensor)?);
        let grid = elements(batch * width);
        launch!(gpu, "embedding", &scatter, grid, from, address(&rows)?, to, batch, int(width)?)?;
        flow.put(slot, dx);
        Ok(())
    }))
}
