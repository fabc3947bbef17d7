//! A step of AdamW with clipping, at the numbers of parameters of the two decoders that the engine is tuned on:
//! `cargo bench -p replica-train`.
#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

use candle_core::{DType, Device, Tensor};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use replica_core::Seed;
use replica_nn::{Gradients, Parameters, Tape};
use replica_train::AdamW;
use replica_train::adamw::Options;

/// Name, width, layers, rows of each of the two token tables.
const SHAPES: [(&str, usize, usize, usize); 2] = [("4x256", 256, 4, 4096), ("6x512", 512, 6, 8192)];

fn adamw(c: &mut Criterion) {
    let mut group = c.benchmark_group("adamw");
    for (name, width, layers, vocab) in SHAPES {
        let parameters = Parameters::new(Seed(1), DType::F32, &Device::Cpu);
        let init = candle_nn::Init::Randn { mean: 0.0, stdev: 0.02 };
        // the weights of a block: 12 width^2, in matrices of width columns
        let rows = std::iter::repeat_n(12 * width, layers).chain([vocab, vocab]);
        for (i, rows) in rows.enumerate() {
            parameters.builder().get_with_hints((rows, width), &i.to_string(), init).unwrap();
        }
        let options = Options {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
            groups: Vec::new(),
        };
        let mut optimiser = AdamW::new(&parameters, options).unwrap();
        let loss = Tensor::new(1f32, &Device::Cpu).unwrap();
        let gradients = Gradients::default();
        let fill = || {
            for (_, var) in parameters.all() {
                let tape = Tape::new(&gradients);
                let value = tape.variable(var.as_tensor()).unwrap();
                tape.backward_from(&value, var.as_tensor().copy().unwrap()).unwrap();
            }
        };
        group.throughput(Throughput::Elements(parameters.count() as u64));
        group.bench_function(name, |b| {
            let step = |()| {
                optimiser.step(&gradients, 1e-4, &loss).unwrap();
                optimiser.outcomes().unwrap()
            };
            b.iter_batched(fill, step, BatchSize::PerIteration);
        });
    }
    group.finish();
}

fn short() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(1))
}

criterion_group! { name = optimiser; config = short(); targets = adamw }
criterion_main!(optimiser);
