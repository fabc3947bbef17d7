//! From measurements to verdicts. Claims are judged from paired seeds, never from a single run.
//!
//! - A comparison is *reproduced* when the 95 % bootstrap interval of its mean effect lies above the
//!   minimum effect and the two-sided paired t-test against the minimum effect has a corrected p below 0.05;
//!   *not reproduced* when the interval lies below the minimum and p is below 0.05; otherwise *inconclusive*.
//!   Both tests are asked for because with a handful of seeds the bootstrap alone is too sure of itself. Where all
//!   seeds have the same absolute effect, the exact sign-flip test takes the t-test's place: at least six of them decide.
//! - p is corrected by Holm over the distinct comparisons of all claims that the scale tests, measured or
//!   not: the family is fixed by `paper.toml`, so that running less does not make any of them easier.
//! - A claim is reproduced when all its comparisons are, and not reproduced when any is not.
//! - Guards are preconditions, not claims: they are judged at their uncorrected p and are outside the family.

use crate::claim::{Claim, Comparison, Direction, EffectKind, Guard, Test};
use crate::paper::Paper;
use crate::plan::{Experiment, Metric, Plan};
use crate::statistics::{bootstrap_interval, holm, mean, paired_t_test};
use crate::verdict::{ComparisonResult, Outcome, Verdict};

/// Pairs below which nothing is decided: a t-test on two has one degree of freedom (our choice).
pub const FEWEST_PAIRS: usize = 3;

/// Level of the tests.
pub const LEVEL: f64 = 0.05;

/// Judges every claim of a paper, in the paper's order. `values(experiment, variant, metric)` gives the
/// measurements of main trials as (seed, value).
pub fn judge(
    paper: &Paper,
    plan: &Plan,
    values: impl Fn(&str, &str, &str) -> Vec<(u64, f64)>,
) -> Vec<Verdict> {
    let court = Court { paper: &paper.id, plan, values: &values };
    let mut family: Vec<(&Comparison, Measured)> = Vec::new();
    for claim in paper.claims.iter().filter(|c| c.scales.contains(&plan.scale)) {
        let Test::Paired { comparisons } = &claim.test else { continue };
        for comparison in comparisons {
            if !family.iter().any(|(known, _)| *known == comparison) {
                family.push((comparison, court.measure(comparison)));
            }
        }
    }
    let p: Vec<f64> =
        family.iter().map(|(_, m)| if let Measured::Result(r) = m { r.p } else { 1.0 }).collect();
    for ((_, measured), corrected) in family.iter_mut().zip(holm(&p)) {
        if let Measured::Result(result) = measured {
            result.p_holm = corrected;
            result.outcome = decide(result, corrected);
        }
    }
    paper.claims.iter().map(|claim| court.verdict(claim, &family)).collect()
}

enum Measured {
    Result(ComparisonResult),
    /// No pair exists.
    NotRun(String),
    /// A value with which nothing can be computed.
    Unusable(String),
}

/// Measurements of (experiment, variant, metric) as (seed, value).
type Values<'a> = &'a dyn Fn(&str, &str, &str) -> Vec<(u64, f64)>;

struct Court<'a> {
    paper: &'a str,
    plan: &'a Plan,
    values: Values<'a>,
}

