//! Mega (Ma et al. 2023, "Mega: Moving Average Equipped Gated Attention"): a damped moving average of every channel, and
//! attention with one head whose queries and keys come from it, within chunks of the sequence.

use candle_core::{Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};

use crate::init;
use crate::layers::Linear;
use crate::ops::{Activation, Attention, DampedAverage, Dropout, Scores, window_mask};
use crate::tape::Value;

/// What a Mega layer is made of, but for its feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MegaConfig {
    /// Channels.
    pub width: usize,
    /// Channels of values; twice `width` in the paper.
    pub hidden: usize,
    /// Channels of queries and keys.
    pub shared: usize,
    /// Dimensions of a channel's moving average; 16 in the paper.
    pub state: usize,
    /// Most taps of the average's kernel; as many as the sequence has steps if absent.
    pub truncation: Option<usize>,
    /// Steps of a chunk; the whole sequence if absent.
    pub chunk: Option<usize>,
    /// Longest attention the table of relative positions is made for.
    pub positions: usize,
    /// Whether the average and attention look ahead, too.
    pub bidirectional: bool,
    /// Probability of dropout on the average and on the candidate.
    pub dropout: f64,
}

/// A layer with the parameter names of the authors' code: `move.{delta, alpha, beta, gamma, omega}`, `v_proj`, `mx_proj`,
/// `h_proj`, `rel_pos_bias.rel_pos_bias`; and `query.{gamma, beta}` and `key.{gamma, beta}`, which are one there.
#[derive(Clone)]
pub struct Mega {
    config: MegaConfig,
    average: MovingAverage,
    v_proj: Linear,
    mx_proj: Linear,
    h_proj: Linear,
    query: Affine,
    key: Affine,
    positions: Tensor,
}

/// `silu(average of x + omega x)`.
#[derive(Clone)]
pub struct MovingAverage {
    kernel: DampedAverage,
    omega: Tensor,
    truncation: Option<usize>,
}

fn normal(stdev: f64) -> Init {
    Init::Randn { mean: 0.0, stdev }
}

impl MovingAverage {
    /// Parameters `delta`, `alpha`, `beta` `[sides * width, state, 1]`, `gamma` `[sides * width, state]`, `omega` `[width]`,
    /// drawn as in the authors' code: `beta` alternates between 1 and -1.
    ///
    /// # Errors
    /// The builder has other shapes under these names.
    pub fn new(config: MegaConfig, vb: VarBuilder) -> Result<Self> {
        let MegaConfig { width, state, truncation, .. } = config;
        let sides = if config.bidirectional { 2 } else { 1 };
        let drawn = |name: &str, stdev| vb.get_with_hints((sides * width, state, 1), name, normal(stdev));
        let kernel = DampedAverage {
            delta: drawn("delta", 0.2)?,
            alpha: drawn("alpha", 0.2)?,
            beta: init::computed(&vb, (sides * width, state, 1), "beta", normal(0.02), |drawn| {
                let alternating = |i: usize| if (i % state).is_multiple_of(2) { 1.0 } else { -1.0 };
                drawn.into_iter().enumerate().map(|(i, v)| v + alternating(i)).collect()
            })?,
            gamma: vb.get_with_hints((sides * width, state), "gamma", normal(1.0))?,
            sides,
        };
        Ok(Self { kernel, omega: vb.get_with_hints(width, "omega", normal(1.0))?, truncation })
    }

    /// `[batch, l, width]` to the same.
    ///
    /// # Errors
    /// The last dimension is not `width`.
    pub fn forward(&self, x: &Value) -> Result<Value> {
        let (_, l, _) = x.tensor().dims3()?;
        let taps = self.kernel.taps(self.truncation.map_or(l, |most| most.clamp(1, l)), x)?;
        x.transpose()?.causal_convolution(&taps, &self.omega)?.activate(Activation::Silu)?.transpose()
    }
}

