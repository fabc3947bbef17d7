//! What an experiment measured, beside what the paper reports.

use std::collections::BTreeSet;

use replica_core::claim::Direction;
use replica_core::paper::{Reported, ReportedRow, ReportedTable};
use replica_core::plan::Metric;
use replica_core::trial::Role;
use replica_core::{Evidence, Experiment, Record};
use serde::Serialize;

use super::curves::{self, CurveFigure};
use super::examples::{self, Examples};
use super::table::{Cell, Table};
use super::tuning::{self, TuningResults};
use super::{configuration, names};
use crate::caption::{Caption, Captions};
use crate::interval::Mean;
use crate::number;
use crate::plot::STYLES;
use crate::plot::intervals::{IntervalDrawing, IntervalPlot, Row};
use crate::prose::Line;

/// An experiment's results.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    /// Anchor.
    pub id: String,
    /// Title of the experiment.
    pub title: String,
    /// Nothing has run.
    pub not_run: bool,
    /// How many main trials have run, where that is not all.
    pub progress: Option<String>,
    /// Whether it runs only when asked for.
    pub on_request: bool,
    /// Paper, experiment and scale, as the command line names them.
    pub path: String,
    /// Primary metric, reported and measured.
    pub primary: Option<Table>,
    /// Primary metric by seed.
    pub seeds: Option<SeedFigure>,
    /// Other metrics that have a better side.
    pub secondary: Option<Table>,
    /// Facts, time and memory.
    pub cost: Option<Table>,
    /// Inputs of the test with what the methods made of them.
    pub examples: Option<Examples>,
    /// Learning curves.
    pub curves: Vec<CurveFigure>,
    /// Tuning.
    pub tuning: Option<TuningResults>,
    /// Hyper-parameters.
    pub configuration: Table,
    /// What trials said.
    pub notes: Vec<Line>,
}

/// A strip plot of seeds.
#[derive(Debug, Serialize)]
pub(crate) struct SeedFigure {
    caption: Caption,
    plot: IntervalDrawing,
}

/// The results of an experiment.
pub(crate) fn results(
    evidence: &Evidence,
    experiment: &Experiment,
    id: String,
    captions: &mut Captions,
) -> Results {
    let (done, planned) = progress(evidence, experiment);
    let reported = reported(evidence, experiment);
    let tried = evidence.trials.iter().any(|t| t.spec.experiment == experiment.id && t.record.is_some());
    // tables of nothing would hide what there is
    let has_tables = tried || !reported.is_empty();
    let judged: Vec<&Metric> = experiment.metrics.iter().filter(|m| m.better.is_some()).collect();
    let primary = experiment.metrics.first().filter(|m| m.better.is_some() || !reported.is_empty());
    let rest: Vec<&Metric> =
        judged.iter().copied().filter(|m| primary.is_none_or(|p| p.name != m.name)).collect();
    let facts: Vec<&Metric> = experiment
        .metrics
        .iter()
        .filter(|m| m.better.is_none() && primary.is_none_or(|p| p.name != m.name))
        .collect();
    Results {
        id,
        title: experiment.title.clone(),
        not_run: done == 0,
        progress: (done > 0 && done < planned).then(|| format!("{done} of {planned} trials have run.")),
        on_request: experiment.on_request,
        path: format!("{}/{} --scale {}", evidence.paper.id, experiment.id, evidence.plan.scale),
        primary: primary
            .filter(|_| has_tables)
            .map(|m| primary_table(evidence, experiment, m, &reported, captions)),
        seeds: primary.and_then(|m| seed_figure(evidence, experiment, m, captions)),
        secondary: (!rest.is_empty() && done > 0)
            .then(|| secondary_table(evidence, experiment, &rest, captions)),
        cost: (done > 0).then(|| cost_table(evidence, experiment, &facts, captions)),
        examples: examples::examples(evidence, experiment),
        curves: curves::figures(evidence, experiment, captions),
        tuning: tried.then(|| tuning::results(evidence, experiment, captions)).flatten(),
        configuration: configuration::table(evidence, experiment),
        notes: notes(evidence, experiment),
    }
}

