//! What things are called in evidence, with the id where they have no other name.

use replica_core::claim::Direction;
use replica_core::plan::Metric;
use replica_core::{Evidence, Experiment};

/// Label of a variant.
pub(crate) fn variant(evidence: &Evidence, experiment: &str, variant: &str) -> String {
    let found = evidence.plan.experiment(experiment).and_then(|e| e.variant(variant));
    found.map_or_else(|| variant.to_owned(), |v| v.label.clone())
}

/// Title of an experiment.
pub(crate) fn experiment(evidence: &Evidence, id: &str) -> String {
    evidence.plan.experiment(id).map_or_else(|| id.to_owned(), |e| e.title.clone())
}

/// A metric of an experiment; one that the plan does not list has three digits and no unit.
pub(crate) fn metric(experiment: Option<&Experiment>, name: &str) -> Metric {
    let listed = experiment.and_then(|e| e.metrics.iter().find(|m| m.name == name));
    listed.cloned().unwrap_or_else(|| Metric {
        name: name.to_owned(),
        label: spelled(name),
        unit: String::new(),
        better: None,
        digits: 3,
    })
}

/// `valid_loss` as `valid loss`.
pub(crate) fn spelled(name: &str) -> String {
    name.replace('_', " ")
}

/// Label with the unit, if there is one.
pub(crate) fn with_unit(metric: &Metric) -> String {
    if metric.unit.is_empty() { metric.label.clone() } else { format!("{} ({})", metric.label, metric.unit) }
}

/// Label with unit and an arrow to the better side.
pub(crate) fn with_direction(metric: &Metric) -> String {
    let arrow = match metric.better {
        Some(Direction::Lower) => " ↓",
        Some(Direction::Higher) => " ↑",
        None => "",
    };
    format!("{}{arrow}", with_unit(metric))
}
