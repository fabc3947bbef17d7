//! Whole layers and T5: values and the gradients of all parameters.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::VarBuilder;
use replica_core::Seed;
use replica_nn::mamba::{Mamba, MambaConfig};
use replica_nn::ops::{Discretisation, Dropout, StepTransform};
use replica_nn::s4d::{Modes, S4d, S4dConfig};
use replica_nn::s5::{OutputInit, S5, S5Config};
use replica_nn::t5::{T5, T5Config};
use replica_nn::{
    Gradients, LocalAttentionConfig, Mega, MegaConfig, Parameters, Spade, Tape, Value, accelerator,
};

use crate::compared::{LENGTHS, labels, numbers, sent};

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
    let Some(gpu) = accelerator::gpu_for_tests() else { return };
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
    let Some(gpu) = accelerator::gpu_for_tests() else { return };
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
