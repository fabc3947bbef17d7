//! An encoder and two decoders in the manner of BERT over BERT (Song et al. 2021): the first decoder attends to the
//! encoder, the second one to the encoder and to the first one's last states, and their losses are summed.
//!
//! Left out, on both sides: the persona's own path into the second decoder (it attends to the whole source), the
//! unlikelihood batches, and the weights of the losses.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use replica_nn::ops::IGNORE;
use replica_nn::{Tape, Value};
use serde::Serialize;

use super::bert_layers::{CrossAttention, Embeddings, FeedForward, Head, Memory, SelfAttention, Sizes};
use crate::product::Product;
use crate::workload::{Model, Workload, draw, take};

/// The sizes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Bob {
    layers: usize,
    hidden_size: usize,
    heads: usize,
    ffn_size: usize,
    /// Persona and query.
    source_len: usize,
    response_len: usize,
    batch_size: usize,
    vocab_size: usize,
}

impl Bob {
    /// Lengths and batch as the authors train (64 for persona, 32 for query and response, 32 dialogues), other
    /// sizes smaller.
    pub(crate) const SMALL: Self = Self {
        layers: 2,
        hidden_size: 256,
        heads: 4,
        ffn_size: 1024,
        source_len: 96,
        response_len: 32,
        batch_size: 32,
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

impl Workload for Bob {
    fn name(&self) -> &'static str {
        "bob"
    }

    fn about(&self) -> String {
        let Self { layers, hidden_size, heads, ffn_size, source_len, response_len, batch_size, vocab_size } =
            self;
        format!(
            "BERT over BERT, 3 x {layers} layers x {hidden_size}, {heads} heads, FF {ffn_size}, \
             source {source_len}, response {response_len}, batch {batch_size}, vocabulary {vocab_size}"
        )
    }

    fn twin(&self) -> &'static str {
        "bob.py"
    }

    fn config(&self) -> serde_json::Value {
        serde_json::json!(self)
    }

    fn data(&self) -> Result<HashMap<String, Tensor>> {
        let (rows, s, t) = (self.batch_size, self.source_len, self.response_len);
        let source = draw("bob source", rows * s, self.vocab_size);
        let response = draw("bob response", rows * t, self.vocab_size);
        let lengths = |name: &str, most: usize| -> Vec<usize> {
            draw(name, rows, most / 2 + 1).into_iter().map(|n| most / 2 + n as usize).collect()
        };
        let mask: Vec<u8> = lengths("bob source lengths", s)
            .into_iter()
            .flat_map(|n| (0..s).map(move |i| u8::from(i < n)))
            .collect();
        let mut labels = vec![IGNORE; rows * t];
        for (row, n) in lengths("bob response lengths", t).into_iter().enumerate() {
            // each word but the last predicts the next
            labels[row * t..][..n - 1].copy_from_slice(&response[row * t + 1..][..n - 1]);
        }
        let tensor = |data: Vec<i64>, len| Tensor::from_vec(data, (rows, len), &Device::Cpu);
        Ok(HashMap::from([
            ("source".to_owned(), tensor(source, s)?),
            ("mask".to_owned(), Tensor::from_vec(mask, (rows, s), &Device::Cpu)?),
            ("response".to_owned(), tensor(response, t)?),
            ("labels".to_owned(), tensor(labels, t)?),
        ]))
    }

    fn model(&self, vb: VarBuilder, data: &HashMap<String, Tensor>) -> Result<Box<dyn Model>> {
        let stack = |name: &str, len: usize, memories: usize| Stack::new(self, len, memories, vb.pp(name));
        let head = |name: &str| Head::new(self.sizes(), vb.pp(name).pp("head"));
        Ok(Box::new(BertOverBert {
            encoder: stack("encoder", self.source_len, 0)?,
            decoders: [stack("decoder1", self.response_len, 1)?, stack("decoder2", self.response_len, 2)?],
            heads: [head("decoder1")?, head("decoder2")?],
            source: take(data, "source")?.to_dtype(DType::U32)?,
            mask: take(data, "mask")?,
            response: take(data, "response")?.to_dtype(DType::U32)?,
            labels: take(data, "labels")?,
        }))
    }

