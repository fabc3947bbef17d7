//! T5 (Raffel et al. 2020), encoder and decoder, under the parameter names of Hugging Face's checkpoints: T5, T5 v1.1,
//! Flan-T5, CodeT5.
//!
//! What is easily got wrong: scores are not divided by sqrt(d_kv); positions enter only through a bias on the scores of
//! self-attention, whose table lies in layer 0 of a stack and serves all its layers; a tied head multiplies the
//! decoder's states by d_model^-0.5 first. Dropout stands where the paper has it except on the attention's
//! weights, which are never stored.

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use serde::{Deserialize, Serialize};

use crate::cache::{KeyValueCache, with_past};
use crate::layers::{Linear, RmsNorm};
use crate::ops::{Activation, Attention, Dropout, Scores};
use crate::tape::Value;

/// What Hugging Face's `config.json` says about a T5 model; other keys of such a file are not looked at.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct T5Config {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the states.
    pub d_model: usize,
    /// Width of a head; heads * d_kv need not be `d_model`.
    #[serde(default = "default::d_kv")]
    pub d_kv: usize,
    /// Inner width of the feed-forward layers.
    pub d_ff: usize,
    /// Layers of the encoder.
    pub num_layers: usize,
    /// Layers of the decoder; as many as the encoder's without.
    #[serde(default)]
    pub num_decoder_layers: Option<usize>,
    /// Heads of every attention.
    pub num_heads: usize,
    /// Rows of the tables of relative positions.
    #[serde(default = "default::buckets")]
    pub relative_attention_num_buckets: usize,
    /// Distance from which on all positions share a bucket.
    #[serde(default = "default::max_distance")]
    pub relative_attention_max_distance: usize,
    /// Added to the mean square in norms.
    #[serde(default = "default::epsilon")]
    pub layer_norm_epsilon: f64,
    /// The feed-forward layers' form.
    #[serde(default)]
    pub feed_forward_proj: FeedForwardForm,
    /// Whether the embedding is the head, too.
    #[serde(default = "default::tied")]
    pub tie_word_embeddings: bool,
    /// Probability of dropping an element in training.
    #[serde(default = "default::dropout")]
    pub dropout_rate: f64,
    /// What the decoder sees first.
    #[serde(default)]
    pub decoder_start_token_id: u32,
    /// What fills a sequence up.
    #[serde(default)]
    pub pad_token_id: u32,
    /// What ends a sequence.
    #[serde(default = "default::end")]
    pub eos_token_id: u32,
}

/// The form of the feed-forward layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum FeedForwardForm {
    /// `wo relu(wi x)`.
    #[default]
    #[serde(rename = "relu")]
    Relu,
    /// `wo (gelu(wi_0 x) * wi_1 x)`, GELU by its tanh approximation.
    #[serde(rename = "gated-gelu")]
    GatedGelu,
}

/// Hugging Face's defaults for keys that a file leaves out.
mod default {
    pub(super) fn d_kv() -> usize {
        64
    }
    pub(super) fn buckets() -> usize {
        32
    }
    pub(super) fn max_distance() -> usize {
        128
    }
    pub(super) fn epsilon() -> f64 {
        1e-6
    }
    pub(super) fn tied() -> bool {
        true
    }
    pub(super) fn dropout() -> f64 {
        0.1
    }
    pub(super) fn end() -> u32 {
        1
    }
}

impl T5Config {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// No JSON, a key that is missing or of another type, or a value that makes no sense: the message names the key.
    pub fn from_json(text: &str) -> Result<Self> {
        let config: Self = match serde_json::from_str(text) {
            Ok(config) => config,
            Err(error) => bail!("config.json of a T5 model: {error}"),
        };
        match config.problem() {
            Some(problem) => bail!("config.json of a T5 model: {problem}"),
            None => Ok(config),
        }
    }

