//! How the latest records compare with the reviewed ones.

use replica_core::Scale;
use serde::{Deserialize, Serialize};

/// The state of one experiment's golden.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GoldenStatus {
    /// Paper id.
    pub paper: String,
    /// Experiment id.
    pub experiment: String,
    /// Scale of the golden.
    pub scale: Scale,
    /// Backend of the golden.
    pub backend: String,
    /// Whether the records agree with it.
    pub state: GoldenState,
    /// What moved, or why there is nothing to compare; may be empty.
    pub detail: String,
}

/// Whether records agree with a golden.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GoldenState {
    /// Every metric lies in its band and every data digest is the reviewed one.
    Agrees,
    /// A metric left its band, or data changed.
    Differs,
    /// There is no golden, or nothing to compare with it.
    Absent,
}

impl GoldenState {
    /// The word shown to people.
    pub fn label(self) -> &'static str {
        match self {
            Self::Agrees => "agrees",
            Self::Differs => "differs",
            Self::Absent => "no golden",
        }
    }
}