impl Court<'_> {
    fn verdict(&self, claim: &Claim, family: &[(&Comparison, Measured)]) -> Verdict {
        let untested = |reason: String| Verdict {
            claim: claim.id.clone(),
            outcome: Outcome::NotTested,
            reason,
            comparisons: Vec::new(),
            guards: Vec::new(),
        };
        if let Test::Untested { reason } = &claim.test {
            return untested(reason.clone());
        }
        if !claim.scales.contains(&self.plan.scale) {
            let scales: Vec<&str> = claim.scales.iter().map(|s| s.name()).collect();
            return untested(match scales[..] {
                [] => "no scale tests this claim".to_owned(),
                _ => format!(
                    "scale {} does not test this claim; it is judged at {}",
                    self.plan.scale,
                    scales.join(", ")
                ),
            });
        }
        let (mut outcome, mut reason, comparisons) = match &claim.test {
            Test::Paired { comparisons } => self.paired(comparisons, family),
            Test::Exact { experiment, variant, metric, expected, tolerance } => {
                let (outcome, reason) = self.exact(experiment, variant, metric, *expected, *tolerance);
                (outcome, reason, Vec::new())
            }
            Test::Untested { reason } => (Outcome::NotTested, reason.clone(), Vec::new()),
        };
        let guards: Vec<(&Guard, Measured)> =
            claim.guards.iter().map(|g| (g, self.guard(&g.comparison))).collect();
        if outcome != Outcome::NotTested
            && let Some(open) = guards.iter().find_map(|(guard, measured)| self.open_guard(guard, measured))
        {
            (outcome, reason) = (Outcome::Inconclusive, open);
        }
        let guards = guards.into_iter().filter_map(|(_, measured)| match measured {
            Measured::Result(result) => Some(result),
            _ => None,
        });
        Verdict { claim: claim.id.clone(), outcome, reason, comparisons, guards: guards.collect() }
    }

    fn paired(
        &self,
        comparisons: &[Comparison],
        family: &[(&Comparison, Measured)],
    ) -> (Outcome, String, Vec<ComparisonResult>) {
        let measured: Vec<&Measured> = comparisons
            .iter()
            .filter_map(|c| family.iter().find(|(known, _)| *known == c).map(|(_, measured)| measured))
            .collect();
        let outcomes: Vec<Outcome> = measured
            .iter()
            .map(|m| match m {
                Measured::Result(result) => result.outcome,
                Measured::NotRun(_) => Outcome::NotTested,
                Measured::Unusable(_) => Outcome::Inconclusive,
            })
            .collect();
        let outcome = if outcomes.contains(&Outcome::NotReproduced) {
            Outcome::NotReproduced
        } else if outcomes.iter().all(|o| *o == Outcome::Reproduced) {
            Outcome::Reproduced
        } else if outcomes.iter().all(|o| *o == Outcome::NotTested) {
            Outcome::NotTested
        } else {
            Outcome::Inconclusive
        };
        // an inconclusive claim is explained by whatever did not decide, the others by what did
        let explains = |o: Outcome| match outcome {
            Outcome::Inconclusive => o != Outcome::Reproduced,
            _ => o == outcome,
        };
        let mut reasons: Vec<String> = measured
            .iter()
            .zip(&outcomes)
            .filter(|(_, o)| explains(**o))
            .map(|(m, _)| match m {
                Measured::Result(result) => self.sentence(result, "Holm p", result.p_holm),
                Measured::NotRun(reason) | Measured::Unusable(reason) => reason.clone(),
            })
            .collect();
        let results = measured.into_iter().filter_map(|m| match m {
            Measured::Result(result) => Some(result.clone()),
            _ => None,
        });
        // of an experiment that did not run all comparisons say the same
        reasons.dedup();
        (outcome, reasons.join("; "), results.collect())
    }

    fn exact(
        &self,
        experiment: &str,
        variant: &str,
        metric: &str,
        expected: f64,
        tolerance: f64,
    ) -> (Outcome, String) {
        let values = (self.values)(experiment, variant, metric);
        let what = format!("the {} of {}", self.metric(experiment, metric), self.label(experiment, variant));
        let number = |x: f64| self.number(experiment, metric, x);
        if values.is_empty() {
            return (Outcome::NotTested, format!("`{experiment}/{variant}` has not been run"));
        }
        if let Some((_, value)) = values.iter().find(|(_, v)| !v.is_finite()) {
            return (Outcome::Inconclusive, format!("{what} is {value}, which is not a number"));
        }
        let margin = if tolerance == 0.0 {
            "exactly".to_owned()
        } else {
            format!("within the tolerance of {}", plain(tolerance))
        };
        match values.iter().find(|(_, v)| (v - expected).abs() > tolerance) {
            None => {
                (Outcome::Reproduced, format!("{what} is {}, as expected, {margin}", number(values[0].1)))
            }
            Some((_, value)) => (
                Outcome::NotReproduced,
                format!(
                    "{what} is {}; {} was expected {margin}: the difference is {}",
                    number(*value),
                    number(expected),
                    plain(value - expected)
                ),
            ),
        }
    }

    fn guard(&self, comparison: &Comparison) -> Measured {
        match self.measure(comparison) {
            Measured::Result(mut result) => {
                result.outcome = decide(&result, result.p);
                Measured::Result(result)
            }
            other => other,
        }
    }

    fn open_guard(&self, guard: &Guard, measured: &Measured) -> Option<String> {
        let problem = match measured {
            Measured::Result(result) if result.outcome == Outcome::Reproduced => return None,
            Measured::Result(result) => self.sentence(result, "p", result.p),
            Measured::NotRun(reason) | Measured::Unusable(reason) => reason.clone(),
        };
        Some(format!("a precondition does not hold ({}): {problem}", guard.why))
    }

    fn measure(&self, comparison: &Comparison) -> Measured {
        let Comparison { experiment, metric, treatment, control, .. } = comparison;
        let treated = (self.values)(experiment, treatment, metric);
        let controls = (self.values)(experiment, control, metric);
        for (variant, values) in [(treatment, &treated), (control, &controls)] {
            if let Some((seed, value)) = values.iter().find(|(_, v)| !v.is_finite()) {
                return Measured::Unusable(format!(
                    "the {} of {} is {value} for seed {seed}: nothing can be computed with it",
                    self.metric(experiment, metric),
                    self.label(experiment, variant)
                ));
            }
        }
        let mut pairs: Vec<(u64, f64, f64)> = treated
            .iter()
            .filter_map(|(seed, t)| controls.iter().find(|(s, _)| s == seed).map(|(_, c)| (*seed, *t, *c)))
            .collect();
        pairs.sort_by_key(|(seed, ..)| *seed);
        if pairs.is_empty() {
            return Measured::NotRun(match (treated.is_empty(), controls.is_empty()) {
                (false, false) => format!("{treatment} and {control} of `{experiment}` share no seed"),
                (true, false) => format!("`{experiment}/{treatment}` has not been run"),
                (false, true) => format!("`{experiment}/{control}` has not been run"),
                (true, true) if self.experiment(experiment).is_some_and(|e| e.on_request) => {
                    let (paper, scale) = (self.paper, self.plan.scale);
                    format!(
                        "it runs only when it is named: `replica run {paper}/{experiment} --scale {scale}`"
                    )
                }
                (true, true) => format!("{treatment} and {control} of `{experiment}` have not been run"),
            });
        }
        let effects: Vec<f64> = pairs.iter().map(|(_, t, c)| comparison.effect_of(*t, *c)).collect();
        if effects.iter().any(|e| !e.is_finite()) {
            return Measured::Unusable(format!(
                "the {} of {} is 0, so that no relative effect exists",
                self.metric(experiment, metric),
                self.label(experiment, control)
            ));
        }
        let name = format!("{experiment}/{metric}/{treatment}/{control}");
        let column = |f: fn(&(u64, f64, f64)) -> f64| mean(&pairs.iter().map(f).collect::<Vec<_>>());
        // what is compared by its absolute difference is a share of counted problems
        let counted = comparison.effect == EffectKind::Absolute;
        let p = paired_t_test(&effects, comparison.minimum_effect, counted);
        Measured::Result(ComparisonResult {
            comparison: comparison.clone(),
            treatment_mean: column(|(_, t, _)| *t),
            control_mean: column(|(_, _, c)| *c),
            effect: mean(&effects),
            interval: bootstrap_interval(&effects, &name),
            p,
            p_holm: p,
            outcome: Outcome::Inconclusive,
            pairs,
        })
    }

    /// The comparison in words, from the numbers' point of view, then what it means for the claim.
    fn sentence(&self, result: &ComparisonResult, p_name: &str, p: f64) -> String {
        let comparison = &result.comparison;
        let Comparison { experiment, metric, treatment, control, .. } = comparison;
        // effects are signed to support the claim; a reader wants the metric's own direction
        let sign = if comparison.direction == Direction::Lower { -1.0 } else { 1.0 };
        let (effect, a, b) = (sign * result.effect, sign * result.interval.0, sign * result.interval.1);
        let (low, high) = (a.min(b), a.max(b));
        let size = |x: f64| self.size(comparison, x.abs());
        let word = |x: f64| if x < 0.0 { "lower" } else { "higher" };
        let relation = if effect == 0.0 {
            "the same as".to_owned()
        } else {
            format!("{} {} than", size(effect), word(effect))
        };
        let n = result.pairs.len();
        let statistics = if n < 2 {
            "1 seed".to_owned()
        } else {
            let interval = if low * high > 0.0 {
                let (near, far) = if low > 0.0 { (low, high) } else { (high, low) };
                format!("{} to {}", size(near), size(far))
            } else {
                format!("{} lower to {} higher", size(low), size(high))
            };
            format!("95 % CI {interval}, {n} seeds, {p_name} {}", p_value(p))
        };
        let minimum = comparison.minimum_effect;
        let meaning = match result.outcome {
            Outcome::Reproduced if minimum == 0.0 => "as claimed".to_owned(),
            Outcome::Reproduced if minimum < 0.0 => {
                format!("within the {} that the claim allows", size(minimum))
            }
            Outcome::Reproduced => format!("more than the {} that the claim needs", size(minimum)),
            Outcome::NotReproduced if minimum < 0.0 => {
                format!("beyond the {} that the claim allows", size(minimum))
            }
            Outcome::NotReproduced if result.interval.1 < 0.0 => {
                "the claim's direction is reversed".to_owned()
            }
            Outcome::NotReproduced => format!("less than the {} that the claim needs", size(minimum)),
            _ if n < FEWEST_PAIRS => format!("at least {FEWEST_PAIRS} seeds are needed to decide"),
            _ if result.interval.0 <= minimum && minimum <= result.interval.1 => {
                let what = if minimum == 0.0 {
                    "no difference".to_owned()
                } else if minimum < 0.0 {
                    format!("the {} that the claim allows", size(minimum))
                } else {
                    format!("the minimum of {}", size(minimum))
                };
                format!("the interval includes {what}, so that these seeds do not decide")
            }
            _ => format!("{p_name} is not below {LEVEL}, so that these seeds do not decide"),
        };
        format!(
            "the {} of {} is {relation} that of {} ({statistics}): {meaning}",
            self.metric(experiment, metric),
            self.label(experiment, treatment),
            self.label(experiment, control)
        )
    }

    fn experiment(&self, id: &str) -> Option<&Experiment> {
        self.plan.experiment(id)
    }

    fn label(&self, experiment: &str, variant: &str) -> String {
        let found = self.experiment(experiment).and_then(|e| e.variant(variant));
        found.map_or_else(|| variant.to_owned(), |v| v.label.clone())
    }

    fn metric(&self, experiment: &str, metric: &str) -> String {
        self.found(experiment, metric).map_or_else(|| metric.replace('_', " "), |m| m.label.clone())
    }

    fn number(&self, experiment: &str, metric: &str, value: f64) -> String {
        let found = self.found(experiment, metric);
        found.map_or_else(|| plain(value), |m| with_unit(value, m.digits, &m.unit))
    }

    fn size(&self, comparison: &Comparison, size: f64) -> String {
        let found = self.found(&comparison.experiment, &comparison.metric);
        match (comparison.effect, found) {
            (EffectKind::Relative, _) => percent(size),
            (EffectKind::Absolute, Some(m)) => with_unit(size, m.digits, m.unit_of_differences()),
            (EffectKind::Absolute, None) => plain(size),
        }
    }

    fn found(&self, experiment: &str, metric: &str) -> Option<&Metric> {
        self.experiment(experiment)?.metrics.iter().find(|m| m.name == metric)
    }
}

