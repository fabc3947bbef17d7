//! Operations over long sequences, forward and backward, from 1k to 16k steps: `cargo bench -p replica-nn --bench
//! sequence`, or `-- convolution` for those with that in their name. After each operation comes the exponent of its
//! time in the length, fitted through all lengths; 1 is linear.
//!
//! Batch 2, 64 channels, 16 modes; every input gets a gradient.
#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::cell::Cell;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_nn::Init;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rayon::prelude::*;
use replica_core::Seed;
use replica_nn::ops::{DiagonalKernel, DiagonalScan, Discretisation, SelectiveScan, StepTransform};
use replica_nn::{Gradients, Parameters, Tape, Value};

const LENGTHS: [usize; 5] = [1024, 2048, 4096, 8192, 16_384];
const BATCH: usize = 2;
const CHANNELS: usize = 64;
const MODES: usize = 16;

/// A variable's tensor, drawn from the stream `name`.
fn tensor(name: &str, shape: &[usize], mean: f64, stdev: f64) -> Tensor {
    let parameters = Parameters::new(Seed(1), DType::F32, &Device::Cpu);
    parameters.builder().get_with_hints(shape, name, Init::Randn { mean, stdev }).unwrap()
}

/// Times `op` at every length, for inputs of the shapes that `shapes` gives for it, drawn with deviation 0.5.
fn bench<const N: usize>(
    c: &mut Criterion,
    name: &str,
    shapes: impl Fn(usize) -> [Vec<usize>; N],
    op: impl Fn([Value; N], usize) -> candle_core::Result<Value>,
) {
    let gradients = Gradients::default();
    let mut times = Vec::new();
    let mut group = c.benchmark_group(name);
    for length in LENGTHS {
        let mut which = 0;
        let inputs = shapes(length).map(|shape| {
            which += 1;
            tensor(&format!("input {which}"), &shape, 0.0, 0.5)
        });
        let run = |tape: &Tape| {
            let values = std::array::from_fn(|i| tape.variable(&inputs[i]).unwrap());
            op(values, length).unwrap()
        };
        let cotangent = run(&Tape::new(&gradients)).tensor().ones_like().unwrap();
        let fastest = Cell::new(f64::INFINITY);
        group.throughput(Throughput::Elements((BATCH * length) as u64));
        group.bench_function(BenchmarkId::from_parameter(length), |b| {
            b.iter_custom(|iterations| {
                let start = Instant::now();
                for _ in 0..iterations {
                    let tape = Tape::new(&gradients);
                    tape.backward_from(&run(&tape), cotangent.clone()).unwrap();
                    gradients.clear();
                }
                let elapsed = start.elapsed();
                fastest.set(fastest.get().min(elapsed.as_secs_f64() / iterations as f64));
                elapsed
            });
        });
        times.push(fastest.get());
    }
    group.finish();
    if times.iter().all(|t| t.is_finite()) {
        println!("{name}: time grows with length to the power {:.2}\n", exponent(&times));
    }
}

/// Least-squares slope of log(time) over log(length).
fn exponent(times: &[f64]) -> f64 {
    let points: Vec<(f64, f64)> =
        LENGTHS.iter().zip(times).map(|(l, t)| ((*l as f64).ln(), t.ln())).collect();
    let n = points.len() as f64;
    let (mx, my) = (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n);
    let covariance: f64 = points.iter().map(|p| (p.0 - mx) * (p.1 - my)).sum();
    covariance / points.iter().map(|p| (p.0 - mx).powi(2)).sum::<f64>()
}

fn convolution(c: &mut Criterion) {
    let skip = tensor("skip", &[CHANNELS], 0.0, 1.0);
    let shapes = |l| [vec![BATCH, CHANNELS, l], vec![1, CHANNELS, l]];
    bench(c, "causal convolution", shapes, |[u, k], _| u.causal_convolution(&k, &skip));
}

