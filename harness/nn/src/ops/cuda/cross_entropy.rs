//! Cross-entropy: see `ops/cross_entropy.rs`. The loss is float32. A label that is no class makes it NaN, and so
//! does a batch whose labels are all ignored.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Gpu, Grid, address, int, launch};
use super::gemm::{matmul_nn, matmul_nt, matmul_tn};
use super::linear::{add_bias, sum_rows};
use super::{elementwise, kernel, same_type};
use crate::ops::linear::check_width;
use crate::tape::{Destination, Grad, Value};

/// Logits held at a time by [`linear_cross_entropy`]: 256 MiB in float32.
const LOGITS: usize = 1 << 26;

/// Fewest rows of logits at a time, so that the matrix products stay wide (our choice).
const LEAST_ROWS: usize = 128;

fn check_labels(labels: &Tensor, rows: usize) -> Result<()> {
    if labels.dtype() != DType::I64 || labels.elem_count() != rows {
        bail!("cross_entropy: {rows} labels of type i64 are expected, got {labels:?}");
    }
    Ok(())
}

/// A block a row, or one block.
fn blocks(n: usize) -> Grid {
    Grid { blocks: (n, 1, 1), threads: 256, shared: 0 }
}

/// 1 / the number of labels that count, on the device.
fn scale(gpu: &Gpu, labels: &Tensor) -> Result<Tensor> {
    let scale = gpu.empty((), DType::F32)?;
    let (from, to, rows) = (address(labels)?, address(&scale)?, labels.elem_count());
    launch!(gpu, "cross_entropy", "cross_entropy_count", blocks(1), from, to, rows)?;
    Ok(scale)
}

/// The mean of the rows' losses.
fn mean(gpu: &Gpu, losses: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let loss = gpu.empty((), DType::F32)?;
    let (losses, scale, to, rows) = (address(losses)?, address(scale)?, address(&loss)?, losses.elem_count());
    launch!(gpu, "cross_entropy", "cross_entropy_mean_f32", blocks(1), losses, scale, to, rows)?;
    Ok(loss)
}

pub(crate) fn cross_entropy(logits: &Value, labels: &Tensor) -> Result<Value> {
    let Some(&vocab) = logits.tensor().dims().last() else { bail!("cross_entropy: logits are a scalar") };
    let rows = logits.tensor().elem_count() / vocab;
    check_labels(labels, rows)?;
    let gpu = Gpu::of(logits.tensor())?;
    let (lse, losses) = (gpu.empty(rows, DType::F32)?, gpu.empty(rows, DType::F32)?);
    let factor = scale(&gpu, labels)?;
    launch!(
        gpu,
        "cross_entropy",
        &kernel("cross_entropy_forward", logits.tensor())?,
        blocks(rows),
        address(logits.tensor())?,
        address(labels)?,
        address(&lse)?,
        address(&losses)?,
        rows,
        int(vocab)?,
    )?;
    let loss = mean(&gpu, &losses, &factor)?;
    let Some(tape) = Value::recording(&[logits], &[]) else { return Ok(logits.unrecorded(loss)) };
    let (slot, logits, labels) = (logits.slot(), logits.tensor().clone(), labels.clone());
    Ok(tape.record(loss, move |dy, flow| {
        let dx = gpu.empty(logits.shape(), logits.dtype())?;
        launch!(
            gpu,
            "cross_entropy",
            &kernel("cross_entropy_backward", &logits)?,
            blocks(rows),
            address(&logits)?,
            address(&dx)?,
            address(&labels)?,
            address(&lse)?,
            address(&factor)?,
            address(dy.tensor())?,
            rows,
            int(vocab)?,
        )?;
        flow.send(slot, Grad::new(dx))
    }))
}

pub(crate) fn linear_cross_entropy(
    x: &Value,
    weight: &Tensor,
    bias: Option<&Tensor>,
    labels: &Tensor,
) -> Result<Value> {
    let (vocab, width) = weight.dims2()?;
    check_width("linear_cross_entropy", x.tensor().shape(), width)?;
    let weights: Vec<&Tensor> = std::iter::once(weight).chain(bias).collect();
    same_type("linear_cross_entropy", x.tensor(), &weights)?;
    let rows = x.tensor().elem_count() / width;
    check_labels(labels, rows)?;
    let gpu = Gpu::of(x.tensor())?;
    let tape = Value::recording(&[x], &weights);
    let wants = |w: &Tensor| tape.is_some() && w.is_variable();

    // gradients are known up to the scalar from above once the loss of a group of rows is
    let dtype = x.tensor().dtype();
    let dx = (tape.is_some() && x.slot().is_some()).then(|| gpu.empty((rows, width), dtype)).transpose()?;
    let dw = wants(weight).then(|| gpu.empty((vocab, width), DType::F32)).transpose()?;
    let db = bias.is_some_and(wants).then(|| gpu.empty(vocab, DType::F32)).transpose()?;
    let factor = scale(&gpu, labels)?;
    let losses = gpu.empty(rows, DType::F32)?;
    let (flat, labels) = (x.tensor().reshape((rows, width))?, labels.flatten_all()?);
    let group = (LOGITS / vocab).clamp(LEAST_ROWS, rows.max(LEAST_ROWS));
    for first in (0..rows).step_by(group) {
        let n = group.min(rows - first);
        let (x, size) = (flat.narrow(0, first, n)?, (n, vocab, width));
        let logits = gpu.empty((n, vocab), dtype)?;
        matmul_nt(&gpu, &logits, false, &x, weight, size)?;
        if let Some(bias) = bias {
            add_bias(&gpu, &logits, bias, n, vocab)?;
        }
        launch!(
            gpu,
            "cross_entropy",
            &kernel("cross_entropy_fused", &logits)?,
            blocks(n),
            address(&logits)?,
            address(&labels.narrow(0, first, n)?)?,
            address(&losses.narrow(0, first, n)?)?,
            address(&factor)?,
            n,
            int(vocab)?,
        )?;
        let dlogits = logits;
        if let Some(dx) = &dx {
            matmul_nn(&gpu, &dx.narrow(0, first, n)?, false, &dlogits, weight, size)?;
        }
        if let Some(dw) = &dw {
            matmul_tn(&gpu, dw, first > 0, &dlogits, &x, size)?;
        }
        if let Some(db) = &db {
            let to = Destination { tensor: db.clone(), accumulate: first > 0 };
            sum_rows(&gpu, &dlogits, &to, n, vocab)?;
        }
    }
    let loss = mean(&gpu, &losses, &factor)?;
    let Some(tape) = tape else { return Ok(x.unrecorded(loss)) };
    let (slot, shape, weight, bias) = (x.slot(), x.tensor().shape().clone(), weight.clone(), bias.cloned());
    Ok(tape.record(loss, move |dy, flow| {
        let weights = [(Some(&weight), dw), (bias.as_ref(), db)];
        for (weight, grad) in weights {
            let Some((weight, grad)) = weight.zip(grad) else { continue };
            if let Some(to) = flow.parameter(weight)? {
                elementwise::scale(&gpu, &grad, &to, 1.0, Some(dy.tensor()))?;
            }
        }
        if let Some(dx) = dx {
            let to = flow.take(&gpu, slot, &shape, dtype)?;
            elementwise::scale(&gpu, &dx, &to, 1.0, Some(dy.tensor()))?;
            flow.put(slot, to);
        }
        Ok(())
    }))
}
