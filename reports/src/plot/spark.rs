//! A trend in the size of a word.

use std::fmt::Write as _;

use serde::Serialize;

use super::tenth;

/// One run of a trend.
pub(crate) struct SparkPoint {
    /// Effect, if there was one.
    pub value: Option<f64>,
    /// Its interval.
    pub interval: Option<(f64, f64)>,
    /// CSS class of its outcome.
    pub class: &'static str,
}

/// The trend as a template draws it.
#[derive(Debug, Serialize)]
pub(crate) struct SparkDrawing {
    id: String,
    title: String,
    description: String,
    width: f64,
    height: f64,
    zero: Option<f64>,
    line: String,
    runs: Vec<SparkRun>,
}

#[derive(Debug, Serialize)]
struct SparkRun {
    x: f64,
    class: &'static str,
    y: Option<f64>,
    interval: Option<(f64, f64)>,
}

const WIDTH: f64 = 180.0;
const HEIGHT: f64 = 40.0;

/// Computes a trend's drawing.
pub(crate) fn draw(id: String, title: String, description: String, points: &[SparkPoint]) -> SparkDrawing {
    let values = points
        .iter()
        .flat_map(|p| p.value.into_iter().chain(p.interval.into_iter().flat_map(|i| [i.0, i.1])));
    let (low, high) =
        values.filter(|v| v.is_finite()).fold((0f64, 0f64), |(low, high), v| (low.min(v), high.max(v)));
    let span = if high > low { high - low } else { 1.0 };
    let y = |v: f64| tenth(HEIGHT - 4.0 - (v - low) / span * (HEIGHT - 8.0));
    let step = (WIDTH - 12.0) / (points.len().max(2) - 1) as f64;
    let runs: Vec<SparkRun> = points
        .iter()
        .enumerate()
        .map(|(i, p)| SparkRun {
            x: tenth(6.0 + step * i as f64),
            class: p.class,
            y: p.value.filter(|v| v.is_finite()).map(y),
            interval: p.interval.filter(|i| i.0.is_finite() && i.1.is_finite()).map(|i| (y(i.0), y(i.1))),
        })
        .collect();
    let mut line = String::new();
    let mut pen_down = false;
    for run in &runs {
        if let Some(y) = run.y {
            // writing to a string cannot fail
            let _ = write!(line, "{}{} {y}", if pen_down { 'L' } else { 'M' }, run.x);
        }
        pen_down = run.y.is_some();
    }
    let zero = runs.iter().any(|r| r.y.is_some()).then(|| y(0.0));
    SparkDrawing { id, title, description, width: WIDTH, height: HEIGHT, zero, line, runs }
}
