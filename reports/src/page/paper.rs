//! A paper's page.

use replica_core::trial::Role;
use replica_core::{Evidence, Outcome};
use serde::Serialize;

use super::badge::{Badge, Tally};
use super::provenance::{self, Provenance};
use super::results::{self, Results, reported_cell};
use super::setup::{self, Setup};
use super::table::{Cell, Table};
use super::verdict::{self, Judgement};
use super::{Sheet, names};
use crate::caption::Captions;
use crate::golden::GoldenStatus;
use crate::number;
use crate::prose::{Line, Prose};

/// Everything a paper's page says.
#[derive(Debug, Serialize)]
pub(crate) struct PaperPage {
    title: String,
    short_title: String,
    authors: String,
    venue: String,
    year: u16,
    link: Option<String>,
    url: String,
    code: Option<SourceLink>,
    setting: String,
    smoke: bool,
    siblings: Vec<Sibling>,
    tally: Vec<Tally>,
    in_words: String,
    effort: String,
    claims: Vec<ClaimLine>,
    summary: Prose,
    method: Prose,
    unavailable: Option<Prose>,
    reported_elsewhere: Vec<Table>,
    setups: Vec<Setup>,
    results: Vec<Results>,
    judgements: Vec<Judgement>,
    goldens: Vec<GoldenLine>,
    deviations: Vec<DeviationLine>,
    provenance: Provenance,
    pending: Option<Table>,
    pending_count: String,
    command: String,
}

#[derive(Debug, Serialize)]
struct SourceLink {
    text: String,
    link: Option<String>,
}

#[derive(Debug, Serialize)]
struct Sibling {
    setting: String,
    file: String,
    words: String,
}

#[derive(Debug, Serialize)]
struct ClaimLine {
    statement: Line,
    badge: Badge,
    effect: Option<String>,
    target: String,
}

#[derive(Debug, Serialize)]
struct GoldenLine {
    experiment: String,
    badge: Badge,
    detail: Line,
}

#[derive(Debug, Serialize)]
struct DeviationLine {
    what: Line,
    why: Line,
}

/// An address that a link may lead to; anything but http(s) is shown as text only.
pub(crate) fn web_address(text: &str) -> Option<String> {
    let address = text.starts_with("https://") || text.starts_with("http://");
    (address && !text.chars().any(|c| c.is_whitespace() || c.is_control())).then(|| text.to_owned())
}

/// The page of a sheet; `siblings` are the same paper's sheets at other scales or backends.
pub(crate) fn page(sheet: &Sheet, siblings: &[&Sheet], goldens: &[GoldenStatus]) -> PaperPage {
    let evidence = sheet.evidence;
    let paper = &evidence.paper;
    let mut captions = Captions::default();
    let result_ids: Vec<String> =
        evidence.plan.experiments.iter().map(|e| captions.anchors.fresh("results", &e.id)).collect();
    let claim_ids = claim_anchors(evidence, &mut captions);
    let outcomes: Vec<Outcome> = paper.claims.iter().map(|c| verdict::outcome(evidence, c)).collect();
    let claims = paper.claims.iter().zip(&claim_ids).map(|(c, id)| ClaimLine {
        statement: Line::of(&c.statement),
        badge: verdict::outcome(evidence, c).into(),
        effect: verdict::summary(evidence, c),
        target: id.clone(),
    });
    let reported_elsewhere = reported_elsewhere(evidence, &mut captions);
    let setups = evidence.plan.experiments.iter().zip(&result_ids);
    let setups = setups.map(|(e, id)| setup::setup(evidence, e, &mut captions, id.clone())).collect();
    let results = evidence.plan.experiments.iter().zip(result_ids);
    let results = results.map(|(e, id)| results::results(evidence, e, id, &mut captions)).collect();
    let judgements = paper.claims.iter().zip(&claim_ids);
    let judgements =
        judgements.map(|(c, id)| verdict::judgement(evidence, c, id.clone(), &mut captions)).collect();
    let pending = evidence.trials.iter().filter(|t| t.record.is_none()).count();
    PaperPage {
        title: paper.title.clone(),
        short_title: paper.short_title.clone(),
        authors: paper.authors.join(", "),
        venue: paper.venue.clone(),
        year: paper.year,
        link: web_address(&paper.url),
        url: paper.url.clone(),
        code: paper.code.as_ref().map(|c| SourceLink { text: c.clone(), link: web_address(c) }),
        setting: sheet.setting(),
        smoke: sheet.is_smoke(),
        siblings: siblings.iter().map(|s| sibling(s)).collect(),
        tally: Tally::of(&outcomes),
        in_words: in_words(sheet, &outcomes),
        effort: effort(evidence),
        claims: claims.collect(),
        summary: Prose::of(&paper.summary),
        method: Prose::of(&paper.method),
        unavailable: paper.unavailable.as_deref().map(Prose::of),
        reported_elsewhere,
        setups,
        results,
        judgements,
        goldens: golden_lines(sheet, goldens),
        deviations: paper
            .deviations
            .iter()
            .map(|d| DeviationLine { what: Line::of(&d.what), why: Line::of(&d.why) })
            .collect(),
        provenance: provenance::provenance(evidence, &mut captions),
        pending: provenance::pending(evidence),
        pending_count: number::counted(pending, "trial"),
        command: evidence.command.clone(),
    }
}

