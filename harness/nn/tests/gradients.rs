//! Every operation's backward pass against central differences, in double precision on random shapes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::{Device, Result, Tensor, Var};
use proptest::prelude::*;
use rand::Rng;
use replica_core::Seed;
use replica_nn::ops::{
    Activation, Attention, DampedAverage, DiagonalKernel, DiagonalScan, Discretisation, Dropout, IGNORE,
    LowRankKernel, Moments, OUT_OF_REACH, RopeTable, Scores, SelectiveScan, StepTransform,
};
use replica_nn::{Gradients, Tape, Value, checkpoint};

const STEP: f64 = 1e-5;
const TOLERANCE: f64 = 2e-7;

/// Numbers on [-1, 1) that keep away from 0, where ReLU has no derivative.
fn numbers(n: usize, rng: &mut impl Rng) -> Vec<f64> {
    let unit = |rng: &mut dyn Rng| (rng.next_u32() as f64 + 0.5) / 4_294_967_296.0;
    (0..n)
        .map(|_| (0.01 + 0.99 * unit(rng)) * if rng.next_u32().is_multiple_of(2) { 1.0 } else { -1.0 })
        .collect()
}

fn variable(shape: &[usize], rng: &mut impl Rng) -> Var {
    let data = numbers(shape.iter().product(), rng);
    Var::from_tensor(&Tensor::from_vec(data, shape, &Device::Cpu).unwrap()).unwrap()
}

/// Compares the gradients of sum(f(inputs) * cotangent) by all inputs with central differences. Inputs are
/// given twice: as values on the tape and as the tensors behind them, for operations with weights.
fn check(shapes: &[&[usize]], seed: u64, f: impl Fn(&[Value], &[Tensor]) -> Result<Value>) {
    let mut rng = Seed(seed).stream("test");
    let inputs: Vec<Var> = shapes.iter().map(|shape| variable(shape, &mut rng)).collect();
    let tensors: Vec<Tensor> = inputs.iter().map(|v| v.as_tensor().clone()).collect();

    let gradients = Gradients::default();
    let tape = Tape::new(&gradients);
    let values: Vec<Value> = tensors.iter().map(|t| tape.variable(t).unwrap()).collect();
    let y = f(&values, &tensors).unwrap();
    let cotangent = numbers(y.tensor().elem_count(), &mut rng);
    let g = Tensor::from_vec(cotangent.clone(), y.tensor().shape(), &Device::Cpu).unwrap();
    tape.backward_from(&y, g).unwrap();

    let objective = |inputs: &[Tensor]| -> f64 {
        let values: Vec<Value> = inputs.iter().map(|t| Value::from(t.clone())).collect();
        let y = f(&values, inputs).unwrap().tensor().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        y.iter().zip(&cotangent).map(|(y, c)| y * c).sum()
    };
    for (which, tensor) in tensors.iter().enumerate() {
        let analytic: Vec<f64> = match gradients.tensor(tensor) {
            Some(g) => g.flatten_all().unwrap().to_vec1().unwrap(),
            None => panic!("input {which} got no gradient"),
        };
        let at: Vec<f64> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        for i in 0..at.len() {
            let shifted = |by: f64| {
                let mut moved = at.clone();
                moved[i] += by;
                let mut inputs = tensors.clone();
                inputs[which] = Tensor::from_vec(moved, tensor.shape(), &Device::Cpu).unwrap();
                objective(&inputs)
            };
            let numeric = (shifted(STEP) - shifted(-STEP)) / (2.0 * STEP);
            let error = (analytic[i] - numeric).abs() / (1.0 + numeric.abs());
            assert!(
                error < TOLERANCE,
                "input {which}, element {i}: {} by backward, {numeric} by differences",
                analytic[i]
            );
        }
    }
}

