//! The models SMR is plugged into: S4D, S4, S5, Mamba, and none as a control without any memory.
//!
//! Layers are those of the hosts' own code (paper card, section 3); SMR sees what the state-space model would have seen, and
//! the skip D sees SMR's result.

use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;
use replica_nn::ops::{Activation, Discretisation, Dropout, StepTransform};
use replica_nn::s4d::Modes;
use replica_nn::s5::OutputInit;
use replica_nn::{Linear, Mamba, MambaConfig, S4d, S4dConfig, S5, S5Config, Value, init};
use serde::{Deserialize, Serialize};

use crate::replay::{Place, Replay, ReplayConfig};

/// Initial modes of S4D.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InitialModes {
    /// S4D-Lin.
    #[default]
    Lin,
    /// S4D-Inv.
    Inv,
    /// S4D-LegS.
    Legs,
    /// S4D-Real.
    Real,
}

/// How an S5 layer leaves its state-space model, g = gelu(y) with y its output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum S5Activation {
    /// g.
    Gelu,
    /// `g * sigmoid(W g)`.
    HalfGlu1,
    /// `y * sigmoid(W g)`.
    HalfGlu2,
    /// `(W1 g) * sigmoid(W2 g)`.
    #[default]
    FullGlu,
}

/// Initial values of C in S5.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum S5Output {
    /// LeCun's, for the whole of C.
    #[default]
    Lecun,
    /// Variance 1 / state.
    Outputs,
    /// Variance 1/2.
    ComplexNormal,
}

/// A host.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum HostConfig {
    /// GELU and a gated linear unit at every step for itself.
    None {},
    /// Diagonal, one model a channel.
    S4d {
        /// N, real size of the state.
        state: usize,
        /// Independent sets of A and B; one a channel if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sets: Option<usize>,
        /// Initial A.
        #[serde(default)]
        modes: InitialModes,
        /// Smallest and largest initial step.
        #[serde(default = "usual_steps")]
        steps: (f64, f64),
        /// Whether a second kernel looks ahead.
        #[serde(default)]
        bidirectional: bool,
    },
    /// Diagonal minus a rank-one term.
    S4 {
        /// N, real size of the state.
        state: usize,
        /// Independent sets of A, B and P; one a channel if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sets: Option<usize>,
        /// Smallest and largest initial step.
        #[serde(default = "usual_steps")]
        steps: (f64, f64),
        /// Whether a second kernel looks ahead.
        #[serde(default)]
        bidirectional: bool,
    },
    /// Diagonal, one model for all channels.
    S5 {
        /// Real size of the state.
        state: usize,
        /// HiPPO matrices on the diagonal of the first state matrix.
        blocks: usize,
        /// Smallest and largest initial step.
        #[serde(default = "usual_steps")]
        steps: (f64, f64),
        /// Initial C.
        #[serde(default)]
        output: S5Output,
        /// What follows the model.
        #[serde(default)]
        activation: S5Activation,
        /// Whether a second scan runs from the end.
        #[serde(default)]
        bidirectional: bool,
        /// Whether real parts of Lambda are kept below 0.
        #[serde(default)]
        clip: bool,
    },
    /// The selective model S6 in its block.
    Mamba {
        /// Modes of a channel.
        #[serde(default = "mamba_state")]
        state: usize,
        /// Inner channels as a multiple of the width.
        #[serde(default = "mamba_expand")]
        expand: usize,
        /// Taps of its own short convolution.
        #[serde(default = "mamba_taps")]
        taps: usize,
    },
}

fn usual_steps() -> (f64, f64) {
    (1e-3, 1e-1)
}

fn mamba_state() -> usize {
    16
}

fn mamba_expand() -> usize {
    2
}

fn mamba_taps() -> usize {
    4
}

