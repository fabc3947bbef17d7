//! The language models of both settings, and what distinguishes their variants.

use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;
use replica_nn::ops::Dropout;
use replica_nn::{KeyValueCache, Linear, Shapes, Value};
use serde::{Deserialize, Serialize};

use crate::projection::PairInit;
use crate::{setting1, setting2};

/// Which of the paper's two model families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Setting {
    /// GPT-like: learned positions, layer norm on the sublayer's output, ReLU.
    One,
    /// LLaMA-like: rotary positions, RMS pre-norm, SwiGLU.
    Two,
}

impl TryFrom<u8> for Setting {
    type Error = String;

    fn try_from(n: u8) -> std::result::Result<Self, String> {
        match n {
            1 => Ok(Self::One),
            2 => Ok(Self::Two),
            _ => Err(format!("setting = {n}: 1 (GPT-like) or 2 (LLaMA-like) is expected")),
        }
    }
}

impl From<Setting> for u8 {
    fn from(setting: Setting) -> Self {
        match setting {
            Setting::One => 1,
            Setting::Two => 2,
        }
    }
}

/// Everything that determines a model's shape and start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Model family.
    pub setting: Setting,
    /// Rows of the token table and of the head.
    pub vocab_size: usize,
    /// Width d of the residual stream.
    pub hidden_size: usize,
    /// Inner width F of the feed-forward layer.
    pub ffn_size: usize,
    /// Heads H.
    pub num_heads: usize,
    /// Width of a head; H * head_dim need not be d (same-parameter construction).
    pub head_dim: usize,
    /// Layers L.
    pub num_layers: usize,
    /// Longest sequence T.
    pub seq_len: usize,
    /// Rank r of the attention's projections; full without.
    pub attention_rank: Option<usize>,
    /// Which of the attention's projections the rank applies to, letters of `qkvo`.
    pub low_projections: String,
    /// Rank r_f of the feed-forward layer's projections; full without.
    pub ffn_rank: Option<usize>,
    /// How low-dimensional pairs start.
    pub pair_init: PairInit,
    /// Setting 1 only: layer norm after the residual sum, as in the authors' development code.
    pub post_norm: bool,
    /// Setting 1 only: dropout after each sublayer's norm.
    pub dropout: f64,
}

impl ModelConfig {
    /// Width of all heads together.
    pub fn attention_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Rank of projection `which` of the attention.
    pub(crate) fn rank_of(&self, which: char) -> Option<usize> {
        self.attention_rank.filter(|_| self.low_projections.contains(which))
    }

    /// What makes no sense, as "key = value: what is allowed".
    pub fn problem(&self) -> Option<String> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("ffn_size", self.ffn_size),
            ("num_heads", self.num_heads),
            ("head_dim", self.head_dim),
            ("num_layers", self.num_layers),
            ("seq_len", self.seq_len),
            ("attention_rank", self.attention_rank.unwrap_or(1)),
            ("ffn_rank", self.ffn_rank.unwrap_or(1)),
        ];
        if let Some((key, _)) = sizes.into_iter().find(|(_, n)| *n == 0) {
            return Some(format!("{key} = 0: at least 1 is expected"));
        }
        if self.setting == Setting::Two && !self.head_dim.is_multiple_of(2) {
            return Some(format!("head_dim = {}: rotary positions need an even number", self.head_dim));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Some(format!("dropout = {}: a number in [0, 1) is expected", self.dropout));
        }
        if self.low_projections.is_empty() || self.low_projections.chars().any(|c| !"qkvo".contains(c)) {
            return Some(format!(
                "low_projections = \"{}\": some of the letters q, k, v, o are expected",
                self.low_projections
            ));
        }
        None
    }

    /// A rank that saves no parameters, in words: allowed, but worth a warning (paper card, pitfall 11).
    pub fn useless_rank(&self) -> Option<String> {
        let saves_until = |d_in: usize, d_out: usize| d_in * d_out / (d_in + d_out);
        let (d, wide) = (self.hidden_size, self.attention_width());
        let check = |name: &str, rank: Option<usize>, limit: usize| {
            let r = rank.filter(|r| *r > limit)?;
            Some(format!("{name} = {r} saves no parameters; it would below {}", limit + 1))
        };
        check("attention_rank", self.attention_rank, saves_until(d, wide))
            .or_else(|| check("ffn_rank", self.ffn_rank, saves_until(d, self.ffn_size)))
    }

    /// Forward cost of a token in floating-point operations: products with weights, and attention scores
    /// over the full sequence; two operations a multiplication and addition.
    ///
    /// # Errors
    /// The configuration builds no model.
    pub fn forward_flops(&self) -> Result<u64> {
        let shapes = self.shapes()?;
        let products =
            |name: &str| name.ends_with("weight") && !name.contains("embedding") && !name.contains("norm");
        let scores = 4 * self.num_layers * self.seq_len * self.attention_width();
        Ok((2 * shapes.count(products) + scores) as u64)
    }

    /// Names and shapes of all parameters, from the constructor itself.
    ///
    /// # Errors
    /// The configuration builds no model.
    pub fn shapes(&self) -> Result<Shapes> {
        let shapes = Shapes::default();
        LanguageModel::new(self, shapes.builder())?;
        Ok(shapes)
    }
}

