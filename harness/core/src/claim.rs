//! What a paper claims, in a form that measurements can decide.

use serde::{Deserialize, Serialize};

use crate::plan::Scale;

/// One claim of a paper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Unique within the paper, e.g. `lower-perplexity`.
    pub id: String,
    /// The claim in one sentence.
    pub statement: String,
    /// Where the paper (or whoever else) makes it.
    pub source: String,
    /// The size the paper reports, in words; `"?"` where it could not be obtained.
    pub reported: String,
    /// The scales whose measurements may judge the claim; elsewhere it is *not tested*.
    pub scales: Vec<Scale>,
    /// How it is tested.
    pub test: Test,
    /// What must hold for the test to mean anything. A guard that does not hold makes the verdict *inconclusive*.
    #[serde(default)]
    pub guards: Vec<Guard>,
}

/// How a claim is tested.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Test {
    /// Paired seeds: every comparison must hold.
    Paired {
        /// The comparisons.
        comparisons: Vec<Comparison>,
    },
    /// A number that follows without training, such as a parameter count: it agrees or it does not.
    Exact {
        /// Experiment that computes it.
        experiment: String,
        /// Variant that computes it.
        variant: String,
        /// Its metric.
        metric: String,
        /// The published or derived value.
        expected: f64,
        /// Largest absolute difference that counts as agreement.
        tolerance: f64,
    },
    /// Nothing here tests it.
    Untested {
        /// Why not, for the report.
        reason: String,
    },
}

/// Treatment against control on one metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// Experiment that measures both.
    pub experiment: String,
    /// Metric compared.
    pub metric: String,
    /// Variant the claim speaks for.
    pub treatment: String,
    /// Variant it is compared with.
    pub control: String,
    /// Direction that supports the claim, as seen from the treatment.
    pub direction: Direction,
    /// Whether effects are fractions of the control or plain differences.
    pub effect: EffectKind,
    /// Smallest effect that counts, in the units of `effect`; 0 asks for the direction only, a negative one that the
    /// treatment is worse by less than this.
    pub minimum_effect: f64,
}

/// Which way the treatment's metric should move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The treatment's value is lower than the control's.
    Lower,
    /// The treatment's value is higher than the control's.
    Higher,
}

/// How an effect is expressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EffectKind {
    /// (treatment - control) / |control|.
    Relative,
    /// treatment - control.
    Absolute,
}

/// A condition under which a test means something.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guard {
    /// Why the claim's test is empty without it.
    pub why: String,
    /// What must hold, judged like a claim.
    pub comparison: Comparison,
}

impl Comparison {
    /// Effect of one pair, signed so that positive supports the claim.
    pub fn effect_of(&self, treatment: f64, control: f64) -> f64 {
        let difference = match self.direction {
            Direction::Lower => control - treatment,
            Direction::Higher => treatment - control,
        };
        match self.effect {
            EffectKind::Relative => difference / control.abs(),
            EffectKind::Absolute => difference,
        }
    }
}
