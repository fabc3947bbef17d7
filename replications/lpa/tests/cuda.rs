//! Both model families on a GPU against the CPU, which agrees with the authors' modules (`oracle.rs`): loss,
//! gradients, and training. On a machine without a GPU the tests say so and pass.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::AtomicBool;

use candle_core::{DType, Device, Tensor};
use replica_core::trial::{self, Silent};
use replica_core::{Seed, TrialContext, TrialError};
use replica_lpa::projection::PairInit;
use replica_lpa::{LanguageModel, ModelConfig, Setting};
use replica_nn::ops::Dropout;
use replica_nn::{Gradients, Parameters, Tape, accelerator};
use replica_train::{Blocks, Log, Precision, Recipe, evaluate, train};

fn config(setting: Setting, head_dim: usize) -> ModelConfig {
    ModelConfig {
        setting,
        vocab_size: 300,
        hidden_size: 128,
        ffn_size: 344,
        num_heads: 3,
        head_dim,
        num_layers: 2,
        seq_len: 72,
        attention_rank: Some(24),
        low_projections: "qkv".to_owned(),
        ffn_rank: None,
        pair_init: PairInit::Torch,
        post_norm: false,
        dropout: if setting == Setting::One { 0.1 } else { 0.0 },
    }
}

/// A model small enough that an emulated device takes some hundred steps a minute.
fn small() -> ModelConfig {
    ModelConfig { hidden_size: 48, ffn_size: 72, num_layers: 1, seq_len: 24, ..config(Setting::Two, 32) }
}

fn blocks(seq_len: usize) -> Blocks {
    let tokens: Vec<u32> = (0..16 * seq_len as u32).map(|i| (i * i / 7 + i / 72) % 300).collect();
    Blocks::new(tokens, seq_len)
}

fn parameters(config: &ModelConfig, dtype: DType, device: &Device) -> (Parameters, LanguageModel) {
    let parameters = Parameters::new(Seed(1), dtype, device);
    let model = LanguageModel::new(config, parameters.builder()).unwrap();
    (parameters, model)
}

fn host(t: &Tensor) -> Vec<f32> {
    let t = t.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// Loss and gradients by name on a batch.
fn loss_and_gradients(config: &ModelConfig, dtype: DType, device: &Device) -> (f32, Vec<(String, Vec<f32>)>) {
    let (parameters, model) = parameters(config, dtype, device);
    let batch = blocks(72).batch(&[3, 1, 4, 1, 5], device).unwrap();
    let gradients = Gradients::default();
    let tape = Tape::new(&gradients);
    let loss = model.loss(&tape.constant(batch.ids), &batch.labels, Some(&Dropout::new(5, 2))).unwrap();
    tape.backward(&loss).unwrap();
    let gradient = |p: &replica_nn::Parameter| {
        let g = gradients.tensor(p.variable.as_tensor()).expect("every parameter has a gradient");
        (p.name.clone(), host(&g))
    };
    (host(loss.tensor())[0], parameters.trained().iter().map(gradient).collect())
}

#[test]
fn losses_and_gradients_agree_with_the_cpu() {
    let Some(gpu) = accelerator::gpu_for_tests() else { return };
    for setting in [Setting::One, Setting::Two] {
        for head_dim in [32, 40] {
            let config = config(setting, head_dim);
            let (expected, expected_gradients) = loss_and_gradients(&config, DType::F32, &Device::Cpu);
            for (dtype, close, same_direction) in [(DType::F32, 1e-5, 1e-6), (DType::BF16, 1e-2, 2e-2)] {
                let (loss, gradients) = loss_and_gradients(&config, dtype, &gpu);
                assert!((loss / expected - 1.0).abs() < close, "{dtype:?}: {loss}, {expected} on the CPU");
                let dot = |x: &[f32], y: &[f32]| {
                    x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>()
                };
                let whole: f64 = expected_gradients.iter().map(|(_, a)| dot(a, a)).sum();
                for ((name, a), (_, b)) in expected_gradients.iter().zip(&gradients) {
                    // a key's bias moves all scores of a query alike: its gradient is 0, and rounding has no direction
                    if name.ends_with("key_proj.0.bias") {
                        let negligible = whole * f64::from(close).powi(2);
                        assert!(dot(a, a) < negligible && dot(b, b) < negligible, "{dtype:?} {name}");
                        continue;
                    }
                    // 1 - cosine, and the ratio of lengths
                    let (aa, bb, ab) = (dot(a, a), dot(b, b), dot(a, b));
                    assert!(
                        1.0 - ab / (aa * bb).sqrt() < same_direction,
                        "{dtype:?} {name}: {ab} of {aa}, {bb}"
                    );
                    assert!(
                        ((bb / aa).sqrt() - 1.0).abs() < f64::from(close) * 3.0,
                        "{dtype:?} {name}: {aa} {bb}"
                    );
                }
            }
        }
    }
}

/// Trains for `steps`; with a learning rate that diverges the error names the step.
fn trained(device: &Device, dtype: Precision, learning_rate: f64) -> Result<Log, TrialError> {
    let config = small();
    let recipe = Recipe {
        dtype,
        steps: 20,
        batch_size: 4,
        micro_batches: 1,
        seq_len: config.seq_len,
        learning_rate,
        warmup_steps: 4,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-5,
        weight_decay: 0.1,
        clip_norm: 1.0,
        groups: Vec::new(),
        // beside the window in which a GPU's steps are read
        eval_every: 18,
        patience: None,
        eval_blocks: 0,
    };
    let (parameters, model) = parameters(&config, dtype.on(device).unwrap(), device);
    let context = TrialContext {
        device: trial::Device::Cpu,
        progress: &Silent,
        cancel: &AtomicBool::new(false),
        checkpoints: None,
    };
    let blocks = blocks(config.seq_len);
    train(
        &parameters,
        &recipe,
        &blocks,
        Seed(1),
        &context,
        |tape, batch, dropout| model.loss(&tape.constant(batch.ids), &batch.labels, Some(dropout)),
        || {
            let valid = evaluate(&blocks, 8, device, |ids, labels| model.loss(ids, labels, None))?;
            Ok(vec![("valid_loss", valid.mean_nll)])
        },
    )
}

#[test]
fn training_agrees_with_the_cpu() {
    let Some(gpu) = accelerator::gpu_for_tests() else { return };
    let expected = trained(&Device::Cpu, Precision::F32, 1e-3).unwrap();
    for (dtype, close) in [(Precision::F32, 1e-3), (Precision::Bf16, 2e-2)] {
        let log = trained(&gpu, dtype, 1e-3).unwrap();
        assert_eq!(log.steps, 20);
        for curve in ["train_loss", "valid_loss"] {
            let (a, b) = (&expected.curves[curve], &log.curves[curve]);
            assert_eq!(a.x, b.x);
            for (a, b) in a.y.iter().zip(&b.y) {
                assert!((b / a - 1.0).abs() < close, "{dtype:?}, {curve}: {b}, {a} on the CPU");
            }
        }
    }
}

/// The same bits twice: nothing depends on the order in which blocks of threads finish.
#[test]
fn training_repeats_itself() {
    let Some(gpu) = accelerator::gpu_for_tests() else { return };
    for dtype in [Precision::F32, Precision::Bf16] {
        let (a, b) = (trained(&gpu, dtype, 1e-3).unwrap(), trained(&gpu, dtype, 1e-3).unwrap());
        assert_eq!(a.trace.first_difference(&b.trace), None, "{dtype:?}");
    }
}
