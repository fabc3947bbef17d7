//! `replica list`

use replica_core::expansion::Selection;
use replica_core::plan::{Experiment, Variant};
use replica_core::trial::Role;
use replica_core::{Evidence, RunStore};
use serde_json::{Value, json};

use crate::Session;
use crate::arguments::ListOptions;
use crate::commands::claims;
use crate::failure::Failure;
use crate::streams::Tone;
use crate::study::studies;
use crate::table::Table;

pub(crate) fn list(session: &mut Session, options: &ListOptions) -> Result<(), Failure> {
    let store = RunStore::at(&session.arguments.global.runs);
    let selection = options.plan.target.as_ref().map_or_else(Selection::default, |t| t.selection.clone());
    let mut all = Vec::new();
    for study in studies(session, &options.plan)? {
        all.push(study.evidence(session, &store, options.plan.setting.device.backend())?);
    }
    if session.arguments.global.json {
        let papers: Vec<Value> = all.iter().map(|e| json(e, &selection)).collect();
        return session.streams.json(&json!({ "papers": papers }));
    }
    if all.is_empty() {
        session.streams.result("no paper has this scale");
    }
    for evidence in &all {
        show(session, evidence, &selection);
    }
    Ok(())
}

fn shown(selection: &Selection, experiment: &Experiment, variant: &Variant) -> bool {
    selection.experiment.as_ref().is_none_or(|id| *id == experiment.id)
        && selection.variant.as_ref().is_none_or(|id| *id == variant.id)
}

fn count(evidence: &Evidence, experiment: &str, variant: &str, role: Role) -> (usize, usize) {
    let trials: Vec<bool> = evidence
        .trials
        .iter()
        .filter(|t| t.spec.role == role && t.spec.experiment == experiment && t.spec.variant == variant)
        .map(|t| t.record.is_some())
        .collect();
    (trials.iter().filter(|run| **run).count(), trials.len())
}

fn show(session: &mut Session, evidence: &Evidence, selection: &Selection) {
    let paper = &evidence.paper;
    let heading = format!("{}: {} ({} {})", paper.id, paper.title, paper.venue, paper.year);
    let run = evidence.trials.iter().filter(|t| t.record.is_some()).count();
    let (scale, backend, of) = (evidence.plan.scale, &evidence.backend, evidence.trials.len());
    let heading = session.streams.tone(Tone::Heading, &heading);
    session.streams.result(&heading);
    session.streams.result(&format!(
        "scale {scale}, backend {backend}: {run} of {of} trials have been run with this code"
    ));
    let mut table = Table::new(&["experiment", "variant", "tuning", "seeds", ""]);
    for experiment in &evidence.plan.experiments {
        for variant in experiment.variants.iter().filter(|v| shown(selection, experiment, v)) {
            let state = |role| match count(evidence, &experiment.id, &variant.id, role) {
                (_, 0) => "-".to_owned(),
                (run, all) => format!("{run}/{all}"),
            };
            let note = match (experiment.on_request, experiment.exclusive) {
                (true, _) => "runs only when named",
                (false, true) => "runs alone",
                (false, false) => "",
            };
            let (tuning, main) = (state(Role::Tuning), state(Role::Main));
            table.row([experiment.id.clone(), variant.id.clone(), tuning, main, note.to_owned()]);
        }
    }
    let mut claims = Table::new(&["claim", "verdict", "statement"]);
    for (claim, verdict) in paper.claims.iter().zip(&evidence.verdicts) {
        claims.row([
            claim.id.clone(),
            claims::word(session.streams, verdict.outcome),
            claim.statement.clone(),
        ]);
    }
    for table in [table, claims].iter().filter(|t| !t.is_empty()) {
        for line in table.lines() {
            session.streams.result(&line);
        }
    }
}

fn json(evidence: &Evidence, selection: &Selection) -> Value {
    let variant = |experiment: &Experiment, variant: &Variant| {
        let counts = |role| {
            let (run, planned) = count(evidence, &experiment.id, &variant.id, role);
            json!({ "run": run, "planned": planned })
        };
        let records: Vec<Value> = evidence
            .records(&experiment.id, &variant.id)
            .into_iter()
            .map(|r| json!({ "seed": r.spec.seed, "id": r.id, "metrics": r.measurements.metrics.keys().collect::<Vec<_>>() }))
            .collect();
        json!({
            "id": variant.id,
            "label": variant.label,
            "tuning": counts(Role::Tuning),
            "main": counts(Role::Main),
            "records": records,
        })
    };
    let experiments: Vec<Value> = evidence
        .plan
        .experiments
        .iter()
        .map(|e| {
            let variants = e.variants.iter().filter(|v| shown(selection, e, v));
            json!({
                "id": e.id,
                "title": e.title,
                "on_request": e.on_request,
                "exclusive": e.exclusive,
                "variants": variants.map(|v| variant(e, v)).collect::<Vec<_>>(),
            })
        })
        .collect();
    let claims = evidence.paper.claims.iter().zip(&evidence.verdicts).map(|(claim, verdict)| {
        json!({ "id": claim.id, "statement": claim.statement, "outcome": verdict.outcome, "reason": verdict.reason })
    });
    json!({
        "id": evidence.paper.id,
        "title": evidence.paper.title,
        "scale": evidence.plan.scale,
        "backend": evidence.backend,
        "experiments": experiments,
        "claims": claims.collect::<Vec<_>>(),
    })
}
