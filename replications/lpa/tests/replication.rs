//! The replication as a whole at scale `smoke`: against its golden, over thread counts, killed and resumed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use replica_core::expansion::Selection;
use replica_core::gather::gather;
use replica_core::golden::Golden;
use replica_core::replication::ConfigFile;
use replica_core::runner::{Options, Runner};
use replica_core::store::RunStore;
use replica_core::trial::{Device, Progress, Role, Silent};
use replica_core::{Measurements, Plan, Replication, Scale, TrialContext, TrialError, TrialSpec};
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
    let experiment = plan.experiment("placement").unwrap();
    TrialSpec {
        paper: "lpa".to_owned(),
        experiment: experiment.id.clone(),
        variant: variant.to_owned(),
        scale: plan.scale,
        role: Role::Main,
        seed,
        backend: "cpu".to_owned(),
        dtype: "f32".to_owned(),
        config: experiment.variant(variant).unwrap().config.clone(),
        data: experiment.data.clone(),
        code: lpa().code(),
    }
}

fn run(
    spec: &TrialSpec,
    threads: usize,
    checkpoints: Option<&Path>,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Measurements, TrialError> {
    let context =
        TrialContext { device: Device::Cpu, progress, cancel, checkpoints: checkpoints.map(Path::to_owned) };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let lpa = lpa();
    // the pool's threads need the context, which borrows `progress`
    std::thread::scope(|_| pool.install(|| lpa.run(spec, &context)))
}

fn run_silently(spec: &TrialSpec, threads: usize) -> Measurements {
    run(spec, threads, None, &Silent, &AtomicBool::new(false)).unwrap()
}

#[test]
fn smoke_agrees_with_its_golden() {
    let (lpa, plan) = (lpa(), plan());
    let folder = tempfile::tempdir().unwrap();
    let store = RunStore::open(folder.path()).unwrap();
    let cancel = AtomicBool::new(false);
    let options = Options { jobs: 2, ..Options::default() };
    let runner =
        Runner { replication: &lpa, plan: &plan, store: &store, observer: &(), cancel: &cancel, options };
    let summary = runner.run(&Selection::default()).unwrap();
    assert!(summary.failed.is_empty() && summary.blocked == 0, "{:?}", summary.failed);
    let evidence = gather(&lpa, &plan, "cpu", &store).unwrap().evidence;
    let goldens = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden");
    let mut checked = 0;
    for experiment in plan.experiments.iter().filter(|e| !e.exclusive) {
        let path = Golden::path(&goldens, "lpa", &experiment.id, plan.scale, "cpu");
        let golden = Golden::read(&path).unwrap().unwrap_or_else(|| panic!("{} is missing", path.display()));
        let failures: Vec<String> =
            golden.check(&evidence).iter().filter(|c| c.is_failure()).map(|c| c.to_string()).collect();
        assert!(failures.is_empty(), "{}:\n{}", path.display(), failures.join("\n"));
        checked += 1;
    }
    assert_eq!(checked, 2, "placement and accounting");
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
        let spec = spec(&plan, variant, 1);
        let one = run_silently(&spec, 1);
        println!("{variant}: trace {}", one.trace.digest());
        for threads in [2, 3] {
            let more = run_silently(&spec, threads);
            assert_eq!(one.trace.first_difference(&more.trace), None, "{variant} with {threads} threads");
            assert_eq!(one.metrics, more.metrics, "{variant} with {threads} threads");
        }
    }
}

#[test]
fn seeds_and_variants_share_data_order_and_start() {
    let plan = plan();
    let first_loss =
        |variant, seed| f32::from_bits(run_silently(&spec(&plan, variant, seed), 1).trace.0[0].0);
    assert_ne!(first_loss("vanilla", 1), first_loss("vanilla", 2));
    // rank-1 attention differs from the Transformer in its attention only, which starts small
    assert!((first_loss("vanilla", 1) - first_loss("rank1", 1)).abs() < 0.05);
}

/// Stops after so many steps, by the cancel flag or by dying.
struct StopAt<'a> {
    step: u64,
    cancel: &'a AtomicBool,
    die: bool,
}

