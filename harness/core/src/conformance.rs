//! What every paper's crate must keep, for its tests (feature `fixture`): goldens, the same bits for any number of threads and
//! after any interruption, sound plans. Everything here panics where a test would.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::claim::{Claim, Test};
use crate::evidence::Evidence;
use crate::expansion::Selection;
use crate::gather::gather;
use crate::golden::Golden;
use crate::plan::{Plan, Scale};
use crate::record::Measurements;
use crate::replication::Replication;
use crate::runner::{Options, Runner};
use crate::store::RunStore;
use crate::trial::{Device, Progress, Role, Silent, TrialContext, TrialError, TrialSpec};

/// Names the folder of checkpoints to the child that is to die.
const VICTIM: &str = "REPLICA_TEST_VICTIM";

/// A main trial of a plan on the CPU; what is tuned has the value of the configuration.
///
/// # Panics
/// The plan has no such variant.
pub fn spec(
    replication: &dyn Replication,
    plan: &Plan,
    experiment: &str,
    variant: &str,
    seed: u64,
) -> TrialSpec {
    let found = plan.experiment(experiment).and_then(|e| Some((e, e.variant(variant)?)));
    let (experiment, variant) = found.unwrap_or_else(|| panic!("no variant {experiment}/{variant}"));
    TrialSpec {
        paper: replication.paper().id.clone(),
        experiment: experiment.id.clone(),
        variant: variant.id.clone(),
        scale: plan.scale,
        role: Role::Main,
        seed,
        backend: "cpu".to_owned(),
        dtype: "f32".to_owned(),
        config: variant.config.clone(),
        data: experiment.data.clone(),
        code: replication.code(),
    }
}

