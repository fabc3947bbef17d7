//! T5 (Raffel et al. 2020): tied tables, RMS norm before each sublayer, ReLU, no biases, no scaling of the scores, and
//! relative position biases shared by a stack's layers.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Init, VarBuilder};
use replica_nn::ops::{Activation, Attention, Scores};
use replica_nn::t5::relative_buckets;
use replica_nn::{Linear, RmsNorm, Tape, Value};
use serde::Serialize;

use crate::product::Product;
use crate::workload::{Model, Workload, draw, take};

const EPS: f64 = 1e-6;

/// Distance from which on all positions share a bucket.
const MAX_DISTANCE: usize = 128;

/// The sizes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct EncoderDecoder {
    /// Layers of each stack.
    layers: usize,
    hidden_size: usize,
    heads: usize,
    ffn_size: usize,
    source_len: usize,
    target_len: usize,
    batch_size: usize,
    vocab_size: usize,
    /// Rows of the tables of relative positions.
    buckets: usize,
}

impl EncoderDecoder {
    pub(crate) const SMALL: Self = Self {
        layers: 2,
        hidden_size: 256,
        heads: 8,
        ffn_size: 1024,
        source_len: 128,
        target_len: 64,
        batch_size: 8,
        vocab_size: 4096,
        buckets: 32,
    };
}

impl Workload for EncoderDecoder {
    fn name(&self) -> &'static str {
        "encoder-decoder"
    }

    fn about(&self) -> String {
        let Self {
            layers, hidden_size, heads, ffn_size, source_len, target_len, batch_size, vocab_size, ..
        } = self;
        format!(
            "T5, {layers} + {layers} layers x {hidden_size}, {heads} heads, FF {ffn_size}, source {source_len}, \
             target {target_len}, batch {batch_size}, vocabulary {vocab_size}"
        )
    }

    fn twin(&self) -> &'static str {
        "encoder_decoder.py"
    }

    fn config(&self) -> serde_json::Value {
        serde_json::json!(self)
    }

    fn data(&self) -> Result<HashMap<String, Tensor>> {
        let (rows, s, t) = (self.batch_size, self.source_len, self.target_len);
        let words = |name: &str, len: usize| {
            Tensor::from_vec(draw(name, rows * len, self.vocab_size), (rows, len), &Device::Cpu)
        };
        let distances = |len: usize, bidirectional| {
            relative_buckets((len, len), bidirectional, self.buckets, MAX_DISTANCE)?.to_dtype(DType::I64)
        };
        Ok(HashMap::from([
            ("source".to_owned(), words("t5 source", s)?),
            ("target".to_owned(), words("t5 target", t)?),
            ("labels".to_owned(), words("t5 labels", t)?),
            ("encoder_buckets".to_owned(), distances(s, true)?),
            ("decoder_buckets".to_owned(), distances(t, false)?),
        ]))
    }

    fn model(&self, vb: VarBuilder, data: &HashMap<String, Tensor>) -> Result<Box<dyn Model>> {
        let ids = |name: &str| take(data, name)?.to_dtype(DType::U32);
        let table = Init::Randn { mean: 0.0, stdev: 1.0 };
        Ok(Box::new(T5 {
            table: vb.get_with_hints((self.vocab_size, self.hidden_size), "table.weight", table)?,
            encoder: Stack::new(self, false, ids("encoder_buckets")?, vb.pp("encoder"))?,
            decoder: Stack::new(self, true, ids("decoder_buckets")?, vb.pp("decoder"))?,
            scale: (self.hidden_size as f64).powf(-0.5),
            source: ids("source")?,
            target: ids("target")?,
            labels: take(data, "labels")?,
        }))
    }

    fn tokens(&self) -> usize {
        self.batch_size * (self.source_len + self.target_len)
    }

    fn flops(&self) -> f64 {
        let (c, l) = (self.hidden_size, self.layers);
        let (s, t, b) = (self.source_len, self.target_len, self.batch_size);
        let layer = 4 * c * c + 2 * c * self.ffn_size;
        // the cross-attention's q and output meet the target, its k and v the source
        let products = s * l * (layer + 2 * c * c) + t * l * (layer + 2 * c * c) + t * self.vocab_size * c;
        let pairs = s * s + t * (t + 1) / 2 + t * s;
        (6 * b * products + 12 * l * c * b * pairs) as f64
    }

    fn dominating(&self) -> Option<Product> {
        let rows = self.batch_size * self.source_len;
        Some(Product { rows, outputs: self.ffn_size, inputs: self.hidden_size })
    }
}

