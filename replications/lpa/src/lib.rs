//! Low-dimensional Projected Attention (Lv et al., EMNLP 2024): low-rank projections in attention only.
//!
//! - [`projection`]: the low-dimensional module; [`setting1`] and [`setting2`]: the two model families
//! - [`config`]: `configs/<scale>.toml`, from which all experiments follow
//! - [`experiments`]: what a trial trains, counts or times
//!
//! The facts, reported numbers and claims stand in `paper.toml`.

pub mod classifier;
pub mod config;
pub mod experiments;
pub mod model;
pub mod projection;
pub mod setting1;
pub mod setting2;

use std::sync::Arc;

use replica_core::replication::{ConfigFile, PlanError};
use replica_core::{
    Digest, Measurements, Paper, Plan, Replication, Scale, TrialContext, TrialError, TrialSpec,
};
use replica_datasets::Sources;
use replica_nn::ops::FOREIGN_PRODUCTS;

pub use model::{LanguageModel, ModelConfig, Setting};

use crate::experiments::Corpora;

/// The replication.
pub struct Lpa {
    paper: Paper,
    corpora: Corpora,
}

impl Lpa {
    /// With data from `sources`.
    ///
    /// # Panics
    /// The embedded `paper.toml` contradicts itself, which a test excludes.
    pub fn new(sources: Arc<Sources>) -> Self {
        let paper = Paper::parse(include_str!("../paper.toml"), "replications/lpa/paper.toml")
            .expect("the embedded paper.toml is well-formed");
        Self { paper, corpora: Corpora::new(sources) }
    }
}

impl Replication for Lpa {
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
        experiments::run(spec, context, &self.corpora)
    }
}