fn progress(evidence: &Evidence, experiment: &Experiment) -> (usize, usize) {
    let main =
        || evidence.trials.iter().filter(|t| t.spec.role == Role::Main && t.spec.experiment == experiment.id);
    (main().filter(|t| t.record.is_some()).count(), main().count())
}

fn reported<'a>(evidence: &'a Evidence, experiment: &Experiment) -> Vec<&'a ReportedTable> {
    let matches = |t: &&ReportedTable| t.experiment.as_deref() == Some(experiment.id.as_str());
    evidence.paper.reported.iter().filter(matches).collect()
}

/// A reported number, words, or the mark of an unknown.
pub(crate) fn reported_cell(cell: &Reported) -> Cell {
    match cell {
        unknown if unknown.is_unknown() => Cell::unknown(),
        Reported::Number(n) => {
            let text = n.to_string();
            let digits = text.split_once('.').map_or(0, |(_, fraction)| fraction.len().min(6));
            Cell::number(number::fixed(*n, digits))
        }
        Reported::Text(t) if t.trim().is_empty() => Cell::absent(),
        Reported::Text(t) => Cell { class: "num", ..Cell::text(t) },
    }
}

fn values(evidence: &Evidence, experiment: &Experiment, variant: &str, metric: &Metric) -> Vec<f64> {
    evidence.values(&experiment.id, variant, &metric.name).into_iter().map(|(_, v)| v).collect()
}

/// A value of a metric; byte metrics choose their own unit.
fn shown(metric: &Metric, x: f64) -> String {
    match metric.unit.as_str() {
        "B" | "byte" | "bytes" => number::bytes(x),
        _ => number::fixed(x, metric.digits),
    }
}

fn head(metric: &Metric) -> String {
    match metric.unit.as_str() {
        "B" | "byte" | "bytes" => metric.label.clone(),
        _ => names::with_direction(metric),
    }
}

/// Mean and interval; the note says what a reader must know about the number of seeds. A variant that has run without this
/// metric has no such thing: chains of thought have no programs that run.
fn measured_cell(
    evidence: &Evidence,
    experiment: &Experiment,
    variant: &str,
    (metric, values): (&Metric, &[f64]),
) -> Cell {
    let planned = experiment.seeds.len();
    if values.is_empty() {
        return match evidence.records(&experiment.id, variant).is_empty() {
            true => Cell::missing("not run yet"),
            false => Cell::absent(),
        };
    }
    let Some(mean) = Mean::of(values) else {
        let bad = values.iter().filter(|v| !v.is_finite()).count();
        return Cell::missing("not finite")
            .noted(format!("{bad} of {}", number::counted(values.len(), "seed")));
    };
    let plus_minus = mean.half_width.filter(|h| *h > 0.0).map(|h| shown(metric, h)).unwrap_or_default();
    let cell = Cell { plus_minus: Some(plus_minus), ..Cell::number(shown(metric, mean.mean)) };
    match mean.half_width {
        _ if mean.n < planned => cell.noted(format!("n = {} of {planned}", mean.n)),
        None => cell.noted("n = 1, no interval"),
        Some(0.0) => cell.noted("all seeds equal"),
        Some(_) => cell,
    }
}

fn seeds_cell(values: &[f64], planned: usize) -> Cell {
    match values.len() {
        n if n < planned => Cell::number(format!("{n} of {planned}")),
        n => Cell::number(n.to_string()),
    }
}

/// The variant whose interval lies on the better side of all others', if one does.
fn best(metric: &Metric, means: &[Option<Mean>]) -> Option<usize> {
    let better = metric.better?;
    let measured: Vec<(usize, &Mean)> =
        means.iter().enumerate().filter_map(|(i, m)| Some((i, m.as_ref()?))).collect();
    let (best, mean) = *measured.iter().min_by(|(_, a), (_, b)| match better {
        Direction::Lower => a.mean.total_cmp(&b.mean),
        Direction::Higher => b.mean.total_cmp(&a.mean),
    })?;
    let separate = measured.iter().all(|(i, m)| *i == best || mean.separates(m));
    (measured.len() > 1 && separate).then_some(best)
}

