//! State-space operations against the CPU and against plain loops in double precision: convolutions, kernels, scans.

use candle_core::{Device, Tensor};
use replica_nn::ops::{DiagonalKernel, DiagonalScan, Discretisation, LowRankKernel, StepTransform};

use crate::emulator::{Emulator, NULL, launch};
use crate::reference::{
    Bf16, Number, assert_near, differentiate, elementwise, numbers, sum_parts, unwritten, wide, with_ones,
};

fn depthwise<T: Number>(cuda: &Emulator) {
    for (batch, length, channels, k) in
        [(1, 1, 1, 1), (2, 37, 5, 4), (2, 140, 130, 3), (1, 33, 7, 16), (3, 20, 9, 7)]
    {
        let n = batch * length * channels;
        let (x, w, bias) = (numbers::<T>(n, 1), numbers::<T>(channels * k, 2), numbers::<T>(channels, 3));
        let dy = numbers::<T>(n, 4);
        let (x64, w64, b64, dy64) = (wide(&x), wide(&w), wide(&bias), wide(&dy));
        let (mut y64, mut dx64) = (vec![0.0; n], vec![0.0; n]);
        let (mut dw64, mut db64) = (vec![0.0; channels * k], vec![0.0; channels]);
        for (b, l, c) in indices(batch, length, channels) {
            let at = |l: usize| (b * length + l) * channels + c;
            y64[at(l)] += b64[c];
            db64[c] += dy64[at(l)];
            for tap in (0..k).filter(|tap| l + tap + 1 >= k) {
                let from = at(l + tap + 1 - k);
                y64[at(l)] += w64[c * k + tap] * x64[from];
                dx64[from] += w64[c * k + tap] * dy64[at(l)];
                dw64[c * k + tap] += dy64[at(l)] * x64[from];
            }
        }
        let what = |of: &str| format!("conv1d {batch} x {length} x {channels}, {k} taps: {of}");
        let name = |pass: &str| format!("conv1d_{pass}_{}", T::SUFFIX);
        let sizes = [batch, length, channels, k].map(|n| n as i32);
        let grid = (channels.div_ceil(128), length.div_ceil(16), batch);
        let (mut y, mut dx) = (unwritten::<T>(n), unwritten::<T>(n));
        launch!(cuda, name("forward"), grid, 128, 0;
            &x, &w, &bias, &mut y, sizes[0], sizes[1], sizes[2], sizes[3], 0);
        assert_near(&what("y"), &y, &y64, T::TOLERANCE);
        let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
        let slope = |v: f64| sigmoid(v) * (1.0 + v * (1.0 - sigmoid(v)));
        let silu64: Vec<f64> = y64.iter().map(|v| v * sigmoid(*v)).collect();
        let dpre64: Vec<f64> = y64.iter().zip(&dy64).map(|(v, dy)| dy * slope(*v)).collect();
        let mut dpre = unwritten::<T>(n);
        launch!(cuda, name("forward"), grid, 128, 0;
            &x, &w, &bias, &mut y, sizes[0], sizes[1], sizes[2], sizes[3], 1);
        assert_near(&what("y with SiLU"), &y, &silu64, T::TOLERANCE);
        launch!(cuda, name("backward_silu"), grid, 128, 0;
            &dy, &x, &w, &bias, &mut dpre, sizes[0], sizes[1], sizes[2], sizes[3]);
        assert_near(&what("gradient before SiLU"), &dpre, &dpre64, T::TOLERANCE);
        launch!(cuda, name("backward_input"), grid, 128, 0;
            &dy, &w, &mut dx, sizes[0], sizes[1], sizes[2], sizes[3]);
        assert_near(&what("dx"), &dx, &dx64, T::TOLERANCE);
        let parts = batch * length.div_ceil(128);
        let (mut dw, mut db) = (unwritten::<f32>(parts * channels * k), unwritten::<f32>(parts * channels));
        launch!(cuda, name("backward_weight"), (channels.div_ceil(128), length.div_ceil(128), batch), 128, 0;
            &dy, &x, &mut dw, &mut db, sizes[0], sizes[1], sizes[2], sizes[3]);
        assert_near(&what("dw"), &sum_parts(cuda, &dw, channels * k), &with_ones(&dw64), 1e-5);
        assert_near(&what("db"), &sum_parts(cuda, &db, channels), &with_ones(&db64), 1e-5);
    }
}

