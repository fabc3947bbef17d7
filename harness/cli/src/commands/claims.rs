//! The table of claims and verdicts.

use replica_core::claim::EffectKind;
use replica_core::verdict::ComparisonResult;
use replica_core::{Evidence, Outcome};

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

/// One line a comparison, the claim's own line first, then the reasons in words.
pub(crate) fn show(streams: &mut Streams, evidence: &Evidence) {
    let mut table = Table::new(&["claim", "verdict", "comparison", "effect", "95 % CI", "seeds", "Holm p"]);
    for verdict in &evidence.verdicts {
        let head = [verdict.claim.clone(), word(streams, verdict.outcome)];
        if verdict.comparisons.is_empty() {
            table.row(head.clone());
        }
        for (i, result) in verdict.comparisons.iter().enumerate() {
            let head = if i == 0 { head.clone() } else { Default::default() };
            table.row(head.into_iter().chain(cells(result)));
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
    for verdict in &evidence.verdicts {
        streams.result(&format!("  {}: {}", verdict.claim, verdict.reason));
    }
}

fn cells(result: &ComparisonResult) -> [String; 5] {
    let comparison = &result.comparison;
    let size = |x: f64| match comparison.effect {
        EffectKind::Relative => format!("{:+.2} %", 100.0 * x),
        EffectKind::Absolute => format!("{x:+.4}"),
    };
    let (low, high) = result.interval;
    [
        format!("{} vs {} ({})", comparison.treatment, comparison.control, comparison.metric),
        size(result.effect),
        if result.pairs.len() > 1 { format!("{} to {}", size(low), size(high)) } else { "-".to_owned() },
        result.pairs.len().to_string(),
        format!("{:.3}", result.p_holm),
    ]
}
