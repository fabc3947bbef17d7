//! A paper's plan with what has been measured of it: the input of a report.

use serde::{Deserialize, Serialize};

use crate::paper::Paper;
use crate::plan::Plan;
use crate::record::Record;
use crate::trial::{Role, TrialSpec};
use crate::verdict::Verdict;

/// A paper at one scale on one backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// The paper's facts and claims.
    pub paper: Paper,
    /// Its experiments.
    pub plan: Plan,
    /// `cpu` or `cuda`.
    pub backend: String,
    /// All trials of the plan, whether they have run or not; tuning trials first.
    pub trials: Vec<Trial>,
    /// One verdict a claim, in the paper's order.
    pub verdicts: Vec<Verdict>,
    /// The command that reproduces this evidence.
    pub command: String,
}

/// A trial and its record, if it has run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// What it is.
    pub spec: TrialSpec,
    /// What it measured.
    pub record: Option<Record>,
}

impl Evidence {
    /// Records of the main trials of a variant, by ascending seed.
    pub fn records(&self, experiment: &str, variant: &str) -> Vec<&Record> {
        let mut records: Vec<&Record> = self
            .trials
            .iter()
            .filter(|t| {
                t.spec.role == Role::Main && t.spec.experiment == experiment && t.spec.variant == variant
            })
            .filter_map(|t| t.record.as_ref())
            .collect();
        records.sort_by_key(|r| r.spec.seed);
        records
    }

    /// Records of the tuning trials of a variant.
    pub fn tuning_records(&self, experiment: &str, variant: &str) -> Vec<&Record> {
        let tuning = |t: &&Trial| {
            t.spec.role == Role::Tuning && t.spec.experiment == experiment && t.spec.variant == variant
        };
        self.trials.iter().filter(tuning).filter_map(|t| t.record.as_ref()).collect()
    }

    /// A metric of a variant's main trials as (seed, value), by ascending seed.
    pub fn values(&self, experiment: &str, variant: &str, metric: &str) -> Vec<(u64, f64)> {
        let value = |r: &Record| Some((r.spec.seed, *r.measurements.metrics.get(metric)?));
        self.records(experiment, variant).into_iter().filter_map(value).collect()
    }
}