    /// What makes no sense, as "key = value: what is allowed".
    pub fn problem(&self) -> Option<String> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("d_kv", self.d_kv),
            ("d_ff", self.d_ff),
            ("num_layers", self.num_layers),
            ("num_decoder_layers", self.decoder_layers()),
            ("num_heads", self.num_heads),
        ];
        if let Some((key, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Some(format!("{key} = 0: at least 1 is expected"));
        }
        let (buckets, distance) = (self.relative_attention_num_buckets, self.relative_attention_max_distance);
        if buckets < 4 || buckets % 2 == 1 {
            return Some(format!(
                "relative_attention_num_buckets = {buckets}: an even number of at least 4 is expected"
            ));
        }
        if distance <= buckets / 2 {
            return Some(format!(
                "relative_attention_max_distance = {distance}: more than half the buckets, {}, is expected",
                buckets / 2
            ));
        }
        let p = self.dropout_rate;
        (!(0.0..1.0).contains(&p)).then(|| format!("dropout_rate = {p}: a number in [0, 1) is expected"))
    }

    /// Layers of the decoder.
    pub fn decoder_layers(&self) -> usize {
        self.num_decoder_layers.unwrap_or(self.num_layers)
    }

    /// The tensors of a published checkpoint that this model has: copies of the embedding under other names, the
    /// head of a tied model and the unused table of old cross-attentions are left out.
    pub fn own_tensors(&self, mut tensors: HashMap<String, Tensor>) -> HashMap<String, Tensor> {
        for copy in ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"] {
            if let Some(table) = tensors.remove(copy) {
                tensors.entry("shared.weight".to_owned()).or_insert(table);
            }
        }
        if self.tie_word_embeddings {
            tensors.remove("lm_head.weight");
        }
        tensors.retain(|name, _| !name.contains("EncDecAttention.relative_attention_bias"));
        tensors
    }

    /// What the decoder sees when it learns `labels` `[batch, t]` (i64): the start token, then all labels but the last,
    /// padding where labels are ignored; u32.
    ///
    /// # Errors
    /// The labels are not `[batch, t]`.
    pub fn decoder_inputs(&self, labels: &Tensor) -> Result<Tensor> {
        let (batch, t) = labels.dims2()?;
        let labels: Vec<i64> = labels.flatten_all()?.to_vec1()?;
        let shift = |row: &[i64]| {
            let before = row[..row.len().saturating_sub(1)].iter();
            let shifted = before.map(|&label| u32::try_from(label).unwrap_or(self.pad_token_id));
            std::iter::once(self.decoder_start_token_id).chain(shifted).collect::<Vec<u32>>()
        };
        let ids: Vec<u32> = labels.chunks_exact(t.max(1)).flat_map(shift).collect();
        Tensor::from_vec(ids, (batch, t), &Device::Cpu)
    }
}

/// T5's bucket of a key that stands `relative` positions after the query: small distances have one of their own, larger
/// ones share them by their logarithm. Seen in both directions, each direction has half of the buckets; otherwise keys
/// after the query count as distance 0. The logarithm is taken in float32, as the published models were trained with.
pub fn relative_bucket(relative: i64, bidirectional: bool, buckets: usize, max_distance: usize) -> u32 {
    let of_one_direction = if bidirectional { buckets / 2 } else { buckets };
    let ahead = relative > 0;
    let distance = if ahead && !bidirectional { 0 } else { relative.unsigned_abs() as usize };
    let exact = of_one_direction / 2;
    let within = if distance < exact {
        distance
    } else {
        let range = (max_distance as f64 / exact as f64).ln() as f32;
        let beyond = (distance as f32 / exact as f32).ln() / range * (of_one_direction - exact) as f32;
        (exact + beyond as usize).min(of_one_direction - 1)
    };
    (within + if ahead && bidirectional { of_one_direction } else { 0 }) as u32
}

/// [`relative_bucket`] of every distance of `keys` from `queries`, as [`Value::relative_bias`] wants them; the last query
/// stands at the last key.
///
/// # Errors
/// More queries than keys, or none.
pub fn relative_buckets(
    (queries, keys): (usize, usize),
    bidirectional: bool,
    buckets: usize,
    max_distance: usize,
) -> Result<Tensor> {
    if queries == 0 || queries > keys {
        bail!("{queries} queries for {keys} keys");
    }
    let last = keys as i64 - 1;
    let all = (-last..queries as i64).map(|d| relative_bucket(d, bidirectional, buckets, max_distance));
    Tensor::from_iter(all, &Device::Cpu)
}

fn normal(stdev: f64) -> Init {
    Init::Randn { mean: 0.0, stdev }
}

/// A linear layer without bias.
fn linear(d_in: usize, d_out: usize, stdev: f64, vb: VarBuilder) -> Result<Linear> {
    Linear::new(d_in, d_out, false, |_| normal(stdev), vb)
}

struct MultiHead {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    attention: Attention,
}

