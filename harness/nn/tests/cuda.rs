//! Every operation on a GPU against the CPU: values and gradients, in float32 and in bfloat16. On a machine
//! without a GPU the tests say so and pass.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::io::Write as _;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::VarBuilder;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use replica_core::{Seed, trial};
use replica_nn::mamba::{Mamba, MambaConfig};
use replica_nn::ops::{
    Activation, Attention, DampedAverage, DiagonalKernel, DiagonalScan, Discretisation, Dropout, IGNORE,
    LowRankKernel, Moments, RopeTable, Scores, SelectiveScan, StepTransform,
};
use replica_nn::s4d::{Modes, S4d, S4dConfig};
use replica_nn::s5::{OutputInit, S5, S5Config};
use replica_nn::t5::{T5, T5Config};
use replica_nn::{
    BatchNorm, Gradients, LocalAttentionConfig, Mega, MegaConfig, Parameters, Spade, Staging, Tape, Value,
    accelerator, checkpoint,
};

/// The first GPU, or nothing and a line that says why. It goes past the test harness, which would swallow it.
fn gpu() -> Option<Device> {
    match accelerator::open(trial::Device::Cuda(0)) {
        Ok(device) => Some(device),
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "skipped, no GPU: {why}");
            None
        }
    }
}

/// Numbers on [-1, 1) that keep away from 0 and are exact in bfloat16, so that rounding of inputs plays no role.
fn numbers(n: usize, rng: &mut impl Rng) -> Vec<f32> {
    (0..n)
        .map(|_| {
            let x = (1 + rng.next_u32() % 127) as f32 / 128.0;
            if rng.next_u32().is_multiple_of(2) { x } else { -x }
        })
        .collect()
}

/// A tensor of another type elsewhere. It is converted on the host, so that nothing but our own kernels runs.
fn sent(tensor: &Tensor, dtype: DType, device: &Device) -> Tensor {
    tensor.to_dtype(dtype).unwrap().to_device(device).unwrap()
}

type Operation<'a> = &'a dyn Fn(&[Value], &[Tensor]) -> Result<Value>;

/// Values and the gradients of sum(f(inputs) * cotangent) by all inputs, in float32 on the host.
fn run(
    inputs: &[(Vec<f32>, Vec<usize>)],
    seed: u64,
    device: &Device,
    dtype: DType,
    f: Operation,
) -> Vec<Vec<f32>> {
    let variables: Vec<Var> = inputs
        .iter()
        .map(|(data, shape)| {
            let tensor = Tensor::from_slice(data, shape.as_slice(), &Device::Cpu).unwrap();
            Var::from_tensor(&sent(&tensor, dtype, device)).unwrap()
        })
        .collect();
    let tensors: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
    let gradients = Gradients::default();
    let tape = Tape::new(&gradients);
    let values: Vec<Value> = tensors.iter().map(|t| tape.variable(t).unwrap()).collect();
    let y = f(&values, &tensors).unwrap();
    let cotangent = numbers(y.tensor().elem_count(), &mut Seed(seed).stream("cotangent"));
    let cotangent = Tensor::from_vec(cotangent, y.tensor().shape(), &Device::Cpu).unwrap();
    tape.backward_from(&y, sent(&cotangent, y.tensor().dtype(), device)).unwrap();
    let host = |t: &Tensor| {
        let t = t.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
        t.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let gradient = |t: &Tensor| host(&gradients.tensor(t).expect("every input has a gradient"));
    std::iter::once(host(y.tensor())).chain(tensors.iter().map(gradient)).collect()
}

/// Compares an operation on the GPU with the CPU. The error is relative to the largest number of each result.
fn check(name: &str, shapes: &[&[usize]], f: Operation) {
    check_numbers(name, shapes, numbers, |_| 0.0, f);
}

/// As [`check`] for what has a kink at a sum of a product and a bias. Products are rounded to bfloat16 before the bias is
/// added, which may move a sum to the other side of the kink, and then the slope there is another one. Sums of few
/// halves and ones are not rounded.
fn check_kink(name: &str, shapes: &[&[usize]], f: Operation) {
    let halves = |n: usize, rng: &mut ChaCha8Rng| {
        numbers(n, rng).into_iter().map(|x| if x.abs() < 0.5 { 0.5f32 } else { 1.0 }.copysign(x)).collect()
    };
    check_numbers(name, shapes, halves, |_| 0.0, f);
}

/// As [`check`] for a sum of the inputs, or of what is no larger: of terms that cancel nothing may be left but their
/// rounding errors, which are as large as the terms are.
fn check_sum(name: &str, n: usize, f: Operation) {
    check_numbers(name, &[&[n]], numbers, |x| x.iter().map(|x| x.abs()).sum(), f);
}

/// As [`check`] on inputs that `draw` makes, with the errors of the value relative to `scale(first input)` if that is
/// larger.
fn check_numbers(
    name: &str,
    shapes: &[&[usize]],
    draw: impl Fn(usize, &mut ChaCha8Rng) -> Vec<f32>,
    scale: impl Fn(&[f32]) -> f32,
    f: Operation,
) {
    let Some(gpu) = gpu() else { return };
    let seed = 7;
    let mut rng = Seed(seed).stream(name);
    let inputs: Vec<(Vec<f32>, Vec<usize>)> =
        shapes.iter().map(|shape| (draw(shape.iter().product(), &mut rng), shape.to_vec())).collect();
    let expected = run(&inputs, seed, &Device::Cpu, DType::F32, f);
    // float32 differs by the order of sums; bfloat16 has 8 binary digits, and results pass through it several times
    for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::BF16, 3e-2)] {
        let got = run(&inputs, seed, &gpu, dtype, f);
        for (which, (expected, got)) in expected.iter().zip(&got).enumerate() {
            assert_eq!(expected.len(), got.len(), "{name}");
            let beside = if which == 0 { scale(&inputs[0].0) } else { 0.0 };
            let largest = expected.iter().fold(beside.max(1e-6), |a, x| a.max(x.abs()));
            for (i, (a, b)) in expected.iter().zip(got).enumerate() {
                let error = (a - b).abs() / largest;
                let part = if which == 0 { "value".to_owned() } else { format!("gradient {which}") };
                assert!(
                    error < tolerance,
                    "{name} in {dtype:?}, {shapes:?}, {part}[{i}]: {b}, {a} on the CPU"
                );
            }
        }
    }
}

