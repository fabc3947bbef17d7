//! The replication as a whole at scale `smoke`: against its golden, over thread counts, killed and resumed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::Arc;

use replica_core::replication::ConfigFile;
use replica_core::{Plan, Replication, Scale, TrialSpec, conformance};
use replica_datasets::Sources;
use replica_smr::Smr;

fn smr() -> Smr {
    Smr::new(Arc::new(Sources::from_environment()))
}

fn plan() -> Plan {
    smr().plan(Scale::Smoke, None).unwrap()
}

/// A trial of the plan, with the recipe's learning rate.
fn spec(plan: &Plan, experiment: &str, variant: &str, seed: u64) -> TrialSpec {
    conformance::spec(&smr(), plan, experiment, variant, seed)
}

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden")
}

#[test]
fn smoke_agrees_with_its_golden() {
    let plan = plan();
    let evidence = conformance::assert_agrees_with_goldens(&smr(), &plan, &goldens());
    for verdict in &evidence.verdicts {
        println!("{}: {:?} ({})", verdict.claim, verdict.outcome, verdict.reason);
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let plan = plan();
    for (experiment, variant) in [
        ("sampling-s4d", "smr"),
        ("sampling-s5", "told"),
        ("sampling-mamba", "smr_scan"),
        ("image-s4d", "wide"),
        ("listops-s4d", "bag"),
        ("language-mamba", "none"),
    ] {
        conformance::assert_independent_of_threads(smr, &spec(&plan, experiment, variant, 1));
    }
}

#[test]
fn seeds_and_variants_share_data_order_and_start() {
    let plan = plan();
    let first_loss = |variant, seed| {
        f32::from_bits(
            conformance::run_silently(&smr(), &spec(&plan, "listops-s4d", variant, seed), 1).trace.0[0].0,
        )
    };
    assert_ne!(first_loss("none", 1), first_loss("none", 2));
    // SMR changes the inputs of the state-space models only
    assert!((first_loss("none", 1) - first_loss("smr", 1)).abs() < 0.3);
}

#[test]
fn interrupted_and_resumed_runs_have_the_same_bits() {
    conformance::assert_resumes(smr, &spec(&plan(), "sampling-s4d", "smr", 1), 13);
}

/// Kills a process in the middle of training (this test, run again as a child) and goes on from what it left.
#[test]
fn killed_and_resumed_runs_have_the_same_bits() {
    let test = "killed_and_resumed_runs_have_the_same_bits";
    // the last checkpoint is that of step 10
    conformance::assert_survives_a_kill(smr, &spec(&plan(), "listops-s4d", "smr", 2), (17, 11), test);
}

#[test]
fn divergence_is_stopped_and_named() {
    conformance::assert_divergence_is_named(&smr(), spec(&plan(), "sampling-s4d", "none", 1), 0..30);
}

#[test]
fn every_scale_has_a_plan_and_its_claims_name_what_exists() {
    conformance::assert_plans_are_sound(&smr());
}

/// Mega and SPADE have no place at scale smoke: they train on a task of it all the same.
#[test]
fn hosts_with_attention_learn() {
    let text = [
        include_str!("../configs/smoke.toml"),
        r#"
[hosts.mega]
label = "Mega"
model = { kind = "mega", shared = 8, state = 4, chunk = 16, truncation = 24 }

[hosts.spade]
label = "SPADE"
model = { kind = "spade", state = 4, heads = 2, radius = 7 }

[[study]]
id = "attention"
title = "Hosts with attention"
method = "The toy regression."
like = "sampling"
seeds = [1]
model = { width = 8, layers = 2, norm = "layer", norm_place = "pre", dropout = 0.1 }
runs = [
    { host = "mega", variants = ["none", "smr", "wide"] },
    { host = "spade", variants = ["none", "smr", "wide"] },
]
"#,
    ]
    .concat();
    let config = ConfigFile { path: "my.toml".to_owned(), text };
    let plan = smr().plan(Scale::Smoke, Some(&config)).unwrap();
    for experiment in ["attention-mega", "attention-spade"] {
        for variant in ["none", "smr", "wide"] {
            let mut spec = spec(&plan, experiment, variant, 1);
            spec.config["steps"] = 100.into();
            spec.config["learning_rate"] = 0.01.into();
            let measured = conformance::run_silently(&smr(), &spec, 2);
            let losses = &measured.curves["valid_loss"].y;
            let (first, last) = (losses[0], losses[losses.len() - 1]);
            println!("{experiment}, {variant}: {first} to {last}");
            assert!(last < 0.7 * first, "{experiment}, {variant}: {losses:?}");
        }
    }
}

/// At scale `paper` where the published recipes have it; elsewhere nothing in a trial's config speaks of it, so that
/// identities of older trials stay.
#[test]
fn dropout_is_tied_where_the_recipes_tie_it() {
    for scale in Scale::ALL {
        let mut tied = Vec::new();
        for experiment in smr().plan(scale, None).unwrap().experiments {
            for variant in &experiment.variants {
                match &variant.config["model"]["shape"]["tied_dropout"] {
                    serde_json::Value::Null => {}
                    value => {
                        assert_eq!(*value, true);
                        tied.push(experiment.id.clone());
                    }
                }
            }
        }
        tied.dedup();
        let expected: &[&str] = match scale {
            Scale::Paper => &["text-s5", "image-s4", "image-s4d", "image-s5", "pathfinder-s5"],
            _ => &[],
        };
        assert_eq!(tied, expected, "{scale:?}");
    }
}

/// What a user reads who mistypes a configuration.
#[test]
fn configuration_errors_name_file_key_and_allowed_values() {
    let text = include_str!("../configs/smoke.toml");
    let error = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        let config = ConfigFile { path: "my.toml".to_owned(), text: text.replacen(from, to, 1) };
        smr().plan(Scale::Smoke, Some(&config)).unwrap_err().to_string()
    };
    let errors = [
        error("width = 8", "widht = 8"),
        error("learning_rates = [0.003, 0.01]", "learning_rates = [0.003, -0.01]"),
        error("kind = \"s4d\", state = 8", "kind = \"s4d\", state = 7"),
        error("kind = \"s5\", state = 8, blocks = 1", "kind = \"s5\", state = 8, blocks = 3"),
        error("host = \"mamba\"", "host = \"rwkv\""),
        error("variants = [\"none\", \"smr\"", "variants = [\"none\", \"srm\""),
        error("\"smr_scan\"", "\"told\""),
        error("jitter = 0.3", "jitter = 3.0"),
        error("skip = 8", "skip = 32"),
        error("task = { kind = \"digits\"", "task = { kind = \"digit\""),
        error("stride = 2.0", "stride = 0.0"),
        error("norm = \"layer\"", "norm = \"group\""),
    ];
    insta::assert_snapshot!(errors.join("\n----\n"));
}

