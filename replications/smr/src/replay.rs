//! State Memory Replay: `SMR(x) = sigmoid(f) x` with f a short causal convolution of x (paper card, section 2.2; the
//! paper's equation 15 as a third party's code has it).

use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};
use replica_nn::ops::Activation;
use replica_nn::{Linear, Value, init};
use serde::{Deserialize, Serialize};

/// Which channels a channel's gate sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Channels {
    /// All of them: K width^2 weights.
    #[default]
    Dense,
    /// Its own: K width weights (our variant).
    Depthwise,
}

/// Where a Mamba block has it; other hosts have one place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// The block's input: `host(smr(x))`.
    #[default]
    Input,
    /// Between the short convolution with its SiLU and the projections that select steps, B and C.
    Scan,
}

/// What a module is made of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplayConfig {
    /// K, the number of inputs replayed, this one included. The paper's is unknown; 1 has no memory.
    pub taps: usize,
    /// Which channels a gate sees.
    #[serde(default)]
    pub channels: Channels,
    /// Whether a linear layer over channels follows the convolution.
    #[serde(default)]
    pub linear: bool,
    /// Whether f gates x; otherwise f takes its place, which is a plain causal convolution (our control).
    #[serde(default = "yes")]
    pub gate: bool,
    /// Initial bias of the convolution, if not PyTorch's default (our ablation: +2 opens the gates to 0.88).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bias: Option<f64>,
    /// Where a Mamba block has it.
    #[serde(default)]
    pub place: Place,
}

fn yes() -> bool {
    true
}

impl ReplayConfig {
    /// What makes no sense, as "key = value: what is allowed".
    pub fn problem(&self) -> Option<String> {
        match self.bias {
            _ if self.taps == 0 => Some("replay.taps = 0: at least 1 is expected".to_owned()),
            Some(bias) if !bias.is_finite() => {
                Some(format!("replay.bias = {bias}: a finite number is expected"))
            }
            _ => None,
        }
    }
}

/// The module. It keeps width and length, and needs no state of its host.
#[derive(Clone)]
pub struct Replay {
    config: ReplayConfig,
    weight: Tensor,
    bias: Tensor,
    linear: Option<Linear>,
}

impl Replay {
    /// Parameters `conv.weight` `[width, width or 1, taps]`, `conv.bias` and, if wanted, `linear.{weight, bias}`, with
    /// PyTorch's default initial values.
    ///
    /// # Errors
    /// The builder has other shapes under these names.
    pub fn new(config: ReplayConfig, width: usize, vb: VarBuilder) -> Result<Self> {
        let inputs = match config.channels {
            Channels::Dense => width,
            Channels::Depthwise => 1,
        };
        let default = init::linear(inputs * config.taps);
        let conv = vb.pp("conv");
        Ok(Self {
            config,
            weight: conv.get_with_hints((width, inputs, config.taps), "weight", default)?,
            bias: conv.get_with_hints(width, "bias", config.bias.map_or(default, Init::Const))?,
            linear: config
                .linear
                .then(|| Linear::new(width, width, true, init::linear, vb.pp("linear")))
                .transpose()?,
        })
    }

    /// f `[batch, l, width]` of x `[batch, l, width]`: the gates before the sigmoid.
    ///
    /// # Errors
    /// The last dimension is not `width`.
    pub fn factor(&self, x: &Value) -> Result<Value> {
        let bias = Some(&self.bias);
        let f = match self.config.channels {
            Channels::Dense => x.causal_conv1d(&self.weight, bias)?,
            Channels::Depthwise => x.depthwise_conv1d(&self.weight, bias, false)?,
        };
        self.linear.as_ref().map_or(Ok(f.clone()), |linear| linear.forward(&f))
    }

    /// `sigmoid(f) x`, or f where there is no gate.
    ///
    /// # Errors
    /// As [`Replay::factor`].
    pub fn forward(&self, x: &Value) -> Result<Value> {
        let f = self.factor(x)?;
        if self.config.gate { f.gate(x, Activation::Sigmoid) } else { Ok(f) }
    }
}
