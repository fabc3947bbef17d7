//! Learning-rate schedules.

/// Linear warm-up from 0, then a cosine to 0 at `steps` (`get_cosine_schedule_with_warmup` of Hugging Face
/// Transformers): the rate of optimiser step `step`, counted from 0. Without warm-up step 0 has the peak rate.
pub fn learning_rate(peak: f64, warmup_steps: u64, steps: u64, step: u64) -> f64 {
    if step < warmup_steps {
        return peak * step as f64 / warmup_steps.max(1) as f64;
    }
    let progress = (step - warmup_steps) as f64 / steps.saturating_sub(warmup_steps).max(1) as f64;
    peak * (0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos())).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_points() {
        let rate = |step| learning_rate(1e-3, 10, 100, step);
        assert_eq!(rate(0), 0.0);
        assert!((rate(5) - 5e-4).abs() < 1e-12);
        assert_eq!(rate(10), 1e-3);
        assert!((rate(55) - 5e-4).abs() < 1e-12);
        assert!(rate(100) < 1e-18);
        assert_eq!(learning_rate(1e-3, 0, 100, 0), 1e-3);
    }

    proptest! {
        #[test]
        fn rises_then_falls(warmup in 0u64..50, decay in 1u64..200) {
            let rates: Vec<f64> = (0..=warmup + decay).map(|s| learning_rate(1.0, warmup, warmup + decay, s)).collect();
            prop_assert!(rates.iter().all(|r| (0.0..=1.0).contains(r)));
            prop_assert!(rates[..=warmup as usize].is_sorted());
            prop_assert!(rates[warmup as usize..].is_sorted_by(|a, b| a >= b));
        }
    }
}
