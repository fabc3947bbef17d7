//! Layers of BERT as its original checkpoints have them: layer norm after each residual sum, GELU by the error
//! function, biases everywhere.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use replica_nn::ops::{Activation, Attention, Scores};
use replica_nn::{LayerNorm, Linear, Tape, Value};

use super::normal;

const EPS: f64 = 1e-12;

/// What all layers of a model share.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) hidden_size: usize,
    pub(crate) heads: usize,
    pub(crate) ffn_size: usize,
    pub(crate) vocab_size: usize,
}

/// Words and learned positions, normalised. Token types are left out: one type is a constant.
pub(crate) struct Embeddings {
    pub(crate) word: Tensor,
    position: Tensor,
    norm: LayerNorm,
}

impl Embeddings {
    pub(crate) fn new(sizes: Sizes, seq_len: usize, vb: VarBuilder) -> Result<Self> {
        let width = sizes.hidden_size;
        let table = |name, rows| vb.get_with_hints((rows, width), name, normal(width));
        Ok(Self {
            word: table("word.weight", sizes.vocab_size)?,
            position: table("position.weight", seq_len)?,
            norm: LayerNorm::new(width, EPS, vb.pp("norm"))?,
        })
    }

    pub(crate) fn forward(&self, tape: &Tape, ids: &Tensor) -> Result<Value> {
        let words = tape.constant(ids.clone()).embedding(&self.word)?;
        self.norm.forward(&words.add_positions(&self.position)?)
    }
}

/// What attention reads: a sequence `[batch, s, width]`, and which of it is not padding, `[batch, s]` of u8.
#[derive(Clone, Copy)]
pub(crate) struct Memory<'a> {
    pub(crate) states: &'a Value,
    pub(crate) mask: Option<&'a Tensor>,
}

fn attention(sizes: Sizes, causal: bool) -> Attention {
    let head_dim = sizes.hidden_size / sizes.heads;
    Attention { heads: sizes.heads, scale: 1.0 / (head_dim as f64).sqrt(), causal }
}

/// Attention of a sequence to itself, with its residual sum and norm.
pub(crate) struct SelfAttention {
    qkv: Linear,
    out: Linear,
    norm: LayerNorm,
    attention: Attention,
}

impl SelfAttention {
    pub(crate) fn new(sizes: Sizes, causal: bool, vb: VarBuilder) -> Result<Self> {
        let width = sizes.hidden_size;
        Ok(Self {
            qkv: Linear::new(width, 3 * width, true, normal, vb.pp("qkv"))?,
            out: Linear::new(width, width, true, normal, vb.pp("out"))?,
            norm: LayerNorm::new(width, EPS, vb.pp("norm"))?,
            attention: attention(sizes, causal),
        })
    }

    pub(crate) fn forward(&self, x: &Value, mask: Option<&Tensor>) -> Result<Value> {
        let scores = Scores { mask, ..Scores::default() };
        let attended = self.qkv.forward(x)?.self_attention(self.attention, scores)?;
        self.norm.forward(&x.add(&self.out.forward(&attended)?)?)
    }
}

/// Attention to another sequence, with its residual sum and norm.
pub(crate) struct CrossAttention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm: LayerNorm,
    attention: Attention,
}

impl CrossAttention {
    pub(crate) fn new(sizes: Sizes, vb: VarBuilder) -> Result<Self> {
        let width = sizes.hidden_size;
        let linear = |name| Linear::new(width, width, true, normal, vb.pp(name));
        Ok(Self {
            q: linear("q")?,
            k: linear("k")?,
            v: linear("v")?,
            out: linear("out")?,
            norm: LayerNorm::new(width, EPS, vb.pp("norm"))?,
            attention: attention(sizes, false),
        })
    }

    pub(crate) fn forward(&self, x: &Value, memory: Memory) -> Result<Value> {
        let (k, v) = (self.k.forward(memory.states)?, self.v.forward(memory.states)?);
        let scores = Scores { mask: memory.mask, ..Scores::default() };
        let attended = self.q.forward(x)?.attention_with(&k, &v, self.attention, scores)?;
        self.norm.forward(&x.add(&self.out.forward(&attended)?)?)
    }
}

/// The feed-forward sublayer.
pub(crate) struct FeedForward {
    fc1: Linear,
    fc2: Linear,
    norm: LayerNorm,
}

impl FeedForward {
    pub(crate) fn new(sizes: Sizes, vb: VarBuilder) -> Result<Self> {
        let Sizes { hidden_size: width, ffn_size, .. } = sizes;
        Ok(Self {
            fc1: Linear::new(width, ffn_size, true, normal, vb.pp("fc1"))?,
            fc2: Linear::new(ffn_size, width, true, normal, vb.pp("fc2"))?,
            norm: LayerNorm::new(width, EPS, vb.pp("norm"))?,
        })
    }

    pub(crate) fn forward(&self, x: &Value) -> Result<Value> {
        let inner = self.fc1.activated(x, Activation::Gelu)?;
        self.norm.forward(&x.add(&self.fc2.forward(&inner)?)?)
    }
}

/// The masked-language-model head: dense, GELU, layer norm, and the word table again.
pub(crate) struct Head {
    dense: Linear,
    norm: LayerNorm,
    bias: Tensor,
}

impl Head {
    pub(crate) fn new(sizes: Sizes, vb: VarBuilder) -> Result<Self> {
        let width = sizes.hidden_size;
        Ok(Self {
            dense: Linear::new(width, width, true, normal, vb.pp("dense"))?,
            norm: LayerNorm::new(width, EPS, vb.pp("norm"))?,
            bias: vb.get_with_hints(sizes.vocab_size, "bias", normal(width))?,
        })
    }

    /// Mean cross-entropy of the words in `table` against labels.
    pub(crate) fn loss(&self, x: &Value, table: &Tensor, labels: &Tensor) -> Result<Value> {
        let x = self.norm.forward(&self.dense.activated(x, Activation::Gelu)?)?;
        x.linear_cross_entropy(table, Some(&self.bias), labels)
    }
}
