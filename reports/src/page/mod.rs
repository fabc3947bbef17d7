//! What pages say: serialisable contexts, made from evidence. Templates only lay them out.

pub(crate) mod badge;
pub(crate) mod configuration;
pub(crate) mod curves;
pub(crate) mod effect;
mod examples;
pub(crate) mod index;
pub(crate) mod names;
pub(crate) mod paper;
pub(crate) mod provenance;
pub(crate) mod results;
pub(crate) mod setup;
pub(crate) mod table;
pub(crate) mod trend;
pub(crate) mod tuning;
pub(crate) mod verdict;

use replica_core::{Evidence, Scale};

/// Evidence, and the page that shows it.
#[derive(Clone, Debug)]
pub(crate) struct Sheet<'a> {
    /// What is shown.
    pub evidence: &'a Evidence,
    /// File name of its page.
    pub file: String,
}

impl Sheet<'_> {
    /// `scale small on CPU`.
    pub fn setting(&self) -> String {
        format!("scale {} on {}", self.evidence.plan.scale, self.backend())
    }

    /// The backend for people.
    pub fn backend(&self) -> String {
        match self.evidence.backend.as_str() {
            "cpu" => "CPU".to_owned(),
            "cuda" => "CUDA".to_owned(),
            other => other.to_owned(),
        }
    }

    /// Whether claims may not be judged from it.
    pub fn is_smoke(&self) -> bool {
        self.evidence.plan.scale == Scale::Smoke
    }
}
