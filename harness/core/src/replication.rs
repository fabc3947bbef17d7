//! What a paper's crate implements.

use thiserror::Error;

use crate::digest::Digest;
use crate::paper::Paper;
use crate::plan::{Plan, Scale};
use crate::record::Measurements;
use crate::trial::{TrialContext, TrialError, TrialSpec};

/// A paper that can be re-run.
pub trait Replication: Send + Sync {
    /// Its facts and claims.
    fn paper(&self) -> &Paper;

    /// Digest of the sources that can change its results, computed when they were compiled.
    fn code(&self) -> Digest;

    /// Its experiments at a scale; `config` replaces the scale's built-in hyper-parameters.
    ///
    /// # Errors
    /// A configuration with an unknown key, or a value that makes no sense.
    fn plan(&self, scale: Scale, config: Option<&ConfigFile>) -> Result<Plan, PlanError>;

    /// Runs one trial. The current rayon pool is the trial's.
    ///
    /// # Errors
    /// See [`TrialError`].
    fn run(&self, spec: &TrialSpec, context: &TrialContext) -> Result<Measurements, TrialError>;
}

/// A configuration file in memory.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// Where it was read, for messages.
    pub path: String,
    /// TOML.
    pub text: String,
}

impl ConfigFile {
    /// The given file, or else the one that is built into a paper's crate; `builtin` has their texts in the order of
    /// [`Scale::ALL`].
    pub fn of_scale(paper: &str, scale: Scale, given: Option<&Self>, builtin: [&str; 4]) -> Self {
        let of = |text: &str| Self {
            path: format!("replications/{paper}/configs/{scale}.toml"),
            text: text.to_owned(),
        };
        given.cloned().unwrap_or_else(|| of(builtin[scale as usize]))
    }
}

/// Why a plan cannot be made.
#[derive(Debug, Error)]
pub enum PlanError {
    /// The configuration makes no sense.
    #[error("{path}: {problem}")]
    Config {
        /// The file.
        path: String,
        /// Key, value, and what is allowed.
        problem: String,
    },
    /// Data the plan needs to know about is not in the catalogue.
    #[error("{0}")]
    Data(String),
    /// The paper has no configuration for the scale.
    #[error("{paper} has no configuration for scale `{scale}`")]
    NoScale {
        /// Paper id.
        paper: String,
        /// The scale.
        scale: Scale,
    },
}
