//! Learning curves: a figure for every curve an experiment's trials left.

use std::collections::{BTreeMap, BTreeSet};

use replica_core::record::Curve;
use replica_core::{Evidence, Experiment};
use serde::Serialize;

use super::names;
use super::table::{Cell, Table};
use crate::caption::{Caption, Captions};
use crate::number;
use crate::plot::STYLES;
use crate::plot::axis::Axis;
use crate::plot::lines::{BandPoint, LineFigure, LinePlot, Series};

/// Abscissae of curves over a training run.
const TRAINING: [&str; 3] = ["tokens", "sequences", "steps of training"];
/// Points that a line is drawn through; more cannot be told apart.
const MOST_POINTS: usize = 160;
/// Rows of the table under a figure.
const MOST_ROWS: usize = 25;

/// A figure of lines, with its data.
#[derive(Debug, Serialize)]
pub(crate) struct CurveFigure {
    /// Number and caption.
    pub caption: Caption,
    /// The drawing.
    pub plot: LineFigure,
    /// The data.
    pub table: Table,
}

/// The figures of an experiment.
pub(crate) fn figures(
    evidence: &Evidence,
    experiment: &Experiment,
    captions: &mut Captions,
) -> Vec<CurveFigure> {
    let records = experiment.variants.iter().flat_map(|v| evidence.records(&experiment.id, &v.id));
    let curves: BTreeSet<&String> = records.flat_map(|r| r.measurements.curves.keys()).collect();
    curves.into_iter().filter_map(|name| figure(evidence, experiment, name, captions)).collect()
}

fn figure(
    evidence: &Evidence,
    experiment: &Experiment,
    name: &str,
    captions: &mut Captions,
) -> Option<CurveFigure> {
    let mut x_label = String::new();
    let mut most_seeds = 0;
    let mut series = Vec::new();
    for (i, variant) in experiment.variants.iter().enumerate() {
        let records = evidence.records(&experiment.id, &variant.id);
        let curves: Vec<&Curve> = records.iter().filter_map(|r| r.measurements.curves.get(name)).collect();
        let points = band(&curves);
        if points.is_empty() {
            continue;
        }
        x_label.clone_from(&curves[0].x_label);
        most_seeds = most_seeds.max(curves.len());
        series.push(Series { label: variant.label.clone(), style: i % STYLES, points, dots: false });
    }
    let all = || series.iter().flat_map(|s| &s.points);
    let (x_low, x_high) = range(all().map(|p| p.x))?;
    let (x, y, clipped) = (Axis::linear(x_low, x_high, 5), vertical(&series)?, clips(&series));
    let metric = names::metric(Some(experiment), name);
    let (label, y_label) = (metric.label.clone(), names::with_unit(&metric));
    let band = if most_seeds > 1 { "; bands span the smallest and largest seed" } else { "" };
    let above = if clipped && !y.is_log() {
        " The lines enter from above: the axis leaves out the beginning (see the data below)."
    } else {
        ""
    };
    let caption = captions.figure(&format!(
        "{}: {label} {}, mean of {}{band}.{above}",
        experiment.title,
        if TRAINING.contains(&x_label.as_str()) {
            "during training".to_owned()
        } else {
            format!("against {x_label}")
        },
        number::counted(most_seeds, "seed"),
    ));
    let table = table(&series, &metric, &x_label, x_high);
    let ends: Vec<String> = series
        .iter()
        .filter_map(|s| Some(format!("{} {}", s.label, number::fixed(s.points.last()?.y, metric.digits))))
        .collect();
    let plot = LinePlot {
        id: caption.id.clone(),
        title: format!("{label} against {x_label}, one line a method"),
        description: format!("At the end: {}. The table below has the values.", ends.join(", ")),
        x_label,
        y_label,
        x,
        y,
        series,
    };
    Some(CurveFigure { plot: plot.draw(), caption, table })
}

/// Mean, minimum and maximum over seeds wherever any has a value.
fn band(curves: &[&Curve]) -> Vec<BandPoint> {
    let mut at: BTreeMap<u64, Vec<(f64, f64)>> = BTreeMap::new();
    for curve in curves {
        for (x, y) in
            curve.x.iter().zip(&curve.y).filter(|(x, y)| x.is_finite() && y.is_finite() && **x >= 0.0)
        {
            // bits of non-negative floats are ordered as the floats are
            at.entry((x + 0.0).to_bits()).or_default().push((*x, *y));
        }
    }
    // where a seed lacks a point, the mean over the others would jump
    let complete = at.values().map(Vec::len).max().unwrap_or(0);
    let points = at.into_values().filter(|v| v.len() == complete).map(|v| BandPoint {
        x: v[0].0,
        y: v.iter().map(|p| p.1).sum::<f64>() / v.len() as f64,
        low: v.iter().map(|p| p.1).fold(f64::INFINITY, f64::min),
        high: v.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max),
    });
    thinned(&points.collect::<Vec<_>>(), MOST_POINTS)
}

