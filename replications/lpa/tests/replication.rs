//! The replication as a whole at scale `smoke`: against its golden, over thread counts, killed and resumed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use replica_core::replication::ConfigFile;
use replica_core::trial::{Device, Silent};
use replica_core::{Plan, Replication, Scale, TrialContext, TrialSpec, conformance};
use replica_datasets::Sources;
use replica_lpa::Lpa;

fn lpa() -> Lpa {
    Lpa::new(Arc::new(Sources::from_environment()))
}

fn plan() -> Plan {
    lpa().plan(Scale::Smoke, None).unwrap()
}

/// A trial of the plan's first study, with the recipe's learning rate.
fn spec(plan: &Plan, variant: &str, seed: u64) -> TrialSpec {
    conformance::spec(&lpa(), plan, "placement", variant, seed)
}

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden")
}

#[test]
fn smoke_agrees_with_its_golden() {
    let plan = plan();
    let evidence = conformance::assert_agrees_with_goldens(&lpa(), &plan, &goldens());
    // training does something: every variant ends well below the uniform distribution's loss
    for variant in &plan.experiment("placement").unwrap().variants {
        for (seed, loss) in evidence.values("placement", &variant.id, "test_loss") {
            assert!(loss < 0.8 * 256f64.ln(), "{} seed {seed}: {loss} nats", variant.id);
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let plan = plan();
    for variant in ["vanilla", "low_all"] {
        conformance::assert_independent_of_threads(lpa, &spec(&plan, variant, 1));
    }
}

#[test]
fn seeds_and_variants_share_data_order_and_start() {
    let plan = plan();
    let first_loss = |variant, seed| {
        f32::from_bits(conformance::run_silently(&lpa(), &spec(&plan, variant, seed), 1).trace.0[0].0)
    };
    assert_ne!(first_loss("vanilla", 1), first_loss("vanilla", 2));
    // rank-1 attention differs from the Transformer in its attention only, which starts small
    assert!((first_loss("vanilla", 1) - first_loss("rank1", 1)).abs() < 0.05);
}

#[test]
fn interrupted_and_resumed_runs_have_the_same_bits() {
    conformance::assert_resumes(lpa, &spec(&plan(), "low_attn", 1), 33);
}

/// Kills a process in the middle of training (this test, run again as a child) and goes on from what it left.
#[test]
fn killed_and_resumed_runs_have_the_same_bits() {
    let test = "killed_and_resumed_runs_have_the_same_bits";
    // the last checkpoint is that of step 30
    conformance::assert_survives_a_kill(lpa, &spec(&plan(), "low_ffn", 2), (37, 31), test);
}

#[test]
fn divergence_is_stopped_and_named() {
    conformance::assert_divergence_is_named(&lpa(), spec(&plan(), "vanilla", 1), 1..60);
}

#[test]
fn the_published_shapes_are_counted_exactly() {
    let plan = plan();
    let lpa = lpa();
    let mut table = String::new();
    for variant in &plan.experiment("accounting").unwrap().variants {
        let spec = TrialSpec {
            config: variant.config.clone(),
            variant: variant.id.clone(),
            ..spec(&plan, "vanilla", 0)
        };
        let context = TrialContext {
            device: Device::Cpu,
            progress: &Silent,
            cancel: &AtomicBool::new(false),
            checkpoints: None,
        };
        let m = lpa.run(&spec, &context).unwrap().metrics;
        table += &format!(
            "{:<26} {:>11} parameters {:>4} tensors {:>10} forward operations a token\n",
            variant.id, m["parameters"], m["tensors"], m["forward_flops"]
        );
    }
    insta::assert_snapshot!(table);
}

#[test]
fn every_scale_has_a_plan_and_its_claims_name_what_exists() {
    conformance::assert_plans_are_sound(&lpa());
}

/// What a user reads who mistypes a configuration.
#[test]
fn configuration_errors_name_file_key_and_allowed_values() {
    let text = include_str!("../configs/smoke.toml");
    let error = |from: &str, to: &str| {
        assert!(text.contains(from));
        let config = ConfigFile { path: "my.toml".to_owned(), text: text.replacen(from, to, 1) };
        lpa().plan(Scale::Smoke, Some(&config)).unwrap_err().to_string()
    };
    let errors = [
        error("hidden_size = 64", "hidden_sice = 64"),
        error("learning_rate = 3e-3", "learning_rate = -0.003"),
        error("learning_rates = [1e-3, 3e-3]", "learning_rates = [1e-3, -3e-3]"),
        error("setting = 2", "setting = 3"),
        error("seq_len = 64", "seq_len = 1"),
        error("attention_rank = 12", "attention_rank = 0"),
        error("text = \"webster-kjv\"", "text = \"webster\""),
        error("kind = \"bytes\"", "kind = \"words\""),
        error("clip_norm = 1.0", "clip_norm = nan"),
        error("like = \"placement\"", "like = \"placements\""),
    ];
    insta::assert_snapshot!(errors.join("\n----\n"));
}

/// A layer that forgets its input, or a weight that is never used, would show here.
#[test]
fn every_parameter_of_every_variant_gets_a_gradient() {
    use candle_core::{DType, Device, Tensor};
    use replica_lpa::config::TrialConfig;
    use replica_nn::{Gradients, Parameters, Tape};
    for scale in [Scale::Smoke, Scale::Small] {
        for experiment in lpa().plan(scale, None).unwrap().experiments {
            for variant in &experiment.variants {
                let TrialConfig::Train(training) = serde_json::from_value(variant.config.clone()).unwrap()
                else {
                    continue;
                };
                let parameters = Parameters::new(replica_core::Seed(1), DType::F32, &Device::Cpu);
                let model = replica_lpa::LanguageModel::new(&training.model, parameters.builder()).unwrap();
                let gradients = Gradients::default();
                let tape = Tape::new(&gradients);
                let ids: Vec<u32> = (0..16).map(|i| (i * 37 % 256) as u32).collect();
                let labels: Vec<i64> = (0..16).map(|i| i * 53 % 256).collect();
                let ids = Tensor::from_vec(ids, (2, 8), &Device::Cpu).unwrap();
                let labels = Tensor::from_vec(labels, (2, 8), &Device::Cpu).unwrap();
                tape.backward(&model.loss(&tape.constant(ids), &labels, None).unwrap()).unwrap();
                for (name, var) in parameters.all() {
                    let g: Vec<f32> = gradients
                        .tensor(&var)
                        .unwrap_or_else(|| panic!("{}: {name}", variant.id))
                        .flatten_all()
                        .unwrap()
                        .to_vec1()
                        .unwrap();
                    assert!(
                        g.iter().all(|v| v.is_finite()) && g.iter().any(|v| *v != 0.0),
                        "{}: {name}",
                        variant.id
                    );
                }
            }
        }
    }
}
