//! Runs what a plan asks for and the store does not have.
//!
//! Tuning trials come first; a variant's main trials follow as soon as its value is selected. `jobs` trials run
//! at a time, each in a thread pool of its own. Experiments that measure time or memory run last, one trial at
//! a time with all threads. A trial that fails or is left out is reported, and the others go on.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use thiserror::Error;

use crate::environment;
use crate::expansion::{Candidate, Expansion, Selected, Selection, select};
use crate::memory;
use crate::plan::{Experiment, Plan, Variant};
use crate::record::{Measurements, RECORD_VERSION, Record};
use crate::replication::{PlanError, Replication};
use crate::store::{Entry, Lease, RunStore, Spent, StoreError};
use crate::trial::{Device, Progress, Role, TrialContext, TrialError, TrialSpec};

/// How long to wait before looking again at a trial that another process runs.
const PATIENCE: Duration = Duration::from_millis(100);

/// How to run. Nothing in it changes a result.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to compute.
    pub device: Device,
    /// Trials at a time.
    pub jobs: usize,
    /// Threads for all of them together.
    pub threads: usize,
    /// Whether interrupted trials go on from their checkpoint.
    pub resume: bool,
    /// Whether finished trials are run again.
    pub force: bool,
    /// Git commit the program was built from.
    pub commit: Option<String>,
    /// Name of the accelerator.
    pub accelerator: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            jobs: 1,
            threads: environment::cores(),
            resume: false,
            force: false,
            commit: None,
            accelerator: None,
        }
    }
}

/// Told what happens. Calls come from several threads.
pub trait Observer: Sync {
    /// This many trials are asked for, finished ones included.
    fn planned(&self, _trials: usize) {}
    /// A trial starts.
    fn started(&self, _spec: &TrialSpec) {}
    /// A trial has done `done` of `total` steps.
    fn step(&self, _spec: &TrialSpec, _done: u64, _total: u64, _loss: f32, _tokens: u64) {}
    /// A trial has left a record.
    fn finished(&self, _record: &Record) {}
    /// A trial had been run before.
    fn skipped(&self, _record: &Record) {}
    /// Another process runs the trial; its record is waited for.
    fn waiting(&self, _spec: &TrialSpec) {}
    /// A trial left no record.
    fn failed(&self, _spec: &TrialSpec, _error: &TrialError) {}
    /// A trial was left out, because something that it may do without is not there.
    fn left_out(&self, _spec: &TrialSpec, _why: &TrialError) {}
    /// A value was selected for a variant.
    fn selected(&self, _experiment: &Experiment, _variant: &Variant, _value: f64) {}
    /// Something a person should know.
    fn warning(&self, _message: &str) {}
}

/// For runs nobody watches.
impl Observer for () {}

/// What a run did.
#[derive(Debug, Default)]
pub struct Summary {
    /// Trials that left a record.
    pub finished: usize,
    /// Trials that had one.
    pub skipped: usize,
    /// Trials that left none, and why.
    pub failed: Vec<(TrialSpec, TrialError)>,
    /// Trials that were left out, and why; the main trials of what was to be tuned are not among them.
    pub left_out: Vec<(TrialSpec, TrialError)>,
    /// Main trials that could not start because their tuning failed.
    pub blocked: usize,
    /// Whether the run was stopped before its end.
    pub interrupted: bool,
}

/// Why a run stopped.
#[derive(Debug, Error)]
pub enum RunError {
    /// The plan contradicts itself.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Records cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No threads to run on.
    #[error("cannot start {threads} threads: {source}; try a smaller --threads")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// What the system says.
        source: ThreadPoolBuildError,
    },
}

/// Runs a plan of a replication.
pub struct Runner<'a> {
    /// The paper.
    pub replication: &'a dyn Replication,
    /// What it would run.
    pub plan: &'a Plan,
    /// Where records go.
    pub store: &'a RunStore,
    /// Told what happens.
    pub observer: &'a dyn Observer,
    /// Set to stop.
    pub cancel: &'a AtomicBool,
    /// How to run.
    pub options: Options,
}

