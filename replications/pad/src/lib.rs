//! Program-aided Distillation (Zhu et al., NAACL 2024): a small model learns to write programs that solve problems,
//! from a large model's programs that were run and found right.
//!
//! - [`exec`]: runs programs in worker processes under limits; [`judge`]: whether what they printed is right
//! - [`marks`]: programs from GSM8K's calculator marks
//! - [`synthesis`]: programs that are run and found right become data
//! - [`teacher`]: programs from a model behind an HTTP interface
//! - [`problems`]: word problems from templates
//! - [`expressions`], [`equations`]: equations as programs and chains of thought
//! - [`renumbered`]: published problems with new numbers
//! - [`published`]: SVAMP, MultiArith, ASDiv, GSM-Hard, BIG-Bench Hard, and programs that a large model wrote
//! - [`symbolic`]: coin flips and last letters
//! - [`variants`], [`corruption`]: other programs for the same question, and wrong ones
//! - [`injection`]: broken programs for self-refinement
//! - [`verify`]: beam search that scores finished lines

pub mod checkpoint;
pub mod config;
pub mod corruption;
pub mod csv;
pub mod equations;
pub mod exam;
pub mod exec;
pub mod experiments;
pub mod expressions;
pub mod injection;
pub mod judge;
pub mod lesson;
pub mod marks;
pub mod problems;
pub mod published;
pub mod renumbered;
pub mod source;
pub mod student;
pub mod symbolic;
pub mod synthesis;
pub mod teacher;
pub mod tokens;
pub mod variants;
pub mod verify;
pub mod vocabulary;

use std::sync::Arc;

use replica_core::replication::{ConfigFile, PlanError};
use replica_core::{
    Digest, Measurements, Paper, Plan, Replication, Scale, TrialContext, TrialError, TrialSpec,
};
use replica_datasets::Sources;
use replica_nn::ops::FOREIGN_PRODUCTS;

use crate::exec::WorkerCommand;
use crate::experiments::School;

/// The replication.
pub struct Pad {
    paper: Paper,
    sources: Arc<Sources>,
    school: School,
}

impl Pad {
    /// With data from `sources` and programs in workers started by `worker`.
    ///
    /// # Panics
    /// The embedded `paper.toml` contradicts itself, which a test excludes.
    pub fn new(sources: Arc<Sources>, worker: WorkerCommand) -> Self {
        let paper = Paper::parse(include_str!("../paper.toml"), "replications/pad/paper.toml")
            .expect("the embedded paper.toml is well-formed");
        Self { paper, school: School::new(sources.clone(), worker), sources }
    }
}

impl Replication for Pad {
    fn paper(&self) -> &Paper {
        &self.paper
    }

    fn code(&self) -> Digest {
        Digest::of([env!("REPLICA_SOURCE_DIGEST"), FOREIGN_PRODUCTS].concat().as_bytes())
    }

    fn plan(&self, scale: Scale, config: Option<&ConfigFile>) -> Result<Plan, PlanError> {
        config::plan(scale, config, &self.sources)
    }

    fn run(&self, spec: &TrialSpec, context: &TrialContext) -> Result<Measurements, TrialError> {
        self.school.run(spec, context)
    }
}
