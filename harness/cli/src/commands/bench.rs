//! `replica bench`

use std::fs;
use std::io;
use std::path::Path;

use rayon::{ThreadPool, ThreadPoolBuilder};
use replica_bench::comparison::{
    self, COMPARED_STEPS, Comparison, LOSS_TOLERANCE, Options, Side, TwinResult,
};
use replica_bench::spread::{Estimate, Spread};
use replica_bench::trace::{self, TraceCost};
use replica_bench::workload::{self, Workload};
use replica_bench::{BenchError, Python, serve};
use replica_core::environment;
use serde_json::{Value, json};

use crate::Session;
use crate::arguments::BenchOptions;
use crate::failure::Failure;
use crate::streams::{Streams, Tone};
use crate::suggestion::unknown;
use crate::table::Table;

/// What a trace may cost, as a share of a training step.
const TRACE_LIMIT: f64 = 0.01;

/// How to read the tables.
const LEGEND: &str = "\
step ms     median time of a training step: forward, backward, update; its quartiles; the fastest step
cpu ms      processor time of a step over all threads, even those that wait: other programs disturb it less
GFLOP/s     10^9 operations a second, counting the matrix products that the step cannot do without
of gemm     GFLOP/s as a share of what the engine's matrix products reach, measured in the same rounds
peak MB     most memory (10^6 bytes) of a process that did only this; added: without program and libraries
ratio       step ms (or cpu ms) of replica / of this program: median over rounds, 95 % interval; below 1 replica
            is faster";

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Self {
        Self::Environment(error.into())
    }
}

pub(crate) fn bench(session: &mut Session, options: &BenchOptions) -> Result<(), Failure> {
    let all = workload::all();
    if options.list {
        return list(session, &all);
    }
    let chosen = choose(&all, &options.workloads)?;
    let threads = options.threads.map_or_else(environment::cores, usize::from);
    let pool = ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Failure::environment(format!("cannot start {threads} threads: {e}")))?;
    if options.serve {
        return answer(&pool, &chosen, options.weights.as_deref());
    }
    let python = if options.alone { None } else { python(session, options)? };
    let environment = environment::capture(threads, commit(), None);
    if !session.arguments.global.json {
        let torch = python.as_ref().map_or_else(|| "no PyTorch".to_owned(), |p| format!("torch {}", p.torch));
        session.streams.result(&format!(
            "{}, {}, {threads} of {} threads; {torch}",
            environment.cpu,
            environment.simd,
            environment::cores()
        ));
    }
    let trace = options.trace.then(trace::measure);
    let setup = Options {
        threads,
        rounds: options.rounds.into(),
        steps: options.steps.map(usize::from),
        python,
        compile: options.compile,
        own_program: std::env::current_exe().ok(),
    };
    let (quiet, json) = (session.arguments.global.quiet, session.arguments.global.json);
    let mut comparisons = Vec::new();
    for workload in chosen {
        let streams = &mut *session.streams;
        let comparison = pool.install(|| {
            comparison::compare(workload, &setup, &mut |line| {
                if !quiet {
                    streams.problem(&format!("{}: {line}", workload.name()));
                }
            })
        })?;
        if !json {
            show(session.streams, &comparison, trace.as_ref());
        }
        comparisons.push(comparison);
    }
    let record = json!({ "environment": environment, "torch": setup.python.map(|p| p.torch), "trace": trace,
        "workloads": comparisons.iter().map(summary).collect::<Vec<_>>() });
    if let Some(path) = &options.output {
        let text = serde_json::to_string_pretty(&record)?;
        fs::write(path, text + "\n")
            .map_err(|e| Failure::environment(format!("cannot write {}: {e}", path.display())))?;
    }
    if json {
        session.streams.json(&record)?;
    } else {
        session.streams.result("");
        for line in LEGEND.lines() {
            let line = session.streams.tone(Tone::Quiet, line);
            session.streams.result(&line);
        }
    }
    verdict(&comparisons, trace.as_ref())
}

fn commit() -> Option<&'static str> {
    Some(env!("REPLICA_COMMIT")).filter(|c| !c.is_empty())
}

