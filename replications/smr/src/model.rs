//! The model around a host: encoder, residual blocks, head.

use candle_core::{Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use replica_nn::ops::{Activation, Dropout};
use replica_nn::{BatchNorm, LayerNorm, Linear, RmsNorm, Shapes, Value, init};
use serde::{Deserialize, Serialize};

use crate::data::{Batch, Targets};
use crate::host::{FeedForwardConfig, Host, HostConfig, Surroundings};
use crate::replay::ReplayConfig;

/// Which norm a block has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormKind {
    /// Layer norm.
    Layer,
    /// Root-mean-square norm, Mamba's.
    Rms,
    /// Batch norm over sequences and steps, that of the published Long Range Arena recipes.
    Batch,
}

/// Where a block's norm stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormPlace {
    /// Before the layer, and once more at the end of the model.
    Pre,
    /// After the residual sum.
    Post,
}

/// What a model reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encoder {
    /// Ids below this number.
    Tokens(usize),
    /// So many real numbers a step.
    Values(usize),
}

/// What a model says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Head {
    /// One of so many classes, from the mean over a sequence's true length.
    Classes(usize),
    /// One of so many classes for two documents.
    PairClasses(usize),
    /// A number at every step.
    Regression,
    /// The next of so many tokens.
    NextToken(usize),
}

/// A model's shape but for what data and variants give.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Channels of the residual stream.
    pub width: usize,
    /// Blocks.
    pub layers: usize,
    /// Norm of a block.
    pub norm: NormKind,
    /// Where it stands.
    pub norm_place: NormPlace,
    /// Probability of dropout, within a host's layer and after it.
    #[serde(default)]
    pub dropout: f64,
    /// Whether a layer of S4, S4D or S5 drops a channel at all steps of a sequence or at none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tied_dropout: bool,
}

/// Everything that determines a model's shape and start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// What it reads.
    pub encoder: Encoder,
    /// What it says.
    pub head: Head,
    /// Sizes.
    pub shape: Shape,
    /// The host.
    pub host: HostConfig,
    /// SMR or a control in its place; nothing for the plain host.
    pub replay: Option<ReplayConfig>,
    /// Longest sequence of training; S4's kernel is made for it.
    pub length: usize,
    /// Whether the model is told the true sampling intervals.
    pub told: bool,
}

impl ModelConfig {
    /// What makes no sense, as "key = value: what is allowed".
    pub fn problem(&self) -> Option<String> {
        let Shape { width, layers, dropout, tied_dropout, .. } = self.shape;
        let outputs = match self.head {
            Head::Classes(n) | Head::PairClasses(n) | Head::NextToken(n) => n,
            Head::Regression => 1,
        };
        let sizes = [("width", width), ("layers", layers), ("classes or tokens", outputs)];
        if let Some((key, _)) = sizes.into_iter().find(|(_, n)| *n == 0) {
            return Some(format!("{key} = 0: at least 1 is expected"));
        }
        if !(0.0..1.0).contains(&dropout) {
            return Some(format!("dropout = {dropout}: a number in [0, 1) is expected"));
        }
        if tied_dropout && !self.host.can_tie_dropout() {
            return Some(
                "tied_dropout = true: only hosts of kind \"s4d\", \"s4\", \"s5\" and \"none\" have it"
                    .to_owned(),
            );
        }
        if self.told && !self.host.can_be_told() {
            return Some("told = true: only a host of kind \"s5\" can be told sampling intervals".to_owned());
        }
        self.host.problem(width).or_else(|| self.replay.and_then(|r| r.problem()))
    }

    /// Number of trained scalars, from the constructor itself.
    ///
    /// # Errors
    /// The configuration builds no model.
    pub fn parameters(&self) -> Result<usize> {
        let shapes = Shapes::default();
        Model::new(self, shapes.builder())?;
        Ok(shapes.count(|_| true))
    }
}

enum Norm {
    Layer(LayerNorm),
    Rms(RmsNorm),
    Batch(BatchNorm),
}