impl HostConfig {
    /// What makes no sense, as "key = value: what is allowed".
    pub fn problem(&self, width: usize) -> Option<String> {
        let even = |state: usize, parts: usize| {
            (state == 0 || parts == 0 || !state.is_multiple_of(2 * parts)).then(|| {
                format!("host.state = {state}: an even number for each of {parts} blocks is expected")
            })
        };
        let range = |(low, high): (f64, f64)| {
            (!(low.is_finite() && low > 0.0 && low < high && high.is_finite())).then(|| {
                format!(
                    "host.steps = [{low}, {high}]: two positive numbers, the smaller one first, are expected"
                )
            })
        };
        let divides = |sets: Option<usize>| {
            sets.filter(|s| *s == 0 || !width.is_multiple_of(*s))
                .map(|s| format!("host.sets = {s}: a divisor of width = {width} is expected"))
        };
        match *self {
            Self::None {} => None,
            Self::S4d { state, sets, steps, .. } | Self::S4 { state, sets, steps, .. } => {
                even(state, 1).or_else(|| range(steps)).or_else(|| divides(sets))
            }
            Self::S5 { state, blocks, steps, .. } => even(state, blocks).or_else(|| range(steps)),
            Self::Mamba { state, expand, taps } => [("state", state), ("expand", expand), ("taps", taps)]
                .into_iter()
                .find(|(_, n)| *n == 0)
                .map(|(key, _)| format!("host.{key} = 0: at least 1 is expected")),
        }
    }

    /// Whether a change of an input changes outputs at that step and later ones only.
    pub fn is_causal(&self) -> bool {
        !matches!(
            self,
            Self::S4d { bidirectional: true, .. }
                | Self::S4 { bidirectional: true, .. }
                | Self::S5 { bidirectional: true, .. }
        )
    }

    /// Whether it can be told the true sampling intervals.
    pub fn can_be_told(&self) -> bool {
        matches!(self, Self::S5 { .. })
    }
}

/// What is around a host: sizes and dropout of the whole model.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings {
    /// Channels.
    pub width: usize,
    /// Layers of the model.
    pub layers: usize,
    /// Sequence length S4's kernel is trained for.
    pub length: usize,
    /// Probability of dropout within a layer.
    pub dropout: f64,
}

/// A host's layer with SMR in front of its state-space model, or without.
pub struct Host {
    layer: Layer,
    replay: Option<Replay>,
    place: Place,
    dropout: f64,
}

enum Layer {
    None(Linear),
    /// S4D and S4.
    Convolution(S4d),
    S5 {
        model: S5,
        activation: S5Activation,
        /// W, or W1 and W2.
        dense: Vec<Linear>,
    },
    Mamba(Mamba),
}

