//! The optimiser on a GPU against the CPU. On a machine without a GPU the tests say so and pass.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use replica_nn::{Gradients, Parameters, Tape, accelerator};
use replica_train::AdamW;
use replica_train::adamw::{Group, Options, Outcome};

/// `b` follows the main rate, `a` has a group of its own.
fn options() -> Options {
    let group = Group { parameters: vec!["a".to_owned()], relative_rate: 0.5, weight_decay: 0.0 };
    Options { beta1: 0.9, beta2: 0.95, eps: 1e-5, weight_decay: 0.1, clip_norm: 1.0, groups: vec![group] }
}

fn parameters(dtype: DType, device: &Device) -> Parameters {
    let values = |n: usize| (0..n).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect::<Vec<_>>();
    let tensors = [("a", 7), ("b", 40_000)].map(|(name, rows)| {
        (name.to_owned(), Tensor::from_vec(values(3 * rows), (rows, 3), &Device::Cpu).unwrap())
    });
    Parameters::from_tensors(HashMap::from(tensors), dtype, device).unwrap()
}

/// A step on the loss sum(x a^T) + sum(x b^T).
fn step(optimiser: &mut AdamW, parameters: &Parameters, x: [f32; 3], rate: f64) {
    let gradients = Gradients::default();
    let tape = Tape::new(&gradients);
    let weight = |name: &str| parameters.get(name).unwrap();
    // converted on the host, so that nothing but our own kernels runs
    let x = Tensor::new(&[x], &Device::Cpu).unwrap().to_dtype(weight("a").dtype()).unwrap();
    let x = tape.constant(x.to_device(parameters.device()).unwrap());
    let half = |name: &str| x.linear(&weight(name), None).unwrap().sum().unwrap();
    let loss = half("a").add(&half("b")).unwrap();
    tape.backward(&loss).unwrap();
    optimiser.step(&gradients, rate, loss.tensor()).unwrap();
}

fn trained(dtype: DType, device: &Device) -> (Parameters, AdamW, Vec<Outcome>) {
    let parameters = parameters(dtype, device);
    let mut optimiser = AdamW::new(&parameters, options()).unwrap();
    let mut outcomes = Vec::new();
    for i in 0..20 {
        let i = i as f32;
        step(&mut optimiser, &parameters, [1.0 - i / 8.0, 0.5, i / 16.0], 0.01);
        if optimiser.due() {
            outcomes.extend(optimiser.outcomes().unwrap());
        }
    }
    outcomes.extend(optimiser.outcomes().unwrap());
    (parameters, optimiser, outcomes)
}

fn host(t: &Tensor) -> Vec<f32> {
    let t = t.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
    t.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn steps_agree_with_the_cpu() {
    let Some(gpu) = accelerator::gpu_for_tests() else { return };
    let (expected, on_cpu, cpu_outcomes) = trained(DType::F32, &Device::Cpu);
    let (parameters, on_gpu, gpu_outcomes) = trained(DType::F32, &gpu);
    assert_eq!(gpu_outcomes.len(), 20);
    for (a, b) in cpu_outcomes.iter().zip(&gpu_outcomes) {
        assert!((a.loss - b.loss).abs() <= 1e-4 * a.loss.abs().max(1.0), "{a:?} {b:?}");
        assert!((a.gradient_norm / b.gradient_norm - 1.0).abs() < 1e-5, "{a:?} {b:?}");
    }
    for ((name, a), (_, b)) in expected.all().iter().zip(&parameters.all()) {
        for (a, b) in host(a).iter().zip(host(b)) {
            assert!((a - b).abs() < 1e-5, "{name}: {b}, {a} on the CPU");
        }
    }
    let state: HashMap<String, Tensor> = on_gpu.state().unwrap().into_iter().collect();
    for (name, tensor) in on_cpu.state().unwrap() {
        for (a, b) in host(&tensor).iter().zip(host(&state[&name])) {
            assert!((a - b).abs() <= 1e-5 * a.abs().max(1e-3), "{name}: {b}, {a} on the CPU");
        }
    }
}

#[test]
fn masters_are_single_precision_and_copies_follow() {
    let Some(gpu) = accelerator::gpu_for_tests() else { return };
    let (parameters, ..) = trained(DType::BF16, &gpu);
    for parameter in parameters.trained() {
        assert_eq!(parameter.master.dtype(), DType::F32);
        assert_eq!(parameter.variable.dtype(), DType::BF16);
        let master = parameter.master.to_device(&Device::Cpu).unwrap();
        assert_eq!(
            host(&master.to_dtype(DType::BF16).unwrap()),
            host(&parameter.variable),
            "{}",
            parameter.name
        );
    }
}

/// Found although nobody waited for the step, with its own number, and it changed nothing.
#[test]
fn a_gradient_that_is_not_finite_is_named_later() {
    let Some(gpu) = accelerator::gpu_for_tests() else { return };
    let parameters = parameters(DType::F32, &gpu);
    let mut optimiser = AdamW::new(&parameters, options()).unwrap();
    let weights = || host(parameters.all()[0].1.as_tensor());
    step(&mut optimiser, &parameters, [1.0, 1.0, 1.0], 0.01);
    let before = weights();
    step(&mut optimiser, &parameters, [f32::NAN, 1.0, 1.0], 0.01);
    assert_eq!(before, weights());
    step(&mut optimiser, &parameters, [1.0, 1.0, 1.0], 0.01);
    let outcomes = optimiser.outcomes().unwrap();
    let named: Vec<Option<&str>> = outcomes.iter().map(|o| o.not_finite.as_deref()).collect();
    assert_eq!(named, [None, Some("a"), None]);
}
