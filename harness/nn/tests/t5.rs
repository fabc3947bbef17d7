//! T5 beyond the reference vectors: sizes, configuration files, and generation with a cache against the forward pass
//! that training uses.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use replica_core::Seed;
use replica_nn::t5::{FeedForwardForm, T5, T5Config, relative_bucket, relative_buckets};
use replica_nn::{Parameters, Shapes, Value};

fn config(extra: &str) -> T5Config {
    let text = format!(
        r#"{{"model_type": "t5", "vocab_size": 19, "d_model": 12, "d_kv": 5, "d_ff": 20, "num_layers": 1,
        "num_decoder_layers": 2, "num_heads": 3, "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12{extra}}}"#
    );
    T5Config::from_json(&text).unwrap()
}

const GATED: &str = r#", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false"#;

/// Salesforce/codet5-small, -base and -large; their sizes are counted in the paper card of PaD.
#[test]
fn published_sizes() {
    for (layers, d_model, d_ff, heads, parameters) in
        [(6, 512, 2048, 8, 60_492_288), (12, 768, 3072, 12, 222_882_048), (24, 1024, 4096, 16, 737_639_424)]
    {
        let config = T5Config { num_decoder_layers: None, ..config("") };
        let config = T5Config {
            vocab_size: 32_100,
            d_model,
            d_kv: 64,
            d_ff,
            num_layers: layers,
            num_heads: heads,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            ..config
        };
        let shapes = Shapes::default();
        T5::new(&config, shapes.builder()).unwrap();
        assert_eq!(shapes.count(|_| true), parameters);
    }
}

/// Values of T5's formula for 32 buckets and a maximal distance of 128.
#[test]
fn buckets_are_t5s() {
    let at = |relative: i64| relative_bucket(relative, true, 32, 128);
    assert_eq!([0, -7, 1, 3, -100, 100].map(at), [0, 7, 17, 19, 15, 31]);
    let at = |relative: i64| relative_bucket(relative, false, 32, 128);
    assert_eq!([0, 1, -15, -20, -127].map(at), [0, 0, 15, 17, 31]);
    // of the second query from the three keys, then of the first one from the last
    let of_distances = relative_buckets((2, 3), false, 32, 128).unwrap().to_vec1::<u32>().unwrap();
    assert_eq!(of_distances, [2, 1, 0, 0]);
}

#[test]
fn a_configuration_has_hugging_faces_defaults() {
    let config = T5Config::from_json(
        r#"{"vocab_size": 10, "d_model": 8, "d_ff": 9, "num_layers": 3, "num_heads": 2, "architectures": ["x"]}"#,
    );
    let config = config.unwrap();
    assert_eq!((config.d_kv, config.decoder_layers(), config.eos_token_id), (64, 3, 1));
    assert_eq!(config.feed_forward_proj, FeedForwardForm::Relu);
    assert!(config.tie_word_embeddings);
}

