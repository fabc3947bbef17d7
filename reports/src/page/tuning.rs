//! What tuning tried, and what it chose.

use replica_core::{Evidence, Experiment, Record, Variant};
use serde::Serialize;

use super::curves::CurveFigure;
use super::names;
use super::table::{Cell, Table};
use crate::caption::Captions;
use crate::interval::Mean;
use crate::number;
use crate::plot::STYLES;
use crate::plot::axis::Axis;
use crate::plot::lines::{BandPoint, LinePlot, Series};
use crate::prose::Line;

/// An experiment's tuning results.
#[derive(Debug, Serialize)]
pub(crate) struct TuningResults {
    table: Table,
    figure: Option<CurveFigure>,
    warnings: Vec<Line>,
}

/// The tuning results of an experiment that tunes.
pub(crate) fn results(
    evidence: &Evidence,
    experiment: &Experiment,
    captions: &mut Captions,
) -> Option<TuningResults> {
    let tuning = experiment.tuning.as_ref()?;
    let mut values = tuning.values.clone();
    values.sort_by(f64::total_cmp);
    let metric = names::metric(Some(experiment), &tuning.metric);
    let (mut rows, mut series, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
    let mut diverged = false;
    for (i, variant) in experiment.variants.iter().enumerate() {
        let records = evidence.tuning_records(&experiment.id, &variant.id);
        let tried: Vec<Option<Tried>> =
            values.iter().map(|v| tried(&records, &tuning.parameter, &tuning.metric, *v)).collect();
        let chosen = chosen(evidence, experiment, variant, &tuning.parameter, &values, &tried);
        let mut row = vec![Cell::row(&variant.label).styled(i % STYLES)];
        for (j, tried) in tried.iter().enumerate() {
            row.push(match tried {
                None => Cell::missing("not run yet"),
                Some(Tried { mean: None, .. }) => {
                    diverged = true;
                    Cell::missing("not finite")
                }
                Some(Tried { mean: Some(m), .. }) => {
                    Cell { best: chosen == Some(j), ..Cell::number(number::fixed(m.mean, metric.digits)) }
                }
            });
        }
        row.push(
            chosen.map_or_else(|| Cell::missing("not yet"), |j| Cell::number(number::parameter(values[j]))),
        );
        rows.push(row);
        if let Some(j) = chosen.filter(|j| values.len() > 1 && (*j == 0 || j + 1 == values.len())) {
            let side = if j == 0 { "smallest" } else { "largest" };
            warnings.push(Line::of(&format!(
                "{}: the best `{}`, {}, is the {side} value tried, so a better one may lie outside the grid.",
                variant.label,
                tuning.parameter,
                number::parameter(values[j]),
            )));
        }
        let points = values.iter().zip(&tried).filter_map(|(x, t)| {
            let t = t.as_ref()?;
            let mean = t.mean?.mean;
            Some(BandPoint { x: *x, y: mean, low: t.low, high: t.high })
        });
        series.push(Series {
            label: variant.label.clone(),
            style: i % STYLES,
            points: points.collect(),
            dots: true,
        });
    }
    let mut head = vec![Cell::head("Method")];
    head.extend(values.iter().map(|v| Cell::number_head(number::parameter(*v))));
    head.push(Cell::number_head("chosen"));
    let groups = vec![
        Cell::corner(),
        Cell::group(format!("{} at {}", metric.label, names::spelled(&tuning.parameter)), values.len()),
        Cell::corner(),
    ];
    let mut notes = vec![Line::of("◂ marks the value chosen. The search is judged on validation data only.")];
    if diverged {
        notes.push(Line::of(
            "“not finite”: the measured value is not a finite number; such a value is never chosen.",
        ));
    }
    let caption = captions.table(&format!(
        "{}: search over `{}`, mean of {}.",
        experiment.title,
        tuning.parameter,
        number::counted(tuning.seeds.len(), "tuning seed"),
    ));
    let table = Table { caption: Some(caption), name: String::new(), head: vec![groups, head], rows, notes };
    Some(TuningResults { figure: figure(experiment, &metric, &values, series, captions), table, warnings })
}

struct Tried {
    mean: Option<Mean>,
    low: f64,
    high: f64,
}

fn tried(records: &[&Record], parameter: &str, metric: &str, value: f64) -> Option<Tried> {
    let here = |r: &&&Record| number_at(&r.spec.config, parameter).is_some_and(|v| same(v, value));
    let measured: Vec<f64> =
        records.iter().filter(here).filter_map(|r| r.measurements.metrics.get(metric).copied()).collect();
    (!measured.is_empty()).then(|| Tried {
        mean: Mean::of(&measured),
        low: measured.iter().copied().fold(f64::INFINITY, f64::min),
        high: measured.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    })
}

/// What the main trials used, or the lowest mean once all values have one.
fn chosen(
    evidence: &Evidence,
    experiment: &Experiment,
    variant: &Variant,
    parameter: &str,
    values: &[f64],
    tried: &[Option<Tried>],
) -> Option<usize> {
    let used = evidence.records(&experiment.id, &variant.id);
    if let Some(used) = used.first().and_then(|r| number_at(&r.spec.config, parameter)) {
        return values.iter().position(|v| same(*v, used));
    }
    if tried.iter().any(Option::is_none) {
        return None;
    }
    let mean = |i: &usize| tried[*i].as_ref().and_then(|t| t.mean).map(|m| m.mean);
    (0..values.len())
        .filter(|i| mean(i).is_some())
        .min_by(|a, b| mean(a).unwrap_or(f64::INFINITY).total_cmp(&mean(b).unwrap_or(f64::INFINITY)))
}

fn number_at(config: &serde_json::Value, key: &str) -> Option<f64> {
    config.get(key)?.as_f64()
}

fn same(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

fn figure(
    experiment: &Experiment,
    metric: &replica_core::plan::Metric,
    values: &[f64],
    series: Vec<Series>,
    captions: &mut Captions,
) -> Option<CurveFigure> {
    let series: Vec<Series> = series.into_iter().filter(|s| s.points.len() > 1).collect();
    let tuning = experiment.tuning.as_ref()?;
    let ys = || series.iter().flat_map(|s| s.points.iter().map(|p| p.y));
    let (low, high) = (ys().fold(f64::INFINITY, f64::min), ys().fold(f64::NEG_INFINITY, f64::max));
    if !low.is_finite() || !high.is_finite() {
        return None;
    }
    let x = if values[0] > 0.0 {
        Axis::log_at(values)
    } else {
        Axis::linear(values[0], values[values.len() - 1], 5)
    };
    let y = if low > 0.0 && high / low > 50.0 { Axis::log(low, high) } else { Axis::rounded(low, high, 4) };
    let spelled = names::spelled(&tuning.parameter);
    let caption = captions.figure(&format!(
        "{}: {} over the search for `{}`.",
        experiment.title, metric.label, tuning.parameter
    ));
    let plot = LinePlot {
        id: caption.id.clone(),
        title: format!("{} against {spelled}, one line a method", metric.label),
        description: "The table above has the values.".to_owned(),
        x_label: spelled,
        y_label: names::with_unit(metric),
        x,
        y,
        series,
    };
    let table = Table { caption: None, name: String::new(), head: vec![], rows: vec![], notes: vec![] };
    Some(CurveFigure { plot: plot.draw(), caption, table })
}