/// All (batch, step, channel).
fn indices(batch: usize, length: usize, channels: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..batch * length * channels).map(move |i| (i / channels / length, i / channels % length, i % channels))
}

#[test]
fn depthwise_convolution_of_both_types() {
    Emulator::in_both_orders(|cuda| {
        depthwise::<f32>(cuda);
        depthwise::<Bf16>(cuda);
    });
}

/// Windows of a sequence, and the sum of what windows say about its elements.
fn windows<T: Number>(cuda: &Emulator) {
    for (batch, length, channels, k) in [(1, 1, 1, 1), (2, 9, 3, 4), (3, 2, 5, 7)] {
        let (rows, width) = (batch * length, channels * k);
        let (x, dw) = (numbers::<T>(rows * channels, 1), numbers::<T>(rows * width, 2));
        let mut windows64 = vec![0.0; rows * width];
        let mut dx64 = vec![1.0; rows * channels];
        for (b, l, i) in indices(batch, length, width) {
            let (at, back) = ((b * length + l) * width + i, k - 1 - i % k);
            if l >= back {
                let from = (b * length + l - back) * channels + i / k;
                windows64[at] = x[from].to_f64();
                dx64[from] += dw[at].to_f64();
            }
        }
        let what = |of: &str| format!("windows {batch} x {length} x {channels}, {k} taps: {of}");
        let [l_, c_, k_] = [length, channels, k].map(|n| n as i32);
        let (mut windows, mut dx) = (unwritten::<T>(rows * width), vec![T::from_f32(1.0); rows * channels]);
        launch!(cuda, format!("conv1d_unfold_{}", T::SUFFIX), elementwise(rows * width), 256, 0;
            &x, &mut windows, rows as i64, l_, c_, k_);
        assert_near(&what("forward"), &windows, &windows64, 0.0);
        launch!(cuda, format!("conv1d_fold_{}", T::SUFFIX), elementwise(rows * channels), 256, 0;
            &dw, &mut dx, rows as i64, l_, c_, k_, 1);
        assert_near(&what("backward"), &dx, &dx64, T::TOLERANCE);
    }
}

#[test]
fn windows_of_both_types() {
    Emulator::in_both_orders(|cuda| {
        windows::<f32>(cuda);
        windows::<Bf16>(cuda);
    });
}

/// Parameters of S4's kernels: steps, the real and imaginary parts of A, B, C, and P.
struct Parameters {
    shapes: [Vec<usize>; 6],
    data: [Vec<f32>; 6],
}

impl Parameters {
    fn new(kernels: usize, copies: usize, h: usize, n: usize) -> Self {
        let set = vec![copies, n, 2];
        let shapes = [vec![h], vec![copies, n], vec![copies, n], set.clone(), vec![kernels, h, n, 2], set];
        let mut salt = 0;
        let data = shapes.clone().map(|shape| {
            salt += 1;
            numbers::<f32>(shape.iter().product(), salt)
        });
        Self { shapes, data }
    }

    /// For the operation on the CPU.
    fn inputs(&self) -> Vec<(&[usize], Vec<f64>)> {
        self.shapes.iter().map(Vec::as_slice).zip(self.data.iter().map(|d| wide(d))).collect()
    }
}

/// Launches a kernel that begins with the arguments of a diagonal model.
macro_rules! launch_diagonal {
    ($cuda:expr, $name:expr, $grid:expr, $threads:expr, $p:expr, $model:expr, $rate:expr; $($argument:expr),* $(,)?) => {{
        let ([step, a_real, a_imag, b, c, _], [h, n, copies, softplus, conjugate, bilinear]) = (&$p.data, $model);
        launch!($cuda, $name, $grid, $threads, 0;
            step, a_real, a_imag, b, c, h, n, copies, softplus, conjugate, bilinear, $rate, $($argument),*)
    }};
}

/// The model on the CPU.
fn diagonal(w: &[Tensor], [.., softplus, conjugate, bilinear]: [i32; 6], rate: f64) -> DiagonalKernel {
    DiagonalKernel {
        step: w[0].clone(),
        a_real: w[1].clone(),
        a_imag: w[2].clone(),
        b: Some(w[3].clone()),
        c: w[4].clone(),
        transform: if softplus == 1 { StepTransform::Softplus } else { StepTransform::Exp },
        conjugate: conjugate == 1,
        discretisation: match bilinear {
            1 => Discretisation::Bilinear,
            _ => Discretisation::ZeroOrderHold,
        },
        rate,
    }
}