struct MultiHead {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    attention: Attention,
}

impl MultiHead {
    fn new(config: &EncoderDecoder, causal: bool, vb: VarBuilder) -> Result<Self> {
        let linear = |name| linear(config.hidden_size, config.hidden_size, vb.pp(name));
        let attention = Attention { heads: config.heads, scale: 1.0, causal };
        Ok(Self { q: linear("q")?, k: linear("k")?, v: linear("v")?, o: linear("o")?, attention })
    }

    fn forward(&self, x: &Value, memory: &Value, bias: Option<&Value>) -> Result<Value> {
        let (k, v) = (self.k.forward(memory)?, self.v.forward(memory)?);
        let scores = Scores { bias, ..Scores::default() };
        self.o.forward(&self.q.forward(x)?.attention_with(&k, &v, self.attention, scores)?)
    }
}

/// N(0, 0.05).
fn linear(i: usize, o: usize, vb: VarBuilder) -> Result<Linear> {
    Linear::new(i, o, false, |_| Init::Randn { mean: 0.0, stdev: 0.05 }, vb)
}

struct Layer {
    norm1: RmsNorm,
    attention: MultiHead,
    /// Of a decoder: attention to the encoder.
    cross: Option<(RmsNorm, MultiHead)>,
    norm3: RmsNorm,
    wi: Linear,
    wo: Linear,
}

struct Stack {
    relative: Tensor,
    /// Of distances, `[2 len - 1]`, u32.
    buckets: Tensor,
    layers: Vec<Layer>,
    norm: RmsNorm,
}

impl Stack {
    fn new(config: &EncoderDecoder, decoder: bool, buckets: Tensor, vb: VarBuilder) -> Result<Self> {
        let c = config.hidden_size;
        let norm = |vb: &VarBuilder, name: &str| RmsNorm::new(c, EPS, vb.pp(name));
        let layer = |vb: VarBuilder| {
            let cross = if decoder {
                Some((norm(&vb, "norm2")?, MultiHead::new(config, false, vb.pp("cross"))?))
            } else {
                None
            };
            Ok(Layer {
                norm1: norm(&vb, "norm1")?,
                attention: MultiHead::new(config, decoder, vb.pp("attention"))?,
                cross,
                norm3: norm(&vb, "norm3")?,
                wi: linear(c, config.ffn_size, vb.pp("wi"))?,
                wo: linear(config.ffn_size, c, vb.pp("wo"))?,
            })
        };
        let relative = Init::Randn { mean: 0.0, stdev: 0.05 };
        Ok(Self {
            relative: vb.get_with_hints((config.buckets, config.heads), "relative.weight", relative)?,
            buckets,
            layers: (0..config.layers).map(|i| layer(vb.pp("layers").pp(i))).collect::<Result<_>>()?,
            norm: norm(&vb, "norm")?,
        })
    }

    fn forward(&self, x: &Value, encoded: Option<&Value>) -> Result<Value> {
        let buckets = x.constant_beside(self.buckets.clone());
        let bias = buckets.relative_bias(x.tensor().dim(1)?, &self.relative)?;
        let mut x = x.clone();
        for layer in &self.layers {
            let h = layer.norm1.forward(&x)?;
            x = x.add(&layer.attention.forward(&h, &h, Some(&bias))?)?;
            if let (Some((norm, cross)), Some(encoded)) = (&layer.cross, encoded) {
                x = x.add(&cross.forward(&norm.forward(&x)?, encoded, None)?)?;
            }
            let inner = layer.wi.activated(&layer.norm3.forward(&x)?, Activation::Relu)?;
            x = x.add(&layer.wo.forward(&inner)?)?;
        }
        self.norm.forward(&x)
    }
}

struct T5 {
    table: Tensor,
    encoder: Stack,
    decoder: Stack,
    /// On the last states, as the table is tied.
    scale: f64,
    /// `[batch, source_len]`, u32.
    source: Tensor,
    /// `[batch, target_len]`, u32.
    target: Tensor,
    /// `[batch, target_len]`, i64.
    labels: Tensor,
}

impl Model for T5 {
    fn forward(&self, tape: &Tape) -> Result<Value> {
        let embed = |ids: &Tensor| tape.constant(ids.clone()).embedding(&self.table);
        let encoded = self.encoder.forward(&embed(&self.source)?, None)?;
        let x = self.decoder.forward(&embed(&self.target)?, Some(&encoded))?;
        x.scale(self.scale)?.linear_cross_entropy(&self.table, None, &self.labels)
    }
}
