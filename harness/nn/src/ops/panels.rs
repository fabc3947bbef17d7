//! Matrix products on one thread whose right side is packed: the blocks of attention, where it is packed once and
//! used many times, and the tasks of a large product.
//!
//! A general routine packs both sides at every call, which costs as much as a product with 64 rows itself.

use super::gemm::Matrix;
use crate::real::Real;
use crate::simd::vectorised;

/// Columns of a panel.
pub(crate) const COLUMNS: usize = 16;

/// Rows of a strip, which a kernel works on at once: their sums fit the registers and keep the multipliers busy.
pub(crate) const STRIP: usize = 6;

/// A matrix `[k, n]` as panels of 16 columns, `[n / 16][k][16]`, the last one filled up with zeros.
pub struct Panels<T> {
    data: Vec<T>,
    k: usize,
    n: usize,
}

impl<T: Real> Panels<T> {
    pub(crate) fn new() -> Self {
        Self { data: Vec::new(), k: 0, n: 0 }
    }

    /// Packs `b[k, n]`.
    ///
    /// # Safety
    /// The view lies within its allocation and is not written meanwhile.
    pub(crate) unsafe fn pack(&mut self, (k, n): (usize, usize), b: Matrix<*const T>) {
        (self.k, self.n) = (k, n);
        self.data.resize(n.div_ceil(COLUMNS) * k * COLUMNS, T::zero());
        if k > 0 {
            for (panel, to) in self.data.chunks_exact_mut(k * COLUMNS).enumerate() {
                // SAFETY: passed on to the caller.
                unsafe { pack_panel(to, panel, n, b) };
            }
        }
    }

    /// `dst[m, n] = scale * a[m, k] b[k, n]`, added to what is there if `accumulate`, of the first `k` rows and
    /// `n` columns of what was packed. The sums run over k in order, so no element depends on the sizes.
    ///
    /// # Safety
    /// The views lie within their allocations; `dst` has columns side by side and overlaps nothing that is read
    /// or written meanwhile.
    pub(crate) unsafe fn product(
        &self,
        (m, n, k): (usize, usize, usize),
        dst: Matrix<*mut T>,
        accumulate: bool,
        scale: T,
        a: Matrix<*const T>,
    ) {
        debug_assert!(k <= self.k && n <= self.n && dst.col_stride == 1);
        let (a_strip, b, b_panel) = (STRIP * a.row_stride, self.data.as_ptr(), self.k * COLUMNS);
        // SAFETY: passed on to the caller.
        unsafe { T::product(Product { size: (m, n, k), dst, accumulate, scale, a, a_strip, b, b_panel }) }
    }
}

/// Packs panel number `panel` of `b[k, n]` to `to[k][COLUMNS]`.
///
/// # Safety
/// As [`Panels::pack`].
pub(crate) unsafe fn pack_panel<T: Real>(to: &mut [T], panel: usize, n: usize, b: Matrix<*const T>) {
    let first = panel * COLUMNS;
    let columns = COLUMNS.min(n - first);
    let k = to.len() / COLUMNS;
    vectorised(
        #[inline(always)]
        || {
            // SAFETY: the elements `first..first + columns` of the k rows lie within the view.
            unsafe {
                let from = b.data.add(first * b.col_stride);
                if columns == COLUMNS && b.col_stride == 1 {
                    for (l, to) in to.chunks_exact_mut(COLUMNS).enumerate() {
                        to.copy_from_slice(std::slice::from_raw_parts(from.add(l * b.row_stride), COLUMNS));
                    }
                    return;
                }
                if columns < COLUMNS {
                    to.fill(T::zero());
                }
                // in squares of 16, so that what is read by columns stays in the cache
                for l0 in (0..k).step_by(COLUMNS) {
                    for j in 0..columns {
                        for l in l0..k.min(l0 + COLUMNS) {
                            *to.get_unchecked_mut(l * COLUMNS + j) =
                                *from.add(j * b.col_stride + l * b.row_stride);
                        }
                    }
                }
            }
        },
    );
}