impl MultiHead {
    fn new(config: &T5Config, causal: bool, vb: VarBuilder) -> Result<Self> {
        let (d, inner) = (config.d_model, config.num_heads * config.d_kv);
        let into = (d as f64).powf(-0.5);
        Ok(Self {
            q: linear(d, inner, ((d * config.d_kv) as f64).powf(-0.5), vb.pp("q"))?,
            k: linear(d, inner, into, vb.pp("k"))?,
            v: linear(d, inner, into, vb.pp("v"))?,
            o: linear(inner, d, (inner as f64).powf(-0.5), vb.pp("o"))?,
            attention: Attention { heads: config.num_heads, scale: 1.0, causal },
        })
    }

    /// Keys and values of what is attended to.
    fn keys_values(&self, x: &Value) -> Result<(Value, Value)> {
        Ok((self.k.forward(x)?, self.v.forward(x)?))
    }

    fn attend(&self, x: &Value, (k, v): (&Value, &Value), scores: Scores) -> Result<Value> {
        self.o.forward(&self.q.forward(x)?.attention_with(k, v, self.attention, scores)?)
    }
}

enum FeedForward {
    Relu { wi: Linear, wo: Linear },
    GatedGelu { wi_0: Linear, wi_1: Linear, wo: Linear },
}

impl FeedForward {
    fn new(config: &T5Config, vb: VarBuilder) -> Result<Self> {
        let (d, inner) = (config.d_model, config.d_ff);
        let wi = |name| linear(d, inner, (d as f64).powf(-0.5), vb.pp(name));
        let wo = linear(inner, d, (inner as f64).powf(-0.5), vb.pp("wo"))?;
        Ok(match config.feed_forward_proj {
            FeedForwardForm::Relu => Self::Relu { wi: wi("wi")?, wo },
            FeedForwardForm::GatedGelu => Self::GatedGelu { wi_0: wi("wi_0")?, wi_1: wi("wi_1")?, wo },
        })
    }

    fn forward(&self, x: &Value, p: f64, dropout: Option<&Dropout>) -> Result<Value> {
        match self {
            Self::Relu { wi, wo } => wo.forward(&wi.activated(x, Activation::Relu)?.dropout(p, dropout)?),
            Self::GatedGelu { wi_0, wi_1, wo } => {
                let gated = wi_0.forward(x)?.gate(&wi_1.forward(x)?, Activation::GeluTanh)?;
                wo.forward(&gated.dropout(p, dropout)?)
            }
        }
    }
}

struct Block {
    norm: RmsNorm,
    attention: MultiHead,
    /// Of a decoder: attention to the encoder.
    cross: Option<(RmsNorm, MultiHead)>,
    feed_forward_norm: RmsNorm,
    feed_forward: FeedForward,
}

impl Block {
    fn new(config: &T5Config, decoder: bool, vb: VarBuilder) -> Result<Self> {
        let norm = |layer: usize| {
            let vb = vb.pp("layer").pp(layer).pp("layer_norm");
            RmsNorm::new(config.d_model, config.layer_norm_epsilon, vb)
        };
        let layer = |layer: usize, name: &str| vb.pp("layer").pp(layer).pp(name);
        let cross = match decoder {
            true => Some((norm(1)?, MultiHead::new(config, false, layer(1, "EncDecAttention"))?)),
            false => None,
        };
        let last = if decoder { 2 } else { 1 };
        Ok(Self {
            norm: norm(0)?,
            attention: MultiHead::new(config, decoder, layer(0, "SelfAttention"))?,
            cross,
            feed_forward_norm: norm(last)?,
            feed_forward: FeedForward::new(config, layer(last, "DenseReluDense"))?,
        })
    }
}

struct Stack {
    /// `[buckets, heads]`.
    relative: Tensor,
    bidirectional: bool,
    buckets: usize,
    max_distance: usize,
    blocks: Vec<Block>,
    norm: RmsNorm,
    dropout: f64,
}

impl Stack {
    fn new(config: &T5Config, decoder: bool, vb: VarBuilder) -> Result<Self> {
        let layers = if decoder { config.decoder_layers() } else { config.num_layers };
        let block = |i: usize| Block::new(config, decoder, vb.pp("block").pp(i));
        let table = vb.pp("block.0.layer.0.SelfAttention.relative_attention_bias");
        let buckets = config.relative_attention_num_buckets;
        let start = normal((config.d_model as f64).powf(-0.5));
        Ok(Self {
            relative: table.get_with_hints((buckets, config.num_heads), "weight", start)?,
            bidirectional: !decoder,
            buckets,
            max_distance: config.relative_attention_max_distance,
            blocks: (0..layers).map(block).collect::<Result<_>>()?,
            norm: RmsNorm::new(config.d_model, config.layer_norm_epsilon, vb.pp("final_layer_norm"))?,
            dropout: config.dropout_rate,
        })
    }

