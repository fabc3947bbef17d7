//! Parity with the authors' modules, in float32 against vectors computed in float64
//! (golden/reference/lpa/README.md, whose tolerances these are).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, Var};
use replica_datasets::group_texts;
use replica_lpa::classifier::SequenceClassifier;
use replica_lpa::projection::{Bias, PairInit, Projection};
use replica_lpa::{LanguageModel, ModelConfig, Setting, setting1, setting2};
use replica_nn::ops::RopeTable;
use replica_nn::{Gradients, Parameters, Tape, Value};
use replica_oracle::{Case, Tally, Tolerance, cases, files, folder, json, stem, within};
use replica_train::adamw::{AdamW, Options};
use replica_train::{Perplexity, learning_rate};

#[test]
fn oracle() {
    let folder = folder("lpa");
    let mut tally = Tally::default();
    for path in files(&folder, "safetensors") {
        for case in cases(&path) {
            match stem(&path) {
                "lowdim" => low_dimensional(&case, &mut tally),
                "rope" => rope(&case, &mut tally),
                "attn_s1" => attention(&case, Setting::One, &mut tally),
                "attn_s2" => attention(&case, Setting::Two, &mut tally),
                "layer_s1" => layer(&case, Setting::One, false, &mut tally),
                "layer_s1_postnorm" => layer(&case, Setting::One, true, &mut tally),
                "layer_s2" => layer(&case, Setting::Two, false, &mut tally),
                "seqcls_s2" => classification(&case, &mut tally),
                name if name.starts_with("lm_") => language_model(&case, &mut tally),
                name if name.starts_with("train_") => training(&case, &mut tally),
                other => panic!("no test for {other}.safetensors"),
            }
        }
    }
    for path in files(&folder, "json") {
        let (name, data) = (stem(&path), json(&path));
        match name {
            "param_counts" => parameter_counts(&data, &mut tally),
            "lr_schedule" => schedule(&data, &mut tally),
            "perplexity" => perplexity(&data, &mut tally),
            "default_init" => default_init(&data, &mut tally),
            "group_texts" => blocks_of_lines(&data, &mut tally),
            "cases" => {} // the configurations again, as in the files' metadata
            other => panic!("no test for {other}.json"),
        }
    }
    tally.finish();
}

fn parameters(case: &Case, part: &str) -> Parameters {
    Parameters::from_tensors(case.part(part), DType::F32, &Device::Cpu).unwrap()
}

/// A model configuration from the oracle's short keys.
fn config(case: &Case, setting: Setting) -> ModelConfig {
    let optional = |key: &str| case.config.get(key).and_then(|v| v.as_u64()).map(|v| v as usize);
    let variant = case.text("variant");
    let yes = |key: &str, variants: [&str; 2]| case.text(key) == "yes" || variants.contains(&variant);
    let rank = |keys: [&str; 2]| keys.into_iter().find_map(optional);
    ModelConfig {
        setting,
        vocab_size: optional("V").unwrap_or(1),
        hidden_size: case.size("d"),
        ffn_size: optional("ffn").unwrap_or(1),
        num_heads: case.size("H"),
        head_dim: case.size("hd"),
        num_layers: optional("L").unwrap_or(1),
        seq_len: case.size("T"),
        attention_rank: rank(["ra", "r"]).filter(|_| yes("low_attn", ["low_attn", "low_all"])),
        low_projections: "qkvo".to_owned(),
        ffn_rank: optional("rf").filter(|_| yes("low_ffn", ["low_ffn", "low_all"])),
        pair_init: PairInit::Torch,
        post_norm: false,
        dropout: 0.0,
    }
}

/// Compares all gradients in the case's `grad` part: of parameters, and of `x` where it is there.
fn compare_gradients(
    case: &Case,
    parameters: &Parameters,
    gradients: &Gradients,
    x: Option<&Var>,
    tally: &mut Tally,
    tolerance: Tolerance,
) {
    for (name, expected) in case.part("grad") {
        let of = match (name.as_str(), x) {
            ("x", Some(x)) => x.as_tensor().clone(),
            _ => {
                parameters.get(&name).unwrap_or_else(|| panic!("{}: gradient of unknown `{name}`", case.name))
            }
        };
        let got = gradients.tensor(&of).unwrap_or_else(|| panic!("{}: `{name}` got no gradient", case.name));
        tally.tensor(&case.name, &format!("grad.{name}"), &got, &expected, tolerance);
    }
}