impl Norm {
    /// Epsilons and momentum are PyTorch's.
    fn new(kind: NormKind, width: usize, vb: VarBuilder) -> Result<Self> {
        Ok(match kind {
            NormKind::Layer => Self::Layer(LayerNorm::new(width, 1e-5, vb)?),
            NormKind::Rms => Self::Rms(RmsNorm::new(width, 1e-5, vb)?),
            NormKind::Batch => Self::Batch(BatchNorm::new(width, 1e-5, 0.1, true, vb)?),
        })
    }

    fn forward(&self, x: &Value, train: bool) -> Result<Value> {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::Rms(norm) => norm.forward(x),
            Self::Batch(norm) => norm.forward(x, train),
        }
    }
}

/// A norm at its place around a part of a block.
struct Around {
    norm: Norm,
    place: NormPlace,
}

impl Around {
    /// `x + part(norm(x))`, or `norm(x + part(x))`.
    fn forward(&self, x: &Value, train: bool, part: impl FnOnce(&Value) -> Result<Value>) -> Result<Value> {
        match self.place {
            NormPlace::Pre => x.add(&part(&self.norm.forward(x, train)?)?),
            NormPlace::Post => self.norm.forward(&x.add(&part(x)?)?, train),
        }
    }
}

/// A host in its norm, and the feed-forward layer of hosts that have one in a norm of its own.
struct Block {
    around: Around,
    host: Host,
    feed_forward: Option<(Around, FeedForward)>,
}

struct FeedForward {
    first: Linear,
    second: Linear,
    activation: Activation,
    dropout: f64,
}

impl FeedForward {
    fn new(config: FeedForwardConfig, width: usize, dropout: f64, vb: VarBuilder) -> Result<Self> {
        let FeedForwardConfig { hidden, activation, deviation } = config;
        let linear = |from: usize, to: usize, name: &str| {
            let [weight, bias] = match deviation {
                Some(stdev) => [Init::Randn { mean: 0.0, stdev }, candle_nn::init::ZERO],
                None => [init::linear(from); 2],
            };
            Linear::drawn(from, to, weight, Some(bias), vb.pp(name))
        };
        Ok(Self {
            first: linear(width, hidden, "fc1")?,
            second: linear(hidden, width, "fc2")?,
            activation,
            dropout,
        })
    }

    fn forward(&self, x: &Value, masks: Option<&Dropout>) -> Result<Value> {
        let inner = self.first.activated(x, self.activation)?.dropout(self.dropout, masks)?;
        self.second.forward(&inner)?.dropout(self.dropout, masks)
    }
}

impl Block {
    fn forward(&self, x: &Value, intervals: Option<&Tensor>, masks: Option<&Dropout>) -> Result<Value> {
        let train = masks.is_some();
        let y = self.around.forward(x, train, |input| self.host.forward(input, x, intervals, masks))?;
        match &self.feed_forward {
            Some((around, part)) => around.forward(&y, train, |input| part.forward(input, masks)),
            None => Ok(y),
        }
    }
}

enum Embedding {
    Table(Tensor),
    Linear(Linear),
}

enum Output {
    Classes(Linear),
    /// `W2 gelu(W1 [a, b, a - b, a b] + b1) + b2`.
    Pair(Linear, Linear),
    Regression(Linear),
    NextToken(Linear),
}

/// The model.
pub struct Model {
    encoder: Embedding,
    blocks: Vec<Block>,
    norm: Option<Norm>,
    output: Output,
    told: bool,
}