    /// The bias on the scores of self-attention, `[heads, queries, keys]`.
    fn bias(&self, beside: &Value, queries: usize, keys: usize) -> Result<Value> {
        let buckets = relative_buckets((queries, keys), self.bidirectional, self.buckets, self.max_distance)?;
        let buckets = buckets.to_device(self.relative.device())?;
        beside.constant_beside(buckets).relative_bias(queries, &self.relative)
    }

    /// Embedded tokens `[batch, t, d_model]` to states after the last norm. `mask` is of the tokens themselves, `source`
    /// what cross-attention sees, `cache` the tokens before.
    fn forward(
        &self,
        x: &Value,
        mask: Option<&Tensor>,
        source: Option<&Source>,
        mut cache: Option<&mut KeyValueCache>,
        dropout: Option<&Dropout>,
    ) -> Result<Value> {
        let drop = |x: &Value| x.dropout(self.dropout, dropout);
        let t = x.tensor().dim(1)?;
        let past = cache.as_ref().map_or(0, |cache| cache.len());
        let bias = self.bias(x, t, past + t)?;
        let mut x = drop(x)?;
        for (i, block) in self.blocks.iter().enumerate() {
            let h = block.norm.forward(&x)?;
            let (k, v) = block.attention.keys_values(&h)?;
            let (k, v) = with_past(cache.as_deref_mut().map(|cache| cache.layer(i)), k, v)?;
            let scores = Scores { mask, bias: Some(&bias), rope: None };
            x = x.add(&drop(&block.attention.attend(&h, (&k, &v), scores)?)?)?;
            if let (Some((norm, cross)), Some(source)) = (&block.cross, source) {
                let (k, v) = &source.keys_values[i];
                let scores = Scores { mask: source.mask.as_ref(), ..Scores::default() };
                x = x.add(&drop(&cross.attend(&norm.forward(&x)?, (k, v), scores)?)?)?;
            }
            let h = block.feed_forward_norm.forward(&x)?;
            x = x.add(&drop(&block.feed_forward.forward(&h, self.dropout, dropout)?)?)?;
        }
        drop(&self.norm.forward(&x)?)
    }
}

/// What the decoder's cross-attention sees of a batch of sources: keys and values `[batch, s, heads * d_kv]` for every
/// layer, and which of them are padding.
pub struct Source {
    keys_values: Vec<(Value, Value)>,
    mask: Option<Tensor>,
}

/// The model.
pub struct T5 {
    config: T5Config,
    shared: Tensor,
    encoder: Stack,
    decoder: Stack,
    /// Nothing if the embedding is the head.
    head: Option<Linear>,
}

impl T5 {
    /// Parameters under Hugging Face's names; new ones are drawn as Hugging Face does.
    ///
    /// # Errors
    /// A configuration that makes no sense, or a builder with other shapes.
    pub fn new(config: &T5Config, vb: VarBuilder) -> Result<Self> {
        if let Some(problem) = config.problem() {
            bail!("T5: {problem}");
        }
        let (vocab, d) = (config.vocab_size, config.d_model);
        let head = match config.tie_word_embeddings {
            true => None,
            false => Some(linear(d, vocab, 1.0, vb.pp("lm_head"))?),
        };
        Ok(Self {
            shared: vb.get_with_hints((vocab, d), "shared.weight", normal(1.0))?,
            encoder: Stack::new(config, false, vb.pp("encoder"))?,
            decoder: Stack::new(config, true, vb.pp("decoder"))?,
            head,
            config: config.clone(),
        })
    }

    /// What it was made from.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// Ids `[batch, s]` (u32) to states `[batch, s, d_model]`; `mask` `[batch, s]` of u8 is 0 at padding.
    ///
    /// # Errors
    /// An id beyond the vocabulary, or a mask of another shape.
    pub fn encode(&self, ids: &Value, mask: Option<&Tensor>, dropout: Option<&Dropout>) -> Result<Value> {
        self.encoder.forward(&ids.embedding(&self.shared)?, mask, None, None, dropout)
    }