/// A decoder with a language-model head.
pub enum LanguageModel {
    /// Setting 1.
    One(setting1::Model),
    /// Setting 2.
    Two(setting2::Model),
}

impl LanguageModel {
    /// Parameters under the authors' names.
    ///
    /// # Errors
    /// The builder has other shapes under these names.
    pub fn new(config: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        Ok(match config.setting {
            Setting::One => Self::One(setting1::Model::new(config, vb)?),
            Setting::Two => Self::Two(setting2::Model::new(config, vb)?),
        })
    }

    fn hidden(
        &self,
        ids: &Value,
        dropout: Option<&Dropout>,
        cache: Option<&mut KeyValueCache>,
    ) -> Result<Value> {
        match self {
            Self::One(model) => model.hidden(ids, dropout, cache),
            Self::Two(model) => model.hidden(ids, cache),
        }
    }

    fn head(&self) -> &Linear {
        match self {
            Self::One(model) => model.head(),
            Self::Two(model) => model.head(),
        }
    }

    /// Logits `[batch, t, vocab]` of ids `[batch, t]`.
    ///
    /// # Errors
    /// An id outside the vocabulary, or a sequence longer than `seq_len`.
    pub fn logits(&self, ids: &Value, dropout: Option<&Dropout>) -> Result<Value> {
        self.head().forward(&self.hidden(ids, dropout, None)?)
    }

    /// Logits `[batch, vocab]` of the token after ids `[batch, t]`, which follow the tokens that the cache holds.
    ///
    /// # Errors
    /// As [`LanguageModel::logits`], the cache's tokens counted in; the cache is of another number of sequences; or
    /// ids on a tape, as a cache is for inference.
    pub fn next_logits(&self, ids: &Value, cache: &mut KeyValueCache) -> Result<Value> {
        let (batch, t) = ids.tensor().dims2()?;
        if t == 0 {
            bail!("the next token needs at least one id to follow, got ids [{batch}, 0]");
        }
        let hidden = self.hidden(ids, None, Some(cache))?;
        self.head().forward(&hidden.select_positions(&vec![t - 1; batch])?)
    }

    /// Mean cross-entropy against labels `[batch, t]`, which are the ids that follow, without keeping the logits.
    ///
    /// # Errors
    /// As [`LanguageModel::logits`], or all labels are ignored.
    pub fn loss(&self, ids: &Value, labels: &Tensor, dropout: Option<&Dropout>) -> Result<Value> {
        self.head().cross_entropy(&self.hidden(ids, dropout, None)?, labels)
    }
}
