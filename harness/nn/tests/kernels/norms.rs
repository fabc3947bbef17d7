//! Layer norm, root-mean-square norm, batch norm.

use candle_core::{Device, Tensor};
use replica_nn::ops::Moments;

use crate::emulator::{Emulator, NULL, launch};
use crate::reference::{
    Bf16, Number, assert_near, differentiate, elementwise, numbers, sum_parts, unwritten, wide, with_ones,
};

/// Rows, width, parts: odd ones, several packs, several rows a part, more than one tile of columns.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 1, 1), (3, 7, 1), (19, 33, 2), (37, 64, 2), (9, 520, 3), (5, 2176, 1)];

fn layer_norm<T: Number>(cuda: &Emulator) {
    for (rows, width, parts) in SHAPES {
        let (x, w, b) = (numbers::<T>(rows * width, 1), numbers::<T>(width, 2), numbers::<T>(width, 3));
        let dy = numbers::<T>(rows * width, 4);
        let inputs: [(&[usize], _); 3] =
            [(&[rows, width], wide(&x)), (&[width], wide(&w)), (&[width], wide(&b))];
        let (expected, gradients) =
            differentiate(&inputs, Some(&wide(&dy)), |x, w| x[0].layer_norm(&w[1], &w[2], 1e-5));
        let what = format!("layer norm {rows} x {width}");

        let mut y = unwritten::<T>(rows * width);
        let (mut mean, mut rstd) = (unwritten::<f32>(rows), unwritten::<f32>(rows));
        let name = |pass: &str| format!("layer_norm_{pass}_{}", T::SUFFIX);
        launch!(cuda, name("forward"), (rows.div_ceil(8), 1, 1), 256, 0;
            &x, &w, &b, &mut y, &mut mean, &mut rstd, rows as i64, width as i32, 1e-5f32);
        assert_near(&what, &y, &expected, T::TOLERANCE);

        let (mut dw, mut db) = (unwritten::<f32>(parts * width), unwritten::<f32>(parts * width));
        let mut dx = numbers::<T>(rows * width, 5);
        let sum: Vec<f64> = wide(&dx).iter().zip(&gradients[0]).map(|(a, b)| a + b).collect();
        launch!(cuda, name("backward"), (parts, width.div_ceil(2048), 1), 256, 0;
            &dy, &x, &w, &mean, &rstd, &mut dx, &mut dw, &mut db, rows as i64, width as i32, 1);
        // a row of one element has no gradient, but 1 / sqrt(eps) multiplies its rounding errors
        let tolerance = if width == 1 { 1e-3 } else { T::TOLERANCE };
        assert_near(&format!("{what}: dx added"), &dx, &sum, tolerance.max(T::TOLERANCE));
        assert_near(&format!("{what}: dw"), &sum_parts(cuda, &dw, width), &with_ones(&gradients[1]), 1e-5);
        assert_near(&format!("{what}: db"), &sum_parts(cuda, &db, width), &with_ones(&gradients[2]), 1e-5);

        let mut dx = unwritten::<T>(rows * width);
        launch!(cuda, name("backward"), (parts, width.div_ceil(2048), 1), 256, 0;
            &dy, &x, &w, &mean, &rstd, &mut dx, NULL, NULL, rows as i64, width as i32, 0);
        if width > 1 {
            assert_near(&format!("{what}: dx"), &dx, &gradients[0], T::TOLERANCE);
        }
    }
}

#[test]
fn layer_norm_of_both_types() {
    Emulator::in_both_orders(|cuda| {
        layer_norm::<f32>(cuda);
        layer_norm::<Bf16>(cuda);
    });
}

fn rms_norm<T: Number>(cuda: &Emulator) {
    for (rows, width, parts) in SHAPES {
        let (x, w) = (numbers::<T>(rows * width, 1), numbers::<T>(width, 2));
        let dy = numbers::<T>(rows * width, 4);
        let inputs: [(&[usize], _); 2] = [(&[rows, width], wide(&x)), (&[width], wide(&w))];
        let (expected, gradients) =
            differentiate(&inputs, Some(&wide(&dy)), |x, w| x[0].rms_norm(&w[1], 1e-2));
        let what = format!("rms norm {rows} x {width}");

        let mut y = unwritten::<T>(rows * width);
        let mut rstd = unwritten::<f32>(rows);
        let name = |pass: &str| format!("rms_norm_{pass}_{}", T::SUFFIX);
        launch!(cuda, name("forward"), (rows.div_ceil(8), 1, 1), 256, 0;
            &x, &w, &mut y, &mut rstd, rows as i64, width as i32, 1e-2f32);
        assert_near(&what, &y, &expected, T::TOLERANCE);

        let mut dw = unwritten::<f32>(parts * width);
        let mut dx = numbers::<T>(rows * width, 5);
        let sum: Vec<f64> = wide(&dx).iter().zip(&gradients[0]).map(|(a, b)| a + b).collect();
        launch!(cuda, name("backward"), (parts, width.div_ceil(2048), 1), 256, 0;
            &dy, &x, &w, &rstd, &mut dx, &mut dw, rows as i64, width as i32, 1);
        assert_near(&format!("{what}: dx added"), &dx, &sum, T::TOLERANCE);
        assert_near(&format!("{what}: dw"), &sum_parts(cuda, &dw, width), &with_ones(&gradients[1]), 1e-5);

        // in place: the sums by column read dy before it is overwritten
        if width <= 2048 {
            let (mut dx, mut dw) = (dy.clone(), unwritten::<f32>(parts * width));
            let dx_as_dy = dx.as_mut_ptr();
            // SAFETY: only the kernel uses the two, one after the other.
            let dy = unsafe { std::slice::from_raw_parts(dx_as_dy, dx.len()) };
            launch!(cuda, name("backward"), (parts, 1, 1), 256, 0;
                dy, &x, &w, &rstd, &mut dx, &mut dw, rows as i64, width as i32, 0);
            assert_near(&format!("{what}: dx in place"), &dx, &gradients[0], T::TOLERANCE);
            assert_near(&what, &sum_parts(cuda, &dw, width), &with_ones(&gradients[1]), 1e-5);
        }
    }
}