/// Every parameter, and `x` where there is one, has a reference gradient: none goes unchecked.
fn assert_all_gradients_given(case: &Case, parameters: &Parameters, inputs: usize) {
    assert_eq!(case.part("grad").len(), parameters.all().len() + inputs, "{}", case.name);
}

/// y = f(x) and the gradients of sum(y * gout).
fn function(
    case: &Case,
    tally: &mut Tally,
    (y, grad): (Tolerance, Tolerance),
    build: impl Fn(&Parameters) -> Box<dyn Fn(&Value) -> candle_core::Result<Value>>,
) {
    let parameters = parameters(case, "w");
    let f = build(&parameters);
    let x = Var::from_tensor(case.tensor("in.x")).unwrap();
    let gradients = Gradients::default();
    let tape = Tape::new(&gradients);
    let got = f(&tape.variable(&x).unwrap()).unwrap();
    tally.tensor(&case.name, "y", got.tensor(), case.tensor("out.y"), y);
    tape.backward_from(&got, case.tensor("in.gout").clone()).unwrap();
    compare_gradients(case, &parameters, &gradients, Some(&x), tally, grad);
    assert_all_gradients_given(case, &parameters, 1);
    // inference takes the same path without a tape
    let inference = f(&Value::from(case.tensor("in.x").clone())).unwrap();
    assert!(!inference.needs_gradient());
    tally.tensor(&case.name, "y without tape", inference.tensor(), case.tensor("out.y"), y);
}

fn low_dimensional(case: &Case, tally: &mut Tally) {
    let flag = |key: &str| case.config[key].as_bool().unwrap();
    let bias = match (flag("bias_a"), flag("bias_b")) {
        (true, false) => Bias::Reads,
        (false, true) => Bias::Writes,
        (false, false) => Bias::None,
        both => panic!("{}: biases {both:?}", case.name),
    };
    let size = (case.size("d_in"), case.size("r"), case.size("d_out"));
    function(case, tally, (within(1e-5, 1e-5), within(1e-5, 1e-5)), |parameters| {
        let vb = parameters.builder();
        let pair = Projection::low(size, bias, PairInit::Torch, vb.pp("0"), vb.pp("1")).unwrap();
        Box::new(move |x| pair.forward(x))
    });
    let weights = case.part("w");
    let effective = weights["1.weight"].matmul(&weights["0.weight"]).unwrap();
    tally.tensor(&case.name, "w_eff", &effective, case.tensor("out.w_eff"), within(1e-5, 1e-5));
}

fn rope(case: &Case, tally: &mut Tally) {
    let d = case.size("head_dim");
    let positions: Vec<usize> = if case.has("in.positions") {
        case.tensor("in.positions").to_vec1::<i64>().unwrap().into_iter().map(|p| p as usize).collect()
    } else {
        (0..case.size("T")).collect()
    };
    let base = case.config.get("base").and_then(|b| b.as_f64()).unwrap_or(10_000.0);
    let table = RopeTable::new(d, positions.iter().max().unwrap() + 1, base).unwrap();
    let tolerance = if case.has("in.positions") { within(2e-4, 0.0) } else { within(1e-5, 0.0) };
    for (what, pick) in [("cos", 0), ("sin", 1)] {
        let rows: Vec<f64> = positions
            .iter()
            .flat_map(|p| {
                let (cos, sin) = table.row(*p);
                let half = if pick == 0 { cos } else { sin };
                [half, half].concat()
            })
            .collect();
        let expected: Vec<f64> = case
            .tensor(&format!("out.{what}"))
            .to_dtype(DType::F64)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        tally.numbers(&case.name, what, &rows, &expected, tolerance);
    }
    for what in ["q", "k"].into_iter().filter(|w| case.has(&format!("in.{w}"))) {
        // the oracle has heads before positions
        let x = case
            .tensor(&format!("in.{what}"))
            .transpose(1, 2)
            .unwrap()
            .flatten_from(2)
            .unwrap()
            .contiguous()
            .unwrap();
        let y = Value::from(x).rope(&table, 0).unwrap();
        let expected = case.tensor(&format!("out.{what}")).transpose(1, 2).unwrap().contiguous().unwrap();
        tally.tensor(&case.name, what, y.tensor(), &expected, tolerance);
    }
}

fn attention(case: &Case, setting: Setting, tally: &mut Tally) {
    let config = config(case, setting);
    let sharp = case.config.get("qk_gain").is_some();
    let tolerance = if sharp {
        (within(5e-5, 5e-5), within(1e-3, 1e-3))
    } else {
        (within(1e-5, 1e-5), within(5e-5, 1e-4))
    };
    function(case, tally, tolerance, |parameters| match setting {
        Setting::One => {
            let attention = setting1::SelfAttention::new(&config, parameters.builder()).unwrap();
            Box::new(move |x| attention.forward(x, None))
        }
        Setting::Two => {
            let attention = setting2::SelfAttention::new(&config, parameters.builder()).unwrap();
            Box::new(move |x| attention.forward(x, None))
        }
    });
}

