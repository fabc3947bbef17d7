//! What two documents have in common: see `ops/pair.rs`.

use candle_core::Result;

use super::device::{Gpu, address, int, launch};
use super::{elements, kernel};
use crate::ops::pair::check_pairs;
use crate::tape::Value;

pub(crate) fn pair_features(x: &Value) -> Result<Value> {
    let (pairs, width) = check_pairs(x.tensor())?;
    let gpu = Gpu::of(x.tensor())?;
    let grid = elements(pairs * width);
    let y = gpu.empty((pairs, 4 * width), x.tensor().dtype())?;
    let (forward, from, to) = (kernel("pair_forward", &y)?, address(x.tensor())?, address(&y)?);
    launch!(gpu, "pair", &forward, grid, from, to, pairs, int(width)?)?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let (slot, x) = (x.slot(), x.tensor().clone());
    Ok(tape.record(y, move |dy, flow| {
        let dx = flow.take(&gpu, slot, x.shape(), x.dtype())?;
        let (backward, flag) = (kernel("pair_backward", &x)?, dx.flag());
        let (dy, from, to) = (address(dy.tensor())?, address(&x)?, address(&dx.tensor)?);
        launch!(gpu, "pair", &backward, grid, dy, from, to, pairs, int(width)?, flag)?;
        flow.put(slot, dx);
        Ok(())
    }))
}