impl Progress for StopAt<'_> {
    fn step(&self, done: u64, _: u64, _: f32, _: u64) {
        if done == self.step {
            if self.die {
                // no destructor runs, nothing is flushed: as after SIGKILL
                std::process::abort();
            }
            self.cancel.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn interrupted_and_resumed_runs_have_the_same_bits() {
    let spec = spec(&plan(), "low_attn", 1);
    let whole = run_silently(&spec, 1);
    let folder = tempfile::tempdir().unwrap();
    let cancel = AtomicBool::new(false);
    let stop = StopAt { step: 33, cancel: &cancel, die: false };
    assert!(matches!(run(&spec, 1, Some(folder.path()), &stop, &cancel), Err(TrialError::Interrupted)));
    cancel.store(false, Ordering::Relaxed);
    let resumed = run(&spec, 2, Some(folder.path()), &FirstStepIs(34), &cancel).unwrap();
    assert_eq!(whole, resumed);
}

/// Fails if the first step it hears of is another one.
struct FirstStepIs(u64);

impl Progress for FirstStepIs {
    fn step(&self, done: u64, _: u64, _: f32, _: u64) {
        assert!(done >= self.0, "step {done} was done again");
    }
}

const VICTIM: &str = "REPLICA_LPA_TEST_VICTIM";

/// Kills a process in the middle of training (this test, run again as a child) and goes on from what it left.
#[test]
fn killed_and_resumed_runs_have_the_same_bits() {
    let spec = spec(&plan(), "low_ffn", 2);
    if let Some(folder) = std::env::var_os(VICTIM) {
        let cancel = AtomicBool::new(false);
        let _ = run(
            &spec,
            1,
            Some(Path::new(&folder)),
            &StopAt { step: 37, cancel: &cancel, die: true },
            &cancel,
        );
        unreachable!("the process died at step 37");
    }
    let folder = tempfile::tempdir().unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["killed_and_resumed_runs_have_the_same_bits", "--exact", "--nocapture"])
        .env(VICTIM, folder.path())
        .output()
        .unwrap()
        .status;
    assert!(!status.success() && status.code().is_none(), "the child should die by a signal: {status}");
    // the last checkpoint is that of step 30
    let resumed = run(&spec, 1, Some(folder.path()), &FirstStepIs(31), &AtomicBool::new(false)).unwrap();
    let whole = run_silently(&spec, 1);
    println!("trace {}", whole.trace.digest());
    assert_eq!(whole, resumed);
}

#[test]
fn divergence_is_stopped_and_named() {
    let mut spec = spec(&plan(), "vanilla", 1);
    spec.config["learning_rate"] = 1e12.into();
    let error = run(&spec, 1, None, &Silent, &AtomicBool::new(false)).unwrap_err();
    let TrialError::NonFinite { step, .. } = &error else { panic!("{error}") };
    assert!((1..60).contains(step));
    let text = error.to_string();
    assert!(text.contains("training diverged; lower learning_rate"), "{text}");
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
    let lpa = lpa();
    for scale in Scale::ALL {
        let plan = lpa.plan(scale, None).unwrap();
        plan.check().unwrap();
        for experiment in &plan.experiments {
            let ids: std::collections::HashSet<_> = experiment.variants.iter().map(|v| &v.id).collect();
            assert_eq!(ids.len(), experiment.variants.len(), "{scale}: {}", experiment.id);
        }
    }
    let plan = lpa.plan(Scale::Small, None).unwrap();
    for claim in &lpa.paper().claims {
        if let replica_core::claim::Test::Paired { comparisons } = &claim.test {
            for c in comparisons {
                let experiment = plan.experiment(&c.experiment).unwrap();
                assert!(experiment.metrics.iter().any(|m| m.name == c.metric), "{}: {}", claim.id, c.metric);
                for variant in [&c.treatment, &c.control] {
                    assert!(experiment.variant(variant).is_some(), "{}: {variant}", claim.id);
                }
            }
        }
    }
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