#[test]
fn kernels_of_state_space_models() {
    Emulator::in_both_orders(|cuda| {
        for (kernels, copies, h, n, length) in
            [(1, 1, 1, 1, 1), (2, 2, 6, 3, 50), (1, 1, 2, 9, 1300), (1, 2, 2, 300, 64), (1, 1, 1, 2, 61)]
        {
            for low_rank in [false, true] {
                for flags in [[0, 1, 1], [1, 0, 1], [1, 1, 0]] {
                    if !low_rank || flags[2] == 1 {
                        kernel_of_a_model(cuda, (kernels, copies, h, n), length, flags, low_rank);
                    }
                }
            }
        }
    });
}

fn kernel_of_a_model(
    cuda: &Emulator,
    (kernels, copies, h, n): (usize, usize, usize, usize),
    length: usize,
    [softplus, conjugate, bilinear]: [i32; 3],
    low_rank: bool,
) {
    let what = |of: &str| {
        format!("{kernels} kernels of {h} x {n} modes, length {length}, low rank {low_rank}: {of}")
    };
    let parameters = Parameters::new(kernels, copies, h, n);
    let rate = 3.0 / length as f64;
    let [h_, n_, copies_, kernels_, length_] = [h, n, copies, kernels, length].map(|n| n as i32);
    let model = [h_, n_, copies_, softplus, conjugate, bilinear];
    let dy = numbers::<f32>(kernels * h * length, 9);
    let (y64, gradients) = differentiate(&parameters.inputs(), Some(&wide(&dy)), |x, w| {
        let diagonal = diagonal(w, model, rate);
        match low_rank {
            true => LowRankKernel { diagonal, p: w[5].clone() }.taps(length, &x[0]),
            false => diagonal.taps(length, &x[0]),
        }
    });
    let mut y = unwritten::<f32>(y64.len());
    let mut parts = [kernels * h * 2 * n, h * n, h * n, 2 * h * n, h * n, 2 * h * n].map(unwritten::<f32>);
    let [dc, da_real, da_imag, db, dstep, dp] = &mut parts;
    if low_rank {
        let rows = (1..=length.isqrt()).rev().find(|r| length.is_multiple_of(*r)).unwrap();
        let (rows_, cols_) = (rows as i32, (length / rows) as i32);
        let complex = |n: usize| vec![f64::NAN; 2 * n];
        let (all, nodes) = (kernels * h * length, length / 2 + 1);
        let (mut roots, mut spectrum, mut z) = (complex(length), complex(all), complex(all));
        let p = &parameters.data[5];
        let (by_node, by_element) =
            ((nodes.div_ceil(128), h, kernels), (length.div_ceil(128), kernels * h, 1));
        launch!(cuda, "low_rank_roots_f64", (length.div_ceil(256), 1, 1), 256, 0; &mut roots, length_);
        launch_diagonal!(cuda, "low_rank_spectrum_f32", by_node, 128, parameters, model, rate; p, &mut spectrum, length_);
        launch!(cuda, "low_rank_inverse_columns_f64", by_element, 128, 0; &spectrum, &mut z, &roots, rows_, cols_);
        launch!(cuda, "low_rank_inverse_rows_f32", by_element, 128, 0; &z, &mut y, &roots, rows_, cols_);
        launch!(cuda, "low_rank_forward_columns_f32", by_element, 128, 0; &dy, &mut z, &roots, rows_, cols_);
        launch!(cuda, "low_rank_forward_rows_f64", by_element, 128, 0; &z, &mut spectrum, &roots, rows_, cols_);
        let mut by_sums = complex(4 * kernels * h * nodes);
        launch_diagonal!(cuda, "low_rank_backward_nodes_f32", by_node, 128, parameters, model, rate;
            p, &spectrum, &mut by_sums, length_);
        launch_diagonal!(cuda, "low_rank_backward_modes_f32", (n.div_ceil(4), h, 1), 128, parameters, model, rate;
            p, &by_sums, dc, da_real, da_imag, db, dstep, dp, kernels_, length_);
    } else {
        launch_diagonal!(cuda, "diagonal_kernel_forward_f32", (length.div_ceil(1024), h, kernels), 256, parameters, model, rate;
            &mut y, length_);
        launch_diagonal!(cuda, "diagonal_kernel_backward_f32", (n.div_ceil(8), h, 1), 256, parameters, model, rate;
            &dy, dc, da_real, da_imag, db, dstep, kernels_, length_);
    }
    assert_near(&what("taps"), &y, &y64, 1e-5);
    let names = [("dC", 4), ("dA, real", 1), ("dA, imaginary", 2), ("dB", 3), ("dstep", 0), ("dP", 5)];
    for ((name, input), parts) in names.into_iter().zip(&parts) {
        if low_rank || input != 5 {
            let expected = with_ones(&gradients[input]);
            assert_near(&what(name), &sum_parts(cuda, parts, expected.len()), &expected, 2e-5);
        }
    }
}

