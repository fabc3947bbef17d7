//! Parity in float32 with reference vectors (golden/reference/pad/README.md, whose tolerances these are).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use candle_core::{DType, Device, Tensor, Var};
use replica_nn::t5::{T5, T5Config, relative_bucket, relative_buckets};
use replica_nn::{Gradients, Parameters, Tape, Value};
use replica_oracle::{Case, Tally, files, folder, json, stem, whole, within};
use replica_pad::exec::{Limits, Outcome, Pool, WorkerCommand, with_call};
use replica_pad::injection::{Kind, inject, reprinted, stores};
use replica_pad::judge::{Verdict, gold_number, judge, judge_lines, python_float};
use replica_pad::marks;
use replica_pad::verify::{Faithfulness, Scorer, Scoring, StepVerifier, Verification, similarity};
use replica_train::adamw::{AdamW, Options};
use replica_train::generate::{Beams, Length, Stop, Stopping, beam_search, greedy, guided_beam_search};

#[test]
fn oracle() {
    let folder = folder("pad");
    let mut tally = Tally::default();
    for path in files(&folder, "safetensors") {
        match stem(&path) {
            "t5_buckets" => buckets(&whole(&path), &mut tally),
            "self_distill" => self_distillation(&whole(&path), &mut tally),
            "train_trajectory" => training(&whole(&path), &mut tally),
            "t5_generate" => generation(&path, &mut tally),
            name if name.starts_with("stepwise_") => step_wise(&path, &mut tally),
            name if name.starts_with("t5_") => forward_and_backward(&whole(&path), &mut tally),
            other => panic!("no test for {other}.safetensors"),
        }
    }
    for path in files(&folder, "json") {
        let data = json(&path);
        match stem(&path) {
            "compare" => comparison(&data, &mut tally),
            "scorer" => scorer(&data, &mut tally),
            "gsm8k_rule_programs" => rule_programs(&data, &mut tally),
            "error_injection" => error_injection(&data, &mut tally),
            "t5_generate" | "stepwise_b1" | "stepwise_b2" => {} // with their weights
            "programs" | "adversarial" => {}                    // in tests/exec.rs
            other => panic!("no test for {other}.json"),
        }
    }
    tally.finish();
}

fn model(case: &Case, part: &str) -> (Parameters, T5) {
    let mut config = T5Config::from_json(&case.config.to_string()).unwrap();
    config.dropout_rate = 0.0;
    let parameters = Parameters::from_tensors(case.part(part), DType::F32, &Device::Cpu).unwrap();
    let model = T5::new(&config, parameters.builder()).unwrap();
    (parameters, model)
}

