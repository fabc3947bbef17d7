//! Where results come from: data, machines, code, trials.

use std::collections::BTreeMap;

use replica_core::Evidence;
use replica_core::record::{DataUse, Environment};
use replica_core::trial::Role;
use serde::Serialize;

use super::names;
use super::table::{Cell, Table};
use crate::caption::Captions;
use crate::date;
use crate::number;
use crate::prose::Line;

/// Where a page's results come from.
#[derive(Debug, Serialize)]
pub(crate) struct Provenance {
    data: Option<Table>,
    environment: Option<Table>,
    code: Vec<CodeDigest>,
    trials: Option<Table>,
}

#[derive(Debug, Serialize)]
struct CodeDigest {
    short: String,
    full: String,
    trials: String,
}

/// The provenance of all records.
pub(crate) fn provenance(evidence: &Evidence, captions: &mut Captions) -> Provenance {
    Provenance {
        data: data(evidence, captions),
        environment: environment(evidence, captions),
        code: code(evidence),
        trials: trials(evidence),
    }
}

fn data(evidence: &Evidence, captions: &mut Captions) -> Option<Table> {
    let mut used: Vec<&DataUse> = Vec::new();
    for data in evidence.trials.iter().filter_map(|t| t.record.as_ref()).flat_map(|r| &r.measurements.data) {
        if !used.contains(&data) {
            used.push(data);
        }
    }
    let mut rows: Vec<Vec<Cell>> = used
        .iter()
        .map(|d| {
            vec![
                Cell { class: "code", ..Cell::row(&d.name) },
                Cell::code(d.sha256.short()).titled(d.sha256.as_str()),
                Cell::number(number::bytes(d.bytes as f64))
                    .titled(format!("{} bytes", number::count(d.bytes))),
                Cell::text(&d.source),
                Cell::text(&d.licence),
                Cell::text(if d.verified { "yes" } else { "no: digest not known before" }),
            ]
        })
        .collect();
    let planned: BTreeMap<&String, &replica_core::Digest> =
        evidence.plan.experiments.iter().flat_map(|e| &e.data).collect();
    for (name, digest) in planned {
        if used.iter().all(|d| d.sha256 != *digest) {
            let mut row = vec![
                Cell { class: "code", ..Cell::row(name) },
                Cell::code(digest.short()).titled(digest.as_str()),
            ];
            row.extend([
                Cell::missing("not read yet"),
                Cell::absent(),
                Cell::absent(),
                Cell::text("not yet"),
            ]);
            rows.push(row);
        }
    }
    if rows.is_empty() {
        return None;
    }
    let mut head = vec![Cell::head("Data"), Cell::head("SHA-256"), Cell::number_head("size")];
    head.extend(["source", "licence", "verified"].map(Cell::head));
    Some(Table {
        caption: Some(captions.table("Data that was read.")),
        name: String::new(),
        head: vec![head],
        rows,
        notes: vec![Line::of(
            "SHA-256 of the bytes that were parsed, first 12 digits; “verified” means that the digest was known before and agreed.",
        )],
    })
}

fn environment(evidence: &Evidence, captions: &mut Captions) -> Option<Table> {
    let mut distinct: Vec<(&Environment, usize)> = Vec::new();
    for environment in evidence.trials.iter().filter_map(|t| t.record.as_ref()).map(|r| &r.environment) {
        match distinct.iter_mut().find(|(e, _)| *e == environment) {
            Some((_, n)) => *n += 1,
            None => distinct.push((environment, 1)),
        }
    }
    if distinct.is_empty() {
        return None;
    }
    let row = |name: &str, value: &dyn Fn(&Environment, usize) -> Cell| {
        let mut row = vec![Cell::row(name)];
        row.extend(distinct.iter().map(|(e, n)| value(e, *n)));
        row
    };
    let or_unknown = |s: &str| if s.is_empty() { Cell::text("unknown") } else { Cell::text(s) };
    let rows = vec![
        row("Replica", &|e, _| or_unknown(&e.replica)),
        row("commit", &|e, _| e.commit.as_deref().map_or_else(|| Cell::text("unknown"), Cell::code)),
        row("compiler", &|e, _| or_unknown(&e.rustc)),
        row("platform", &|e, _| or_unknown(&e.platform)),
        row("processor", &|e, _| or_unknown(&e.cpu)),
        row("vector instructions", &|e, _| or_unknown(&e.simd)),
        row("threads a trial", &|e, _| Cell::text(e.threads.to_string())),
        row("accelerator", &|e, _| Cell::text(e.accelerator.as_deref().unwrap_or("none"))),
        row("trials", &|_, n| Cell::text(number::count(n as u64))),
    ];
    let mut head = vec![Cell::head("Property")];
    head.extend((0..distinct.len()).map(|i| {
        Cell::head(if distinct.len() == 1 { "value".to_owned() } else { format!("environment {}", i + 1) })
    }));
    let caption = captions.table("Machines and programs the trials ran on.");
    Some(Table { caption: Some(caption), name: String::new(), head: vec![head], rows, notes: Vec::new() })
}

