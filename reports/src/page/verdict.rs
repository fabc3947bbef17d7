//! A claim with its verdict, and the statistics it rests on.

use replica_core::claim::Test;
use replica_core::verdict::ComparisonResult;
use replica_core::{Claim, Evidence, Outcome, Verdict};
use serde::Serialize;

use super::badge::Badge;
use super::effect::{self, EffectUnit};
use super::names;
use super::table::{Cell, Table};
use crate::caption::{Caption, Captions};
use crate::interval::Mean;
use crate::number;
use crate::plot::intervals::{IntervalDrawing, IntervalPlot, Row};
use crate::prose::Line;

/// A claim and what became of it.
#[derive(Debug, Serialize)]
pub(crate) struct Judgement {
    /// Anchor.
    pub id: String,
    /// The claim in one sentence.
    pub statement: Line,
    /// Where it is made.
    pub source: Line,
    /// The size the paper reports; nothing if unknown.
    pub reported: Option<Line>,
    /// The verdict.
    pub badge: Badge,
    /// Why, in words.
    pub reason: Line,
    /// Every effect, one line a comparison.
    pub effects: Vec<String>,
    /// What is asked for, one line a comparison.
    pub requirements: Vec<String>,
    statistics: Option<Table>,
    figures: Vec<ForestFigure>,
    pairs: Vec<Table>,
    guards: Vec<GuardLine>,
    guard_statistics: Option<Table>,
    guard_figures: Vec<ForestFigure>,
}

#[derive(Debug, Serialize)]
struct ForestFigure {
    caption: Caption,
    plot: IntervalDrawing,
}

#[derive(Debug, Serialize)]
struct GuardLine {
    why: Line,
    requirement: String,
    badge: Option<Badge>,
    holds: &'static str,
}

/// The verdict on a claim; a claim that none was passed on is not tested.
pub(crate) fn outcome(evidence: &Evidence, claim: &Claim) -> Outcome {
    verdict_of(evidence, claim).map_or(Outcome::NotTested, |v| v.outcome)
}

/// The effect of a claim in one line, if anything was measured.
pub(crate) fn summary(evidence: &Evidence, claim: &Claim) -> Option<String> {
    match &claim.test {
        Test::Exact { .. } => exact_summary(evidence, claim),
        _ => {
            let verdict = verdict_of(evidence, claim)?;
            effect::leading(&verdict.comparisons, verdict.outcome).map(|r| effect::in_words(evidence, r))
        }
    }
}

fn verdict_of<'a>(evidence: &'a Evidence, claim: &Claim) -> Option<&'a Verdict> {
    evidence.verdicts.iter().find(|v| v.claim == claim.id)
}

/// Everything about a claim.
pub(crate) fn judgement(
    evidence: &Evidence,
    claim: &Claim,
    id: String,
    captions: &mut Captions,
) -> Judgement {
    let verdict = verdict_of(evidence, claim);
    let comparisons: &[ComparisonResult] = verdict.map_or(&[], |v| &v.comparisons);
    let guards: &[ComparisonResult] = verdict.map_or(&[], |v| &v.guards);
    let reason = verdict.map_or_else(|| no_verdict(claim), |v| v.reason.clone());
    let statistics = match &claim.test {
        Test::Exact { .. } => exact_table(evidence, claim, captions),
        _ => statistics(evidence, comparisons, "Statistics of the comparisons", captions),
    };
    let figures = forests(evidence, comparisons, "effect", captions);
    Judgement {
        id,
        statement: Line::of(&claim.statement),
        source: Line::of(&claim.source),
        reported: (claim.reported.trim() != "?").then(|| Line::of(&claim.reported)),
        badge: outcome(evidence, claim).into(),
        reason: Line::of(&reason),
        effects: effects(evidence, claim, comparisons),
        requirements: requirements(evidence, claim),
        statistics,
        figures,
        pairs: pairs(evidence, comparisons),
        guards: guard_lines(evidence, claim, guards),
        guard_statistics: statistics_of_guards(evidence, guards, captions),
        guard_figures: forests(evidence, guards, "guard's effect", captions),
    }
}

fn effects(evidence: &Evidence, claim: &Claim, comparisons: &[ComparisonResult]) -> Vec<String> {
    if matches!(claim.test, Test::Exact { .. }) {
        return exact_summary(evidence, claim).into_iter().collect();
    }
    comparisons.iter().map(|r| effect::in_words(evidence, r)).collect()
}

fn no_verdict(claim: &Claim) -> String {
    match &claim.test {
        Test::Untested { reason } => reason.clone(),
        _ => "No verdict has been passed yet.".to_owned(),
    }
}

fn requirements(evidence: &Evidence, claim: &Claim) -> Vec<String> {
    match &claim.test {
        Test::Paired { comparisons } => {
            comparisons.iter().map(|c| effect::requirement(evidence, c)).collect()
        }
        Test::Exact { experiment, variant, metric, expected, tolerance } => {
            let metric = names::metric(evidence.plan.experiment(experiment), metric);
            let variant = names::variant(evidence, experiment, variant);
            let tolerance = if *tolerance == 0.0 {
                "exactly".to_owned()
            } else {
                format!("within {}", number::parameter(*tolerance))
            };
            vec![format!(
                "{} of {variant} is {} {tolerance}",
                metric.label,
                number::fixed(*expected, metric.digits)
            )]
        }
        Test::Untested { .. } => Vec::new(),
    }
}

