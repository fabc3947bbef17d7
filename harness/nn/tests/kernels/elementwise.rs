//! Activations, bias, gates, sums and multiples, casts, transposes, dropout.

use replica_nn::ops::Dropout;

use crate::emulator::{Emulator, NULL, launch};
use crate::reference::{
    Bf16, Number, assert_near, differentiate, elementwise, hash, numbers, sum_parts, unwritten, wide,
    with_ones,
};

/// The error function by Simpson's rule.
fn erf(x: f64) -> f64 {
    let (n, f) = (400, |t: f64| (-t * t).exp());
    let h = x / n as f64;
    let inner: f64 = (1..n).map(|i| f(i as f64 * h) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
    2.0 / std::f64::consts::PI.sqrt() * h / 3.0 * (f(0.0) + inner + f(x))
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Activations by their codes.
const ACTIVATIONS: [fn(f64) -> f64; 8] = [
    |x| x,
    |x| x.max(0.0),
    |x| x * 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2)),
    |x| x * sigmoid(2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)),
    |x| x * sigmoid(x),
    sigmoid,
    f64::tanh,
    |x| x.exp().ln_1p(),
];

/// Derivative by differences; at 0, where ReLU has none, its derivative is 0.
fn slope(f: fn(f64) -> f64, x: f64) -> f64 {
    let step = 1e-6;
    if x == 0.0 && f(-step) == 0.0 { 0.0 } else { (f(x + step) - f(x - step)) / (2.0 * step) }
}

/// Numbers on [-4, 4).
fn inputs<T: Number>(n: usize, salt: u64) -> Vec<T> {
    numbers::<f32>(n, salt).iter().map(|v| T::from_f32(4.0 * v)).collect()
}

fn activations<T: Number>(cuda: &Emulator) {
    for (code, f) in ACTIVATIONS.into_iter().enumerate() {
        // odd numbers, and one that takes several rounds of the grid
        for n in [1usize, 77, 5003] {
            let (x, dy) = (inputs::<T>(n, 1), numbers::<T>(n, 2));
            let what = format!("activation {code} of {n}");
            let y: Vec<f64> = wide(&x).into_iter().map(f).collect();
            let dx: Vec<f64> = wide(&x).iter().zip(wide(&dy)).map(|(x, dy)| dy * slope(f, *x)).collect();
            let (mut out, mut back) = (unwritten::<T>(n), dy.clone());
            launch!(cuda, format!("activation_forward_{}", T::SUFFIX), (1, 1, 1), 256, 0;
                &x, &mut out, n as i64, code as i32);
            let in_place = back.as_mut_ptr();
            // SAFETY: only the kernel uses the two.
            let dy = unsafe { std::slice::from_raw_parts(in_place, n) };
            launch!(cuda, format!("activation_backward_{}", T::SUFFIX), elementwise(n), 256, 0;
                dy, &x, &mut back, n as i64, code as i32);
            assert_near(&what, &out, &y, T::TOLERANCE);
            assert_near(&format!("{what}: dx"), &back, &dx, T::TOLERANCE);
        }
    }
}

fn gates<T: Number>(cuda: &Emulator) {
    for (code, f) in ACTIVATIONS.into_iter().enumerate() {
        for (rows, width, stride) in [(3, 5, 10), (7, 24, 48), (2, 16, 17)] {
            let packed = inputs::<T>(rows * stride + width, 1);
            let dy = numbers::<T>(rows * width, 2);
            let (mut y, mut back) = (unwritten::<T>(rows * width), unwritten::<T>(rows * stride + width));
            let up = stride - width;
            launch!(cuda, format!("glu_forward_{}", T::SUFFIX), elementwise(rows * width), 256, 0;
                &packed, &packed[up..], &mut y, rows as i64, width as i32, stride as i64, stride as i64, code as i32);
            let (gates, ups) = back.split_at_mut(up);
            // SAFETY: only the kernel uses the two.
            let ups = unsafe { std::slice::from_raw_parts_mut(ups.as_mut_ptr(), ups.len()) };
            launch!(cuda, format!("glu_backward_{}", T::SUFFIX), elementwise(rows * width), 256, 0;
                &dy, &packed, &packed[up..], gates, ups, rows as i64, width as i32, stride as i64, stride as i64,
                stride as i64, stride as i64, code as i32);
            let p = wide(&packed);
            let at = |i: usize| i / width * stride + i % width;
            let what = format!("gate {code}, {rows} x {width} of {stride}");
            let expected: Vec<f64> = (0..rows * width).map(|i| f(p[at(i)]) * p[at(i) + up]).collect();
            assert_near(&what, &y, &expected, T::TOLERANCE);
            if up < width {
                continue;
            }
            let mut of_gate = Vec::new();
            let mut of_up = Vec::new();
            let (mut got_gate, mut got_up) = (Vec::new(), Vec::new());
            for (i, dy) in wide(&dy).into_iter().enumerate() {
                of_gate.push(dy * slope(f, p[at(i)]) * p[at(i) + up]);
                of_up.push(dy * f(p[at(i)]));
                got_gate.push(back[at(i)]);
                got_up.push(back[at(i) + up]);
            }
            assert_near(&format!("{what}: dgate"), &got_gate, &of_gate, T::TOLERANCE);
            assert_near(&format!("{what}: dup"), &got_up, &of_up, T::TOLERANCE);
        }
    }
}

