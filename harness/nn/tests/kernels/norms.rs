//! Layer norm and root-mean-square norm.

use crate::emulator::{Emulator, NULL, launch};
use crate::reference::{
    Bf16, Number, assert_near, differentiate, numbers, sum_parts, unwritten, wide, with_ones,
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