/// The paired difference to the baseline, in numbers and in a word.
fn difference_cells(
    evidence: &Evidence,
    experiment: &Experiment,
    variant: &str,
    metric: &Metric,
) -> [Cell; 2] {
    let missing = |why: &str| [Cell::absent(), Cell { class: "missing", ..Cell::text(why) }];
    let Some(baseline) = experiment.variants.first() else { return missing("no baseline") };
    if baseline.id == variant {
        return missing("baseline");
    }
    let control = evidence.values(&experiment.id, &baseline.id, &metric.name);
    let pairs: Vec<f64> = evidence
        .values(&experiment.id, variant, &metric.name)
        .into_iter()
        .filter_map(|(seed, v)| control.iter().find(|(s, _)| *s == seed).map(|(_, c)| v - c))
        .collect();
    let Some(mean) = Mean::of(&pairs) else {
        return missing(if pairs.is_empty() { "no pairs yet" } else { "not finite" });
    };
    let side = match (mean.interval(), metric.better) {
        (None, _) => "one pair",
        (Some((low, high)), _) if low <= 0.0 && high >= 0.0 => "undecided",
        (Some((low, _)), Some(Direction::Higher)) if low > 0.0 => "better",
        (Some((_, high)), Some(Direction::Lower)) if high < 0.0 => "better",
        (Some(_), Some(_)) => "worse",
        (Some(_), None) => "differs",
    };
    let half = mean.half_width.filter(|h| *h > 0.0).map(|h| number::fixed(h, metric.digits));
    let difference = Cell {
        plus_minus: Some(half.unwrap_or_default()),
        ..Cell::number(number::signed(mean.mean, metric.digits))
    };
    [difference, Cell::text(side)]
}

fn means(evidence: &Evidence, experiment: &Experiment, metric: &Metric) -> Vec<Option<Mean>> {
    experiment.variants.iter().map(|v| Mean::of(&values(evidence, experiment, &v.id, metric))).collect()
}

fn primary_table(
    evidence: &Evidence,
    experiment: &Experiment,
    metric: &Metric,
    reported: &[&ReportedTable],
    captions: &mut Captions,
) -> Table {
    let means = means(evidence, experiment, metric);
    let best = best(metric, &means);
    // whether a value is marked; nothing where there is nothing to choose from
    let several = means.iter().flatten().count() > 1;
    let marked = (several && metric.better.is_some()).then_some(best.is_some());
    let paired = metric.better.is_some() && experiment.variants.len() > 1;
    let mut used: BTreeSet<(usize, usize)> = BTreeSet::new();
    let mut rows = Vec::new();
    for (i, variant) in experiment.variants.iter().enumerate() {
        let mut row = vec![Cell::row(&variant.label).styled(i % STYLES)];
        for (t, table) in reported.iter().enumerate() {
            let of_variant = |r: &ReportedRow| r.variant.as_deref() == Some(variant.id.as_str());
            match table.rows.iter().position(of_variant) {
                Some(r) => {
                    used.insert((t, r));
                    row.extend(table.rows[r].cells.iter().map(reported_cell));
                }
                None => row.extend(table.columns.iter().map(|_| Cell::absent())),
            }
        }
        let values = values(evidence, experiment, &variant.id, metric);
        let planned = experiment.seeds.len();
        let mut measured = measured_cell(evidence, experiment, &variant.id, (metric, &values));
        if measured.plus_minus.is_some() {
            // the number of seeds has a column of its own
            measured.note = None;
        }
        row.extend([Cell { best: best == Some(i), ..measured }, seeds_cell(&values, planned)]);
        if paired {
            row.extend(difference_cells(evidence, experiment, &variant.id, metric));
        }
        rows.push(row);
    }
    for (t, table) in reported.iter().enumerate() {
        for (_, unmatched) in table.rows.iter().enumerate().filter(|(r, _)| !used.contains(&(t, *r))) {
            let mut row = vec![Cell::row(&unmatched.label)];
            for (other, table) in reported.iter().enumerate() {
                if other == t {
                    row.extend(unmatched.cells.iter().map(reported_cell));
                } else {
                    row.extend(table.columns.iter().map(|_| Cell::absent()));
                }
            }
            row.push(Cell { span: if paired { 4 } else { 2 }, ..Cell::missing("not part of this run") });
            rows.push(row);
        }
    }
    let caption = captions.table(&format!(
        "{}: {}{}.",
        experiment.title,
        names::with_unit(metric),
        if reported.is_empty() { ", measured here" } else { ", as reported and as measured here" },
    ));
    let head = primary_head(metric, reported, paired);
    Table {
        caption: Some(caption),
        name: String::new(),
        head,
        rows,
        notes: primary_notes(reported, paired, marked),
    }
}