    /// Of source and response; the response is read twice.
    fn tokens(&self) -> usize {
        self.batch_size * (self.source_len + self.response_len)
    }

    fn flops(&self) -> f64 {
        let (c, l) = (self.hidden_size, self.layers);
        let (s, t, b) = (self.source_len, self.response_len, self.batch_size);
        let layer = 4 * c * c + 2 * c * self.ffn_size;
        let head = c * c + self.vocab_size * c;
        // weights by the rows they meet: encoder; two decoders; q and out of three cross-attentions; their k and v
        let products =
            s * l * layer + 2 * t * (l * layer + head) + 3 * t * l * 2 * c * c + (2 * s + t) * l * 2 * c * c;
        let pairs = s * s + 2 * (t * (t + 1) / 2) + 2 * t * s + t * t;
        (6 * b * products + 12 * l * c * b * pairs) as f64
    }

    fn dominating(&self) -> Option<Product> {
        let rows = self.batch_size * self.source_len;
        Some(Product { rows, outputs: self.ffn_size, inputs: self.hidden_size })
    }
}

/// Self-attention, one cross-attention for each memory, feed-forward.
struct Layer {
    attention: SelfAttention,
    cross: Vec<CrossAttention>,
    ffn: FeedForward,
}

struct Stack {
    embeddings: Embeddings,
    layers: Vec<Layer>,
}

impl Stack {
    fn new(config: &Bob, seq_len: usize, memories: usize, vb: VarBuilder) -> Result<Self> {
        let sizes = config.sizes();
        let layer = |vb: VarBuilder| {
            let cross = |i| CrossAttention::new(sizes, vb.pp("cross").pp(i));
            Ok(Layer {
                attention: SelfAttention::new(sizes, memories > 0, vb.pp("attention"))?,
                cross: (0..memories).map(cross).collect::<Result<_>>()?,
                ffn: FeedForward::new(sizes, vb.pp("ffn"))?,
            })
        };
        Ok(Self {
            embeddings: Embeddings::new(sizes, seq_len, vb.pp("embeddings"))?,
            layers: (0..config.layers).map(|i| layer(vb.pp("layers").pp(i))).collect::<Result<_>>()?,
        })
    }

    fn forward(
        &self,
        tape: &Tape,
        ids: &Tensor,
        mask: Option<&Tensor>,
        memories: &[Memory],
    ) -> Result<Value> {
        let mut x = self.embeddings.forward(tape, ids)?;
        for layer in &self.layers {
            x = layer.attention.forward(&x, mask)?;
            for (cross, memory) in layer.cross.iter().zip(memories) {
                x = cross.forward(&x, *memory)?;
            }
            x = layer.ffn.forward(&x)?;
        }
        Ok(x)
    }
}

struct BertOverBert {
    encoder: Stack,
    decoders: [Stack; 2],
    heads: [Head; 2],
    /// `[batch, source_len]`, u32.
    source: Tensor,
    /// `[batch, source_len]`, u8: 0 is padding.
    mask: Tensor,
    /// `[batch, response_len]`, u32.
    response: Tensor,
    /// `[batch, response_len]`, i64.
    labels: Tensor,
}

impl Model for BertOverBert {
    fn forward(&self, tape: &Tape) -> Result<Value> {
        let encoded = self.encoder.forward(tape, &self.source, Some(&self.mask), &[])?;
        let source = Memory { states: &encoded, mask: Some(&self.mask) };
        let first = self.decoders[0].forward(tape, &self.response, None, &[source])?;
        let coarse = Memory { states: &first, mask: None };
        let second = self.decoders[1].forward(tape, &self.response, None, &[source, coarse])?;
        let loss =
            |i: usize, x: &Value| self.heads[i].loss(x, &self.decoders[i].embeddings.word, &self.labels);
        loss(0, &first)?.add(&loss(1, &second)?)
    }
}
