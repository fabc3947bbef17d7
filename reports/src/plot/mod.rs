//! Plots as geometry that a template draws: every coordinate is computed here, every colour is a CSS class.

pub(crate) mod axis;
pub(crate) mod intervals;
pub(crate) mod lines;
pub(crate) mod spark;

use serde::Serialize;

/// Number of distinct series styles (colour and dash pattern) in the style sheet.
pub(crate) const STYLES: usize = 7;

/// A tick in the plot's coordinates.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TickMark {
    /// Position along the axis.
    pub at: f64,
    /// Its label.
    pub label: String,
}

/// Coordinates need no more than a tenth of a unit.
pub(crate) fn tenth(x: f64) -> f64 {
    (x * 10.0).round() / 10.0
}

/// The first `max` characters, with an ellipsis where some were left out.
pub(crate) fn shortened(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    let head: String = text.chars().take(max.saturating_sub(1)).collect();
    format!("{}…", head.trim_end())
}
