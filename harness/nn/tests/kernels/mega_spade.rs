//! Windows over time and damped moving averages, against the operations on the CPU.

use replica_nn::ops::DampedAverage;

use crate::emulator::{Emulator, launch};
use crate::reference::{
    Bf16, Number, assert_near, differentiate, elementwise, numbers, sum_parts, unwritten, wide, with_ones,
};

/// Windows that overlap, that do not, and that have no step of their own; the gradient of each is the other one.
fn windows<T: Number>(cuda: &Emulator) {
    for (batch, l, width, length, before, after) in [
        (1usize, 1usize, 1usize, 1usize, 0usize, 0usize),
        (2, 12, 8, 4, 0, 0),
        (3, 11, 5, 4, 2, 0),
        (2, 7, 16, 3, 5, 4),
        (1, 9, 3, 20, 1, 2),
        (2, 1000, 7, 64, 63, 63),
    ] {
        let what = |of: &str| format!("windows of {length} with {before} and {after}, {batch} x {l}: {of}");
        let (pieces, steps) = (l.div_ceil(length), before + length + after);
        let (sequences, cut) = (batch * l * width, batch * pieces * steps * width);
        let (x, dy) = (numbers::<T>(sequences, 1), numbers::<T>(cut, 2));
        let (y64, gradients) = differentiate(&[(&[batch, l, width], wide(&x))], Some(&wide(&dy)), |x, _| {
            x[0].windows(length, before, after)
        });
        let [pieces_, steps_, l_, length_, before_, width_] =
            [pieces, steps, l, length, before, width].map(|n| n as i32);
        let name = |pass: &str| format!("windows_{pass}_{}", T::SUFFIX);
        let (mut y, mut dx) = (unwritten::<T>(cut), unwritten::<T>(sequences));
        let mut more = (vec![T::from_f32(1.0); cut], vec![T::from_f32(1.0); sequences]);
        for (y, dx, accumulate) in [(&mut y, &mut dx, 0), (&mut more.0, &mut more.1, 1)] {
            launch!(cuda, name("cut"), elementwise(cut), 256, 0;
                &x, y, (batch * pieces) as i64, pieces_, steps_, l_, length_, before_, width_, accumulate);
            launch!(cuda, name("sum"), elementwise(sequences), 256, 0;
                &dy, dx, batch as i64, pieces_, steps_, l_, length_, before_, width_, accumulate);
        }
        assert_near(&what("cut"), &y, &y64, 0.0);
        assert_near(&what("sum"), &dx, &gradients[0], T::TOLERANCE);
        assert_near(&what("cut, added"), &more.0, &with_ones(&y64), T::TOLERANCE);
        assert_near(&what("sum, added"), &more.1, &with_ones(&gradients[0]), T::TOLERANCE);
    }
}

#[test]
fn windows_over_time_of_both_types() {
    Emulator::in_both_orders(|cuda| {
        windows::<f32>(cuda);
        windows::<Bf16>(cuda);
    });
}

#[test]
fn kernels_of_damped_averages() {
    Emulator::in_both_orders(|cuda| {
        for (sides, h, n, length) in
            [(1, 1, 1, 1), (2, 1, 1, 1), (1, 3, 16, 70), (2, 2, 5, 64), (2, 1, 300, 7), (1, 1, 2, 2000)]
        {
            let what = |of: &str| format!("damped average, {sides} x {h} x {n}, {length} taps: {of}");
            let rows = sides * h;
            let mut p = [1, 2, 3, 4].map(|salt| numbers::<f32>(rows * n, salt));
            // averages over many steps and over few
            p[1].iter_mut().enumerate().for_each(|(i, alpha)| *alpha -= (i % 5) as f32);
            let dy = numbers::<f32>(rows * length, 5);
            let shape: &[usize] = &[rows, n];
            let inputs = p.each_ref().map(|p| (shape, wide(p)));
            let (y64, gradients) = differentiate(&inputs, Some(&wide(&dy)), |x, w| {
                let [delta, alpha, beta, gamma] = [0, 1, 2, 3].map(|i: usize| w[i].clone());
                DampedAverage { delta, alpha, beta, gamma, sides }.taps(length, &x[0])
            });
            let [delta, alpha, beta, gamma] = &p;
            let [h_, n_, sides_, length_] = [h, n, sides, length].map(|n| n as i32);
            let mut y = unwritten::<f32>(rows * length);
            launch!(cuda, "damped_taps_forward_f32", (length.div_ceil(256), rows, 1), 256, 0;
                delta, alpha, beta, gamma, h_, n_, &mut y, sides_, length_);
            assert_near(&what("taps"), &y, &y64, 1e-6);
            let mut shares = [(); 4].map(|()| unwritten::<f32>(rows * n));
            let [ddelta, dalpha, dbeta, dgamma] = &mut shares;
            launch!(cuda, "damped_taps_backward_f32", (n.div_ceil(8), rows, 1), 256, 0;
                delta, alpha, beta, gamma, h_, n_, &dy, ddelta, dalpha, dbeta, dgamma, length_);
            for ((share, expected), of) in
                shares.iter().zip(&gradients).zip(["delta", "alpha", "beta", "gamma"])
            {
                assert_near(&what(of), &sum_parts(cuda, share, rows * n), &with_ones(expected), 1e-5);
            }
        }
    });
}