fn labels(n: usize, classes: usize, rng: &mut impl Rng) -> Tensor {
    let draw = |i: usize, rng: &mut dyn Rng| {
        if i > 0 && rng.next_u32().is_multiple_of(4) {
            IGNORE
        } else {
            i64::from(rng.next_u32()) % classes as i64
        }
    };
    let labels: Vec<i64> = (0..n).map(|i| draw(i, rng)).collect();
    Tensor::from_vec(labels, n, &Device::Cpu).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn linear(n in 1usize..6, k in 1usize..20, o in 1usize..9, seed: u64) {
        check(&[&[n, k], &[o, k], &[o]], seed, |x, w| x[0].linear(&w[1], Some(&w[2])));
        check(&[&[2, n, k], &[o, k]], seed, |x, w| x[0].linear(&w[1], None));
        for f in [Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu] {
            check(&[&[n, k], &[o, k], &[o]], seed, |x, w| x[0].linear_activation(&w[1], Some(&w[2]), f));
            // used twice, so that its gradient is shared
            check(&[&[n, k], &[o, k]], seed, |x, w| {
                let y = x[0].linear_activation(&w[1], None, f)?;
                y.add(&y)
            });
        }
    }

    #[test]
    fn norms(n in 1usize..6, width in 2usize..40, seed: u64) {
        check(&[&[n, width], &[width]], seed, |x, w| x[0].rms_norm(&w[1], 1e-6));
        check(&[&[n, width], &[width], &[width]], seed, |x, w| x[0].layer_norm(&w[1], &w[2], 1e-5));
        check(&[&[n + 2, width], &[width], &[width]], seed, |x, w| {
            x[0].batch_norm(&x[0].column_moments()?, true, &w[1], &w[2], 1e-2)
        });
        let same = |v: f64| Tensor::full(v, width, &Device::Cpu).unwrap();
        let given = Moments { mean: same(0.3), variance: same(0.7), count: 0 };
        check(&[&[n, width], &[width], &[width]], seed, |x, w| x[0].batch_norm(&given, false, &w[1], &w[2], 1e-5));
    }

    #[test]
    fn activations(n in 1usize..40, seed: u64) {
        check(&[&[n]], seed, |x, _| x[0].activate(Activation::Relu));
        for f in [Activation::Gelu, Activation::Sigmoid, Activation::Silu] {
            check(&[&[n]], seed, |x, _| x[0].activate(f));
            check(&[&[n], &[n]], seed, |x, _| x[0].gate(&x[1], f));
        }
        check(&[&[n]], seed, |x, _| x[0].activate(Activation::GeluTanh));
        check(&[&[3, 2 * n]], seed, |x, _| x[0].glu());
        check(&[&[n], &[n]], seed, |x, _| x[0].gate(&x[1], Activation::Silu));
        check(&[&[n]], seed, |x, _| x[0].dropout(0.3, Some(&Dropout::new(seed, 7))));
        check(&[&[2, 3, n]], seed, |x, _| x[0].tied_dropout(0.3, Some(&Dropout::new(seed, 7))));
        check(&[&[n]], seed, |x, _| x[0].sum());
        let targets = Tensor::zeros(n, candle_core::DType::F64, &Device::Cpu).unwrap();
        check(&[&[n]], seed, |x, _| x[0].mean_squared_error(&targets));
        check(&[&[2, n, 3]], seed, |x, _| x[0].select_positions(&[n - 1, n / 2])?.add(&x[0].select_positions(&[0, 0])?));
    }

    #[test]
    fn heads(batch in 1usize..4, t in 1usize..6, width in 1usize..5, seed: u64) {
        let lengths: Vec<usize> = (0..batch).map(|b| 1 + (seed as usize / 7 + b) % t).collect();
        check(&[&[batch, t, width]], seed, |x, _| x[0].mean_of_first(&lengths));
        // a gradient that is added to another one
        check(&[&[batch, t, width]], seed, |x, _| {
            x[0].mean_of_first(&lengths)?.add(&x[0].select_positions(&vec![0; batch])?)
        });
        check(&[&[2 * batch, width]], seed, |x, _| x[0].pair_features());
        check(&[&[2 * batch, width]], seed, |x, _| x[0].add(&x[0])?.pair_features()?.add(&x[0].pair_features()?));
    }

    /// A value used three times: its gradient is moved once and added twice.
    #[test]
    fn shared_values(n in 1usize..20, seed: u64) {
        check(&[&[n]], seed, |x, _| x[0].add(&x[0])?.add(&x[0].activate(Activation::Silu)?)?.gate(&x[0], Activation::Silu));
    }

    #[test]
    fn positions(batch in 1usize..3, t in 1usize..6, half in 1usize..4, heads in 1usize..3, start in 0usize..3, seed: u64) {
        let table = RopeTable::new(2 * half, 16, 10_000.0).unwrap();
        check(&[&[batch, t, heads * 2 * half]], seed, |x, _| x[0].rope(&table, start));
        check(&[&[batch, t, half], &[t + start, half]], seed, |x, w| x[0].add_positions(&w[1]));
        check(&[&[batch, t, half], &[t + start, half]], seed, |x, w| x[0].add_positions_from(&w[1], start));
    }

    #[test]
    fn embedding(n in 1usize..8, vocab in 1usize..6, width in 1usize..5, seed: u64) {
        let mut rng = Seed(seed).stream("ids");
        let ids: Vec<u32> = (0..n).map(|_| rng.next_u32() % vocab as u32).collect();
        let ids = Tensor::from_vec(ids, n, &Device::Cpu).unwrap();
        // scaled by x[1], so that the ids' constant is on a tape
        check(&[&[vocab, width], &[n, width]], seed, |x, w| {
            x[0].constant_beside(ids.clone()).embedding(&w[0])?.gate(&x[1], Activation::Silu)
        });
    }

    #[test]
    fn relative_bias(t in 1usize..5, s in 1usize..5, rows in 1usize..4, heads in 1usize..4, seed: u64) {
        // some distances share a bucket, every fifth is out of reach
        let bucket = |i: u32| if i % 5 == 3 { OUT_OF_REACH } else { 7 * i % rows as u32 };
        let buckets = Tensor::from_iter((0..(t + s - 1) as u32).map(bucket), &Device::Cpu).unwrap();
        check(&[&[rows, heads], &[heads, t, s]], seed, |x, w| {
            // a row that no pair uses has gradient 0; the table is also used as a value, so that it has one
            let bias = x[0].constant_beside(buckets.clone()).relative_bias(t, &w[0])?.gate(&x[1], Activation::Silu)?;
            bias.sum()?.add(&x[0].sum()?)
        });
    }

    #[test]
    fn constant_factors(n in 1usize..20, factor in -3.0f64..3.0, seed: u64) {
        check(&[&[n]], seed, |x, _| x[0].scale(factor));
    }

    #[test]
    fn attention(batch in 1usize..3, t in 1usize..6, more in 0usize..3, heads in 1usize..3, d in 1usize..5, of_values in 1usize..7, causal: bool, seed: u64) {
        let (s, width) = (t + more, heads * d);
        let attention = Attention { heads, scale: 0.7, causal };
        check(&[&[batch, t, width], &[batch, s, width], &[batch, s, width]], seed, |x, _| x[0].attention(&x[1], &x[2], attention));
        // values of another width
        let values: &[usize] = &[batch, s, heads * of_values];
        check(&[&[batch, t, width], &[batch, s, width], values], seed, |x, _| x[0].attention(&x[1], &x[2], attention));
    }

    #[test]
    fn attention_with_mask_bias_and_rope(batch in 1usize..3, t in 1usize..5, more in 0usize..3, heads in 1usize..3, half in 1usize..3, causal: bool, keep: [bool; 14], seed: u64) {
        let (s, d) = (t + more, 2 * half);
        let width = heads * d;
        let attention = Attention { heads, scale: 0.7, causal };
        let mask: Vec<u8> = (0..batch * s).map(|i| u8::from(keep[i])).collect();
        let mask = Tensor::from_vec(mask, (batch, s), &Device::Cpu).unwrap();
        let table = RopeTable::new(d, s, 100.0).unwrap();
        let shapes: &[&[usize]] = &[&[batch, t, width], &[batch, s, width], &[batch, s, width], &[heads, t, s]];
        check(shapes, seed, |x, _| {
            let scores = Scores { mask: Some(&mask), bias: Some(&x[3]), rope: Some(&table) };
            x[0].attention_with(&x[1], &x[2], attention, scores)
        });
        check(&[&[batch, t, 3 * width]], seed, |x, _| x[0].self_attention(attention, Scores { rope: Some(&table), ..Scores::default() }));
    }

    #[test]
    fn parts(batch in 1usize..3, rows in 1usize..6, width in 2usize..6, seed: u64) {
        check(&[&[batch, rows, width]], seed, |x, _| x[0].transpose());
        // two parts of one value, one of them twice
        check(&[&[batch, rows, width]], seed, |x, _| x[0].columns(0..1)?.gate(&x[0].columns(width - 1..width)?, Activation::Silu)?.add(&x[0].columns(0..1)?));
    }

    #[test]
    fn causal_convolution(batch in 1usize..5, h in 1usize..3, l in 1usize..9, taps in 1usize..11, sides in 1usize..3, seed: u64) {
        check(&[&[batch, h, l], &[sides, h, taps], &[h]], seed, |x, w| x[0].causal_convolution(&x[1], &w[2]));
    }

    #[test]
    fn windows(batch in 1usize..3, l in 1usize..8, width in 1usize..3, length in 1usize..5, before in 0usize..4, after in 0usize..4, seed: u64) {
        check(&[&[batch, l, width]], seed, |x, _| x[0].windows(length, before, after)?.activate(Activation::Silu));
        check(&[&[batch, l, width]], seed, |x, _| x[0].windows(length, before, 0)?.sum()?.add(&x[0].sum()?));
        let pieces = batch * l.div_ceil(length);
        check(&[&[pieces, length, width]], seed, |x, _| x[0].joined(batch, l)?.activate(Activation::Silu));
        // a gradient that is added to another one
        check(&[&[pieces, length, width]], seed, |x, _| x[0].joined(batch, l)?.sum()?.add(&x[0].sum()?));
    }

    #[test]
    fn damped_average(sides in 1usize..3, h in 1usize..4, n in 1usize..4, length in 1usize..8, seed: u64) {
        let flat: &[usize] = &[sides * h, n];
        let deep: &[usize] = &[sides * h, n, 1];
        check(&[deep, deep, deep, flat], seed, |x, w| {
            let [delta, alpha, beta, gamma] = [0, 1, 2, 3].map(|i| w[i].clone());
            DampedAverage { delta, alpha, beta, gamma, sides }.taps(length, &x[0])?.activate(Activation::Silu)
        });
    }

    #[test]
    fn short_convolutions(batch in 1usize..3, l in 1usize..7, from in 1usize..4, into in 1usize..4, taps in 1usize..6, silu: bool, seed: u64) {
        check(&[&[batch, l, from], &[into, from, taps], &[into]], seed, |x, w| x[0].causal_conv1d(&w[1], Some(&w[2])));
        check(&[&[batch, l, from], &[into, from, taps]], seed, |x, w| x[0].causal_conv1d(&w[1], None));
        check(&[&[batch, l, from], &[from, 1, taps], &[from]], seed, |x, w| x[0].depthwise_conv1d(&w[1], Some(&w[2]), silu));
        check(&[&[batch, l, from], &[from, 1, taps]], seed, |x, w| x[0].depthwise_conv1d(&w[1], None, silu));
    }

    #[test]
    fn diagonal_kernel(kernels in 1usize..3, copies in 1usize..3, share in 1usize..3, n in 1usize..4, l in 1usize..9, bilinear: bool, softplus: bool, conjugate: bool, seed: u64) {
        let h = copies * share;
        let shapes: [&[usize]; 6] = [&[h], &[copies, n], &[copies, n], &[1, copies, n, 2], &[kernels, h, n, 2], &[1]];
        check(&shapes, seed, |x, w| {
            let kernel = DiagonalKernel {
                step: w[0].clone(),
                a_real: w[1].clone(),
                a_imag: w[2].clone(),
                b: Some(w[3].clone()),
                c: w[4].clone(),
                transform: if softplus { StepTransform::Softplus } else { StepTransform::Exp },
                conjugate,
                discretisation: if bilinear { Discretisation::Bilinear } else { Discretisation::ZeroOrderHold },
                rate: 0.4,
            };
            let taps = kernel.taps(l, &x[0])?;
            // the last input only makes sure that every input has a gradient
            taps.sum()?.add(&x[5].sum()?)?.sum()?.add(&taps.activate(Activation::Silu)?.sum()?)
        });
    }

    #[test]
    fn low_rank_kernel(kernels in 1usize..3, copies in 1usize..3, share in 1usize..3, n in 1usize..4, length in 1usize..8, seed: u64) {
        let h = copies * share;
        let per_set: &[usize] = &[1, copies, n, 2];
        let shapes: [&[usize]; 6] = [&[h], &[copies, n], &[copies, n], per_set, &[kernels, h, n, 2], per_set];
        check(&shapes, seed, |x, w| {
            let diagonal = DiagonalKernel {
                step: w[0].clone(),
                a_real: w[1].clone(),
                a_imag: w[2].clone(),
                b: Some(w[3].clone()),
                c: w[4].clone(),
                transform: StepTransform::Softplus,
                conjugate: true,
                discretisation: Discretisation::Bilinear,
                rate: 0.4,
            };
            LowRankKernel { diagonal, p: w[5].clone() }.taps(length, &x[0])?.activate(Activation::Silu)
        });
    }

    #[test]
    fn diagonal_scan(batch in 1usize..3, l in 1usize..6, h in 1usize..4, p in 1usize..11, bidirectional: bool, bilinear: bool, varying: bool, seed: u64) {
        let mut rng = Seed(seed).stream("intervals");
        let intervals: Vec<f64> = numbers(batch * l, &mut rng).into_iter().map(f64::abs).collect();
        let intervals = Tensor::from_vec(intervals, (batch, l), &Device::Cpu).unwrap();
        let shapes: [&[usize]; 8] = [&[batch, l, h], &[p], &[p], &[p, 1], &[p, h, 2], &[h, p, 2], &[h, p, 2], &[h]];
        check(&shapes, seed, |x, w| {
            let model = DiagonalScan {
                lambda_re: w[1].clone(),
                lambda_im: w[2].clone(),
                log_step: w[3].clone(),
                b: w[4].clone(),
                c: if bidirectional { vec![w[5].clone(), w[6].clone()] } else { vec![w[5].clone()] },
                skip: w[7].clone(),
                discretisation: if bilinear { Discretisation::Bilinear } else { Discretisation::ZeroOrderHold },
                bidirectional,
                conjugate_pairs: true,
                clip: false,
                rate: 0.7,
            };
            let y = x[0].diagonal_scan(&model, varying.then_some(&intervals))?.activate(Activation::Silu)?.sum()?;
            // in one direction the second C only gets a gradient from here
            y.add(&x[6].sum()?)
        });
    }

    #[test]
    fn selective_scan(batch in 1usize..3, l in 1usize..5, d in 1usize..4, n in 1usize..4, softplus: bool, seed: u64) {
        let shapes: [&[usize]; 7] = [&[batch, l, d], &[batch, l, d], &[batch, l, n], &[batch, l, n], &[d, n], &[d], &[d]];
        check(&shapes, seed, |x, w| {
            let weights = SelectiveScan { a_log: w[4].clone(), skip: Some(w[5].clone()), delta_bias: Some(w[6].clone()), softplus };
            x[0].selective_scan(&x[1], &x[2], &x[3], &weights)
        });
    }

    #[test]
    fn losses(n in 1usize..7, k in 1usize..6, vocab in 2usize..9, seed: u64) {
        let labels = labels(n, vocab, &mut Seed(seed).stream("labels"));
        check(&[&[n, vocab]], seed, |x, _| x[0].cross_entropy(&labels));
        check(&[&[n, k], &[vocab, k], &[vocab]], seed, |x, w| x[0].linear_cross_entropy(&w[1], Some(&w[2]), &labels));
        let teacher = (0..n * vocab).map(|i| ((7 * i + (seed % 13) as usize) % 5) as f64 * 0.4);
        let teacher = Tensor::from_iter(teacher, &Device::Cpu).unwrap().reshape((n, vocab)).unwrap();
        for top_p in [None, Some(0.7)] {
            check(&[&[n, vocab]], seed, |x, _| x[0].distillation(&teacher, top_p));
        }
    }
}

