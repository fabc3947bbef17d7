//! Heads over sequences: means of their first positions, features of pairs.

use crate::emulator::{Emulator, launch};
use crate::reference::{Bf16, Number, assert_near, differentiate, elementwise, numbers, unwritten, wide};

/// Nothing, and what a kernel adds to.
fn destinations<T: Number>(n: usize) -> [(i32, Vec<T>, Vec<f64>); 2] {
    let old = numbers::<T>(n, 9);
    let before = wide(&old);
    [(0, unwritten(n), vec![0.0; n]), (1, old, before)]
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn means<T: Number>(cuda: &Emulator) {
    // parts that end inside a sequence, behind it, and at its end
    for (lengths, t, width, size) in
        [(vec![1u32], 1, 1, 1), (vec![9, 1, 4], 9, 5, 4), (vec![3, 40], 40, 24, 16), (vec![7, 8], 8, 70, 8)]
    {
        let batch = lengths.len();
        let (x, dy) = (numbers::<T>(batch * t * width, 1), numbers::<T>(batch * width, 2));
        let firsts: Vec<usize> = lengths.iter().map(|n| *n as usize).collect();
        let (expected, gradients) =
            differentiate(&[(&[batch, t, width], wide(&x))], Some(&wide(&dy)), |x, _| {
                x[0].mean_of_first(&firsts)
            });
        let what = format!("mean of the first {lengths:?} of {t} x {width}");
        let name = |kernel: &str| format!("pool_{kernel}_{}", T::SUFFIX);
        let count = t.div_ceil(size);
        let mut parts = unwritten::<f32>(count * batch * width);
        launch!(cuda, name("sums"), (width.div_ceil(32), count, batch), 256, 0;
            &x, &lengths, &mut parts, t as i32, size as i32, width as i32);
        let mut y = unwritten::<T>(batch * width);
        launch!(cuda, name("mean"), elementwise(batch * width), 256, 0;
            &parts, &lengths, &mut y, count as i32, batch as i64, width as i32);
        assert_near(&what, &y, &expected, T::TOLERANCE);
        for (accumulate, mut dx, before) in destinations::<T>(batch * t * width) {
            launch!(cuda, name("backward"), elementwise(batch * t * width), 256, 0;
                &dy, &lengths, &mut dx, batch as i64, t as i32, width as i32, accumulate);
            assert_near(&format!("{what}: dx"), &dx, &sum(&before, &gradients[0]), T::TOLERANCE);
        }
    }
}

fn pairs<T: Number>(cuda: &Emulator) {
    for (pairs, width) in [(1usize, 1usize), (3, 7), (5, 24), (40, 130)] {
        let (x, dy) = (numbers::<T>(2 * pairs * width, 1), numbers::<T>(4 * pairs * width, 2));
        let (expected, gradients) =
            differentiate(&[(&[2 * pairs, width], wide(&x))], Some(&wide(&dy)), |x, _| x[0].pair_features());
        let what = format!("features of {pairs} pairs, width {width}");
        let mut y = unwritten::<T>(4 * pairs * width);
        launch!(cuda, format!("pair_forward_{}", T::SUFFIX), elementwise(pairs * width), 256, 0;
            &x, &mut y, pairs as i64, width as i32);
        assert_near(&what, &y, &expected, T::TOLERANCE);
        for (accumulate, mut dx, before) in destinations::<T>(2 * pairs * width) {
            launch!(cuda, format!("pair_backward_{}", T::SUFFIX), elementwise(pairs * width), 256, 0;
                &dy, &x, &mut dx, pairs as i64, width as i32, accumulate);
            assert_near(&format!("{what}: dx"), &dx, &sum(&before, &gradients[0]), T::TOLERANCE);
        }
    }
}

#[test]
fn heads_of_both_types() {
    Emulator::in_both_orders(|cuda| {
        means::<f32>(cuda);
        means::<Bf16>(cuda);
        pairs::<f32>(cuda);
        pairs::<Bf16>(cuda);
    });
}
