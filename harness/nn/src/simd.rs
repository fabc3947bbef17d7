//! Vector instructions chosen at run time, and reductions whose order does not depend on them.

use crate::real::Real;

/// Runs `f` compiled for the widest vector instructions of this processor. `f` must be a closure marked
/// `#[inline(always)]`; what it calls must be inlined as well.
#[inline(always)]
pub fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Name of the instructions in use.
pub fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        match pulp::x86::Arch::new() {
            pulp::x86::Arch::V4(_) => "avx512",
            pulp::x86::Arch::V3(_) => "avx2",
            _ => "sse2",
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        "neon"
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        "scalar"
    }
}

/// Independent partial results of a reduction: one AVX-512 register of `f32`. It is part of the result's
/// definition, so it is the same on every processor.
const LANES: usize = 16;

#[inline(always)]
fn fold<T: Real>(mut lanes: [T; LANES], f: impl Fn(T, T) -> T) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Sum of `f(x)` over a slice.
#[inline(always)]
pub(crate) fn sum_map<T: Real>(x: &[T], f: impl Fn(T) -> T) -> T {
    let mut lanes = [T::zero(); LANES];
    let blocks = x.chunks_exact(LANES);
    let mut rest = T::zero();
    for &v in blocks.remainder() {
        rest += f(v);
    }
    for block in blocks {
        for i in 0..LANES {
            lanes[i] += f(block[i]);
        }
    }
    fold(lanes, |a, b| a + b) + rest
}

/// Sum of a slice.
#[inline(always)]
pub(crate) fn sum<T: Real>(x: &[T]) -> T {
    sum_map(x, |v| v)
}

/// Scalar product.
#[inline(always)]
pub(crate) fn dot<T: Real>(x: &[T], y: &[T]) -> T {
    let mut lanes = [T::zero(); LANES];
    let (bx, by) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let mut rest = T::zero();
    for (&a, &b) in bx.remainder().iter().zip(by.remainder()) {
        rest = a.mul_add(b, rest);
    }
    for (a, b) in bx.zip(by) {
        for i in 0..LANES {
            lanes[i] = a[i].mul_add(b[i], lanes[i]);
        }
    }
    fold(lanes, |a, b| a + b) + rest
}

/// Largest element; minus infinity for an empty slice.
#[inline(always)]
pub(crate) fn max<T: Real>(x: &[T]) -> T {
    let mut lanes = [T::lowest(); LANES];
    let blocks = x.chunks_exact(LANES);
    let mut rest = T::lowest();
    for &v in blocks.remainder() {
        rest = v.larger(rest);
    }
    for block in blocks {
        for i in 0..LANES {
            lanes[i] = block[i].larger(lanes[i]);
        }
    }
    fold(lanes, T::larger).larger(rest)
}

/// Replaces every x by exp(x - shift) and returns their sum.
#[inline(always)]
pub(crate) fn exp_in_place<T: Real>(x: &mut [T], shift: T) -> T {
    for v in x.iter_mut() {
        *v = (*v - shift).exp();
    }
    sum(x)
}
