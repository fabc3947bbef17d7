//! From a plan to trials: the tuning trials of each variant, and its main trials once a value is selected.

use serde_json::{Value, json};

use crate::digest::Digest;
use crate::plan::{Experiment, Plan, Scale, Variant};
use crate::record::Record;
use crate::replication::Replication;
use crate::statistics::mean;
use crate::trial::{Role, TrialSpec};

/// The part of a plan that somebody asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// One experiment, or all that need not be asked for by name.
    pub experiment: Option<String>,
    /// One variant of it, or all.
    pub variant: Option<String>,
}

impl Selection {
    /// Whether the variant belongs to it.
    pub fn includes(&self, experiment: &Experiment, variant: &Variant) -> bool {
        let asked = match &self.experiment {
            Some(id) => *id == experiment.id,
            None => !experiment.on_request,
        };
        asked && self.variant.as_ref().is_none_or(|id| *id == variant.id)
    }
}

/// Makes the trials of a plan on a backend.
#[derive(Clone, Debug)]
pub struct Expansion {
    paper: String,
    code: Digest,
    scale: Scale,
    backend: String,
}

/// A value of the tuned hyper-parameter, with the trials that judge it.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The value.
    pub value: f64,
    /// One trial a tuning seed.
    pub trials: Vec<TrialSpec>,
}

/// The outcome of a variant's tuning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Selected {
    /// Nothing is tuned: the config is used as it stands.
    NotTuned,
    /// The best value.
    Value(f64),
    /// Some tuning trial has not run.
    Pending,
    /// Every value diverged.
    AllDiverged,
}

impl Expansion {
    /// For the trials of a paper's plan.
    pub fn new(replication: &dyn Replication, plan: &Plan, backend: &str) -> Self {
        Self {
            paper: replication.paper().id.clone(),
            code: replication.code(),
            scale: plan.scale,
            backend: backend.to_owned(),
        }
    }

    /// The tuning trials of a variant, by candidate value; none if nothing is tuned.
    pub fn tuning(&self, experiment: &Experiment, variant: &Variant) -> Vec<Candidate> {
        let Some(tuning) = &experiment.tuning else { return Vec::new() };
        let candidate = |value: f64| {
            let mut config = variant.config.clone();
            for (key, changed) in &tuning.overrides {
                set(&mut config, key, changed.clone());
            }
            set(&mut config, &tuning.parameter, json!(value));
            let trial = |seed: &u64| self.spec(experiment, variant, Role::Tuning, *seed, config.clone());
            Candidate { value, trials: tuning.seeds.iter().map(trial).collect() }
        };
        tuning.values.iter().map(|value| candidate(*value)).collect()
    }

    /// The main trials of a variant, one a seed.
    pub fn main(&self, experiment: &Experiment, variant: &Variant, selected: Selected) -> Vec<TrialSpec> {
        let mut config = variant.config.clone();
        if let (Selected::Value(value), Some(tuning)) = (selected, &experiment.tuning) {
            set(&mut config, &tuning.parameter, json!(value));
        }
        let trial = |seed: &u64| self.spec(experiment, variant, Role::Main, *seed, config.clone());
        experiment.seeds.iter().map(trial).collect()
    }

    fn spec(
        &self,
        experiment: &Experiment,
        variant: &Variant,
        role: Role,
        seed: u64,
        config: Value,
    ) -> TrialSpec {
        TrialSpec {
            paper: self.paper.clone(),
            experiment: experiment.id.clone(),
            variant: variant.id.clone(),
            scale: self.scale,
            role,
            seed,
            backend: self.backend.clone(),
            // a config that says nothing trains in single precision
            dtype: config.get("dtype").and_then(Value::as_str).unwrap_or("f32").to_owned(),
            config,
            data: experiment.data.clone(),
            code: self.code.clone(),
        }
    }
}

/// Selects among the candidates: the lowest mean of `metric` over the tuning seeds wins, the smaller value on
/// a tie. A value with a diverged trial has an infinite mean and never wins.
pub fn select<'a>(
    candidates: &[Candidate],
    metric: &str,
    mut record: impl FnMut(&TrialSpec) -> Option<&'a Record>,
) -> Selected {
    if candidates.is_empty() {
        return Selected::NotTuned;
    }
    let mut best: Option<(f64, f64)> = None;
    for candidate in candidates {
        let mut results = Vec::new();
        for trial in &candidate.trials {
            match record(trial).and_then(|r| r.measurements.metrics.get(metric)) {
                Some(result) => results.push(*result),
                None => return Selected::Pending,
            }
        }
        let result = (mean(&results), candidate.value);
        let better = |b: &(f64, f64)| result.0 < b.0 || (result.0 == b.0 && result.1 < b.1);
        if result.0.is_finite() && best.as_ref().is_none_or(better) {
            best = Some(result);
        }
    }
    best.map_or(Selected::AllDiverged, |(_, value)| Selected::Value(value))
}

fn set(config: &mut Value, key: &str, value: Value) {
    if let Value::Object(map) = config {
        map.insert(key.to_owned(), value);
    }
}