impl Runner<'_> {
    /// Runs the selected trials that the store does not have.
    ///
    /// # Errors
    /// The plan makes no sense, or records cannot be written: nothing more is run then. A trial that fails is
    /// no error but part of the summary.
    pub fn run(&self, selection: &Selection) -> Result<Summary, RunError> {
        self.plan.check()?;
        let expansion = Expansion::new(self.replication, self.plan, self.options.device.backend());
        let groups: Vec<Group> = self
            .plan
            .experiments
            .iter()
            .flat_map(|e| e.variants.iter().map(move |v| (e, v)))
            .filter(|(e, v)| selection.includes(e, v))
            .map(|(experiment, variant)| {
                let candidates = expansion.tuning(experiment, variant);
                let outstanding = candidates.iter().map(|c| c.trials.len()).sum();
                Group {
                    experiment,
                    variant,
                    candidates,
                    outstanding,
                    failed: false,
                    left_out: false,
                    records: HashMap::new(),
                }
            })
            .collect();
        self.observer.planned(groups.iter().map(|g| g.outstanding + g.experiment.seeds.len()).sum());
        let (exclusive, shared): (Vec<_>, Vec<_>) = groups.into_iter().partition(|g| g.experiment.exclusive);
        let mut summary = Summary::default();
        let threads = self.options.threads.max(1);
        let trials: usize = shared.iter().map(|g| g.outstanding.max(g.experiment.seeds.len())).sum();
        let jobs = self.options.jobs.clamp(1, trials.max(1));
        self.pass(&expansion, shared, jobs, (threads / jobs).max(1), &mut summary)?;
        self.pass(&expansion, exclusive, 1, threads, &mut summary)?;
        Ok(summary)
    }

    fn pass(
        &self,
        expansion: &Expansion,
        groups: Vec<Group>,
        jobs: usize,
        threads: usize,
        summary: &mut Summary,
    ) -> Result<(), RunError> {
        if groups.is_empty() {
            return Ok(());
        }
        let pools: Vec<ThreadPool> = (0..jobs)
            .map(|_| ThreadPoolBuilder::new().num_threads(threads).build())
            .collect::<Result<_, _>>()
            .map_err(|source| RunError::Threads { threads, source })?;
        let mut queue = Queue {
            groups,
            ready: Vec::new(),
            deferred: Vec::new(),
            running: 0,
            fatal: None,
            summary: std::mem::take(summary),
        };
        for group in 0..queue.groups.len() {
            let candidates = &queue.groups[group].candidates;
            let tuning = candidates.iter().flat_map(|c| &c.trials).cloned();
            queue.ready.extend(tuning.map(|spec| Task { group, spec, waited: false }));
            if queue.groups[group].outstanding == 0 {
                self.release(expansion, &mut queue, group);
            }
        }
        let (queue, changed) = (Mutex::new(queue), Condvar::new());
        std::thread::scope(|scope| {
            for pool in &pools {
                scope.spawn(|| self.work(expansion, &queue, &changed, pool));
            }
        });
        let queue = queue.into_inner().unwrap_or_else(PoisonError::into_inner);
        *summary = queue.summary;
        summary.interrupted |= self.cancel.load(Ordering::Relaxed);
        queue.fatal.map_or(Ok(()), Err)
    }

    /// Takes tasks until none is left or the run stops.
    fn work(&self, expansion: &Expansion, queue: &Mutex<Queue>, changed: &Condvar, pool: &ThreadPool) {
        while let Some(mut task) = self.next(queue, changed) {
            let experiment = lock(queue).groups[task.group].experiment;
            let attempt = self.attempt(&task.spec, experiment, pool);
            let mut queue = lock(queue);
            queue.running -= 1;
            match attempt {
                Ok(Attempt::Busy) => {
                    if !task.waited {
                        self.observer.waiting(&task.spec);
                    }
                    task.waited = true;
                    queue.deferred.push(task);
                }
                Ok(Attempt::Interrupted) => queue.summary.interrupted = true,
                Ok(Attempt::Finished(record)) => {
                    queue.summary.finished += 1;
                    self.settle(expansion, &mut queue, task, Some(record));
                }
                Ok(Attempt::Skipped(record)) => {
                    queue.summary.skipped += 1;
                    self.settle(expansion, &mut queue, task, Some(record));
                }
                Ok(Attempt::Failed(error)) => {
                    queue.summary.failed.push((task.spec.clone(), error));
                    self.settle(expansion, &mut queue, task, None);
                }
                Ok(Attempt::LeftOut(error)) => {
                    queue.groups[task.group].left_out = true;
                    queue.summary.left_out.push((task.spec.clone(), error));
                    self.settle(expansion, &mut queue, task, None);
                }
                Err(error) => queue.fatal = Some(error.into()),
            }
            changed.notify_all();
        }
        changed.notify_all();
    }

    fn next(&self, queue: &Mutex<Queue>, changed: &Condvar) -> Option<Task> {
        let mut queue = lock(queue);
        loop {
            if self.cancel.load(Ordering::Relaxed) || queue.fatal.is_some() {
                return None;
            }
            // tuning first; then seed by seed, so that comparisons become paired early
            let first = (0..queue.ready.len()).min_by_key(|i| {
                let spec = &queue.ready[*i].spec;
                (spec.role, spec.seed, *i)
            });
            if let Some(first) = first {
                queue.running += 1;
                return Some(queue.ready.remove(first));
            }
            if !queue.deferred.is_empty() {
                queue = changed.wait_timeout(queue, PATIENCE).unwrap_or_else(PoisonError::into_inner).0;
                let deferred = std::mem::take(&mut queue.deferred);
                queue.ready.extend(deferred);
            } else if queue.running > 0 {
                queue = changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            } else {
                return None;
            }
        }
    }

    /// Books a trial that is done, one way or the other.
    fn settle(&self, expansion: &Expansion, queue: &mut Queue, task: Task, record: Option<Box<Record>>) {
        if task.spec.role == Role::Main {
            return;
        }
        let group = &mut queue.groups[task.group];
        group.outstanding -= 1;
        match record {
            Some(record) => {
                group.records.insert(record.id.to_string(), *record);
            }
            None => group.failed = true,
        }
        if group.outstanding == 0 {
            self.release(expansion, queue, task.group);
        }
    }

    /// Makes a variant's main trials ready, now that its tuning is over.
    fn release(&self, expansion: &Expansion, queue: &mut Queue, index: usize) {
        let Group { experiment, variant, candidates, failed, left_out, records, .. } = &queue.groups[index];
        let path = format!("{}/{}", experiment.id, variant.id);
        let parameter = experiment.tuning.as_ref().map_or("", |t| &t.parameter);
        let metric = experiment.tuning.as_ref().map_or("", |t| &t.metric);
        let selected = select(candidates, metric, |spec| records.get(spec.id().as_str()));
        let problem = match selected {
            Selected::Value(value) => {
                self.observer.selected(experiment, variant, value);
                None
            }
            Selected::NotTuned => None,
            Selected::AllDiverged => Some(format!("training diverged at every value of {parameter}")),
            Selected::Pending if *left_out => return,
            Selected::Pending if *failed => Some("a tuning trial failed".to_owned()),
            Selected::Pending => Some(format!("a tuning trial did not measure `{metric}`")),
        };
        if let Some(problem) = problem {
            queue.summary.blocked += experiment.seeds.len();
            self.observer.warning(&format!("the main trials of {path} were not run: {problem}"));
            return;
        }
        let main = expansion.main(experiment, variant, selected);
        queue.ready.extend(main.into_iter().map(|spec| Task { group: index, spec, waited: false }));
    }

    fn attempt(
        &self,
        spec: &TrialSpec,
        experiment: &Experiment,
        pool: &ThreadPool,
    ) -> Result<Attempt, StoreError> {
        let entry = if self.options.force {
            self.store.claim(spec)?.map_or(Entry::Busy, Entry::Claimed)
        } else {
            match self.store.begin(spec) {
                Err(refused @ StoreError::Refused { .. }) => {
                    self.observer.warning(&refused.to_string());
                    self.store.begin(spec)?
                }
                other => other?,
            }
        };
        match entry {
            Entry::Busy => Ok(Attempt::Busy),
            Entry::Finished(record) => {
                self.observer.skipped(&record);
                Ok(Attempt::Skipped(record))
            }
            Entry::Claimed(lease) => self.trial(&lease, spec, experiment, pool),
        }
    }

    fn trial(
        &self,
        lease: &Lease,
        spec: &TrialSpec,
        experiment: &Experiment,
        pool: &ThreadPool,
    ) -> Result<Attempt, StoreError> {
        let checkpoints = lease.checkpoints(self.options.resume)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let before = lease.spent().unwrap_or(Spent { started_at: now, seconds: 0.0 });
        self.observer.started(spec);
        let progress = Forward { observer: self.observer, spec };
        let context = TrialContext {
            device: self.options.device,
            progress: &progress,
            cancel: self.cancel,
            checkpoints: Some(checkpoints),
        };
        if experiment.exclusive {
            memory::reset_peak();
        }
        let clock = Instant::now();
        let run = || pool.install(|| self.replication.run(spec, &context));
        let result = catch_unwind(AssertUnwindSafe(run))
            .unwrap_or_else(|panic| Err(TrialError::failed(format!("panicked: {}", words(&*panic)))));
        let spent = Spent { seconds: before.seconds + clock.elapsed().as_secs_f64(), ..before };
        let peak = if experiment.exclusive { memory::peak() } else { None };
        let measurements = match result.map_err(|error| diverged_tuning(spec, experiment, error)) {
            Ok(measurements) | Err(Ok(measurements)) => measurements,
            Err(Err(TrialError::Interrupted)) => {
                lease.note_spent(spent)?;
                return Ok(Attempt::Interrupted);
            }
            Err(Err(error @ TrialError::Unavailable(_))) => {
                self.observer.left_out(spec, &error);
                return Ok(Attempt::LeftOut(error));
            }
            Err(Err(error)) => {
                self.observer.failed(spec, &error);
                return Ok(Attempt::Failed(error));
            }
        };
        let record = Box::new(Record {
            version: RECORD_VERSION,
            id: spec.id(),
            spec: spec.clone(),
            measurements,
            environment: environment::capture(
                pool.current_num_threads(),
                self.options.commit.as_deref(),
                self.options.accelerator.clone(),
            ),
            started_at: spent.started_at,
            seconds: spent.seconds,
            peak_memory_bytes: peak,
        });
        self.store.put(&record)?;
        // what a finished trial needs is its record
        lease.discard_progress()?;
        self.observer.finished(&record);
        Ok(Attempt::Finished(record))
    }
}

