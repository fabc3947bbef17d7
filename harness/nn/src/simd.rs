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

/// Replaces `out[.., i]` by `f(out[.., i], inputs[.., i])`. Blocks of 16 positions are read before they are written: as far as
/// a compiler sees, results may lie over inputs or over each other, and a loop over positions would take them one by one.
///
/// # Panics
/// A slice is shorter than the first result.
#[inline(always)]
pub(crate) fn elementwise<T: Real, const O: usize, const I: usize>(
    out: [&mut [T]; O],
    inputs: [&[T]; I],
    f: impl Fn([T; O], [T; I]) -> [T; O],
) {
    let n = out[0].len();
    let (mut out, inputs) = (out.map(|out| &mut out[..n]), inputs.map(|input| &input[..n]));
    let whole = n - n % LANES;
    for at in (0..whole).step_by(LANES) {
        let (mut y, mut x) = ([[T::zero(); LANES]; O], [[T::zero(); LANES]; I]);
        for (y, out) in y.iter_mut().zip(&out) {
            y.copy_from_slice(&out[at..at + LANES]);
        }
        for (x, input) in x.iter_mut().zip(&inputs) {
            x.copy_from_slice(&input[at..at + LANES]);
        }
        for i in 0..LANES {
            // not `map`, which takes the blocks by value and copies them
            let results = f(std::array::from_fn(|k| y[k][i]), std::array::from_fn(|k| x[k][i]));
            for (y, result) in y.iter_mut().zip(results) {
                y[i] = result;
            }
        }
        for (out, y) in out.iter_mut().zip(&y) {
            out[at..at + LANES].copy_from_slice(y);
        }
    }
    for i in whole..n {
        let results = f(std::array::from_fn(|k| out[k][i]), inputs.map(|input| input[i]));
        for (out, result) in out.iter_mut().zip(results) {
            out[i] = result;
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums so far, over whole blocks and what is left of them.
    #[test]
    fn elementwise_is_the_loop_over_positions() {
        for n in 0..3 * LANES + 2 {
            let numbers = |factor: usize| (0..n).map(|i| (factor * i % 7) as f64).collect::<Vec<_>>();
            let (a, b, mut sums, mut products) = (numbers(3), numbers(5), numbers(2), vec![f64::NAN; n]);
            elementwise([&mut sums, &mut products], [&a, &b], |[sum, _], [a, b]| [sum + a, a * b]);
            for i in 0..n {
                assert_eq!((sums[i], products[i]), (numbers(2)[i] + a[i], a[i] * b[i]), "{i} of {n}");
            }
        }
    }
}