/// More than one block of queries, more than one group of rows: the paths small shapes do not reach.
#[test]
fn long_sequences() {
    let attention = |causal| Attention { heads: 1, scale: 0.5, causal };
    for causal in [true, false] {
        check(&[&[1, 70, 2], &[1, 71, 2], &[1, 71, 2]], 1, |x, _| {
            x[0].attention(&x[1], &x[2], attention(causal))
        });
    }
    let mask = Tensor::from_iter((0..140u8).map(|i| u8::from(i % 3 != 1)), &Device::Cpu).unwrap();
    let mask = mask.reshape((2, 70)).unwrap();
    check(&[&[2, 70, 2], &[2, 70, 2], &[2, 70, 2], &[1, 70, 70]], 1, |x, _| {
        let scores = Scores { mask: Some(&mask), bias: Some(&x[3]), rope: None };
        x[0].attention_with(&x[1], &x[2], attention(true), scores)
    });
    check(&[&[150, 3], &[3]], 2, |x, w| x[0].rms_norm(&w[1], 1e-6));
    check(&[&[150, 3], &[3], &[3]], 3, |x, w| x[0].layer_norm(&w[1], &w[2], 1e-5));
    check(&[&[600, 2], &[2, 2], &[2]], 4, |x, w| x[0].linear(&w[1], Some(&w[2])));
    check(&[&[1, 600, 2], &[2, 1, 3], &[2]], 5, |x, w| x[0].depthwise_conv1d(&w[1], Some(&w[2]), true));
    check(&[&[18, 1, 5], &[1, 1, 5], &[1]], 6, |x, w| x[0].causal_convolution(&x[1], &w[2]));
    check(&[&[1, 40, 33]], 7, |x, _| x[0].transpose());
    // 40 steps and 131 channels: two chunks, two groups of blocks, the last of which is not full
    check(&[&[1, 40, 131], &[1, 40, 131], &[1, 40, 1], &[1, 40, 1], &[131, 1]], 8, |x, w| {
        let weights = SelectiveScan { a_log: w[4].clone(), skip: None, delta_bias: None, softplus: true };
        x[0].columns(0..131)?.selective_scan(&x[1], &x[2], &x[3], &weights)
    });
}

