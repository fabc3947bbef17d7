//! Operations on rows and elements.

use candle_core::{DType, Device, Tensor};
use rand::Rng;
use replica_core::Seed;
use replica_nn::ops::{Activation, Dropout, Moments, OUT_OF_REACH, RopeTable};
use replica_nn::{BatchNorm, Parameters, Value, accelerator};

use crate::compared::{check, check_kink, check_sum, sent};

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
    let Some(gpu) = accelerator::gpu_for_tests() else { return };
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
        let bucket = |i: u32| if i % 5 == 3 { OUT_OF_REACH } else { i * i % 7 };
        let buckets: Vec<u32> = (0..(a + b - 1) as u32).map(bucket).collect();
        check("relative_bias", &[&[7, 3], &[3, a, b]], &|x, w| {
            let buckets = Tensor::new(&*buckets, w[0].device())?;
            x[0].constant_beside(buckets).relative_bias(a, &w[0])?.gate(&x[1], Activation::Silu)
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
