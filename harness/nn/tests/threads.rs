//! Results and gradients of the operations over sequences have the same bits for any number of threads.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::Init;
use replica_core::Seed;
use replica_nn::ops::{
    DiagonalKernel, DiagonalScan, Discretisation, LowRankKernel, SelectiveScan, StepTransform,
};
use replica_nn::{Gradients, Parameters, Tape, Value};

/// Bits of f(inputs) and of the gradients of its sum by all inputs, given as values and as weights.
fn bits(shapes: &[&[usize]], f: impl Fn(&[Value], &[Tensor]) -> Result<Value>) -> Vec<u32> {
    let parameters = Parameters::new(Seed(3), DType::F32, &Device::Cpu);
    let draw = |(i, shape): (usize, &&[usize])| {
        let init = Init::Randn { mean: 0.0, stdev: 0.3 };
        parameters.builder().get_with_hints(*shape, &format!("input {i}"), init).unwrap()
    };
    let inputs: Vec<Tensor> = shapes.iter().enumerate().map(draw).collect();
    let gradients = Gradients::default();
    let tape = Tape::new(&gradients);
    let values: Vec<Value> = inputs.iter().map(|t| tape.variable(t).unwrap()).collect();
    let y = f(&values, &inputs).unwrap();
    let cotangent = y.tensor().affine(0.5, 0.25).unwrap();
    tape.backward_from(&y, cotangent).unwrap();
    let results = inputs.iter().map(|input| gradients.tensor(input).unwrap()).chain([y.tensor().clone()]);
    results.flat_map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap()).map(f32::to_bits).collect()
}

fn same_for_all_thread_counts(
    name: &str,
    shapes: &[&[usize]],
    f: impl Fn(&[Value], &[Tensor]) -> Result<Value> + Sync,
) {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| bits(shapes, &f))
    };
    let one = run(1);
    for threads in [2, 3, 5] {
        assert!(one == run(threads), "{name} differs with {threads} threads");
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    same_for_all_thread_counts("causal_convolution", &[&[37, 5, 130], &[2, 5, 130], &[5]], |x, w| {
        x[0].causal_convolution(&x[1], &w[2])
    });
    let diagonal = |w: &[Tensor], discretisation| DiagonalKernel {
        step: w[1].clone(),
        a_real: w[2].clone(),
        a_imag: w[3].clone(),
        b: Some(w[4].clone()),
        c: w[5].clone(),
        transform: StepTransform::Softplus,
        conjugate: true,
        discretisation,
        rate: 0.1,
    };
    let modes: &[usize] = &[2, 5];
    let shapes: [&[usize]; 7] = [&[1], &[6], modes, modes, &[2, 5, 2], &[2, 6, 5, 2], &[2, 5, 2]];
    // what only makes sure that inputs have a gradient comes in through the sum
    same_for_all_thread_counts("diagonal kernel", &shapes, |x, w| {
        let taps = diagonal(w, Discretisation::ZeroOrderHold).taps(300, &x[0])?;
        taps.sum()?.add(&x[0].sum()?)?.add(&x[6].sum()?)
    });
    same_for_all_thread_counts("low-rank kernel", &shapes, |x, w| {
        let kernel = LowRankKernel { diagonal: diagonal(w, Discretisation::Bilinear), p: w[6].clone() };
        kernel.taps(100, &x[0])?.sum()?.add(&x[0].sum()?)
    });
    let modes: &[usize] = &[19];
    same_for_all_thread_counts(
        "diagonal_scan",
        &[&[3, 150, 7], modes, modes, modes, &[19, 7, 2], &[7, 38, 2], &[7]],
        |x, w| {
            let model = DiagonalScan {
                lambda_re: w[1].clone(),
                lambda_im: w[2].clone(),
                log_step: w[3].clone(),
                b: w[4].clone(),
                c: vec![w[5].clone()],
                skip: w[6].clone(),
                discretisation: Discretisation::ZeroOrderHold,
                bidirectional: true,
                conjugate_pairs: true,
                clip: true,
                rate: 0.1,
            };
            x[0].diagonal_scan(&model, None)
        },
    );
    let wide: &[usize] = &[3, 100, 150];
    let narrow: &[usize] = &[3, 100, 4];
    same_for_all_thread_counts(
        "selective_scan",
        &[wide, wide, narrow, narrow, &[150, 4], &[150], &[150]],
        |x, w| {
            let (skip, delta_bias) = (Some(w[5].clone()), Some(w[6].clone()));
            let weights = SelectiveScan { a_log: w[4].clone(), skip, delta_bias, softplus: true };
            x[0].selective_scan(&x[1], &x[2], &x[3], &weights)
        },
    );
    same_for_all_thread_counts("causal_conv1d", &[&[3, 300, 33], &[40, 33, 4], &[40]], |x, w| {
        x[0].causal_conv1d(&w[1], Some(&w[2]))
    });
    same_for_all_thread_counts("depthwise_conv1d", &[&[3, 600, 33], &[33, 1, 4], &[33]], |x, w| {
        x[0].depthwise_conv1d(&w[1], Some(&w[2]), true)
    });
    same_for_all_thread_counts("glu", &[&[3, 300, 34]], |x, _| x[0].glu());
    same_for_all_thread_counts("columns", &[&[3, 300, 34]], |x, _| x[0].columns(3..20));
    same_for_all_thread_counts("transpose", &[&[3, 300, 34]], |x, _| x[0].transpose());
}

/// An impulse gives back the kernel, also over 16,384 steps.
#[test]
fn impulse_response_of_a_long_convolution() {
    let l = 16_384;
    for (l, taps) in [(1, 1), (2, 5), (l, l), (l, 100)] {
        let impulse: Vec<f32> = (0..l).map(|t| if t == 0 { 1.0 } else { 0.0 }).collect();
        let kernel: Vec<f32> = (0..taps).map(|t| (t as f32 * 0.37).sin()).collect();
        let u = Value::from(Tensor::from_vec(impulse, (1, 1, l), &Device::Cpu).unwrap());
        let k = Value::from(Tensor::from_vec(kernel.clone(), (1, 1, taps), &Device::Cpu).unwrap());
        let skip = Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap();
        let y = u.causal_convolution(&k, &skip).unwrap().tensor().flatten_all().unwrap();
        for (t, y) in y.to_vec1::<f32>().unwrap().into_iter().enumerate() {
            let expected = kernel.get(t).copied().unwrap_or(0.0);
            assert!((y - expected).abs() < 1e-5, "{l} steps, {taps} taps: {y} at {t}, expected {expected}");
        }
    }
}
