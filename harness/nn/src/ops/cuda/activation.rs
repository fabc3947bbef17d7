//! Activations and gated units: see `ops/activation.rs`.

use candle_core::{Result, bail};

use super::device::{Gpu, address, int, launch};
use super::{elements, kernel, same_type};
use crate::ops::Activation;
use crate::tape::{Grad, Value};

/// The kernels' code.
pub(super) fn code(activation: Activation) -> i32 {
    match activation {
        Activation::Relu => 1,
        Activation::Gelu => 2,
        Activation::GeluTanh => 3,
        Activation::Silu => 4,
        Activation::Sigmoid => 5,
    }
}

pub(crate) fn activate(x: &Value, activation: Activation) -> Result<Value> {
    let code = code(activation);
    let gpu = Gpu::of(x.tensor())?;
    let n = x.tensor().elem_count();
    let y = gpu.empty(x.tensor().shape(), x.tensor().dtype())?;
    let forward = kernel("activation_forward", &y)?;
    launch!(gpu, "activation", &forward, elements(n), address(x.tensor())?, address(&y)?, n, code)?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    // ReLU's slope is known from its result, which the next layer keeps anyway
    let (slot, kept) =
        (x.slot(), if activation == Activation::Relu { y.clone() } else { x.tensor().clone() });
    Ok(tape.record(y, move |dy, flow| {
        let dx = gpu.empty(kept.shape(), kept.dtype())?;
        let backward = kernel("activation_backward", &kept)?;
        let (dy, to) = (address(dy.tensor())?, address(&dx)?);
        launch!(gpu, "activation", &backward, elements(n), dy, address(&kept)?, to, n, code)?;
        flow.send(slot, Grad::new(dx))
    }))
}

pub(crate) fn gate(gate: &Value, up: &Value, activation: Activation) -> Result<Value> {
    if gate.tensor().shape() != up.tensor().shape() {
        bail!("gate: {:?} and {:?}", gate.tensor().shape(), up.tensor().shape());
    }
    same_type("gate", gate.tensor(), &[up.tensor()])?;
    let gpu = Gpu::of(gate.tensor())?;
    let n = gate.tensor().elem_count();
    let width = gate.tensor().dims().last().copied().unwrap_or(1);
    let rows = n / width.max(1);
    let y = gpu.empty(gate.tensor().shape(), gate.tensor().dtype())?;
    launch!(
        gpu,
        "activation",
        &kernel("glu_forward", &y)?,
        elements(n),
        address(gate.tensor())?,
        address(up.tensor())?,
        address(&y)?,
        rows,
        int(width)?,
        width,
        width,
        code(activation),
    )?;
    let Some(tape) = Value::recording(&[gate, up], &[]) else { return Ok(gate.unrecorded(y)) };
    let (slots, gate, up) = ((gate.slot(), up.slot()), gate.tensor().clone(), up.tensor().clone());
    Ok(tape.record(y, move |dy, flow| {
        let (dg, du) = (gpu.empty(gate.shape(), gate.dtype())?, gpu.empty(up.shape(), up.dtype())?);
        launch!(
            gpu,
            "activation",
            &kernel("glu_backward", &gate)?,
            elements(n),
            address(dy.tensor())?,
            address(&gate)?,
            address(&up)?,
            address(&dg)?,
            address(&du)?,
            rows,
            int(width)?,
            width,
            width,
            width,
            width,
            code(activation),
        )?;
        flow.send(slots.0, Grad::new(dg))?;
        flow.send(slots.1, Grad::new(du))
    }))
}
