//! The words of the project: what a replication is, what a run leaves behind, and how a claim is judged.
//!
//! - [`paper`]: a publication's facts, reported numbers and [`claim`]s, read from its `paper.toml`
//! - [`plan`]: the experiments of a paper at a scale; [`trial`]: one run of one variant with one seed
//! - [`record`]: what a trial leaves behind
//! - [`verdict`]: what measurements say about a claim; [`evidence`]: a plan with its records
//!
//! This crate knows no model, no data set and no template.

pub mod atomic;
pub mod claim;
#[cfg(feature = "fixture")]
pub mod conformance;
pub mod diff;
pub mod digest;
pub mod environment;
pub mod evidence;
pub mod expansion;
#[cfg(feature = "fixture")]
pub mod fixture;
pub mod gather;
pub mod golden;
pub mod judge;
pub mod memory;
mod number;
pub mod paper;
pub mod plan;
pub mod record;
pub mod replication;
pub mod runner;
pub mod seed;
pub mod statistics;
pub mod store;
pub mod trial;
pub mod verdict;

pub use claim::{Claim, Comparison, Direction};
pub use digest::Digest;
pub use evidence::Evidence;
pub use gather::gather;
pub use judge::judge;
pub use paper::Paper;
pub use plan::{Experiment, Plan, Scale, Variant};
pub use record::{Measurements, Record};
pub use replication::Replication;
pub use runner::Runner;
pub use seed::Seed;
pub use store::RunStore;
pub use trial::{TrialContext, TrialError, TrialSpec};
pub use verdict::{Outcome, Verdict};
