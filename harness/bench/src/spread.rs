//! Medians, quartiles, and how well a handful of rounds knows a median.

use serde::Serialize;

/// Median and quartiles of some values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// A quarter of the values lie below.
    pub lower: f64,
    /// Half of them.
    pub median: f64,
    /// Three quarters.
    pub upper: f64,
}

/// A median with an interval around it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Median of the values.
    pub median: f64,
    /// Interval that holds the true median with a probability of at least 95 %, whatever the distribution; nothing
    /// of fewer than 6 values, which cannot tell.
    pub interval: Option<(f64, f64)>,
}

impl Spread {
    /// Of at least one value.
    pub fn of(values: &[f64]) -> Self {
        let sorted = sorted(values);
        let at = |q| quantile(&sorted, q);
        Self { lower: at(0.25), median: at(0.5), upper: at(0.75) }
    }
}

impl Estimate {
    /// Of at least one value.
    pub fn of(values: &[f64]) -> Self {
        let sorted = sorted(values);
        let interval = outer_rank(sorted.len()).map(|rank| (sorted[rank], sorted[sorted.len() - 1 - rank]));
        Self { median: quantile(&sorted, 0.5), interval }
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Quantile of ascending values, interpolated linearly between the neighbours (R's type 7); NaN of none.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let position = q * last as f64;
    let (below, fraction) = (position.floor() as usize, position.fract());
    sorted[below] + fraction * (sorted[(below + 1).min(last)] - sorted[below])
}

/// The largest r for which the r-th smallest and the r-th largest of n values (counted from 0) enclose the median
/// with probability 95 %: the number of values below it is binomial with p = 1/2.
fn outer_rank(n: usize) -> Option<usize> {
    let mut probability = 0.5f64.powi(i32::try_from(n).ok()?);
    let (mut tail, mut rank) = (0.0, None);
    for r in 0..n.div_ceil(2) {
        tail += probability;
        if tail > 0.025 {
            break;
        }
        rank = Some(r);
        probability *= (n - r) as f64 / (r + 1) as f64;
    }
    rank
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quartiles_of_known_values() {
        let spread = Spread::of(&[4.0, 1.0, 3.0, 2.0, 5.0]);
        assert_eq!(spread, Spread { lower: 2.0, median: 3.0, upper: 4.0 });
        assert_eq!(Spread::of(&[1.0, 2.0]).median, 1.5);
    }

    /// The ranks of the tables of the sign test.
    #[test]
    fn ranks_are_those_of_the_sign_test() {
        let ranks: Vec<Option<usize>> =
            [1, 5, 6, 7, 8, 9, 11, 12, 15, 20].into_iter().map(outer_rank).collect();
        let expected = [None, None, Some(0), Some(0), Some(0), Some(1), Some(1), Some(2), Some(3), Some(5)];
        assert_eq!(ranks, expected);
    }

    #[test]
    fn few_rounds_give_no_interval() {
        assert_eq!(Estimate::of(&[2.0, 1.0, 3.0]), Estimate { median: 2.0, interval: None });
        let seven = Estimate::of(&[7.0, 1.0, 6.0, 2.0, 5.0, 3.0, 4.0]);
        assert_eq!(seven, Estimate { median: 4.0, interval: Some((1.0, 7.0)) });
    }

    proptest! {
        #[test]
        fn the_median_lies_inside(values in proptest::collection::vec(0.1f64..9.0, 6..40)) {
            let Estimate { median, interval } = Estimate::of(&values);
            let (low, high) = interval.expect("six values are enough");
            prop_assert!(low <= median && median <= high);
        }
    }
}