/// `a` `[m, k]` times `b` `[k, n]`.
fn matmul(a: &[f32], b: &[f32], (m, k, n): (usize, usize, usize)) -> Vec<f32> {
    let sum =
        |i: usize, j: usize| (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum::<f64>();
    (0..m * n).map(|i| sum(i / n, i % n) as f32).collect()
}

/// The transpose of `a` `[m, n]`.
fn transposed(a: &[f32], n: usize) -> Vec<f32> {
    (0..a.len()).map(|i| a[i % (a.len() / n) * n + i / (a.len() / n)]).collect()
}

/// The whole operation, with plain loops for its matrix products.
#[test]
fn diagonal_scan() {
    Emulator::in_both_orders(|cuda| {
        for (batch, l, h, p, bidirectional, varying, bilinear) in [
            (1, 1, 1, 1, false, false, 0),
            (2, 150, 3, 5, false, false, 1),
            (2, 70, 2, 67, true, true, 0),
            (1, 129, 2, 3, true, false, 0),
        ] {
            diagonal_scan_of(cuda, (batch, l, h, p), bidirectional, varying, bilinear);
        }
    });
}

fn diagonal_scan_of(
    cuda: &Emulator,
    (batch, l, h, p): (usize, usize, usize, usize),
    bidirectional: bool,
    varying: bool,
    bilinear: i32,
) {
    let what =
        |of: &str| format!("diagonal scan {batch} x {l} x {h}, {p} modes, {bidirectional} {varying}: {of}");
    let directions = if bidirectional { 2 } else { 1 };
    let (rows, width, rate) = (batch * l, 2 * p * directions, 2.0 / l as f64);
    let shapes: [&[usize]; 7] = [&[batch, l, h], &[p], &[p], &[p], &[p, h, 2], &[h, directions * p, 2], &[h]];
    let mut salt = 0;
    let data = shapes.map(|shape| {
        salt += 1;
        numbers::<f32>(shape.iter().product(), salt)
    });
    let dy = numbers::<f32>(rows * h, 10);
    let intervals: Vec<f32> = numbers::<f32>(rows, 11).iter().map(|v| 1.0 + 0.5 * v).collect();
    let inputs: Vec<(&[usize], Vec<f64>)> =
        shapes.iter().copied().zip(data.iter().map(|d| wide(d))).collect();
    let (y64, gradients) = differentiate(&inputs, Some(&wide(&dy)), |x, w| {
        let model = DiagonalScan {
            lambda_re: w[1].clone(),
            lambda_im: w[2].clone(),
            log_step: w[3].clone(),
            b: w[4].clone(),
            c: vec![w[5].clone()],
            skip: w[6].clone(),
            discretisation: if bilinear == 1 {
                Discretisation::Bilinear
            } else {
                Discretisation::ZeroOrderHold
            },
            bidirectional,
            conjugate_pairs: true,
            clip: true,
            rate,
        };
        let intervals = Tensor::from_vec(wide(&intervals), (batch, l), &Device::Cpu)?;
        x[0].diagonal_scan(&model, varying.then_some(&intervals))
    });
    let [u, re, im, log_step, b, c, skip] = &data;
    let [l_, h_, p_] = [l, h, p].map(|n| n as i32);
    macro_rules! launch_scan {
        ($name:expr, $grid:expr, $threads:expr; $($argument:expr),* $(,)?) => {
            launch!(cuda, $name, $grid, $threads, 0; re, im, log_step,
                if varying { (&intervals).into() } else { NULL }, bilinear, 1, rate, $($argument),*)
        };
    }
    let chunks = l.div_ceil(64);
    let (grid, one) = ((p.div_ceil(64), chunks, batch), (p.div_ceil(64), 1, batch));
    let mut carry = vec![f64::NAN; batch * chunks * 2 * p * 2];
    let (stride, x_stride, parts) = (2 * p as i64, width as i64, batch * chunks);

    let mut matrix = unwritten::<f32>(2 * p * h);
    launch_scan!("diagonal_scan_inputs_f32", (p, 1, 1), 128; b, &mut matrix, h_);
    let v = matmul(u, &transposed(&matrix, h), (rows, h, 2 * p));
    let mut x = unwritten::<f32>(rows * width);
    for direction in 0..directions {
        let backwards = direction as i32;
        launch_scan!("diagonal_scan_chunk_f32", grid, 64; &v, stride, 2f32, &mut carry, l_, p_, backwards, 0);
        launch!(cuda, "diagonal_scan_carry_f64", one, 64, 0; &mut carry, chunks as i32, p_);
        launch_scan!("diagonal_scan_apply_f32", grid, 64;
            &v, stride, &carry, &mut x[2 * p * direction..], x_stride, 2f32, l_, p_, backwards);
    }
    let mut y = unwritten::<f32>(rows * h);
    launch!(cuda, "diagonal_scan_skip_f32", elementwise(rows * h), 256, 0; u, skip, &mut y, rows as i64, h_);
    let product = matmul(&x, &transposed(c, width), (rows, width, h));
    y.iter_mut().zip(product).for_each(|(y, more)| *y += more);
    assert_near(&what("y"), &y, &y64, 1e-5);

    let mut dx = matmul(&dy, c, (rows, h, width));
    let dc = matmul(&transposed(&dy, h), &x, (h, rows, width));
    assert_near(&what("dC"), &dc, &gradients[5], 1e-5);
    let (mut dv, mut sums) = (unwritten::<f32>(rows * 2 * p), unwritten::<f32>(directions * parts * 3 * p));
    for direction in 0..directions {
        let (backwards, part) = (1 - direction as i32, 2 * p * direction);
        launch_scan!("diagonal_scan_chunk_f32", grid, 64;
            &mut dx[part..], x_stride, 2f32, &mut carry, l_, p_, backwards, 1);
        launch!(cuda, "diagonal_scan_carry_f64", one, 64, 0; &mut carry, chunks as i32, p_);
        launch_scan!("diagonal_scan_backward_f32", grid, 64;
            &v, stride, &carry, &mut x[part..], &mut dx[part..], x_stride, 2f32, &mut dv,
            &mut sums[direction * parts * 3 * p..], l_, p_, backwards, direction as i32);
    }
    let dmatrix = matmul(&transposed(&dv, 2 * p), u, (2 * p, rows, h));
    let mut results = [2 * p * h, p, p, p].map(unwritten::<f32>);
    let [db, dre, dim, dlog_step] = &mut results;
    launch_scan!("diagonal_scan_backward_modes_f32", (p, 1, 1), 128;
        b, &dmatrix, &sums, db, dre, dim, dlog_step, (directions * parts) as i32, p_, h_);
    for ((name, input), got) in
        [("dB", 4), ("dre", 1), ("dim", 2), ("dlog_step", 3)].into_iter().zip(&results)
    {
        assert_near(&what(name), got, &gradients[input], 2e-5);
    }
    let mut dskip = unwritten::<f32>(3 * h);
    launch!(cuda, "diagonal_scan_backward_skip_f32", (h.div_ceil(256), 3, 1), 256, 0;
        u, &dy, &mut dskip, rows as i64, h_);
    assert_near(&what("dD"), &sum_parts(cuda, &dskip, h), &with_ones(&gradients[6]), 1e-5);
    let mut du = unwritten::<f32>(rows * h);
    launch!(cuda, "diagonal_scan_skip_f32", elementwise(rows * h), 256, 0; &dy, skip, &mut du, rows as i64, h_);
    du.iter_mut().zip(matmul(&dv, &matrix, (rows, 2 * p, h))).for_each(|(du, more)| *du += more);
    assert_near(&what("du"), &du, &gradients[0], 1e-5);
}

fn selective_scan<T: Number>(cuda: &Emulator) {
    for (batch, length, d, n, softplus) in
        [(1, 1, 1, 1, true), (2, 70, 5, 16, true), (2, 40, 37, 7, true), (1, 64, 32, 16, false)]
    {
        let positive = |salt: u64, count: usize| -> Vec<T> {
            numbers::<f32>(count, salt).iter().map(|v| T::from_f32(0.3 * (v + 1.05))).collect()
        };
        let (u, delta, dy) = (
            numbers::<T>(batch * length * d, 1),
            positive(2, batch * length * d),
            numbers::<T>(batch * length * d, 3),
        );
        let (bm, cm) = (numbers::<T>(batch * length * n, 4), numbers::<T>(batch * length * n, 5));
        let a_log = numbers::<f32>(d * n, 6);
        let bias: Vec<f32> = numbers::<f32>(d, 8).iter().map(|v| 0.2 * (v + 1.0)).collect();
        let skip = numbers::<f32>(d, 7);
        let [u64_, delta64, dy64, b64, c64] = [&u, &delta, &dy, &bm, &cm].map(|x| wide(x));
        let (a64, skip64) = (wide(&a_log).iter().map(|v| -v.exp()).collect::<Vec<_>>(), wide(&skip));
        let inputs: Vec<f64> = delta64.iter().enumerate().map(|(i, v)| v + f64::from(bias[i % d])).collect();
        let (step, slope): (Vec<f64>, Vec<f64>) = match softplus {
            true => inputs.iter().map(|v| (v.exp().ln_1p(), 1.0 / (1.0 + (-v).exp()))).unzip(),
            false => inputs.iter().map(|v| (*v, 1.0)).unzip(),
        };
        let zeros = |n: usize| vec![0.0f64; n];
        let (mut y64, mut du64, mut dd64) = (zeros(u.len()), zeros(u.len()), zeros(u.len()));
        let (mut da64, mut db64, mut dc64, mut ds64) =
            (zeros(d * n), zeros(bm.len()), zeros(bm.len()), zeros(d));
        for (b, c) in (0..batch).flat_map(|b| (0..d).map(move |c| (b, c))) {
            let at = |l: usize| (b * length + l) * d + c;
            for l in 0..length {
                y64[at(l)] += skip64[c] * u64_[at(l)];
                du64[at(l)] += skip64[c] * dy64[at(l)];
                ds64[c] += dy64[at(l)] * u64_[at(l)];
            }
            for s in 0..n {
                let of = |l: usize| (b * length + l) * n + s;
                let mut x = vec![0.0];
                for l in 0..length {
                    let next =
                        (step[at(l)] * a64[c * n + s]).exp() * x[l] + step[at(l)] * b64[of(l)] * u64_[at(l)];
                    x.push(next);
                    y64[at(l)] += c64[of(l)] * next;
                }
                let mut g = 0.0;
                for l in (0..length).rev() {
                    let factor = (step[at(l)] * a64[c * n + s]).exp();
                    g += c64[of(l)] * dy64[at(l)];
                    dc64[of(l)] += dy64[at(l)] * x[l + 1];
                    da64[c * n + s] += g * x[l] * factor * step[at(l)] * a64[c * n + s];
                    let by_step = x[l] * factor * a64[c * n + s] + u64_[at(l)] * b64[of(l)];
                    dd64[at(l)] += g * by_step * slope[at(l)];
                    du64[at(l)] += g * step[at(l)] * b64[of(l)];
                    db64[of(l)] += g * step[at(l)] * u64_[at(l)];
                    g *= factor;
                }
            }
        }
        let what = |of: &str| format!("selective scan {batch} x {length} x {d}, {n} states: {of}");
        let (groups, chunks) = (d.div_ceil(32), length.div_ceil(32));
        let [b_, l_, d_, n_] = [batch, length, d, n].map(|n| n as i32);
        let mut y = unwritten::<T>(u.len());
        let mut states = unwritten::<f32>(batch * chunks * d * n);
        launch!(cuda, format!("selective_scan_forward_{}", T::SUFFIX), (groups, batch, 1), 512, 0;
            &u, &delta, &bias, &a_log, &bm, &cm, &skip, &mut y, &mut states, i32::from(softplus), b_, l_, d_, n_);
        assert_near(&what("y"), &y, &y64, T::TOLERANCE);
        let (mut du, mut ddelta) = (unwritten::<T>(u.len()), unwritten::<T>(u.len()));
        let (mut da, mut dskip) = (unwritten::<f32>(batch * d * n), unwritten::<f32>(batch * d));
        let (mut db, mut dc) = (unwritten::<f32>(groups * bm.len()), unwritten::<f32>(groups * bm.len()));
        launch!(cuda, format!("selective_scan_backward_{}", T::SUFFIX), (groups, batch, 1), 512, 0;
            &dy, &u, &delta, &bias, &a_log, &bm, &cm, &skip, &states, &mut du, &mut ddelta, &mut da, &mut db, &mut dc, &mut dskip, i32::from(softplus), b_, l_, d_, n_);
        assert_near(&what("du"), &du, &du64, T::TOLERANCE);
        assert_near(&what("ddelta"), &ddelta, &dd64, T::TOLERANCE);
        for (of, parts, expected) in
            [("dA", &da, &da64), ("dB", &db, &db64), ("dC", &dc, &dc64), ("dskip", &dskip, &ds64)]
        {
            assert_near(&what(of), &sum_parts(cuda, parts, expected.len()), &with_ones(expected), 2e-5);
        }
    }
}

#[test]
fn selective_scan_of_both_types() {
    Emulator::in_both_orders(|cuda| {
        selective_scan::<f32>(cuda);
        selective_scan::<Bf16>(cuda);
    });
}

/// Block, shared bytes of a transform in one block.
fn one_block(n: usize) -> (usize, usize) {
    ((n / 8).clamp(32, 512), (n + n / 16) * 8)
}

/// batch, channels, length, taps, sides, n, parts
fn long_convolution<T: Number>(cuda: &Emulator, sizes: [usize; 7]) {
    let [batch, channels, length, taps, sides, n, parts] = sizes;
    let u = numbers::<T>(batch * channels * length, 1);
    let dy = numbers::<T>(batch * channels * length, 2);
    let kernel: Vec<f32> = numbers::<f32>(sides * channels * taps, 3);
    let skip = numbers::<f32>(channels, 4);
    let (u64_, dy64, k64, skip64) = (wide(&u), wide(&dy), wide(&kernel), wide(&skip));
    let zeros = |n: usize| vec![0.0f64; n];
    let (mut y64, mut du64) = (zeros(u.len()), zeros(u.len()));
    let (mut dk64, mut ds64) = (zeros(kernel.len()), zeros(channels));
    for (b, c) in (0..batch).flat_map(|b| (0..channels).map(move |c| (b, c))) {
        let row = (b * channels + c) * length;
        for l in row..row + length {
            y64[l] += skip64[c] * u64_[l];
            du64[l] += skip64[c] * dy64[l];
            ds64[c] += u64_[l] * dy64[l];
        }
        for (side, s) in (0..sides).flat_map(|side| (0..taps).map(move |s| (side, s))) {
            let tap = (side * channels + c) * taps + s;
            // y[to + j] takes u[from + j]
            let (to, from) = if side == 0 { (s, 0) } else { (0, s + 1) };
            for j in 0..length.saturating_sub(to.max(from)) {
                y64[row + to + j] += k64[tap] * u64_[row + from + j];
                du64[row + from + j] += k64[tap] * dy64[row + to + j];
                dk64[tap] += dy64[row + to + j] * u64_[row + from + j];
            }
        }
    }
    let what = |of: &str| {
        format!("long convolution {batch} x {channels} x {length}, {sides} x {taps} taps ({n}): {of}")
    };
    let pairs = batch.div_ceil(2);
    let [b_, c_, l_, taps_, sides_, n_] = [batch, channels, length, taps, sides, n].map(|n| n as i32);
    let name = |pass: &str| format!("long_convolution_{pass}_{}", T::SUFFIX);
    let (mut y, mut du) = (unwritten::<T>(u.len()), unwritten::<T>(u.len()));
    let mut dk = unwritten::<f32>(parts * kernel.len());
    let mut spectrum = unwritten::<f32>(2 * channels * n);
    if n <= 4096 {
        let (threads, shared) = one_block(n);
        launch!(cuda, "long_convolution_spectrum_f32", (channels, 1, 1), threads, shared;
            &kernel, &mut spectrum, c_, taps_, sides_, n_);
        launch!(cuda, name("apply"), (channels, pairs, 1), threads, shared;
            &u, &spectrum, &skip, &mut y, b_, c_, l_, n_, 0);
        launch!(cuda, name("apply"), (channels, pairs, 1), threads, shared;
            &dy, &spectrum, &skip, &mut du, b_, c_, l_, n_, 1);
        launch!(cuda, name("backward_kernel"), (channels, parts, 1), threads, shared;
            &u, &dy, &mut dk, b_, c_, l_, taps_, sides_, n_);
    } else {
        let (rows, columns) = (|entries| (n / 4096, channels, entries), |entries| (32, channels, entries));
        let shared = one_block(4096).1;
        launch!(cuda, "long_convolution_columns_spectrum_f32", columns(1), 128, 0;
            &kernel, &mut spectrum, c_, taps_, sides_, n_);
        launch!(cuda, "long_convolution_rows_spectrum_f32", rows(1), 512, shared; &mut spectrum, c_, n_);
        let mut z = unwritten::<f32>(2 * pairs * channels * n);
        for (from, to, conjugated) in [(&u, &mut y, 0), (&dy, &mut du, 1)] {
            launch!(cuda, name("columns"), columns(pairs), 128, 0; from, &mut z, b_, c_, l_, n_);
            launch!(cuda, "long_convolution_rows_apply_f32", rows(pairs), 512, shared;
                &mut z, &spectrum, c_, n_, conjugated);
            launch!(cuda, name("columns_inverse"), columns(pairs), 128, 0;
                &z, from, &skip, to, b_, c_, l_, n_);
        }
        let mut z_dy = z.clone();
        let mut z_dk = unwritten::<f32>(2 * parts * channels * n);
        launch!(cuda, name("columns"), columns(pairs), 128, 0; &u, &mut z, b_, c_, l_, n_);
        launch!(cuda, name("columns"), columns(pairs), 128, 0; &dy, &mut z_dy, b_, c_, l_, n_);
        launch!(cuda, "long_convolution_rows_backward_f32", rows(parts), 512, shared;
            &z, &z_dy, &mut z_dk, pairs as i32, c_, n_);
        launch!(cuda, "long_convolution_columns_kernel_f32", columns(parts), 128, 0;
            &z_dk, &mut dk, c_, taps_, sides_, n_);
    }
    let tolerance = T::TOLERANCE.max(1e-5);
    assert_near(&what("y"), &y, &y64, tolerance);
    assert_near(&what("du"), &du, &du64, tolerance);
    assert_near(&what("dk"), &sum_parts(cuda, &dk, kernel.len()), &with_ones(&dk64), 1e-5);
    let mut dskip = vec![1f32; channels];
    launch!(cuda, name("backward_skip"), (channels, 1, 1), 256, 0; &u, &dy, &mut dskip, b_, c_, l_, 1);
    assert_near(&what("dskip"), &dskip, &with_ones(&ds64), 1e-5);

    // without the direct path
    if n <= 4096 {
        let (threads, shared) = one_block(n);
        launch!(cuda, name("apply"), (channels, pairs, 1), threads, shared;
            &u, &spectrum, NULL, &mut y, b_, c_, l_, n_, 0);
        let direct = |i: usize| y64[i] - skip64[i / length % channels] * u64_[i];
        let expected: Vec<f64> = (0..y64.len()).map(direct).collect();
        assert_near(&what("y without skip"), &y, &expected, tolerance);
    }
}

#[test]
fn long_convolution_in_one_block() {
    Emulator::in_both_orders(|cuda| {
        // every parity of log2 n, odd lengths and batches, one side and two, fewer taps than steps
        for sizes in [
            [1, 1, 1, 1, 1, 2, 1],
            [2, 3, 2, 2, 1, 4, 1],
            [3, 2, 13, 13, 2, 32, 2],
            [5, 2, 100, 28, 2, 128, 2],
            [2, 2, 250, 250, 1, 512, 1],
        ] {
            long_convolution::<f32>(cuda, sizes);
            long_convolution::<Bf16>(cuda, sizes);
        }
        long_convolution::<f32>(cuda, [1, 1, 2000, 2000, 2, 4096, 1]);
    });
}

#[test]
fn long_convolution_in_three_passes() {
    Emulator::in_both_orders(|cuda| {
        long_convolution::<f32>(cuda, [3, 1, 2500, 3000, 1, 8192, 2]);
        long_convolution::<f32>(cuda, [1, 1, 5000, 300, 2, 16384, 1]);
        long_convolution::<Bf16>(cuda, [1, 1, 9000, 90, 2, 32768, 1]);
        long_convolution::<f32>(cuda, [1, 1, 40000, 50, 1, 65536, 1]);
    });
}