fn bias_and_activation<T: Number>(cuda: &Emulator) {
    for (code, f) in ACTIVATIONS.into_iter().enumerate() {
        for (rows, width, parts) in [(1, 1, 1), (21, 37, 2), (40, 264, 3)] {
            let (x, bias) = (inputs::<T>(rows * width, 1), numbers::<T>(width, 2));
            let dy = numbers::<T>(rows * width, 3);
            let (mut pre, mut y) = (unwritten::<T>(rows * width), unwritten::<T>(rows * width));
            let what = format!("bias and activation {code}, {rows} x {width}");
            launch!(cuda, format!("bias_activation_forward_{}", T::SUFFIX), elementwise(rows * width), 256, 0;
                &x, &bias, &mut pre, &mut y, rows as i64, width as i32, code as i32);
            let sums: Vec<f64> =
                wide(&x).iter().enumerate().map(|(i, v)| v + bias[i % width].to_f64()).collect();
            assert_near(&format!("{what}: sum"), &pre, &sums, T::TOLERANCE);
            let expected: Vec<f64> = sums.iter().map(|v| f(*v)).collect();
            assert_near(&what, &y, &expected, T::TOLERANCE);

            let (mut dpre, mut parts_of_db) = (unwritten::<T>(rows * width), unwritten::<f32>(parts * width));
            launch!(cuda, format!("bias_activation_backward_{}", T::SUFFIX), (width.div_ceil(256), parts, 1), 256, 0;
                &dy, &pre, &mut dpre, &mut parts_of_db, rows as i64, width as i32, code as i32);
            let expected: Vec<f64> =
                wide(&pre).iter().zip(wide(&dy)).map(|(v, dy)| dy * slope(f, *v)).collect();
            let db: Vec<f64> =
                (0..width).map(|c| expected.iter().skip(c).step_by(width).sum::<f64>()).collect();
            assert_near(&format!("{what}: dpre"), &dpre, &expected, T::TOLERANCE);
            assert_near(&format!("{what}: db"), &sum_parts(cuda, &parts_of_db, width), &with_ones(&db), 1e-5);
        }
    }
    // the bias's gradient of a plain linear layer: no activation, nothing written but the sums
    let (rows, width) = (50, 300);
    let dy = numbers::<T>(rows * width, 4);
    let mut parts = unwritten::<f32>(2 * width);
    launch!(cuda, format!("bias_activation_backward_{}", T::SUFFIX), (2, 2, 1), 256, 0;
        &dy, NULL, NULL, &mut parts, rows as i64, width as i32, 0);
    let dy = wide(&dy);
    let db: Vec<f64> = (0..width).map(|c| dy.iter().skip(c).step_by(width).sum::<f64>()).collect();
    assert_near("column sums", &sum_parts(cuda, &parts, width), &with_ones(&db), 1e-5);
}

#[test]
fn activations_of_both_types() {
    Emulator::in_both_orders(|cuda| {
        activations::<f32>(cuda);
        activations::<Bf16>(cuda);
        gates::<f32>(cuda);
        gates::<Bf16>(cuda);
        bias_and_activation::<f32>(cuda);
        bias_and_activation::<Bf16>(cuda);
    });
}