#[test]
fn errors_name_the_key_and_what_is_allowed() {
    let error = |text: &str| T5Config::from_json(text).unwrap_err().to_string();
    let missing = error(r#"{"vocab_size": 10, "d_model": 8, "d_ff": 9, "num_heads": 2}"#);
    assert!(missing.contains("num_layers"), "{missing}");
    let sizes = r#""vocab_size": 10, "d_model": 8, "d_ff": 9, "num_layers": 3"#;
    let form = error(&format!(r#"{{{sizes}, "num_heads": 2, "feed_forward_proj": "swish"}}"#));
    assert!(form.contains("swish") && form.contains("gated-gelu"), "{form}");
    let zero = error(&format!(r#"{{{sizes}, "num_heads": 0}}"#));
    assert!(zero.contains("num_heads = 0: at least 1"), "{zero}");
    let rate = error(&format!(r#"{{{sizes}, "num_heads": 2, "dropout_rate": 1.0}}"#));
    assert!(rate.contains("dropout_rate = 1: a number in [0, 1)"), "{rate}");
    let odd = error(&format!(r#"{{{sizes}, "num_heads": 2, "relative_attention_num_buckets": 7}}"#));
    assert!(odd.contains("relative_attention_num_buckets = 7"), "{odd}");
    let near = error(&format!(r#"{{{sizes}, "num_heads": 2, "relative_attention_max_distance": 16}}"#));
    assert!(near.contains("relative_attention_max_distance = 16"), "{near}");
    assert!(relative_buckets((3, 2), false, 8, 12).is_err());
}

/// Other names of the embedding and tensors of older checkpoints are not parameters.
#[test]
fn published_checkpoints_hold_copies() {
    let config = config("");
    let parameters = Parameters::new(Seed(1), DType::F32, &Device::Cpu);
    T5::new(&config, parameters.builder()).unwrap();
    let mut tensors: HashMap<String, Tensor> =
        parameters.all().into_iter().map(|(name, v)| (name, v.as_tensor().copy().unwrap())).collect();
    let table = tensors.remove("shared.weight").unwrap();
    for copy in ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"] {
        tensors.insert(copy.to_owned(), table.clone());
    }
    let unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight";
    tensors.insert(unused.to_owned(), Tensor::zeros((8, 3), DType::F32, &Device::Cpu).unwrap());
    assert!(parameters.load(&tensors).is_err());
    parameters.load(&config.own_tensors(tensors)).unwrap();
}

/// Shapes `[3, 7]` and `[3, 9]`.
fn sources_and_targets() -> (Tensor, Tensor, Tensor) {
    let ids = |n: usize, of: u32| {
        let ids: Vec<u32> = (0..3 * n as u32).map(|i| (i * i * of + 3 * i + 1) % 19).collect();
        Tensor::from_vec(ids, (3, n), &Device::Cpu).unwrap()
    };
    let mask =
        Tensor::new(&[[1u8, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 1, 1, 0]], &Device::Cpu);
    (ids(7, 5), mask.unwrap(), ids(9, 7))
}

fn assert_close(name: &str, got: &Tensor, expected: &Tensor) {
    let numbers = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (a, b) in numbers(got).into_iter().zip(numbers(expected)) {
        assert!((a - b).abs() <= 1e-5 * (1.0 + b.abs()), "{name}: {a}, without a cache {b}");
    }
}

/// A prompt at once, then token by token with rows that change places, repeat and leave.
#[test]
fn cached_logits_are_those_of_the_whole_sequence() {
    for extra in ["", GATED] {
        let config = config(extra);
        let parameters = Parameters::new(Seed(3), DType::F32, &Device::Cpu);
        let model = T5::new(&config, parameters.builder()).unwrap();
        let (sources, mask, targets) = sources_and_targets();
        let encoded = model.encode(&sources.clone().into(), Some(&mask), None).unwrap();
        let source = model.source(&encoded, Some(&mask)).unwrap();
        let states = model.decode(&Value::from(targets.clone()), &source, None, None).unwrap();
        let all = model.logits(&states).unwrap().tensor().clone();
        let mut decoding = model.decoding(&sources, Some(&mask)).unwrap();
        let mut rows: Vec<u32> = vec![0, 1, 2];
        let mut seen = 0;
        for (n, select) in [(2, &[2u32, 0, 2, 1] as &[u32]), (1, &[0, 1, 2, 3]), (3, &[3, 1]), (1, &[1])] {
            let of = Tensor::new(rows.clone(), &Device::Cpu).unwrap();
            let ids = targets.index_select(&of, 0).unwrap().narrow(1, seen, n).unwrap();
            let got = decoding.next_logits(&ids.contiguous().unwrap()).unwrap();
            seen += n;
            let expected = all.index_select(&of, 0).unwrap().narrow(1, seen - 1, 1).unwrap().squeeze(1);
            assert_close(extra, &got, &expected.unwrap());
            decoding.select(select).unwrap();
            rows = select.iter().map(|row| rows[*row as usize]).collect();
        }
        let error = decoding.select(&[1]).unwrap_err().to_string();
        assert!(error.contains("row 1 was selected from a batch of 1"), "{error}");
    }
}

/// Padding of sources and what follows in targets change nothing before it.
#[test]
fn padding_is_not_seen() {
    let model =
        T5::new(&config(GATED), Parameters::new(Seed(3), DType::F32, &Device::Cpu).builder()).unwrap();
    let (sources, mask, targets) = sources_and_targets();
    let states = |sources: Tensor, mask: Tensor, targets: Tensor| {
        let encoded = model.encode(&sources.into(), Some(&mask), None).unwrap();
        let source = model.source(&encoded, Some(&mask)).unwrap();
        model.decode(&targets.into(), &source, None, None).unwrap().tensor().clone()
    };
    let cut =
        |t: &Tensor, n: usize| t.narrow(0, 1, 1).unwrap().narrow(1, 0, n).unwrap().contiguous().unwrap();
    let whole = states(sources.clone(), mask.clone(), targets.clone());
    let short = states(cut(&sources, 4), cut(&mask, 4), cut(&targets, 5));
    assert_close("padding", &short, &cut(&whole.flatten_from(2).unwrap(), 5));
}
