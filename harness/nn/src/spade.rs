//! SPADE (Zuo et al. 2022, "Efficient Long Sequence Modeling via State Space Augmented Transformer"): attention to what is
//! near, and in the bottom layer a state-space model beside it for what is far.

use candle_core::{Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};

use crate::init;
use crate::layers::{LayerNorm, Linear};
use crate::ops::{Attention, OUT_OF_REACH, Scores, window_mask};
use crate::s4d::{S4d, S4dConfig};
use crate::t5::relative_bucket;
use crate::tape::Value;

/// How a query attends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAttentionConfig {
    /// Width of input and output.
    pub width: usize,
    /// Heads, of `ceil(width / heads)` channels each.
    pub heads: usize,
    /// Steps between a query and the furthest keys it sees.
    pub radius: usize,
    /// Whether it sees later keys.
    pub bidirectional: bool,
    /// Rows of the table of relative positions.
    pub buckets: usize,
    /// Distance from which on all positions share a bucket.
    pub max_distance: usize,
}

/// Attention within a radius, with T5's bias for relative positions; parameters `q`, `k`, `v`, `o`.
///
/// Queries are cut into blocks of radius + 1, each with the keys its queries see at most, so that time is linear in the
/// length of the sequence.
#[derive(Clone)]
pub struct LocalAttention {
    config: LocalAttentionConfig,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    table: Tensor,
}

/// `nn.init.xavier_uniform_`.
fn xavier(from: usize, to: usize, gain: f64) -> Init {
    let bound = gain * (6.0 / (from + to) as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}

impl LocalAttention {
    /// The table `relative_attention_bias.weight` `[buckets, heads]` is taken from `positions`: the layers of a model share
    /// one. Initial values are those of the authors' code.
    ///
    /// # Errors
    /// No heads, too few buckets, or the builders have other shapes.
    pub fn new(config: LocalAttentionConfig, vb: VarBuilder, positions: VarBuilder) -> Result<Self> {
        let LocalAttentionConfig { width, heads, buckets, max_distance, .. } = config;
        if heads == 0
            || width == 0
            || buckets < 4
            || !buckets.is_multiple_of(2)
            || max_distance <= buckets / 2
        {
            bail!(
                "local attention: {config:?}; heads, an even number of at least 4 buckets, and more steps than half of these are expected"
            );
        }
        let inner = heads * width.div_ceil(heads);
        let projection =
            |name: &str| Linear::drawn(width, inner, xavier(width, inner, 0.5f64.sqrt()), None, vb.pp(name));
        Ok(Self {
            q: projection("q")?,
            k: projection("k")?,
            v: projection("v")?,
            o: Linear::drawn(inner, width, xavier(inner, width, 1.0), None, vb.pp("o"))?,
            table: positions.pp("relative_attention_bias").get_with_hints(
                (buckets, heads),
                "weight",
                init::embedding(),
            )?,
            config,
        })
    }

    /// `[batch, l, width]` to the same.
    ///
    /// # Errors
    /// The last dimension is not `width`.
    pub fn forward(&self, x: &Value) -> Result<Value> {
        let LocalAttentionConfig { width, heads, radius, bidirectional, buckets, max_distance } = self.config;
        let (batch, l, _) = x.tensor().dims3()?;
        let device = x.tensor().device();
        let (q, k, v) = (self.q.forward(x)?, self.k.forward(x)?, self.v.forward(x)?);
        let block = l.min(radius + 1);
        let before = if block < l { radius } else { 0 };
        let after = if bidirectional { before } else { 0 };
        let reach = |d: i64| match d.unsigned_abs() as usize > radius {
            true => OUT_OF_REACH,
            false => relative_bucket(d, bidirectional, buckets, max_distance),
        };
        let (first, last) = (before + block - 1, block + after);
        let rows = Tensor::from_iter((-(first as i64)..last as i64).map(reach), device)?;
        let bias = x.constant_beside(rows).relative_bias(block, &self.table)?;
        let scale = 1.0 / (width.div_ceil(heads) as f64).sqrt();
        let attention = Attention { heads, scale, causal: !bidirectional };
        let y = if block == l {
            q.attention_with(&k, &v, attention, Scores { bias: Some(&bias), ..Scores::default() })?
        } else {
            let mask = window_mask((batch, l), (block, before, after), device)?;
            let scores = Scores { bias: Some(&bias), mask: mask.as_ref(), rope: None };
            let [k, v] = [k, v].map(|x| x.windows(block, before, after));
            q.windows(block, 0, 0)?.attention_with(&k?, &v?, attention, scores)?.joined(batch, l)?
        };
        self.o.forward(&y)
    }
}

/// A layer but for its feed-forward part: local attention, and S4 beside it if it is the bottom one.
#[derive(Clone)]
pub struct Spade {
    local: LocalAttention,
    global: Option<Global>,
}

/// `W [norm(S4(x)), norm(local(x))] + b`, W in its two halves.
#[derive(Clone)]
struct Global {
    model: S4d,
    norm_global: LayerNorm,
    norm_local: LayerNorm,
    of_global: Linear,
    of_local: Linear,
}

impl Spade {
    /// A layer with local attention only; see [`LocalAttention::new`] for `positions`.
    ///
    /// # Errors
    /// As [`LocalAttention::new`].
    pub fn new(config: LocalAttentionConfig, vb: VarBuilder, positions: VarBuilder) -> Result<Self> {
        Ok(Self { local: LocalAttention::new(config, vb.pp("self_attn"), positions)?, global: None })
    }

    /// The bottom layer: its state-space model is S4 without activation and output layer, its kernel made for sequences of
    /// `length`.
    ///
    /// # Errors
    /// As [`LocalAttention::new`] and [`S4d::low_rank`].
    pub fn bottom(
        config: LocalAttentionConfig,
        model: S4dConfig,
        length: usize,
        vb: VarBuilder,
        positions: VarBuilder,
    ) -> Result<Self> {
        let width = config.width;
        let norm = |name: &str| LayerNorm::new(width, 1e-5, vb.pp(name));
        let aggregate = vb.pp("aggregate");
        let drawn = init::linear(2 * width);
        let global = Global {
            model: S4d::bare_low_rank(model, length, vb.pp("s4_module.s4"))?,
            norm_global: norm("norm_global")?,
            norm_local: norm("norm_local")?,
            of_global: Linear::drawn(width, width, drawn, Some(drawn), aggregate.pp("global"))?,
            of_local: Linear::drawn(width, width, drawn, None, aggregate.pp("local"))?,
        };
        Ok(Self { global: Some(global), ..Self::new(config, vb, positions)? })
    }

    /// `[batch, l, width]` to the same.
    ///
    /// # Errors
    /// The last dimension is not `width`.
    pub fn forward(&self, x: &Value) -> Result<Value> {
        self.forward_with(x, |x| Ok(x.clone()))
    }

    /// As [`Spade::forward`]; the state-space model sees `adapt` of x instead, local attention sees x.
    ///
    /// # Errors
    /// As [`Spade::forward`], and those of `adapt`.
    pub fn forward_with(&self, x: &Value, adapt: impl FnOnce(&Value) -> Result<Value>) -> Result<Value> {
        let local = self.local.forward(x)?;
        let Some(global) = &self.global else { return Ok(local) };
        let far = global.norm_global.forward(&global.model.convolution(&adapt(x)?)?)?;
        let near = global.norm_local.forward(&local)?;
        global.of_global.forward(&far)?.add(&global.of_local.forward(&near)?)
    }
}
