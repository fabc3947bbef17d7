//! Generation with a key-value cache against the forward pass that training uses.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::{DType, Device, Tensor};
use replica_core::Seed;
use replica_lpa::projection::PairInit;
use replica_lpa::{LanguageModel, ModelConfig, Setting};
use replica_nn::{KeyValueCache, Parameters, Value};
use replica_train::generate::{Beams, Cached, Stop, beam_search, greedy};

const SEQ_LEN: usize = 12;
const VOCAB: usize = 23;

fn models() -> Vec<(String, LanguageModel)> {
    let mut models = Vec::new();
    for setting in [Setting::One, Setting::Two] {
        for attention_rank in [None, Some(3)] {
            for post_norm in [false, true] {
                let config = ModelConfig {
                    setting,
                    vocab_size: VOCAB,
                    hidden_size: 16,
                    ffn_size: 24,
                    num_heads: 2,
                    head_dim: 8,
                    num_layers: 2,
                    seq_len: SEQ_LEN,
                    attention_rank,
                    low_projections: "qkvo".to_owned(),
                    ffn_rank: None,
                    pair_init: PairInit::default(),
                    post_norm,
                    dropout: 0.0,
                };
                let parameters = Parameters::new(Seed(3), DType::F32, &Device::Cpu);
                let model = LanguageModel::new(&config, parameters.builder()).unwrap();
                models.push((format!("{setting:?}, rank {attention_rank:?}, post-norm {post_norm}"), model));
            }
        }
    }
    models
}

/// `[2, SEQ_LEN]`.
fn ids() -> Tensor {
    let ids: Vec<u32> = (0..2 * SEQ_LEN).map(|i| (i * i * 7 + 3 * i) as u32 % VOCAB as u32).collect();
    Tensor::from_vec(ids, (2, SEQ_LEN), &Device::Cpu).unwrap()
}

fn assert_close(name: &str, a: &Tensor, b: &Tensor) {
    let numbers = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (a, b) in numbers(a).into_iter().zip(numbers(b)) {
        assert!((a - b).abs() <= 2e-6 * (1.0 + b.abs()), "{name}: {a}, without a cache {b}");
    }
}

/// A prompt at once, then token by token: the logits of every position.
#[test]
fn cached_logits_are_those_of_the_whole_sequence() {
    for (name, model) in models() {
        let all = model.logits(&Value::from(ids()), None).unwrap();
        for prompt in [1, 5] {
            let mut cache = KeyValueCache::default();
            let (mut from, mut to) = (0, prompt);
            while to <= SEQ_LEN {
                assert_eq!(cache.len(), from);
                let piece = ids().narrow(1, from, to - from).unwrap().contiguous().unwrap();
                let next = model.next_logits(&Value::from(piece), &mut cache).unwrap();
                let expected = all.tensor().narrow(1, to - 1, 1).unwrap().squeeze(1).unwrap();
                assert_close(&name, next.tensor(), &expected);
                (from, to) = (to, to + 1);
            }
            let beyond = Tensor::zeros((2, 1), DType::U32, &Device::Cpu).unwrap();
            let error = model.next_logits(&Value::from(beyond), &mut cache).err().unwrap().to_string();
            assert!(error.contains("12"), "{name}: {error}");
        }
    }
}

/// The cache follows the beams: every log-probability is that of the uncached model.
#[test]
fn beams_keep_their_own_past() {
    let prompts = ids().narrow(1, 0, 3).unwrap().contiguous().unwrap();
    let stop = Stop { max_new_tokens: 6, end: Some(4) };
    for (name, model) in models() {
        let mut cached = Cached::new(|ids: &Value, cache: &mut KeyValueCache| model.next_logits(ids, cache));
        let found = beam_search(&mut cached, &prompts, stop, Beams::new(3, 1.0)).unwrap();
        let rows = prompts.to_vec2::<u32>().unwrap();
        for (prompt, found) in rows.iter().zip(&found) {
            assert_eq!(found.len(), 3);
            for hypothesis in found {
                let mut sequence = [prompt.as_slice(), &hypothesis.tokens].concat();
                sequence.extend(hypothesis.ended.then_some(4));
                let ids = Tensor::new(vec![sequence.clone()], &Device::Cpu).unwrap();
                let logits = model.logits(&Value::from(ids), None).unwrap();
                let logits = logits.tensor().to_dtype(DType::F64).unwrap().squeeze(0).unwrap();
                let logits = logits.to_vec2::<f64>().unwrap();
                let nats = |i: usize| {
                    let total: f64 = logits[i - 1].iter().map(|v| v.exp()).sum();
                    logits[i - 1][sequence[i] as usize] - total.ln()
                };
                let expected: f64 = (prompt.len()..sequence.len()).map(nats).sum();
                let got = hypothesis.log_probability;
                assert!((got - expected).abs() < 1e-5, "{name}: {got}, without a cache {expected}");
            }
        }
    }
}

#[test]
fn greedy_tokens_are_those_of_the_whole_sequence() {
    let prompts = ids().narrow(1, 0, 2).unwrap().contiguous().unwrap();
    let stop = Stop { max_new_tokens: SEQ_LEN - 2, end: None };
    for (name, model) in models() {
        let mut cached = Cached::new(|ids: &Value, cache: &mut KeyValueCache| model.next_logits(ids, cache));
        let found = greedy(&mut cached, &prompts, stop).unwrap();
        for (prompt, found) in prompts.to_vec2::<u32>().unwrap().iter().zip(found) {
            let mut sequence = prompt.clone();
            for _ in 0..stop.max_new_tokens {
                let ids = Tensor::new(vec![sequence.clone()], &Device::Cpu).unwrap();
                let logits = model.logits(&Value::from(ids), None).unwrap();
                let last = logits.tensor().squeeze(0).unwrap().to_vec2::<f32>().unwrap().pop().unwrap();
                let best = (0..VOCAB).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
                sequence.push(best as u32);
            }
            assert_eq!(found.tokens, sequence[prompt.len()..], "{name}");
        }
    }
}
