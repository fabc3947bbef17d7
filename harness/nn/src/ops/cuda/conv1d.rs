//! Short causal convolutions over time: see `ops/conv1d.rs`. A dense one is a product with windows of the input,
//! written out for the product and not kept.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Address, Gpu, Grid, address, int, launch};
use super::gemm::{matmul_nn, matmul_nt, matmul_tn};
use super::linear::{add_bias, sum_rows};
use super::{elements, kernel, same_type, sum_parts};
use crate::ops::conv1d::Size;
use crate::tape::{Destination, Grad, Value};

/// Taps the channel-wise kernels hold in registers.
const TAPS: usize = 16;
/// Steps a block of the channel-wise kernels works on, and sums the weight's gradient over.
const STEPS: usize = 16;
const SUMMED: usize = 128;

pub(crate) fn causal_conv1d(x: &Value, weight: &Tensor, bias: Option<&Tensor>) -> Result<Value> {
    let size = Size::of(x.tensor(), weight, bias, false)?;
    let weights: Vec<&Tensor> = std::iter::once(weight).chain(bias).collect();
    same_type("causal_conv1d", x.tensor(), &weights)?;
    let Size { batch, l, from, into, taps } = size;
    let gpu = Gpu::of(x.tensor())?;
    let rows = batch * l;
    let product = (rows, into, from * taps);
    let y = gpu.empty((batch, l, into), x.tensor().dtype())?;
    matmul_nt(&gpu, &y, false, &windows(&gpu, x.tensor(), size)?, weight, product)?;
    if let Some(bias) = bias {
        add_bias(&gpu, &y, bias, rows, into)?;
    }
    let Some(tape) = Value::recording(&[x], &weights) else { return Ok(x.unrecorded(y)) };
    let (slot, x, weight, bias) = (x.slot(), x.tensor().clone(), weight.clone(), bias.cloned());
    Ok(tape.record(y, move |dy, flow| {
        let dy = dy.tensor();
        if let Some(db) = bias.as_ref().map_or(Ok(None), |bias| flow.parameter(bias))? {
            sum_rows(&gpu, dy, &db, rows, into)?;
        }
        if let Some(dw) = flow.parameter(&weight)? {
            matmul_tn(&gpu, &dw.tensor, dw.accumulate, dy, &windows(&gpu, &x, size)?, product)?;
        }
        if slot.is_none() {
            return Ok(());
        }
        let dx = flow.take(&gpu, slot, x.shape(), x.dtype())?;
        if taps == 1 {
            matmul_nn(&gpu, &dx.tensor, dx.accumulate, dy, &weight, product)?;
        } else {
            let gradient = gpu.empty((rows, from * taps), x.dtype())?;
            matmul_nn(&gpu, &gradient, false, dy, &weight, product)?;
            fold(&gpu, &gradient, &dx, size)?;
        }
        flow.put(slot, dx);
        Ok(())
    }))
}

/// The windows of x, `[batch * l, from * taps]`.
fn windows(gpu: &Gpu, x: &Tensor, Size { batch, l, from, taps, .. }: Size) -> Result<Tensor> {
    if taps == 1 {
        return Ok(x.clone());
    }
    let rows = batch * l;
    let windows = gpu.empty((rows, from * taps), x.dtype())?;
    let (grid, function) = (elements(windows.elem_count()), kernel("conv1d_unfold", x)?);
    let (x, to) = (address(x)?, address(&windows)?);
    launch!(gpu, "conv1d", &function, grid, x, to, rows, int(l)?, int(from)?, int(taps)?)?;
    Ok(windows)
}

/// The gradient of x from that of its windows.
fn fold(
    gpu: &Gpu,
    windows: &Tensor,
    to: &Destination,
    Size { batch, l, from, taps, .. }: Size,
) -> Result<()> {
    let rows = batch * l;
    let (grid, function) = (elements(rows * from), kernel("conv1d_fold", windows)?);
    let (windows, dx) = (address(windows)?, address(&to.tensor)?);
    launch!(gpu, "conv1d", &function, grid, windows, dx, rows, int(l)?, int(from)?, int(taps)?, to.flag())
}

pub(crate) fn depthwise_conv1d(
    x: &Value,
    weight: &Tensor,
    bias: Option<&Tensor>,
    silu: bool,
) -> Result<Value> {
    let Size { batch, l, from: channels, taps, .. } = Size::of(x.tensor(), weight, bias, true)?;
    if taps > TAPS {
        bail!("depthwise_conv1d: {taps} taps; on a GPU at most {TAPS}");
    }
    let weights: Vec<&Tensor> = std::iter::once(weight).chain(bias).collect();
    same_type("depthwise_conv1d", x.tensor(), &weights)?;
    let gpu = Gpu::of(x.tensor())?;
    let grid = move |steps: usize| Grid {
        blocks: (channels.div_ceil(128), l.div_ceil(steps), batch),
        threads: 128,
        shared: 0,
    };
    let sizes = (int(batch)?, int(l)?, int(channels)?, int(taps)?);
    let y = gpu.empty(x.tensor().shape(), x.tensor().dtype())?;
    launch!(
        gpu,
        "conv1d",
        &kernel("conv1d_forward", &y)?,
        grid(STEPS),
        address(x.tensor())?,
        address(weight)?,
        bias.map_or(Ok(Address::NULL), address)?,
        address(&y)?,
        sizes.0,
        sizes.1,
        sizes.2,
        sizes.3,
        i32::from(silu),
    )?;
    let Some(tape) = Value::recording(&[x], &weights) else { return Ok(x.unrecorded(y)) };
    let (slot, x, weight, bias) = (x.slot(), x.tensor().clone(), weight.clone(), bias.cloned());
    Ok(tape.record(y, move |dy, flow| {
        let mut dy = dy.tensor().clone();
        let (w, b) = (address(&weight)?, bias.as_ref().map_or(Ok(Address::NULL), address)?);
        let (n, l_, c, k) = sizes;
        if silu {
            let before = gpu.empty(x.shape(), x.dtype())?;
            let (function, from, to) =
                (kernel("conv1d_backward_silu", &x)?, address(&dy)?, address(&before)?);
            launch!(gpu, "conv1d", &function, grid(STEPS), from, address(&x)?, w, b, to, n, l_, c, k)?;
            dy = before;
        }
        let db = bias.as_ref().map_or(Ok(None), |bias| flow.parameter(bias))?;
        let dw = flow.parameter(&weight)?;
        if dw.is_some() || db.is_some() {
            let parts = batch * l.div_ceil(SUMMED);
            let dw_parts = gpu.empty((parts, channels * taps), DType::F32)?;
            let db_parts = gpu.empty((parts, channels), DType::F32)?;
            let (function, dy, x) = (kernel("conv1d_backward_weight", &x)?, address(&dy)?, address(&x)?);
            let to = (address(&dw_parts)?, address(&db_parts)?);
            launch!(gpu, "conv1d", &function, grid(SUMMED), dy, x, to.0, to.1, n, l_, c, k)?;
            for (parts, to) in [(dw_parts, dw), (db_parts, db)] {
                if let Some(to) = to {
                    sum_parts(&gpu, &parts, &to)?;
                }
            }
        }
        if slot.is_none() {
            return Ok(());
        }
        let dx = gpu.empty(x.shape(), x.dtype())?;
        let (function, from, to) = (kernel("conv1d_backward_input", &x)?, address(&dy)?, address(&dx)?);
        launch!(gpu, "conv1d", &function, grid(STEPS), from, w, to, n, l_, c, k)?;
        flow.send(slot, Grad::new(dx))
    }))
}
