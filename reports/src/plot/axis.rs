//! Axes with round ticks.

use crate::number;

/// Maps values to positions.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    low: f64,
    high: f64,
    log: bool,
    /// Values that get a tick, with their labels.
    pub ticks: Vec<(f64, String)>,
}

impl Axis {
    /// A linear axis over the values, with about `wanted` ticks at multiples of 1, 2 or 5.
    pub fn linear(low: f64, high: f64, wanted: usize) -> Self {
        let (low, high) = widened(low, high);
        let step = round_step((high - low) / wanted.max(1) as f64);
        let decimals = (-step.log10().floor()).max(0.0) as usize;
        let largest = low.abs().max(high.abs());
        let first = (low / step - 1e-9).ceil() as i64;
        let last = (high / step + 1e-9).floor() as i64;
        let ticks = (first..=last).map(|i| i as f64 * step).map(|x| (x, number::tick(x, decimals, largest)));
        Self { low, high, log: false, ticks: ticks.collect() }
    }

    /// A linear axis whose ends are ticks.
    pub fn rounded(low: f64, high: f64, wanted: usize) -> Self {
        let (low, high) = widened(low, high);
        let step = round_step((high - low) / wanted.max(1) as f64);
        Self::linear((low / step + 1e-9).floor() * step, (high / step - 1e-9).ceil() * step, wanted)
    }

    /// A logarithmic axis, with ticks at powers of ten, or also at 2 and 5 where there are few of these.
    pub fn log(low: f64, high: f64) -> Self {
        let (low, high) = if high / low < 1.01 { (low / 1.1, high * 1.1) } else { (low, high) };
        let decades = (high / low).log10();
        let mantissas: &[f64] = if decades < 3.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let exponents = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let inside = |x: &f64| (low * (1.0 - 1e-9)..=high * (1.0 + 1e-9)).contains(x);
        let values = exponents.flat_map(|e| mantissas.iter().map(move |m| m * 10f64.powi(e))).filter(inside);
        Self { low, high, log: true, ticks: values.map(|x| (x, power_label(x))).collect() }
    }

    /// A logarithmic axis with ticks at given values.
    pub fn log_at(values: &[f64]) -> Self {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut axis = Self::log(low / 1.25, high * 1.25);
        axis.ticks = values.iter().map(|&x| (x, number::parameter(x))).collect();
        axis
    }

    /// Whether it is logarithmic.
    pub fn is_log(&self) -> bool {
        self.log
    }

    /// Position of a value between the positions of the ends.
    pub fn position(&self, x: f64, from: f64, to: f64) -> f64 {
        let t = if self.log {
            (x.max(self.low * 1e-3) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (x - self.low) / (self.high - self.low)
        };
        // far outside is as good as just outside, and keeps coordinates short
        from + (to - from) * t.clamp(-2.0, 3.0)
    }
}

/// Power-of-ten labels from a thousand on by suffix, small ones as they are.
fn power_label(x: f64) -> String {
    if x >= 1000.0 { number::tick(x, 0, x.max(1e4)) } else { number::parameter((x * 1e12).round() / 1e12) }
}

fn widened(low: f64, high: f64) -> (f64, f64) {
    let (low, high) = if low <= high { (low, high) } else { (high, low) };
    if high - low > 1e-12 * low.abs().max(high.abs()).max(1e-300) {
        return (low, high);
    }
    let margin = if low == 0.0 { 1.0 } else { low.abs() * 0.05 };
    (low - margin, high + margin)
}

fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let mantissa = step / power;
    let rounded = [1.0, 2.0, 5.0].into_iter().find(|m| mantissa <= m * (1.0 + 1e-9)).unwrap_or(10.0);
    rounded * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, l)| l.as_str()).collect()
    }

    #[test]
    fn round_ticks() {
        assert_eq!(labels(&Axis::linear(0.0, 1.0, 5)), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&Axis::rounded(4.41, 4.63, 4)), ["4.4", "4.5", "4.6", "4.7"]);
        assert_eq!(labels(&Axis::linear(0.0, 500_000.0, 3)), ["0", "200k", "400k"]);
        assert_eq!(labels(&Axis::linear(-0.02, 0.02, 2)), ["\u{2212}0.02", "0.00", "0.02"]);
        assert_eq!(labels(&Axis::log(1.0, 1000.0)), ["1", "10", "100", "1k"]);
        assert_eq!(labels(&Axis::log_at(&[1e-4, 1e-3])), ["1e\u{2212}4", "0.001"]);
    }

    #[test]
    fn degenerate_ranges_have_an_axis() {
        for x in [0.0, 3.5, -2.0, 1e-20, 1e20] {
            let axis = Axis::rounded(x, x, 4);
            assert!(axis.position(x, 0.0, 100.0).is_finite());
            assert!(!axis.ticks.is_empty() && axis.ticks.len() < 20, "{x}: {:?}", axis.ticks);
        }
        let flat = Axis::log(2.0, 2.0);
        assert!((flat.position(2.0, 0.0, 1.0) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn ends_map_to_ends() {
        let axis = Axis::log(1.0, 100.0);
        assert_eq!(axis.position(1.0, 10.0, 20.0), 10.0);
        assert!((axis.position(10.0, 10.0, 20.0) - 15.0).abs() < 1e-9);
        assert_eq!(Axis::linear(0.0, 4.0, 4).position(4.0, 100.0, 0.0), 0.0);
    }
}
