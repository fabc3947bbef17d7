//! Large matrix products by Intel's Math Kernel Library (feature `mkl`), in place of `panels`.

use std::any::TypeId;
use std::ffi::c_int;

use rayon::prelude::*;

use super::gemm::{Matrix, Shared};
use crate::real::Real;
use crate::storage::SharedMut;

const ROW_MAJOR: c_int = 101;
const NOT_TRANSPOSED: c_int = 111;
const TRANSPOSED: c_int = 112;

/// Pieces that a result is cut into, whatever the number of threads: an element's sum may depend on the piece.
const PIECES: usize = 8;
/// Rows or columns below which a piece is not worth a call.
const LEAST: usize = 48;

unsafe extern "C" {
    fn cblas_sgemm(
        layout: c_int,
        a_transposed: c_int,
        b_transposed: c_int,
        m: c_int,
        n: c_int,
        k: c_int,
        alpha: f32,
        a: *const f32,
        a_stride: c_int,
        b: *const f32,
        b_stride: c_int,
        beta: f32,
        c: *mut f32,
        c_stride: c_int,
    );
}

/// `dst[m, n] (+)= a[m, k] b[k, n]` if numbers are f32; whether it was done. The sequential library runs on pieces
/// of the result.
///
/// # Safety
/// As [`super::gemm::gemm_on_all_threads`]; `b` too lies by rows or is the transpose of such.
pub(super) unsafe fn product<T: Real>(
    (m, n, k): (usize, usize, usize),
    (dst, dst_stride): (SharedMut<T>, usize),
    accumulate: bool,
    a: Matrix<Shared<T>>,
    b: Matrix<Shared<T>>,
) -> bool {
    if TypeId::of::<T>() != TypeId::of::<f32>() || m * n * k == 0 {
        return false;
    }
    let by_rows = m >= n;
    let long = if by_rows { m } else { n };
    let piece = long.div_ceil(PIECES).max(LEAST);
    (0..long.div_ceil(piece)).into_par_iter().with_max_len(1).for_each(|i| {
        let (from, length) = (i * piece, piece.min(long - i * piece));
        let (row, col, rows, cols) = if by_rows { (from, 0, length, n) } else { (0, from, m, length) };
        let (a_transposed, a_stride) = order(a);
        let (b_transposed, b_stride) = order(b);
        // SAFETY: T is f32; rows and columns lie within the views, pieces write disjoint parts of `dst`.
        unsafe {
            cblas_sgemm(
                ROW_MAJOR,
                a_transposed,
                b_transposed,
                rows as c_int,
                cols as c_int,
                k as c_int,
                1.0,
                a.data.0.add(row * a.row_stride).cast(),
                a_stride,
                b.data.0.add(col * b.col_stride).cast(),
                b_stride,
                if accumulate { 1.0 } else { 0.0 },
                dst.ptr().add(row * dst_stride + col).cast(),
                dst_stride as c_int,
            );
        }
    });
    true
}

/// Whether a matrix is the transpose of one that lies by rows, and how far those are apart.
fn order<T>(matrix: Matrix<Shared<T>>) -> (c_int, c_int) {
    match matrix.col_stride {
        1 => (NOT_TRANSPOSED, matrix.row_stride as c_int),
        stride => (TRANSPOSED, stride as c_int),
    }
}
