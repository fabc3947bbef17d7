//! Every operation on a GPU against the CPU. On a machine without a GPU the tests say so and pass.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "cuda/attention.rs"]
mod attention;
#[path = "cuda/compared.rs"]
mod compared;
#[path = "cuda/layers.rs"]
mod layers;
#[path = "cuda/losses.rs"]
mod losses;
#[path = "cuda/operations.rs"]
mod operations;
#[path = "cuda/state_space.rs"]
mod state_space;
#[path = "cuda/tape.rs"]
mod tape;
