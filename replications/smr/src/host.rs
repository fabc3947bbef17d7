//! The models SMR is plugged into: S4D, S4, S5, Mamba, Mega, SPADE, and none as a control without any memory.
//!
//! Layers are those of the hosts' own code (paper card, section 3); SMR sees what the state-space model would have seen, and
//! the skip D sees SMR's result. In Mega that is the moving average with its residual, in SPADE the S4 of the bottom layer:
//! what attention sees without them stays as it is.

use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;
use replica_nn::ops::{Activation, Discretisation, Dropout, StepTransform};
use replica_nn::s4d::Modes;
use replica_nn::s5::OutputInit;
use replica_nn::{
    Linear, LocalAttentionConfig, Mamba, MambaConfig, Mega, MegaConfig, S4d, S4dConfig, S5, S5Config, Spade,
    Value, init,
};
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
    /// Damped moving averages and gated attention with one head.
    Mega {
        /// Channels of queries and keys.
        shared: usize,
        /// Dimensions of a channel's moving average.
        #[serde(default = "mega_state")]
        state: usize,
        /// Channels of values and of the feed-forward layer as a multiple of the width.
        #[serde(default = "mega_expand")]
        expand: usize,
        /// Most taps of the average's kernel.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        truncation: Option<usize>,
        /// Steps that attend to each other; the whole sequence if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        chunk: Option<usize>,
        /// Whether average and attention look ahead.
        #[serde(default)]
        bidirectional: bool,
    },
    /// A Transformer with local attention, and S4 in its bottom layer.
    Spade {
        /// N, real size of the state of S4.
        state: usize,
        /// Independent sets of A, B and P; one a channel if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sets: Option<usize>,
        /// Smallest and largest initial step.
        #[serde(default = "usual_steps")]
        steps: (f64, f64),
        /// Heads of attention.
        heads: usize,
        /// Steps between a query and the furthest keys it sees.
        radius: usize,
        /// Channels of the feed-forward layer as a multiple of the width.
        #[serde(default = "spade_expand")]
        expand: usize,
        /// Whether S4 and attention look ahead.
        #[serde(default)]
        bidirectional: bool,
    },
}

/// The second part of a layer, `W2 f(W1 x + b1) + b2` at every step for itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FeedForwardConfig {
    /// Channels between W1 and W2.
    pub hidden: usize,
    /// f.
    pub activation: Activation,
    /// Standard deviation the weights are drawn with, biases being 0; PyTorch's default if absent.
    pub deviation: Option<f64>,
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

fn mega_state() -> usize {
    16
}

fn mega_expand() -> usize {
    2
}

fn spade_expand() -> usize {
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
        let positive = |sizes: &[(&str, usize)]| {
            let zero = sizes.iter().find(|(_, n)| *n == 0);
            zero.map(|(key, _)| format!("host.{key} = 0: at least 1 is expected"))
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
            Self::Mamba { state, expand, taps } => {
                positive(&[("state", state), ("expand", expand), ("taps", taps)])
            }
            Self::Mega { shared, state, expand, truncation, chunk, .. } => positive(&[
                ("shared", shared),
                ("state", state),
                ("expand", expand),
                ("truncation", truncation.unwrap_or(1)),
                ("chunk", chunk.unwrap_or(1)),
            ]),
            Self::Spade { state, sets, steps, heads, radius, expand, .. } => {
                positive(&[("heads", heads), ("radius", radius), ("expand", expand)])
                    .or_else(|| even(state, 1))
                    .or_else(|| range(steps))
                    .or_else(|| divides(sets))
            }
        }
    }

    /// The feed-forward layer that follows in the host's own code.
    pub fn feed_forward(&self, width: usize) -> Option<FeedForwardConfig> {
        match *self {
            Self::Mega { expand, .. } => Some(FeedForwardConfig {
                hidden: expand * width,
                activation: Activation::Silu,
                deviation: Some(0.02),
            }),
            Self::Spade { expand, .. } => Some(FeedForwardConfig {
                hidden: expand * width,
                activation: Activation::Relu,
                deviation: None,
            }),
            _ => None,
        }
    }

    /// Whether a change of an input changes outputs at that step and later ones only.
    pub fn is_causal(&self) -> bool {
        !matches!(
            self,
            Self::S4d { bidirectional: true, .. }
                | Self::S4 { bidirectional: true, .. }
                | Self::S5 { bidirectional: true, .. }
                | Self::Mega { bidirectional: true, .. }
                | Self::Spade { bidirectional: true, .. }
        )
    }

    /// Whether its published recipes drop channels as a whole, or it is a control of hosts whose recipes do.
    pub fn can_tie_dropout(&self) -> bool {
        matches!(self, Self::None {} | Self::S4d { .. } | Self::S4 { .. } | Self::S5 { .. })
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
    /// Which of them, from the bottom.
    pub index: usize,
    /// Sequence length S4's kernel and Mega's relative positions are trained for.
    pub length: usize,
    /// Probability of dropout within a layer and after it.
    pub dropout: f64,
    /// Whether it is tied over the steps of a sequence, for hosts that [can](HostConfig::can_tie_dropout).
    pub tied_dropout: bool,
}