fn layer(case: &Case, setting: Setting, post_norm: bool, tally: &mut Tally) {
    let config = ModelConfig { post_norm, ..config(case, setting) };
    function(case, tally, (within(2e-5, 1e-5), within(1e-4, 1e-4)), |parameters| match setting {
        Setting::One => {
            let block = setting1::Block::new(&config, parameters.builder()).unwrap();
            Box::new(move |x| block.forward(x, None, None))
        }
        Setting::Two => {
            let block = setting2::Block::new(&config, parameters.builder()).unwrap();
            Box::new(move |x| block.forward(x, None))
        }
    });
}

fn setting(case: &Case) -> Setting {
    Setting::try_from(case.size("setting") as u8).unwrap()
}

/// Labels as the model takes them: position t holds what follows it.
fn shifted(labels: &Tensor) -> Tensor {
    let rows = labels.to_vec2::<i64>().unwrap();
    let next = rows.iter().flat_map(|row| row[1..].iter().copied().chain([-100])).collect::<Vec<_>>();
    Tensor::from_vec(next, labels.shape(), &Device::Cpu).unwrap()
}

fn language_model(case: &Case, tally: &mut Tally) {
    let parameters = parameters(case, "w");
    let config = config(case, setting(case));
    let model = LanguageModel::new(&config, parameters.builder()).unwrap();
    tally.equal(&case.name, "parameters", &parameters.count(), &case.size("n_params"));
    tally.equal(
        &case.name,
        "counted shapes",
        &config.shapes().unwrap().count(|_| true),
        &case.size("n_params"),
    );
    let (ids, labels) = (case.ids("in.ids"), shifted(case.tensor("in.labels")));
    let logits = model.logits(&Value::from(ids.clone()), None).unwrap();
    tally.tensor(&case.name, "logits", logits.tensor(), case.tensor("out.logits"), within(5e-5, 1e-5));
    let separate = logits.cross_entropy(&labels).unwrap();
    tally.tensor(&case.name, "loss of logits", separate.tensor(), case.tensor("out.loss"), within(5e-6, 0.0));
    let gradients = Gradients::default();
    let tape = Tape::new(&gradients);
    let loss = model.loss(&tape.constant(ids), &labels, None).unwrap();
    tally.tensor(&case.name, "loss", loss.tensor(), case.tensor("out.loss"), within(5e-6, 0.0));
    tape.backward(&loss).unwrap();
    compare_gradients(case, &parameters, &gradients, None, tally, within(1e-4, 1e-4));
    assert_all_gradients_given(case, &parameters, 0);
}

fn classification(case: &Case, tally: &mut Tally) {
    let parameters = parameters(case, "w");
    // the classifier's cases are low_attn, as their weights show
    let config = ModelConfig { attention_rank: Some(case.size("ra")), ..config(case, Setting::Two) };
    let (labels, pad) = (case.size("num_labels"), case.size("pad_token_id") as u32);
    let model = SequenceClassifier::new(&config, labels, pad, parameters.builder()).unwrap();
    let ids = case.ids("in.ids");
    // the reference's -1 is the last position
    let last = case.size("T") as i64 - 1;
    let expected: Vec<i64> = case
        .tensor("out.pooled_index")
        .to_vec1::<i64>()
        .unwrap()
        .into_iter()
        .map(|i| if i == -1 { last } else { i })
        .collect();
    let rows = ids.to_vec2::<u32>().unwrap();
    tally.equal(
        &case.name,
        "pooled_index",
        &rows.iter().map(|row| model.pooled_position(row) as i64).collect(),
        &expected,
    );
    let gradients = Gradients::default();
    let tape = Tape::new(&gradients);
    let logits = model.logits(&tape.constant(ids.clone())).unwrap();
    tally.tensor(&case.name, "logits", logits.tensor(), case.tensor("out.pooled_logits"), within(2e-5, 0.0));
    let loss = model.loss(&tape.constant(ids), case.tensor("in.labels")).unwrap();
    tally.tensor(&case.name, "loss", loss.tensor(), case.tensor("out.loss"), within(2e-5, 0.0));
    tape.backward(&loss).unwrap();
    compare_gradients(case, &parameters, &gradients, None, tally, within(1e-4, 1e-4));
}

