//! Plots as geometry that a template draws: every coordinate is computed here, every colour is a CSS class.

pub(crate) mod axis;
pub(crate) mod intervals;
pub(crate) mod lines;
pub(crate) mod spark;

use serde::Serialize;

/// Number of distinct series styles (colour and dash pattern) in the style sheet.
pub(crate) const STYLES: usize = 14;

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

/// At most `max` characters, the middle left out where there are more: labels often differ at their ends.
pub(crate) fn shortened(text: &str, max: usize) -> String {
    let characters: Vec<char> = text.chars().collect();
    if characters.len() <= max {
        return text.to_owned();
    }
    let tail = max / 2;
    let head: String = characters[..max - tail - 1].iter().collect();
    let tail: String = characters[characters.len() - tail..].iter().collect();
    format!("{}…{}", head.trim_end(), tail.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortening_keeps_both_ends() {
        assert_eq!(shortened("as it is", 8), "as it is");
        assert_eq!(shortened("bottleneck of width 16", 14), "bottle…idth 16");
        assert!(shortened("ä".repeat(50).as_str(), 9).chars().count() <= 9);
    }
}