/// The head and its loss together agree with the head followed by the loss, also over several groups of rows.
#[test]
fn fused_loss_equals_separate_loss() {
    let mut rng = Seed(5).stream("test");
    let (rows, width, vocab) = (70, 4, 60_000);
    let x = variable(&[rows, width], &mut rng);
    let (w, b) = (variable(&[vocab, width], &mut rng), variable(&[vocab], &mut rng));
    let labels = labels(rows, vocab, &mut rng);
    let run = |fused: bool| -> Vec<Tensor> {
        let gradients = Gradients::default();
        let tape = Tape::new(&gradients);
        let h = tape.variable(x.as_tensor()).unwrap();
        let loss = if fused {
            h.linear_cross_entropy(&w, Some(&b), &labels).unwrap()
        } else {
            h.linear(&w, Some(&b)).unwrap().cross_entropy(&labels).unwrap()
        };
        tape.backward(&loss).unwrap();
        let mut all = vec![loss.tensor().clone()];
        all.extend([&x, &w, &b].map(|v| gradients.tensor(v).unwrap().copy().unwrap()));
        all
    };
    for (a, b) in run(true).iter().zip(&run(false)) {
        let worst = (a - b)
            .unwrap()
            .abs()
            .unwrap()
            .flatten_all()
            .unwrap()
            .max(0)
            .unwrap()
            .to_scalar::<f64>()
            .unwrap();
        assert!(worst < 1e-12, "{worst:e}");
    }
}