fn labels(n: usize, classes: usize, device: &Device) -> Tensor {
    let mut rng = Seed(3).stream("labels");
    let label = |i: usize| if i % 5 == 4 { IGNORE } else { i64::from(rng.next_u32()) % classes as i64 };
    Tensor::from_vec((0..n).map(label).collect::<Vec<_>>(), n, device).unwrap()
}

const ACTIVATIONS: [Activation; 5] =
    [Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu, Activation::Sigmoid];

#[test]
fn linear() {
    for (n, o, k) in [(1, 1, 1), (5, 3, 7), (64, 48, 96), (300, 129, 257), (1024, 512, 64)] {
        check("linear", &[&[n, k], &[o, k], &[o]], &|x, w| x[0].linear(&w[1], Some(&w[2])));
        check("linear without bias", &[&[2, n, k], &[o, k]], &|x, w| x[0].linear(&w[1], None));
        for f in ACTIVATIONS {
            let compare = if f == Activation::Relu { check_kink } else { check };
            compare("linear_activation", &[&[n, k], &[o, k], &[o]], &|x, w| {
                x[0].linear_activation(&w[1], Some(&w[2]), f)
            });
        }
        check("linear_activation without bias", &[&[n, k], &[o, k]], &|x, w| {
            x[0].linear_activation(&w[1], None, Activation::GeluTanh)
        });
    }
}

#[test]
fn norms() {
    for (n, width) in [(1, 2), (7, 33), (130, 64), (64, 768), (9, 3000)] {
        check("rms_norm", &[&[n, width], &[width]], &|x, w| x[0].rms_norm(&w[1], 1e-6));
        check("layer_norm", &[&[n, width], &[width], &[width]], &|x, w| x[0].layer_norm(&w[1], &w[2], 1e-5));
    }
}

/// By a batch's own moments and by running ones that follow it, over more rows than a block has.
#[test]
fn batch_norms() {
    for (n, width) in [(1, 2), (7, 33), (130, 64), (20_000, 3)] {
        let shapes: [&[usize]; 3] = [&[n, width], &[width], &[width]];
        check("batch_norm", &shapes, &|x, w| {
            x[0].batch_norm(&x[0].column_moments()?, true, &w[1], &w[2], 1e-2)
        });
        check("batch_norm by running moments", &shapes, &|x, w| {
            let same = |v: f32| {
                let tensor = Tensor::full(v, width, &Device::Cpu)?;
                Ok::<_, candle_core::Error>(sent(&tensor, DType::F32, w[0].device()))
            };
            let running = Moments { mean: same(0.25)?, variance: same(0.75)?, count: 0 };
            let before = x[0].batch_norm(&running, false, &w[1], &w[2], 1e-2)?;
            x[0].column_moments()?.mix_into(&running, 0.1, 1.5)?;
            // what the first one took of the running moments stays as it was
            before.add(&x[0].batch_norm(&running, false, &w[1], &w[2], 1e-2)?)
        });
    }
}

/// Running statistics of a model in bfloat16 move by small steps: they are float32.
#[test]
fn running_statistics_are_single_precision() {
    let Some(gpu) = gpu() else { return };
    let parameters = Parameters::new(Seed(1), DType::BF16, &gpu);
    let norm = BatchNorm::new(3, 1e-5, 0.01, true, parameters.builder()).unwrap();
    let x = Tensor::new(&[[1f32, 2.0, -1.0], [3.0, 2.0, 0.0]], &Device::Cpu).unwrap();
    norm.forward(&Value::from(sent(&x, DType::BF16, &gpu)), true).unwrap();
    let numbers = |name: &str| parameters.get(name).unwrap().to_vec1::<f32>().unwrap();
    for (name, expected) in [("running_mean", [0.02, 0.02, -0.005]), ("running_var", [1.01, 0.99, 0.995])] {
        for (a, b) in expected.iter().zip(numbers(name)) {
            assert!((a - b).abs() < 1e-6, "{name}: {b}, {a} is expected");
        }
    }
}