fn primary_head(metric: &Metric, reported: &[&ReportedTable], paired: bool) -> Vec<Vec<Cell>> {
    let mut groups = vec![Cell::corner()];
    let mut columns = vec![Cell::head("Method")];
    for table in reported {
        groups.push(Cell::group("Reported", table.columns.len()).titled(&table.title));
        columns.extend(table.columns.iter().map(Cell::number_head));
    }
    groups.push(Cell::group("Measured here", if paired { 4 } else { 2 }));
    columns.extend([Cell::number_head(head(metric)), Cell::number_head("n")]);
    if paired {
        columns.extend([Cell::number_head("paired difference"), Cell::head("in a word")]);
    }
    vec![groups, columns]
}

fn primary_notes(reported: &[&ReportedTable], paired: bool, marked: Option<bool>) -> Vec<Line> {
    let mut notes =
        vec!["Mean ± half width of the 95 % t-interval over seeds; n is the number of seeds.".to_owned()];
    if paired {
        notes[0].push_str(
            " The paired difference is to the first method, seed by seed; it is undecided where its interval holds 0.",
        );
    }
    match marked {
        Some(true) => {
            notes.push("◂ marks the best value: its interval separates from all others.".to_owned())
        }
        Some(false) => {
            notes.push("No value is marked best: no interval separates from all others.".to_owned())
        }
        None => {}
    }
    for table in reported {
        notes.push(format!("Reported: {} — {}", table.title.trim_end_matches('.'), table.source));
    }
    if reported.iter().any(|t| t.rows.iter().any(|r| r.cells.iter().any(Reported::is_unknown))) {
        notes.push("? the paper has this number; it could not be obtained.".to_owned());
    }
    notes.iter().map(|n| Line::of(n)).collect()
}

fn seed_figure(
    evidence: &Evidence,
    experiment: &Experiment,
    metric: &Metric,
    captions: &mut Captions,
) -> Option<SeedFigure> {
    let mut rows = Vec::new();
    for (i, variant) in experiment.variants.iter().enumerate() {
        let values = values(evidence, experiment, &variant.id, metric);
        let Some(mean) = Mean::of(&values).filter(|m| m.n > 1) else { continue };
        rows.push(Row {
            label: variant.label.clone(),
            value: shown(metric, mean.mean),
            class: format!("s{}", i % STYLES),
            mean: mean.mean,
            interval: mean.interval(),
            points: values,
            minimum: None,
        });
    }
    if rows.len() < 2 {
        return None;
    }
    let text = format!("{}: {} of every seed, with mean and 95 % interval.", experiment.title, metric.label);
    let caption = captions.figure(&text);
    let listed: Vec<String> = rows.iter().map(|r| format!("{} {}", r.label, r.value)).collect();
    let plot = IntervalPlot {
        id: caption.id.clone(),
        title: format!("{} by method, one dot a seed", metric.label),
        description: format!("Means: {}. The table above has the intervals.", listed.join(", ")),
        label: names::with_direction(metric),
        rows,
        effects: false,
        factor: 1.0,
    };
    Some(SeedFigure { plot: plot.draw()?, caption })
}

fn secondary_table(
    evidence: &Evidence,
    experiment: &Experiment,
    metrics: &[&Metric],
    captions: &mut Captions,
) -> Table {
    let best: Vec<Option<usize>> = metrics.iter().map(|m| best(m, &means(evidence, experiment, m))).collect();
    let row = |(i, v): (usize, &replica_core::Variant)| {
        let mut row = vec![Cell::row(&v.label).styled(i % STYLES)];
        row.extend(metrics.iter().zip(&best).map(|(m, best)| {
            let cell =
                measured_cell(evidence, experiment, &v.id, (m, &values(evidence, experiment, &v.id, m)));
            Cell { best: *best == Some(i), ..cell }
        }));
        row
    };
    let mut columns = vec![Cell::head("Method")];
    columns.extend(metrics.iter().map(|m| Cell::number_head(head(m))));
    Table {
        caption: Some(captions.table(&format!("{}: further measurements.", experiment.title))),
        name: String::new(),
        head: vec![columns],
        rows: experiment.variants.iter().enumerate().map(row).collect(),
        notes: vec![Line::of(
            "Mean ± half width of the 95 % t-interval over seeds. Arrows point to the better side.",
        )],
    }
}

