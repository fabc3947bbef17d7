//! Lines with bands: learning curves, tuning sweeps.

use std::fmt::Write as _;

use serde::Serialize;

use super::axis::Axis;
use super::{STYLES, TickMark, shortened, tenth};

/// What a plot of lines shows.
pub(crate) struct LinePlot {
    /// Prefix of the ids within the drawing.
    pub id: String,
    /// Name for screen readers.
    pub title: String,
    /// What a reader would see, in a sentence or two.
    pub description: String,
    /// Label of the x axis.
    pub x_label: String,
    /// Label of the y axis.
    pub y_label: String,
    /// The x axis.
    pub x: Axis,
    /// The y axis.
    pub y: Axis,
    /// The lines.
    pub series: Vec<Series>,
}

/// A line with its band.
pub(crate) struct Series {
    /// Name at its end.
    pub label: String,
    /// Colour and dash pattern.
    pub style: usize,
    /// Its points, by ascending x.
    pub points: Vec<BandPoint>,
    /// Whether every point gets a dot.
    pub dots: bool,
}

/// A point of a line and of the band around it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BandPoint {
    /// Abscissa.
    pub x: f64,
    /// Ordinate of the line.
    pub y: f64,
    /// Lower edge of the band.
    pub low: f64,
    /// Upper edge of the band.
    pub high: f64,
}

/// The plot drawn for wide and for narrow screens; a style sheet shows one of them.
#[derive(Debug, Serialize)]
pub(crate) struct LineFigure {
    wide: LineDrawing,
    narrow: LineDrawing,
    key: Vec<Key>,
}

#[derive(Debug, Serialize)]
struct Key {
    label: String,
    style: usize,
}

#[derive(Debug, Serialize)]
struct LineDrawing {
    id: String,
    title: String,
    description: String,
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x_ticks: Vec<TickMark>,
    y_ticks: Vec<TickMark>,
    x_label: String,
    y_label: String,
    lines: Vec<DrawnLine>,
}

#[derive(Debug, Serialize)]
struct DrawnLine {
    style: usize,
    line: String,
    band: Option<String>,
    dots: Vec<(f64, f64)>,
    label: Option<EndLabel>,
}

/// A label beside the end of its line, moved so that no two overlap.
#[derive(Debug, Serialize)]
struct EndLabel {
    text: String,
    x: f64,
    y: f64,
    leader: String,
}

struct Frame {
    name: &'static str,
    width: f64,
    height: f64,
    labels_at_ends: bool,
}

const WIDE: Frame = Frame { name: "wide", width: 720.0, height: 360.0, labels_at_ends: true };
const NARROW: Frame = Frame { name: "narrow", width: 380.0, height: 300.0, labels_at_ends: false };
const LABEL_DISTANCE: f64 = 17.0;
/// Characters of a label at a line's end.
const MOST_LABEL: usize = 28;

impl LinePlot {
    /// Computes the drawings.
    pub fn draw(&self) -> LineFigure {
        let key = |s: &Series| Key { label: s.label.clone(), style: s.style % STYLES };
        LineFigure {
            wide: self.draw_in(&WIDE),
            narrow: self.draw_in(&NARROW),
            key: self.series.iter().map(key).collect(),
        }
    }