impl Model {
    /// Parameters `encoder`, `layers.*.{norm, layer, nffn}`, `norm`, `decoder`.
    ///
    /// # Errors
    /// The builder has other shapes under these names.
    pub fn new(config: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        let Shape { width, layers, norm, norm_place, dropout, tied_dropout } = config.shape;
        let block = |index: usize| {
            let vb = vb.pp(format!("layers.{index}"));
            let around = |vb: VarBuilder| {
                let norm = Norm::new(norm, width, vb.pp("norm"))?;
                Ok::<_, candle_core::Error>(Around { norm, place: norm_place })
            };
            let length = config.length;
            let surroundings = Surroundings { width, layers, index, length, dropout, tied_dropout };
            let feed_forward = config.host.feed_forward(width).map(|part| {
                let vb = vb.pp("nffn");
                Ok::<_, candle_core::Error>((
                    around(vb.clone())?,
                    FeedForward::new(part, width, dropout, vb)?,
                ))
            });
            Ok(Block {
                around: around(vb.clone())?,
                host: Host::new(config.host, config.replay, surroundings, vb.pp("layer"))?,
                feed_forward: feed_forward.transpose()?,
            })
        };
        let encoder = vb.pp("encoder");
        let linear = |from, to, vb: VarBuilder| Linear::new(from, to, true, init::linear, vb);
        let decoder = vb.pp("decoder");
        Ok(Self {
            encoder: match config.encoder {
                Encoder::Tokens(ids) => {
                    Embedding::Table(encoder.get_with_hints((ids, width), "weight", init::embedding())?)
                }
                Encoder::Values(channels) => Embedding::Linear(linear(channels, width, encoder)?),
            },
            blocks: (0..layers).map(block).collect::<Result<_>>()?,
            norm: match norm_place {
                NormPlace::Pre => Some(Norm::new(norm, width, vb.pp("norm"))?),
                NormPlace::Post => None,
            },
            output: match config.head {
                Head::Classes(n) => Output::Classes(linear(width, n, decoder)?),
                Head::PairClasses(n) => Output::Pair(
                    linear(4 * width, width, decoder.pp("0"))?,
                    linear(width, n, decoder.pp("2"))?,
                ),
                Head::Regression => Output::Regression(linear(width, 1, decoder)?),
                Head::NextToken(n) => Output::NextToken(linear(width, n, decoder)?),
            },
            told: config.told,
        })
    }

    /// Hidden states `[rows, l, width]` of a batch. In training there are `masks`.
    ///
    /// # Errors
    /// Inputs of another kind than the model reads.
    pub fn hidden(
        &self,
        inputs: &Value,
        intervals: Option<&Tensor>,
        masks: Option<&Dropout>,
    ) -> Result<Value> {
        let mut x = match &self.encoder {
            Embedding::Table(table) => inputs.embedding(table)?,
            Embedding::Linear(linear) => linear.forward(inputs)?,
        };
        for block in &self.blocks {
            x = block.forward(&x, intervals, masks)?;
        }
        match &self.norm {
            Some(norm) => norm.forward(&x, masks.is_some()),
            None => Ok(x),
        }
    }

    fn encode(&self, inputs: &Value, batch: &Batch, masks: Option<&Dropout>) -> Result<Value> {
        let intervals = batch.intervals.as_ref().filter(|_| self.told);
        if self.told && intervals.is_none() {
            bail!("the model is to be told sampling intervals, the data has none");
        }
        self.hidden(inputs, intervals, masks)
    }

    /// What the head says: logits `[items, classes]`, or numbers `[rows, l, 1]`.
    ///
    /// # Errors
    /// The batch is of another kind than the model, or a next token is asked for, which only [`Model::loss`] weighs.
    pub fn outputs(&self, inputs: &Value, batch: &Batch, masks: Option<&Dropout>) -> Result<Value> {
        let hidden = self.encode(inputs, batch, masks)?;
        match &self.output {
            Output::Classes(linear) => linear.forward(&hidden.mean_of_first(&batch.lengths)?),
            Output::Pair(first, second) => {
                let features = hidden.mean_of_first(&batch.lengths)?.pair_features()?;
                second.forward(&first.forward(&features)?.activate(Activation::Gelu)?)
            }
            Output::Regression(linear) => linear.forward(&hidden),
            Output::NextToken(linear) => linear.forward(&hidden),
        }
    }

    /// Mean cross-entropy, or mean squared error, on a batch.
    ///
    /// # Errors
    /// As [`Model::outputs`].
    pub fn loss(&self, inputs: &Value, batch: &Batch, masks: Option<&Dropout>) -> Result<Value> {
        match (&self.output, &batch.targets) {
            (Output::NextToken(linear), Targets::Classes(next)) => {
                linear.cross_entropy(&self.encode(inputs, batch, masks)?, next)
            }
            (Output::Regression(_), Targets::Values(values)) => {
                self.outputs(inputs, batch, masks)?.mean_squared_error(values)
            }
            (Output::Classes(_) | Output::Pair(..), Targets::Classes(classes)) => {
                self.outputs(inputs, batch, masks)?.cross_entropy(classes)
            }
            _ => bail!("the model's head and the batch's targets do not belong together"),
        }
    }
}
