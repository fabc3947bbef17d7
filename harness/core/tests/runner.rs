//! What is run, in which order, how often, and what stops it.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up should panic")]

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use replica_core::expansion::Selection;
use replica_core::fixture::{Hook, Toy};
use replica_core::gather::Gathered;
use replica_core::plan::{Experiment, Variant};
use replica_core::runner::{Observer, Options, RunError, Summary};
use replica_core::trial::Role;
use replica_core::{
    Evidence, Outcome, Plan, Record, Replication, RunStore, Runner, Scale, TrialError, TrialSpec, gather,
};

struct Bench {
    folder: tempfile::TempDir,
    cancel: AtomicBool,
    options: Options,
}

impl Bench {
    fn new() -> Self {
        let options = Options { jobs: 2, threads: 4, ..Options::default() };
        Self { folder: tempfile::tempdir().unwrap(), cancel: AtomicBool::new(false), options }
    }

    fn jobs(jobs: usize) -> Self {
        let bench = Self::new();
        Self { options: Options { jobs, ..bench.options }, ..bench }
    }

    fn store(&self) -> RunStore {
        RunStore::open(self.folder.path()).unwrap()
    }

    fn run_watched(
        &self,
        toy: &Toy,
        plan: &Plan,
        selection: &Selection,
        observer: &dyn Observer,
    ) -> Result<Summary, RunError> {
        let store = self.store();
        let options = self.options.clone();
        Runner { replication: toy, plan, store: &store, observer, cancel: &self.cancel, options }
            .run(selection)
    }

    fn run(&self, toy: &Toy) -> Summary {
        self.run_watched(toy, &plan(toy), &Selection::default(), &()).unwrap()
    }

    fn evidence(&self, toy: &Toy) -> Evidence {
        let Gathered { evidence, refused } = gather(toy, &plan(toy), "cpu", &self.store()).unwrap();
        assert!(refused.is_empty(), "{refused:?}");
        evidence
    }
}

fn plan(toy: &Toy) -> Plan {
    toy.plan(Scale::Small, None).unwrap()
}

fn only(experiment: &str, variant: Option<&str>) -> Selection {
    Selection { experiment: Some(experiment.into()), variant: variant.map(Into::into) }
}

fn toy(hook: impl Fn(&TrialSpec, u64) -> Result<(), TrialError> + Send + Sync + 'static) -> Toy {
    Toy::with_hook(Box::new(hook) as Hook)
}

fn learning_rate(record: &Record) -> f64 {
    record.spec.config["learning_rate"].as_f64().unwrap()
}

/// Trials of the default selection: 2 x 4 tuning and 2 x 3 main trials, 2 facts, 2 x 3 of speed.
const ALL: usize = 8 + 6 + 2 + 6;

#[test]
fn tuning_comes_first_and_selects() {
    let (bench, toy) = (Bench::jobs(1), Toy::default());
    let summary = bench.run(&toy);
    assert_eq!((summary.finished, summary.skipped, summary.blocked), (ALL, 0, 0));
    assert!(summary.failed.is_empty() && !summary.interrupted);

    let starts = toy.starts();
    assert_eq!(starts.len(), ALL);
    let roles: Vec<Role> = starts.iter().map(|s| s.role).collect();
    assert!(roles[..8].iter().all(|r| *r == Role::Tuning) && roles[8..].iter().all(|r| *r == Role::Main));
    assert!(starts[..8].iter().all(|s| s.config["steps"] == 2 && s.seed == 100), "overrides");
    assert!(starts[8..].iter().all(|s| s.config["steps"] == 4));
    assert!(starts[ALL - 6..].iter().all(|s| s.experiment == "speed"), "exclusive experiments run last");
    assert!(starts.iter().all(|s| s.experiment != "extra"), "runs only on request");
    let seeds: Vec<u64> = starts[8..ALL - 6].iter().map(|s| s.seed).collect();
    assert!(seeds.is_sorted(), "pairs are completed seed by seed: {seeds:?}");

    let evidence = bench.evidence(&toy);
    assert_eq!(learning_rate(evidence.records("placement", "base")[0]), 0.1, "the best value");
    assert_eq!(learning_rate(evidence.records("placement", "better")[0]), 0.01, "the smaller one of a tie");
    assert_eq!(evidence.tuning_records("placement", "base").len(), 4);
    let outcomes: Vec<Outcome> = evidence.verdicts.iter().map(|v| v.outcome).collect();
    assert_eq!(outcomes, [Outcome::Reproduced, Outcome::Reproduced, Outcome::NotTested]);
    assert_eq!(evidence.command, "cargo run --release -- run toy --scale small");
}

