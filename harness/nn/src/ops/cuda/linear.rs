//! `y = x w^T + b`: see `ops/linear.rs`.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Address, Gpu, Grid, address, int, launch};
use super::gemm::{matmul_nn, matmul_nt, matmul_tn};
use super::{elements, kernel, parts, same_type, sum_parts};
use crate::tape::{Destination, Value};

pub(crate) fn linear(x: &Value, weight: &Tensor, bias: Option<&Tensor>) -> Result<Value> {
    let (o, k) = weight.dims2()?;
    let mut dims = x.tensor().dims().to_vec();
    if dims.last() != Some(&k) {
        bail!("linear: input {dims:?} for a weight [{o}, {k}]");
    }
    let weights: Vec<&Tensor> = std::iter::once(weight).chain(bias).collect();
    same_type("linear", x.tensor(), &weights)?;
    let gpu = Gpu::of(x.tensor())?;
    let n = x.tensor().elem_count() / k;
    if let Some(last) = dims.last_mut() {
        *last = o;
    }
    let size = (n, o, k);
    let y = gpu.empty(dims, x.tensor().dtype())?;
    matmul_nt(&gpu, &y, false, x.tensor(), weight, size)?;
    if let Some(bias) = bias {
        add_bias(&gpu, &y, bias, n, o)?;
    }
    let Some(tape) = Value::recording(&[x], &weights) else { return Ok(x.unrecorded(y)) };
    let (slot, shape, weight, bias) = (x.slot(), x.tensor().shape().clone(), weight.clone(), bias.cloned());
    let x = weight.is_variable().then(|| x.tensor().clone());
    Ok(tape.record(y, move |dy, flow| {
        let dy = dy.tensor();
        if let Some((x, dw)) = x.as_ref().zip(flow.parameter(&weight)?) {
            matmul_tn(&gpu, &dw.tensor, dw.accumulate, dy, x, size)?;
        }
        if let Some(db) = bias.as_ref().map_or(Ok(None), |bias| flow.parameter(bias))? {
            sum_rows(&gpu, dy, &db, n, o)?;
        }
        if slot.is_some() {
            let dx = flow.take(&gpu, slot, &shape, weight.dtype())?;
            matmul_nn(&gpu, &dx.tensor, dx.accumulate, dy, &weight, size)?;
            flow.put(slot, dx);
        }
        Ok(())
    }))
}

/// `y += bias`, row by row.
pub(super) fn add_bias(gpu: &Gpu, y: &Tensor, bias: &Tensor, rows: usize, width: usize) -> Result<()> {
    let grid = elements(rows * width);
    let (function, y, bias) = (kernel("bias_activation_forward", y)?, address(y)?, address(bias)?);
    launch!(gpu, "bias_activation", &function, grid, y, bias, Address::NULL, y, rows, int(width)?, 0)
}

/// `to[width] (+)= sum over rows of dy[rows, width]`.
pub(super) fn sum_rows(gpu: &Gpu, dy: &Tensor, to: &Destination, rows: usize, width: usize) -> Result<()> {
    let partial = parts(rows, 64, 128);
    let columns = if dy.dtype() == DType::F32 { 128 } else { 256 };
    let grid = Grid { blocks: (width.div_ceil(columns), partial, 1), threads: 256, shared: 0 };
    let sums = gpu.empty((partial, width), DType::F32)?;
    let (function, width) = (kernel("bias_activation_backward", dy)?, int(width)?);
    let (dy, partial, null) = (address(dy)?, address(&sums)?, Address::NULL);
    launch!(gpu, "bias_activation", &function, grid, dy, null, null, partial, rows, width, 0)?;
    sum_parts(gpu, &sums, to)
}