/// The same model three times: with as many parameters as SMR, or as near as a whole width gets.
#[test]
fn wide_hosts_have_as_many_parameters_as_with_smr() {
    let plan = smr().plan(Scale::Small, None).unwrap();
    let mut compared = 0;
    for experiment in &plan.experiments {
        let parameters = |id: &str| {
            let config = experiment.variant(id)?.config.clone();
            let model: replica_smr::ModelConfig = serde_json::from_value(config["model"].clone()).unwrap();
            Some((model.parameters().unwrap() as f64, model.shape.width))
        };
        let (Some((none, _)), Some((smr, _)), Some((wide, width))) =
            (parameters("none"), parameters("smr"), parameters("wide"))
        else {
            continue;
        };
        println!("{:<16} {none} plain, {smr} with SMR, {wide} of width {width}", experiment.id);
        // half the step from one width to the next
        assert!((wide / smr - 1.0).abs() < 1.2 / width as f64, "{}: {wide} against {smr}", experiment.id);
        assert!(wide > none);
        compared += 1;
    }
    assert!(compared > 0);
}

/// A layer that forgets its input, or a weight that is never used, would show here.
#[test]
fn every_parameter_of_every_variant_gets_a_gradient() {
    use candle_core::{DType, Device, Tensor};
    use replica_nn::{Gradients, Parameters, Tape};
    use replica_smr::config::TrialConfig;
    use replica_smr::data::{Batch, Targets};
    use replica_smr::model::{Encoder, Head};
    for scale in Scale::ALL {
        for experiment in smr().plan(scale, None).unwrap().experiments {
            for variant in &experiment.variants {
                let TrialConfig::Train(training) = serde_json::from_value(variant.config.clone()).unwrap()
                else {
                    continue;
                };
                let mut config = training.model;
                // the published widths take long, and change nothing here
                config.shape.width = config.shape.width.min(8);
                config.shape.layers = 2;
                config.length = 8;
                let parameters = Parameters::new(replica_core::Seed(1), DType::F32, &Device::Cpu);
                let model = replica_smr::Model::new(&config, parameters.builder())
                    .unwrap_or_else(|e| panic!("{scale}: {}/{}: {e}", experiment.id, variant.id));
                let gradients = Gradients::default();
                let tape = Tape::new(&gradients);
                let (rows, l) = (4, 8);
                let tensor = |shape: &[usize]| {
                    let n: usize = shape.iter().product();
                    let data = (0..n).map(|i| (i * 37 % 23) as f32 / 11.0 - 1.0).collect();
                    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
                };
                let classes = |n: usize, among: usize| {
                    let data: Vec<i64> = (0..n).map(|i| (i * 53 % among) as i64).collect();
                    Tensor::from_vec(data, n, &Device::Cpu).unwrap()
                };
                let inputs = match config.encoder {
                    Encoder::Tokens(n) => {
                        let data: Vec<u32> = (0..rows * l).map(|i| (i * 37 % n) as u32).collect();
                        Tensor::from_vec(data, (rows, l), &Device::Cpu).unwrap()
                    }
                    Encoder::Values(channels) => tensor(&[rows, l, channels]),
                };
                let targets = match config.head {
                    Head::Classes(n) => Targets::Classes(classes(rows, n)),
                    Head::PairClasses(n) => Targets::Classes(classes(rows / 2, n)),
                    Head::NextToken(n) => Targets::Classes(classes(rows * l, n).reshape((rows, l)).unwrap()),
                    Head::Regression => Targets::Values(tensor(&[rows, l])),
                };
                let intervals = Some(tensor(&[rows, l]).abs().unwrap());
                let batch = Batch { inputs, lengths: vec![l; rows], intervals, targets };
                let loss = model.loss(&tape.constant(batch.inputs.clone()), &batch, None).unwrap();
                tape.backward(&loss).unwrap();
                for parameter in parameters.trained() {
                    let place = format!("{scale}: {}/{}: {}", experiment.id, variant.id, parameter.name);
                    let g =
                        gradients.tensor(parameter.variable.as_tensor()).unwrap_or_else(|| panic!("{place}"));
                    let g: Vec<f32> = g.flatten_all().unwrap().to_vec1().unwrap();
                    assert!(g.iter().all(|v| v.is_finite()) && g.iter().any(|v| *v != 0.0), "{place}");
                }
            }
        }
    }
}