fn sums_and_multiples<T: Number>(cuda: &Emulator) {
    for n in [1usize, 19, 4104] {
        let (a, b) = (numbers::<T>(n, 1), numbers::<T>(n, 2));
        let (wide_a, wide_b) = (wide(&a), wide(&b));
        let expect = |f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
            wide_a.iter().zip(&wide_b).map(|(a, b)| f(*a, *b)).collect()
        };
        let name = |op: &str| format!("{op}_{}", T::SUFFIX);
        let mut y = unwritten::<T>(n);
        launch!(cuda, name("add"), elementwise(n), 256, 0; &a, &b, &mut y, n as i64);
        assert_near("add", &y, &expect(&|a, b| a + b), T::TOLERANCE);

        let mut y = unwritten::<T>(n);
        launch!(cuda, name("scale"), (1, 1, 1), 256, 0; &a, &mut y, n as i64, 0.3f32, NULL, 0);
        assert_near("scale", &y, &expect(&|a, _| 0.3 * a), T::TOLERANCE);
        let mut y = b.clone();
        launch!(cuda, name("scale"), elementwise(n), 256, 0; &a, &mut y, n as i64, 0.3f32, &vec![-2f32], 1);
        assert_near("scale and add", &y, &expect(&|a, b| b - 0.6 * a), T::TOLERANCE);

        let mut y = unwritten::<T>(n);
        launch!(cuda, name("fill"), elementwise(n), 256, 0; &mut y, &vec![0.5f32], n as i64, 0);
        assert_near("fill", &y, &expect(&|_, _| 0.5), 0.0);
        let mut y = b.clone();
        launch!(cuda, name("fill"), elementwise(n), 256, 0; &mut y, &vec![0.5f32], n as i64, 1);
        assert_near("fill and add", &y, &expect(&|_, b| b + 0.5), T::TOLERANCE);

        let mut wide_sum = numbers::<f32>(n, 2);
        let before = wide(&wide_sum);
        launch!(cuda, format!("scale_{}", if T::SUFFIX == "f32" { "f32" } else { "bf16_f32" }),
            elementwise(n), 256, 0; &a, &mut wide_sum, n as i64, 2f32, NULL, 1);
        let expected: Vec<f64> = before.iter().zip(&wide_a).map(|(b, a)| b + 2.0 * a).collect();
        assert_near("scale to float", &wide_sum, &expected, f32::TOLERANCE);

        for blocks in [1, 3] {
            let mut parts = unwritten::<f32>(blocks);
            let mut total = unwritten::<f32>(1);
            launch!(cuda, name("sum"), (blocks, 1, 1), 256, 0; &a, &mut parts, n as i64);
            launch!(cuda, "total_f32", (1, 1, 1), 256, 0; &parts, &mut total, blocks as i32, 2f32);
            let sum = 2.0 * wide_a.iter().sum::<f64>();
            assert!((f64::from(total[0]) - sum).abs() < 1e-3, "sum {} expected {sum}", total[0]);
            launch!(cuda, name("squared_error_forward"), (blocks, 1, 1), 256, 0; &a, &b, &mut parts, n as i64);
            launch!(cuda, "total_f32", (1, 1, 1), 256, 0; &parts, &mut total, blocks as i32, 1.0 / n as f32);
            let mean = expect(&|a, b| (a - b) * (a - b)).iter().sum::<f64>() / n as f64;
            assert_near("squared error", &total, &[mean], 1e-5);
        }
        let mut dx = unwritten::<T>(n);
        launch!(cuda, name("squared_error_backward"), elementwise(n), 256, 0;
            &a, &b, &vec![0.5f32], &mut dx, n as i64, 2.0f32, 0);
        assert_near("squared error: dx", &dx, &expect(&|a, b| a - b), T::TOLERANCE);
    }
    for (rows, width, from, to) in [(1, 1, 1, 1), (5, 3, 7, 4), (9, 16, 24, 40)] {
        let x = numbers::<T>(rows * from, 1);
        let mut y = numbers::<T>(rows * to, 2);
        let before = wide(&y);
        for accumulate in [0, 1] {
            launch!(cuda, format!("copy_columns_{}", T::SUFFIX), (1, 1, 1), 256, 0;
                &x, &mut y, rows as i64, width as i32, from as i64, to as i64, accumulate);
            let expected: Vec<f64> = (0..rows * to)
                .map(|i| match x.get(i / to * from + i % to) {
                    Some(x) if i % to < width => x.to_f64() * f64::from(accumulate + 1),
                    _ => before[i],
                })
                .collect();
            assert_near("copy columns", &y, &expected, 0.0);
        }
    }
    for (batch, rows, cols) in [(1, 1, 1), (2, 33, 70), (3, 64, 32)] {
        let x = numbers::<T>(batch * rows * cols, 1);
        let mut y = unwritten::<T>(batch * rows * cols);
        launch!(cuda, format!("transpose_{}", T::SUFFIX), (cols.div_ceil(32), rows.div_ceil(32), batch), 256, 0;
            &x, &mut y, rows as i32, cols as i32);
        let x = wide(&x);
        let at = |i: usize| {
            let (b, rest) = (i / (rows * cols), i % (rows * cols));
            x[b * rows * cols + rest % rows * cols + rest / rows]
        };
        assert_near("transpose", &y, &(0..x.len()).map(at).collect::<Vec<_>>(), 0.0);
    }
}