/// At most `most` points: every second, third, ... one, and always the last.
fn thinned(points: &[BandPoint], most: usize) -> Vec<BandPoint> {
    let stride = points.len().saturating_sub(1).div_ceil(most - 1).max(1);
    let mut kept: Vec<BandPoint> = points.iter().copied().step_by(stride).collect();
    if points.len() % stride != 1 && stride > 1 {
        kept.extend(points.last());
    }
    kept
}

fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, v| match range {
        None => Some((v, v)),
        Some((low, high)) => Some((low.min(v), high.max(v))),
    })
}

/// Range of what comes after the first three tenths of every line.
fn late_range(series: &[Series]) -> Option<(f64, f64)> {
    range(series.iter().flat_map(|s| {
        let skipped = s.points.len() * 3 / 10;
        s.points[skipped..].iter().flat_map(|p| [p.low, p.high])
    }))
}

/// Whether the beginning would leave the rest, where methods part, less than half of the plot.
fn clips(series: &[Series]) -> bool {
    let all = range(series.iter().flat_map(|s| s.points.iter().flat_map(|p| [p.low, p.high])));
    match (all, late_range(series)) {
        (Some((_, highest)), Some((low, high))) => high > low && highest - low > 2.0 * (high - low),
        _ => false,
    }
}

fn vertical(series: &[Series]) -> Option<Axis> {
    let (low, high) = range(series.iter().flat_map(|s| s.points.iter().flat_map(|p| [p.low, p.high])))?;
    if low > 0.0 && high / low > 50.0 {
        return Some(Axis::log(low, high));
    }
    let (low, high) = if clips(series) { late_range(series)? } else { (low, high) };
    Some(Axis::rounded(low, high, 5))
}

fn table(series: &[Series], metric: &replica_core::plan::Metric, x_label: &str, largest: f64) -> Table {
    let thin: Vec<Vec<BandPoint>> = series.iter().map(|s| thinned(&s.points, MOST_ROWS)).collect();
    let mut rows: BTreeMap<u64, Vec<Option<BandPoint>>> = BTreeMap::new();
    for (i, points) in thin.iter().enumerate() {
        for p in points {
            let row = rows.entry((p.x + 0.0).to_bits()).or_insert_with(|| vec![None; series.len()]);
            row[i] = Some(*p);
        }
    }
    let digits = metric.digits;
    let cell = |p: &Option<BandPoint>| match p {
        None => Cell::absent(),
        Some(p) if p.low < p.high => Cell::number(number::fixed(p.y, digits)).noted(format!(
            "{} to {}",
            number::fixed(p.low, digits),
            number::fixed(p.high, digits)
        )),
        Some(p) => Cell::number(number::fixed(p.y, digits)),
    };
    let x_digits = if largest < 2.0 { 3 } else { 2 * usize::from(largest < 10.0) };
    let row = |(x, cells): (&u64, &Vec<Option<BandPoint>>)| {
        let mut row = vec![Cell { class: "num", ..Cell::row(number::fixed(f64::from_bits(*x), x_digits)) }];
        row.extend(cells.iter().map(cell));
        row
    };
    let mut head = vec![Cell::number_head(x_label)];
    head.extend(series.iter().map(|s| Cell::number_head(&s.label).styled(s.style)));
    Table {
        caption: None,
        name: format!("{} against {x_label}", metric.label),
        head: vec![head],
        rows: rows.iter().map(row).collect(),
        notes: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(y: &[f64]) -> Curve {
        Curve { x_label: "step".into(), x: (0..y.len()).map(|i| i as f64).collect(), y: y.to_vec() }
    }

    #[test]
    fn band_needs_all_seeds_and_finite_values() {
        let points = band(&[&curve(&[3.0, 2.0, 1.0]), &curve(&[5.0, f64::NAN])]);
        assert_eq!(points, [BandPoint { x: 0.0, y: 4.0, low: 3.0, high: 5.0 }]);
        assert!(band(&[&curve(&[])]).is_empty());
    }

    #[test]
    fn thinning_keeps_the_ends() {
        let points = band(&[&curve(&(0..1000).map(f64::from).collect::<Vec<_>>())]);
        assert!(points.len() <= MOST_POINTS && points.len() > MOST_POINTS / 2);
        assert_eq!((points[0].x, points[points.len() - 1].x), (0.0, 999.0));
        for n in 1..200 {
            let points = band(&[&curve(&vec![1.0; n])]);
            for most in [2, 7, 25] {
                let kept = thinned(&points, most);
                assert!(kept.len() <= most && kept.last() == points.last());
                assert!(kept.windows(2).all(|pair| pair[0].x < pair[1].x));
            }
        }
    }
}
