//! The table of claims and verdicts.

use replica_core::claim::{Comparison, EffectKind, Test};
use replica_core::judge::p_value;
use replica_core::verdict::{ComparisonResult, Verdict};
use replica_core::{Evidence, Outcome, Plan};

use crate::streams::{Streams, Tone};
use crate::table::Table;

/// The verdict's word in its tone.
pub(crate) fn word(streams: &Streams, outcome: Outcome) -> String {
    let tone = match outcome {
        Outcome::Reproduced => Tone::Good,
        Outcome::NotReproduced => Tone::Bad,
        Outcome::Inconclusive => Tone::Unclear,
        Outcome::NotTested => Tone::Quiet,
    };
    streams.tone(tone, outcome.label())
}

/// One line a comparison, the claim's own line first; then in words what no line shows.
pub(crate) fn show(streams: &mut Streams, evidence: &Evidence) {
    let mut table = Table::new(&["claim", "verdict", "comparison", "effect", "95 % CI", "seeds", "Holm p"]);
    for verdict in &evidence.verdicts {
        let head = [verdict.claim.clone(), word(streams, verdict.outcome)];
        if verdict.comparisons.is_empty() {
            table.row(head.clone());
        }
        for (i, result) in verdict.comparisons.iter().enumerate() {
            let head = if i == 0 { head.clone() } else { Default::default() };
            table.row(head.into_iter().chain(cells(result, &evidence.plan)));
        }
    }
    let heading = format!(
        "{}: claims at scale {}, backend {} (effects: positive supports the claim)",
        evidence.paper.short_title, evidence.plan.scale, evidence.backend
    );
    let heading = streams.tone(Tone::Heading, &heading);
    streams.result(&heading);
    for line in table.lines() {
        streams.result(&line);
    }
    for verdict in evidence.verdicts.iter().filter(|verdict| !explained_by_rows(verdict, evidence)) {
        streams.result(&format!("  {}: {}", verdict.claim, verdict.reason));
    }
}

/// Whether all comparisons were measured and no guard is open, so that effects, intervals and p say why.
fn explained_by_rows(verdict: &Verdict, evidence: &Evidence) -> bool {
    let claim = evidence.paper.claims.iter().find(|claim| claim.id == verdict.claim);
    claim.is_some_and(|claim| {
        let closed = verdict.guards.iter().filter(|guard| guard.outcome == Outcome::Reproduced).count();
        matches!(&claim.test, Test::Paired { comparisons } if comparisons.len() == verdict.comparisons.len())
            && claim.guards.len() == closed
    })
}

fn cells(result: &ComparisonResult, plan: &Plan) -> [String; 5] {
    let Comparison { experiment, metric, treatment, control, effect, .. } = &result.comparison;
    let found = plan.experiment(experiment).and_then(|e| e.metrics.iter().find(|m| m.name == *metric));
    let (factor, digits, unit) = match (effect, found) {
        (EffectKind::Relative, _) => (100.0, 2, "%"),
        (EffectKind::Absolute, Some(metric)) => (1.0, metric.digits, metric.unit_of_differences()),
        (EffectKind::Absolute, None) => (1.0, 4, ""),
    };
    let number = |x: f64| format!("{:+.digits$}", factor * x);
    let with_unit = |text: String| if unit.is_empty() { text } else { format!("{text} {unit}") };
    let (low, high) = result.interval;
    let interval = format!("{} to {}", number(low), number(high));
    [
        format!("{experiment}: {treatment} vs {control}, {metric}"),
        with_unit(number(result.effect)),
        if result.pairs.len() > 1 { with_unit(interval) } else { "-".to_owned() },
        result.pairs.len().to_string(),
        p_value(result.p_holm),
    ]
}
