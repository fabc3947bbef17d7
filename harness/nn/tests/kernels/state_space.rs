//! State space operations against plain loops in double precision: causal convolutions, recurrences, Mamba's scan.

use crate::emulator::{Emulator, NULL, launch};
use crate::reference::{Bf16, Number, assert_near, numbers, sum_parts, unwritten, wide, with_ones};

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
            &x, &w, &bias, &mut y, sizes[0], sizes[1], sizes[2], sizes[3]);
        assert_near(&what("y"), &y, &y64, T::TOLERANCE);
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

/// (re, im)
type Complex = (f64, f64);

fn product(a: Complex, b: Complex) -> Complex {
    (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0)
}

fn sum(a: Complex, b: Complex) -> Complex {
    (a.0 + b.0, a.1 + b.1)
}

fn conjugate(a: Complex) -> Complex {
    (a.0, -a.1)
}

fn complex(data: &[f32]) -> Vec<Complex> {
    wide(data).chunks(2).map(|c| (c[0], c[1])).collect()
}

fn flat(data: &[Complex]) -> Vec<f64> {
    data.iter().flat_map(|c| [c.0, c.1]).collect()
}

/// Factors of each step, and factors shared by all steps.
#[test]
fn diagonal_recurrence() {
    Emulator::in_both_orders(|cuda| {
        for (batch, length, p, per_step) in
            [(1, 1, 1, true), (2, 150, 3, true), (2, 200, 130, false), (1, 64, 5, false)]
        {
            let n = batch * length * p;
            let a: Vec<f32> =
                numbers::<f32>(2 * if per_step { n } else { p }, 1).iter().map(|v| 0.7 * v).collect();
            let (b, dx) = (numbers::<f32>(2 * n, 2), numbers::<f32>(2 * n, 3));
            let (a64, b64, dx64) = (complex(&a), complex(&b), complex(&dx));
            let factor =
                |b: usize, l: usize, i: usize| a64[if per_step { (b * length + l) * p + i } else { i }];
            let zeros = |n: usize| vec![(0.0, 0.0); n];
            let (mut x64, mut db64, mut da64) = (zeros(n), zeros(n), zeros(a64.len()));
            for (b, i) in (0..batch).flat_map(|b| (0..p).map(move |i| (b, i))) {
                let at = |l: usize| (b * length + l) * p + i;
                let mut state = (0.0, 0.0);
                for l in 0..length {
                    state = sum(product(factor(b, l, i), state), b64[at(l)]);
                    x64[at(l)] = state;
                }
                let mut g = (0.0, 0.0);
                for l in (0..length).rev() {
                    g = sum(g, dx64[at(l)]);
                    db64[at(l)] = g;
                    let before = if l > 0 { x64[at(l - 1)] } else { (0.0, 0.0) };
                    let to = if per_step { at(l) } else { i };
                    da64[to] = sum(da64[to], product(g, conjugate(before)));
                    g = product(conjugate(factor(b, l, i)), g);
                }
            }
            let what = |of: &str| format!("recurrence {batch} x {length} x {p}: {of}");
            let chunks = length.div_ceil(64);
            let grid = (p.div_ceil(128), chunks, batch);
            let (a_batch, a_time) = if per_step { ((length * p) as i64, p as i64) } else { (0, 0) };
            let [b_, l_, p_, chunks_] = [batch, length, p, chunks].map(|n| n as i32);
            let run = |input: &[f32], reverse: i32| {
                let mut carry = unwritten::<f32>(2 * batch * chunks * 2 * p);
                let mut out = unwritten::<f32>(2 * n);
                launch!(cuda, "scan_chunk_f32", grid, 128, 0;
                    &a, input, &mut carry, b_, l_, p_, a_batch, a_time, reverse);
                launch!(cuda, "scan_carry_f32", (grid.0, 1, batch), 128, 0; &mut carry, b_, chunks_, p_, reverse);
                launch!(cuda, "scan_apply_f32", grid, 128, 0;
                    &a, input, &carry, &mut out, b_, l_, p_, a_batch, a_time, reverse);
                out
            };
            let x = run(&b, 0);
            assert_near(&what("x"), &x, &flat(&x64), 1e-5);
            let db = run(&dx, 1);
            assert_near(&what("db"), &db, &flat(&db64), 1e-5);
            let mut da = unwritten::<f32>(2 * if per_step { n } else { batch * chunks * p });
            launch!(cuda, "scan_backward_a_f32", grid, 128, 0; &db, &x, &mut da, b_, l_, p_, i32::from(per_step));
            if per_step {
                assert_near(&what("da"), &da, &flat(&da64), 1e-5);
            } else {
                assert_near(&what("da"), &sum_parts(cuda, &da, 2 * p), &with_ones(&flat(&da64)), 1e-5);
            }
        }
    });
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