/// The anchors of a paper's claims, in their order.
pub(crate) fn claim_anchors(evidence: &Evidence, captions: &mut Captions) -> Vec<String> {
    evidence.paper.claims.iter().map(|c| captions.anchors.fresh("claim", &c.id)).collect()
}

fn sibling(sheet: &Sheet) -> Sibling {
    let evidence = sheet.evidence;
    let outcomes: Vec<Outcome> =
        evidence.paper.claims.iter().map(|c| verdict::outcome(evidence, c)).collect();
    Sibling { setting: sheet.setting(), file: sheet.file.clone(), words: Tally::in_words(&outcomes) }
}

fn in_words(sheet: &Sheet, outcomes: &[Outcome]) -> String {
    let setting = sheet.setting();
    if outcomes.is_empty() {
        return format!("No claim of this paper is listed yet ({setting}).");
    }
    format!("{} at {setting}: {}.", number::counted(outcomes.len(), "claim"), Tally::in_words(outcomes))
}

fn effort(evidence: &Evidence) -> String {
    let records = || evidence.trials.iter().filter_map(|t| t.record.as_ref());
    let done = records().count();
    if done == 0 {
        return format!("None of {} has run yet.", number::counted(evidence.trials.len(), "trial"));
    }
    let tuning = records().filter(|r| r.spec.role == Role::Tuning).count();
    let seconds: f64 = records().map(|r| r.seconds).sum();
    let of = if done == evidence.trials.len() {
        format!("The evidence is {}", number::counted(done, "trial"))
    } else {
        format!("The evidence is {done} of {}", number::counted(evidence.trials.len(), "planned trial"))
    };
    let tuning = if tuning > 0 { format!(", {tuning} of them for tuning") } else { String::new() };
    format!("{of}{tuning}, {} of computing in all.", number::duration(seconds))
}

/// Reported tables that no experiment of the plan measures.
fn reported_elsewhere(evidence: &Evidence, captions: &mut Captions) -> Vec<Table> {
    let shown_with_results = |experiment: &Option<String>| {
        experiment
            .as_deref()
            .is_some_and(|e| evidence.plan.experiment(e).is_some_and(|e| !e.metrics.is_empty()))
    };
    let tables = evidence.paper.reported.iter().filter(|t| !shown_with_results(&t.experiment));
    tables
        .map(|t| {
            let mut head = vec![Cell::head("Method")];
            head.extend(t.columns.iter().map(Cell::number_head));
            let row = |r: &replica_core::paper::ReportedRow| {
                let mut row = vec![Cell::row(&r.label)];
                row.extend(r.cells.iter().map(reported_cell));
                row
            };
            let unknown =
                t.rows.iter().any(|r| r.cells.iter().any(replica_core::paper::Reported::is_unknown));
            let mut notes = vec![Line::of(&format!("Source: {}", t.source))];
            if unknown {
                notes.push(Line::of("? the paper has this number; it could not be obtained."));
            }
            Table {
                caption: Some(captions.table(&format!("Reported, not measured at this scale: {}", t.title))),
                name: String::new(),
                head: vec![head],
                rows: t.rows.iter().map(row).collect(),
                notes,
            }
        })
        .collect()
}

fn golden_lines(sheet: &Sheet, goldens: &[GoldenStatus]) -> Vec<GoldenLine> {
    let evidence = sheet.evidence;
    let mine = |g: &&GoldenStatus| {
        g.paper == evidence.paper.id && g.scale == evidence.plan.scale && g.backend == evidence.backend
    };
    let line = |g: &GoldenStatus| GoldenLine {
        experiment: names::experiment(evidence, &g.experiment),
        badge: g.state.into(),
        detail: Line::of(&g.detail),
    };
    goldens.iter().filter(mine).map(line).collect()
}
