//! Mean and 95 % t-interval of a metric over seeds, for display. Verdicts have statistics of their own.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// A mean over seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Mean {
    /// Number of values.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// Half width of the 95 % interval; nothing for a single value.
    pub half_width: Option<f64>,
}

impl Mean {
    /// The mean of some values; nothing if there are none, or if one is not finite.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 || values.iter().any(|v| !v.is_finite()) {
            return None;
        }
        if values.iter().all(|v| v.to_bits() == values[0].to_bits()) {
            return Some(Self { n, mean: values[0], half_width: (n > 1).then_some(0.0) });
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
        let quantile = StudentsT::new(0.0, 1.0, (n - 1) as f64).ok()?.inverse_cdf(0.975);
        Some(Self { n, mean, half_width: Some(quantile * (variance / n as f64).sqrt()) })
    }

    /// The interval's ends.
    pub fn interval(&self) -> Option<(f64, f64)> {
        self.half_width.map(|h| (self.mean - h, self.mean + h))
    }

    /// Whether the two intervals have no point in common. Single values separate from nothing.
    pub fn separates(&self, other: &Self) -> bool {
        match (self.interval(), other.interval()) {
            (Some((low, high)), Some((other_low, other_high))) => high < other_low || other_high < low,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interval_of_a_known_sample() {
        // mean 3, sd sqrt(2.5), t(0.975, 4) = 2.776445
        let m = Mean::of(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert_eq!((m.n, m.mean), (5, 3.0));
        assert!((m.half_width.unwrap() - 1.963_243).abs() < 1e-5);
    }

    #[test]
    fn little_data_gives_no_interval() {
        assert_eq!(Mean::of(&[]), None);
        assert_eq!(Mean::of(&[1.0, f64::NAN]), None);
        assert_eq!(Mean::of(&[7.0]).unwrap().half_width, None);
        assert_eq!(Mean::of(&[0.1, 0.1, 0.1]).unwrap().interval(), Some((0.1, 0.1)));
    }

    #[test]
    fn separation_needs_two_intervals() {
        let of = |v: &[f64]| Mean::of(v).unwrap();
        assert!(of(&[1.0, 1.1, 0.9]).separates(&of(&[2.0, 2.1, 1.9])));
        assert!(!of(&[1.0, 1.9, 0.1]).separates(&of(&[2.0, 2.1, 1.9])));
        assert!(!of(&[1.0]).separates(&of(&[2.0, 2.1])));
    }
}
