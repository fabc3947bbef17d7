//! From a continuous diagonal system `x' = lambda x + u` to steps `x_t = z x_(t-1) + q u_t`, mode by mode in
//! double precision: after a thousand steps a rounded `z` has turned by many of its own errors.
//!
//! Derivatives are those of analytic functions. A gradient of a real loss travels as `d = dL/d(re) - i dL/d(im)`,
//! for which the chain rule is plain multiplication.

use rustfft::num_complex::Complex64;

/// How a continuous system becomes a recurrence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discretisation {
    /// The input is constant over a step: `z = exp(step lambda)`, `q = (z - 1) / lambda`.
    ZeroOrderHold,
    /// Trapezoidal rule: `z = (1 + step lambda / 2) / (1 - step lambda / 2)`, `q = step / (1 - step lambda / 2)`.
    Bilinear,
}

/// A discrete mode and its derivatives by `lambda` and by the step.
pub(crate) struct Mode {
    pub(crate) z: Complex64,
    pub(crate) q: Complex64,
    pub(crate) z_by_lambda: Complex64,
    pub(crate) z_by_step: Complex64,
    pub(crate) q_by_lambda: Complex64,
    pub(crate) q_by_step: Complex64,
}

impl Discretisation {
    /// `z` and `q` of a mode.
    #[inline]
    pub fn of(self, lambda: Complex64, step: f64) -> (Complex64, Complex64) {
        let mode = self.mode(lambda, step);
        (mode.z, mode.q)
    }

    #[inline]
    pub(crate) fn mode(self, lambda: Complex64, step: f64) -> Mode {
        match self {
            Self::ZeroOrderHold => {
                let (z, phi, slope) = phi(lambda * step);
                Mode {
                    z,
                    q: phi * step,
                    z_by_lambda: z * step,
                    z_by_step: z * lambda,
                    q_by_lambda: slope * step * step,
                    q_by_step: z,
                }
            }
            Self::Bilinear => {
                let half = lambda * (0.5 * step);
                let inverse = (1.0 - half).inv();
                let q_by_step = inverse * inverse;
                Mode {
                    z: (1.0 + half) * inverse,
                    q: inverse * step,
                    z_by_lambda: q_by_step * step,
                    z_by_step: q_by_step * lambda,
                    q_by_lambda: q_by_step * (0.5 * step * step),
                    q_by_step,
                }
            }
        }
    }
}

/// `exp(m)`, `phi(m) = (exp(m) - 1) / m` and `phi'(m)`.
#[inline]
pub(crate) fn phi(m: Complex64) -> (Complex64, Complex64, Complex64) {
    if m.norm_sqr() > 0.25 {
        let z = m.exp();
        let value = (z - 1.0) / m;
        return (z, value, (z - value) / m);
    }
    let (mut value, mut slope) = (Complex64::ZERO, Complex64::ZERO);
    for k in (0..TERMS).rev() {
        value = value * m + VALUE[k];
        slope = slope * m + SLOPE[k];
    }
    (1.0 + m * value, value, slope)
}

/// Terms of the series of phi for |m| of at most a half: what they leave out is below 1e-16.
const TERMS: usize = 14;
/// phi = sum of m^k / (k + 1)!.
const VALUE: [f64; TERMS] = coefficients(false);
/// phi' = sum of (k + 1) m^k / (k + 2)!.
const SLOPE: [f64; TERMS] = coefficients(true);

const fn coefficients(of_slope: bool) -> [f64; TERMS] {
    let (mut coefficients, mut factorial, mut k) = ([0.0; TERMS], 1.0, 0);
    while k < TERMS {
        let next = k as f64 + 1.0;
        factorial *= next;
        coefficients[k] = if of_slope { next / (factorial * (next + 1.0)) } else { 1.0 / factorial };
        k += 1;
    }
    coefficients
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both branches of phi agree where they meet, and its slope is that of its values.
    #[test]
    fn phi_is_smooth() {
        for angle in 0..8 {
            let direction = Complex64::from_polar(1.0, f64::from(angle));
            let near = [0.5 - 1e-12, 0.5 + 1e-12].map(|r| phi(direction * r));
            assert!((near[0].1 - near[1].1).norm() < 1e-11 && (near[0].2 - near[1].2).norm() < 1e-11);
            for r in [1e-9, 1e-3, 0.3, 0.7, 20.0] {
                let m = direction * r;
                let (z, _, slope) = phi(m);
                let difference = (phi(m + 1e-6).1 - phi(m - 1e-6).1) / 2e-6;
                assert!((slope - difference).norm() < 1e-8 * (1.0 + slope.norm()), "slope at {m}");
                assert!((z - m.exp()).norm() <= 1e-15 * (1.0 + z.norm()), "exp at {m}");
            }
        }
    }
}