/// Packs `a[m, k]` to `to[m / STRIP][k][STRIP]`, so that a kernel reads a matrix that lies by columns in a line.
///
/// # Safety
/// As [`Panels::pack`]; the rows lie side by side.
pub(crate) unsafe fn pack_strips<T: Real>(to: &mut [T], (m, k): (usize, usize), a: Matrix<*const T>) {
    debug_assert!(a.row_stride == 1);
    for (strip, to) in to.chunks_exact_mut(k * STRIP).enumerate() {
        let rows = STRIP.min(m - strip * STRIP);
        for (l, to) in to.as_chunks_mut::<STRIP>().0.iter_mut().enumerate() {
            // SAFETY: passed on to the caller.
            unsafe {
                let from = a.data.add(strip * STRIP + l * a.col_stride);
                if rows == STRIP {
                    *to = from.cast::<[T; STRIP]>().read_unaligned();
                } else {
                    to[..rows].copy_from_slice(std::slice::from_raw_parts(from, rows));
                    to[rows..].fill(T::zero());
                }
            }
        }
    }
}

/// The arguments of [`Panels::product`].
pub struct Product<T> {
    pub(crate) size: (usize, usize, usize),
    pub(crate) dst: Matrix<*mut T>,
    pub(crate) accumulate: bool,
    pub(crate) scale: T,
    pub(crate) a: Matrix<*const T>,
    /// Elements from one strip of [`STRIP`] rows of `a` to the next.
    pub(crate) a_strip: usize,
    /// The first of the k rows in the first panel.
    pub(crate) b: *const T,
    /// Elements from one panel to the next.
    pub(crate) b_panel: usize,
}

