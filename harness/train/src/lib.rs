//! What turns a model and data into a trained model: data order, optimiser, schedule, loop, checkpoints,
//! evaluation, generation.
//!
//! A run is a function of its seed: kill it, resume it, change the number of threads, and every loss has
//! the same bits.

pub mod adamw;
pub mod blocks;
pub mod checkpoint;
pub mod evaluate;
pub mod examples;
pub mod generate;
pub mod recipe;
pub mod schedule;
pub mod training;

pub use adamw::AdamW;
pub use blocks::{Batch, Blocks};
pub use evaluate::{Perplexity, evaluate};
pub use examples::Examples;
pub use recipe::{Precision, Recipe, Search};
pub use schedule::learning_rate;
pub use training::{Best, Log, train};
