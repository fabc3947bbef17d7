//! Records against goldens.

use std::path::Path;

use replica_core::Evidence;
use replica_core::expansion::Selection;
use replica_core::golden::{Golden, GoldenError};
use replica_reports::{GoldenState, GoldenStatus};

/// Compares the selected experiments with their goldens.
pub(crate) fn compare(
    evidence: &Evidence,
    selection: &Selection,
    root: &Path,
) -> Result<Vec<GoldenStatus>, GoldenError> {
    let mut statuses = Vec::new();
    for experiment in &evidence.plan.experiments {
        if selection.experiment.as_ref().is_some_and(|id| *id != experiment.id) {
            continue;
        }
        let path =
            Golden::path(root, &evidence.paper.id, &experiment.id, evidence.plan.scale, &evidence.backend);
        let has_run = experiment.variants.iter().any(|v| !evidence.records(&experiment.id, &v.id).is_empty());
        let (state, detail) = match Golden::read(&path)? {
            // an experiment that runs only on request need not have been asked for
            Some(_) if !has_run && experiment.on_request && selection.experiment.is_none() => {
                (GoldenState::Absent, "has not been run; it runs only when named".to_owned())
            }
            Some(golden) => {
                let changes = golden.check(evidence);
                let failed = changes.iter().any(replica_core::golden::Change::is_failure);
                let detail: Vec<String> = changes.iter().map(ToString::to_string).collect();
                (if failed { GoldenState::Differs } else { GoldenState::Agrees }, detail.join("; "))
            }
            None if experiment.exclusive => {
                (GoldenState::Absent, "times and memory are shown, not compared".to_owned())
            }
            None if has_run => (GoldenState::Absent, "propose one with `replica bless`".to_owned()),
            None => (GoldenState::Absent, "has not been run".to_owned()),
        };
        statuses.push(GoldenStatus {
            paper: evidence.paper.id.clone(),
            experiment: experiment.id.clone(),
            scale: evidence.plan.scale,
            backend: evidence.backend.clone(),
            state,
            detail,
        });
    }
    Ok(statuses)
}
