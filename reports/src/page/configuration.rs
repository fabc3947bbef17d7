//! Every hyper-parameter of every variant, with what differs from the baseline marked.

use std::collections::BTreeMap;

use replica_core::{Evidence, Experiment};
use serde_json::Value;

use super::table::{Cell, Table};
use crate::number;
use crate::plot::STYLES;
use crate::prose::Line;

/// The hyper-parameters of an experiment: those the main trials had, or the planned ones before any has run.
pub(crate) fn table(evidence: &Evidence, experiment: &Experiment) -> Table {
    let configs: Vec<BTreeMap<String, String>> = experiment
        .variants
        .iter()
        .map(|v| {
            let records = evidence.records(&experiment.id, &v.id);
            let mut flat = BTreeMap::new();
            flatten("", records.first().map_or(&v.config, |r| &r.spec.config), &mut flat);
            flat
        })
        .collect();
    let mut keys: Vec<&String> = configs.iter().flat_map(BTreeMap::keys).collect();
    keys.sort();
    keys.dedup();
    let row = |key: &&String| {
        let baseline = configs.first().and_then(|c| c.get(*key));
        let mut row = vec![Cell { class: "code", ..Cell::row(key.as_str()) }];
        row.extend(configs.iter().map(|c| {
            let value = c.get(*key);
            let cell = value.map_or_else(|| Cell { class: "code missing", ..Cell::absent() }, Cell::code);
            Cell { changed: value != baseline, ..cell }
        }));
        row
    };
    let mut head = vec![Cell::head("Hyper-parameter")];
    head.extend(experiment.variants.iter().enumerate().map(|(i, v)| Cell::head(&v.label).styled(i % STYLES)));
    Table {
        caption: None,
        name: format!("Hyper-parameters of {}", experiment.title),
        head: vec![head],
        rows: keys.iter().map(row).collect(),
        notes: vec![Line::of("≠ marks a value that differs from the first method's.")],
    }
}

fn flatten(prefix: &str, value: &Value, out: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&key, value, out);
            }
        }
        Value::String(s) => drop(out.insert(named(prefix), s.clone())),
        Value::Number(n) if n.is_f64() => {
            drop(out.insert(named(prefix), n.as_f64().map_or_else(|| n.to_string(), number::parameter)));
        }
        other => drop(out.insert(named(prefix), other.to_string())),
    }
}

fn named(prefix: &str) -> String {
    if prefix.is_empty() { "(all)".to_owned() } else { prefix.to_owned() }
}
