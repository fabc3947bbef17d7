//! What earlier runs found: the nightly trend.

use replica_core::Outcome;
use serde::{Deserialize, Serialize};

/// A claim's verdict in one earlier run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryPoint {
    /// When it was judged, seconds since the Unix epoch.
    pub when: u64,
    /// Commit of this suite.
    pub commit: String,
    /// Paper id.
    pub paper: String,
    /// Claim id.
    pub claim: String,
    /// The judgement.
    pub outcome: Outcome,
    /// Effect of the claim's first comparison, in its units, if there was one.
    pub effect: Option<f64>,
    /// Its 95 % interval.
    pub interval: Option<(f64, f64)>,
}
