//! A paper with its plan, as the options ask for it.

use std::fs;
use std::path::Path;

use replica_core::replication::{ConfigFile, PlanError};
use replica_core::{Evidence, Plan, Replication, RunStore, gather};

use crate::Session;
use crate::arguments::{PlanOptions, Setting};
use crate::failure::Failure;
use crate::target::Target;

pub(crate) struct Study<'a> {
    pub(crate) replication: &'a dyn Replication,
    pub(crate) plan: Plan,
}

/// The papers and plans that the options name. A paper that was not named may lack the scale.
pub(crate) fn studies<'a>(session: &Session<'a>, options: &PlanOptions) -> Result<Vec<Study<'a>>, Failure> {
    let Some(target) = &options.target else {
        if options.setting.config.is_some() {
            return Err(Failure::usage(
                "--config belongs to one paper: name it, as in `replica run lpa --config FILE`",
            ));
        }
        let mut studies = Vec::new();
        for replication in session.registry {
            match plan(replication.as_ref(), &options.setting) {
                Err(PlanError::NoScale { .. }) => {}
                other => studies.push(Study { replication: replication.as_ref(), plan: other? }),
            }
        }
        return Ok(studies);
    };
    let study = one(session, target, &options.setting)?;
    Ok(vec![study])
}

/// The paper and plan that a target names.
pub(crate) fn one<'a>(
    session: &Session<'a>,
    target: &Target,
    setting: &Setting,
) -> Result<Study<'a>, Failure> {
    let replication = target.find(session.registry)?;
    let plan = match &setting.config {
        Some(path) => configured(replication, setting, path)?,
        None => plan(replication, setting)?,
    };
    target.check(&plan)?;
    Ok(Study { replication, plan })
}

fn configured(replication: &dyn Replication, setting: &Setting, path: &Path) -> Result<Plan, Failure> {
    let text = fs::read_to_string(path).map_err(|e| {
        Failure::environment(format!("cannot read the configuration {}: {e}", path.display()))
    })?;
    let file = ConfigFile { path: path.display().to_string(), text };
    Ok(with_seeds(replication.plan(setting.scale(), Some(&file))?, setting))
}

fn plan(replication: &dyn Replication, setting: &Setting) -> Result<Plan, PlanError> {
    Ok(with_seeds(replication.plan(setting.scale(), None)?, setting))
}

fn with_seeds(plan: Plan, setting: &Setting) -> Plan {
    match setting.seeds {
        Some(n) => plan.with_seeds(n.into()),
        None => plan,
    }
}

impl Study<'_> {
    /// What has been measured, telling the person about records that were refused.
    pub(crate) fn evidence(
        &self,
        session: &mut Session,
        store: &RunStore,
        backend: &str,
    ) -> Result<Evidence, Failure> {
        let gathered = gather(self.replication, &self.plan, backend, store)?;
        for refused in &gathered.refused {
            session.streams.problem(&format!("warning: {refused}"));
        }
        Ok(gathered.evidence)
    }
}
