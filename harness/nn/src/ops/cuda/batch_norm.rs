//! Batch norm: see `ops/batch_norm.rs`. Moments are float32 and stay on the device.

use candle_core::{DType, Result, Tensor};

use super::device::{Gpu, Grid, address, int, launch};
use super::elementwise::{float, scale};
use super::{elements, kernel, same_type, sum_parts};
use crate::ops::Moments;
use crate::ops::batch_norm::{check_columns, matrix};
use crate::tape::{Destination, Value};

const MODULE: &str = "batch_norm";

/// Columns of a block.
const COLUMNS: usize = 32;

/// Least rows of a block, and most blocks side by side for the same columns (our choice).
const ROWS: usize = 64;
const MOST: usize = 256;

/// How rows are cut into parts for sums by column: rows of a part, parts, and the launch.
fn cut(rows: usize, width: usize) -> (usize, usize, Grid) {
    let size = rows.div_ceil(MOST).max(ROWS);
    let count = rows.div_ceil(size);
    (size, count, Grid { blocks: (width.div_ceil(COLUMNS), count, 1), threads: 256, shared: 0 })
}

pub(crate) fn column_moments(x: &Value) -> Result<Moments> {
    let (rows, width) = matrix(x.tensor())?;
    let gpu = Gpu::of(x.tensor())?;
    let (size, count, grid) = cut(rows, width);
    let parts = gpu.empty((count, 2, width), DType::F32)?;
    let (function, from) = (kernel("batch_norm_moments", x.tensor())?, address(x.tensor())?);
    launch!(gpu, MODULE, &function, grid, from, address(&parts)?, rows, int(size)?, int(width)?)?;
    let (mean, variance) = (gpu.empty(width, DType::F32)?, gpu.empty(width, DType::F32)?);
    launch!(
        gpu,
        MODULE,
        "batch_norm_join_f32",
        Grid { blocks: (width.div_ceil(COLUMNS), 1, 1), threads: 256, shared: 0 },
        address(&parts)?,
        address(&mean)?,
        address(&variance)?,
        rows,
        int(size)?,
        int(count)?,
        int(width)?,
    )?;
    Ok(Moments { mean, variance, count: rows })
}

/// `to = kept to + factor from`.
pub(crate) fn mix(to: &Tensor, kept: f64, from: &Tensor, factor: f64) -> Result<()> {
    let gpu = Gpu::of(to)?;
    let into = |accumulate| Destination { tensor: to.clone(), accumulate };
    scale(&gpu, to, &into(false), kept as f32, None)?;
    scale(&gpu, from, &into(true), factor as f32, None)
}

pub(crate) fn batch_norm(
    x: &Value,
    moments: &Moments,
    own: bool,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Value> {
    let (rows, width) = check_columns(x.tensor(), moments, weight, bias)?;
    same_type("batch_norm", x.tensor(), &[weight, bias])?;
    let gpu = Gpu::of(x.tensor())?;
    // running moments change before the backward pass; what this pass takes of them does not
    let kept = gpu.empty((2, width), DType::F32)?;
    let grid = Grid { blocks: (width.div_ceil(256), 1, 1), threads: 256, shared: 0 };
    let (mean, variance) = (float(&gpu, &moments.mean)?, float(&gpu, &moments.variance)?);
    let (mean, variance, to) = (address(&mean)?, address(&variance)?, address(&kept)?);
    launch!(gpu, MODULE, "batch_norm_keep_f32", grid, mean, variance, to, int(width)?, eps as f32)?;
    let y = gpu.empty(x.tensor().shape(), x.tensor().dtype())?;
    launch!(
        gpu,
        MODULE,
        &kernel("batch_norm_forward", &y)?,
        elements(rows * width),
        address(x.tensor())?,
        address(&kept)?,
        address(weight)?,
        address(bias)?,
        address(&y)?,
        rows,
        int(width)?,
    )?;
    let Some(tape) = Value::recording(&[x], &[weight, bias]) else { return Ok(x.unrecorded(y)) };
    let (slot, x, weight, bias) = (x.slot(), x.tensor().clone(), weight.clone(), bias.clone());
    Ok(tape.record(y, move |dy, flow| {
        let (size, count, grid) = cut(rows, width);
        let parts = gpu.empty((count, 2, width), DType::F32)?;
        let (dy, sums) = (address(dy.tensor())?, gpu.empty((2, width), DType::F32)?);
        let function = kernel("batch_norm_backward_sums", &x)?;
        let (from, moments, to) = (address(&x)?, address(&kept)?, address(&parts)?);
        launch!(gpu, MODULE, &function, grid, dy, from, moments, to, rows, int(size)?, int(width)?)?;
        sum_parts(&gpu, &parts, &Destination { tensor: sums.clone(), accumulate: false })?;
        for (i, parameter) in [&weight, &bias].into_iter().enumerate() {
            if let Some(to) = flow.parameter(parameter)? {
                scale(&gpu, &sums.narrow(0, i, 1)?, &to, 1.0, None)?;
            }
        }
        if slot.is_some() {
            let dx = flow.take(&gpu, slot, x.shape(), x.dtype())?;
            launch!(
                gpu,
                MODULE,
                &kernel("batch_norm_backward", &x)?,
                elements(rows * width),
                dy,
                from,
                moments,
                address(&weight)?,
                address(&sums)?,
                address(&dx.tensor)?,
                rows,
                int(width)?,
                if own { 1.0 / rows as f32 } else { 0.0 },
                dx.flag(),
            )?;
            flow.put(slot, dx);
        }
        Ok(())
    }))
}