#[test]
fn elementwise() {
    for n in [1, 31, 4096, 100_003] {
        for activation in ACTIVATIONS {
            check("activate", &[&[n]], &|x, _| x[0].activate(activation));
            check("gate", &[&[n], &[n]], &|x, _| x[0].gate(&x[1], activation));
        }
        check("scale", &[&[n]], &|x, _| x[0].scale(-0.3));
        // the same masks on both
        check("dropout", &[&[n]], &|x, _| x[0].dropout(0.3, Some(&Dropout::new(11, 7))));
        check("tied dropout", &[&[2, 5, n]], &|x, _| x[0].tied_dropout(0.3, Some(&Dropout::new(11, 7))));
        // a value used several times: its gradient is moved once, then added to
        check("add", &[&[n]], &|x, _| {
            x[0].add(&x[0])?.add(&x[0].activate(Activation::Silu)?)?.gate(&x[0], Activation::Silu)
        });
    }
}

#[test]
fn reductions() {
    for n in [1, 31, 4096, 100_003] {
        check_sum("sum", n, &|x, _| x[0].sum());
        check_sum("sum twice", n, &|x, _| x[0].sum()?.add(&x[0].activate(Activation::Silu)?.sum()?));
        check("mean_squared_error", &[&[n]], &|x, _| {
            let targets = Tensor::full(0.25f32, n, &Device::Cpu)?;
            let targets = sent(&targets, x[0].tensor().dtype(), x[0].tensor().device());
            x[0].mean_squared_error(&targets)
        });
    }
    check("select_positions", &[&[3, 9, 20]], &|x, _| {
        x[0].select_positions(&[8, 4, 0])?.add(&x[0].select_positions(&[8, 1, 2])?)
    });
}

#[test]
fn heads() {
    for (batch, t, width) in [(1, 1, 1), (3, 9, 20), (2, 1300, 33)] {
        let lengths: Vec<usize> = (0..batch).map(|b| t - b * (t / 4)).collect();
        check("mean_of_first", &[&[batch, t, width]], &|x, _| {
            x[0].mean_of_first(&lengths)?.add(&x[0].mean_of_first(&vec![1; batch])?)
        });
        check("pair_features", &[&[2 * batch, t * width]], &|x, _| {
            x[0].add(&x[0])?.pair_features()?.add(&x[0].pair_features()?)
        });
    }
}

#[test]
fn positions() {
    let table = RopeTable::new(16, 64, 10_000.0).unwrap();
    for (batch, t, start) in [(1, 1, 0), (2, 7, 3), (3, 40, 20)] {
        check("rope", &[&[batch, t, 48]], &|x, _| x[0].rope(&table, start));
        let shapes: [&[usize]; 2] = [&[batch, t, 48], &[t + start + 1, 48]];
        check("add_positions", &shapes, &|x, w| x[0].add_positions(&w[1]));
        check("add_positions_from", &shapes, &|x, w| x[0].add_positions_from(&w[1], start));
    }
}

#[test]
fn layouts() {
    for (batch, a, b) in [(1, 1, 1), (2, 5, 70), (3, 64, 33)] {
        check("transpose", &[&[batch, a, b]], &|x, _| x[0].transpose());
        check("glu", &[&[batch, a, 2 * b]], &|x, _| x[0].glu());
        // overlapping parts, and elements that are in none
        check("columns", &[&[batch, a, b + 9]], &|x, _| {
            x[0].columns(1..b + 1)?.add(&x[0].columns(8..b + 8)?)
        });
        let buckets: Vec<u32> = (0..(a * b) as u32).map(|i| i * i % 7).collect();
        check("relative_bias", &[&[7, 3], &[3, a, b]], &|x, w| {
            let buckets = Tensor::from_slice(&buckets, (a, b), w[0].device())?;
            x[0].constant_beside(buckets).relative_bias(&w[0])?.gate(&x[1], Activation::Silu)
        });
    }
}

#[test]
fn embedding() {
    for (n, vocab, width) in [(1, 1, 1), (70, 5, 33), (3000, 700, 128)] {
        let mut rng = Seed(5).stream("ids");
        let ids: Vec<u32> = (0..n).map(|_| rng.next_u32() % vocab as u32).collect();
        check("embedding", &[&[vocab, width], &[n, width]], &|x, w| {
            let ids = Tensor::from_slice(&ids, n, w[0].device())?;
            x[0].constant_beside(ids).embedding(&w[0])?.gate(&x[1], Activation::Silu)
        });
    }
}

#[test]
fn attention() {
    for (batch, t, s, heads, d) in [
        (1, 1, 1, 1, 1),
        (2, 5, 8, 3, 7),
        (1, 70, 71, 2, 16),
        (2, 130, 130, 2, 32),
        (1, 200, 264, 3, 64),
        (1, 65, 129, 2, 128),
        (1, 40, 40, 2, 96),
    ] {
        for causal in [true, false] {
            let attention = Attention { heads, scale: 1.0 / (d as f64).sqrt(), causal };
            let (q, k) = ([batch, t, heads * d], [batch, s, heads * d]);
            check("attention", &[&q, &k, &k], &|x, _| x[0].attention(&x[1], &x[2], attention));
        }
    }
}