impl Mega {
    /// Weights are drawn from N(0, 0.02) and biases start at 0, as in the authors' code.
    ///
    /// # Errors
    /// A size of 0, or the builder has other shapes.
    pub fn new(config: MegaConfig, vb: VarBuilder) -> Result<Self> {
        let MegaConfig { width, hidden, shared, positions, .. } = config;
        if [width, hidden, shared, config.state, positions].contains(&0) || config.chunk == Some(0) {
            bail!("Mega: no size may be 0, got {config:?}");
        }
        let linear = |from: usize, to: usize, name: &str| {
            Linear::drawn(from, to, normal(0.02), Some(candle_nn::init::ZERO), vb.pp(name))
        };
        let affine = |name: &str| {
            let vb = vb.pp(name);
            Ok::<_, candle_core::Error>(Affine {
                gamma: vb.get_with_hints((shared, 1, 1), "gamma", normal(0.02))?,
                beta: vb.get_with_hints(shared, "beta", candle_nn::init::ZERO)?,
            })
        };
        let table = vb.pp("rel_pos_bias");
        Ok(Self {
            average: MovingAverage::new(config, vb.pp("move"))?,
            v_proj: linear(width, hidden, "v_proj")?,
            mx_proj: linear(width, shared + hidden + 2 * width, "mx_proj")?,
            h_proj: linear(hidden, width, "h_proj")?,
            query: affine("query")?,
            key: affine("key")?,
            positions: table.get_with_hints((2 * positions - 1, 1), "rel_pos_bias", normal(0.02))?,
            config,
        })
    }

    /// What the layer adds to its `residual`, `u (candidate - residual)`; x is the residual behind the norm that precedes
    /// the layer, if one does. Both are `[batch, l, width]`.
    ///
    /// # Errors
    /// The last dimension is not `width`.
    pub fn forward(&self, x: &Value, residual: &Value, masks: Option<&Dropout>) -> Result<Value> {
        self.forward_with(x, residual, masks, |x| Ok(x.clone()))
    }

    /// As [`Mega::forward`]; the moving average with its residual sees `adapt` of x instead, values see x.
    ///
    /// # Errors
    /// As [`Mega::forward`], and those of `adapt`.
    pub fn forward_with(
        &self,
        x: &Value,
        residual: &Value,
        masks: Option<&Dropout>,
        adapt: impl FnOnce(&Value) -> Result<Value>,
    ) -> Result<Value> {
        let MegaConfig { width, hidden, shared, dropout, .. } = self.config;
        let average = self.average.forward(&adapt(x)?)?.dropout(dropout, masks)?;
        let base = self.mx_proj.forward(&average)?;
        let columns = |first: usize, count: usize| base.columns(first..first + count);
        let z = columns(width, shared)?.activate(Activation::Silu)?;
        let reset = columns(width + shared, hidden)?;
        let values = self.v_proj.activated(x, Activation::Silu)?;
        let attended = self.attention(&self.query.of(&z)?, &self.key.of(&z)?, &values)?;
        let candidate = columns(width + shared + hidden, width)?
            .add(&self.h_proj.forward(&reset.gate(&attended, Activation::Silu)?)?)?
            .activate(Activation::Silu)?
            .dropout(dropout, masks)?;
        columns(0, width)?.gate(&candidate.add(&residual.scale(-1.0)?)?, Activation::Sigmoid)
    }

    /// Attention with one head and a learned bias for relative positions, within chunks. Positions further apart than
    /// the table knows share its outermost entries (our choice; the authors' code refuses them).
    fn attention(&self, q: &Value, k: &Value, v: &Value) -> Result<Value> {
        let MegaConfig { shared, chunk, positions, bidirectional, .. } = self.config;
        let (batch, l, _) = q.tensor().dims3()?;
        let chunk = chunk.map_or(l, |chunk| chunk.min(l));
        let attention = Attention { heads: 1, scale: 1.0 / (shared as f64).sqrt(), causal: !bidirectional };
        let (reach, furthest) = (chunk as i64 - 1, positions as i64 - 1);
        let rows = (-reach..=reach).map(|d| (d.clamp(-furthest, furthest) + furthest) as u32);
        let device = q.tensor().device();
        let bias =
            q.constant_beside(Tensor::from_iter(rows, device)?).relative_bias(chunk, &self.positions)?;
        if chunk == l {
            return q.attention_with(k, v, attention, Scores { bias: Some(&bias), ..Scores::default() });
        }
        let [q, k, v] = [q, k, v].map(|x| x.windows(chunk, 0, 0));
        let mask = window_mask((batch, l), (chunk, 0, 0), device)?;
        let scores = Scores { bias: Some(&bias), mask: mask.as_ref(), rope: None };
        q?.attention_with(&k?, &v?, attention, scores)?.joined(batch, l)
    }
}

/// `gamma x + beta`, for every channel.
#[derive(Clone)]
struct Affine {
    gamma: Tensor,
    beta: Tensor,
}

impl Affine {
    /// It is a convolution over channels of their own with one tap.
    fn of(&self, x: &Value) -> Result<Value> {
        x.depthwise_conv1d(&self.gamma, Some(&self.beta), false)
    }
}
