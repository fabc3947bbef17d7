//! The words of the project.

pub mod digest;
pub mod seed;

pub use digest::Digest;
pub use seed::Seed;