    fn draw_in(&self, frame: &Frame) -> LineDrawing {
        let longest = self.series.iter().map(|s| s.label.chars().count()).max().unwrap_or(0);
        let right_margin =
            if frame.labels_at_ends { 40.0 + 7.0 * longest.min(MOST_LABEL) as f64 } else { 14.0 };
        let widest = self.y.ticks.iter().map(|(_, l)| l.chars().count()).max().unwrap_or(0);
        let (left, right) = (18.0 + 7.5 * widest as f64, frame.width - right_margin);
        let (top, bottom) = (34.0, frame.height - 46.0);
        let px = |x| tenth(self.x.position(x, left, right));
        let py = |y| tenth(self.y.position(y, bottom, top));
        let mut lines: Vec<DrawnLine> = self
            .series
            .iter()
            .map(|s| DrawnLine {
                style: s.style % STYLES,
                line: path(s.points.iter().map(|p| (px(p.x), py(p.y)))),
                band: s.points.iter().any(|p| p.low < p.high).then(|| {
                    let upper = s.points.iter().map(|p| (px(p.x), py(p.high)));
                    let lower = s.points.iter().rev().map(|p| (px(p.x), py(p.low)));
                    format!("{}Z", path(upper.chain(lower)))
                }),
                dots: if s.dots || s.points.len() == 1 {
                    s.points.iter().map(|p| (px(p.x), py(p.y))).collect()
                } else {
                    Vec::new()
                },
                label: None,
            })
            .collect();
        if frame.labels_at_ends {
            self.label_ends(&mut lines, right, top, bottom, py);
        }
        let crowded = if frame.width < 500.0 && self.x.ticks.len() > 5 { 2 } else { 1 };
        let x_tick = |(at, label): &(f64, String)| TickMark { at: px(*at), label: label.clone() };
        let y_tick = |(at, label): &(f64, String)| TickMark { at: py(*at), label: label.clone() };
        LineDrawing {
            id: format!("{}-{}", self.id, frame.name),
            title: self.title.clone(),
            description: self.description.clone(),
            width: frame.width,
            height: frame.height,
            left,
            right,
            top,
            bottom,
            x_ticks: self.x.ticks.iter().step_by(crowded).map(x_tick).collect(),
            y_ticks: self.y.ticks.iter().map(y_tick).collect(),
            x_label: self.x_label.clone(),
            y_label: self.y_label.clone(),
            lines,
        }
    }

    fn label_ends(
        &self,
        lines: &mut [DrawnLine],
        right: f64,
        top: f64,
        bottom: f64,
        py: impl Fn(f64) -> f64,
    ) {
        let mut ends: Vec<(usize, f64)> = self
            .series
            .iter()
            .enumerate()
            .filter_map(|(i, s)| Some((i, py(s.points.last()?.y).clamp(top, bottom))))
            .collect();
        ends.sort_by(|a, b| a.1.total_cmp(&b.1));
        let wanted: Vec<f64> = ends.iter().map(|e| e.1).collect();
        for ((i, end), y) in ends.iter().zip(spread(&wanted, top, bottom)) {
            lines[*i].label = Some(EndLabel {
                text: shortened(&self.series[*i].label, MOST_LABEL),
                x: right + 34.0,
                y: tenth(y),
                leader: format!("M{} {}L{} {}H{}", right + 3.0, end, right + 14.0, tenth(y), right + 30.0),
            });
        }
    }
}

/// Moves ascending positions apart, as little as a pass down and a pass up need.
fn spread(wanted: &[f64], top: f64, bottom: f64) -> Vec<f64> {
    let mut placed = wanted.to_vec();
    for i in 1..placed.len() {
        placed[i] = placed[i].max(placed[i - 1] + LABEL_DISTANCE);
    }
    // centre every run of touching labels on the ends it names
    let mut start = 0;
    while start < placed.len() {
        let mut end = start + 1;
        while end < placed.len() && placed[end] - placed[end - 1] <= LABEL_DISTANCE + 1e-9 {
            end += 1;
        }
        let shift = (start..end).map(|i| placed[i] - wanted[i]).sum::<f64>() / (end - start) as f64;
        let floor = if start == 0 { top - 8.0 } else { placed[start - 1] + LABEL_DISTANCE };
        let shift = shift.min(placed[start] - floor).max(0.0);
        placed[start..end].iter_mut().for_each(|y| *y -= shift);
        start = end;
    }
    let mut limit = bottom + 8.0;
    for y in placed.iter_mut().rev() {
        *y = y.min(limit);
        limit = *y - LABEL_DISTANCE;
    }
    placed
}

fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut d = String::new();
    for (i, (x, y)) in points.enumerate() {
        let command = if i == 0 { 'M' } else { 'L' };
        // writing to a string cannot fail
        let _ = write!(d, "{command}{x} {y}");
    }
    d
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_do_not_overlap() {
        for wanted in
            [vec![100.0, 101.0, 102.0, 103.0], vec![0.0, 0.0, 0.0], vec![300.0; 6], vec![5.0, 200.0]]
        {
            let placed = spread(&wanted, 0.0, 300.0);
            for pair in placed.windows(2) {
                assert!(pair[1] - pair[0] >= LABEL_DISTANCE - 1e-6, "{placed:?}");
            }
        }
        assert_eq!(spread(&[5.0, 200.0], 0.0, 300.0), [5.0, 200.0]);
    }
}
