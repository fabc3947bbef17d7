//! Statistics of paired seeds: what can be said about an effect from a handful of runs.
//!
//! ```
//! use replica_core::statistics::{bootstrap_interval, holm, paired_t_test};
//!
//! let effects = [0.021, 0.018, 0.025, 0.020, 0.019];
//! let (low, high) = bootstrap_interval(&effects, "placement/lpa");
//! assert!(low > 0.0 && low < high);
//! assert!(paired_t_test(&effects, 0.0, false) < 0.001);
//! assert_eq!(holm(&[0.01, 0.04]), [0.02, 0.04]);
//! ```

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::seed::Seed;

/// Resamples of a bootstrap: the 2.5 % tails then hold 250 of them (our choice).
pub const RESAMPLES: usize = 10_000;

/// Arithmetic mean; NaN of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Sample standard deviation (n - 1); 0 of fewer than two values.
pub fn standard_deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let centre = mean(values);
    let squares: f64 = values.iter().map(|v| (v - centre).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

/// 95 % percentile-bootstrap interval of the mean, resampling the values (one a seed).
///
/// The random stream is a function of `name` alone, so the same effects always get the same interval.
/// One value gives the empty interval at that value, which says nothing about its spread: callers ask for
/// more seeds. No value gives NaN.
pub fn bootstrap_interval(values: &[f64], name: &str) -> (f64, f64) {
    let mut rng = Seed(0).named_stream("bootstrap", name);
    let mut means: Vec<f64> = (0..RESAMPLES).map(|_| resampled_mean(values, &mut rng)).collect();
    means.sort_by(f64::total_cmp);
    (quantile(&means, 0.025), quantile(&means, 0.975))
}

fn resampled_mean(values: &[f64], rng: &mut ChaCha8Rng) -> f64 {
    let n = values.len();
    // multiply and shift instead of the rand crate's ranges: its values may change between versions
    let sum: f64 = (0..n).map(|_| values[((u64::from(rng.next_u32()) * n as u64) >> 32) as usize]).sum();
    sum / n as f64
}

/// Quantile of ascending values, interpolated linearly between the neighbours (R's type 7).
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let position = q * (sorted.len() - 1) as f64;
    let (below, fraction) = (position.floor() as usize, position.fract());
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + fraction * (sorted[above] - sorted[below])
}

/// Two-sided p of a paired t-test: are the effects' mean and `hypothesis` the same?
///
/// Without variance there is no t. Peak memory may be the same in every seed because it depends on none: p is 0, or 1 where
/// effects equal the hypothesis. Differences of accuracies are the same to the last digit when few problems are `counted`,
/// which is no certainty: p is that of the exact sign-flip test then, 2^(1 - n) for n effects on one side (1/4 of three seeds,
/// below 0.05 from six on). Of fewer than two effects p is 1.
pub fn paired_t_test(effects: &[f64], hypothesis: f64, counted: bool) -> f64 {
    let n = effects.len();
    if n < 2 {
        return 1.0;
    }
    let difference = mean(effects) - hypothesis;
    let deviation = standard_deviation(effects);
    // identical values differ from their own mean by rounding
    let rounding = 1e-12 * effects.iter().fold(hypothesis.abs(), |m, e| m.max(e.abs()));
    if deviation <= rounding {
        return match (difference.abs() <= rounding, counted) {
            (true, _) => 1.0,
            (false, true) => 0.5f64.powi(n as i32 - 1),
            (false, false) => 0.0,
        };
    }
    let t = difference / (deviation / (n as f64).sqrt());
    match StudentsT::new(0.0, 1.0, (n - 1) as f64) {
        Ok(student) => (2.0 * student.sf(t.abs())).min(1.0),
        Err(_) => 1.0,
    }
}

