//! Root-mean-square norm: see `ops/rms_norm.rs`.

use candle_core::{DType, Result, Tensor};

use super::device::{Address, Gpu, Grid, address, int, launch};
use super::{kernel, parts, same_type, sum_parts};
use crate::ops::linear::check_width;
use crate::tape::Value;

pub(crate) fn rms_norm(x: &Value, weight: &Tensor, eps: f64) -> Result<Value> {
    let width = weight.dims1()?;
    check_width("rms_norm", x.tensor().shape(), width)?;
    same_type("rms_norm", x.tensor(), &[weight])?;
    let gpu = Gpu::of(x.tensor())?;
    let rows = x.tensor().elem_count() / width;
    let y = gpu.empty(x.tensor().shape(), x.tensor().dtype())?;
    let tape = Value::recording(&[x], &[weight]);
    let rstd = tape.is_some().then(|| gpu.empty(rows, DType::F32)).transpose()?;
    launch!(
        gpu,
        "rms_norm",
        &kernel("rms_norm_forward", &y)?,
        Grid { blocks: (rows.div_ceil(8), 1, 1), threads: 256, shared: 0 },
        address(x.tensor())?,
        address(weight)?,
        address(&y)?,
        rstd.as_ref().map_or(Ok(Address::NULL), address)?,
        rows,
        int(width)?,
        eps as f32,
    )?;
    let Some((tape, rstd)) = tape.zip(rstd) else { return Ok(x.unrecorded(y)) };
    let (slot, x, weight) = (x.slot(), x.tensor().clone(), weight.clone());
    Ok(tape.record(y, move |dy, flow| {
        let dw = flow.parameter(&weight)?;
        let count = parts(rows, 8, 256);
        let partial = dw.is_some().then(|| gpu.empty((count, width), DType::F32)).transpose()?;
        let dx = flow.take(&gpu, slot, x.shape(), x.dtype())?;
        launch!(
            gpu,
            "rms_norm",
            &kernel("rms_norm_backward", &x)?,
            Grid { blocks: (count, width.div_ceil(2048), 1), threads: 256, shared: 0 },
            address(dy.tensor())?,
            address(&x)?,
            address(&weight)?,
            address(&rstd)?,
            address(&dx.tensor)?,
            partial.as_ref().map_or(Ok(Address::NULL), address)?,
            rows,
            int(width)?,
            dx.flag(),
        )?;
        flow.put(slot, dx);
        match partial.zip(dw) {
            Some((partial, dw)) => sum_parts(&gpu, &partial, &dw),
            None => Ok(()),
        }
    }))
}