#[test]
fn a_diverged_tuning_trial_counts_as_infinitely_bad() {
    let (bench, toy) = (Bench::new(), Toy::default());
    bench.run(&toy);
    let evidence = bench.evidence(&toy);
    let tuning = evidence.tuning_records("placement", "base");
    let diverged: Vec<_> = tuning.into_iter().filter(|r| learning_rate(r) == 10.0).collect();
    assert_eq!(diverged[0].measurements.metrics["valid_loss"], f64::INFINITY);
    assert!(diverged[0].measurements.notes[0].contains("training diverged"));
}

#[test]
fn nothing_is_run_twice() {
    let bench = Bench::new();
    bench.run(&Toy::default());
    let again = Toy::default();
    let summary = bench.run(&again);
    assert_eq!((summary.finished, summary.skipped), (0, ALL));
    assert!(again.starts().is_empty());
    // but it is after a change of the code, or when forced
    let edited = Toy::default().edited("other");
    assert_eq!(bench.evidence(&edited).trials.iter().filter(|t| t.record.is_some()).count(), 0);
    assert_eq!(bench.run(&edited).finished, ALL);
    let forced = Bench { options: Options { force: true, ..bench.options.clone() }, ..bench };
    assert_eq!(forced.run(&again).finished, ALL);
}

#[test]
fn threads_are_shared_among_jobs_and_exclusive_trials_get_all() {
    let threads = std::sync::Arc::new(Mutex::new(Vec::new()));
    let (seen, running, most) = (threads.clone(), AtomicUsize::new(0), AtomicUsize::new(0));
    let toy = toy(move |spec, _| {
        let now = running.fetch_add(1, Ordering::SeqCst) + 1;
        most.fetch_max(now, Ordering::SeqCst);
        if spec.experiment == "speed" {
            assert_eq!(now, 1, "an exclusive trial is alone");
        }
        seen.lock().unwrap().push((spec.experiment == "speed", rayon_threads()));
        running.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    });
    let bench = Bench::new();
    let summary = bench.run(&toy);
    assert!(summary.failed.is_empty(), "{:?}", summary.failed);
    assert!(threads.lock().unwrap().iter().all(|(exclusive, n)| *n == if *exclusive { 4 } else { 2 }));
    let evidence = bench.evidence(&toy);
    assert_eq!(evidence.records("speed", "base")[0].environment.threads, 4);
    assert_eq!(evidence.records("facts", "base")[0].environment.threads, 2);
}

fn rayon_threads() -> usize {
    rayon::current_num_threads()
}

#[test]
fn a_cancelled_run_can_be_resumed() {
    let mut bench = Bench::jobs(1);
    let cancel: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
    let stopping = toy(move |spec, step| {
        if spec.role == Role::Main && spec.variant == "better" && step == 2 {
            cancel.store(true, Ordering::Relaxed);
        }
        Ok(())
    });
    let store = bench.store();
    let plan = plan(&stopping);
    let options = bench.options.clone();
    let runner =
        Runner { replication: &stopping, plan: &plan, store: &store, observer: &(), cancel, options };
    let summary = runner.run(&only("placement", None)).unwrap();
    assert!(summary.interrupted && summary.failed.is_empty());
    let stopped = stopping.starts().last().cloned().unwrap();
    assert_eq!(bench.store().get(&stopped).unwrap(), None);
    assert!(bench.store().folder(&stopped).join("progress.json").exists());

    bench.options.resume = true;
    let resumed = Toy::default();
    bench.run(&resumed);
    let steps: Vec<u64> = resumed.steps().iter().filter(|(s, _)| *s == stopped).map(|(_, n)| *n).collect();
    assert_eq!(steps, [3], "only the step that was missing is run");
    let record = bench.store().get(&stopped).unwrap().unwrap();
    assert!(
        !bench.store().folder(&stopped).join("checkpoint").exists(),
        "a finished trial keeps its record only"
    );
    // the result is that of a run nobody stopped
    let whole = Bench::new();
    whole.run(&Toy::default());
    let uninterrupted = whole.store().get(&stopped).unwrap().unwrap();
    assert_eq!(record.measurements, uninterrupted.measurements);
}

#[test]
fn without_resume_an_interrupted_trial_starts_anew() {
    let bench = Bench::jobs(1);
    let failing = toy(|spec, step| match step {
        2 if spec.role == Role::Main => Err(TrialError::Interrupted),
        _ => Ok(()),
    });
    bench.run(&failing);
    let toy = Toy::default();
    let summary = bench.run(&toy);
    assert!(summary.failed.is_empty() && !summary.interrupted);
    let first = toy.starts().into_iter().find(|s| s.role == Role::Main).unwrap();
    let steps: Vec<u64> = toy.steps().iter().filter(|(s, _)| *s == first).map(|(_, n)| *n).collect();
    assert_eq!(steps, [0, 1, 2, 3]);
}

