//! The nightly trend of every claim.

use replica_core::claim::{Comparison, EffectKind, Test};
use replica_core::{Claim, Evidence};
use serde::Serialize;

use super::badge::Badge;
use super::effect::EffectUnit;
use crate::caption::Captions;
use crate::date;
use crate::history::HistoryPoint;
use crate::number;
use crate::plot::spark::{self, SparkDrawing, SparkPoint};
use crate::prose::Line;

/// Runs that a trend shows at most.
const MOST_RUNS: usize = 30;

/// A claim over the nights.
#[derive(Debug, Serialize)]
pub(crate) struct Trend {
    paper: String,
    claim: Line,
    spark: SparkDrawing,
    runs: Vec<Run>,
    count: String,
    latest: Badge,
    since: String,
}

#[derive(Debug, Serialize)]
struct Run {
    day: String,
    commit: String,
    badge: Badge,
    effect: String,
    interval: String,
}

/// One trend for each claim that has a history.
pub(crate) fn trends(
    evidence: &[&Evidence],
    history: &[HistoryPoint],
    captions: &mut Captions,
) -> Vec<Trend> {
    let mut groups: Vec<Vec<&HistoryPoint>> = Vec::new();
    for point in history {
        let same = |g: &&mut Vec<&HistoryPoint>| g[0].paper == point.paper && g[0].claim == point.claim;
        match groups.iter_mut().find(same) {
            Some(group) => group.push(point),
            None => groups.push(vec![point]),
        }
    }
    groups.into_iter().filter_map(|points| trend(evidence, points, captions)).collect()
}

fn trend(evidence: &[&Evidence], mut points: Vec<&HistoryPoint>, captions: &mut Captions) -> Option<Trend> {
    points.sort_by_key(|p| p.when);
    let points = &points[points.len().saturating_sub(MOST_RUNS)..];
    let (first, last) = (points.first()?, points.last()?);
    let known = evidence.iter().find(|e| e.paper.id == last.paper);
    let claim = known.and_then(|e| e.paper.claims.iter().find(|c| c.id == last.claim));
    let unit = match (known, claim.and_then(comparison)) {
        (Some(evidence), Some(comparison)) => Some(EffectUnit::of(evidence, comparison)),
        _ => None,
    };
    let shown = |x: f64| unit.as_ref().map_or_else(|| number::signed(x, 4), |u| u.signed(x));
    let bounds = |i: (f64, f64)| {
        unit.as_ref().map_or_else(
            || format!("[{}, {}]", number::fixed(i.0, 4), number::fixed(i.1, 4)),
            |u| u.interval(i),
        )
    };
    let finite = |i: &(f64, f64)| i.0.is_finite() && i.1.is_finite();
    let run = |p: &&HistoryPoint| Run {
        day: date::day(p.when),
        commit: p.commit.chars().take(12).collect(),
        badge: p.outcome.into(),
        effect: p.effect.filter(|e| e.is_finite()).map_or_else(|| "—".to_owned(), shown),
        interval: p.interval.filter(finite).map_or_else(|| "—".to_owned(), bounds),
    };
    let spark_points: Vec<SparkPoint> = points
        .iter()
        .map(|p| SparkPoint { value: p.effect, interval: p.interval, class: Badge::from(p.outcome).class })
        .collect();
    let runs: Vec<Run> = points.iter().rev().map(run).collect();
    let description = format!(
        "{} from {} to {}; the latest verdict is {}, effect {}.",
        number::counted(points.len(), "run"),
        date::day(first.when),
        date::day(last.when),
        last.outcome.label(),
        runs[0].effect,
    );
    let id = captions.anchors.fresh("trend", &format!("{} {}", last.paper, last.claim));
    Some(Trend {
        paper: known.map_or_else(|| last.paper.clone(), |e| e.paper.short_title.clone()),
        claim: Line::of(claim.map_or(last.claim.as_str(), |c| c.statement.as_str())),
        spark: spark::draw(
            id,
            format!("Effect over {}", number::counted(points.len(), "run")),
            description,
            &spark_points,
        ),
        count: number::counted(points.len(), "run"),
        latest: last.outcome.into(),
        since: date::day(first.when),
        runs,
    })
}

fn comparison(claim: &Claim) -> Option<&Comparison> {
    match &claim.test {
        Test::Paired { comparisons } => comparisons.first().filter(|c| {
            // all comparisons of a claim share a unit, or the trend's numbers would be ambiguous
            comparisons
                .iter()
                .all(|d| d.effect == c.effect && (c.effect == EffectKind::Relative || d.metric == c.metric))
        }),
        _ => None,
    }
}
