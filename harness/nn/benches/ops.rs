//! Every operation of a training step, forward and backward, at the shapes of the two decoders that the engine is
//! tuned on: `cargo bench -p replica-nn`, or `-- attention` for those with that in their name.
//!
//! The gradient of the input is wanted too and copied once into a buffer of its own, which a model does not do.
#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

use candle_core::{DType, Device, Tensor, Var};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use replica_core::Seed;
use replica_nn::ops::{Activation, Attention, Dropout, RopeTable, Scores};
use replica_nn::{Gradients, Parameters, Tape, Value};

/// A decoder's sizes.
struct Shape {
    name: &'static str,
    batch: usize,
    t: usize,
    width: usize,
    heads: usize,
    ffn: usize,
    vocab: usize,
}

const SHAPES: [Shape; 2] = [
    Shape { name: "4x256", batch: 8, t: 256, width: 256, heads: 4, ffn: 1024, vocab: 4096 },
    Shape { name: "6x512", batch: 4, t: 512, width: 512, heads: 8, ffn: 2048, vocab: 8192 },
];

/// Numbers drawn from the stream `name`.
fn numbers(name: &str, dims: &[usize]) -> Var {
    let parameters = Parameters::new(Seed(1), DType::F32, &Device::Cpu);
    let init = candle_nn::Init::Randn { mean: 0.0, stdev: 0.5 };
    parameters.builder().get_with_hints(dims, name, init).unwrap();
    parameters.all().remove(0).1
}

fn whole_numbers(n: usize, below: usize) -> Vec<u32> {
    (0..n as u32).map(|i| i.wrapping_mul(2_654_435_761) % below as u32).collect()
}

impl Shape {
    fn tensor(&self, name: &str, width: usize) -> Var {
        numbers(name, &[self.batch, self.t, width])
    }

    /// Times forward and backward of `op`, whose inputs are variables of the widths given.
    fn time<const N: usize>(
        &self,
        c: &mut Criterion,
        op: &str,
        widths: [usize; N],
        f: impl Fn([Value; N]) -> candle_core::Result<Value>,
    ) {
        let inputs: Vec<Var> =
            widths.iter().enumerate().map(|(i, w)| self.tensor(&format!("x{i}"), *w)).collect();
        self.time_on_tape(c, op, |tape| {
            f(std::array::from_fn(|i| tape.variable(inputs[i].as_tensor()).unwrap()))
        });
    }

    fn time_on_tape(&self, c: &mut Criterion, op: &str, f: impl Fn(&Tape) -> candle_core::Result<Value>) {
        let gradients = Gradients::default();
        let cotangent = f(&Tape::new(&gradients)).unwrap().tensor().ones_like().unwrap();
        let mut group = c.benchmark_group(op);
        group.throughput(Throughput::Elements((self.batch * self.t) as u64));
        group.bench_function(self.name, |b| {
            // an operation may overwrite the gradient it gets
            let step = |dy: Tensor| {
                let tape = Tape::new(&gradients);
                let y = f(&tape).unwrap();
                tape.backward_from(&y, dy).unwrap();
                gradients.clear();
            };
            b.iter_batched(|| cotangent.copy().unwrap(), step, BatchSize::PerIteration);
        });
        group.finish();
    }
}

fn products(c: &mut Criterion) {
    for shape in &SHAPES {
        let layers = [
            ("linear, output", shape.width, shape.width),
            ("linear, qkv", shape.width, 3 * shape.width),
            ("linear, fc1", shape.width, shape.ffn),
            ("linear, fc2", shape.ffn, shape.width),
        ];
        for (name, i, o) in layers {
            let (w, b) = (numbers("w", &[o, i]), numbers("b", &[o]));
            shape.time(c, name, [i], |[x]| x.linear(&w, Some(&b)));
            if name == "linear, fc1" {
                shape.time(c, "linear, fc1 with gelu", [i], |[x]| {
                    x.linear_activation(&w, Some(&b), Activation::GeluTanh)
                });
            }
        }
    }
}

fn norms(c: &mut Criterion) {
    for shape in &SHAPES {
        let (w, b) = (numbers("w", &[shape.width]), numbers("b", &[shape.width]));
        shape.time(c, "layer norm", [shape.width], |[x]| x.layer_norm(&w, &b, 1e-5));
        shape.time(c, "rms norm", [shape.width], |[x]| x.rms_norm(&w, 1e-6));
    }
}

fn attention(c: &mut Criterion) {
    for shape in &SHAPES {
        let head_dim = shape.width / shape.heads;
        for (name, causal) in [("attention, causal", true), ("attention, bidirectional", false)] {
            let attention = Attention { heads: shape.heads, scale: 1.0 / (head_dim as f64).sqrt(), causal };
            shape.time(c, name, [3 * shape.width], |[qkv]| qkv.self_attention(attention, Scores::default()));
        }
        let table = RopeTable::new(head_dim, shape.t, 1e4).unwrap();
        shape.time(c, "rope", [shape.width], |[x]| x.rope(&table, 0));
    }
}

fn losses(c: &mut Criterion) {
    for shape in &SHAPES {
        let labels = whole_numbers(shape.batch * shape.t, shape.vocab).into_iter().map(i64::from);
        let labels = Tensor::from_iter(labels, &Device::Cpu).unwrap();
        shape.time(c, "cross-entropy", [shape.vocab], |[logits]| logits.cross_entropy(&labels));
        let w = numbers("w", &[shape.vocab, shape.width]);
        shape.time(c, "linear and cross-entropy", [shape.width], |[x]| {
            x.linear_cross_entropy(&w, None, &labels)
        });
    }
}

fn embedding(c: &mut Criterion) {
    for shape in &SHAPES {
        let ids = whole_numbers(shape.batch * shape.t, shape.vocab);
        let ids = Tensor::from_vec(ids, (shape.batch, shape.t), &Device::Cpu).unwrap();
        let (tokens, positions) =
            (numbers("w", &[shape.vocab, shape.width]), numbers("p", &[shape.t, shape.width]));
        shape.time_on_tape(c, "embedding", |tape| tape.constant(ids.clone()).embedding(&tokens));
        shape.time(c, "positions", [shape.width], |[x]| x.add_positions(&positions));
    }
}

fn elementwise(c: &mut Criterion) {
    for shape in &SHAPES {
        for (name, activation) in [
            ("relu", Activation::Relu),
            ("gelu", Activation::Gelu),
            ("gelu, tanh form", Activation::GeluTanh),
            ("silu", Activation::Silu),
        ] {
            shape.time(c, name, [shape.ffn], |[x]| x.activate(activation));
        }
        shape.time(c, "swiglu", [shape.ffn; 2], |[gate, up]| gate.gate(&up, Activation::Silu));
        shape.time(c, "add", [shape.width; 2], |[x, y]| x.add(&y));
        shape.time(c, "dropout", [shape.width], |[x]| x.dropout(0.1, Some(&Dropout::new(1, 1))));
    }
}

fn short() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(1))
}

criterion_group! { name = ops; config = short(); targets = products, norms, attention, losses, embedding, elementwise }
criterion_main!(ops);
