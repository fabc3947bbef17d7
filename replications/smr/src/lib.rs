//! State Memory Replay (Qi et al., Findings of ACL 2024): a gate over the last few inputs, in front of a state-space model.
//!
//! - [`replay`]: the module; [`host`]: the models it is plugged into; [`model`]: encoder, blocks, heads
//! - [`state_error`]: the Non-Stable State problem in numbers; [`signals`]: the toy regression of sampling steps
//! - [`config`]: `configs/<scale>.toml`, from which all experiments follow; [`data`] and [`experiments`]: what a trial
//!   sees and does
//!
//! The facts, reported numbers and claims stand in `paper.toml`.

pub mod config;
pub mod data;
pub mod experiments;
pub mod host;
pub mod model;
pub mod replay;
pub mod signals;
pub mod state_error;

use std::sync::Arc;

use replica_core::replication::{ConfigFile, PlanError};
use replica_core::{
    Digest, Measurements, Paper, Plan, Replication, Scale, TrialContext, TrialError, TrialSpec,
};
use replica_datasets::Sources;
use replica_nn::ops::FOREIGN_PRODUCTS;

pub use host::{Host, HostConfig};
pub use model::{Model, ModelConfig};
pub use replay::{Replay, ReplayConfig};

use crate::experiments::Library;

/// The replication.
pub struct Smr {
    paper: Paper,
    library: Library,
}

impl Smr {
    /// With data from `sources`.
    ///
    /// # Panics
    /// The embedded `paper.toml` contradicts itself, which a test excludes.
    pub fn new(sources: Arc<Sources>) -> Self {
        let paper = Paper::parse(include_str!("../paper.toml"), "replications/smr/paper.toml")
            .expect("the embedded paper.toml is well-formed");
        Self { paper, library: Library::new(sources) }
    }
}

impl Replication for Smr {
    fn paper(&self) -> &Paper {
        &self.paper
    }

    fn code(&self) -> Digest {
        Digest::of([env!("REPLICA_SOURCE_DIGEST"), FOREIGN_PRODUCTS].concat().as_bytes())
    }

    fn plan(&self, scale: Scale, config: Option<&ConfigFile>) -> Result<Plan, PlanError> {
        config::plan(scale, config)
    }

    fn run(&self, spec: &TrialSpec, context: &TrialContext) -> Result<Measurements, TrialError> {
        experiments::run(spec, context, &self.library)
    }
}
