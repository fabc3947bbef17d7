//! `replica report`, and the pages at the end of `replica run`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use replica_core::expansion::Selection;
use replica_core::{Evidence, RunStore, Scale, atomic, gather};
use replica_reports::{HistoryPoint, render_site};
use serde_json::json;

use crate::Session;
use crate::arguments::{PlanOptions, ReportOptions, Setting};
use crate::compared::compare;
use crate::failure::Failure;
use crate::study::studies;

pub(crate) fn report(session: &mut Session, options: &ReportOptions) -> Result<(), Failure> {
    let store = RunStore::at(&session.arguments.global.runs);
    let plan = PlanOptions { target: None, setting: options.setting.clone() };
    let mut asked = Vec::new();
    for study in studies(session, &plan)? {
        let evidence = study.evidence(session, &store, options.setting.device.backend())?;
        if evidence.trials.iter().any(|t| t.record.is_some()) {
            asked.push(evidence);
        }
    }
    let index = write(session, &store, &options.setting, &asked, options.history.as_deref())?;
    if session.arguments.global.json {
        session.streams.json(&json!({ "report": index }))?;
    } else {
        session.streams.result(&format!("report: {}", index.display()));
    }
    if options.open {
        open(&index)?;
    }
    Ok(())
}

/// Writes the pages: the given evidence, and whatever else has been run of any paper at any scale. Returns the
/// index.
pub(crate) fn write(
    session: &mut Session,
    store: &RunStore,
    setting: &Setting,
    asked: &[Evidence],
    history: Option<&Path>,
) -> Result<PathBuf, Failure> {
    let global = &session.arguments.global;
    let backend = setting.device.backend();
    let mut evidence = Vec::new();
    for replication in session.registry {
        let id = &replication.paper().id;
        for scale in Scale::ALL {
            for other in ["cpu", "cuda"] {
                if (scale, other) == (setting.scale(), backend) {
                    evidence.extend(asked.iter().filter(|e| e.paper.id == *id).cloned());
                    continue;
                }
                // a scale that the paper does not have, or whose data is not here, has no page
                let Ok(plan) = replication.plan(scale, None) else { continue };
                let found = gather(replication.as_ref(), &plan, other, store)?.evidence;
                if found.trials.iter().any(|t| t.record.is_some()) {
                    evidence.push(found);
                }
            }
        }
    }
    let mut goldens = Vec::new();
    for e in &evidence {
        goldens.extend(compare(e, &Selection::default(), &global.golden)?);
    }
    let trend = match history {
        Some(path) => remember(path, asked)?,
        None => Vec::new(),
    };
    render_site(&evidence, &trend, &goldens, &global.site).map_err(|e| Failure::Environment(e.into()))
}

/// Adds the verdicts to a file of JSON lines, and returns all that it holds.
fn remember(path: &Path, evidence: &[Evidence]) -> Result<Vec<HistoryPoint>, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::environment(format!("history {}: {e}", path.display()));
    let text = match fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        other => other.map_err(|e| failed(&e))?,
    };
    let mut points = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let point = serde_json::from_str(line).map_err(|e| failed(&format!("line {}: {e}", i + 1)))?;
        points.push(point);
    }
    let when = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let commit = env!("REPLICA_COMMIT");
    for (e, verdict) in evidence.iter().flat_map(|e| e.verdicts.iter().map(move |v| (e, v))) {
        let first = verdict.comparisons.first();
        points.push(HistoryPoint {
            when,
            commit: if commit.is_empty() { "unknown".to_owned() } else { commit.to_owned() },
            paper: e.paper.id.clone(),
            claim: verdict.claim.clone(),
            outcome: verdict.outcome,
            effect: first.map(|r| r.effect),
            interval: first.map(|r| r.interval),
        });
    }
    let lines = points.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    atomic::write(path, (lines.join("\n") + "\n").as_bytes()).map_err(|e| failed(&e))?;
    Ok(points)
}

fn open(page: &Path) -> Result<(), Failure> {
    let opener = match std::env::consts::OS {
        "macos" => "open",
        "windows" => "explorer",
        _ => "xdg-open",
    };
    let started = Command::new(opener).arg(page).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    started.map(drop).map_err(|e| {
        Failure::environment(format!("cannot start {opener}: {e}; open {} in a browser", page.display()))
    })
}