fn decide(result: &ComparisonResult, p: f64) -> Outcome {
    let minimum = result.comparison.minimum_effect;
    let (low, high) = result.interval;
    if result.pairs.len() < FEWEST_PAIRS || p >= LEVEL {
        Outcome::Inconclusive
    } else if low > minimum && result.effect > minimum {
        Outcome::Reproduced
    } else if high < minimum {
        Outcome::NotReproduced
    } else {
        Outcome::Inconclusive
    }
}

fn with_unit(x: f64, digits: usize, unit: &str) -> String {
    if unit.is_empty() { format!("{x:.digits$}") } else { format!("{x:.digits$} {unit}") }
}

/// Two digits that mean something: 12 %, 2.1 %, 0.034 %.
fn percent(fraction: f64) -> String {
    format!("{} %", two_digits(100.0 * fraction))
}

fn two_digits(x: f64) -> String {
    if x == 0.0 {
        return "0".to_owned();
    }
    let digits = (1.0 - x.abs().log10().floor()).clamp(0.0, 9.0) as usize;
    format!("{x:.digits$}")
}

fn plain(x: f64) -> String {
    if x.fract() == 0.0 && x.abs() < 1e15 { format!("{x:.0}") } else { two_digits(x) }
}

/// A p as people read it: three digits, or that it is below them.
pub fn p_value(p: f64) -> String {
    if p < 0.001 { "< 0.001".to_owned() } else { format!("{p:.3}") }
}

#[cfg(test)]
mod tests;