fn statistics(
    evidence: &Evidence,
    results: &[ComparisonResult],
    title: &str,
    captions: &mut Captions,
) -> Option<Table> {
    if results.is_empty() {
        return None;
    }
    let head = [
        "Comparison",
        "treatment",
        "control",
        "effect",
        "95 % interval",
        "minimum",
        "pairs",
        "p",
        "p (Holm)",
    ];
    let mut columns: Vec<Cell> = head
        .iter()
        .enumerate()
        .map(|(i, h)| if i == 0 { Cell::head(*h) } else { Cell::number_head(*h) })
        .collect();
    columns.push(Cell::head("alone"));
    let row = |r: &ComparisonResult| {
        let c = &r.comparison;
        let metric = names::metric(evidence.plan.experiment(&c.experiment), &c.metric);
        let unit = EffectUnit::of(evidence, c);
        let (treatment, control) = effect::labels(evidence, c);
        let mut row = vec![Cell::row(format!("{treatment} vs {control}")).noted(names::with_unit(&metric))];
        if effect::is_measured(r) {
            let finite = r.interval.0.is_finite() && r.interval.1.is_finite();
            row.extend([
                Cell::number(number::fixed(r.treatment_mean, metric.digits)),
                Cell::number(number::fixed(r.control_mean, metric.digits)),
                Cell::number(unit.signed(r.effect)),
                if finite { Cell::number(unit.interval(r.interval)) } else { Cell::absent() },
            ]);
        } else {
            row.extend((0..4).map(|_| Cell::missing("not run yet")));
        }
        let minimum = if c.minimum_effect == 0.0 { "any".to_owned() } else { unit.signed(c.minimum_effect) };
        row.extend([
            Cell::number(minimum),
            Cell::number(number::count(r.pairs.len() as u64)),
            Cell::number(number::probability(r.p)),
            Cell::number(number::probability(r.p_holm)),
            Badge::from(r.outcome).into(),
        ]);
        row
    };
    Some(Table {
        caption: Some(captions.table(&format!("{title}."))),
        name: String::new(),
        head: vec![columns],
        rows: results.iter().map(row).collect(),
        notes: vec![Line::of(
            "A positive effect supports the claim. Interval: bootstrap over paired seeds. p: two-sided paired t-test \
             against the minimum effect, or the exact sign-flip test where all seeds have the same absolute effect; Holm's correction is over all comparisons of the paper.",
        )],
    })
}

fn statistics_of_guards(
    evidence: &Evidence,
    results: &[ComparisonResult],
    captions: &mut Captions,
) -> Option<Table> {
    let mut table = statistics(evidence, results, "Statistics of the guards", captions)?;
    let words = |o: Outcome| match o {
        Outcome::Reproduced => "holds",
        Outcome::NotReproduced => "does not hold",
        Outcome::Inconclusive => "undecided",
        Outcome::NotTested => "not tested",
    };
    for (row, result) in table.rows.iter_mut().zip(results) {
        if let Some(badge) = row.last_mut().and_then(|c| c.badge.as_mut()) {
            badge.word = words(result.outcome);
        }
    }
    Some(table)
}

fn forests(
    evidence: &Evidence,
    results: &[ComparisonResult],
    what: &str,
    captions: &mut Captions,
) -> Vec<ForestFigure> {
    let mut groups: Vec<(EffectUnit, Vec<&ComparisonResult>)> = Vec::new();
    for result in results.iter().filter(|r| effect::is_measured(r)) {
        let unit = EffectUnit::of(evidence, &result.comparison);
        match groups.iter_mut().find(|(u, _)| *u == unit) {
            Some((_, group)) => group.push(result),
            None => groups.push((unit, vec![result])),
        }
    }
    groups.into_iter().filter_map(|(unit, group)| forest(evidence, &unit, &group, what, captions)).collect()
}

fn forest(
    evidence: &Evidence,
    unit: &EffectUnit,
    results: &[&ComparisonResult],
    what: &str,
    captions: &mut Captions,
) -> Option<ForestFigure> {
    let rows = results.iter().map(|r| {
        let (treatment, control) = effect::labels(evidence, &r.comparison);
        Row {
            label: format!("{treatment} vs {control}"),
            value: format!("{} {}", unit.signed(r.effect), unit.interval(r.interval)),
            class: Badge::from(r.outcome).class.to_owned(),
            mean: r.effect,
            interval: Some(r.interval).filter(|i| i.0.is_finite() && i.1.is_finite()),
            points: r.pairs.iter().map(|(_, t, c)| r.comparison.effect_of(*t, *c)).collect(),
            minimum: Some(r.comparison.minimum_effect),
        }
    });
    let rows: Vec<Row> = rows.collect();
    let minimum = if rows.iter().any(|r| r.minimum.is_some_and(|m| m != 0.0)) {
        "; the dashed tick is the smallest effect that counts"
    } else {
        ""
    };
    let text = format!("The {what} with its 95 % interval against zero, one dot a pair of seeds{minimum}.");
    let caption = captions.figure(&text);
    let listed: Vec<String> = rows.iter().map(|r| format!("{}: {}", r.label, r.value)).collect();
    let plot = IntervalPlot {
        id: caption.id.clone(),
        title: format!("Effect and 95 % interval of {}", number::counted(rows.len(), "comparison")),
        description: format!("{}. Positive supports the claim.", listed.join("; ")),
        label: if unit.suffix.is_empty() { "effect".to_owned() } else { format!("effect in{}", unit.suffix) },
        rows,
        effects: true,
        factor: unit.factor,
    };
    Some(ForestFigure { plot: plot.draw()?, caption })
}

