//! What can go wrong in a bench.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a bench gave no number.
#[derive(Debug, Error)]
pub enum BenchError {
    /// The engine refused.
    #[error("{workload}: {source}")]
    Engine {
        /// Name of the workload.
        workload: String,
        /// What the engine says.
        source: candle_core::Error,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file is not what was written.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A twin could not be started, stopped early, or said something that is not in the protocol.
    #[error("{program}: {problem}")]
    Twin {
        /// What was started.
        program: String,
        /// What happened, with the end of what it wrote to standard error.
        problem: String,
    },
}

impl BenchError {
    /// For `map_err`.
    pub(crate) fn engine(workload: &str) -> impl Fn(candle_core::Error) -> Self + '_ {
        move |source| Self::Engine { workload: workload.to_owned(), source }
    }

    /// For `map_err`.
    pub(crate) fn io(path: &std::path::Path) -> impl Fn(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
