//! What measurements say about a claim.

use serde::{Deserialize, Serialize};

use crate::claim::Comparison;

/// The judgement of one claim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Claim id.
    pub claim: String,
    /// The judgement.
    pub outcome: Outcome,
    /// Why, in words a reader understands without the numbers' table.
    pub reason: String,
    /// The statistics of every comparison of the claim.
    pub comparisons: Vec<ComparisonResult>,
    /// The statistics of its guards.
    pub guards: Vec<ComparisonResult>,
}

/// The possible judgements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The effect is there, at least as large as the claim's minimum.
    Reproduced,
    /// The effect is smaller than the minimum, absent or reversed.
    NotReproduced,
    /// The measurements do not decide.
    Inconclusive,
    /// Nothing at this scale measures it.
    NotTested,
}

impl Outcome {
    /// The word shown to people.
    pub fn label(self) -> &'static str {
        match self {
            Self::Reproduced => "reproduced",
            Self::NotReproduced => "not reproduced",
            Self::Inconclusive => "inconclusive",
            Self::NotTested => "not tested",
        }
    }
}

/// Paired statistics of one comparison. Effects are signed so that positive supports the claim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComparisonResult {
    /// What was compared.
    pub comparison: Comparison,
    /// Seeds that both variants have, with (treatment, control).
    pub pairs: Vec<(u64, f64, f64)>,
    /// Mean of the treatment.
    pub treatment_mean: f64,
    /// Mean of the control.
    pub control_mean: f64,
    /// Mean effect.
    pub effect: f64,
    /// 95 % bootstrap confidence interval of the mean effect, resampling seeds.
    pub interval: (f64, f64),
    /// Two-sided p of [`paired_t_test`](crate::statistics::paired_t_test) against the minimum effect.
    pub p: f64,
    /// `p` after Holm's correction over all comparisons of the paper.
    pub p_holm: f64,
    /// The judgement of this comparison alone.
    pub outcome: Outcome,
}