/// A value at which training diverges is infinitely bad, and that is what its tuning trial has measured.
fn diverged_tuning(
    spec: &TrialSpec,
    experiment: &Experiment,
    error: TrialError,
) -> Result<Measurements, TrialError> {
    match (&error, &experiment.tuning) {
        (TrialError::NonFinite { .. }, Some(tuning)) if spec.role == Role::Tuning => {
            let mut measurements = Measurements { notes: vec![error.to_string()], ..Measurements::default() };
            measurements.metrics.insert(tuning.metric.clone(), f64::INFINITY);
            Ok(measurements)
        }
        _ => Err(error),
    }
}

enum Attempt {
    Busy,
    Interrupted,
    Finished(Box<Record>),
    Skipped(Box<Record>),
    Failed(TrialError),
    LeftOut(TrialError),
}

struct Task {
    group: usize,
    spec: TrialSpec,
    waited: bool,
}

/// A variant on its way from tuning to main trials.
struct Group<'a> {
    experiment: &'a Experiment,
    variant: &'a Variant,
    candidates: Vec<Candidate>,
    /// Tuning trials that are not done.
    outstanding: usize,
    failed: bool,
    left_out: bool,
    records: HashMap<String, Record>,
}

struct Queue<'a> {
    groups: Vec<Group<'a>>,
    ready: Vec<Task>,
    /// Trials that another process runs.
    deferred: Vec<Task>,
    running: usize,
    fatal: Option<RunError>,
    summary: Summary,
}

struct Forward<'a> {
    observer: &'a dyn Observer,
    spec: &'a TrialSpec,
}

impl Progress for Forward<'_> {
    fn step(&self, done: u64, total: u64, loss: f32, tokens: u64) {
        self.observer.step(self.spec, done, total, loss, tokens);
    }
}

fn lock<'a, 'b>(queue: &'a Mutex<Queue<'b>>) -> MutexGuard<'a, Queue<'b>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("for an unknown reason")
}