/// What the convolution replaces: products with a lower-triangular Toeplitz matrix and its transposes, in quadratic
/// time; vectorised, all threads. Forward and the gradients of inputs and kernel.
fn toeplitz(c: &mut Criterion) {
    let mut group = c.benchmark_group("Toeplitz product");
    for length in &LENGTHS[..3] {
        let length = *length;
        let flat = |name: &str, rows| tensor(name, &[rows * length], 0.0, 0.5).to_vec1::<f32>().unwrap();
        let (u, kernel, dy) =
            (flat("u", BATCH * CHANNELS), flat("k", CHANNELS), flat("dy", BATCH * CHANNELS));
        group.bench_function(BenchmarkId::from_parameter(length), |b| {
            b.iter(|| {
                let channel = |i: usize| {
                    let of = |all: &'_ [f32], row: usize| all[row * length..][..length].to_vec();
                    let k = of(&kernel, i);
                    let mut dk = vec![0f32; length];
                    let rows = (0..BATCH).map(|row| {
                        let (u, dy) = (of(&u, row * CHANNELS + i), of(&dy, row * CHANNELS + i));
                        let (mut y, mut du) = (vec![0f32; length], vec![0f32; length]);
                        replica_nn::vectorised(
                            #[inline(always)]
                            || {
                                let add = |to: &mut [f32], factor: f32, from: &[f32]| {
                                    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
                                };
                                for t in 0..length {
                                    let (earlier, later) = (length - t, &dy[t..]);
                                    add(&mut y[t..], k[t], &u[..earlier]);
                                    add(&mut du[..earlier], k[t], later);
                                    add(&mut dk[..earlier], u[t], later);
                                }
                            },
                        );
                        [y, du]
                    });
                    let rows: Vec<_> = rows.collect();
                    (rows, dk)
                };
                (0..CHANNELS).into_par_iter().map(channel).collect::<Vec<_>>()
            });
        });
    }
    group.finish();
}

fn kernel(c: &mut Criterion) {
    let per_mode = |name: &str, mean: f64| tensor(name, &[CHANNELS, MODES], mean, 0.1);
    let kernel = DiagonalKernel {
        step: tensor("step", &[CHANNELS], -4.6, 1.0),
        a_real: per_mode("a_real", -0.7),
        a_imag: per_mode("a_imag", 20.0),
        b: None,
        c: tensor("c", &[CHANNELS, MODES, 2], 0.0, 0.7),
        transform: StepTransform::Exp,
        conjugate: false,
        discretisation: Discretisation::ZeroOrderHold,
        rate: 1.0,
    };
    bench(c, "S4D kernel", |_| [vec![1]], |[beside], l| kernel.taps(l, &beside));
}

fn scans(c: &mut Criterion) {
    let model = DiagonalScan {
        lambda_re: tensor("re", &[CHANNELS], -0.5, 0.01),
        lambda_im: tensor("im", &[CHANNELS], 0.0, 20.0),
        log_step: tensor("step", &[CHANNELS, 1], -4.6, 1.0),
        b: tensor("b", &[CHANNELS, CHANNELS, 2], 0.0, 0.1),
        c: vec![tensor("c", &[CHANNELS, CHANNELS, 2], 0.0, 0.1)],
        skip: tensor("skip", &[CHANNELS], 0.0, 1.0),
        discretisation: Discretisation::ZeroOrderHold,
        bidirectional: false,
        conjugate_pairs: true,
        clip: false,
        rate: 1.0,
    };
    let per_channel = |l| [vec![BATCH, l, CHANNELS]];
    bench(c, "S5 scan", per_channel, |[u], _| u.diagonal_scan(&model, None));
    bench(c, "S5 scan, irregular", per_channel, |[u], l| {
        u.diagonal_scan(&model, Some(&Tensor::ones((BATCH, l), DType::F32, &Device::Cpu)?))
    });
    let weights = SelectiveScan {
        a_log: tensor("a_log", &[CHANNELS, MODES], 1.5, 0.5),
        skip: Some(tensor("skip", &[CHANNELS], 1.0, 0.0)),
        delta_bias: Some(tensor("bias", &[CHANNELS], -4.6, 1.0)),
        softplus: true,
    };
    let shapes = |l| [CHANNELS, CHANNELS, MODES, MODES].map(|width| vec![BATCH, l, width]);
    bench(c, "selective scan", shapes, |[u, delta, b, c], _| u.selective_scan(&delta, &b, &c, &weights));
}

fn short_convolutions(c: &mut Criterion) {
    let shapes = |l| [vec![BATCH, l, CHANNELS]];
    let bias = tensor("bias", &[CHANNELS], 0.0, 1.0);
    let taps = tensor("w", &[CHANNELS, 1, 4], 0.0, 0.5);
    bench(c, "depthwise conv1d", shapes, |[x], _| x.depthwise_conv1d(&taps, Some(&bias), true));
    let taps = tensor("w", &[CHANNELS, CHANNELS, 4], 0.0, 0.1);
    bench(c, "causal conv1d", shapes, |[x], _| x.causal_conv1d(&taps, Some(&bias)));
}

fn short() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(1))
}

criterion_group! {
    name = sequence;
    config = short();
    targets = convolution, toeplitz, kernel, scans, short_convolutions
}
criterion_main!(sequence);
