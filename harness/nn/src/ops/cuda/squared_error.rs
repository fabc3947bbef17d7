//! Mean squared error: see `ops/squared_error.rs`. The loss is float32.

use candle_core::{Result, Tensor, bail};

use super::device::{Gpu, address, launch};
use super::sum::{partial_sums, total};
use super::{elements, kernel, same_type};
use crate::tape::Value;

pub(crate) fn mean_squared_error(x: &Value, targets: &Tensor) -> Result<Value> {
    if x.tensor().elem_count() != targets.elem_count() {
        bail!("mean_squared_error: {:?} against {:?}", x.tensor().shape(), targets.shape());
    }
    same_type("mean_squared_error", x.tensor(), &[targets])?;
    let gpu = Gpu::of(x.tensor())?;
    let n = x.tensor().elem_count();
    let (partial, grid) = partial_sums(&gpu, n)?;
    let forward = kernel("squared_error_forward", x.tensor())?;
    let (from, to) = (address(x.tensor())?, address(&partial)?);
    launch!(gpu, "sums", &forward, grid, from, address(targets)?, to, n)?;
    let loss = total(&gpu, &partial, 1.0 / n as f32)?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(loss)) };
    let (slot, x, targets) = (x.slot(), x.tensor().clone(), targets.clone());
    Ok(tape.record(loss, move |dy, flow| {
        let dx = flow.take(&gpu, slot, x.shape(), x.dtype())?;
        let (backward, flag) = (kernel("squared_error_backward", &x)?, dx.flag());
        let (from, to, factor) = (address(dy.tensor())?, address(&dx.tensor)?, 2.0 / n as f32);
        let (x, targets) = (address(&x)?, address(&targets)?);
        launch!(gpu, "sums", &backward, elements(n), x, targets, from, to, n, factor, flag)?;
        flow.put(slot, dx);
        Ok(())
    }))
}