/// Values narrower and wider than keys, in one slice of their columns and in several, with all that changes scores.
#[test]
fn attention_to_values_of_another_width() {
    for (batch, t, s, heads, d, value_dim) in
        [(1, 1, 2, 1, 1, 3), (2, 5, 8, 3, 7, 2), (2, 70, 70, 2, 32, 200), (1, 66, 129, 1, 128, 300)]
    {
        let (q, k) = ([batch, t, heads * d], [batch, s, heads * d]);
        let (v, bias) = ([batch, s, heads * value_dim], [heads, t, s]);
        let seen: Vec<u8> = (0..batch * s).map(|i| u8::from(i % 7 != 3)).collect();
        let table = RopeTable::new(d, 256, 10_000.0);
        for causal in [true, false] {
            let attention = Attention { heads, scale: 1.0 / (d as f64).sqrt(), causal };
            check("attention", &[&q, &k, &v], &|x, _| x[0].attention(&x[1], &x[2], attention));
            check("attention with all", &[&q, &k, &v, &bias], &|x, w| {
                let mask = Tensor::from_slice(&seen, (batch, s), w[0].device())?;
                let rope = table.as_ref().ok();
                let scores = Scores { mask: Some(&mask), bias: Some(&x[3]), rope };
                x[0].attention_with(&x[1], &x[2], attention, scores)
            });
        }
    }
}

/// Keys wider than the kernels can take are refused.
#[test]
fn attention_names_keys_that_are_too_wide() {
    let Some(gpu) = gpu() else { return };
    let x =
        Value::from(sent(&Tensor::zeros((1, 2, 129), DType::F32, &Device::Cpu).unwrap(), DType::F32, &gpu));
    let error = x.attention(&x, &x, Attention { heads: 1, scale: 1.0, causal: true }).err().unwrap();
    assert!(error.to_string().contains("keys of 129 numbers a head; on a GPU at most 128"), "{error}");
}

/// Padding, holes, and an entry that sees nothing; a bias; positions; packed and separate inputs.
#[test]
fn scores() {
    for (batch, t, heads, d) in [(3, 9, 2, 6), (3, 70, 2, 32), (3, 65, 3, 64), (3, 66, 1, 128)] {
        let width = heads * d;
        let table = RopeTable::new(d, 128, 10_000.0).unwrap();
        let attention = |causal| Attention { heads, scale: 1.0 / (d as f64).sqrt(), causal };
        let mask = |device: &Device| {
            let seen = |i: usize| {
                u8::from(match i / t {
                    0 => i % t < t / 2,
                    1 => i % t != 3,
                    _ => false,
                })
            };
            Tensor::from_vec((0..batch * t).map(seen).collect::<Vec<_>>(), (batch, t), device)
        };
        for causal in [true, false] {
            check("packed attention", &[&[batch, t, 3 * width]], &|x, _| {
                x[0].self_attention(attention(causal), Scores { rope: Some(&table), ..Scores::default() })
            });
            let shape = [batch, t, width];
            check("masked attention", &[&shape, &shape, &shape], &|x, _| {
                let mask = mask(x[0].tensor().device())?;
                let scores = Scores { mask: Some(&mask), ..Scores::default() };
                x[0].attention_with(&x[1], &x[2], attention(causal), scores)
            });
            check("biased attention", &[&shape, &shape, &shape, &[heads, t, t]], &|x, _| {
                let scores = Scores { bias: Some(&x[3]), rope: Some(&table), ..Scores::default() };
                x[0].attention_with(&x[1], &x[2], attention(causal), scores)
            });
        }
        // queries that come after keys of an earlier call
        let (q, k) = ([batch, t - 5, width], [batch, t, width]);
        check("attention with positions", &[&q, &k, &k], &|x, _| {
            let scores = Scores { rope: Some(&table), ..Scores::default() };
            x[0].attention_with(&x[1], &x[2], attention(true), scores)
        });
    }
}

/// Windows with and without overlap, and with more in them than a sequence has.
#[test]
fn windows_over_time() {
    for (batch, l, width, length, before, after) in [
        (1, 1, 1, 1, 0, 0),
        (2, 12, 8, 4, 0, 0),
        (3, 11, 5, 4, 2, 1),
        (2, 7, 16, 3, 5, 4),
        (2, 300, 3, 64, 63, 0),
    ] {
        check("windows", &[&[batch, l, width]], &|x, _| {
            // twice: the second gradient is added to the first
            x[0].windows(length, before, after)?.add(&x[0].windows(length, before, after)?)
        });
        let pieces = l.div_ceil(length);
        check("joined", &[&[batch * pieces, length, width]], &|x, _| {
            x[0].joined(batch, l)?.add(&x[0].joined(batch, l)?)
        });
    }
}

#[test]
fn damped_averages() {
    for length in LENGTHS {
        for (sides, h, n) in [(1, 1, 1), (2, 3, 16), (2, 1, 300)] {
            let shape: &[usize] = &[sides * h, n];
            check("damped average", &[shape; 4], &|x, w| {
                let [delta, alpha, beta, gamma] = [0, 1, 2, 3].map(|i: usize| w[i].clone());
                DampedAverage { delta, alpha, beta, gamma, sides }.taps(length, &x[0])
            });
        }
    }
}

/// Lengths of sequences: single steps, less than a chunk, several chunks.
const LENGTHS: [usize; 5] = [1, 2, 7, 64, 1000];