#[test]
fn a_failing_trial_does_not_stop_the_others() {
    let bench = Bench::new();
    let failing = toy(|spec, _| {
        let path = (spec.experiment.as_str(), spec.variant.as_str(), spec.role);
        match path {
            ("placement", "base", Role::Main) if spec.seed == 2 => Err(TrialError::NonFinite {
                step: 3,
                what: "loss".into(),
                value: f32::NAN,
                learning_rate: 0.1,
            }),
            ("facts", "base", _) => panic!("a bug"),
            _ => Ok(()),
        }
    });
    let summary = bench.run(&failing);
    assert_eq!(summary.finished, ALL - 2);
    let mut messages: Vec<String> =
        summary.failed.iter().map(|(s, e)| format!("{} {}: {e}", s.path(), s.seed)).collect();
    messages.sort();
    assert_eq!(messages[0], "toy/facts/base 0: panicked: a bug");
    assert!(messages[1].starts_with("toy/placement/base 2: loss is NaN at step 3: training diverged"));
    // the failed one is tried again, and only that one
    let fixed = Toy::default();
    bench.run(&fixed);
    assert_eq!(fixed.starts().len(), 2);
}

#[test]
fn a_trial_without_what_it_may_do_without_is_left_out() {
    let bench = Bench::new();
    let unreachable = || Err(TrialError::Unavailable("the hub cannot be reached".into()));
    let partial = toy(move |spec, _| match (spec.experiment.as_str(), spec.variant.as_str()) {
        ("placement", "base") | ("facts", "better") => unreachable(),
        _ => Ok(()),
    });
    let watch = Watch::default();
    let summary = bench.run_watched(&partial, &plan(&partial), &Selection::default(), &watch).unwrap();
    let mut left_out: Vec<String> =
        summary.left_out.iter().map(|(s, e)| format!("{}: {e}", s.path())).collect();
    left_out.sort();
    left_out.dedup();
    assert_eq!(
        left_out,
        ["toy/facts/better: the hub cannot be reached", "toy/placement/base: the hub cannot be reached"]
    );
    // four tuning trials; the main trials that would have followed have not failed either
    assert_eq!((summary.left_out.len(), summary.failed.len(), summary.blocked), (4 + 1, 0, 0));
    assert_eq!(summary.finished, ALL - 4 - 3 - 1);
    let said = watch.0.lock().unwrap().iter().filter(|line| line.starts_with("left out")).count();
    assert_eq!(said, 5);
    let complete = Toy::default();
    bench.run(&complete);
    assert_eq!(complete.starts().len(), 4 + 3 + 1, "they run as soon as it is there");
}

#[derive(Default)]
struct Watch(Mutex<Vec<String>>);

impl Observer for Watch {
    fn planned(&self, trials: usize) {
        self.0.lock().unwrap().push(format!("planned {trials}"));
    }

    fn step(&self, spec: &TrialSpec, done: u64, total: u64, _: f32, _: u64) {
        self.0.lock().unwrap().push(format!("{} {done}/{total}", spec.variant));
    }

    fn selected(&self, _: &Experiment, variant: &Variant, value: f64) {
        self.0.lock().unwrap().push(format!("{} selects {value}", variant.id));
    }

    fn left_out(&self, spec: &TrialSpec, why: &TrialError) {
        self.0.lock().unwrap().push(format!("left out {}: {why}", spec.path()));
    }

    fn warning(&self, message: &str) {
        self.0.lock().unwrap().push(message.to_owned());
    }
}

#[test]
fn main_trials_wait_for_a_tuning_that_succeeds() {
    let bench = Bench::new();
    let broken = toy(|spec, _| match spec.role {
        Role::Tuning if spec.variant == "base" => Err(TrialError::Device("no such device".into())),
        _ => Ok(()),
    });
    let watch = Watch::default();
    let summary = bench.run_watched(&broken, &plan(&broken), &only("placement", None), &watch).unwrap();
    assert_eq!((summary.failed.len(), summary.blocked, summary.finished), (4, 3, 4 + 3));
    let said = watch.0.lock().unwrap().join("\n");
    assert!(said.contains("main trials of placement/base were not run: a tuning trial failed"), "{said}");
    assert!(said.contains("better selects 0.01") && !said.contains("base selects"), "{said}");
    // unknown values have no record, whatever lies in the store
    let evidence = bench.evidence(&broken);
    assert!(evidence.records("placement", "base").is_empty());
    assert_eq!(evidence.records("placement", "better").len(), 3);
    assert_eq!(evidence.verdicts[0].outcome, Outcome::NotTested);

    let diverging = toy(|spec, step| match spec.role {
        Role::Tuning => {
            Err(TrialError::NonFinite { step, what: "loss".into(), value: f32::INFINITY, learning_rate: 1.0 })
        }
        Role::Main => Ok(()),
    });
    let watch = Watch::default();
    let summary = Bench::new()
        .run_watched(&diverging, &plan(&diverging), &only("placement", Some("base")), &watch)
        .unwrap();
    assert_eq!((summary.finished, summary.blocked), (4, 3));
    assert!(watch.0.lock().unwrap().join("\n").contains("training diverged at every value of learning_rate"));
}

