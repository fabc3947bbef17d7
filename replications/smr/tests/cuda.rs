//! Models of every host, with SMR, on a GPU against the CPU: loss and the gradients of all parameters. On a machine without
//! a GPU the test says so and passes.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use replica_core::Seed;
use replica_nn::ops::Dropout;
use replica_nn::{Gradients, Parameters, Tape, accelerator};
use replica_smr::data::{Batch, Targets};
use replica_smr::host::{InitialModes, S5Activation, S5Output};
use replica_smr::model::{Encoder, Head, NormKind, NormPlace, Shape};
use replica_smr::replay::{Channels, Place};
use replica_smr::{HostConfig, Model, ModelConfig, ReplayConfig};

const ROWS: usize = 3;
const LENGTH: usize = 40;
const CLASSES: usize = 3;
const TOKENS: usize = 11;

fn config(host: HostConfig, norm: NormKind) -> ModelConfig {
    let tied_dropout = host.can_tie_dropout();
    let norm_place = if norm == NormKind::Batch { NormPlace::Post } else { NormPlace::Pre };
    ModelConfig {
        encoder: Encoder::Tokens(TOKENS),
        head: Head::Classes(CLASSES),
        shape: Shape { width: 8, layers: 2, norm, norm_place, dropout: 0.1, tied_dropout },
        host,
        replay: Some(ReplayConfig {
            taps: 4,
            channels: Channels::Dense,
            linear: false,
            gate: true,
            bias: None,
            place: Place::Input,
        }),
        length: LENGTH,
        told: false,
    }
}

/// The loss, and the gradients of all parameters by name. They are drawn on the host: candle's kernels, which computed ones
/// would need, are not those under test.
fn loss_and_gradients(config: &ModelConfig, dtype: DType, device: &Device) -> Vec<(String, Vec<f32>)> {
    let drawn = Parameters::new(Seed(1), DType::F32, &Device::Cpu);
    Model::new(config, drawn.builder()).unwrap();
    let tensors: HashMap<String, Tensor> =
        drawn.all().into_iter().map(|(name, var)| (name, var.as_tensor().clone())).collect();
    let parameters = Parameters::from_tensors(tensors, dtype, device).unwrap();
    let model = Model::new(config, parameters.builder()).unwrap();
    let ids: Vec<u32> = (0..(ROWS * LENGTH) as u32).map(|i| (i * i / 3 + i) % TOKENS as u32).collect();
    let batch = Batch {
        inputs: Tensor::from_vec(ids, (ROWS, LENGTH), device).unwrap(),
        lengths: vec![LENGTH, LENGTH - 7, 1],
        intervals: None,
        targets: Targets::Classes(Tensor::new(&[2i64, 0, 1], device).unwrap()),
    };
    let gradients = Gradients::default();
    let tape = Tape::new(&gradients);
    let inputs = tape.constant(batch.inputs.clone());
    let loss = model.loss(&inputs, &batch, Some(&Dropout::new(5, 2))).unwrap();
    tape.backward(&loss).unwrap();
    let host = |t: &Tensor| {
        let t = t.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
        t.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let gradient = |p: replica_nn::Parameter| {
        let g = gradients.tensor(p.variable.as_tensor()).expect("every parameter has a gradient");
        (p.name, host(&g))
    };
    let mut results = vec![("loss".to_owned(), host(loss.tensor()))];
    results.extend(parameters.trained().into_iter().map(gradient));
    results
}

fn agrees(host: HostConfig, norm: NormKind) {
    let Some(gpu) = accelerator::gpu_for_tests() else { return };
    let config = config(host, norm);
    let expected = loss_and_gradients(&config, DType::F32, &Device::Cpu);
    // rounding errors have no direction: what is compared is the length of the difference
    let length = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let whole = length(&mut expected[1..].iter().flat_map(|(_, g)| g.iter().copied()));
    for (dtype, forward, backward) in [(DType::F32, 1e-5, 1e-4), (DType::BF16, 2e-2, 1.5e-1)] {
        for ((what, a), (_, b)) in expected.iter().zip(loss_and_gradients(&config, dtype, &gpu)) {
            assert_eq!(a.len(), b.len(), "{what}");
            let (of, by) =
                (length(&mut a.iter().copied()), length(&mut a.iter().zip(&b).map(|(a, b)| a - b)));
            // a shift of all keys moves all scores of a query alike: such a gradient is 0 but for rounding
            let (far, of) = if what == "loss" { (forward, of) } else { (backward, of.max(0.01 * whole)) };
            assert!(by <= far * of, "{host:?} in {dtype:?}, {what}: off by {by} of {of}");
        }
    }
}

#[test]
fn hosts_of_convolutions_and_scans() {
    let (steps, bidirectional) = ((1e-3, 1e-1), true);
    agrees(HostConfig::None {}, NormKind::Layer);
    let modes = InitialModes::Legs;
    agrees(HostConfig::S4d { state: 8, sets: Some(2), modes, steps, bidirectional }, NormKind::Batch);
    agrees(HostConfig::S4 { state: 8, sets: None, steps, bidirectional }, NormKind::Layer);
    let (output, activation) = (S5Output::Lecun, S5Activation::FullGlu);
    let s5 = HostConfig::S5 { state: 8, blocks: 2, steps, output, activation, bidirectional, clip: true };
    agrees(s5, NormKind::Batch);
    agrees(HostConfig::Mamba { state: 4, expand: 2, taps: 4 }, NormKind::Rms);
}

#[test]
fn hosts_with_attention() {
    let (steps, truncation) = ((1e-3, 1e-1), Some(24));
    for (bidirectional, chunk, norm) in
        [(false, Some(16), NormKind::Layer), (true, Some(16), NormKind::Batch), (true, None, NormKind::Layer)]
    {
        agrees(HostConfig::Mega { shared: 4, state: 4, expand: 2, truncation, chunk, bidirectional }, norm);
    }
    for bidirectional in [false, true] {
        let heads = 2;
        let spade =
            HostConfig::Spade { state: 8, sets: None, steps, heads, radius: 7, expand: 2, bidirectional };
        agrees(spade, NormKind::Layer);
    }
}