fn list(session: &mut Session, all: &[Box<dyn Workload>]) -> Result<(), Failure> {
    if session.arguments.global.json {
        let entries = all.iter().map(
            |w| json!({ "name": w.name(), "about": w.about(), "on_request": w.on_request(), "flops": w.flops() }),
        );
        return session.streams.json(&json!({ "workloads": entries.collect::<Vec<_>>() }));
    }
    let mut table = Table::new(&["workload", "what is trained", ""]);
    for w in all {
        let note = if w.on_request() { "runs only when named" } else { "" };
        table.row([w.name().to_owned(), w.about(), note.to_owned()]);
    }
    table.lines().iter().for_each(|line| session.streams.result(line));
    Ok(())
}

/// The named workloads in the order of the list, or those that need not be named.
fn choose<'a>(all: &'a [Box<dyn Workload>], names: &[String]) -> Result<Vec<&'a dyn Workload>, Failure> {
    let known: Vec<&str> = all.iter().map(|w| w.name()).collect();
    if let Some(name) = names.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(Failure::usage(unknown("workload", name, &known)));
    }
    let wanted = |w: &&dyn Workload| {
        if names.is_empty() { !w.on_request() } else { names.iter().any(|n| n == w.name()) }
    };
    Ok(all.iter().map(AsRef::as_ref).filter(wanted).collect())
}

/// Trains on request of another process.
fn answer(pool: &ThreadPool, chosen: &[&dyn Workload], weights: Option<&Path>) -> Result<(), Failure> {
    let ([workload], Some(weights)) = (chosen, weights) else {
        return Err(Failure::usage("--serve takes one workload and --weights"));
    };
    Ok(pool.install(|| serve::serve(*workload, weights, io::BufReader::new(io::stdin()), io::stdout()))?)
}

/// The interpreter to compare with. One that was asked for must work; one that was not may be missing.
fn python(session: &mut Session, options: &BenchOptions) -> Result<Option<Python>, Failure> {
    let variable = std::env::var_os("REPLICA_PYTHON").filter(|v| !v.is_empty());
    let asked = options.python.clone().or_else(|| variable.map(Into::into));
    if let Some(path) = asked {
        return Python::at(&path).map(Some).map_err(|problem| {
            Failure::environment(format!("{problem}; name another one with --python, or use --alone"))
        });
    }
    match Python::at(Path::new("python3")) {
        Ok(python) => Ok(Some(python)),
        Err(problem) => {
            session.streams.problem(&format!(
                "note: no comparison with PyTorch: {problem}; install torch, or name a Python with --python"
            ));
            Ok(None)
        }
    }
}

fn milliseconds(seconds: f64) -> String {
    let ms = seconds * 1e3;
    if ms < 100.0 { format!("{ms:.2}") } else { format!("{ms:.0}") }
}

fn estimate(estimate: Estimate) -> String {
    match estimate.interval {
        Some((low, high)) => format!("{:.3} [{low:.3}, {high:.3}]", estimate.median),
        None => format!("{:.3}", estimate.median),
    }
}

fn megabytes(mb: Option<f64>) -> String {
    mb.map_or_else(|| "?".to_owned(), |mb| format!("{mb:.0}"))
}