fn code(evidence: &Evidence) -> Vec<CodeDigest> {
    let mut digests: BTreeMap<&replica_core::Digest, usize> = BTreeMap::new();
    for trial in &evidence.trials {
        *digests.entry(&trial.spec.code).or_default() += 1;
    }
    let line = |(digest, n): (&replica_core::Digest, usize)| CodeDigest {
        short: digest.short().to_owned(),
        full: digest.as_str().to_owned(),
        trials: number::counted(n, "trial"),
    };
    digests.into_iter().map(line).collect()
}

fn trials(evidence: &Evidence) -> Option<Table> {
    let row = |t: &replica_core::evidence::Trial| {
        let record = t.record.as_ref()?;
        let id = t.spec.id();
        let trace = record.measurements.trace.digest();
        let experiment = evidence.plan.experiment(&t.spec.experiment);
        let tuned = experiment.and_then(|e| e.tuning.as_ref()).filter(|_| t.spec.role == Role::Tuning);
        let value = tuned.and_then(|p| t.spec.config.get(&p.parameter)?.as_f64());
        let role = match (t.spec.role, value) {
            (Role::Main, _) => "main".to_owned(),
            (Role::Tuning, Some(value)) => format!("tuning at {}", number::parameter(value)),
            (Role::Tuning, None) => "tuning".to_owned(),
        };
        Some(vec![
            Cell { class: "code", ..Cell::row(id.short()) }.titled(id.as_str()),
            Cell::text(names::experiment(evidence, &t.spec.experiment)),
            Cell::text(names::variant(evidence, &t.spec.experiment, &t.spec.variant)),
            Cell::text(role),
            Cell::number(t.spec.seed.to_string()),
            Cell::text(date::minute(record.started_at)),
            Cell::number(number::duration(record.seconds)),
            if record.measurements.trace.0.is_empty() {
                Cell::absent()
            } else {
                Cell::code(trace.short()).titled(trace.as_str())
            },
        ])
    };
    let rows: Vec<Vec<Cell>> = evidence.trials.iter().filter_map(row).collect();
    let mut head = ["trial", "experiment", "method", "role"].map(Cell::head).to_vec();
    head.push(Cell::number_head("seed"));
    head.push(Cell::head("started"));
    head.push(Cell::number_head("time"));
    head.push(Cell::head("trace"));
    (!rows.is_empty()).then(|| Table {
        caption: None,
        name: "Finished trials".to_owned(),
        head: vec![head],
        rows,
        notes: vec![Line::of(
            "A trial's name is the SHA-256 of everything that determines its result. The trace is the digest of the \
             bits of loss and gradient norm of every step.",
        )],
    })
}

/// Experiment, variant and role of a trial.
type Planned<'a> = (&'a str, &'a str, Role);

/// Trials without a record, as a table.
pub(crate) fn pending(evidence: &Evidence) -> Option<Table> {
    let mut groups: Vec<(Planned, Vec<u64>)> = Vec::new();
    for t in evidence.trials.iter().filter(|t| t.record.is_none()) {
        let key = (t.spec.experiment.as_str(), t.spec.variant.as_str(), t.spec.role);
        match groups.iter_mut().find(|(k, _)| *k == key) {
            Some((_, seeds)) => seeds.push(t.spec.seed),
            None => groups.push((key, vec![t.spec.seed])),
        }
    }
    let row = |((experiment, variant, role), seeds): &(Planned, Vec<u64>)| {
        let mut distinct = seeds.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let list: Vec<String> = distinct.iter().map(u64::to_string).collect();
        vec![
            Cell::row(names::experiment(evidence, experiment)),
            Cell::text(names::variant(evidence, experiment, variant)),
            Cell::text(if *role == Role::Tuning { "tuning" } else { "main" }),
            Cell::text(list.join(", ")),
            Cell::number(number::count(seeds.len() as u64)),
        ]
    };
    let mut head = ["Experiment", "method", "role", "seeds"].map(Cell::head).to_vec();
    head.push(Cell::number_head("trials"));
    (!groups.is_empty()).then(|| Table {
        caption: None,
        name: "Trials that have not run yet".to_owned(),
        head: vec![head],
        rows: groups.iter().map(row).collect(),
        notes: Vec::new(),
    })
}
