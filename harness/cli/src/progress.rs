//! What a person sees while trials run: bars on a terminal, one line a start and a finish elsewhere.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use replica_core::plan::{Experiment, Variant};
use replica_core::runner::Observer;
use replica_core::trial::Role;
use replica_core::{Plan, Record, TrialError, TrialSpec};

/// Shows progress.
pub(crate) struct Watch<'a> {
    err: Mutex<&'a mut (dyn Write + Send)>,
    plan: &'a Plan,
    bars: Option<MultiProgress>,
    quiet: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    total: usize,
    done: usize,
    overall: Option<ProgressBar>,
    running: HashMap<String, Running>,
    /// Why trials were left out, as far as it was said.
    reasons: HashSet<String>,
}

struct Running {
    bar: ProgressBar,
    since: Instant,
    /// Tokens at the first step that was seen: a resumed trial does not start at none.
    first: Option<u64>,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(err: &'a mut (dyn Write + Send), plan: &'a Plan, terminal: bool, quiet: bool) -> Self {
        let bars = (terminal && !quiet).then(MultiProgress::new);
        Self { err: Mutex::new(err), plan, bars, quiet, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, line: &str) {
        match &self.bars {
            Some(bars) => drop(bars.println(line)),
            None => drop(writeln!(self.err.lock().unwrap_or_else(PoisonError::into_inner), "{line}")),
        }
    }

    /// A line that `--quiet` leaves out.
    fn tell(&self, line: &str) {
        if !self.quiet {
            self.say(line);
        }
    }

    /// What tells a trial from the others of its experiment.
    fn name(&self, spec: &TrialSpec) -> String {
        let tuning = self.plan.experiment(&spec.experiment).and_then(|e| e.tuning.as_ref());
        match (spec.role, tuning.and_then(|t| Some((&t.parameter, spec.config.get(&t.parameter)?)))) {
            (Role::Tuning, Some((key, value))) => format!("{} tuning {key} {value}", spec.path()),
            _ => format!("{} seed {}", spec.path(), spec.seed),
        }
    }

    /// What a trial was run for: the metric that selects, or the experiment's first one.
    fn result(&self, record: &Record) -> Option<String> {
        let experiment = self.plan.experiment(&record.spec.experiment)?;
        let selects =
            experiment.tuning.as_ref().filter(|_| record.spec.role == Role::Tuning).map(|t| &t.metric);
        let name = selects.or_else(|| experiment.metrics.first().map(|m| &m.name))?;
        let metric = experiment.metrics.iter().find(|m| m.name == *name);
        let (label, digits) = metric.map_or((name, 4), |m| (&m.label, m.digits));
        Some(format!(", {label} {:.digits$}", record.measurements.metrics.get(name)?))
    }

    /// Counts a trial as done and takes its bar away.
    fn close(&self, spec: &TrialSpec) -> String {
        let mut state = self.state();
        state.done += 1;
        if let Some(running) = state.running.remove(spec.id().as_str()) {
            running.bar.finish_and_clear();
        }
        if let Some(overall) = &state.overall {
            overall.set_position(state.done as u64);
            if state.done >= state.total {
                overall.finish_and_clear();
            }
        }
        format!("[{}/{}]", state.done, state.total)
    }
}

impl Observer for Watch<'_> {
    fn planned(&self, trials: usize) {
        let mut state = self.state();
        (state.total, state.done) = (trials, 0);
        if let Some(bars) = &self.bars {
            let bar = bars.add(ProgressBar::new(trials as u64));
            bar.set_style(style("  {pos}/{len} trials  {wide_bar:.green}  {elapsed}"));
            state.overall = Some(bar);
        }
    }

    fn started(&self, spec: &TrialSpec) {
        let Some(bars) = &self.bars else { return self.tell(&format!("start   {}", self.name(spec))) };
        let bar = bars.add(ProgressBar::new(0));
        bar.set_style(style("  {prefix}  {bar:24.cyan} {pos}/{len}  {msg}  {eta} left"));
        bar.set_prefix(self.name(spec));
        let running = Running { bar, since: Instant::now(), first: None };
        self.state().running.insert(spec.id().to_string(), running);
    }

    fn step(&self, spec: &TrialSpec, done: u64, total: u64, loss: f32, tokens: u64) {
        if self.bars.is_none() {
            return;
        }
        let mut state = self.state();
        let Some(running) = state.running.get_mut(spec.id().as_str()) else { return };
        let first = *running.first.get_or_insert(tokens);
        let speed = (tokens - first.min(tokens)) as f64 / running.since.elapsed().as_secs_f64().max(1e-3);
        running.bar.set_length(total);
        running.bar.set_position(done);
        running.bar.set_message(format!("loss {loss:.3}  {} tokens/s", thousands(speed)));
    }

    fn finished(&self, record: &Record) {
        let count = self.close(&record.spec);
        self.tell(&format!(
            "done    {} {count} {:.1} s{}",
            self.name(&record.spec),
            record.seconds,
            self.result(record).unwrap_or_default()
        ));
    }

    fn skipped(&self, record: &Record) {
        self.close(&record.spec);
    }

    fn waiting(&self, spec: &TrialSpec) {
        self.tell(&format!("wait    {}: another process runs it", self.name(spec)));
    }

    fn failed(&self, spec: &TrialSpec, error: &TrialError) {
        let count = self.close(spec);
        self.say(&format!("failed  {} {count}: {error}", self.name(spec)));
    }

    fn left_out(&self, spec: &TrialSpec, why: &TrialError) {
        let count = self.close(spec);
        let (name, why) = (self.name(spec), why.to_string());
        if self.state().reasons.insert(why.clone()) {
            self.say(&format!("left out {name} {count}: {why}"));
        } else {
            self.tell(&format!("left out {name} {count}, for the same reason"));
        }
    }

    fn selected(&self, experiment: &Experiment, variant: &Variant, value: f64) {
        let parameter = experiment.tuning.as_ref().map_or("", |t| &t.parameter);
        self.tell(&format!("select  {}/{}: {parameter} {value}", experiment.id, variant.id));
    }

    fn warning(&self, message: &str) {
        self.say(&format!("warning: {message}"));
    }
}

fn thousands(speed: f64) -> String {
    if speed >= 10_000.0 { format!("{:.0}k", speed / 1000.0) } else { format!("{speed:.0}") }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
