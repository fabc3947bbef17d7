//! The replication as a whole at scale `smoke`: against its golden, over thread counts, killed and resumed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
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
use replica_pad::Pad;
use replica_pad::exec::WorkerCommand;

fn pad() -> Pad {
    let worker = WorkerCommand { program: env!("CARGO_BIN_EXE_pad-worker").into(), arguments: Vec::new() };
    Pad::new(Arc::new(Sources::from_environment()), worker)
}

fn plan() -> Plan {
    pad().plan(Scale::Smoke, None).unwrap()
}

fn spec(plan: &Plan, experiment: &str, variant: &str, seed: u64) -> TrialSpec {
    let experiment = plan.experiment(experiment).unwrap();
    TrialSpec {
        paper: "pad".to_owned(),
        experiment: experiment.id.clone(),
        variant: variant.to_owned(),
        scale: plan.scale,
        role: Role::Main,
        seed,
        backend: "cpu".to_owned(),
        dtype: "f32".to_owned(),
        config: experiment.variant(variant).unwrap().config.clone(),
        data: experiment.data.clone(),
        code: pad().code(),
    }
}

/// By a replication of its own, which has no student of another trial.
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
    let pad = pad();
    std::thread::scope(|_| pool.install(|| pad.run(spec, &context)))
}

fn run_silently(spec: &TrialSpec, threads: usize) -> Measurements {
    run(spec, threads, None, &Silent, &AtomicBool::new(false)).unwrap()
}

#[test]
fn smoke_agrees_with_its_golden() {
    let (pad, plan) = (pad(), plan());
    let folder = tempfile::tempdir().unwrap();
    let store = RunStore::open(folder.path()).unwrap();
    let cancel = AtomicBool::new(false);
    let options = Options { jobs: 2, ..Options::default() };
    let runner =
        Runner { replication: &pad, plan: &plan, store: &store, observer: &(), cancel: &cancel, options };
    let summary = runner.run(&Selection::default()).unwrap();
    assert!(summary.failed.is_empty() && summary.blocked == 0, "{:?}", summary.failed);
    let evidence = gather(&pad, &plan, "cpu", &store).unwrap().evidence;
    let goldens = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden");
    for experiment in &plan.experiments {
        let path = Golden::path(&goldens, "pad", &experiment.id, plan.scale, "cpu");
        let golden = Golden::read(&path).unwrap().unwrap_or_else(|| panic!("{} is missing", path.display()));
        let failures: Vec<String> =
            golden.check(&evidence).iter().filter(|c| c.is_failure()).map(|c| c.to_string()).collect();
        assert!(failures.is_empty(), "{}:\n{}", path.display(), failures.join("\n"));
    }
    // training does something, and every variant leaves examples that a reader can check
    for variant in &plan.experiment("arithmetic").unwrap().variants {
        for record in evidence.records("arithmetic", &variant.id) {
            let curve = &record.measurements.curves["valid_loss"];
            assert!(curve.y.last().unwrap() < &(curve.y[0] - 0.1), "{}", variant.id);
            assert!(!record.measurements.transcripts.is_empty(), "{}", variant.id);
        }
    }
}

#[test]
fn a_student_shared_by_trials_has_the_bits_of_one_of_its_own() {
    let (plan, pad) = (plan(), pad());
    let cancel = AtomicBool::new(false);
    let context = TrialContext { device: Device::Cpu, progress: &Silent, cancel: &cancel, checkpoints: None };
    let shared = |variant| pad.run(&spec(&plan, "decoding", variant, 1), &context).unwrap();
    let first = shared("beams");
    for variant in ["verified", "random", "beams"] {
        let (again, alone) = (shared(variant), run_silently(&spec(&plan, "decoding", variant, 1), 1));
        assert_eq!(again.trace.first_difference(&first.trace), None);
        assert_eq!(again, alone, "{variant}");
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let plan = plan();
    for (experiment, variant) in [("refinement", "refined"), ("decoding", "verified")] {
        let spec = spec(&plan, experiment, variant, 1);
        let one = run_silently(&spec, 1);
        let three = run_silently(&spec, 3);
        assert_eq!(one.trace.first_difference(&three.trace), None, "{variant}");
        assert_eq!(one, three, "{variant}");
    }
}

/// Asks for a stop after so many steps.
struct StopAt<'a>(u64, &'a AtomicBool);

impl Progress for StopAt<'_> {
    fn step(&self, done: u64, _: u64, _: f32, _: u64) {
        if done == self.0 {
            self.1.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn interrupted_and_resumed_runs_have_the_same_bits() {
    let spec = spec(&plan(), "arithmetic", "program", 1);
    let whole = run_silently(&spec, 1);
    let folder = tempfile::tempdir().unwrap();
    let cancel = AtomicBool::new(false);
    let stop = StopAt(23, &cancel);
    assert!(matches!(run(&spec, 1, Some(folder.path()), &stop, &cancel), Err(TrialError::Interrupted)));
    cancel.store(false, Ordering::Relaxed);
    let resumed = run(&spec, 2, Some(folder.path()), &Silent, &cancel).unwrap();
    assert_eq!(whole.trace.first_difference(&resumed.trace), None);
    assert_eq!(whole.metrics, resumed.metrics);
}

#[test]
fn every_scale_has_a_sound_plan_and_claims_name_what_it_has() {
    let pad = pad();
    for scale in Scale::ALL {
        let plan = pad.plan(scale, None).unwrap();
        plan.check().unwrap();
        for claim in pad.paper().claims.iter().filter(|claim| claim.scales.contains(&scale)) {
            let replica_core::claim::Test::Paired { comparisons } = &claim.test else { continue };
            for c in comparisons.iter().chain(claim.guards.iter().map(|guard| &guard.comparison)) {
                let place = format!("{scale}: claim {}, {}", claim.id, c.experiment);
                let experiment = plan.experiment(&c.experiment).unwrap_or_else(|| panic!("{place}"));
                assert!(experiment.metrics.iter().any(|m| m.name == c.metric), "{place}: {}", c.metric);
                for variant in [&c.treatment, &c.control] {
                    assert!(experiment.variant(variant).is_some(), "{place}: {variant}");
                }
            }
        }
    }
}

#[test]
fn configuration_errors_name_file_key_and_allowed_values() {
    let smoke = include_str!("../configs/smoke.toml");
    let error = |from: &str, to: &str| {
        let text = smoke.replacen(from, to, 1);
        assert_ne!(text, smoke, "{from}");
        let file = ConfigFile { path: "my.toml".to_owned(), text };
        pad().plan(Scale::Smoke, Some(&file)).unwrap_err().to_string()
    };
    let errors = [
        error("questions = 64", "question = 64"),
        error("questions = 64", "questions = 0"),
        error("heads = 2", "heads = 3"),
        error("learning_rate = 0.01", "learning_rate = -1"),
        error("like = \"arithmetic\"", "like = \"arithmetics\""),
        error("only = [\"boxes\", \"age\"]", "only = [\"boxes\", \"ages\"]"),
        error("retry = \"candidate\"", "retry = \"again\""),
        error("rounds = 1, retry", "rounds = 2, retry"),
        error("weight = 1.0", "weight = -1.0"),
        error("target = \"chain\"", "target = \"chain\", corrupted = 0.1"),
        error("kind = \"templates\"", "kind = \"template\""),
        error("count = 8", "count = 0"),
    ];
    insta::assert_snapshot!(errors.join("\n"));
}
