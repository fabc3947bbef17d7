//! `replica run`

use replica_core::expansion::Selection;
use replica_core::runner::{Options, Summary};
use replica_core::{Outcome, RunStore, Runner, TrialError, TrialSpec, environment, trial::Device};
use serde_json::{Value, json};

use crate::Session;
use crate::arguments::RunOptions;
use crate::commands::{claims, report};
use crate::device;
use crate::failure::Failure;
use crate::interrupt;
use crate::progress::Watch;
use crate::study::studies;

pub(crate) fn run(session: &mut Session, options: &RunOptions) -> Result<(), Failure> {
    let studies = studies(session, &options.plan)?;
    if studies.is_empty() {
        let scale = &options.plan.setting.scale;
        return Err(Failure::usage(format!(
            "no paper has a configuration for scale {scale}; see `replica list`"
        )));
    }
    let device = options.plan.setting.device;
    let accelerator = device::check(device)?;
    let global = &session.arguments.global;
    let store = RunStore::open(&global.runs)?;
    let threads = options.threads.map_or_else(environment::cores, usize::from);
    let jobs = options.jobs.map_or(if device == Device::Cpu { threads } else { 1 }, usize::from);
    let commit = Some(env!("REPLICA_COMMIT")).filter(|c| !c.is_empty()).map(str::to_owned);
    let cancel = interrupt::flag()?;
    let selection = options.plan.target.as_ref().map_or_else(Selection::default, |t| t.selection.clone());

    let mut all = Vec::new();
    let mut total = Summary::default();
    for study in &studies {
        let terminal = session.streams.terminal;
        let watch = Watch::new(session.streams.err(), &study.plan, terminal, global.quiet);
        let runner = Runner {
            replication: study.replication,
            plan: &study.plan,
            store: &store,
            observer: &watch,
            cancel,
            options: Options {
                device,
                jobs,
                threads,
                resume: options.resume,
                force: options.force,
                commit: commit.clone(),
                accelerator: accelerator.clone(),
            },
        };
        let summary = runner.run(&selection)?;
        total.finished += summary.finished;
        total.skipped += summary.skipped;
        total.blocked += summary.blocked;
        total.failed.extend(summary.failed);
        total.left_out.extend(summary.left_out);
        total.interrupted |= summary.interrupted;
        if total.interrupted {
            break;
        }
        let mut evidence = study.evidence(session, &store, device.backend())?;
        evidence.command = format!("cargo run --release -- {}", session.words.join(" "));
        all.push(evidence);
    }
    if total.interrupted {
        return Err(Failure::Interrupted(
            "interrupted; the same command with --resume goes on from the last checkpoints".to_owned(),
        ));
    }
    let index = report::write(session, &store, &options.plan.setting, &all, None)?;
    if global.json {
        session.streams.json(&json!({
            "finished": total.finished,
            "already_run": total.skipped,
            "failed": total.failed.iter().map(described).collect::<Vec<_>>(),
            "left_out": total.left_out.iter().map(described).collect::<Vec<_>>(),
            "not_started": total.blocked,
            "papers": all.iter().map(|e| json!({
                "paper": e.paper.id,
                "scale": e.plan.scale,
                "backend": e.backend,
                "verdicts": e.verdicts,
            })).collect::<Vec<_>>(),
            "report": index,
        }))?;
    } else {
        for evidence in &all {
            claims::show(session.streams, evidence);
        }
        let verdicts: Vec<Outcome> = all.iter().flat_map(|e| &e.verdicts).map(|v| v.outcome).collect();
        if verdicts.is_empty() {
            session.streams.result("no claim was judged");
        }
        let left_out = match total.left_out.len() {
            0 => String::new(),
            n => format!(", {n} left out"),
        };
        session.streams.result(&format!(
            "{} trials run, {} had been run before, {} failed{left_out}",
            total.finished,
            total.skipped,
            total.failed.len()
        ));
        session.streams.result(&format!("report: {}", index.display()));
    }
    verdict_of_the_run(&total)
}

fn described((spec, error): &(TrialSpec, TrialError)) -> Value {
    json!({ "trial": spec.path(), "role": spec.role, "seed": spec.seed, "error": error.to_string() })
}

fn verdict_of_the_run(total: &Summary) -> Result<(), Failure> {
    if total.failed.is_empty() && total.blocked == 0 {
        return Ok(());
    }
    let message = format!("{} trials failed, {} could not start", total.failed.len(), total.blocked);
    let environment =
        |e: &TrialError| matches!(e, TrialError::Data(_) | TrialError::Device(_) | TrialError::Storage(_));
    if total.failed.iter().any(|(_, error)| environment(error)) {
        Err(Failure::environment(message))
    } else {
        Err(Failure::Check(message))
    }
}