fn show(streams: &mut Streams, comparison: &Comparison, trace: Option<&TraceCost>) {
    let heading = format!("{}: {}", comparison.workload, comparison.about);
    let heading = streams.tone(Tone::Heading, &heading);
    streams.result("");
    streams.result(&heading);
    streams.result(&format!(
        "{:.2} M parameters, {} tokens and {:.2} GFLOP a step; {} rounds of {} steps",
        comparison.parameters as f64 / 1e6,
        comparison.tokens,
        comparison.flops / 1e9,
        comparison.rounds,
        comparison.steps,
    ));
    let mut table = Table::new(&[
        "",
        "step ms",
        "quartiles",
        "fastest",
        "cpu ms",
        "tokens/s",
        "GFLOP/s",
        "peak MB",
        "added",
        "ratio",
        "cpu ratio",
    ]);
    row(&mut table, comparison, &comparison.engine, [String::new(), String::new()]);
    for twin in &comparison.twins {
        if let TwinResult::Measured { side, ratio, cpu_ratio, .. } = twin {
            row(
                &mut table,
                comparison,
                side,
                [estimate(*ratio), cpu_ratio.map_or_else(String::new, estimate)],
            );
        }
    }
    table.lines().iter().for_each(|line| streams.result(line));
    for rate in &comparison.products {
        streams.result(&format!(
            "  of gemm {:.0} % at {}, which reaches {:.1} GFLOP/s",
            rate.share.median * 100.0,
            rate.product,
            rate.flops_per_second.median / 1e9
        ));
    }
    if let Some(bytes) = comparison.engine_peak_bytes {
        streams.result(&format!("  replica allocates at most {:.0} MB at once", bytes as f64 / 1e6));
    }
    for twin in &comparison.twins {
        match twin {
            TwinResult::Failed { program, problem } => {
                let line = streams.tone(Tone::Bad, &format!("  {program} gave no result: {problem}"));
                streams.result(&line);
            }
            TwinResult::Measured { side, loss_difference, .. } => {
                let (tone, word) =
                    if twin.agrees() { (Tone::Good, "agree") } else { (Tone::Bad, "DO NOT AGREE") };
                let word = streams.tone(tone, word);
                streams.result(&format!(
                    "  losses of {COMPARED_STEPS} steps {word} with {}: at most {loss_difference:.1e} apart, \
                     relative; {LOSS_TOLERANCE:.0e} is allowed",
                    side.program
                ));
            }
        }
    }
    if let Some(cost) = trace {
        streams.result(&format!(
            "  the trace costs {:.2} µs a step, {:.4} % of it (kept, and written to {} checkpoints of {} steps)",
            cost.seconds * 1e6,
            share(cost, comparison) * 100.0,
            cost.checkpoints,
            cost.steps
        ));
    }
}

fn row(table: &mut Table, comparison: &Comparison, side: &Side, ratios: [String; 2]) {
    let Spread { lower, median, upper } = side.step_seconds();
    let cells = [
        side.program.clone(),
        milliseconds(median),
        format!("{} - {}", milliseconds(lower), milliseconds(upper)),
        milliseconds(side.fastest_seconds()),
        side.step_cpu_seconds().map_or_else(|| "?".to_owned(), |cpu| milliseconds(cpu.median)),
        format!("{:.0}", comparison.tokens as f64 / median),
        format!("{:.1}", comparison.flops / median / 1e9),
        megabytes(side.memory.and_then(|m| m.peak_rss_mb)),
        megabytes(side.memory.and_then(|m| m.added_mb())),
    ];
    table.row(cells.into_iter().chain(ratios));
}

/// A trace's cost as a share of this engine's step.
fn share(cost: &TraceCost, comparison: &Comparison) -> f64 {
    cost.seconds / comparison.engine.step_seconds().median
}

/// What was measured, with the numbers of the table beside it.
fn summary(comparison: &Comparison) -> Value {
    let spread = comparison.engine.step_seconds();
    json!({
        "step_seconds": spread,
        "tokens_per_second": comparison.tokens as f64 / spread.median,
        "flops_per_second": comparison.flops / spread.median,
        "measured": comparison,
    })
}

fn verdict(comparisons: &[Comparison], trace: Option<&TraceCost>) -> Result<(), Failure> {
    let mut failed = Vec::new();
    for comparison in comparisons {
        for twin in &comparison.twins {
            match twin {
                TwinResult::Failed { program, .. } => {
                    return Err(Failure::environment(format!(
                        "{}: {program} gave no result",
                        comparison.workload
                    )));
                }
                TwinResult::Measured { side, .. } if !twin.agrees() => {
                    failed.push(format!("{}: losses differ from {}'s", comparison.workload, side.program));
                }
                TwinResult::Measured { .. } => {}
            }
        }
        if let Some(cost) = trace.filter(|cost| share(cost, comparison) >= TRACE_LIMIT) {
            failed.push(format!(
                "{}: the trace costs {:.1} % of a step, {:.0} % is allowed",
                comparison.workload,
                share(cost, comparison) * 100.0,
                TRACE_LIMIT * 100.0
            ));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Failure::Check(failed.join("; "))) }
}
