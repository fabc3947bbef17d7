//! `PAPER[/EXPERIMENT[/VARIANT]]`.

use std::str::FromStr;

use replica_core::expansion::Selection;
use replica_core::{Plan, Replication};

use crate::failure::Failure;
use crate::suggestion::unknown;

/// What a command is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) paper: String,
    pub(crate) selection: Selection,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let parts: Vec<&str> = s.split('/').collect();
        if parts.len() > 3 || parts.iter().any(|p| p.is_empty()) {
            return Err("PAPER, PAPER/EXPERIMENT or PAPER/EXPERIMENT/VARIANT is expected".to_owned());
        }
        let part = |i: usize| parts.get(i).map(|p| (*p).to_owned());
        Ok(Self {
            paper: parts[0].to_owned(),
            selection: Selection { experiment: part(1), variant: part(2) },
        })
    }
}

impl Target {
    /// The paper it names.
    pub(crate) fn find<'a>(
        &self,
        registry: &'a [Box<dyn Replication>],
    ) -> Result<&'a dyn Replication, Failure> {
        let found = registry.iter().find(|r| r.paper().id == self.paper);
        found.map(Box::as_ref).ok_or_else(|| {
            let known: Vec<&str> = registry.iter().map(|r| r.paper().id.as_str()).collect();
            Failure::usage(unknown("paper", &self.paper, &known))
        })
    }

    /// Whether the plan has what it names.
    pub(crate) fn check(&self, plan: &Plan) -> Result<(), Failure> {
        let Some(id) = &self.selection.experiment else { return Ok(()) };
        let Some(experiment) = plan.experiment(id) else {
            let known: Vec<&str> = plan.experiments.iter().map(|e| e.id.as_str()).collect();
            return Err(Failure::usage(unknown(&format!("experiment of {}", self.paper), id, &known)));
        };
        let Some(variant) = &self.selection.variant else { return Ok(()) };
        if experiment.variant(variant).is_none() {
            let known: Vec<&str> = experiment.variants.iter().map(|v| v.id.as_str()).collect();
            return Err(Failure::usage(unknown(&format!("variant of {}/{id}", self.paper), variant, &known)));
        }
        Ok(())
    }
}
