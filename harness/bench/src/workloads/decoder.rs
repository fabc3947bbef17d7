//! A GPT-style decoder: learned positions, layer norm before each sublayer, GELU (tanh form), biases, an output
//! layer of its own.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use replica_nn::ops::{Activation, Attention, Scores};
use replica_nn::{LayerNorm, Linear, Tape, Value};
use serde::Serialize;

use super::normal;
use crate::product::Product;
use crate::workload::{Model, Workload, draw, take};

/// The sizes of one decoder.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Decoder {
    #[serde(skip)]
    name: &'static str,
    #[serde(skip)]
    on_request: bool,
    layers: usize,
    hidden_size: usize,
    heads: usize,
    ffn_size: usize,
    seq_len: usize,
    batch_size: usize,
    vocab_size: usize,
}

impl Decoder {
    /// The smaller shape that the engine is tuned on.
    pub(crate) const SMALL: Self = Self {
        name: "decoder-small",
        on_request: false,
        layers: 4,
        hidden_size: 256,
        heads: 4,
        ffn_size: 1024,
        seq_len: 256,
        batch_size: 8,
        vocab_size: 4096,
    };

    /// The larger one.
    pub(crate) const MEDIUM: Self = Self {
        name: "decoder-medium",
        on_request: false,
        layers: 6,
        hidden_size: 512,
        heads: 8,
        ffn_size: 2048,
        seq_len: 512,
        batch_size: 4,
        vocab_size: 8192,
    };

    /// The size of the smaller models of Low-dimensional Projected Attention (130M parameters), for a GPU.
    pub(crate) const M130: Self = Self {
        name: "decoder-130m",
        on_request: true,
        layers: 12,
        hidden_size: 768,
        heads: 12,
        ffn_size: 3072,
        seq_len: 1024,
        batch_size: 8,
        vocab_size: 30_522,
    };

    /// Milliseconds a step: to try the command itself.
    pub(crate) const TINY: Self = Self {
        name: "decoder-tiny",
        on_request: true,
        layers: 2,
        hidden_size: 32,
        heads: 2,
        ffn_size: 64,
        seq_len: 16,
        batch_size: 2,
        vocab_size: 64,
    };
}

impl Workload for Decoder {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> String {
        let Self { layers, hidden_size, heads, ffn_size, seq_len, batch_size, vocab_size, .. } = self;
        format!(
            "GPT-style decoder, {layers} layers x {hidden_size}, {heads} heads, FF {ffn_size}, T {seq_len}, \
             batch {batch_size}, vocabulary {vocab_size}"
        )
    }

    fn on_request(&self) -> bool {
        self.on_request
    }

    fn twin(&self) -> &'static str {
        "decoder.py"
    }

    fn config(&self) -> serde_json::Value {
        serde_json::json!(self)
    }

    fn data(&self) -> Result<HashMap<String, Tensor>> {
        let (rows, t) = (self.batch_size, self.seq_len);
        let tokens = draw("decoder", rows * (t + 1), self.vocab_size);
        let tokens = Tensor::from_vec(tokens, (rows, t + 1), &Device::Cpu)?;
        let part = |start| tokens.narrow(1, start, t)?.contiguous();
        Ok(HashMap::from([("ids".to_owned(), part(0)?), ("labels".to_owned(), part(1)?)]))
    }

    fn model(&self, vb: VarBuilder, data: &HashMap<String, Tensor>) -> Result<Box<dyn Model>> {
        Ok(Box::new(Gpt::new(self, vb, data)?))
    }

    fn tokens(&self) -> usize {
        self.batch_size * self.seq_len
    }

    fn flops(&self) -> f64 {
        let (c, l) = (self.hidden_size, self.layers);
        let weights = l * (4 * c * c + 2 * c * self.ffn_size) + self.vocab_size * c;
        let pairs = self.batch_size * self.seq_len * (self.seq_len + 1) / 2;
        (6 * self.tokens() * weights + 12 * l * c * pairs) as f64
    }

    fn dominating(&self) -> Option<Product> {
        Some(Product { rows: self.tokens(), outputs: self.ffn_size, inputs: self.hidden_size })
    }
}

struct Block {
    ln1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    ln2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

struct Gpt {
    wte: Tensor,
    wpe: Tensor,
    blocks: Vec<Block>,
    lnf: LayerNorm,
    head: Linear,
    attention: Attention,
    /// `[batch, t]`, u32.
    ids: Tensor,
    /// `[batch, t]`, i64.
    labels: Tensor,
}

impl Gpt {
    fn new(config: &Decoder, vb: VarBuilder, data: &HashMap<String, Tensor>) -> Result<Self> {
        let (c, ff) = (config.hidden_size, config.ffn_size);
        let block = |vb: VarBuilder| {
            let linear = |name, i, o| Linear::new(i, o, true, normal, vb.pp(name));
            Ok(Block {
                ln1: LayerNorm::new(c, 1e-5, vb.pp("ln1"))?,
                qkv: linear("qkv", c, 3 * c)?,
                proj: linear("proj", c, c)?,
                ln2: LayerNorm::new(c, 1e-5, vb.pp("ln2"))?,
                fc1: linear("fc1", c, ff)?,
                fc2: linear("fc2", ff, c)?,
            })
        };
        let table = |name: &str, rows| vb.get_with_hints((rows, c), name, normal(c));
        let head_dim = c / config.heads;
        Ok(Self {
            wte: table("wte.weight", config.vocab_size)?,
            wpe: table("wpe.weight", config.seq_len)?,
            blocks: (0..config.layers).map(|i| block(vb.pp("blocks").pp(i))).collect::<Result<_>>()?,
            lnf: LayerNorm::new(c, 1e-5, vb.pp("lnf"))?,
            head: Linear::new(c, config.vocab_size, false, normal, vb.pp("head"))?,
            attention: Attention { heads: config.heads, scale: 1.0 / (head_dim as f64).sqrt(), causal: true },
            ids: take(data, "ids")?.to_dtype(DType::U32)?,
            labels: take(data, "labels")?,
        })
    }
}

impl Model for Gpt {
    fn forward(&self, tape: &Tape) -> Result<Value> {
        let mut x = tape.constant(self.ids.clone()).embedding(&self.wte)?.add_positions(&self.wpe)?;
        for block in &self.blocks {
            let qkv = block.qkv.forward(&block.ln1.forward(&x)?)?;
            let attended = qkv.self_attention(self.attention, Scores::default())?;
            x = x.add(&block.proj.forward(&attended)?)?;
            let inner = block.fc1.activated(&block.ln2.forward(&x)?, Activation::GeluTanh)?;
            x = x.add(&block.fc2.forward(&inner)?)?;
        }
        self.head.cross_entropy(&self.lnf.forward(&x)?, &self.labels)
    }
}
