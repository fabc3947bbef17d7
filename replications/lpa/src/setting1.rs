//! Setting 1: a GPT-like decoder (`architecture/lpa_setting1.py` of the authors' repository).
//!
//! Layer norm stands on the sublayer's output, inside the residual branch, and there is no final norm.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use replica_nn::ops::{Activation, Attention, Dropout};
use replica_nn::{LayerNorm, Linear, Value, init};

use crate::model::ModelConfig;
use crate::projection::{Bias, Projection};

const NORM_EPS: f64 = 1e-5;

/// Multi-head attention without positions.
pub struct SelfAttention {
    query: Projection,
    key: Projection,
    value: Projection,
    out: Projection,
    attention: Attention,
}

impl SelfAttention {
    /// Parameters `query_proj`, `key_proj`, `value_proj`, `out_proj`.
    ///
    /// # Errors
    /// The builder has other shapes under these names.
    pub fn new(config: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        let (d, wide) = (config.hidden_size, config.attention_width());
        let reads = |which, name| {
            Projection::new((d, wide), config.rank_of(which), Bias::Reads, config.pair_init, vb.pp(name))
        };
        Ok(Self {
            query: reads('q', "query_proj")?,
            key: reads('k', "key_proj")?,
            value: reads('v', "value_proj")?,
            out: Projection::new(
                (wide, d),
                config.rank_of('o'),
                Bias::Writes,
                config.pair_init,
                vb.pp("out_proj"),
            )?,
            attention: causal(config),
        })
    }

    /// `[batch, t, d]` to the same.
    ///
    /// # Errors
    /// The last dimension is not d.
    pub fn forward(&self, x: &Value) -> Result<Value> {
        let (q, k, v) = (self.query.forward(x)?, self.key.forward(x)?, self.value.forward(x)?);
        self.out.forward(&q.attention(&k, &v, self.attention)?)
    }
}

/// Causal attention with scores divided by sqrt(head_dim).
pub(crate) fn causal(config: &ModelConfig) -> Attention {
    Attention { heads: config.num_heads, scale: 1.0 / (config.head_dim as f64).sqrt(), causal: true }
}

/// ReLU feed-forward layer; the names are the positions in the authors' `nn.Sequential`.
struct FeedForward {
    up: Projection,
    down: Projection,
}

impl FeedForward {
    fn new(config: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        let (d, f, init) = (config.hidden_size, config.ffn_size, config.pair_init);
        Ok(match config.ffn_rank {
            None => Self {
                up: Projection::full(d, f, Bias::Reads, vb.pp("0"))?,
                down: Projection::full(f, d, Bias::Writes, vb.pp("2"))?,
            },
            Some(r) => Self {
                up: Projection::low((d, r, f), Bias::Reads, init, vb.pp("0"), vb.pp("1"))?,
                down: Projection::low((f, r, d), Bias::Writes, init, vb.pp("3"), vb.pp("4"))?,
            },
        })
    }

    fn forward(&self, x: &Value) -> Result<Value> {
        self.down.forward(&self.up.activated(x, Activation::Relu)?)
    }
}

/// A layer: `x + drop(LN1(attn(x)))`, then `x + drop(LN2(ffn(x)))`; with `post_norm`, `LN(x + drop(.))`.
pub struct Block {
    attention: SelfAttention,
    feed_forward: FeedForward,
    norm1: LayerNorm,
    norm2: LayerNorm,
    post_norm: bool,
    dropout: f64,
}

impl Block {
    /// Parameters `attention`, `fc`, `norm1`, `norm2`.
    ///
    /// # Errors
    /// The builder has other shapes under these names.
    pub fn new(config: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        let norm = |name| LayerNorm::new(config.hidden_size, NORM_EPS, vb.pp(name));
        Ok(Self {
            attention: SelfAttention::new(config, vb.pp("attention"))?,
            feed_forward: FeedForward::new(config, vb.pp("fc"))?,
            norm1: norm("norm1")?,
            norm2: norm("norm2")?,
            post_norm: config.post_norm,
            dropout: config.dropout,
        })
    }

    /// `[batch, t, d]` to the same.
    ///
    /// # Errors
    /// The last dimension is not d.
    pub fn forward(&self, x: &Value, dropout: Option<&Dropout>) -> Result<Value> {
        let x = self.residual(x, &self.attention.forward(x)?, &self.norm1, dropout)?;
        self.residual(&x, &self.feed_forward.forward(&x)?, &self.norm2, dropout)
    }

    fn residual(
        &self,
        x: &Value,
        branch: &Value,
        norm: &LayerNorm,
        dropout: Option<&Dropout>,
    ) -> Result<Value> {
        if self.post_norm {
            norm.forward(&x.add(&branch.dropout(self.dropout, dropout)?)?)
        } else {
            x.add(&norm.forward(branch)?.dropout(self.dropout, dropout)?)
        }
    }
}

/// The language model; its parameters are named `lpa.*`, the head is `lpa.fc`, with a bias and untied.
pub struct Model {
    tokens: Tensor,
    positions: Tensor,
    blocks: Vec<Block>,
    head: Linear,
}

impl Model {
    /// Parameters under the authors' names.
    ///
    /// # Errors
    /// The builder has other shapes under these names.
    pub fn new(config: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        let vb = vb.pp("lpa");
        let d = config.hidden_size;
        let table = |rows: usize, name: &str| vb.get_with_hints((rows, d), name, init::embedding());
        Ok(Self {
            tokens: table(config.vocab_size, "token_embedding.weight")?,
            positions: table(config.seq_len, "positional_embedding.weight")?,
            blocks: (0..config.num_layers)
                .map(|i| Block::new(config, vb.pp(format!("transformer_blocks.{i}"))))
                .collect::<Result<_>>()?,
            head: Linear::new(d, config.vocab_size, true, init::linear, vb.pp("fc"))?,
        })
    }

    /// Last hidden states `[batch, t, d]` of ids `[batch, t]`.
    ///
    /// # Errors
    /// An id outside the vocabulary, or a sequence longer than the position table.
    pub fn hidden(&self, ids: &Value, dropout: Option<&Dropout>) -> Result<Value> {
        let mut x = ids.embedding(&self.tokens)?.add_positions(&self.positions)?;
        for block in &self.blocks {
            x = block.forward(&x, dropout)?;
        }
        Ok(x)
    }

    /// Hidden states to logits.
    pub fn head(&self) -> &Linear {
        &self.head
    }
}
