//! Masked-language-model training of a small BERT (Devlin et al. 2019) on sequences of different lengths.
//!
//! The loss is over the masked words, but logits are computed everywhere on both sides, and counted so.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use replica_nn::ops::IGNORE;
use replica_nn::{Tape, Value};
use serde::Serialize;

use super::bert_layers::{Embeddings, FeedForward, Head, SelfAttention, Sizes};
use crate::product::Product;
use crate::workload::{Model, Workload, draw, take};

/// The sizes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Bert {
    layers: usize,
    hidden_size: usize,
    heads: usize,
    ffn_size: usize,
    seq_len: usize,
    batch_size: usize,
    vocab_size: usize,
}

impl Bert {
    pub(crate) const SMALL: Self = Self {
        layers: 4,
        hidden_size: 256,
        heads: 4,
        ffn_size: 1024,
        seq_len: 128,
        batch_size: 16,
        vocab_size: 8192,
    };

    fn sizes(&self) -> Sizes {
        Sizes {
            hidden_size: self.hidden_size,
            heads: self.heads,
            ffn_size: self.ffn_size,
            vocab_size: self.vocab_size,
        }
    }
}

impl Workload for Bert {
    fn name(&self) -> &'static str {
        "bert"
    }

    fn about(&self) -> String {
        let Self { layers, hidden_size, heads, ffn_size, seq_len, batch_size, vocab_size } = self;
        format!(
            "BERT, {layers} layers x {hidden_size}, {heads} heads, FF {ffn_size}, T {seq_len} padded, \
             batch {batch_size}, vocabulary {vocab_size}, 15 % masked"
        )
    }

    fn twin(&self) -> &'static str {
        "bert.py"
    }

    fn config(&self) -> serde_json::Value {
        serde_json::json!(self)
    }

    fn data(&self) -> Result<HashMap<String, Tensor>> {
        let (rows, t) = (self.batch_size, self.seq_len);
        let ids = draw("bert", rows * t, self.vocab_size);
        // between half of the sequence and all of it
        let lengths = draw("bert lengths", rows, t / 2 + 1).into_iter().map(|n| t / 2 + n as usize);
        let mask: Vec<u8> = lengths.flat_map(|n| (0..t).map(move |i| u8::from(i < n))).collect();
        let masked = draw("bert masked", rows * t, 100);
        let label = |i: usize| if mask[i] == 1 && masked[i] < 15 { ids[i] } else { IGNORE };
        let labels: Vec<i64> = (0..rows * t).map(label).collect();
        let shaped = |data: Vec<i64>| Tensor::from_vec(data, (rows, t), &Device::Cpu);
        Ok(HashMap::from([
            ("labels".to_owned(), shaped(labels)?),
            ("ids".to_owned(), shaped(ids)?),
            ("mask".to_owned(), Tensor::from_vec(mask, (rows, t), &Device::Cpu)?),
        ]))
    }

    fn model(&self, vb: VarBuilder, data: &HashMap<String, Tensor>) -> Result<Box<dyn Model>> {
        let sizes = self.sizes();
        let layer = |vb: VarBuilder| {
            let attention = SelfAttention::new(sizes, false, vb.pp("attention"))?;
            Ok((attention, FeedForward::new(sizes, vb.pp("ffn"))?))
        };
        Ok(Box::new(Encoder {
            embeddings: Embeddings::new(sizes, self.seq_len, vb.pp("embeddings"))?,
            layers: (0..self.layers).map(|i| layer(vb.pp("layers").pp(i))).collect::<Result<_>>()?,
            head: Head::new(sizes, vb.pp("head"))?,
            ids: take(data, "ids")?.to_dtype(DType::U32)?,
            mask: take(data, "mask")?,
            labels: take(data, "labels")?,
        }))
    }

    fn tokens(&self) -> usize {
        self.batch_size * self.seq_len
    }

    fn flops(&self) -> f64 {
        let (c, l) = (self.hidden_size, self.layers);
        let weights = l * (4 * c * c + 2 * c * self.ffn_size) + c * c + self.vocab_size * c;
        let pairs = self.batch_size * self.seq_len * self.seq_len;
        (6 * self.tokens() * weights + 12 * l * c * pairs) as f64
    }

    fn dominating(&self) -> Option<Product> {
        Some(Product { rows: self.tokens(), outputs: self.ffn_size, inputs: self.hidden_size })
    }
}

struct Encoder {
    embeddings: Embeddings,
    layers: Vec<(SelfAttention, FeedForward)>,
    head: Head,
    /// `[batch, t]`, u32.
    ids: Tensor,
    /// `[batch, t]`, u8: 0 is padding.
    mask: Tensor,
    /// `[batch, t]`, i64.
    labels: Tensor,
}

impl Model for Encoder {
    fn forward(&self, tape: &Tape) -> Result<Value> {
        let mut x = self.embeddings.forward(tape, &self.ids)?;
        for (attention, ffn) in &self.layers {
            x = ffn.forward(&attention.forward(&x, Some(&self.mask))?)?;
        }
        self.head.loss(&x, &self.embeddings.word, &self.labels)
    }
}
