//! Assembles what has been measured of a plan.

use std::collections::HashMap;

use crate::evidence::{Evidence, Trial};
use crate::expansion::{Expansion, Selected, select};
use crate::judge::judge;
use crate::plan::Plan;
use crate::record::Record;
use crate::replication::Replication;
use crate::store::{RunStore, StoreError};

/// Evidence, and the records that could not be used for it.
#[derive(Debug)]
pub struct Gathered {
    /// The plan with its records and verdicts.
    pub evidence: Evidence,
    /// Records that were refused; their trials count as not run.
    pub refused: Vec<StoreError>,
}

/// Collects the records of a plan's trials and judges the claims. Main trials of a variant whose tuning is not
/// complete are listed without a record: their config is not known yet.
///
/// # Errors
/// The store cannot be read.
pub fn gather(
    replication: &dyn Replication,
    plan: &Plan,
    backend: &str,
    store: &RunStore,
) -> Result<Gathered, StoreError> {
    let expansion = Expansion::new(replication, plan, backend);
    let mut refused = Vec::new();
    let mut fetch = |spec: &_| match store.get(spec) {
        Err(error @ StoreError::Refused { .. }) => {
            refused.push(error);
            Ok(None)
        }
        other => other,
    };
    let (mut tuning_trials, mut main_trials) = (Vec::new(), Vec::new());
    for experiment in &plan.experiments {
        for variant in &experiment.variants {
            let candidates = expansion.tuning(experiment, variant);
            let mut records: HashMap<String, Record> = HashMap::new();
            for spec in candidates.iter().flat_map(|c| &c.trials) {
                let record = fetch(spec)?;
                if let Some(record) = &record {
                    records.insert(spec.id().to_string(), record.clone());
                }
                tuning_trials.push(Trial { spec: spec.clone(), record });
            }
            let metric = experiment.tuning.as_ref().map_or("", |t| &t.metric);
            let selected = select(&candidates, metric, |spec| records.get(spec.id().as_str()));
            for spec in expansion.main(experiment, variant, selected) {
                let known = matches!(selected, Selected::NotTuned | Selected::Value(_));
                let record = if known { fetch(&spec)? } else { None };
                main_trials.push(Trial { spec, record });
            }
        }
    }
    tuning_trials.append(&mut main_trials);
    let paper = replication.paper().clone();
    let device = if backend == "cpu" { String::new() } else { format!(" --device {backend}") };
    let mut evidence = Evidence {
        command: format!("cargo run --release -- run {} --scale {}{device}", paper.id, plan.scale),
        paper,
        plan: plan.clone(),
        backend: backend.to_owned(),
        trials: tuning_trials,
        verdicts: Vec::new(),
    };
    let values = |experiment: &str, variant: &str, metric: &str| evidence.values(experiment, variant, metric);
    let verdicts = judge(&evidence.paper, plan, values);
    evidence.verdicts = verdicts;
    Ok(Gathered { evidence, refused })
}