#[test]
fn sums_multiples_and_transposes_of_both_types() {
    Emulator::in_both_orders(|cuda| {
        sums_and_multiples::<f32>(cuda);
        sums_and_multiples::<Bf16>(cuda);
    });
}

#[test]
fn casts_round_to_nearest_even() {
    Emulator::in_both_orders(|cuda| {
        let n = 2061;
        let x: Vec<f32> = (0..n as u64)
            .map(|i| f32::from_bits((hash(i, 3) >> 32) as u32))
            .map(|v| if v.is_finite() { v } else { 1.0 })
            .collect();
        let (mut narrow, mut scaled) = (unwritten::<Bf16>(n), unwritten::<Bf16>(n));
        launch!(cuda, "cast_f32_bf16", (1, 1, 1), 256, 0; &x, &mut narrow, n as i64);
        launch!(cuda, "scale_f32_bf16", (1, 1, 1), 256, 0; &x, &mut scaled, n as i64, 1f32, NULL, 0);
        let expected: Vec<Bf16> = x.iter().map(|v| Bf16::from_f32(*v)).collect();
        assert_eq!(narrow, expected);
        assert_eq!(scaled, expected);
        let mut back = unwritten::<f32>(n);
        launch!(cuda, "cast_bf16_f32", (2, 1, 1), 256, 0; &narrow, &mut back, n as i64);
        assert_eq!(wide(&back), wide(&narrow));
    });
}

/// The kernel draws the very masks of the CPU operation.
fn dropout<T: Number>(cuda: &Emulator) {
    let mix = |x: u64| hash(x, 0);
    let (key, step, p) = (0x1234_5678_9abc_def0u64, 17u64, 0.3f64);
    let masks = Dropout::new(key, step);
    let step_key = vec![mix(key ^ mix(step))];
    for call in 0..3u64 {
        let n = 2999;
        let (x, residual) = (numbers::<T>(n, 1), numbers::<T>(n, 2));
        let (expected, _) =
            differentiate(&[(&[n], wide(&x))], Some(&vec![1.0; n]), |x, _| x[0].dropout(p, Some(&masks)));
        let (threshold, scale) = ((p * 4_294_967_296.0) as u32, (1.0 / (1.0 - p)) as f32);
        let mut y = unwritten::<T>(n);
        launch!(cuda, format!("dropout_{}", T::SUFFIX), elementwise(n), 256, 0;
            &x, NULL, &mut y, n as i64, threshold, scale, &step_key, call);
        assert_near("dropout", &y, &expected, T::TOLERANCE);
        let zeros = |v: &[f64]| v.iter().map(|v| *v == 0.0).collect::<Vec<_>>();
        assert_eq!(zeros(&wide(&y)), zeros(&expected), "call {call}");
        let sums: Vec<f64> = expected.iter().zip(wide(&residual)).map(|(a, b)| a + b).collect();
        launch!(cuda, format!("dropout_{}", T::SUFFIX), (1, 1, 1), 256, 0;
            &x, &residual, &mut y, n as i64, threshold, scale, &step_key, call);
        assert_near("dropout and residual", &y, &sums, T::TOLERANCE);
    }
    let masks = Dropout::new(key, step);
    for (call, (batch, l, width)) in [(1, 1, 1), (3, 20, 16), (2, 7, 33)].into_iter().enumerate() {
        let n = batch * l * width;
        let x = numbers::<T>(n, 1);
        let shape: &[usize] = &[batch, l, width];
        let (expected, _) = differentiate(&[(shape, wide(&x))], Some(&vec![1.0; n]), |x, _| {
            x[0].tied_dropout(p, Some(&masks))
        });
        let (threshold, scale) = ((p * 4_294_967_296.0) as u32, (1.0 / (1.0 - p)) as f32);
        let mut y = unwritten::<T>(n);
        launch!(cuda, format!("tied_dropout_{}", T::SUFFIX), elementwise(n), 256, 0;
            &x, &mut y, (batch * l) as i64, l as i32, width as i32, threshold, scale, &step_key, call as u64);
        assert_near("tied dropout", &y, &expected, T::TOLERANCE);
    }
}

#[test]
fn dropout_masks_are_those_of_the_cpu() {
    Emulator::in_both_orders(|cuda| {
        dropout::<f32>(cuda);
        dropout::<Bf16>(cuda);
    });
}