fn training(case: &Case, tally: &mut Tally) {
    let parameters = parameters(case, "w0");
    let model = LanguageModel::new(&config(case, setting(case)), parameters.builder()).unwrap();
    let number = |key: &str| case.config[key].as_f64().unwrap();
    let beta = |i: usize| case.config["betas"][i].as_f64().unwrap();
    let options = Options {
        beta1: beta(0),
        beta2: beta(1),
        eps: number("eps"),
        weight_decay: number("weight_decay"),
        clip_norm: number("max_grad_norm"),
        groups: Vec::new(),
    };
    let mut optimiser = AdamW::new(&parameters, options).unwrap();
    let gradients = Gradients::default();
    let ids = case.ids("in.ids");
    let steps = case.size("steps");
    let (mut losses, mut norms, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    for step in 0..steps {
        let ids = ids.get(step).unwrap().contiguous().unwrap();
        let labels = shifted(&ids.to_dtype(DType::I64).unwrap());
        let tape = Tape::new(&gradients);
        let loss = model.loss(&tape.constant(ids), &labels, None).unwrap();
        tape.backward(&loss).unwrap();
        let rate = learning_rate(number("lr"), case.size("warmup") as u64, steps as u64, step as u64);
        optimiser.step(&gradients, rate, loss.tensor()).unwrap();
        let outcome = optimiser.outcomes().unwrap().remove(0);
        assert_eq!(outcome.not_finite, None, "{}", case.name);
        losses.push(f64::from(outcome.loss));
        norms.push(f64::from(outcome.gradient_norm));
        rates.push(rate);
    }
    let expected = |what: &str| -> Vec<f64> {
        case.tensor(&format!("out.{what}")).to_dtype(DType::F64).unwrap().to_vec1().unwrap()
    };
    tally.numbers(&case.name, "loss", &losses, &expected("loss"), within(2e-5, 0.0));
    tally.numbers(&case.name, "grad_norm", &norms, &expected("grad_norm"), within(1e-4, 0.0));
    tally.numbers(&case.name, "lr", &rates, &expected("lr"), within(1e-8, 0.0));
    let end: HashMap<String, Tensor> = case.part("w1");
    assert_eq!(end.len(), parameters.all().len(), "{}", case.name);
    for (name, expected) in end {
        let got = parameters.get(&name).unwrap();
        tally.tensor(&case.name, &format!("w1.{name}"), &got, &expected, within(1e-4, 0.0));
    }
}

fn parameter_counts(data: &serde_json::Value, tally: &mut Tally) {
    for row in data.as_array().unwrap() {
        let size = |key: &str| row[key].as_u64().unwrap() as usize;
        let variant = row["variant"].as_str().unwrap();
        let case = format!("param_counts/{} {variant}", row["config"].as_str().unwrap());
        let config = ModelConfig {
            setting: Setting::try_from(size("setting") as u8).unwrap(),
            vocab_size: size("vocab_size"),
            hidden_size: size("embed_dim"),
            ffn_size: size("ffn_dim"),
            num_heads: size("num_heads"),
            head_dim: size("head_dim"),
            num_layers: size("num_layers"),
            seq_len: size("seq_len"),
            attention_rank: matches!(variant, "low_attn" | "low_all").then(|| size("attn_lowdim")),
            low_projections: "qkvo".to_owned(),
            ffn_rank: matches!(variant, "low_ffn" | "low_all").then(|| size("ffn_lowdim")),
            pair_init: PairInit::Torch,
            post_norm: false,
            dropout: 0.0,
        };
        let shapes = config.shapes().unwrap();
        tally.equal(&case, "total", &shapes.count(|_| true), &size("total"));
        tally.equal(&case, "tensors", &shapes.all().len(), &size("tensors"));
        let layer0 =
            |part: &'static str| move |name: &str| name.contains(&format!("transformer_blocks.0.{part}"));
        tally.equal(&case, "attn_per_layer", &shapes.count(layer0("attention")), &size("attn_per_layer"));
        tally.equal(&case, "ffn_per_layer", &shapes.count(layer0("f")), &size("ffn_per_layer"));
        tally.equal(&case, "norm_per_layer", &shapes.count(layer0("norm")), &size("norm_per_layer"));
    }
}

fn schedule(data: &serde_json::Value, tally: &mut Tally) {
    for (i, row) in data.as_array().unwrap().iter().enumerate() {
        let integer = |key: &str| row[key].as_u64().unwrap();
        let steps = row["steps"].as_array().unwrap().iter().map(|s| s.as_u64().unwrap());
        let got: Vec<f64> = steps
            .map(|step| learning_rate(row["lr"].as_f64().unwrap(), integer("warmup"), integer("total"), step))
            .collect();
        tally.numbers(
            &format!("lr_schedule/{i}"),
            "lr",
            &got,
            &numbers(&row["lr_at_step"]),
            within(1e-12, 0.0),
        );
    }
}

fn blocks_of_lines(data: &serde_json::Value, tally: &mut Tally) {
    let rows =
        |array: &serde_json::Value| -> Vec<Vec<u32>> { serde_json::from_value(array.clone()).unwrap() };
    for case in data.as_array().unwrap() {
        let size = |key: &str| case[key].as_u64().unwrap() as usize;
        let got = group_texts(&rows(&case["rows"]), size("block_size"), size("map_batch_size"));
        let name = format!("group_texts/{}", case["name"].as_str().unwrap());
        tally.equal(&name, "blocks", &got, &rows(&case["blocks"]));
    }
}

fn numbers(array: &serde_json::Value) -> Vec<f64> {
    array.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn perplexity(data: &serde_json::Value, tally: &mut Tally) {
    for (i, row) in data.as_array().unwrap().iter().enumerate() {
        let blocks = numbers(&row["per_block_mean_nll"]);
        let batches = blocks.chunks(row["batch_size"].as_u64().unwrap() as usize);
        let got = Perplexity::of_batches(batches.map(|b| (b.iter().sum::<f64>() / b.len() as f64, b.len())));
        let case = format!("perplexity/{i}");
        tally.numbers(
            &case,
            "eval_loss",
            &[got.mean_nll],
            &[row["eval_loss"].as_f64().unwrap()],
            within(1e-12, 0.0),
        );
        tally.numbers(
            &case,
            "perplexity",
            &[got.perplexity()],
            &[row["perplexity"].as_f64().unwrap()],
            within(0.0, 1e-12),
        );
    }
}

/// The bounds, and that drawn values keep them and have the standard deviation of the closed form.
fn default_init(data: &serde_json::Value, tally: &mut Tally) {
    for row in data.as_array().unwrap() {
        let size = |key: &str| row[key].as_u64().unwrap() as usize;
        let (d_in, r, d_out) = (size("d_in"), size("r"), size("d_out"));
        let case = format!("default_init/{d_in}-{r}-{d_out}");
        let draw = |rank: Option<usize>, init: PairInit, seed: u64| {
            let parameters = Parameters::new(replica_core::Seed(seed), DType::F32, &Device::Cpu);
            Projection::new((d_in, d_out), rank, Bias::None, init, parameters.builder()).unwrap();
            let weights = parameters.all();
            weights
                .into_iter()
                .map(|(name, w)| (name, w.flatten_all().unwrap().to_vec1::<f32>().unwrap()))
                .collect::<HashMap<_, _>>()
        };
        let bound = |w: &[f32]| w.iter().fold(0f64, |m, v| m.max(f64::from(v.abs())));
        let std = |w: &[f32]| (w.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / w.len() as f64).sqrt();
        let want = |part: &str, key: &str| row[part][key].as_f64().unwrap();
        let full = draw(None, PairInit::Torch, 1);
        let mut near = |what: &str, got: f64, expected: f64, relative: f64| {
            tally.numbers(&case, what, &[got], &[expected], within(0.0, relative));
        };
        near("full bound", bound(&full["weight"]), want("full", "weight_bound"), 1e-3);
        near("full std", std(&full["weight"]), want("full", "weight_std"), 0.02);
        let low = draw(Some(r), PairInit::Torch, 1);
        near("A bound", bound(&low["0.weight"]), want("low", "A_bound"), 1e-2);
        near("B bound", bound(&low["1.weight"]), want("low", "B_bound"), 1e-2);
        // the entries of one product share its few factors: average the variance over draws
        let effective = |init: PairInit| {
            let variance = |seed: u64| {
                let low = draw(Some(r), init, seed);
                let a = Tensor::from_slice(&low["0.weight"], (r, d_in), &Device::Cpu).unwrap();
                let b = Tensor::from_slice(&low["1.weight"], (d_out, r), &Device::Cpu).unwrap();
                std(&b.matmul(&a).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()).powi(2)
            };
            ((1..=8).map(variance).sum::<f64>() / 8.0).sqrt()
        };
        near("w_eff std", effective(PairInit::Torch), want("low", "w_eff_entry_std"), 0.05);
        // our control starts with a full layer's variance
        near("matched w_eff std", effective(PairInit::Matched), want("full", "weight_std"), 0.05);
    }
}
