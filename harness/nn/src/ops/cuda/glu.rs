//! Gated linear unit: see `ops/glu.rs`.

use candle_core::{Result, Tensor, bail};

use super::activation::code;
use super::device::{Address, Gpu, address, int, launch};
use super::{elements, kernel};
use crate::ops::Activation;
use crate::tape::{Grad, Value};

pub(crate) fn glu(x: &Value) -> Result<Value> {
    let mut dims = x.tensor().dims().to_vec();
    let width = match dims.last_mut() {
        Some(last) if *last > 0 && *last % 2 == 0 => {
            *last /= 2;
            *last
        }
        _ => bail!("glu: the last dimension of {:?} must be even", x.tensor().dims()),
    };
    let gpu = Gpu::of(x.tensor())?;
    let n = x.tensor().elem_count() / 2;
    let (rows, stride) = (n / width, 2 * width);
    let y = gpu.empty(dims, x.tensor().dtype())?;
    let gate =
        move |x: &Tensor| -> Result<Address> { Ok(address(x)?.offset(width, x.dtype().size_in_bytes())) };
    launch!(
        gpu,
        "activation",
        &kernel("glu_forward", &y)?,
        elements(n),
        gate(x.tensor())?,
        address(x.tensor())?,
        address(&y)?,
        rows,
        int(width)?,
        stride,
        stride,
        code(Activation::Sigmoid),
    )?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let (slot, x) = (x.slot(), x.tensor().clone());
    Ok(tape.record(y, move |dy, flow| {
        let dx = gpu.empty(x.shape(), x.dtype())?;
        launch!(
            gpu,
            "activation",
            &kernel("glu_backward", &x)?,
            elements(n),
            address(dy.tensor())?,
            gate(&x)?,
            address(&x)?,
            gate(&dx)?,
            address(&dx)?,
            rows,
            int(width)?,
            stride,
            stride,
            stride,
            stride,
            code(Activation::Sigmoid),
        )?;
        flow.send(slot, Grad::new(dx))
    }))
}
