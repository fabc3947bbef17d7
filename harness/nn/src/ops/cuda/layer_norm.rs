//! Layer norm: see `ops/layer_norm.rs`.

use candle_core::{DType, Result, Tensor};

use super::device::{Address, Gpu, Grid, address, int, launch};
use super::{kernel, parts, same_type, sum_parts};
use crate::ops::linear::check_width;
use crate::tape::Value;

pub(crate) fn layer_norm(x: &Value, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Value> {
    let width = weight.dims1()?;
    check_width("layer_norm", x.tensor().shape(), width)?;
    same_type("layer_norm", x.tensor(), &[weight, bias])?;
    let gpu = Gpu::of(x.tensor())?;
    let rows = x.tensor().elem_count() / width;
    let y = gpu.empty(x.tensor().shape(), x.tensor().dtype())?;
    let tape = Value::recording(&[x], &[weight, bias]);
    // mean and 1 / standard deviation of every row, kept for backward only
    let moments = tape.is_some().then(|| gpu.empty((2, rows), DType::F32)).transpose()?;
    let (mean, rstd) = halves(moments.as_ref(), rows)?;
    launch!(
        gpu,
        "layer_norm",
        &kernel("layer_norm_forward", &y)?,
        Grid { blocks: (rows.div_ceil(8), 1, 1), threads: 256, shared: 0 },
        address(x.tensor())?,
        address(weight)?,
        address(bias)?,
        address(&y)?,
        mean,
        rstd,
        rows,
        int(width)?,
        eps as f32,
    )?;
    let Some(tape) = tape else { return Ok(x.unrecorded(y)) };
    let (slot, x, weight, bias) = (x.slot(), x.tensor().clone(), weight.clone(), bias.clone());
    Ok(tape.record(y, move |dy, flow| {
        let (dw, db) = (flow.parameter(&weight)?, flow.parameter(&bias)?);
        let count = parts(rows, 8, 256);
        let partial = |wanted: bool| wanted.then(|| gpu.empty((count, width), DType::F32)).transpose();
        let (dw_parts, db_parts) = (partial(dw.is_some())?, partial(db.is_some())?);
        let pointer = |t: &Option<Tensor>| t.as_ref().map_or(Ok(Address::NULL), address);
        let dx = flow.take(&gpu, slot, x.shape(), x.dtype())?;
        let (mean, rstd) = halves(moments.as_ref(), rows)?;
        launch!(
            gpu,
            "layer_norm",
            &kernel("layer_norm_backward", &x)?,
            Grid { blocks: (count, width.div_ceil(2048), 1), threads: 256, shared: 0 },
            address(dy.tensor())?,
            address(&x)?,
            address(&weight)?,
            mean,
            rstd,
            address(&dx.tensor)?,
            pointer(&dw_parts)?,
            pointer(&db_parts)?,
            rows,
            int(width)?,
            dx.flag(),
        )?;
        flow.put(slot, dx);
        for (partial, to) in [(dw_parts, dw), (db_parts, db)] {
            if let Some((partial, to)) = partial.zip(to) {
                sum_parts(&gpu, &partial, &to)?;
            }
        }
        Ok(())
    }))
}

/// Addresses of the two rows of `[2, rows]`; null without.
fn halves(moments: Option<&Tensor>, rows: usize) -> Result<(Address, Address)> {
    let Some(moments) = moments else { return Ok((Address::NULL, Address::NULL)) };
    let mean = address(moments)?;
    Ok((mean, mean.offset(rows, size_of::<f32>())))
}