#[test]
fn short_convolutions() {
    for l in LENGTHS {
        for taps in [1, 4] {
            let shapes: [&[usize]; 3] = [&[2, l, 5], &[6, 5, taps], &[6]];
            check("causal_conv1d", &shapes, &|x, w| x[0].causal_conv1d(&w[1], Some(&w[2])));
            check("causal_conv1d without bias", &shapes[..2], &|x, w| {
                // twice: the second gradient is added to the first
                x[0].causal_conv1d(&w[1], None)?.add(&x[0].causal_conv1d(&w[1], None)?)
            });
        }
        for (channels, taps) in [(5, 4), (130, 7)] {
            for silu in [false, true] {
                let shapes: [&[usize]; 3] = [&[2, l, channels], &[channels, 1, taps], &[channels]];
                check("depthwise_conv1d", &shapes, &|x, w| x[0].depthwise_conv1d(&w[1], Some(&w[2]), silu));
                check("depthwise_conv1d without bias", &shapes[..2], &|x, w| {
                    x[0].depthwise_conv1d(&w[1], None, silu)
                });
            }
        }
    }
}

#[test]
fn long_convolutions() {
    for (batch, h, l, taps, sides) in [
        (1, 1, 1, 1, 1),
        (3, 2, 2, 5, 2),
        (2, 3, 7, 7, 2),
        (11, 2, 64, 64, 1),
        (3, 1, 1000, 1000, 2),
        (3, 1, 1000, 30, 1),
        (3, 1, 5000, 5000, 1),
        (1, 1, 16384, 16384, 2),
    ] {
        check("causal_convolution", &[&[batch, h, l], &[sides, h, taps], &[h]], &|x, w| {
            // taps get smaller, as those of a model do, so that sums do not lose digits in either order
            x[0].causal_convolution(&x[1].scale(1.0 / taps as f64)?, &w[2])
        });
    }
}

/// Parameters of diagonal kernels in the order of [`diagonal`]: steps, A, B, C.
fn kernel_shapes(kernels: usize, copies: usize, h: usize, n: usize) -> [Vec<usize>; 5] {
    [vec![h], vec![copies, n], vec![copies, n], vec![1, copies, n, 2], vec![kernels, h, n, 2]]
}

fn diagonal(w: &[Tensor], discretisation: Discretisation, length: usize) -> DiagonalKernel {
    DiagonalKernel {
        step: w[0].clone(),
        a_real: w[1].clone(),
        a_imag: w[2].clone(),
        b: Some(w[3].clone()),
        c: w[4].clone(),
        transform: if length == 64 { StepTransform::Exp } else { StepTransform::Softplus },
        conjugate: length != 2,
        discretisation,
        // modes live on over a good part of the sequence
        rate: 3.0 / length as f64,
    }
}

#[test]
fn kernels_of_state_space_models() {
    for length in [1, 2, 7, 64, 1000, 1021] {
        for (kernels, copies, h, n) in [(1, 1, 1, 1), (2, 2, 6, 3), (1, 2, 2, 33)] {
            let mut shapes = kernel_shapes(kernels, copies, h, n).to_vec();
            for discretisation in [Discretisation::ZeroOrderHold, Discretisation::Bilinear] {
                let views: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
                check("diagonal kernel", &views, &|x, w| {
                    diagonal(w, discretisation, length).taps(length, &x[0])
                });
            }
            shapes.push(vec![1, copies, n, 2]);
            let views: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
            check("low-rank kernel", &views, &|x, w| {
                let diagonal = diagonal(w, Discretisation::Bilinear, length);
                LowRankKernel { diagonal, p: w[5].clone() }.taps(length, &x[0])
            });
        }
    }
}

#[test]
fn diagonal_scans() {
    for l in LENGTHS {
        for (bidirectional, whole, varying, discretisation) in [
            (false, true, false, Discretisation::ZeroOrderHold),
            (false, true, true, Discretisation::ZeroOrderHold),
            (true, true, false, Discretisation::Bilinear),
            (true, false, true, Discretisation::Bilinear),
        ] {
            let (batch, h, p) = (2, 3, 70);
            let modes = if bidirectional && whole { 2 * p } else { p };
            let (input, lambda, step, b, d) = ([batch, l, h], [p], [p, 1], [p, h, 2], [h]);
            let c: &[usize] = &[h, modes, 2];
            let mut shapes: Vec<&[usize]> = vec![&input, &lambda, &lambda, &step, &b, &d, c];
            if bidirectional && !whole {
                shapes.push(c);
            }
            check("diagonal_scan", &shapes, &|x, w| {
                let intervals: Vec<f32> = (0..batch * l).map(|i| 0.25 + (i % 7) as f32 / 8.0).collect();
                let intervals = Tensor::from_vec(intervals, (batch, l), w[0].device())?;
                let model = DiagonalScan {
                    lambda_re: w[1].clone(),
                    lambda_im: w[2].clone(),
                    log_step: w[3].clone(),
                    b: w[4].clone(),
                    c: w[6..].to_vec(),
                    skip: w[5].clone(),
                    discretisation,
                    bidirectional,
                    conjugate_pairs: l != 7,
                    clip: true,
                    rate: 2.0 / l as f64,
                };
                x[0].diagonal_scan(&model, varying.then_some(&intervals))
            });
        }
    }
}

