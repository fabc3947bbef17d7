//! One run of one variant with one seed: its identity, and what its code is given.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::digest::Digest;
use crate::plan::Scale;

/// Everything that determines a trial's result. Its canonical JSON's SHA-256 is the trial's identity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrialSpec {
    /// Paper id.
    pub paper: String,
    /// Experiment id.
    pub experiment: String,
    /// Variant id.
    pub variant: String,
    /// Scale.
    pub scale: Scale,
    /// Whether it tunes or measures.
    pub role: Role,
    /// Seed of all its random streams.
    pub seed: u64,
    /// `cpu` or `cuda`.
    pub backend: String,
    /// Number format of the weights, e.g. `f32`.
    pub dtype: String,
    /// Every hyper-parameter.
    pub config: serde_json::Value,
    /// Data by name.
    pub data: BTreeMap<String, Digest>,
    /// Digest of the sources that can change the result.
    pub code: Digest,
}

impl TrialSpec {
    /// The trial's identity.
    ///
    /// # Panics
    /// Never: a spec is always representable as JSON.
    pub fn id(&self) -> Digest {
        Digest::of_json(&serde_json::to_value(self).expect("a spec is plain data"))
    }

    /// `paper/experiment/variant`, for people.
    pub fn path(&self) -> String {
        format!("{}/{}/{}", self.paper, self.experiment, self.variant)
    }
}

/// What a trial is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It selects a hyper-parameter on validation data.
    Tuning,
    /// Its result counts.
    Main,
}

/// Where a trial computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// A CUDA device by index.
    Cuda(usize),
}

impl Device {
    /// `cpu` or `cuda`: the part of a device that belongs to a trial's identity.
    pub fn backend(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda(_) => "cuda",
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once(':') {
            None if s == "cpu" => Ok(Self::Cpu),
            None if s == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", index)) => index
                .parse()
                .map(Self::Cuda)
                .map_err(|_| format!("`{index}` is not a device index, as in cuda:0")),
            _ => Err(format!("unknown device `{s}`; cpu, cuda or cuda:N is expected")),
        }
    }
}

/// What a trial's code is given beside its spec. Nothing in it may change the result.
pub struct TrialContext<'a> {
    /// Where to compute.
    pub device: Device,
    /// Told about every step.
    pub progress: &'a dyn Progress,
    /// Set when the run should stop at the next safe point.
    pub cancel: &'a AtomicBool,
    /// Folder for checkpoints of this trial, if they are wanted. It exists.
    pub checkpoints: Option<PathBuf>,
}

impl TrialContext<'_> {
    /// An error once a stop was asked for.
    ///
    /// # Errors
    /// [`TrialError::Interrupted`].
    pub fn check_cancelled(&self) -> Result<(), TrialError> {
        if self.cancel.load(Ordering::Relaxed) { Err(TrialError::Interrupted) } else { Ok(()) }
    }
}

/// Receives a trial's progress.
pub trait Progress: Sync {
    /// `done` of `total` steps are finished; `loss` is the latest, `tokens` the number processed so far.
    fn step(&self, done: u64, total: u64, loss: f32, tokens: u64);
}

/// For runs nobody watches.
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _: u64, _: u64, _: f32, _: u64) {}
}

/// Why a trial left no record.
#[derive(Debug, Error)]
pub enum TrialError {
    /// A stop was asked for; the checkpoint allows to go on.
    #[error("interrupted")]
    Interrupted,
    /// Training left the finite numbers.
    #[error(
        "{what} is {value} at step {step}: training diverged; lower learning_rate (now {learning_rate}) or clip_norm"
    )]
    NonFinite {
        /// Step, counted from 0.
        step: u64,
        /// `loss`, or the name of the tensor whose gradient is not finite.
        what: String,
        /// NaN or an infinity.
        value: f32,
        /// Peak learning rate of the run.
        learning_rate: f64,
    },
    /// Data that is missing, damaged or not what the spec says.
    #[error("data: {0}")]
    Data(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Something that this trial may do without is in none of the places: it is left out with a note, and nothing has failed.
    #[error("{0}")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A device that is not there, or not compiled in.
    #[error("device: {0}")]
    Device(String),
    /// Checkpoints that cannot be written or read.
    #[error("{0}")]
    Storage(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Anything else.
    #[error(transparent)]
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

impl TrialError {
    /// Wraps any other error.
    pub fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failed(error.into())
    }
}
