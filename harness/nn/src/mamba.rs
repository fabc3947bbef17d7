//! The Mamba block (Gu and Dao 2023): a short convolution and a selective scan behind a gate.

use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::init;
use crate::layers::Linear;
use crate::ops::{Activation, SelectiveScan};
use crate::tape::Value;

/// What a Mamba block is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MambaConfig {
    /// Width of input and output.
    pub width: usize,
    /// Inner channels as a multiple of `width`; 2 in the paper.
    pub expand: usize,
    /// Modes of a channel; 16 in the paper.
    pub state: usize,
    /// Taps of the short convolution; 4 in the paper.
    pub taps: usize,
    /// Rank of the projection to steps; ceil(width / 16) in the paper.
    pub step_rank: usize,
}

impl MambaConfig {
    /// The paper's sizes for this width.
    pub fn new(width: usize) -> Self {
        Self { width, expand: 2, state: 16, taps: 4, step_rank: width.div_ceil(16) }
    }

    /// Channels of convolution and scan.
    pub fn inner(self) -> usize {
        self.expand * self.width
    }
}

/// A block with the parameter names of the authors' code: `in_proj`, `conv1d`, `x_proj`, `dt_proj`, `A_log`, `D`,
/// `out_proj`.
#[derive(Clone)]
pub struct Mamba {
    config: MambaConfig,
    in_proj: Linear,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Linear,
    dt_weight: Tensor,
    out_proj: Linear,
    scan: SelectiveScan,
}

impl Mamba {
    /// Steps start log-uniformly between 0.001 and 0.1, `A = -1 .. -state`, D = 1, as in the paper. `out_proj` is
    /// drawn within `1 / sqrt(layers)` of the usual bounds, where `layers` is the depth of the whole model.
    ///
    /// # Errors
    /// The builder has other shapes.
    pub fn new(config: MambaConfig, layers: usize, vb: VarBuilder) -> Result<Self> {
        let MambaConfig { width, state, taps, step_rank, .. } = config;
        let inner = config.inner();
        let (conv, dt) = (vb.pp("conv1d"), vb.pp("dt_proj"));
        let bound = 1.0 / (step_rank as f64).sqrt();
        let steps = Init::Uniform { lo: 1e-3f64.ln(), up: 1e-1f64.ln() };
        let output = |fan_in: usize| {
            let bound = 1.0 / ((fan_in * layers.max(1)) as f64).sqrt();
            Init::Uniform { lo: -bound, up: bound }
        };
        Ok(Self {
            config,
            in_proj: Linear::new(width, 2 * inner, false, init::linear, vb.pp("in_proj"))?,
            conv_weight: conv.get_with_hints((inner, 1, taps), "weight", init::linear(taps))?,
            conv_bias: conv.get_with_hints(inner, "bias", init::linear(taps))?,
            x_proj: Linear::new(inner, step_rank + 2 * state, false, init::linear, vb.pp("x_proj"))?,
            dt_weight: dt.get_with_hints(
                (inner, step_rank),
                "weight",
                Init::Uniform { lo: -bound, up: bound },
            )?,
            out_proj: Linear::new(inner, width, false, output, vb.pp("out_proj"))?,
            scan: SelectiveScan {
                a_log: init::computed(&vb, (inner, state), "A_log", candle_nn::init::ZERO, |_| {
                    (0..inner * state).map(|i| ((i % state + 1) as f64).ln()).collect()
                })?,
                skip: Some(vb.get_with_hints(inner, "D", candle_nn::init::ONE)?),
                // softplus(bias) is the step where the projection gives 0
                delta_bias: Some(init::computed(&dt, inner, "bias", steps, |u| {
                    u.into_iter().map(|u| u.exp().max(1e-4).exp_m1().ln()).collect()
                })?),
                softplus: true,
            },
        })
    }

    /// `[batch, l, width]` to the same.
    ///
    /// # Errors
    /// The last dimension is not `width`.
    pub fn forward(&self, x: &Value) -> Result<Value> {
        self.forward_with(x, |u| Ok(u.clone()))
    }

    /// As [`Mamba::forward`], with `adapt` applied to the inputs `[batch, l, inner]` of the scan and of the
    /// projections it selects by.
    ///
    /// # Errors
    /// As [`Mamba::forward`], and those of `adapt`.
    pub fn forward_with(&self, x: &Value, adapt: impl FnOnce(&Value) -> Result<Value>) -> Result<Value> {
        let MambaConfig { state, step_rank, .. } = self.config;
        let inner = self.config.inner();
        let both = self.in_proj.forward(x)?;
        let (u, gate) = (both.columns(0..inner)?, both.columns(inner..2 * inner)?);
        let u = adapt(&u.depthwise_conv1d(&self.conv_weight, Some(&self.conv_bias), true)?)?;
        let selected = self.x_proj.forward(&u)?;
        let delta = selected.columns(0..step_rank)?.linear(&self.dt_weight, None)?;
        let b = selected.columns(step_rank..step_rank + state)?;
        let c = selected.columns(step_rank + state..step_rank + 2 * state)?;
        let y = u.selective_scan(&delta, &b, &c, &self.scan)?;
        self.out_proj.forward(&gate.gate(&y, Activation::Silu)?)
    }
}