/// Gradients add up over backward passes until they are cleared; frozen weights get none.
#[test]
fn gradients_accumulate_and_frozen_weights_stay_without() {
    let mut rng = Seed(6).stream("test");
    let (x, w) = (variable(&[3, 2], &mut rng), variable(&[2, 2], &mut rng));
    let frozen = w.as_tensor().copy().unwrap();
    let gradients = Gradients::default();
    let pass = |weight: &Tensor| {
        let tape = Tape::new(&gradients);
        let y = tape.constant(x.as_tensor().clone()).linear(weight, None).unwrap().sum().unwrap();
        tape.backward(&y).unwrap();
    };
    let get = |t: &Tensor| gradients.tensor(t).map(|g| g.flatten_all().unwrap().to_vec1::<f64>().unwrap());
    pass(&frozen);
    assert_eq!(get(&frozen), None);
    pass(&w);
    let once = get(&w).unwrap();
    pass(&w);
    assert_eq!(get(&w).unwrap(), once.iter().map(|v| 2.0 * v).collect::<Vec<_>>());
    gradients.clear();
    assert_eq!(get(&w), None);
    pass(&w);
    assert_eq!(get(&w).unwrap(), once);
}

/// A part that is computed again in the backward pass has the gradients of one that is kept, also when its
/// result or its inputs are used elsewhere too.
#[test]
fn checkpointing_changes_no_gradient() {
    let part = |w: Tensor| {
        move |x: &[Value]| {
            let h = x[0].linear_activation(&w, None, Activation::Gelu)?;
            x[1].add(&h.gate(&x[0], Activation::Silu)?)
        }
    };
    let shapes: &[&[usize]] = &[&[3, 4], &[3, 4], &[4, 4]];
    check(shapes, 8, |x, w| {
        let y = checkpoint(&[&x[0], &x[1]], part(w[2].clone()))?;
        let y = checkpoint(&[&y, &x[0]], part(w[2].clone()))?;
        y.add(&y)?.add(&x[1])
    });

    let mut rng = Seed(9).stream("test");
    let [x, w] = [[5, 4], [4, 4]].map(|shape| variable(&shape, &mut rng));
    let run = |again: bool| {
        let gradients = Gradients::default();
        let tape = Tape::new(&gradients);
        let input = [tape.variable(x.as_tensor()).unwrap(), tape.constant(x.as_tensor().copy().unwrap())];
        let f = part(w.as_tensor().clone());
        let y = if again { checkpoint(&[&input[0], &input[1]], f) } else { f(&input) }.unwrap();
        tape.backward(&y.sum().unwrap()).unwrap();
        [&x, &w].map(|v| gradients.tensor(v).unwrap().to_vec2::<f64>().unwrap())
    };
    assert_eq!(run(true), run(false));
}
