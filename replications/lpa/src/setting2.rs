//! Setting 2: a LLaMA-like decoder (`architecture/lpa_setting2.py` of the authors' repository).

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use replica_nn::ops::{Activation, Attention, RopeTable, Scores};
use replica_nn::{Linear, RmsNorm, Value, init};

use crate::model::ModelConfig;
use crate::projection::{Bias, Projection};
use crate::setting1::causal;

const NORM_EPS: f64 = 1e-6;
const ROPE_BASE: f64 = 10_000.0;

/// Multi-head attention with rotary positions.
pub struct SelfAttention {
    query: Projection,
    key: Projection,
    value: Projection,
    out: Projection,
    attention: Attention,
    rope: RopeTable,
}

impl SelfAttention {
    /// Parameters `q_proj`, `k_proj`, `v_proj`, `o_proj`.
    ///
    /// # Errors
    /// The builder has other shapes under these names.
    pub fn new(config: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        let (d, wide) = (config.hidden_size, config.attention_width());
        let projection = |which, size, name| {
            Projection::new(size, config.rank_of(which), Bias::None, config.pair_init, vb.pp(name))
        };
        Ok(Self {
            query: projection('q', (d, wide), "q_proj")?,
            key: projection('k', (d, wide), "k_proj")?,
            value: projection('v', (d, wide), "v_proj")?,
            out: projection('o', (wide, d), "o_proj")?,
            attention: causal(config),
            rope: RopeTable::new(config.head_dim, config.seq_len, ROPE_BASE)?,
        })
    }

    /// `[batch, t, d]` to the same.
    ///
    /// # Errors
    /// The last dimension is not d, or the sequence is longer than `seq_len`.
    pub fn forward(&self, x: &Value) -> Result<Value> {
        let (q, k, v) = (self.query.forward(x)?, self.key.forward(x)?, self.value.forward(x)?);
        let scores = Scores { rope: Some(&self.rope), ..Scores::default() };
        self.out.forward(&q.attention_with(&k, &v, self.attention, scores)?)
    }
}

/// SwiGLU feed-forward layer: `down(silu(gate x) * up x)`.
struct FeedForward {
    gate: Projection,
    up: Projection,
    down: Projection,
}

impl FeedForward {
    fn new(config: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        let (d, f) = (config.hidden_size, config.ffn_size);
        let projection =
            |size, name| Projection::new(size, config.ffn_rank, Bias::None, config.pair_init, vb.pp(name));
        Ok(Self {
            gate: projection((d, f), "gate_proj")?,
            up: projection((d, f), "up_proj")?,
            down: projection((f, d), "down_proj")?,
        })
    }

    fn forward(&self, x: &Value) -> Result<Value> {
        self.down.forward(&self.gate.forward(x)?.gate(&self.up.forward(x)?, Activation::Silu)?)
    }
}

/// A layer: `x + attn(RMS1(x))`, then `x + ffn(RMS2(x))`.
pub struct Block {
    attention: SelfAttention,
    feed_forward: FeedForward,
    norm1: RmsNorm,
    norm2: RmsNorm,
}

impl Block {
    /// Parameters `attention`, `ffn`, `norm1`, `norm2`.
    ///
    /// # Errors
    /// The builder has other shapes under these names.
    pub fn new(config: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            attention: SelfAttention::new(config, vb.pp("attention"))?,
            feed_forward: FeedForward::new(config, vb.pp("ffn"))?,
            norm1: RmsNorm::new(config.hidden_size, NORM_EPS, vb.pp("norm1"))?,
            norm2: RmsNorm::new(config.hidden_size, NORM_EPS, vb.pp("norm2"))?,
        })
    }

    /// `[batch, t, d]` to the same.
    ///
    /// # Errors
    /// As [`SelfAttention::forward`].
    pub fn forward(&self, x: &Value) -> Result<Value> {
        let x = x.add(&self.attention.forward(&self.norm1.forward(x)?)?)?;
        x.add(&self.feed_forward.forward(&self.norm2.forward(&x)?)?)
    }
}

/// The decoder without head: token table, layers, final norm.
pub struct Decoder {
    tokens: Tensor,
    blocks: Vec<Block>,
    norm: RmsNorm,
}

impl Decoder {
    /// Parameters `token_embedding`, `transformer_blocks.*`, `norm`.
    ///
    /// # Errors
    /// The builder has other shapes under these names.
    pub fn new(config: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        let d = config.hidden_size;
        Ok(Self {
            tokens: vb.get_with_hints((config.vocab_size, d), "token_embedding.weight", init::embedding())?,
            blocks: (0..config.num_layers)
                .map(|i| Block::new(config, vb.pp(format!("transformer_blocks.{i}"))))
                .collect::<Result<_>>()?,
            norm: RmsNorm::new(d, NORM_EPS, vb.pp("norm"))?,
        })
    }

    /// Last hidden states `[batch, t, d]` of ids `[batch, t]`, normalised.
    ///
    /// # Errors
    /// An id outside the vocabulary, or a sequence longer than `seq_len`.
    pub fn forward(&self, ids: &Value) -> Result<Value> {
        let mut x = ids.embedding(&self.tokens)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        self.norm.forward(&x)
    }
}

/// The language model: decoder `lpa` and head `fc`, with a bias and untied.
pub struct Model {
    decoder: Decoder,
    head: Linear,
}

impl Model {
    /// Parameters under the authors' names.
    ///
    /// # Errors
    /// The builder has other shapes under these names.
    pub fn new(config: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            decoder: Decoder::new(config, vb.pp("lpa"))?,
            head: Linear::new(config.hidden_size, config.vocab_size, true, init::linear, vb.pp("fc"))?,
        })
    }

    /// Last hidden states `[batch, t, d]` of ids `[batch, t]`.
    ///
    /// # Errors
    /// As [`Decoder::forward`].
    pub fn hidden(&self, ids: &Value) -> Result<Value> {
        self.decoder.forward(ids)
    }

    /// Hidden states to logits.
    pub fn head(&self) -> &Linear {
        &self.head
    }
}
