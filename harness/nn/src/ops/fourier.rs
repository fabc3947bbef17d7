//! Plans for fast Fourier transforms, made once for each length.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use rustfft::{Fft, FftDirection, FftNum, FftPlanner, FftPlannerScalar};

use crate::real::Real;

/// A number type with transforms.
pub(super) trait Transform: Real + FftNum {
    /// A new plan.
    fn transform(n: usize, direction: FftDirection) -> Arc<dyn Fft<Self>>;
}

impl Transform for f32 {
    fn transform(n: usize, direction: FftDirection) -> Arc<dyn Fft<f32>> {
        FftPlanner::new().plan_fft(n, direction)
    }
}

/// Without vector instructions: what runs in double precision is not worth the time it takes to compile them.
impl Transform for f64 {
    fn transform(n: usize, direction: FftDirection) -> Arc<dyn Fft<f64>> {
        FftPlannerScalar::new().plan_fft(n, direction)
    }
}

/// Both directions of a transform; neither divides by its length.
pub(super) struct Plan<T> {
    pub(super) forward: Arc<dyn Fft<T>>,
    pub(super) inverse: Arc<dyn Fft<T>>,
}

impl<T> Clone for Plan<T> {
    fn clone(&self) -> Self {
        Self { forward: self.forward.clone(), inverse: self.inverse.clone() }
    }
}

/// The plan for transforms of length `n`.
pub(super) fn plan<T: Transform>(n: usize) -> Plan<T> {
    #[allow(clippy::type_complexity, reason = "named nowhere else")]
    static PLANS: LazyLock<Mutex<HashMap<(TypeId, usize), Box<dyn Any + Send>>>> =
        LazyLock::new(Mutex::default);
    let mut plans = PLANS.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (TypeId::of::<T>(), n);
    if let Some(plan) = plans.get(&key).and_then(|plan| plan.downcast_ref::<Plan<T>>()) {
        return plan.clone();
    }
    let [forward, inverse] = [FftDirection::Forward, FftDirection::Inverse].map(|d| T::transform(n, d));
    let plan = Plan { forward, inverse };
    plans.insert(key, Box::new(plan.clone()));
    plan
}

/// The smallest length from `least` up whose only prime factors are 2 and 3, at most 81 of the latter: other
/// factors are slower than the next such length.
pub(super) fn transform_length(least: usize) -> usize {
    let rounded = |odd: usize| odd * least.div_ceil(odd).next_power_of_two();
    [1, 3, 9, 27, 81].into_iter().map(rounded).min().unwrap_or(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transform_lengths_have_small_factors() {
        let lengths = [1, 5, 63, 1999, 2047, 2199, 32_767].map(transform_length);
        assert_eq!(lengths, [1, 6, 64, 2048, 2048, 2304, 32_768]);
    }
}
