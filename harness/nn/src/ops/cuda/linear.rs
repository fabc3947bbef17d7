//! `y = f(x w^T + b)`: see `ops/linear.rs`.

use candle_core::{DType, Result, Shape, Tensor, bail};

use super::activation::code;
use super::device::{Address, Gpu, Grid, address, int, launch};
use super::gemm::{matmul_nn, matmul_nt, matmul_tn};
use super::{elements, kernel, parts, same_type, sum_parts};
use crate::ops::Activation;
use crate::tape::{Destination, Flow, Value};

/// The kernels' code for no activation.
const NONE: i32 = 0;

/// A call: rows, outputs and inputs, and what its backward pass shares.
struct Call {
    gpu: Gpu,
    size: (usize, usize, usize),
    slot: Option<usize>,
    shape: Shape,
    dtype: DType,
    /// Kept if the weight is trainable.
    x: Option<Tensor>,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Call {
    /// The call and the product without the bias.
    fn new(x: &Value, weight: &Tensor, bias: Option<&Tensor>) -> Result<(Self, Tensor)> {
        let (o, k) = weight.dims2()?;
        let mut dims = x.tensor().dims().to_vec();
        match dims.last_mut() {
            Some(last) if *last == k => *last = o,
            _ => bail!("linear: input {dims:?} for a weight [{o}, {k}]"),
        }
        let weights: Vec<&Tensor> = std::iter::once(weight).chain(bias).collect();
        same_type("linear", x.tensor(), &weights)?;
        let gpu = Gpu::of(x.tensor())?;
        let size = (x.tensor().elem_count() / k, o, k);
        let product = gpu.empty(dims, x.tensor().dtype())?;
        matmul_nt(&gpu, &product, false, x.tensor(), weight, size)?;
        let call = Self {
            gpu,
            size,
            slot: x.slot(),
            shape: x.tensor().shape().clone(),
            dtype: x.tensor().dtype(),
            x: weight.is_variable().then(|| x.tensor().clone()),
            weight: weight.clone(),
            bias: bias.cloned(),
        };
        Ok((call, product))
    }

    /// Sends dw and dx on; `dy` is the gradient of the product.
    fn send(&self, dy: &Tensor, flow: &mut Flow) -> Result<()> {
        if let Some((x, dw)) = self.x.as_ref().zip(flow.parameter(&self.weight)?) {
            matmul_tn(&self.gpu, &dw.tensor, dw.accumulate, dy, x, self.size)?;
        }
        if self.slot.is_some() {
            let dx = flow.take(&self.gpu, self.slot, &self.shape, self.dtype)?;
            matmul_nn(&self.gpu, &dx.tensor, dx.accumulate, dy, &self.weight, self.size)?;
            flow.put(self.slot, dx);
        }
        Ok(())
    }
}

pub(crate) fn linear(x: &Value, weight: &Tensor, bias: Option<&Tensor>) -> Result<Value> {
    let (call, y) = Call::new(x, weight, bias)?;
    let (n, o, _) = call.size;
    if let Some(bias) = bias {
        add_bias(&call.gpu, &y, bias, n, o)?;
    }
    let weights: Vec<&Tensor> = std::iter::once(weight).chain(bias).collect();
    let Some(tape) = Value::recording(&[x], &weights) else { return Ok(x.unrecorded(y)) };
    Ok(tape.record(y, move |dy, flow| {
        if let Some(db) = call.bias.as_ref().map_or(Ok(None), |bias| flow.parameter(bias))? {
            sum_rows(&call.gpu, dy.tensor(), &db, n, o)?;
        }
        call.send(dy.tensor(), flow)
    }))
}

pub(crate) fn linear_activation(
    x: &Value,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
) -> Result<Value> {
    let (call, product) = Call::new(x, weight, bias)?;
    let (n, o, _) = call.size;
    let weights: Vec<&Tensor> = std::iter::once(weight).chain(bias).collect();
    let tape = Value::recording(&[x], &weights);
    // ReLU's slope is known from its result; the others keep the sum of product and bias, in the product's place
    let keep_sum = tape.is_some() && activation != Activation::Relu;
    let y = if keep_sum { call.gpu.empty(product.shape(), product.dtype())? } else { product.clone() };
    launch!(
        call.gpu,
        "bias_activation",
        &kernel("bias_activation_forward", &product)?,
        elements(n * o),
        address(&product)?,
        bias.map_or(Ok(Address::NULL), address)?,
        if keep_sum { address(&product)? } else { Address::NULL },
        address(&y)?,
        n,
        int(o)?,
        code(activation),
    )?;
    let Some(tape) = tape else { return Ok(x.unrecorded(y)) };
    Ok(tape.record(y, move |dy, flow| {
        let gpu = &call.gpu;
        let db = call.bias.as_ref().map_or(Ok(None), |bias| flow.parameter(bias))?;
        let gradient = gpu.empty(product.shape(), product.dtype())?;
        let (grid, sums) = column_sums(gpu, n, o)?;
        launch!(
            gpu,
            "bias_activation",
            &kernel("bias_activation_backward", &product)?,
            grid,
            address(dy.tensor())?,
            address(&product)?,
            address(&gradient)?,
            address(&sums)?,
            n,
            int(o)?,
            code(activation),
        )?;
        if let Some(db) = db {
            sum_parts(gpu, &sums, &db)?;
        }
        call.send(&gradient, flow)
    }))
}

/// `y += bias`, row by row.
pub(super) fn add_bias(gpu: &Gpu, y: &Tensor, bias: &Tensor, rows: usize, width: usize) -> Result<()> {
    let grid = elements(rows * width);
    let (function, y, bias) = (kernel("bias_activation_forward", y)?, address(y)?, address(bias)?);
    launch!(gpu, "bias_activation", &function, grid, y, bias, Address::NULL, y, rows, int(width)?, NONE)
}

/// `to[width] (+)= sum over rows of dy[rows, width]`.
pub(super) fn sum_rows(gpu: &Gpu, dy: &Tensor, to: &Destination, rows: usize, width: usize) -> Result<()> {
    let (grid, sums) = column_sums(gpu, rows, width)?;
    let (function, width) = (kernel("bias_activation_backward", dy)?, int(width)?);
    let (dy, partial, null) = (address(dy)?, address(&sums)?, Address::NULL);
    launch!(gpu, "bias_activation", &function, grid, dy, null, null, partial, rows, width, NONE)?;
    sum_parts(gpu, &sums, to)
}

/// The launch that sums columns on its way, and the place of its partial sums.
fn column_sums(gpu: &Gpu, rows: usize, width: usize) -> Result<(Grid, Tensor)> {
    let count = parts(rows, 64, 128);
    let grid = Grid { blocks: (width.div_ceil(256), count, 1), threads: 256, shared: 0 };
    Ok((grid, gpu.empty((count, width), DType::F32)?))
}
