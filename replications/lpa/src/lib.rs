//! Low-dimensional Projected Attention (Lv et al., EMNLP 2024): low-rank projections in attention only.

pub mod classifier;
pub mod model;
pub mod projection;
pub mod setting1;
pub mod setting2;

pub use model::{LanguageModel, ModelConfig, Setting};
