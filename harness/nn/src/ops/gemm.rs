//! Matrix products, by the `gemm` crate, whose kernels are chosen at run time.

use gemm::Parallelism;

use crate::real::Real;

/// A strided matrix: first element, distance between rows, distance between columns.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<P> {
    pub(crate) data: P,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

impl<P> Matrix<P> {
    /// Rows of `row_stride` elements each.
    pub(crate) fn rows(data: P, row_stride: usize) -> Self {
        Self { data, row_stride, col_stride: 1 }
    }

    /// The transpose.
    pub(crate) fn t(self) -> Self {
        Self { data: self.data, row_stride: self.col_stride, col_stride: self.row_stride }
    }
}

/// `dst[m, n] = scale * a[m, k] b[k, n]`, added to what is there if `accumulate`; on the calling thread.
///
/// # Safety
/// The three views lie within allocations; `dst` overlaps nothing that is read or written meanwhile.
pub(crate) unsafe fn gemm_on_this_thread<T: Real>(
    (m, n, k): (usize, usize, usize),
    dst: Matrix<*mut T>,
    accumulate: bool,
    scale: T,
    a: Matrix<*const T>,
    b: Matrix<*const T>,
) {
    // SAFETY: passed on to the caller.
    unsafe { product((m, n, k), dst, accumulate, scale, a, b, Parallelism::None) }
}

unsafe fn product<T: Real>(
    (m, n, k): (usize, usize, usize),
    dst: Matrix<*mut T>,
    accumulate: bool,
    scale: T,
    a: Matrix<*const T>,
    b: Matrix<*const T>,
    parallelism: Parallelism,
) {
    if k == 0 {
        for i in (0..m).filter(|_| !accumulate) {
            // SAFETY: `dst` lies within its allocation.
            (0..n)
                .for_each(|j| unsafe { *dst.data.add(i * dst.row_stride + j * dst.col_stride) = T::zero() });
        }
        return;
    }
    // SAFETY: passed on to the caller.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.data,
            dst.col_stride as isize,
            dst.row_stride as isize,
            accumulate,
            a.data,
            a.col_stride as isize,
            a.row_stride as isize,
            b.data,
            b.col_stride as isize,
            b.row_stride as isize,
            T::one(),
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

fn parallelism() -> Parallelism {
    match rayon::current_num_threads() {
        1 => Parallelism::None,
        n => Parallelism::Rayon(n),
    }
}

fn whole<T: Real>(
    size: (usize, usize, usize),
    dst: &mut [T],
    accumulate: bool,
    a: (&[T], Matrix<*const T>),
    b: (&[T], Matrix<*const T>),
) {
    let (m, n, k) = size;
    assert!(dst.len() == m * n && a.0.len() == m * k && b.0.len() == k * n, "matrix sizes disagree");
    if m * n == 0 {
        return;
    }
    // SAFETY: the views cover the slices exactly, as asserted; `dst` is borrowed mutably.
    unsafe { product(size, Matrix::rows(dst.as_mut_ptr(), n), accumulate, T::one(), a.1, b.1, parallelism()) }
}

/// `y[n, o] (+)= x[n, k] w[o, k]^T`: a linear layer's forward pass.
pub(crate) fn matmul_nt<T: Real>(
    y: &mut [T],
    accumulate: bool,
    x: &[T],
    w: &[T],
    (n, o, k): (usize, usize, usize),
) {
    whole((n, o, k), y, accumulate, (x, Matrix::rows(x.as_ptr(), k)), (w, Matrix::rows(w.as_ptr(), k).t()));
}

/// `dx[n, k] (+)= dy[n, o] w[o, k]`: its gradient by the input.
pub(crate) fn matmul_nn<T: Real>(
    dx: &mut [T],
    accumulate: bool,
    dy: &[T],
    w: &[T],
    (n, o, k): (usize, usize, usize),
) {
    whole((n, k, o), dx, accumulate, (dy, Matrix::rows(dy.as_ptr(), o)), (w, Matrix::rows(w.as_ptr(), k)));
}

/// `dw[o, k] (+)= dy[n, o]^T x[n, k]`: its gradient by the weight.
pub(crate) fn matmul_tn<T: Real>(
    dw: &mut [T],
    accumulate: bool,
    dy: &[T],
    x: &[T],
    (n, o, k): (usize, usize, usize),
) {
    whole(
        (o, k, n),
        dw,
        accumulate,
        (dy, Matrix::rows(dy.as_ptr(), o).t()),
        (x, Matrix::rows(x.as_ptr(), k)),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, salt: u32) -> Vec<f32> {
        (0..n as u32)
            .map(|i| ((i.wrapping_add(salt).wrapping_mul(2_654_435_761) >> 9) as f32) / 4_194_304.0 - 1.0)
            .collect()
    }

    /// The crate splits work by the number of threads; no element's sum may depend on it.
    #[test]
    fn products_do_not_depend_on_the_number_of_threads() {
        for (n, o, k) in [
            (1, 1, 1),
            (5, 3, 700),
            (64, 96, 96),
            (1024, 96, 256),
            (2048, 1024, 128),
            (97, 513, 1031),
            (128, 8, 4096),
        ] {
            let (x, w, dy) = (numbers(n * k, 1), numbers(o * k, 2), numbers(n * o, 3));
            let run = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let (mut y, mut dx, mut dw) = (numbers(n * o, 4), vec![0f32; n * k], vec![0f32; o * k]);
                    matmul_nt(&mut y, true, &x, &w, (n, o, k));
                    matmul_nn(&mut dx, false, &dy, &w, (n, o, k));
                    matmul_tn(&mut dw, false, &dy, &x, (n, o, k));
                    [y, dx, dw].concat().into_iter().map(f32::to_bits).collect::<Vec<_>>()
                })
            };
            let one = run(1);
            for threads in [2, 3, 4] {
                assert!(one == run(threads), "{n} x {o} x {k} differs with {threads} threads");
            }
        }
    }

    #[test]
    fn products_agree_with_their_definition() {
        let (n, o, k) = (3, 4, 5);
        let (x, w) = (numbers(n * k, 1), numbers(o * k, 2));
        let mut y = vec![f32::NAN; n * o];
        matmul_nt(&mut y, false, &x, &w, (n, o, k));
        for i in 0..n {
            for j in 0..o {
                let expected: f32 = (0..k).map(|l| x[i * k + l] * w[j * k + l]).sum();
                assert!((y[i * o + j] - expected).abs() < 1e-5);
            }
        }
    }
}