/// A host's layer with SMR in front of its state-space model, or without.
pub struct Host {
    layer: Layer,
    replay: Option<Replay>,
    place: Place,
    dropout: f64,
    tied_dropout: bool,
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
    Mega(Mega),
    Spade(Spade),
}

impl Host {
    /// Parameters under the host's own names, and `smr` for the module. In SPADE the bottom layer alone has one, and the
    /// table of relative positions stands at the builder's root.
    ///
    /// # Errors
    /// The builder has other shapes under these names.
    pub fn new(
        config: HostConfig,
        replay: Option<ReplayConfig>,
        around: Surroundings,
        vb: VarBuilder,
    ) -> Result<Self> {
        let Surroundings { width, layers, index, length, dropout, tied_dropout } = around;
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
            tied_dropout,
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
            HostConfig::Mega { shared, state, expand, truncation, chunk, bidirectional } => {
                let config = MegaConfig {
                    width,
                    hidden: expand * width,
                    shared,
                    state,
                    truncation,
                    chunk,
                    positions: chunk.map_or(length, |chunk| chunk.min(length)),
                    bidirectional,
                    dropout,
                };
                Layer::Mega(Mega::new(config, vb.clone())?)
            }
            HostConfig::Spade { state, sets, steps, heads, radius, bidirectional, .. } => {
                // buckets and distance as in the authors' script
                let attention = LocalAttentionConfig {
                    width,
                    heads,
                    radius,
                    bidirectional,
                    buckets: 32,
                    max_distance: 128,
                };
                let model = convolution(state, sets, Modes::Legs, steps, bidirectional);
                Layer::Spade(match index {
                    0 => Spade::bottom(attention, model, length, vb.clone(), vb.root())?,
                    _ => Spade::new(attention, vb.clone(), vb.root())?,
                })
            }
        };
        let replay = replay.filter(|_| index == 0 || !matches!(layer, Layer::Spade(_)));
        let place = replay.map_or(Place::Input, |r| r.place);
        if place == Place::Scan && !matches!(layer, Layer::Mamba(_)) {
            bail!("replay.place = \"scan\" is a place within Mamba; other hosts have \"input\"");
        }
        let replay = replay.map(|config| Replay::new(config, inner, vb.pp("smr"))).transpose()?;
        Ok(Self { layer, replay, place, dropout, tied_dropout })
    }

    /// What the layer adds to its `residual`, dropout included; x is the residual behind the norm that precedes the layer,
    /// if one does. All are `[batch, l, width]`. `intervals` `[batch, l]` lead to each input, in units of that of training;
    /// only S5 takes them.
    ///
    /// # Errors
    /// The last dimension is not `width`, or intervals for another host.
    pub fn forward(
        &self,
        x: &Value,
        residual: &Value,
        intervals: Option<&Tensor>,
        masks: Option<&Dropout>,
    ) -> Result<Value> {
        if intervals.is_some() && !matches!(self.layer, Layer::S5 { .. }) {
            bail!("only S5 can be told sampling intervals");
        }
        let dropped = |x: &Value| match self.tied_dropout {
            true => x.tied_dropout(self.dropout, masks),
            false => x.dropout(self.dropout, masks),
        };
        let replayed = |x: &Value| self.replay.as_ref().map_or(Ok(x.clone()), |smr| smr.forward(x));
        let y = match &self.layer {
            // its own dropout comes before the gate
            Layer::Mega(layer) => return layer.forward_with(x, residual, masks, replayed),
            Layer::Spade(layer) => layer.forward_with(x, replayed)?,
            Layer::Mamba(block) if self.place == Place::Scan => block.forward_with(x, replayed)?,
            Layer::Mamba(block) => block.forward(&replayed(x)?)?,
            Layer::Convolution(layer) => layer.forward(&replayed(x)?, masks)?,
            Layer::None(linear) => {
                let y = dropped(&replayed(x)?.activate(Activation::Gelu)?)?;
                linear.forward(&y)?.glu()?
            }
            Layer::S5 { model, activation, dense } => {
                let input = replayed(x)?;
                let y = match intervals {
                    Some(intervals) => model.forward_irregular(&input, intervals)?,
                    None => model.forward(&input)?,
                };
                // flax's GELU is the one by tanh
                let g = dropped(&y.activate(Activation::GeluTanh)?)?;
                match (activation, &dense[..]) {
                    (S5Activation::HalfGlu1, [w]) => w.forward(&g)?.gate(&g, Activation::Sigmoid)?,
                    (S5Activation::HalfGlu2, [w]) => w.forward(&g)?.gate(&y, Activation::Sigmoid)?,
                    (S5Activation::FullGlu, [w1, w2]) => {
                        w2.forward(&g)?.gate(&w1.forward(&g)?, Activation::Sigmoid)?
                    }
                    _ => g,
                }
            }
        };
        dropped(&y)
    }
}