#[test]
fn a_part_can_be_selected_and_is_watched() {
    let (bench, toy, watch) = (Bench::jobs(1), Toy::default(), Watch::default());
    bench.run_watched(&toy, &plan(&toy), &only("extra", Some("better")), &watch).unwrap();
    let starts = toy.starts();
    assert_eq!(starts.len(), 1);
    assert_eq!(starts[0].path(), "toy/extra/better");
    let said = watch.0.lock().unwrap().clone();
    assert_eq!(said, ["planned 1", "better 1/4", "better 2/4", "better 3/4", "better 4/4"]);
}

#[test]
fn two_runners_share_a_store() {
    let bench = Bench::new();
    let (one, two) = (Toy::default(), Toy::default());
    std::thread::scope(|scope| {
        let first = scope.spawn(|| bench.run(&one));
        let second = scope.spawn(|| bench.run(&two));
        let (first, second) = (first.join().unwrap(), second.join().unwrap());
        assert_eq!(first.finished + second.finished, ALL, "each trial is run once");
        assert_eq!(first.skipped + second.skipped, ALL, "and both see all of them");
    });
    assert_eq!(one.starts().len() + two.starts().len(), ALL);
}

#[test]
fn a_damaged_record_is_reported_and_its_trial_run_again() {
    let bench = Bench::new();
    bench.run(&Toy::default());
    let spec = Toy::default();
    let victim = bench.evidence(&spec).records("facts", "base")[0].spec.clone();
    let path = bench.store().folder(&victim).join("record.json");
    fs::write(&path, "{").unwrap();
    let gathered = gather(&spec, &plan(&spec), "cpu", &bench.store()).unwrap();
    assert_eq!(gathered.refused.len(), 1);
    assert!(gathered.evidence.records("facts", "base").is_empty());
    fs::write(&path, "{").unwrap();
    let watch = Watch::default();
    let summary = bench.run_watched(&spec, &plan(&spec), &Selection::default(), &watch).unwrap();
    assert_eq!((summary.finished, summary.skipped), (1, ALL - 1));
    assert!(watch.0.lock().unwrap().join("\n").contains("refused"));
}

#[test]
fn a_store_that_cannot_be_written_stops_the_run() {
    let (bench, toy) = (Bench::new(), Toy::default());
    fs::write(bench.folder.path().join("toy"), "a file").unwrap();
    let error = bench.run_watched(&toy, &plan(&toy), &Selection::default(), &()).unwrap_err();
    assert!(matches!(error, RunError::Store(_)));
    assert!(toy.starts().is_empty());
}

#[test]
fn plans_that_contradict_themselves_are_refused() {
    let toy = Toy::default();
    let problem = |change: fn(&mut Plan)| {
        let mut plan = plan(&toy);
        change(&mut plan);
        plan.check().unwrap_err().to_string()
    };
    assert!(problem(|p| p.experiments[0].seeds.push(100)).contains("both tunes and measures"));
    assert!(problem(|p| p.experiments[0].seeds.push(1)).contains("seed 1 is listed twice"));
    assert!(problem(|p| p.experiments[1].seeds.clear()).contains("seeds is empty"));
    assert!(problem(|p| p.experiments[1].id = "speed".into()).contains("two experiments are called `speed`"));
    assert!(problem(|p| p.experiments[0].variants[1].id = "base".into()).contains("two variants"));
    assert!(
        problem(|p| p.experiments[0].tuning.as_mut().unwrap().parameter = "momentum".into())
            .contains("has no `momentum`")
    );
    assert!(
        problem(|p| p.experiments[0].tuning.as_mut().unwrap().values.clear())
            .contains("at least one finite value")
    );
    assert!(
        problem(|p| p.experiments[0].tuning.as_mut().unwrap().seeds.clear()).contains("at least one seed")
    );
}

#[test]
fn other_numbers_of_seeds() {
    let seeds = |n: usize, first: &[u64]| {
        let mut plan = plan(&Toy::default());
        plan.experiments[0].seeds = first.to_vec();
        plan.with_seeds(n).experiments.iter().map(|e| e.seeds.clone()).take(2).collect::<Vec<_>>()
    };
    assert_eq!(seeds(2, &[1, 2, 3]), [vec![1, 2], vec![0]], "a fact needs no further seed");
    assert_eq!(seeds(5, &[1, 2, 3])[0], [1, 2, 3, 4, 5]);
    assert_eq!(seeds(4, &[98, 99])[0], [98, 99, 101, 102], "100 is a tuning seed");
}
