//! Runs programs that a model wrote (paper, data synthesis and evaluation) without trusting them.
//!
//! The authors start `python` on the host for every program. Here [`Pool`] hands programs to worker processes that
//! interpret them with [monty](https://github.com/pydantic/monty), a Python without access to files, network or
//! environment, under [`Limits`]. A worker that dies or does not answer is replaced; the program gets an outcome all
//! the same.

mod interpreter;
mod pool;
mod trace;
mod worker;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use pool::{Pool, PoolError, WorkerCommand};
pub use trace::{Step, trace};
pub use worker::{ServeError, serve};

/// What one program may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Limits {
    /// Bytes of program text.
    pub source: usize,
    /// Instructions of the interpreter. They end a program at the same place on every machine, which wall-clock time
    /// does not; what runs inside one instruction (sorting with a key, a power) is not counted.
    pub steps: u64,
    /// Wall-clock time, for what steps do not count.
    pub time: Duration,
    /// Bytes allocated.
    pub memory: u64,
    /// Depth of calls.
    pub recursion: usize,
    /// Bytes printed.
    pub output: usize,
}

impl Default for Limits {
    /// Thousands of times what programs for school problems need. The authors limit nothing but time, to 30 seconds of
    /// CPython.
    fn default() -> Self {
        Self {
            source: 64 << 10,
            steps: 20_000_000,
            time: Duration::from_secs(10),
            memory: 128 << 20,
            recursion: 1000,
            output: 64 << 10,
        }
    }
}

/// The limit that ended a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// [`Limits::source`].
    Source,
    /// [`Limits::steps`].
    Steps,
    /// [`Limits::time`].
    Time,
    /// [`Limits::memory`].
    Memory,
    /// [`Limits::output`].
    Output,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Limit::Source => "source",
            Limit::Steps => "steps",
            Limit::Time => "time",
            Limit::Memory => "memory",
            Limit::Output => "output",
        })
    }
}

/// What became of a program.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", tag = "status")]
pub enum Outcome {
    /// It ran to its end.
    Finished {
        /// What it printed.
        stdout: String,
    },
    /// It does not parse, or an exception left it.
    Raised {
        /// The exception's class, `SyntaxError` for all that does not parse.
        kind: String,
        /// Its message, which may be empty.
        message: String,
        /// Line of the program, from 1, where known.
        line: Option<u32>,
    },
    /// It needs what this interpreter does not have, where going on would give a wrong value.
    Unsupported {
        /// What is missing.
        what: String,
    },
    /// A limit ended it.
    Limited {
        /// Which.
        limit: Limit,
    },
    /// The worker died on it for no known reason, twice.
    Crashed {
        /// How the worker ended.
        how: String,
    },
}

impl Outcome {
    /// What was printed, if the program ran to its end.
    pub fn stdout(&self) -> Option<&str> {
        match self {
            Outcome::Finished { stdout } => Some(stdout),
            _ => None,
        }
    }

    /// The last line of CPython's error message: what a model is told about its program.
    pub fn last_line(&self) -> Option<String> {
        match self {
            Outcome::Finished { .. } => None,
            Outcome::Raised { kind, message, .. } if message.is_empty() => Some(kind.clone()),
            Outcome::Raised { kind, message, .. } => Some(format!("{kind}: {message}")),
            Outcome::Unsupported { what } => Some(format!("NotImplementedError: {what}")),
            Outcome::Limited { limit } => Some(format!("{limit} limit exceeded")),
            Outcome::Crashed { how } => Some(how.clone()),
        }
    }
}

/// A program whose function `solution()` is called and the result printed, as the authors run it.
pub fn with_call(program: &str) -> String {
    format!("{program}\n\nprint(solution())")
}