impl<T> Clone for Product<T>
where
    T: Copy,
{
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Product<T> where T: Copy {}

/// Number types with a kernel in vector registers. Compilers do not keep a block of sums in registers by themselves.
pub trait PanelKernel: Sized {
    /// # Safety
    /// As [`Panels::product`].
    unsafe fn product(product: Product<Self>);
}

macro_rules! kernel {
    ($real:ident, $lanes:ident, $vector:ident, $splat:ident, $mul_add:ident, $mul:ident) => {
        impl PanelKernel for $real {
            unsafe fn product(product: Product<Self>) {
                struct Call(Product<$real>);

                impl pulp::WithSimd for Call {
                    type Output = ();

                    #[inline(always)]
                    fn with_simd<S: pulp::Simd>(self, simd: S) {
                        // SAFETY: passed on to the caller; `N` vectors are the 16 columns of a panel.
                        unsafe {
                            match S::$lanes {
                                16 => panels::<S, 1>(simd, &self.0),
                                8 => panels::<S, 2>(simd, &self.0),
                                4 => panels::<S, 4>(simd, &self.0),
                                2 => panels::<S, 8>(simd, &self.0),
                                _ => panels::<S, 16>(simd, &self.0),
                            }
                        }
                    }
                }

                #[inline(always)]
                unsafe fn panels<S: pulp::Simd, const N: usize>(simd: S, product: &Product<$real>) {
                    let (m, n, _) = product.size;
                    for first in (0..n).step_by(COLUMNS) {
                        let mut i = 0;
                        // SAFETY: rows i.. of the views, and the columns of the panel up to n, exist.
                        unsafe {
                            while N == 1 && i + 2 * STRIP <= m {
                                rows::<S, { 2 * STRIP }, N>(simd, product, i, first);
                                i += 2 * STRIP;
                            }
                            while N <= 2 && i + STRIP <= m {
                                rows::<S, STRIP, N>(simd, product, i, first);
                                i += STRIP;
                            }
                            while i + 4 <= m {
                                rows::<S, 4, N>(simd, product, i, first);
                                i += 4;
                            }
                            while i < m {
                                rows::<S, 1, N>(simd, product, i, first);
                                i += 1;
                            }
                        }
                    }
                }

                /// `R` rows of one panel's part of a product.
                #[inline(always)]
                unsafe fn rows<S: pulp::Simd, const R: usize, const N: usize>(
                    simd: S,
                    product: &Product<$real>,
                    row: usize,
                    first: usize,
                ) {
                    let Product { size: (_, n, k), dst, accumulate, scale, a, a_strip, b, b_panel } =
                        *product;
                    let mut sums = [[simd.$splat(0.0); N]; R];
                    // SAFETY: rows `row..row + R` and columns `0..k` of `a`, `k` rows of the panel, and the
                    // same rows and the columns `first..n` of `dst` exist; nobody else has that part of `dst`.
                    unsafe {
                        let a_rows: [*const $real; R] = std::array::from_fn(|i| {
                            let (strip, i) = ((row + i) / STRIP, (row + i) % STRIP);
                            a.data.add(strip * a_strip + i * a.row_stride)
                        });
                        let mut b = b.add(first / COLUMNS * b_panel);
                        let mut at = 0;
                        for _ in 0..k {
                            let vectors: [S::$vector; N] =
                                std::array::from_fn(|j| b.cast::<S::$vector>().add(j).read_unaligned());
                            for i in 0..R {
                                let x = simd.$splat(*a_rows[i].add(at));
                                for j in 0..N {
                                    sums[i][j] = simd.$mul_add(x, vectors[j], sums[i][j]);
                                }
                            }
                            at += a.col_stride;
                            b = b.add(COLUMNS);
                        }
                        let scales = simd.$splat(scale);
                        for i in 0..R {
                            let dst = dst.data.add((row + i) * dst.row_stride + first);
                            if first + COLUMNS <= n {
                                for j in 0..N {
                                    let to = dst.cast::<S::$vector>().add(j);
                                    to.write_unaligned(match accumulate {
                                        true => simd.$mul_add(sums[i][j], scales, to.read_unaligned()),
                                        false => simd.$mul(sums[i][j], scales),
                                    });
                                }
                            } else {
                                // a copy, since what has an address does not stay in registers
                                let mut copy = [0.0; COLUMNS];
                                for j in 0..N {
                                    copy.as_mut_ptr().cast::<S::$vector>().add(j).write_unaligned(sums[i][j]);
                                }
                                for (j, sum) in copy[..n - first].iter().enumerate() {
                                    let to = dst.add(j);
                                    *to = if accumulate { sum.mul_add(scale, *to) } else { *sum * scale };
                                }
                            }
                        }
                    }
                }

                pulp::Arch::new().dispatch(Call(product));
            }
        }
    };
}

kernel!(f32, F32_LANES, f32s, splat_f32s, mul_add_f32s, mul_f32s);
kernel!(f64, F64_LANES, f64s, splat_f64s, mul_add_f64s, mul_f64s);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_agree_with_their_definition() {
        let numbers =
            |n: usize| -> Vec<f64> { (0..n).map(|i| ((i * 7919) % 1013) as f64 / 500.0 - 1.0).collect() };
        for (m, n, k) in [(1, 1, 1), (4, 16, 3), (13, 37, 21), (64, 70, 64), (9, 16, 0)] {
            let (a, b) = (numbers(m * k + 1), numbers(n * k + 1));
            for (a_rows, b_rows) in [(true, true), (true, false), (false, true), (false, false)] {
                let view = |data: &[f64], rows: usize, cols: usize, by_rows: bool| {
                    if by_rows {
                        Matrix::rows(data.as_ptr(), cols)
                    } else {
                        Matrix::rows(data.as_ptr(), rows).t()
                    }
                };
                let (left, right) = (view(&a, m, k, a_rows), view(&b, k, n, b_rows));
                let mut dst = vec![1.0; m * n];
                let mut panels = Panels::new();
                // SAFETY: the views cover the vectors.
                unsafe {
                    panels.pack((k, n), right);
                    panels.product((m, n, k), Matrix::rows(dst.as_mut_ptr(), n), true, 0.5, left);
                }
                for (at, got) in dst.iter().enumerate() {
                    let (i, j) = (at / n, at % n);
                    let a = |l: usize| if a_rows { a[i * k + l] } else { a[l * m + i] };
                    let b = |l: usize| if b_rows { b[l * n + j] } else { b[j * k + l] };
                    let expected = 1.0 + 0.5 * (0..k).map(|l| a(l) * b(l)).sum::<f64>();
                    assert!((got - expected).abs() < 1e-12, "{m} x {n} x {k} at {i}, {j}");
                }
            }
        }
    }
}
