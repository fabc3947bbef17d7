//! The first page: a board of all claims.

use replica_core::{Outcome, Scale};
use serde::Serialize;

use super::badge::{Badge, Tally};
use super::paper::claim_anchors;
use super::trend::{self, Trend};
use super::{Sheet, verdict};
use crate::caption::Captions;
use crate::golden::{GoldenState, GoldenStatus};
use crate::history::HistoryPoint;
use crate::number;
use crate::prose::Line;

/// Everything the first page says.
#[derive(Debug, Serialize)]
pub(crate) struct IndexPage {
    totals: Vec<Tally>,
    in_words: String,
    papers: Vec<PaperLine>,
    smoke: bool,
    goldens: Option<GoldenSummary>,
    trends: Vec<Trend>,
}

#[derive(Debug, Serialize)]
struct PaperLine {
    id: String,
    short_title: String,
    title: String,
    cite: String,
    file: String,
    sheets: Vec<SheetLine>,
    claims: Vec<ClaimLine>,
    strip: Vec<StripItem>,
}

#[derive(Debug, Serialize)]
struct SheetLine {
    setting: String,
    file: String,
    trials: String,
}

/// A claim, with one reading for each scale and backend.
#[derive(Debug, Serialize)]
struct ClaimLine {
    statement: Line,
    readings: Vec<Reading>,
}

#[derive(Debug, Serialize)]
struct Reading {
    badge: Badge,
    effect: Option<String>,
    scale: String,
    backend: String,
    href: String,
}

#[derive(Debug, Serialize)]
struct StripItem {
    badge: Badge,
    href: String,
    statement: String,
}

#[derive(Debug, Serialize)]
struct GoldenSummary {
    words: String,
    moved: Vec<MovedGolden>,
}

#[derive(Debug, Serialize)]
struct MovedGolden {
    place: String,
    badge: Badge,
    detail: Line,
}

/// The first page over papers, each with its sheets, the one that speaks for it first.
pub(crate) fn page(papers: &[Vec<Sheet>], history: &[HistoryPoint], goldens: &[GoldenStatus]) -> IndexPage {
    let mut captions = Captions::default();
    let papers: Vec<&[Sheet]> = papers.iter().map(Vec::as_slice).filter(|p| !p.is_empty()).collect();
    let outcomes: Vec<Outcome> = papers
        .iter()
        .flat_map(|sheets| sheets[0].evidence.paper.claims.iter().map(|c| speaking(sheets, &c.id).1))
        .collect();
    let evidence: Vec<_> = papers.iter().map(|sheets| sheets[0].evidence).collect();
    IndexPage {
        totals: Tally::of(&outcomes),
        in_words: format!(
            "{} of {}: {}.",
            number::counted(outcomes.len(), "claim"),
            number::counted(papers.len(), "paper"),
            Tally::in_words(&outcomes)
        ),
        smoke: papers.iter().any(|sheets| sheets.iter().all(Sheet::is_smoke)),
        papers: papers.iter().map(|sheets| paper_line(sheets, &mut captions)).collect(),
        goldens: golden_summary(goldens),
        trends: trend::trends(&evidence, history, &mut captions),
    }
}

/// The sheet whose verdict on a claim counts: the first one, unless it does not test the claim and another does.
fn speaking<'a, 'b>(sheets: &'a [Sheet<'b>], claim: &str) -> (&'a Sheet<'b>, Outcome) {
    let readings = || {
        sheets.iter().map(|s| {
            let claim = s.evidence.paper.claims.iter().find(|c| c.id == claim);
            (s, claim.map_or(Outcome::NotTested, |c| verdict::outcome(s.evidence, c)))
        })
    };
    readings().find(|(_, o)| *o != Outcome::NotTested).unwrap_or((&sheets[0], Outcome::NotTested))
}

fn paper_line(sheets: &[Sheet], captions: &mut Captions) -> PaperLine {
    let paper = &sheets[0].evidence.paper;
    let first_author = paper.authors.first().map_or("", String::as_str);
    let others = if paper.authors.len() > 1 { " et al." } else { "" };
    PaperLine {
        id: captions.anchors.fresh("paper", &paper.id),
        short_title: paper.short_title.clone(),
        title: paper.title.clone(),
        cite: format!("{first_author}{others}, {}, {}", paper.venue, paper.year),
        file: sheets[0].file.clone(),
        sheets: sheets.iter().map(sheet_line).collect(),
        claims: paper.claims.iter().map(|c| claim_line(sheets, c)).collect(),
        strip: paper
            .claims
            .iter()
            .map(|c| {
                let (sheet, outcome) = speaking(sheets, &c.id);
                StripItem { badge: outcome.into(), href: link(sheet, &c.id), statement: c.statement.clone() }
            })
            .collect(),
    }
}

fn sheet_line(sheet: &Sheet) -> SheetLine {
    let trials = &sheet.evidence.trials;
    let done = trials.iter().filter(|t| t.record.is_some()).count();
    SheetLine {
        setting: sheet.setting(),
        file: sheet.file.clone(),
        trials: if trials.is_empty() {
            "no trial planned".to_owned()
        } else {
            format!("{done} of {}", number::counted(trials.len(), "trial"))
        },
    }
}

fn claim_line(sheets: &[Sheet], claim: &replica_core::Claim) -> ClaimLine {
    let (speaking, _) = speaking(sheets, &claim.id);
    let mut order: Vec<&Sheet> = vec![speaking];
    order.extend(sheets.iter().filter(|s| s.file != speaking.file));
    let readings = order.into_iter().filter_map(|s| {
        let claim = s.evidence.paper.claims.iter().find(|c| c.id == claim.id)?;
        let outcome = verdict::outcome(s.evidence, claim);
        // a scale that cannot judge the claim adds nothing beside one that can
        if outcome == Outcome::NotTested && s.file != speaking.file {
            return None;
        }
        Some(Reading {
            badge: outcome.into(),
            effect: verdict::summary(s.evidence, claim),
            scale: s.evidence.plan.scale.to_string(),
            backend: s.backend(),
            href: link(s, &claim.id),
        })
    });
    ClaimLine { statement: Line::of(&claim.statement), readings: readings.collect() }
}

/// The address of a claim's verdict.
fn link(sheet: &Sheet, claim: &str) -> String {
    let mut captions = Captions::default();
    let claims = &sheet.evidence.paper.claims;
    let anchors = claim_anchors(sheet.evidence, &mut captions);
    let anchor = claims.iter().position(|c| c.id == claim).and_then(|i| anchors.get(i));
    anchor.map_or_else(|| sheet.file.clone(), |a| format!("{}#{a}", sheet.file))
}

fn golden_summary(goldens: &[GoldenStatus]) -> Option<GoldenSummary> {
    if goldens.is_empty() {
        return None;
    }
    let agrees = goldens.iter().filter(|g| g.state == GoldenState::Agrees).count();
    let moved = goldens.iter().filter(|g| g.state != GoldenState::Agrees).map(|g| MovedGolden {
        place: place(&g.paper, &g.experiment, g.scale, &g.backend),
        badge: g.state.into(),
        detail: Line::of(&g.detail),
    });
    Some(GoldenSummary {
        words: format!(
            "The latest records agree with the reviewed ones in {agrees} of {}.",
            number::counted(goldens.len(), "experiment")
        ),
        moved: moved.collect(),
    })
}

fn place(paper: &str, experiment: &str, scale: Scale, backend: &str) -> String {
    format!("{paper}/{experiment}, {scale}, {backend}")
}