/// Runs a trial in a pool of so many threads.
///
/// # Errors
/// Those of the trial.
///
/// # Panics
/// No thread can be started.
pub fn run(
    replication: &dyn Replication,
    spec: &TrialSpec,
    threads: usize,
    checkpoints: Option<&Path>,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Measurements, TrialError> {
    let context =
        TrialContext { device: Device::Cpu, progress, cancel, checkpoints: checkpoints.map(Path::to_owned) };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started");
    pool.install(|| replication.run(spec, &context))
}

/// As [`run`], to its end and without an audience.
///
/// # Panics
/// The trial fails.
pub fn run_silently(replication: &dyn Replication, spec: &TrialSpec, threads: usize) -> Measurements {
    run(replication, spec, threads, None, &Silent, &AtomicBool::new(false))
        .unwrap_or_else(|error| panic!("{}: {error}", spec.path()))
}

/// Runs all of a plan but what measures time, and compares it with the goldens in a folder.
///
/// # Panics
/// A trial fails, or a golden is missing or does not agree.
pub fn assert_agrees_with_goldens(replication: &dyn Replication, plan: &Plan, goldens: &Path) -> Evidence {
    let folder = tempfile::tempdir().expect("a folder for the run");
    let store = RunStore::open(folder.path()).expect("a new store");
    let cancel = AtomicBool::new(false);
    let options = Options { jobs: 2, ..Options::default() };
    let runner = Runner { replication, plan, store: &store, observer: &(), cancel: &cancel, options };
    let summary = runner.run(&Selection::default()).expect("the plan runs");
    assert!(summary.failed.is_empty() && summary.blocked == 0, "{:?}", summary.failed);
    let evidence = gather(replication, plan, "cpu", &store).expect("the store is readable").evidence;
    for experiment in plan.experiments.iter().filter(|e| !e.exclusive) {
        let path = Golden::path(goldens, &replication.paper().id, &experiment.id, plan.scale, "cpu");
        let golden = Golden::read(&path).expect("the golden is readable");
        let golden = golden.unwrap_or_else(|| panic!("{} is missing", path.display()));
        let failures: Vec<String> =
            golden.check(&evidence).iter().filter(|c| c.is_failure()).map(|c| c.to_string()).collect();
        assert!(failures.is_empty(), "{}:\n{}", path.display(), failures.join("\n"));
    }
    evidence
}

/// Everything a trial measures has the same bits with 1, 2 and 3 threads. `fresh` gives a replication that remembers
/// nothing.
///
/// # Panics
/// It has not, or the trial fails.
pub fn assert_independent_of_threads<R: Replication>(fresh: impl Fn() -> R, spec: &TrialSpec) {
    let one = run_silently(&fresh(), spec, 1);
    println!("{}: trace {}", spec.path(), one.trace.digest());
    for threads in [2, 3] {
        let more = run_silently(&fresh(), spec, threads);
        let place = format!("{} with {threads} threads", spec.path());
        assert_eq!(one.trace.first_difference(&more.trace), None, "{place}");
        assert_eq!(one, more, "{place}");
    }
}

/// A trial that is stopped after `step` and resumed does no step again, and has the bits of one that was not stopped.
/// `fresh` gives a replication that remembers nothing.
///
/// # Panics
/// It has not, or the trial fails.
pub fn assert_resumes<R: Replication>(fresh: impl Fn() -> R, spec: &TrialSpec, step: u64) {
    let whole = run_silently(&fresh(), spec, 1);
    let folder = tempfile::tempdir().expect("a folder for checkpoints");
    let cancel = AtomicBool::new(false);
    let stop = StopAt { step, cancel: &cancel, die: false };
    let stopped = run(&fresh(), spec, 1, Some(folder.path()), &stop, &cancel);
    assert!(matches!(stopped, Err(TrialError::Interrupted)), "{stopped:?}");
    cancel.store(false, Ordering::Relaxed);
    let resumed = run(&fresh(), spec, 2, Some(folder.path()), &FirstStepIs(step + 1), &cancel);
    assert_eq!(resumed.expect("the trial goes on"), whole);
}

/// A process that dies at `step` leaves checkpoints from which a trial goes on with step `from` and has the bits of one
/// that did not die. The test named `test` must do nothing but call this: it is run again as the child that dies.
///
/// # Panics
/// It has not, the trial fails, or the child does not die by a signal.
pub fn assert_survives_a_kill<R: Replication>(
    fresh: impl Fn() -> R,
    spec: &TrialSpec,
    (step, from): (u64, u64),
    test: &str,
) {
    let cancel = AtomicBool::new(false);
    if let Some(folder) = std::env::var_os(VICTIM) {
        let stop = StopAt { step, cancel: &cancel, die: true };
        let survived = run(&fresh(), spec, 1, Some(Path::new(&folder)), &stop, &cancel);
        panic!("the process should have died at step {step}: {survived:?}");
    }
    let folder = tempfile::tempdir().expect("a folder for checkpoints");
    let child = Command::new(std::env::current_exe().expect("a test knows itself"))
        .args([test, "--exact", "--nocapture"])
        .env(VICTIM, folder.path())
        .output()
        .expect("a test can be run again");
    assert!(child.status.code().is_none(), "the child should die by a signal: {}", child.status);
    let resumed = run(&fresh(), spec, 1, Some(folder.path()), &FirstStepIs(from), &cancel);
    let whole = run_silently(&fresh(), spec, 1);
    println!("trace {}", whole.trace.digest());
    assert_eq!(resumed.expect("the trial goes on"), whole);
}

/// A learning rate of 1e12 is an error that says so, at one of the given steps.
///
/// # Panics
/// The trial ends in another way.
pub fn assert_divergence_is_named(replication: &dyn Replication, mut spec: TrialSpec, at: Range<u64>) {
    spec.config["learning_rate"] = 1e12.into();
    let ended = run(replication, &spec, 1, None, &Silent, &AtomicBool::new(false));
    let Err(error @ TrialError::NonFinite { step, .. }) = &ended else { panic!("{ended:?}") };
    assert!(at.contains(step), "{error}");
    let text = error.to_string();
    assert!(text.contains("training diverged; lower learning_rate"), "{text}");
}

/// Every scale has a sound plan, and every claim and guard that a scale judges names an experiment, variants and a metric
/// that its plan has.
///
/// # Panics
/// One has not.
pub fn assert_plans_are_sound(replication: &dyn Replication) {
    for scale in Scale::ALL {
        let plan = replication.plan(scale, None).unwrap_or_else(|error| panic!("{scale}: {error}"));
        plan.check().unwrap_or_else(|error| panic!("{scale}: {error}"));
        for experiment in &plan.experiments {
            let ids: HashSet<_> = experiment.variants.iter().map(|v| &v.id).collect();
            assert_eq!(ids.len(), experiment.variants.len(), "{scale}: {}", experiment.id);
        }
        for claim in replication.paper().claims.iter().filter(|claim| claim.scales.contains(&scale)) {
            assert_names_what_exists(claim, &plan);
        }
    }
}

fn assert_names_what_exists(claim: &Claim, plan: &Plan) {
    let compared = match &claim.test {
        Test::Paired { comparisons } => comparisons.as_slice(),
        Test::Exact { .. } | Test::Untested { .. } => &[],
    };
    for c in compared.iter().chain(claim.guards.iter().map(|guard| &guard.comparison)) {
        let place = format!("{}, {}: {}", plan.scale, claim.id, c.experiment);
        let experiment = plan.experiment(&c.experiment).unwrap_or_else(|| panic!("{place}"));
        assert!(experiment.metrics.iter().any(|m| m.name == c.metric), "{place}: {}", c.metric);
        for variant in [&c.treatment, &c.control] {
            assert!(experiment.variant(variant).is_some(), "{place}: {variant}");
        }
    }
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

/// Fails if the first step it hears of is an earlier one.
struct FirstStepIs(u64);

impl Progress for FirstStepIs {
    fn step(&self, done: u64, _: u64, _: f32, _: u64) {
        assert!(done >= self.0, "step {done} was done again");
    }
}
