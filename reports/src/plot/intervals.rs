//! Means and effects with their intervals, one a row: strip plots of seeds, forest plots of effects.

use serde::Serialize;

use super::axis::Axis;
use super::{TickMark, shortened, tenth};

/// What a plot of intervals shows.
pub(crate) struct IntervalPlot {
    /// Prefix of the ids within the drawing.
    pub id: String,
    /// Name for screen readers.
    pub title: String,
    /// What a reader would see, in a sentence or two.
    pub description: String,
    /// Label of the axis.
    pub label: String,
    /// The rows, from the top.
    pub rows: Vec<Row>,
    /// Whether the values are effects: zero is marked, and the sides of it are named.
    pub effects: bool,
    /// Factor from the rows' units to the axis's, e.g. 100 for percent.
    pub factor: f64,
}

/// A row.
pub(crate) struct Row {
    /// Its name, above the interval.
    pub label: String,
    /// Its value in words, at the right.
    pub value: String,
    /// CSS class: a series style or an outcome.
    pub class: String,
    /// The mean.
    pub mean: f64,
    /// Its interval.
    pub interval: Option<(f64, f64)>,
    /// Single seeds.
    pub points: Vec<f64>,
    /// Smallest effect that counts.
    pub minimum: Option<f64>,
}

/// The plot as a template draws it.
#[derive(Debug, Serialize)]
pub(crate) struct IntervalDrawing {
    id: String,
    title: String,
    description: String,
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    ticks: Vec<TickMark>,
    label: String,
    zero: Option<f64>,
    sides: bool,
    rows: Vec<DrawnRow>,
}

#[derive(Debug, Serialize)]
struct DrawnRow {
    label: String,
    value: String,
    class: String,
    text_y: f64,
    y: f64,
    mean: f64,
    interval: Option<(f64, f64)>,
    points: Vec<f64>,
    minimum: Option<f64>,
}

const WIDTH: f64 = 440.0;
const MARGIN: f64 = 14.0;
const ROW: f64 = 46.0;

impl IntervalPlot {
    /// Computes the drawing; nothing if no row has a finite mean.
    pub fn draw(&self) -> Option<IntervalDrawing> {
        let rows: Vec<&Row> = self.rows.iter().filter(|r| r.mean.is_finite()).collect();
        let scaled = |x: f64| x * self.factor;
        let values = rows.iter().flat_map(|r| {
            let interval = r.interval.into_iter().flat_map(|(low, high)| [low, high]);
            let minimum = r.minimum.filter(|_| self.effects);
            let zero = self.effects.then_some(0.0);
            interval.chain(r.points.iter().copied()).chain(minimum).chain(zero).chain([r.mean])
        });
        let (low, high) = values
            .filter(|v| v.is_finite())
            .map(scaled)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        if rows.is_empty() {
            return None;
        }
        let padding = (high - low) * 0.06;
        let axis = Axis::linear(low - padding, high + padding, 5);
        let (left, right, top) = (MARGIN, WIDTH - MARGIN, 8.0);
        let bottom = top + ROW * rows.len() as f64;
        let at = |x: f64| tenth(axis.position(scaled(x), left, right));
        let finite = |i: (f64, f64)| (i.0.is_finite() && i.1.is_finite()).then(|| (at(i.0), at(i.1)));
        let drawn = rows.iter().enumerate().map(|(i, r)| {
            let y = top + ROW * i as f64;
            DrawnRow {
                label: shortened(&r.label, 42),
                value: r.value.clone(),
                class: r.class.clone(),
                text_y: y + 14.0,
                y: y + 30.0,
                mean: at(r.mean),
                interval: r.interval.and_then(finite),
                points: r.points.iter().filter(|p| p.is_finite()).map(|p| at(*p)).collect(),
                minimum: r.minimum.filter(|m| *m != 0.0 && m.is_finite()).map(at),
            }
        });
        Some(IntervalDrawing {
            id: self.id.clone(),
            title: self.title.clone(),
            description: self.description.clone(),
            width: WIDTH,
            height: bottom + if self.effects { 58.0 } else { 42.0 },
            left,
            right,
            top,
            bottom,
            ticks: axis
                .ticks
                .iter()
                .map(|(x, l)| TickMark { at: tenth(axis.position(*x, left, right)), label: l.clone() })
                .collect(),
            label: self.label.clone(),
            zero: self.effects.then(|| at(0.0)),
            sides: self.effects,
            rows: drawn.collect(),
        })
    }
}