    /// What the decoder will see of states that [`T5::encode`] returned for sources with this mask.
    ///
    /// # Errors
    /// States of another width.
    pub fn source(&self, states: &Value, mask: Option<&Tensor>) -> Result<Source> {
        let of = |block: &Block| block.cross.as_ref().map(|(_, cross)| cross.keys_values(states));
        let keys_values = self.decoder.blocks.iter().filter_map(of).collect::<Result<_>>()?;
        Ok(Source { keys_values, mask: mask.cloned() })
    }

    /// Ids `[batch, t]` (u32), the start token first, to states `[batch, t, d_model]`. Later tokens are not seen; padding
    /// is, as in Hugging Face's model, which matters to no label before it.
    ///
    /// # Errors
    /// An id beyond the vocabulary, or a source of another batch.
    pub fn decode(
        &self,
        ids: &Value,
        source: &Source,
        cache: Option<&mut KeyValueCache>,
        dropout: Option<&Dropout>,
    ) -> Result<Value> {
        self.decoder.forward(&ids.embedding(&self.shared)?, None, Some(source), cache, dropout)
    }

    /// Logits `[.., vocab_size]` of decoder states.
    ///
    /// # Errors
    /// States of another width.
    pub fn logits(&self, states: &Value) -> Result<Value> {
        match &self.head {
            Some(head) => head.forward(states),
            None => self.scaled(states)?.linear(&self.shared, None),
        }
    }

    /// Mean cross-entropy of decoder states against labels (i64), [`IGNORE`](crate::ops::IGNORE) left out.
    ///
    /// # Errors
    /// See [`Value::linear_cross_entropy`].
    pub fn loss(&self, states: &Value, labels: &Tensor) -> Result<Value> {
        match &self.head {
            Some(head) => head.cross_entropy(states, labels),
            None => self.scaled(states)?.linear_cross_entropy(&self.shared, None, labels),
        }
    }

    fn scaled(&self, states: &Value) -> Result<Value> {
        states.scale((self.config.d_model as f64).powf(-0.5))
    }

    /// Ready to generate for sources `[batch, s]`; `mask` as in [`T5::encode`]. A prompt starts with the start token.
    ///
    /// # Errors
    /// As [`T5::encode`].
    pub fn decoding(&self, ids: &Tensor, mask: Option<&Tensor>) -> Result<Decoding<'_>> {
        let states = self.encode(&Value::from(ids.clone()), mask, None)?;
        let rows = (0..ids.dim(0)? as u32).collect();
        Ok(Decoding {
            model: self,
            cache: KeyValueCache::default(),
            source: self.source(&states, mask)?,
            rows,
        })
    }
}

/// A batch of sequences that is being generated: the decoder's past and the sources' keys and values.
pub struct Decoding<'a> {
    model: &'a T5,
    cache: KeyValueCache,
    source: Source,
    /// Which source each row of the batch has.
    rows: Vec<u32>,
}

impl Decoding<'_> {
    /// Logits `[batch, vocab_size]` of the token after ids `[batch, n]`, which follow all ids given before.
    ///
    /// # Errors
    /// An id beyond the vocabulary, or another batch than before.
    pub fn next_logits(&mut self, ids: &Tensor) -> Result<Tensor> {
        let ids = Value::from(ids.clone());
        let states = self.model.decode(&ids, &self.source, Some(&mut self.cache), None)?;
        let (_, t, _) = states.tensor().dims3()?;
        let last = states.tensor().narrow(1, t - 1, 1)?.squeeze(1)?.contiguous()?;
        Ok(self.model.logits(&last.into())?.tensor().clone())
    }

    /// Goes on with row `rows[i]` as row i.
    ///
    /// # Errors
    /// A row that the batch does not have.
    pub fn select(&mut self, rows: &[u32]) -> Result<()> {
        if let Some(row) = rows.iter().find(|row| **row as usize >= self.rows.len()) {
            bail!("row {row} was selected from a batch of {}", self.rows.len());
        }
        self.cache.select(rows)?;
        let sources: Vec<u32> = rows.iter().map(|row| self.rows[*row as usize]).collect();
        // beams that change places within one source leave its keys where they are
        if sources != self.rows {
            let of = Tensor::new(rows, self.model.shared.device())?;
            let pick = |x: &Value| x.tensor().index_select(&of, 0).map(Value::from);
            for (k, v) in &mut self.source.keys_values {
                (*k, *v) = (pick(k)?, pick(v)?);
            }
            self.source.mask = self.source.mask.as_ref().map(|mask| mask.index_select(&of, 0)).transpose()?;
            self.rows = sources;
        }
        Ok(())
    }
}