impl Host {
    /// Parameters under the host's own names, and `smr` for the module.
    ///
    /// # Errors
    /// The builder has other shapes under these names.
    pub fn new(
        config: HostConfig,
        replay: Option<ReplayConfig>,
        around: Surroundings,
        vb: VarBuilder,
    ) -> Result<Self> {
        let Surroundings { width, layers, length, dropout } = around;
        let convolution = |state, sets: Option<usize>, modes, steps, bidirectional| S4dConfig {
            width,
            state,
            copies: sets.unwrap_or(width),
            modes,
            steps,
            transform: StepTransform::Softplus,
            discretisation: Discretisation::ZeroOrderHold,
            bidirectional,
            dropout,
        };
        let mut inner = width;
        let layer = match config {
            HostConfig::None {} => {
                Layer::None(Linear::new(width, 2 * width, true, init::linear, vb.pp("output_linear.0"))?)
            }
            HostConfig::S4d { state, sets, modes, steps, bidirectional } => {
                let modes = match modes {
                    InitialModes::Lin => Modes::Lin,
                    InitialModes::Inv => Modes::Inv,
                    InitialModes::Legs => Modes::Legs,
                    InitialModes::Real => Modes::Real,
                };
                let config = convolution(state, sets, modes, steps, bidirectional);
                Layer::Convolution(S4d::new(config, vb.clone())?)
            }
            HostConfig::S4 { state, sets, steps, bidirectional } => {
                let config = convolution(state, sets, Modes::Legs, steps, bidirectional);
                Layer::Convolution(S4d::low_rank(config, length, vb.clone())?)
            }
            HostConfig::S5 { state, blocks, steps, output, activation, bidirectional, clip } => {
                let config = S5Config {
                    width,
                    state,
                    blocks,
                    steps,
                    output: match output {
                        S5Output::Lecun => OutputInit::Lecun,
                        S5Output::Outputs => OutputInit::Outputs,
                        S5Output::ComplexNormal => OutputInit::ComplexNormal,
                    },
                    discretisation: Discretisation::ZeroOrderHold,
                    bidirectional,
                    clip,
                };
                let names: &[&str] = match activation {
                    S5Activation::Gelu => &[],
                    S5Activation::HalfGlu1 | S5Activation::HalfGlu2 => &["out2"],
                    S5Activation::FullGlu => &["out1", "out2"],
                };
                let dense = |name: &&str| Linear::new(width, width, true, init::linear, vb.pp(name));
                Layer::S5 {
                    model: S5::new(config, vb.pp("seq"))?,
                    activation,
                    dense: names.iter().map(dense).collect::<Result<_>>()?,
                }
            }
            HostConfig::Mamba { state, expand, taps } => {
                let config = MambaConfig { state, expand, taps, ..MambaConfig::new(width) };
                if replay.is_some_and(|r| r.place == Place::Scan) {
                    inner = config.inner();
                }
                Layer::Mamba(Mamba::new(config, layers, vb.clone())?)
            }
        };
        let place = replay.map_or(Place::Input, |r| r.place);
        if place == Place::Scan && !matches!(layer, Layer::Mamba(_)) {
            bail!("replay.place = \"scan\" is a place within Mamba; other hosts have \"input\"");
        }
        let replay = replay.map(|config| Replay::new(config, inner, vb.pp("smr"))).transpose()?;
        Ok(Self { layer, replay, place, dropout })
    }

    /// `[batch, l, width]` to the same. `intervals` `[batch, l]` lead to each input, in units of that of training; only S5
    /// takes them.
    ///
    /// # Errors
    /// The last dimension is not `width`, or intervals for another host.
    pub fn forward(&self, x: &Value, intervals: Option<&Tensor>, masks: Option<&Dropout>) -> Result<Value> {
        let replayed = |x: &Value| self.replay.as_ref().map_or(Ok(x.clone()), |smr| smr.forward(x));
        let at_input = if self.place == Place::Input { replayed(x)? } else { x.clone() };
        match &self.layer {
            Layer::S5 { .. } => {}
            _ if intervals.is_some() => bail!("only S5 can be told sampling intervals"),
            _ => {}
        }
        match &self.layer {
            Layer::None(linear) => {
                let y = at_input.activate(Activation::Gelu)?.dropout(self.dropout, masks)?;
                linear.forward(&y)?.glu()
            }
            Layer::Convolution(layer) => layer.forward(&at_input, masks),
            Layer::Mamba(block) if self.place == Place::Scan => block.forward_with(&at_input, replayed),
            Layer::Mamba(block) => block.forward(&at_input),
            Layer::S5 { model, activation, dense } => {
                let y = match intervals {
                    Some(intervals) => model.forward_irregular(&at_input, intervals)?,
                    None => model.forward(&at_input)?,
                };
                // flax's GELU is the one by tanh
                let g = y.activate(Activation::GeluTanh)?.dropout(self.dropout, masks)?;
                match (activation, &dense[..]) {
                    (S5Activation::HalfGlu1, [w]) => w.forward(&g)?.gate(&g, Activation::Sigmoid),
                    (S5Activation::HalfGlu2, [w]) => w.forward(&g)?.gate(&y, Activation::Sigmoid),
                    (S5Activation::FullGlu, [w1, w2]) => {
                        w2.forward(&g)?.gate(&w1.forward(&g)?, Activation::Sigmoid)
                    }
                    _ => Ok(g),
                }
            }
        }
    }
}
