//! Whole training steps, timed: in this engine, in PyTorch, and against the machine's own matrix products.
//!
//! - [`workload`]: what is trained, one file each in `workloads/`, with its PyTorch twin in `ci/bench/`
//! - [`trainer`]: a workload ready to take steps; [`serve`] lets another process ask for them
//! - [`twin`]: a process on the other end of that protocol
//! - [`comparison`]: both sides in alternating turns, and what came out
//! - [`product`]: the rate of the engine's matrix products; [`trace`]: what the per-step trace costs
//!
//! Both sides start from one safetensors file and must agree on their losses, so the times are times of the
//! same computation.
//!
//! # Protocol
//! A twin is started as `SCRIPT --weights FILE --threads N` with more options where they apply. It prints
//! `{"ready": true}` once it can train; then it answers `step N` with
//! `{"seconds": [..], "cpu_seconds": [..], "losses": [..]}` after N training steps, and `quit` with
//! `{"peak_rss_mb": .., "baseline_rss_mb": ..}`; processor times may be left out. Between lines it waits for input and leaves the cores alone.

mod clock;
pub mod comparison;
mod error;
pub mod file;
pub mod product;
mod python;
pub mod resident;
pub mod serve;
pub mod spread;
pub mod trace;
pub mod trainer;
pub mod twin;
pub mod workload;
mod workloads;

pub use error::BenchError;
pub use python::{Python, SCRIPTS};