/// Holm's step-down correction: p values that keep the chance of any false rejection below the level.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut corrected = vec![0.0; p.len()];
    let mut largest = 0.0f64;
    for (rank, &i) in order.iter().enumerate() {
        largest = largest.max((p[i] * (p.len() - rank) as f64).min(1.0));
        corrected[i] = largest;
    }
    corrected
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn close(a: f64, b: f64, tolerance: f64) -> bool {
        (a - b).abs() <= tolerance
    }

    #[test]
    fn moments_of_known_values() {
        let values = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
        assert_eq!(mean(&values), 5.0);
        assert!(close(standard_deviation(&values), (32.0f64 / 7.0).sqrt(), 1e-15));
        assert!(mean(&[]).is_nan());
        assert_eq!(standard_deviation(&[3.0]), 0.0);
    }

    #[test]
    fn t_test_agrees_with_the_closed_form_of_two_degrees_of_freedom() {
        // with 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2)
        let effects = [1.0, 2.0, 3.0];
        for hypothesis in [0.0, 1.0, 1.5, 2.5, 10.0] {
            let t = (2.0f64 - hypothesis).abs() / (1.0 / 3.0f64.sqrt());
            let expected = 1.0 - t / (t * t + 2.0).sqrt();
            assert!(close(paired_t_test(&effects, hypothesis, true), expected, 1e-9), "{hypothesis}");
        }
        assert!(close(paired_t_test(&effects, 2.0, true), 1.0, 1e-12));
    }

    #[test]
    fn t_test_agrees_with_the_closed_form_of_one_degree_of_freedom() {
        // a Cauchy distribution: p = 1 - 2 atan(t) / pi; here t = 3
        let expected = 1.0 - 2.0 * 3.0f64.atan() / std::f64::consts::PI;
        assert!(close(paired_t_test(&[1.0, 2.0], 0.0, true), expected, 1e-9));
    }

    #[test]
    fn identical_effects_have_the_p_of_their_signs() {
        assert_eq!(paired_t_test(&[0.1, 0.1, 0.1], 0.1, true), 1.0);
        assert_eq!(paired_t_test(&[0.0; 5], 0.0, false), 1.0);
        assert_eq!(paired_t_test(&[0.1, 0.1, 0.1], 0.0, false), 0.0);
        for n in 2..9 {
            // of all ways to flip the signs of n effects, those whose mean is as far from 0
            let flips = 0..1u32 << n;
            let extreme = flips.clone().filter(|flip| [0, n].contains(&flip.count_ones())).count();
            let p = paired_t_test(&vec![0.1; n as usize], 0.0, true);
            assert_eq!(p, extreme as f64 / flips.len() as f64, "{n} effects");
            assert_eq!(p < 0.05, n >= 6);
            assert_eq!(paired_t_test(&vec![-0.1; n as usize], 0.2, true), p);
        }
    }

    #[test]
    fn too_few_values_say_nothing() {
        assert_eq!(paired_t_test(&[], 0.0, false), 1.0);
        assert_eq!(paired_t_test(&[7.0], 0.0, false), 1.0);
        assert_eq!(bootstrap_interval(&[7.0], "x"), (7.0, 7.0));
        let (low, high) = bootstrap_interval(&[], "x");
        assert!(low.is_nan() && high.is_nan());
    }

    #[test]
    fn bootstrap_of_two_values_spans_them() {
        // the resampled mean is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4: both tails are well above 2.5 %
        assert_eq!(bootstrap_interval(&[0.0, 1.0], "x"), (0.0, 1.0));
    }

    #[test]
    fn bootstrap_matches_the_normal_approximation_of_a_large_sample() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i) / 399.0).collect();
        let half = 1.96 * standard_deviation(&values) / 20.0;
        let (low, high) = bootstrap_interval(&values, "uniform");
        assert!(close(low, 0.5 - half, 0.003) && close(high, 0.5 + half, 0.003), "{low} {high} {half}");
    }

    #[test]
    fn bootstrap_is_a_function_of_its_name() {
        let values = [0.3, 0.1, 0.4, 0.1, 0.5];
        assert_eq!(bootstrap_interval(&values, "a"), bootstrap_interval(&values, "a"));
    }

    #[test]
    fn holm_of_the_textbook_example() {
        let corrected = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (c, expected) in corrected.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!(close(*c, expected, 1e-12), "{corrected:?}");
        }
        assert!(holm(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn holm_is_monotone_and_bounded(p in proptest::collection::vec(0.0f64..=1.0, 0..20)) {
            let corrected = holm(&p);
            for (i, c) in corrected.iter().enumerate() {
                prop_assert!(*c >= p[i] && *c <= 1.0);
                for (j, d) in corrected.iter().enumerate() {
                    prop_assert!(p[i] > p[j] || c <= d);
                }
            }
        }

        #[test]
        fn interval_contains_the_mean_and_stays_in_range(values in proptest::collection::vec(-1e3f64..1e3, 1..9)) {
            let (low, high) = bootstrap_interval(&values, "p");
            let (m, slack) = (mean(&values), 1e-9);
            prop_assert!(low <= m + slack && m <= high + slack);
            let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
            let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            prop_assert!(smallest <= low + slack && high <= largest + slack);
        }

        #[test]
        fn interval_and_test_are_equivariant(
            values in proptest::collection::vec(-10.0f64..10.0, 2..7), scale in 0.1f64..10.0, shift in -5.0f64..5.0,
        ) {
            let moved: Vec<f64> = values.iter().map(|v| scale * v + shift).collect();
            let negated: Vec<f64> = values.iter().map(|v| -v).collect();
            let (low, high) = bootstrap_interval(&values, "p");
            let (moved_low, moved_high) = bootstrap_interval(&moved, "p");
            prop_assert!(close(scale * low + shift, moved_low, 1e-9));
            prop_assert!(close(scale * high + shift, moved_high, 1e-9));
            let (negated_low, negated_high) = bootstrap_interval(&negated, "p");
            prop_assert!(close(-high, negated_low, 1e-9) && close(-low, negated_high, 1e-9));
            prop_assume!(standard_deviation(&values) > 1e-3);
            prop_assert!(close(paired_t_test(&values, 0.5, true), paired_t_test(&moved, scale * 0.5 + shift, true), 1e-9));
        }
    }
}