fn cost_table(
    evidence: &Evidence,
    experiment: &Experiment,
    facts: &[&Metric],
    captions: &mut Captions,
) -> Table {
    let memory = |r: &&Record| r.peak_memory_bytes.map(|b| b as f64);
    let any_memory = experiment
        .variants
        .iter()
        .any(|v| evidence.records(&experiment.id, &v.id).iter().any(|r| r.peak_memory_bytes.is_some()));
    let varies = |m: &&Metric| {
        means(evidence, experiment, m).iter().flatten().any(|m| m.half_width.is_some_and(|h| h > 0.0))
    };
    let spread: Vec<bool> = facts.iter().map(varies).collect();
    let row = |(i, v): (usize, &replica_core::Variant)| {
        let records = evidence.records(&experiment.id, &v.id);
        let mut row = vec![Cell::row(&v.label).styled(i % STYLES)];
        row.extend(facts.iter().zip(&spread).map(|(m, spread)| {
            let values = values(evidence, experiment, &v.id, m);
            match Mean::of(&values) {
                None => measured_cell(evidence, experiment, &v.id, (m, &values)),
                Some(mean) => {
                    let half = mean.half_width.filter(|h| *h > 0.0).map(|h| shown(m, h)).unwrap_or_default();
                    Cell { plus_minus: spread.then_some(half), ..Cell::number(shown(m, mean.mean)) }
                }
            }
        }));
        let seconds: Vec<f64> = records.iter().map(|r| r.seconds).collect();
        row.push(cell_of(&seconds, number::duration));
        if any_memory {
            row.push(cell_of(&records.iter().filter_map(memory).collect::<Vec<_>>(), number::bytes));
        }
        row
    };
    let mut columns = vec![Cell::head("Method")];
    columns.extend(facts.iter().map(|m| Cell::number_head(head(m))));
    columns.push(Cell::number_head("time per trial"));
    let mut notes =
        vec!["Time is wall-clock time of a whole trial, evaluation included, mean over seeds.".to_owned()];
    if !experiment.exclusive {
        notes[0].push_str(" Trials shared the machine: compare times within this table only, and with care.");
    }
    if any_memory {
        columns.push(Cell::number_head("peak memory"));
        notes.push("Peak memory is the largest number of bytes allocated at once.".to_owned());
    }
    Table {
        caption: Some(captions.table(&format!("{}: size, time and memory.", experiment.title))),
        name: String::new(),
        head: vec![columns],
        rows: experiment.variants.iter().enumerate().map(row).collect(),
        notes: notes.iter().map(|n| Line::of(n)).collect(),
    }
}

fn cell_of(values: &[f64], format: fn(f64) -> String) -> Cell {
    Mean::of(values).map_or_else(|| Cell::missing("not measured"), |m| Cell::number(format(m.mean)))
}

/// Notes of all main trials, each once, with how many trials made it.
fn notes(evidence: &Evidence, experiment: &Experiment) -> Vec<Line> {
    let mut notes: Vec<(String, usize)> = Vec::new();
    for variant in &experiment.variants {
        for note in evidence.records(&experiment.id, &variant.id).iter().flat_map(|r| &r.measurements.notes) {
            let text = format!("{}: {note}", variant.label);
            match notes.iter_mut().find(|(t, _)| *t == text) {
                Some((_, n)) => *n += 1,
                None => notes.push((text, 1)),
            }
        }
    }
    let line = |(text, n): (String, usize)| {
        Line::of(&if n > 1 { format!("{text} ({})", number::counted(n, "trial")) } else { text })
    };
    notes.into_iter().map(line).collect()
}