#[test]
fn selective_scans() {
    // five chunks, the last one not full; all of them by the thousand take minutes on an emulated device, and Mamba's
    // layer below has a thousand steps
    for l in [1, 2, 7, 64, 133] {
        for (batch, d, n, softplus) in [(1, 1, 1, true), (2, 37, 16, true), (2, 5, 3, false)] {
            let (inputs, modes, a, channel) = ([batch, l, d], [batch, l, n], [d, n], [d]);
            let mut shapes: Vec<&[usize]> = vec![&inputs, &inputs, &modes, &modes, &a, &channel];
            if softplus {
                shapes.push(&channel);
            }
            check("selective_scan", &shapes, &|x, w| {
                let weights = SelectiveScan {
                    a_log: w[4].clone(),
                    skip: Some(w[5].clone()),
                    delta_bias: w.get(6).cloned(),
                    softplus,
                };
                // steps are positive without softplus too
                let delta = if softplus { x[1].clone() } else { x[1].activate(Activation::Sigmoid)? };
                x[0].selective_scan(&delta, &x[2], &x[3], &weights)
            });
        }
    }
}

type Layer = Box<dyn Fn(&Value) -> Result<Value>>;

/// Compares a layer's output and the gradients of all its parameters and of its input with the CPU.
fn check_layer(name: &str, width: usize, make: &dyn Fn(VarBuilder<'static>) -> Result<Layer>) {
    check_layer_at(&LENGTHS, name, width, make);
}

fn check_layer_at(
    lengths: &[usize],
    name: &str,
    width: usize,
    make: &dyn Fn(VarBuilder<'static>) -> Result<Layer>,
) {
    let Some(gpu) = gpu() else { return };
    // drawn on the host: candle's kernels, which computed parameters would need, are not those under test
    let parameters = Parameters::new(Seed(5), DType::F32, &Device::Cpu);
    let _ = make(parameters.builder()).unwrap();
    for &l in lengths {
        let input = numbers(2 * l * width, &mut Seed(9).stream(name));
        let input = Tensor::from_vec(input, (2, l, width), &Device::Cpu).unwrap();
        let run = |device: &Device| {
            let variables: Vec<(String, Var)> = parameters
                .all()
                .into_iter()
                .map(|(name, tensor)| (name, Var::from_tensor(&sent(&tensor, DType::F32, device)).unwrap()))
                .collect();
            let tensors: HashMap<String, Tensor> =
                variables.iter().map(|(name, v)| (name.clone(), v.as_tensor().clone())).collect();
            let layer = make(VarBuilder::from_tensors(tensors, DType::F32, device)).unwrap();
            let x = Var::from_tensor(&sent(&input, DType::F32, device)).unwrap();
            let gradients = Gradients::default();
            let tape = Tape::new(&gradients);
            let y = layer(&tape.variable(&x).unwrap()).unwrap();
            let cotangent = numbers(y.tensor().elem_count(), &mut Seed(7).stream("cotangent"));
            let cotangent = Tensor::from_vec(cotangent, y.tensor().shape(), &Device::Cpu).unwrap();
            tape.backward_from(&y, sent(&cotangent, DType::F32, device)).unwrap();
            let host = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let mut results = vec![("output".to_owned(), host(y.tensor()))];
            results.push(("gradient of the input".to_owned(), host(&gradients.tensor(&x).unwrap())));
            for (parameter, tensor) in &variables {
                results.push((parameter.clone(), host(&gradients.tensor(tensor).expect("a gradient"))));
            }
            results
        };
        let expected = run(&Device::Cpu);
        // with one step there is nothing to choose from: gradients of scores are 0 but for rounding
        let all = expected.iter().flat_map(|(_, numbers)| numbers).fold(0f32, |a, x| a.max(x.abs()));
        for ((what, expected), (_, got)) in expected.into_iter().zip(run(&gpu)) {
            let largest = expected.iter().fold(1e-3 * all, |a, x| a.max(x.abs()));
            for (i, (a, b)) in expected.iter().zip(&got).enumerate() {
                assert!(
                    (a - b).abs() < 5e-5 * largest,
                    "{name}, {l} steps, {what}[{i}]: {b}, {a} on the CPU"
                );
            }
        }
    }
}

#[test]
fn layers_of_state_space_models() {
    let config = S4dConfig {
        width: 6,
        state: 8,
        copies: 2,
        modes: Modes::Legs,
        steps: (1e-3, 1e-1),
        transform: StepTransform::Exp,
        discretisation: Discretisation::ZeroOrderHold,
        bidirectional: true,
        dropout: 0.0,
        tied_dropout: false,
    };
    check_layer("S4D", 6, &|vb| {
        let layer = S4d::new(config, vb)?;
        Ok(Box::new(move |x: &Value| layer.forward(x, None)))
    });
    check_layer("minimal S4D", 6, &|vb| {
        let layer = S4d::minimal(6, 8, 0.0, vb)?;
        Ok(Box::new(move |x: &Value| layer.forward(x, None)))
    });
    let config = S5Config {
        width: 5,
        state: 16,
        blocks: 2,
        steps: (1e-3, 1e-1),
        output: OutputInit::Lecun,
        discretisation: Discretisation::ZeroOrderHold,
        bidirectional: true,
        clip: false,
    };
    check_layer("S5", 5, &|vb| {
        let layer = S5::new(config, vb)?;
        Ok(Box::new(move |x: &Value| layer.forward(x)))
    });
    check_layer("Mamba", 8, &|vb| {
        let layer = Mamba::new(MambaConfig::new(8), 1, vb)?;
        Ok(Box::new(move |x: &Value| layer.forward(x)))
    });
}

/// With and without chunks, in one direction and in two; positions further apart than the table knows.
#[test]
fn layers_with_attention() {
    // several windows, the last one not full; a thousand steps take minutes on an emulated device
    let lengths = [1, 2, 7, 64, 121];
    for (chunk, bidirectional) in [(Some(24), false), (Some(50), true), (None, true)] {
        let config = MegaConfig {
            width: 6,
            hidden: 10,
            shared: 4,
            state: 5,
            truncation: Some(40),
            chunk,
            positions: 40,
            bidirectional,
            dropout: 0.0,
        };
        check_layer_at(&lengths, "Mega", 6, &|vb| {
            let layer = Mega::new(config, vb)?;
            Ok(Box::new(move |x: &Value| layer.forward(x, x, None)))
        });
    }
    for bidirectional in [false, true] {
        let attention = LocalAttentionConfig {
            width: 6,
            heads: 2,
            radius: 15,
            bidirectional,
            buckets: 8,
            max_distance: 12,
        };
        let model = S4dConfig {
            width: 6,
            state: 8,
            copies: 1,
            modes: Modes::Legs,
            steps: (1e-3, 1e-1),
            transform: StepTransform::Softplus,
            discretisation: Discretisation::Bilinear,
            bidirectional,
            dropout: 0.0,
            tied_dropout: false,
        };
        check_layer_at(&lengths, "SPADE", 6, &|vb| {
            let layer = Spade::bottom(attention, model, 64, vb.clone(), vb)?;
            Ok(Box::new(move |x: &Value| layer.forward(x)))
        });
    }
}

/// States of the decoder, loss, and the gradients of all parameters by name.
fn t5_results(config: &T5Config, dtype: DType, device: &Device) -> Vec<(String, Vec<f32>)> {
    let (batch, s, t) = (3, 70, 37);
    let parameters = Parameters::new(Seed(4), dtype, device);
    let model = T5::new(config, parameters.builder()).unwrap();
    let ids: Vec<u32> = (0..(batch * s) as u32).map(|i| (i * i + 3 * i) % 61).collect();
    // the second source ends early, the third has a hole
    let seen = |i: usize| u8::from(!(i / s == 1 && i % s > 20 || i / s == 2 && i % s == 5));
    let mask = Tensor::from_vec((0..batch * s).map(seen).collect(), (batch, s), device).unwrap();
    let labels = labels(batch * t, 61, &Device::Cpu).reshape((batch, t)).unwrap();
    let inputs = config.decoder_inputs(&labels).unwrap().to_device(device).unwrap();
    let (gradients, dropout) = (Gradients::default(), Dropout::new(5, 2));
    let tape = Tape::new(&gradients);
    let ids = tape.constant(Tensor::from_vec(ids, (batch, s), device).unwrap());
    let encoded = model.encode(&ids, Some(&mask), Some(&dropout)).unwrap();
    let source = model.source(&encoded, Some(&mask)).unwrap();
    let states = model.decode(&tape.constant(inputs), &source, None, Some(&dropout)).unwrap();
    let loss = model.loss(&states, &labels.to_device(device).unwrap()).unwrap();
    tape.backward(&loss).unwrap();
    let host = |t: &Tensor| {
        let t = t.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
        t.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let mut results =
        vec![("states".to_owned(), host(states.tensor())), ("loss".to_owned(), host(loss.tensor()))];
    results.extend(parameters.trained().into_iter().map(|p| {
        let gradient = gradients.tensor(p.variable.as_tensor()).expect("every parameter has a gradient");
        (p.name, host(&gradient))
    }));
    results
}

/// Both forms of T5, a width of heads with tensor cores and one without.
#[test]
fn t5() {
    let Some(gpu) = gpu() else { return };
    for (d_kv, rest) in
        [(10, ""), (32, r#", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false"#)]
    {
        let config = T5Config::from_json(&format!(
            r#"{{"vocab_size": 61, "d_model": 48, "d_kv": {d_kv}, "d_ff": 96, "num_layers": 2, "num_heads": 3,
            "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20{rest}}}"#
        ));
        let config = config.unwrap();
        let expected = t5_results(&config, DType::F32, &Device::Cpu);
        // gradients go through every layer twice; in bfloat16 some units also pass over ReLU's kink, see `check_kink`
        for (dtype, forward, backward) in [(DType::F32, 1e-5, 1e-5), (DType::BF16, 2e-2, 1e-1)] {
            for ((what, a), (_, b)) in expected.iter().zip(t5_results(&config, dtype, &gpu)) {
                assert_eq!(a.len(), b.len(), "{what}");
                let far = if ["states", "loss"].contains(&what.as_str()) { forward } else { backward };
                // rounding errors have no direction: what is compared is the length of the difference
                let length =
                    |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                let (of, by) =
                    (length(&mut a.iter().copied()), length(&mut a.iter().zip(&b).map(|(a, b)| a - b)));
                assert!(by <= far * of, "T5 in {dtype:?}, d_kv {d_kv}, {what}: off by {by} of {of}");
            }
        }
    }
}

#[test]
fn losses() {
    for (n, k, vocab) in [(1, 3, 2), (40, 16, 301), (700, 64, 5000)] {
        check("cross_entropy", &[&[n, vocab]], &|x, _| {
            x[0].cross_entropy(&labels(n, vocab, x[0].tensor().device()))
        });
        check("linear_cross_entropy", &[&[n, k], &[vocab, k], &[vocab]], &|x, w| {
            x[0].linear_cross_entropy(&w[1], Some(&w[2]), &labels(n, vocab, w[1].device()))
        });
    }
}

/// Of all tokens, and of a nucleus of several and of one.
#[test]
fn distillation() {
    for (n, vocab) in [(1, 2), (40, 301), (3, 5000)] {
        for top_p in [None, Some(1e-5), Some(0.7)] {
            check("distillation", &[&[n, vocab]], &|x, _| {
                let teacher = numbers(n * vocab, &mut Seed(3).stream("teacher"));
                let teacher = Tensor::from_vec(teacher, (n, vocab), &Device::Cpu)?;
                let teacher = sent(&teacher, x[0].tensor().dtype(), x[0].tensor().device());
                x[0].distillation(&teacher, top_p)
            });
        }
    }
}

/// More rows than fit in one group of logits.
#[test]
fn a_loss_in_several_groups() {
    let (n, k, vocab) = (1300, 4, 60_000);
    check("linear_cross_entropy", &[&[n, k], &[vocab, k]], &|x, w| {
        x[0].linear_cross_entropy(&w[1], None, &labels(n, vocab, w[1].device()))
    });
}

/// Gradients add up over backward passes in the same buffer until they are cleared; frozen weights get none.
#[test]
fn gradients_accumulate_in_place() {
    let Some(gpu) = gpu() else { return };
    let tensor = |data: Vec<f32>, shape: (usize, usize)| {
        sent(&Tensor::from_vec(data, shape, &Device::Cpu).unwrap(), DType::BF16, &gpu)
    };
    let x = tensor(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], (3, 2));
    let w = Var::from_tensor(&tensor(vec![1.0; 4], (2, 2))).unwrap();
    let gradients = Gradients::default();
    let pass = || {
        let tape = Tape::new(&gradients);
        let y = tape.constant(x.clone()).linear(&w, None).unwrap().sum().unwrap();
        tape.backward(&y).unwrap();
        gradients.tensor(&w).unwrap()
    };
    let once = pass();
    assert_eq!(once.dtype(), DType::F32);
    assert_eq!(once.to_vec2::<f32>().unwrap(), [[9.0, 12.0]; 2]);
    assert_eq!(pass().to_vec2::<f32>().unwrap(), [[18.0, 24.0]; 2]);
    gradients.clear();
    assert_eq!(pass().to_vec2::<f32>().unwrap(), [[9.0, 12.0]; 2]);
    // one buffer all the time
    assert_eq!(once.to_vec2::<f32>().unwrap(), [[9.0, 12.0]; 2]);
}

/// A part that is computed again in the backward pass.
#[test]
fn checkpoints() {
    check("checkpoint", &[&[5, 16], &[16, 16]], &|x, w| {
        let weight = w[1].clone();
        let part = move |x: &[Value]| x[0].linear(&weight, None)?.activate(Activation::Silu)?.add(&x[0]);
        checkpoint(&[&x[0]], part)?.add(&x[0])
    });
}

/// What the host cannot look at without waiting gives NaN, and writes nowhere it should not.
#[test]
fn ids_and_labels_out_of_range_make_the_loss_nan() {
    let Some(gpu) = gpu() else { return };
    let table =
        Var::from_tensor(&sent(&Tensor::ones((4, 8), DType::F32, &Device::Cpu).unwrap(), DType::F32, &gpu))
            .unwrap();
    let gradients = Gradients::default();
    let loss = |ids: &[u32], labels: &[i64]| {
        let tape = Tape::new(&gradients);
        let ids = tape.constant(Tensor::from_slice(ids, ids.len(), &gpu).unwrap());
        let labels = Tensor::from_slice(labels, labels.len(), &gpu).unwrap();
        let loss = ids.embedding(&table).unwrap().linear_cross_entropy(&table, None, &labels).unwrap();
        tape.backward(&loss).unwrap();
        loss.tensor().to_scalar::<f32>().unwrap()
    };
    assert!(loss(&[0, 3], &[1, 2]).is_finite());
    assert!(loss(&[0, 4], &[1, 2]).is_nan());
    assert!(loss(&[0, u32::MAX], &[1, 2]).is_nan());
    assert!(loss(&[0, 3], &[1, 4]).is_nan());
    assert!(loss(&[0, 3], &[IGNORE, IGNORE]).is_nan());
}

/// More uploads than there are places: none is overwritten before the device has read it.
#[test]
fn uploads_arrive_unharmed() {
    let Some(gpu) = gpu() else { return };
    let mut staging = Staging::new(&gpu);
    let data = |i: u32| (0..5000 + 100 * i).map(|j| i ^ j).collect::<Vec<u32>>();
    let sent: Vec<Tensor> = (0..100).map(|i| staging.send(data(i), data(i).len()).unwrap()).collect();
    for (i, tensor) in sent.iter().enumerate() {
        assert_eq!(tensor.to_vec1::<u32>().unwrap(), data(i as u32));
    }
}
