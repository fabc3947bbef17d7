//! The CUDA kernels of `src/ops/cuda` on the CPU: compiled as C++ against an emulator of CUDA and compared with
//! the CPU operations, which are checked by differences, and with plain loops where there is no such operation.
//!
//! This tests mathematics, indices, masks, barriers and reductions on every machine. It says nothing about speed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "kernels/attention.rs"]
mod attention;
#[path = "kernels/elementwise.rs"]
mod elementwise;
#[path = "kernels/emulator.rs"]
mod emulator;
#[path = "kernels/heads.rs"]
mod heads;
#[path = "kernels/losses.rs"]
mod losses;
#[path = "kernels/mega_spade.rs"]
mod mega_spade;
#[path = "kernels/norms.rs"]
mod norms;
#[path = "kernels/positions.rs"]
mod positions;
#[path = "kernels/reference.rs"]
mod reference;
#[path = "kernels/state_space.rs"]
mod state_space;