#[test]
fn rms_norm_of_both_types() {
    Emulator::in_both_orders(|cuda| {
        rms_norm::<f32>(cuda);
        rms_norm::<Bf16>(cuda);
    });
}

/// Rows, width, rows of a part: one part, several, a shorter last one, more columns than a block has.
const PARTS: [(usize, usize, usize); 5] = [(1, 1, 64), (3, 7, 64), (150, 33, 64), (37, 64, 8), (700, 40, 64)];

fn batch_norm<T: Number>(cuda: &Emulator) {
    for (rows, width, size) in PARTS {
        // the mean is larger than the deviations from it
        let x: Vec<T> = numbers::<f32>(rows * width, 1).into_iter().map(|v| T::from_f32(v + 3.0)).collect();
        let (w, b, dy) = (numbers::<T>(width, 2), numbers::<T>(width, 3), numbers::<T>(rows * width, 4));
        let what = format!("batch norm {rows} x {width}");
        let name = |kernel: &str| format!("batch_norm_{kernel}_{}", T::SUFFIX);
        let (count, long) = (rows.div_ceil(size), rows as i64);
        let grid = (width.div_ceil(32), count, 1);

        let mut parts = unwritten::<f32>(count * 2 * width);
        let (mut mean, mut variance) = (unwritten::<f32>(width), unwritten::<f32>(width));
        launch!(cuda, name("moments"), grid, 256, 0; &x, &mut parts, long, size as i32, width as i32);
        launch!(cuda, "batch_norm_join_f32", (width.div_ceil(32), 1, 1), 256, 0;
            &parts, &mut mean, &mut variance, long, size as i32, count as i32, width as i32);
        let of = |f: &dyn Fn(usize, f64) -> f64| -> Vec<f64> {
            let column = |c: usize| wide(&x).into_iter().skip(c).step_by(width);
            (0..width).map(|c| column(c).map(|v| f(c, v)).sum::<f64>() / rows as f64).collect()
        };
        let means = of(&|_, v| v);
        assert_near(&format!("{what}: mean"), &mean, &means, 1e-6);
        let variances = of(&|c, v| (v - means[c]).powi(2));
        assert_near(&format!("{what}: variance"), &variance, &variances, 1e-6);

        // by their own moments, and by others
        let given: (Vec<f64>, Vec<f64>) = (vec![2.75; width], vec![0.5; width]);
        for own in [true, false] {
            let inputs: [(&[usize], _); 3] =
                [(&[rows, width], wide(&x)), (&[width], wide(&w)), (&[width], wide(&b))];
            let (expected, gradients) = differentiate(&inputs, Some(&wide(&dy)), |x, w| {
                let tensor = |v: &[f64]| Tensor::from_slice(v, width, &Device::Cpu).unwrap();
                let moments = match own {
                    true => x[0].column_moments()?,
                    false => Moments { mean: tensor(&given.0), variance: tensor(&given.1), count: 0 },
                };
                x[0].batch_norm(&moments, own, &w[1], &w[2], 1e-2)
            });
            let single = |v: &[f64]| v.iter().map(|v| *v as f32).collect::<Vec<f32>>();
            let (mean, variance) = match own {
                true => (mean.clone(), variance.clone()),
                false => (single(&given.0), single(&given.1)),
            };
            let mut kept = unwritten::<f32>(2 * width);
            launch!(cuda, "batch_norm_keep_f32", (width.div_ceil(256), 1, 1), 256, 0;
                &mean, &variance, &mut kept, width as i32, 1e-2f32);
            let mut y = unwritten::<T>(rows * width);
            launch!(cuda, name("forward"), elementwise(rows * width), 256, 0;
                &x, &kept, &w, &b, &mut y, long, width as i32);
            assert_near(&what, &y, &expected, T::TOLERANCE);

            let mut parts = unwritten::<f32>(count * 2 * width);
            launch!(cuda, name("backward_sums"), grid, 256, 0;
                &dy, &x, &kept, &mut parts, long, size as i32, width as i32);
            let sums: Vec<f32> = sum_parts(cuda, &parts, 2 * width).iter().map(|v| v - 1.0).collect();
            let both = [gradients[1].as_slice(), &gradients[2]].concat();
            assert_near(&format!("{what}: dw, db"), &sums, &both, 1e-5);
            let share = if own { 1.0 / rows as f32 } else { 0.0 };
            for accumulate in [0, 1] {
                let mut dx =
                    if accumulate == 0 { unwritten(rows * width) } else { numbers::<T>(rows * width, 5) };
                let before = if accumulate == 0 { vec![0.0; rows * width] } else { wide(&dx) };
                launch!(cuda, name("backward"), elementwise(rows * width), 256, 0;
                    &dy, &x, &kept, &w, &sums, &mut dx, long, width as i32, share, accumulate);
                let sum: Vec<f64> = before.iter().zip(&gradients[0]).map(|(a, b)| a + b).collect();
                // a single row has no gradient: rounding errors are all there is
                let tolerance = if rows == 1 && own { 1.0 } else { T::TOLERANCE };
                assert_near(&format!("{what}: dx"), &dx, &sum, tolerance);
            }
        }
    }
}

#[test]
fn batch_norm_of_both_types() {
    Emulator::in_both_orders(|cuda| {
        batch_norm::<f32>(cuda);
        batch_norm::<Bf16>(cuda);
    });
}
