//! The selective scan of Mamba: see `ops/selective_scan.rs`. Weights are taken in float32, the recurrence runs in
//! float32.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Address, Gpu, Grid, address, int, launch};
use super::elementwise::float;
use super::linear::sum_rows;
use super::{kernel, same_type, sum_parts, sum_parts_to_slot};
use crate::ops::SelectiveScan;
use crate::ops::selective_scan::Size;
use crate::tape::{Grad, Value};

/// Modes a channel's threads hold.
const MODES: usize = 16;
/// Channels of a block; steps between kept states.
const CHANNELS: usize = 32;
const CHUNK: usize = 32;

/// The weights in float32.
struct Weights {
    a_log: Tensor,
    skip: Option<Tensor>,
    bias: Option<Tensor>,
}

impl Weights {
    fn new(gpu: &Gpu, weights: &SelectiveScan) -> Result<Self> {
        let optional = |w: &Option<Tensor>| w.as_ref().map(|w| float(gpu, w)).transpose();
        Ok(Self {
            a_log: float(gpu, &weights.a_log)?,
            skip: optional(&weights.skip)?,
            bias: optional(&weights.delta_bias)?,
        })
    }
}

pub(crate) fn selective_scan(inputs: [&Value; 4], weights: &SelectiveScan) -> Result<Value> {
    let tensors = inputs.map(Value::tensor);
    let Size { batch, l, d, n, .. } = Size::of(tensors, weights)?;
    if n > MODES {
        bail!("selective_scan: {n} modes a channel; on a GPU at most {MODES}");
    }
    let [u, delta, b, c] = tensors;
    same_type("selective_scan", u, &[delta, b, c])?;
    let gpu = Gpu::of(u)?;
    let trainable: Vec<&Tensor> =
        std::iter::once(&weights.a_log).chain(&weights.skip).chain(&weights.delta_bias).collect();
    let tape = Value::recording(&inputs, &trainable);
    let floats = Weights::new(&gpu, weights)?;
    let keep = tape.is_some().then(|| gpu.empty((batch, l.div_ceil(CHUNK), d, n), DType::F32)).transpose()?;
    let groups = d.div_ceil(CHANNELS);
    let grid = Grid { blocks: (groups, batch, 1), threads: 512, shared: 0 };
    let sizes = (i32::from(weights.softplus), int(batch)?, int(l)?, int(d)?, int(n)?);
    let y = gpu.empty(u.shape(), u.dtype())?;
    launch!(
        gpu,
        "selective_scan",
        &kernel("selective_scan_forward", u)?,
        grid,
        address(u)?,
        address(delta)?,
        pointer(&floats.bias)?,
        address(&floats.a_log)?,
        address(b)?,
        address(c)?,
        pointer(&floats.skip)?,
        address(&y)?,
        pointer(&keep)?,
        sizes.0,
        sizes.1,
        sizes.2,
        sizes.3,
        sizes.4,
    )?;
    let Some(tape) = tape else { return Ok(inputs[0].unrecorded(y)) };
    let (slots, kept, weights) = (inputs.map(Value::slot), tensors.map(Clone::clone), weights.clone());
    Ok(tape.record(y, move |dy, flow| {
        let [u, delta, b, c] = &kept;
        let (du, ddelta) = (gpu.empty(u.shape(), u.dtype())?, gpu.empty(u.shape(), u.dtype())?);
        let da_parts = gpu.empty((batch, d * n), DType::F32)?;
        let dskip_parts = gpu.empty((batch, d), DType::F32)?;
        let shares = || gpu.empty((groups, batch * l * n), DType::F32);
        let (db_parts, dc_parts) = (shares()?, shares()?);
        launch!(
            gpu,
            "selective_scan",
            &kernel("selective_scan_backward", u)?,
            grid,
            address(dy.tensor())?,
            address(u)?,
            address(delta)?,
            pointer(&floats.bias)?,
            address(&floats.a_log)?,
            address(b)?,
            address(c)?,
            pointer(&floats.skip)?,
            pointer(&keep)?,
            address(&du)?,
            address(&ddelta)?,
            address(&da_parts)?,
            address(&db_parts)?,
            address(&dc_parts)?,
            address(&dskip_parts)?,
            sizes.0,
            sizes.1,
            sizes.2,
            sizes.3,
            sizes.4,
        )?;
        if let Some(to) = flow.parameter(&weights.a_log)? {
            sum_parts(&gpu, &da_parts, &to)?;
        }
        if let Some(to) = weights.skip.as_ref().map_or(Ok(None), |skip| flow.parameter(skip))? {
            sum_parts(&gpu, &dskip_parts, &to)?;
        }
        if let Some(to) = weights.delta_bias.as_ref().map_or(Ok(None), |bias| flow.parameter(bias))? {
            sum_rows(&gpu, &ddelta, &to, batch * l, d)?;
        }
        flow.send(slots[0], Grad::new(du))?;
        flow.send(slots[1], Grad::new(ddelta))?;
        for (slot, parts) in [(slots[2], db_parts), (slots[3], dc_parts)] {
            sum_parts_to_slot(&gpu, flow, slot, &parts, b)?;
        }
        Ok(())
    }))
}

fn pointer(tensor: &Option<Tensor>) -> Result<Address> {
    tensor.as_ref().map_or(Ok(Address::NULL), address)
}
