//! Effects in words and units.

use replica_core::claim::{Comparison, Direction, EffectKind};
use replica_core::verdict::ComparisonResult;
use replica_core::{Evidence, Outcome};

use super::names;
use crate::number;

/// How the effects of a comparison are written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EffectUnit {
    /// Factor from the stored effect to the shown one.
    pub factor: f64,
    /// Unit after the number, with its space; may be empty.
    pub suffix: String,
    digits: usize,
}

impl EffectUnit {
    /// Percent for relative effects, the unit of the metric's differences for absolute ones.
    pub fn of(evidence: &Evidence, comparison: &Comparison) -> Self {
        match comparison.effect {
            EffectKind::Relative => Self { factor: 100.0, suffix: "\u{202f}%".to_owned(), digits: 2 },
            EffectKind::Absolute => {
                let metric =
                    names::metric(evidence.plan.experiment(&comparison.experiment), &comparison.metric);
                let unit = metric.unit_of_differences();
                let suffix = if unit.is_empty() { String::new() } else { format!("\u{202f}{unit}") };
                Self { factor: 1.0, suffix, digits: metric.digits }
            }
        }
    }

    /// `+1.92 %`.
    pub fn signed(&self, effect: f64) -> String {
        format!("{}{}", number::signed(effect * self.factor, self.digits), self.suffix)
    }

    /// `1.92`.
    pub fn bare(&self, effect: f64) -> String {
        number::fixed(effect * self.factor, self.digits)
    }

    /// `[1.20, 2.63]`.
    pub fn interval(&self, (low, high): (f64, f64)) -> String {
        format!("[{}, {}]", self.bare(low), self.bare(high))
    }
}

/// Whether a comparison has pairs to speak of.
pub(crate) fn is_measured(result: &ComparisonResult) -> bool {
    !result.pairs.is_empty() && result.effect.is_finite()
}

/// `test perplexity 1.92 % higher [0.40, 2.63] for LPA than for Transformer`.
pub(crate) fn in_words(evidence: &Evidence, result: &ComparisonResult) -> String {
    let c = &result.comparison;
    let metric = names::metric(evidence.plan.experiment(&c.experiment), &c.metric);
    let (treatment, control) = labels(evidence, c);
    if !is_measured(result) {
        return format!("{} of {treatment} and {control} not measured yet", metric.label);
    }
    format!("{} {} for {treatment} than for {control}", metric.label, difference(evidence, result))
}

/// `1.92 % higher [0.40, 2.63]`: the side comes from the sign, the interval is turned with it.
pub(crate) fn difference(evidence: &Evidence, result: &ComparisonResult) -> String {
    let unit = EffectUnit::of(evidence, &result.comparison);
    let supports = result.effect >= 0.0;
    let word = match (result.comparison.direction, supports) {
        (Direction::Lower, true) | (Direction::Higher, false) => "lower",
        _ => "higher",
    };
    let (low, high) = if supports { result.interval } else { (-result.interval.1, -result.interval.0) };
    let interval = if low.is_finite() && high.is_finite() {
        unit.interval((low, high))
    } else {
        "(no interval)".to_owned()
    };
    format!("{}{} {word} {interval}", unit.bare(result.effect.abs()), unit.suffix)
}

/// Labels of treatment and control.
pub(crate) fn labels(evidence: &Evidence, c: &Comparison) -> (String, String) {
    (
        names::variant(evidence, &c.experiment, &c.treatment),
        names::variant(evidence, &c.experiment, &c.control),
    )
}

/// What a comparison asks for, in words.
pub(crate) fn requirement(evidence: &Evidence, c: &Comparison) -> String {
    let unit = EffectUnit::of(evidence, c);
    let metric = names::metric(evidence.plan.experiment(&c.experiment), &c.metric);
    let (treatment, control) = labels(evidence, c);
    let word = match c.direction {
        Direction::Lower => "lower",
        Direction::Higher => "higher",
    };
    let size = if c.minimum_effect == 0.0 {
        String::new()
    } else if c.minimum_effect < 0.0 {
        let allowed = format!("{}{}", unit.bare(-c.minimum_effect), unit.suffix);
        let opposite = if c.direction == Direction::Lower { "higher" } else { "lower" };
        return format!("{} of {treatment} at most {allowed} {opposite} than of {control}", metric.label);
    } else {
        format!(" by at least {}{}", unit.bare(c.minimum_effect), unit.suffix)
    };
    format!("{} of {treatment} {word} than of {control}{size}", metric.label)
}

/// The comparison a one-line summary should speak about: one that decides the claim's outcome, else the first.
pub(crate) fn leading(results: &[ComparisonResult], outcome: Outcome) -> Option<&ComparisonResult> {
    let measured = || results.iter().filter(|r| is_measured(r));
    measured().find(|r| r.outcome == outcome).or_else(|| measured().next())
}
