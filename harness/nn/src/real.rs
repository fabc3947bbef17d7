//! The number types operations are written for.

use candle_core::WithDType;

use crate::ops::PanelKernel;

/// `f32`, which trains, or `f64`, which checks gradients by differences.
pub trait Real: WithDType + PanelKernel {
    /// e^x; within 2 ulp, vectorisable for `f32`.
    fn exp(self) -> Self;
    /// Error function; within 5e-7, vectorisable for `f32`.
    fn erf(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// ln(1 + self) for `self` in [0, 1]; within 2 ulp, vectorisable for `f32`.
    fn ln_1p(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// `self * a + b`, rounded once.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// The larger of two numbers; the other one if one is NaN.
    fn larger(self, other: Self) -> Self;
    /// Negative infinity.
    fn lowest() -> Self;
    /// From a count.
    #[inline(always)]
    fn of(n: usize) -> Self {
        Self::from_f64(n as f64)
    }
}

impl Real for f32 {
    /// Cephes' polynomial: range reduction by ln 2 in two parts, degree 6. NaN goes in and out unchanged,
    /// so that a diverged run is seen.
    #[inline(always)]
    fn exp(self) -> f32 {
        let x = if self > 88.3 { 88.3 } else { self };
        let x = if x < -87.3 { -87.3 } else { x };
        // adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits: a conversion with its checks
        // would not vectorise
        const ROUND: f32 = 12_582_912.0;
        let shifted = f32::mul_add(x, std::f32::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        let r = f32::mul_add(n, -0.693_359_4, x);
        let r = f32::mul_add(n, 2.121_944_4e-4, r);
        let p = 1.987_569_2e-4f32;
        let p = f32::mul_add(p, r, 1.398_199_9e-3);
        let p = f32::mul_add(p, r, 8.333_452e-3);
        let p = f32::mul_add(p, r, 4.166_579_6e-2);
        let p = f32::mul_add(p, r, 1.666_666_5e-1);
        let p = f32::mul_add(p, r, 5e-1);
        let y = f32::mul_add(p * r, r, r) + 1.0;
        y * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
    }

    /// x times a ratio of polynomials in x^2 on [-4, 4], where erf reaches 1 to float32's precision.
    #[inline(always)]
    fn erf(self) -> f32 {
        let x = if self > 4.0 { 4.0 } else { self };
        let x = if x < -4.0 { -4.0 } else { x };
        let z = x * x;
        let p = -2.726_142_3e-10f32;
        let p = f32::mul_add(p, z, 2.770_681_5e-8);
        let p = f32::mul_add(p, z, -2.101_024e-6);
        let p = f32::mul_add(p, z, -5.692_506_5e-5);
        let p = f32::mul_add(p, z, -7.349_906_3e-4);
        let p = f32::mul_add(p, z, -2.954_6e-3);
        let p = f32::mul_add(p, z, -1.609_603_3e-2);
        let q = -1.456_607_2e-5f32;
        let q = f32::mul_add(q, z, -2.133_740_5e-4);
        let q = f32::mul_add(q, z, -1.682_827e-3);
        let q = f32::mul_add(q, z, -7.373_329_2e-3);
        let q = f32::mul_add(q, z, -1.426_473_9e-2);
        x * p / q
    }

    #[inline(always)]
    fn ln(self) -> f32 {
        f32::ln(self)
    }

    /// The series of 2 artanh(x / (2 + x)), whose argument is at most 1/3.
    #[inline(always)]
    fn ln_1p(self) -> f32 {
        let s = self / (2.0 + self);
        let q = s * s;
        let p = 2.0f32 / 15.0;
        let p = f32::mul_add(p, q, 2.0 / 13.0);
        let p = f32::mul_add(p, q, 2.0 / 11.0);
        let p = f32::mul_add(p, q, 2.0 / 9.0);
        let p = f32::mul_add(p, q, 2.0 / 7.0);
        let p = f32::mul_add(p, q, 2.0 / 5.0);
        let p = f32::mul_add(p, q, 2.0 / 3.0);
        let p = f32::mul_add(p, q, 2.0);
        s * p
    }

    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }

    #[inline(always)]
    fn mul_add(self, a: f32, b: f32) -> f32 {
        f32::mul_add(self, a, b)
    }

    #[inline(always)]
    fn larger(self, other: f32) -> f32 {
        if self > other { self } else { other }
    }

    #[inline(always)]
    fn lowest() -> f32 {
        f32::NEG_INFINITY
    }
}

impl Real for f64 {
    #[inline(always)]
    fn exp(self) -> f64 {
        f64::exp(self)
    }

    #[inline(always)]
    fn erf(self) -> f64 {
        libm::erf(self)
    }

    #[inline(always)]
    fn ln(self) -> f64 {
        f64::ln(self)
    }

    #[inline(always)]
    fn ln_1p(self) -> f64 {
        f64::ln_1p(self)
    }

    #[inline(always)]
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }

    #[inline(always)]
    fn mul_add(self, a: f64, b: f64) -> f64 {
        f64::mul_add(self, a, b)
    }

    #[inline(always)]
    fn larger(self, other: f64) -> f64 {
        if self > other { self } else { other }
    }

    #[inline(always)]
    fn lowest() -> f64 {
        f64::NEG_INFINITY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_exp_is_accurate() {
        let mut worst = 0f64;
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max(((f64::from(Real::exp(x)) - exact) / exact).abs());
        }
        assert!(worst < 2.5e-7, "relative error {worst:e}");
        assert_eq!(Real::exp(0f32), 1.0);
        assert!(Real::exp(f32::NAN).is_nan());
        assert!(Real::exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn fast_ln_1p_is_accurate() {
        let mut worst = 0f64;
        for i in 1..1_000_000 {
            let x = i as f32 * 1e-6;
            let exact = f64::from(x).ln_1p();
            worst = worst.max(((f64::from(Real::ln_1p(x)) - exact) / exact).abs());
        }
        assert!(worst < 2.5e-7, "relative error {worst:e}");
        assert_eq!(Real::ln_1p(0f32), 0.0);
        assert!(Real::ln_1p(f32::NAN).is_nan());
    }

    #[test]
    fn fast_erf_is_accurate() {
        for i in -60_000..60_000 {
            let x = i as f32 * 1e-4;
            let error = f64::from(Real::erf(x)) - libm::erf(f64::from(x));
            assert!(error.abs() < 5e-7, "erf({x}) is off by {error:e}");
        }
        assert!(Real::erf(f32::NAN).is_nan());
    }
}
