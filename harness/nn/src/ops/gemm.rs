//! Large matrix products, cut into tasks for all threads; the kernels of `panels` do the work.
//!
//! On the two decoders of `replica bench` whole training steps take 0.87 to 0.97 of what they take with the crate `gemm`.

use rayon::prelude::*;

use super::panels::{COLUMNS, Panels, Product, STRIP, pack_panel, pack_strips};
use crate::real::Real;
use crate::storage::{SharedMut, buffer};

/// Part of a trial's identity: whose products round its sums; empty for our own.
pub const FOREIGN_PRODUCTS: &str = if cfg!(feature = "mkl") { "mkl" } else { "" };

/// A strided matrix: first element, distance between rows, distance between columns.
#[derive(Clone, Copy)]
pub struct Matrix<P> {
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

/// A pointer that tasks read.
#[derive(Clone, Copy)]
pub(super) struct Shared<T>(pub(super) *const T);

// SAFETY: it is only a number; `whole` borrows what it points to.
unsafe impl<T: Sync> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Shared<T> {}

impl<T: Copy> Matrix<Shared<T>> {
    fn raw(self) -> Matrix<*const T> {
        Matrix { data: self.data.0, row_stride: self.row_stride, col_stride: self.col_stride }
    }
}

impl<T> Matrix<*const T> {
    fn shared(self) -> Matrix<Shared<T>> {
        Matrix { data: Shared(self.data), row_stride: self.row_stride, col_stride: self.col_stride }
    }
}

/// Rows of a task: with `DEPTH` columns of the left side they stay in the second-level cache.
const HEIGHT: usize = 132;
/// Products added up before they are written: a panel of the right side of this depth stays in the first-level cache.
const DEPTH: usize = 256;

/// `dst[m, n] (+)= a[m, k] b[k, n]` by our own kernel, or by MKL where the feature is on: the right side is packed by all threads together, then
/// each task computes some rows and columns of the result. How the result is cut into tasks changes no sum.
///
/// # Safety
/// As [`gemm_on_all_threads`].
unsafe fn by_panels<T: Real>(
    (m, n, k): (usize, usize, usize),
    dst: (SharedMut<T>, usize),
    accumulate: bool,
    a: Matrix<Shared<T>>,
    b: Matrix<Shared<T>>,
) {
    if m * n == 0 {
        return;
    }
    if k == 0 {
        for row in 0..if accumulate { 0 } else { m } {
            // SAFETY: passed on to the caller.
            unsafe { std::slice::from_raw_parts_mut(dst.0.ptr().add(row * dst.1), n).fill(T::zero()) };
        }
        return;
    }
    #[cfg(feature = "mkl")]
    // SAFETY: passed on to the caller; all views here lie by rows or are transposes of such.
    if unsafe { super::mkl::product((m, n, k), dst, accumulate, a, b) } {
        return;
    }
    let mut panels = buffer::<T>(n.div_ceil(COLUMNS) * k * COLUMNS);
    panels.par_chunks_mut(k * COLUMNS).with_min_len(2).enumerate().for_each(|(panel, to)| {
        // SAFETY: passed on to the caller.
        unsafe { pack_panel(to, panel, n, b.raw()) }
    });
    let depth = k.div_ceil(k.div_ceil(DEPTH));
    let height = m.div_ceil(m.div_ceil(HEIGHT)).next_multiple_of(2 * STRIP);
    let threads = rayon::current_num_threads();
    let mut width = n.next_multiple_of(COLUMNS);
    while threads > 1 && m.div_ceil(height) * n.div_ceil(width) < 4 * threads && width >= 16 * COLUMNS {
        width = width.div_ceil(2).next_multiple_of(COLUMNS);
    }
    let across = n.div_ceil(width);
    let tasks = (0..m.div_ceil(height) * across).into_par_iter().with_max_len(1);
    tasks.for_each_init(Vec::new, |packed: &mut Vec<T>, task| {
        let (row, col) = (task / across * height, task % across * width);
        let (rows, cols) = (height.min(m - row), width.min(n - col));
        for from in (0..k).step_by(depth) {
            let depth = depth.min(k - from);
            // SAFETY: rows, columns and depth lie within the views; tasks write disjoint parts of `dst`.
            unsafe {
                let at = a.data.0.add(row * a.row_stride + from * a.col_stride);
                let (left, a_strip) = if a.col_stride == 1 {
                    (Matrix { data: at, ..a.raw() }, STRIP * a.row_stride)
                } else {
                    packed.resize(rows.next_multiple_of(STRIP) * depth, T::zero());
                    pack_strips(packed, (rows, depth), Matrix { data: at, ..a.raw() });
                    (Matrix::rows(packed.as_ptr(), STRIP).t(), STRIP * depth)
                };
                T::product(Product {
                    size: (rows, cols, depth),
                    dst: Matrix::rows(dst.0.ptr().add(row * dst.1 + col), dst.1),
                    accumulate: accumulate || from > 0,
                    scale: T::one(),
                    a: left,
                    a_strip,
                    b: panels.as_ptr().add((col / COLUMNS * k + from) * COLUMNS),
                    b_panel: k * COLUMNS,
                });
            }
        }
    });
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
    // SAFETY: the views cover the slices exactly; `dst` is borrowed mutably.
    unsafe { by_panels(size, (SharedMut::new(dst), n), accumulate, a.1.shared(), b.1.shared()) }
}

/// `dst[m, n] (+)= a[m, k] b[k, n]`, shared by all threads.
///
/// # Safety
/// The three views lie within allocations, `a` and `dst` by rows or `a` as the transpose of such; `dst` overlaps
/// nothing that is read or written meanwhile.
pub(crate) unsafe fn gemm_on_all_threads<T: Real>(
    size: (usize, usize, usize),
    dst: Matrix<*mut T>,
    accumulate: bool,
    a: Matrix<*const T>,
    b: Matrix<*const T>,
) {
    // SAFETY: passed on to the caller.
    unsafe { by_panels(size, (SharedMut::at(dst.data), dst.row_stride), accumulate, a.shared(), b.shared()) }
}

/// `dst[m, n] = a[m, k] b[k, n]` on the calling thread.
///
/// # Safety
/// As [`gemm_on_all_threads`].
pub(crate) unsafe fn gemm_on_this_thread<T: Real>(
    (m, n, k): (usize, usize, usize),
    dst: Matrix<*mut T>,
    a: Matrix<*const T>,
    b: Matrix<*const T>,
) {
    let mut panels = Panels::new();
    // SAFETY: passed on to the caller.
    unsafe {
        panels.pack((k, n), b);
        panels.product((m, n, k), dst, false, T::one(), a);
    }
}

/// `y[n, o] (+)= x[n, k] w[o, k]^T`: a linear layer's forward pass.
pub fn matmul_nt<T: Real>(y: &mut [T], accumulate: bool, x: &[T], w: &[T], (n, o, k): (usize, usize, usize)) {
    whole((n, o, k), y, accumulate, (x, Matrix::rows(x.as_ptr(), k)), (w, Matrix::rows(w.as_ptr(), k).t()));
}

/// `dx[n, k] (+)= dy[n, o] w[o, k]`: its gradient by the input.
pub fn matmul_nn<T: Real>(
    dx: &mut [T],
    accumulate: bool,
    dy: &[T],
    w: &[T],
    (n, o, k): (usize, usize, usize),
) {
    whole((n, k, o), dx, accumulate, (dy, Matrix::rows(dy.as_ptr(), o)), (w, Matrix::rows(w.as_ptr(), k)));
}

/// `dw[o, k] (+)= dy[n, o]^T x[n, k]`: its gradient by the weight.
pub fn matmul_tn<T: Real>(
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

    /// How work is split depends on the number of threads; no element's sum may.
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