fn pairs(evidence: &Evidence, results: &[ComparisonResult]) -> Vec<Table> {
    let table = |r: &ComparisonResult| {
        let c = &r.comparison;
        let metric = names::metric(evidence.plan.experiment(&c.experiment), &c.metric);
        let unit = EffectUnit::of(evidence, c);
        let (treatment, control) = effect::labels(evidence, c);
        let row = |(seed, t, k): &(u64, f64, f64)| {
            vec![
                Cell { class: "num", ..Cell::row(seed.to_string()) },
                Cell::number(number::fixed(*t, metric.digits)),
                Cell::number(number::fixed(*k, metric.digits)),
                Cell::number(unit.signed(c.effect_of(*t, *k))),
            ]
        };
        Table {
            caption: None,
            name: format!("{}: {treatment} vs {control}, seed by seed", metric.label),
            head: vec![vec![
                Cell::number_head("seed"),
                Cell::number_head(&treatment),
                Cell::number_head(&control),
                Cell::number_head("effect"),
            ]],
            rows: r.pairs.iter().map(row).collect(),
            notes: Vec::new(),
        }
    };
    results.iter().filter(|r| !r.pairs.is_empty()).map(table).collect()
}

fn guard_lines(evidence: &Evidence, claim: &Claim, results: &[ComparisonResult]) -> Vec<GuardLine> {
    let line = |guard: &replica_core::claim::Guard| {
        let result = results.iter().find(|r| r.comparison == guard.comparison);
        let holds = match result.map(|r| r.outcome) {
            Some(Outcome::Reproduced) => "holds",
            Some(Outcome::NotReproduced) => "does not hold",
            Some(Outcome::Inconclusive) => "undecided",
            Some(Outcome::NotTested) | None => "not measured yet",
        };
        GuardLine {
            why: Line::of(&guard.why),
            requirement: effect::requirement(evidence, &guard.comparison),
            badge: result.map(|r| Badge { word: holds, ..r.outcome.into() }),
            holds,
        }
    };
    claim.guards.iter().map(line).collect()
}

fn exact_value(evidence: &Evidence, claim: &Claim) -> Option<f64> {
    let Test::Exact { experiment, variant, metric, .. } = &claim.test else { return None };
    let values: Vec<f64> = evidence.values(experiment, variant, metric).into_iter().map(|(_, v)| v).collect();
    Mean::of(&values).map(|m| m.mean)
}

fn exact_summary(evidence: &Evidence, claim: &Claim) -> Option<String> {
    let Test::Exact { experiment, variant, metric, expected, tolerance } = &claim.test else { return None };
    let computed = exact_value(evidence, claim)?;
    let metric = names::metric(evidence.plan.experiment(experiment), metric);
    let tolerance = match *tolerance {
        0.0 => String::new(),
        tolerance => format!(" ± {}", number::parameter(tolerance)),
    };
    Some(format!(
        "{} of {}: {} computed, {}{tolerance} expected",
        metric.label,
        names::variant(evidence, experiment, variant),
        number::fixed(computed, metric.digits),
        number::fixed(*expected, metric.digits),
    ))
}

fn exact_table(evidence: &Evidence, claim: &Claim, captions: &mut Captions) -> Option<Table> {
    let Test::Exact { experiment, variant, metric, expected, tolerance } = &claim.test else { return None };
    let metric = names::metric(evidence.plan.experiment(experiment), metric);
    let computed = exact_value(evidence, claim);
    let number = |x: f64| Cell::number(number::fixed(x, metric.digits));
    let missing = || Cell::missing("not run yet");
    let row = vec![
        Cell::row(names::variant(evidence, experiment, variant)).noted(names::with_unit(&metric)),
        number(*expected),
        computed.map_or_else(missing, number),
        computed.map_or_else(missing, |x| Cell::number(number::signed(x - expected, metric.digits))),
        Cell::number(number::parameter(*tolerance)),
    ];
    let heads = ["expected", "computed here", "difference", "tolerance"];
    let mut head = vec![Cell::head("Method")];
    head.extend(heads.iter().map(|h| Cell::number_head(*h)));
    Some(Table {
        caption: Some(captions.table("A number that follows without training.")),
        name: String::new(),
        head: vec![head],
        rows: vec![row],
        notes: Vec::new(),
    })
}
