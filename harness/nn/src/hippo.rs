//! The HiPPO-LegS matrix (Gu et al. 2020) and its normal part, from which state-space models take their initial
//! values: with `P_n = sqrt(n + 1/2)`, `A + P P^T` is -1/2 plus a skew-symmetric matrix.

use rustfft::num_complex::Complex64;

/// `A` `[n, n]` and `B` `[n]` of HiPPO-LegS: `A_ij = -sqrt(2i+1) sqrt(2j+1)` below the diagonal, `-(i+1)` on it.
pub fn legs(n: usize) -> (Vec<f64>, Vec<f64>) {
    let b: Vec<f64> = (0..n).map(|i| ((2 * i + 1) as f64).sqrt()).collect();
    let a = |i: usize, j: usize| match i.cmp(&j) {
        std::cmp::Ordering::Less => 0.0,
        std::cmp::Ordering::Equal => -((i + 1) as f64),
        std::cmp::Ordering::Greater => -b[i] * b[j],
    };
    ((0..n * n).map(|k| a(k / n, k % n)).collect(), b)
}

/// The normal part of HiPPO-LegS, diagonalised.
pub struct NormalPart {
    /// Its eigenvalues, all with real part -1/2, by ascending imaginary part.
    pub eigenvalues: Vec<Complex64>,
    /// Unitary `[n, n]`: column k belongs to eigenvalue k. The free phases are ours: every column's product with P is
    /// positive, so that the input vector is real in this basis.
    pub vectors: Vec<Complex64>,
}

impl NormalPart {
    /// Of size `n`.
    pub fn new(n: usize) -> Self {
        let root = |i: usize| (i as f64 + 0.5).sqrt();
        // -i times the skew-symmetric part: Hermitian
        let hermitian = (0..n * n)
            .map(|k| match (k / n).cmp(&(k % n)) {
                std::cmp::Ordering::Less => Complex64::new(0.0, -root(k / n) * root(k % n)),
                std::cmp::Ordering::Equal => Complex64::ZERO,
                std::cmp::Ordering::Greater => Complex64::new(0.0, root(k / n) * root(k % n)),
            })
            .collect();
        let (values, vectors) = hermitian_eigen(hermitian, n);
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
        let phases: Vec<Complex64> = (0..n)
            .map(|k| {
                let product: Complex64 = (0..n).map(|i| vectors[i * n + k].conj() * root(i)).sum();
                product / product.norm()
            })
            .collect();
        Self {
            eigenvalues: order.iter().map(|&k| Complex64::new(-0.5, values[k])).collect(),
            vectors: (0..n * n).map(|i| vectors[i / n * n + order[i % n]] * phases[order[i % n]]).collect(),
        }
    }

    /// `V^* x` for real `x`.
    pub fn project(&self, x: &[f64]) -> Vec<Complex64> {
        let n = self.eigenvalues.len();
        (0..n).map(|k| (0..n).map(|i| self.vectors[i * n + k].conj() * x[i]).sum()).collect()
    }
}

/// Eigenvalues and eigenvectors (columns) of a Hermitian matrix `[n, n]`, by Jacobi's rotations: slow and accurate.
fn hermitian_eigen(mut a: Vec<Complex64>, n: usize) -> (Vec<f64>, Vec<Complex64>) {
    let mut v = vec![Complex64::ZERO; n * n];
    (0..n).for_each(|i| v[i * n + i] = Complex64::ONE);
    let size: f64 = a.iter().map(|z| z.norm_sqr()).sum();
    // convergence is quadratic; a handful of sweeps is enough, 64 mean that something is not a number
    for _ in 0..64 {
        let off: f64 = (0..n * n).filter(|k| k / n != k % n).map(|k| a[k].norm_sqr()).sum();
        if off <= 1e-30 * size {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, &mut v, n, p, q);
            }
        }
    }
    ((0..n).map(|i| a[i * n + i].re).collect(), v)
}

/// Makes element (p, q) zero: `a <- R^* a R`, `v <- v R`.
fn rotate(a: &mut [Complex64], v: &mut [Complex64], n: usize, p: usize, q: usize) {
    let element = a[p * n + q];
    if element.norm() == 0.0 {
        return;
    }
    let phase = element / element.norm();
    let theta = (a[q * n + q].re - a[p * n + p].re) / (2.0 * element.norm());
    let tangent = theta.signum() / (theta.abs() + theta.hypot(1.0));
    let cosine = 1.0 / tangent.hypot(1.0);
    let sine = phase * (tangent * cosine);
    // columns p and q, then rows
    for matrix in [&mut *a, &mut *v] {
        for row in matrix.chunks_exact_mut(n) {
            let (x, y) = (row[p], row[q]);
            row[p] = x * cosine - y * sine.conj();
            row[q] = x * sine + y * cosine;
        }
    }
    for i in 0..n {
        let (x, y) = (a[p * n + i], a[q * n + i]);
        a[p * n + i] = x * cosine - y * sine;
        a[q * n + i] = x * sine.conj() + y * cosine;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// V is unitary, and V diag(lambda) V^* = A + P P^T.
    #[test]
    fn normal_part_is_diagonalised() {
        for n in [1, 2, 5, 64] {
            let part = NormalPart::new(n);
            let (a, b) = legs(n);
            let column = |k: usize, i: usize| part.vectors[i * n + k];
            for i in 0..n {
                for j in 0..n {
                    let product: Complex64 = (0..n).map(|k| column(i, k).conj() * column(j, k)).sum();
                    assert!(
                        (product - if i == j { 1.0 } else { 0.0 }).norm() < 1e-12,
                        "V^* V at {i}, {j} of {n}"
                    );
                    let rebuilt: Complex64 =
                        (0..n).map(|k| column(k, i) * part.eigenvalues[k] * column(k, j).conj()).sum();
                    let expected = a[i * n + j] + 0.5 * b[i] * b[j];
                    assert!((rebuilt - expected).norm() < 1e-10 * n as f64, "A + P P^T at {i}, {j} of {n}");
                }
            }
            assert!(part.project(&b).iter().all(|z| z.re > 0.0 && z.im.abs() < 1e-10));
        }
    }
}