fn mask(case: &Case, name: &str) -> Tensor {
    case.tensor(name).to_dtype(DType::U8).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn buckets(case: &Case, tally: &mut Tally) {
    let relative: Vec<i64> = case.tensor("relative_position").to_vec1().unwrap();
    for name in case.names() {
        let Some(rest) = name.strip_prefix("buckets.n") else { continue };
        let [buckets, distance, direction] = rest.split('.').collect::<Vec<_>>()[..] else {
            panic!("{}: {name}", case.name)
        };
        let distance = distance.strip_prefix('d').unwrap().parse().unwrap();
        let bucket =
            |r: &i64| relative_bucket(*r, direction == "bidir", buckets.parse().unwrap(), distance) as i64;
        let got: Vec<i64> = relative.iter().map(bucket).collect();
        tally.equal(&case.name, name, &got, &case.tensor(name).to_vec1().unwrap());
    }
}

fn forward_and_backward(case: &Case, tally: &mut Tally) {
    let (parameters, model) = model(case, "w");
    let config = model.config().clone();
    let (mask, labels) = (mask(case, "attention_mask"), case.tensor("labels"));
    let inputs = config.decoder_inputs(labels).unwrap();
    tally.equal(
        &case.name,
        "decoder_input_ids",
        &inputs.to_vec2::<u32>().unwrap(),
        &case.ids("decoder_input_ids").to_vec2().unwrap(),
    );
    for (stack, name, bidirectional) in
        [("encoder", "enc_position_bias", true), ("decoder", "dec_position_bias", false)]
    {
        let n = case.tensor(name).dim(3).unwrap();
        let buckets = relative_buckets(
            (n, n),
            bidirectional,
            config.relative_attention_num_buckets,
            config.relative_attention_max_distance,
        );
        let table = format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        let bias = Value::from(buckets.unwrap()).relative_bias(n, &parameters.get(&table).unwrap()).unwrap();
        tally.tensor(&case.name, name, bias.tensor(), case.tensor(name), within(1e-6, 0.0));
    }
    let gradients = Gradients::default();
    let tape = Tape::new(&gradients);
    let encoded = model.encode(&tape.constant(case.ids("input_ids")), Some(&mask), None).unwrap();
    tally.tensor(&case.name, "enc_out", encoded.tensor(), case.tensor("enc_out"), within(1e-4, 0.0));
    let source = model.source(&encoded, Some(&mask)).unwrap();
    let states = model.decode(&tape.constant(inputs), &source, None, None).unwrap();
    let logits = model.logits(&states.detach()).unwrap();
    tally.tensor(&case.name, "logits", logits.tensor(), case.tensor("logits"), within(1e-4, 0.0));
    tally.numbers(
        &case.name,
        "token_nll",
        &token_nll(logits.tensor(), labels),
        &numbers(case.tensor("token_nll")),
        within(1e-4, 0.0),
    );
    let loss = model.loss(&states, labels).unwrap();
    tally.tensor(&case.name, "loss", loss.tensor(), case.tensor("loss"), within(1e-5, 0.0));
    tape.backward(&loss).unwrap();
    let expected = case.part("g");
    assert_eq!(expected.len(), parameters.all().len(), "{}: every parameter has a gradient", case.name);
    for (name, expected) in expected {
        let got = gradients.tensor(&parameters.get(&name).unwrap());
        let got = got.unwrap_or_else(|| panic!("{}: `{name}` got no gradient", case.name));
        let largest = numbers(&expected).into_iter().fold(0.0, |a: f64, b| a.max(b.abs()));
        tally.tensor(&case.name, &format!("g.{name}"), &got, &expected, within(1e-3 * largest, 0.0));
    }
}

/// -log softmax at the labels, 0 where they are ignored.
fn token_nll(logits: &Tensor, labels: &Tensor) -> Vec<f64> {
    let rows = logits.flatten_to(1).unwrap().to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
    let labels = labels.flatten_all().unwrap().to_vec1::<i64>().unwrap();
    let nll = |(row, label): (&Vec<f64>, i64)| match usize::try_from(label) {
        Ok(label) => row.iter().map(|v| v.exp()).sum::<f64>().ln() - row[label],
        Err(_) => 0.0,
    };
    rows.iter().zip(labels).map(nll).collect()
}

fn training(case: &Case, tally: &mut Tally) {
    let (parameters, model) = model(case, "w0");
    let options =
        Options { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, clip_norm: 1.0, groups: vec![] };
    let mut optimiser = AdamW::new(&parameters, options).unwrap();
    let gradients = Gradients::default();
    let rates = numbers(case.tensor("lrs"));
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for (step, rate) in rates.into_iter().enumerate() {
        let of = |name: &str| format!("b{step}.{name}");
        let (mask, labels) = (mask(case, &of("attention_mask")), case.tensor(&of("labels")));
        let tape = Tape::new(&gradients);
        let inputs = model.config().decoder_inputs(labels).unwrap();
        let encoded = model.encode(&tape.constant(case.ids(&of("input_ids"))), Some(&mask), None).unwrap();
        let source = model.source(&encoded, Some(&mask)).unwrap();
        let states = model.decode(&tape.constant(inputs), &source, None, None).unwrap();
        let loss = model.loss(&states, labels).unwrap();
        tape.backward(&loss).unwrap();
        optimiser.step(&gradients, rate, loss.tensor()).unwrap();
        let outcome = optimiser.outcomes().unwrap().remove(0);
        losses.push(f64::from(outcome.loss));
        norms.push(f64::from(outcome.gradient_norm));
    }
    tally.numbers(&case.name, "losses", &losses, &numbers(case.tensor("losses")), within(1e-4, 0.0));
    tally.numbers(&case.name, "grad_norms", &norms, &numbers(case.tensor("grad_norms")), within(0.0, 1e-3));
    let end = case.part("w1");
    assert_eq!(end.len(), parameters.all().len(), "{}", case.name);
    for (name, expected) in end {
        let got = parameters.get(&name).unwrap();
        tally.tensor(&case.name, &format!("w1.{name}"), &got, &expected, within(2e-4, 0.0));
    }
}

fn self_distillation(case: &Case, tally: &mut Tally) {
    let teacher = case.tensor("teacher_logits");
    for name in case.names().into_iter().filter(|name| name.ends_with(".loss")) {
        let variant = name.strip_suffix(".loss").unwrap();
        let top_p = variant.strip_prefix("topp").map(|p| p.parse().unwrap());
        let student = Var::from_tensor(case.tensor("student_logits")).unwrap();
        let gradients = Gradients::default();
        let tape = Tape::new(&gradients);
        let loss = tape.variable(&student).unwrap().distillation(teacher, top_p).unwrap();
        tally.tensor(&case.name, name, loss.tensor(), case.tensor(name), within(1e-5, 0.0));
        tape.backward(&loss).unwrap();
        let gradient = format!("{variant}.grad_student");
        let got = gradients.tensor(&student).unwrap();
        tally.tensor(&case.name, &gradient, &got, case.tensor(&gradient), within(1e-5, 0.0));
    }
}

/// Token ids as the oracle lists them: a start, the generated tokens, the end if it fits, padding.
fn padded(start: &[u32], tokens: &[u32], ended: bool, config: &T5Config, length: usize) -> Vec<u32> {
    let mut row = [start, tokens].concat();
    row.extend(ended.then_some(config.eos_token_id));
    row.resize(row.len().max(length), config.pad_token_id);
    row
}

fn generation(path: &Path, tally: &mut Tally) {
    let case = whole(path);
    let (_, model) = model(&case, "w");
    let (ids, mask) = (case.ids("input_ids"), mask(&case, "attention_mask"));
    let config = model.config();
    let start = vec![config.decoder_start_token_id];
    let batch = ids.dim(0).unwrap();
    let prompts = Tensor::new(vec![start.clone(); batch], &Device::Cpu).unwrap();
    for run in json(&path.with_extension("json"))["runs"].as_array().unwrap() {
        let args = &run["args"];
        let name = format!("{} {args}", case.name);
        let size = |key: &str, default: u64| args[key].as_u64().unwrap_or(default) as usize;
        let stop = Stop { max_new_tokens: size("max_length", 20) - 1, end: Some(config.eos_token_id) };
        let mut decoding = model.decoding(&ids, Some(&mask)).unwrap();
        let (found, scores): (Vec<_>, Vec<f64>) = if size("num_beams", 1) == 1 {
            (greedy(&mut decoding, &prompts, stop).unwrap(), Vec::new())
        } else {
            let beams = Beams {
                stopping: match &args["early_stopping"] {
                    serde_json::Value::Bool(true) => Stopping::Filled,
                    serde_json::Value::String(never) if never == "never" => Stopping::Hopeless,
                    _ => Stopping::Unpromising,
                },
                length: Length::Whole,
                ..Beams::new(size("num_beams", 1), args["length_penalty"].as_f64().unwrap_or(1.0))
            };
            let found = beam_search(&mut decoding, &prompts, stop, beams).unwrap();
            let kept = size("num_return_sequences", 1);
            let found: Vec<_> = found.into_iter().flat_map(|f| f.into_iter().take(kept)).collect();
            let scores = found.iter().map(|f| f.score(beams, start.len())).collect();
            (found, scores)
        };
        let expected: Vec<Vec<u32>> = serde_json::from_value(run["sequences"].clone()).unwrap();
        let length = expected[0].len();
        let row =
            |f: &replica_train::generate::Continuation| padded(&start, &f.tokens, f.ended, config, length);
        tally.equal(&name, "sequences", &found.iter().map(row).collect(), &expected);
        if let Some(expected) = run["sequences_scores"].as_array() {
            let expected: Vec<f64> = expected.iter().map(|s| s.as_f64().unwrap()).collect();
            tally.numbers(&name, "scores", &scores, &expected, within(1e-4, 1e-4));
        }
    }
}

/// The oracle's toy embedding: a signed count of bytes by their remainder modulo 8.
fn toy_embedding(text: &str) -> Vec<f64> {
    let mut e = vec![0.0; 8];
    text.bytes().for_each(|b| e[usize::from(b % 8)] += if (b / 8) % 2 == 0 { 1.0 } else { -1.0 });
    e
}

fn step_wise(path: &Path, tally: &mut Tally) {
    let case = whole(path);
    let (_, model) = model(&case, "w");
    let (ids, mask) = (case.ids("input_ids"), mask(&case, "attention_mask"));
    let config = model.config();
    let batch = ids.dim(0).unwrap();
    let data = json(&path.with_extension("json"));
    let vocabulary: Vec<String> = serde_json::from_value(data["vocab"].clone()).unwrap();
    let contexts: Vec<Vec<String>> = serde_json::from_value(data["contexts"].clone()).unwrap();
    let decode = |tokens: &[u32]| tokens.iter().map(|t| vocabulary[*t as usize].as_str()).collect::<String>();
    for run in data["runs"].as_array().unwrap() {
        let args = &run["args"];
        let name = format!("{} {args}", case.name);
        let size = |key: &str| args[key].as_u64().unwrap() as usize;
        let start: Vec<u32> = serde_json::from_value(run["decoder_prefix"].clone()).unwrap();
        let prompts = Tensor::new(vec![start.clone(); batch], &Device::Cpu).unwrap();
        let stop = Stop { max_new_tokens: size("max_length") - start.len(), end: Some(config.eos_token_id) };
        let beams = Beams { length: Length::Whole, ..Beams::new(size("num_beams"), 1.0) };
        for (weight, sequences, scores) in
            [(1.0, "sequences", "sequences_scores"), (0.0, "plain_beam_sequences", "plain_beam_scores")]
        {
            let options = Verification {
                weight,
                min_length: data["min_length"].as_u64().unwrap() as usize,
                suppressed: serde_json::from_value(args["suppress_tokens"].clone()).unwrap(),
            };
            let mut faithfulness = Faithfulness::new(toy_embedding);
            let mut guide = StepVerifier::new(&mut faithfulness, &contexts, &decode, &start, options);
            let mut decoding = model.decoding(&ids, Some(&mask)).unwrap();
            let found = guided_beam_search(&mut decoding, &prompts, stop, beams, &mut guide).unwrap();
            let best: Vec<_> = found.iter().map(|hypotheses| &hypotheses[0]).collect();
            let expected: Vec<Vec<u32>> = serde_json::from_value(run[sequences].clone()).unwrap();
            let length = expected[0].len();
            let rows = best.iter().map(|f| padded(&start, &f.tokens, f.ended, config, length)).collect();
            tally.equal(&name, sequences, &rows, &expected);
            let got: Vec<f64> = best.iter().map(|f| f.score(beams, start.len())).collect();
            tally.numbers(&name, scores, &got, &floats(&run[scores]), within(2e-4, 0.0));
            if weight > 0.0 {
                let texts: Vec<String> = rows.iter().map(|row| decode(row)).collect();
                tally.equal(&name, "texts", &texts, &serde_json::from_value(run["texts"].clone()).unwrap());
                trace(&name, guide.trace(), run["trace"].as_array().unwrap(), tally);
            }
        }
    }
}

fn floats(value: &serde_json::Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// Every scoring: when, which lines, their scores, and the running sums before. Beams of a problem that is done are
/// placeholders in the oracle's and missing in ours.
fn trace(name: &str, got: &[Scoring], expected: &[serde_json::Value], tally: &mut Tally) {
    tally.equal(name, "number of scorings", &got.len(), &expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let at = (got.token_length as u64, got.line as u64);
        let expected_at =
            (expected["token_length"].as_u64().unwrap(), expected["chain_index"].as_u64().unwrap());
        tally.equal(name, &format!("trace[{i}]"), &at, &expected_at);
        let steps: Vec<String> = serde_json::from_value(expected["steps"].clone()).unwrap();
        if got.steps.len() != steps.len() {
            continue;
        }
        tally.equal(
            name,
            &format!("trace[{i}].steps"),
            &got.steps.iter().map(|s| s.0.clone()).collect(),
            &steps,
        );
        let scores: Vec<f64> = got.steps.iter().map(|s| s.1).collect();
        tally.numbers(
            name,
            &format!("trace[{i}].scores"),
            &scores,
            &floats(&expected["scores"]),
            within(1e-5, 0.0),
        );
        let sums = floats(&expected["beam_scores_before"]);
        tally.numbers(name, &format!("trace[{i}].sums"), &got.sums, &sums, within(1e-4, 1e-4));
    }
}

fn scorer(data: &serde_json::Value, tally: &mut Tally) {
    for (i, case) in data.as_array().unwrap().iter().enumerate() {
        let name = format!("scorer/{i}");
        let rows =
            |key: &str| -> Vec<Vec<f64>> { case[key].as_array().unwrap().iter().map(floats).collect() };
        let (steps, sentences) = (rows("step_embeddings"), rows("context_embeddings"));
        let got: Vec<Vec<f64>> =
            steps.iter().map(|step| sentences.iter().map(|s| similarity(step, s)).collect()).collect();
        let exact = within(1e-9, 0.0);
        tally.numbers(&name, "similarity", &got.concat(), &rows("similarity").concat(), exact);
        // names that the scorer's embedding knows
        let context: Vec<String> = (0..sentences.len()).map(|i| format!("sentence {i}")).collect();
        let mut scorer = Faithfulness::new(|text: &str| match text.split_once(' ').unwrap() {
            ("step", i) => steps[i.parse::<usize>().unwrap()].clone(),
            (_, i) => sentences[i.parse::<usize>().unwrap()].clone(),
        });
        let scores: Vec<f64> =
            (0..steps.len()).map(|i| scorer.score(&format!("step {i}"), &context)).collect();
        tally.numbers(&name, "per_step", &scores, &floats(&case["per_step"]), exact);
        let mean = scores.iter().sum::<f64>() / scores.len() as f64;
        tally.numbers(&name, "faithfulness", &[mean], &[case["faithfulness"].as_f64().unwrap()], exact);
        if let Some(log) = case["log_score"].as_f64() {
            tally.numbers(&name, "log_score", &[mean.ln()], &[log], exact);
        } else {
            assert!(mean < 1e-15, "{name}: {mean}");
        }
    }
}

fn comparison(data: &serde_json::Value, tally: &mut Tally) {
    for case in data["cases"].as_array().unwrap() {
        let lines: Vec<String> = serde_json::from_value(case["stdout_lines"].clone()).unwrap();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let gold = match &case["gold"] {
            serde_json::Value::String(text) => gold_number(text).unwrap(),
            number => number.as_f64().unwrap(),
        };
        let got = judge_lines(&lines, gold);
        let expected = Verdict {
            paper: case["repo_rule"].as_bool().unwrap(),
            strict: case["tol_rule"].as_bool().unwrap(),
        };
        tally.equal("compare", &format!("{lines:?} against {}", case["gold"]), &got, &expected);
        if lines.len() == 1 {
            let outcome = Outcome::Finished { stdout: format!("{}\n", lines[0]) };
            tally.equal(
                "compare",
                &format!("{lines:?} as output"),
                &judge(&outcome, &gold.into()),
                &expected,
            );
        }
    }
}

fn pool() -> Pool {
    let command = WorkerCommand { program: env!("CARGO_BIN_EXE_pad-worker").into(), arguments: Vec::new() };
    Pool::new(command, 2, Limits { time: Duration::from_secs(60), ..Limits::default() }).unwrap()
}

fn rule_programs(data: &serde_json::Value, tally: &mut Tally) {
    let pool = pool();
    for case in data["cases"].as_array().unwrap() {
        let name = format!("gsm8k_rule_programs/{}", case["index"]);
        let solution = case["answer"].as_str().unwrap();
        let got = marks::program(solution);
        let text = got.as_ref().ok().map(String::as_str);
        tally.equal(&name, "program", &text, &case["program"].as_str());
        let status = match &got {
            Ok(program) => {
                let outcome = pool.run(&[with_call(program)]).unwrap().remove(0);
                let value = outcome.stdout().and_then(python_float).unwrap();
                let expected = case["value"].as_f64().unwrap();
                tally.numbers(&name, "value", &[value], &[expected], within(0.0, 1e-12));
                let gold = gold_number(marks::parts(solution).1.unwrap()).unwrap();
                if judge(&outcome, &gold.into()).strict { "match".to_owned() } else { "mismatch".to_owned() }
            }
            Err(error) => error.to_string(),
        };
        tally.equal(&name, "status", &status.as_str(), &case["status"].as_str().unwrap());
    }
}

fn error_injection(data: &serde_json::Value, tally: &mut Tally) {
    let pool = pool();
    for case in data["cases"].as_array().unwrap() {
        let name = format!("error_injection/{}", case["id"].as_str().unwrap());
        let code = case["code"].as_str().unwrap();
        let expected: Vec<(String, usize, usize, u32)> =
            serde_json::from_value(case["stores_in_walk_order"].clone()).unwrap();
        let found = stores(code).unwrap();
        let got: Vec<_> = found.iter().map(|s| (s.name.clone(), s.line, s.column)).collect();
        let places: Vec<_> = expected.iter().map(|s| (s.0.clone(), s.1, s.2)).collect();
        tally.equal(&name, "stores", &got, &places);
        let mut numbers = expected.iter().map(|s| s.3);
        for (kind, key) in [
            (Kind::Name, "name_error"),
            (Kind::UnboundLocal, "unbound_local_error"),
            (Kind::ReleasedSyntax, "syntax_error"),
            (Kind::Syntax, "true_syntax_error"),
        ] {
            let broken = inject(code, kind, || numbers.next().unwrap()).unwrap();
            let expected = case[key]["error_code"].as_str().unwrap();
            if kind == Kind::Syntax {
                tally.equal(&name, key, &broken.as_str(), &expected);
            } else {
                // the same program, however it is printed and quoted
                let printed = |program: &str| reprinted(program).unwrap().replace('"', "'");
                tally.equal(&name, key, &printed(&broken), &printed(expected));
            }
            let outcome = pool.run(&[with_call(&broken)]).unwrap().remove(0);
            let feedback = &case[key]["feedback_when_called"];
            let (got, wanted) = match &outcome {
                Outcome::Raised { kind, .. } => (kind.as_str(), feedback["exc_type"].as_str()),
                Outcome::Finished { stdout } => (stdout.as_str(), feedback["stdout"].as_str()),
                other => panic!("{name}: {other:?}"),
            };
            tally.equal(&name, &format!("{key}, called"), &Some(got), &wanted);
        }
    }
}
