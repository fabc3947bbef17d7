//! Embeddings and positions.

use candle_core::{Device, Tensor};
use replica_nn::ops::RopeTable;

use crate::emulator::{Emulator, launch};
use crate::reference::{
    Bf16, Number, assert_near, differentiate, elementwise, hash, numbers, sum_parts, unwritten, wide,
    with_ones,
};

fn embedding<T: Number>(cuda: &Emulator) {
    // many runs over several chunks of 64; one id only; hardly any repeated id
    for (n, vocab, width) in [(1, 1, 1), (300, 3, 5), (200, 1, 130), (90, 1000, 16), (257, 7, 8)] {
        let ids: Vec<u32> = (0..n as u64).map(|i| (hash(i, 1) % vocab as u64) as u32).collect();
        let (table, dy) = (numbers::<T>(vocab * width, 2), numbers::<T>(n * width, 3));
        let id_tensor = Tensor::from_vec(ids.clone(), n, &Device::Cpu).unwrap();
        let scale = vec![1.0; n * width];
        // multiplied by a constant, so that the ids are on a tape
        let (_, gradients) = differentiate(
            &[(&[vocab, width], wide(&table)), (&[n, width], scale)],
            Some(&wide(&dy)),
            |x, w| x[1].add(&x[1].constant_beside(id_tensor.clone()).embedding(&w[0])?),
        );
        let what = format!("embedding of {n} ids of {vocab}, width {width}");
        let mut y = unwritten::<T>(n * width);
        launch!(cuda, format!("embedding_forward_{}", T::SUFFIX), elementwise(n * width), 256, 0;
            &ids, &table, &mut y, n as i64, width as i32, vocab as i32);
        let table = wide(&table);
        let expected: Vec<f64> =
            ids.iter().flat_map(|id| table[*id as usize * width..][..width].to_vec()).collect();
        assert_near(&what, &y, &expected, 0.0);

        let mut order = vec![u32::MAX; n];
        launch!(cuda, "embedding_rank", (n.div_ceil(64), 1, 1), 64, 0; &ids, &mut order, n as i32);
        let mut sorted: Vec<u32> = (0..n as u32).collect();
        sorted.sort_by_key(|i| ids[*i as usize]);
        assert_eq!(order, sorted, "{what}: a stable sort");

        let grid = (n.div_ceil(64), width.div_ceil(128), 1);
        let mut parts = unwritten::<f32>(2 * n.div_ceil(64) * width);
        let mut dtable = vec![1f32; vocab * width];
        launch!(cuda, format!("embedding_backward_{}", T::SUFFIX), grid, 128, 0;
            &dy, &ids, &order, &mut dtable, &mut parts, n as i32, width as i32, vocab as i32);
        launch!(cuda, "embedding_join_f32", grid, 128, 0;
            &parts, &ids, &order, &mut dtable, n as i32, width as i32, vocab as i32);
        assert_near(&format!("{what}: dtable"), &dtable, &with_ones(&gradients[0]), 1e-5);
    }
    // ids beyond the table add nothing to it, in runs within a chunk and over several
    let n = 200;
    let ids: Vec<u32> = (0..n).map(|i| if i < 100 { u32::MAX } else { i % 3 + 1 }).collect();
    let mut order = vec![0u32; n as usize];
    launch!(cuda, "embedding_rank", (4, 1, 1), 64, 0; &ids, &mut order, n as i32);
    let (dy, mut parts, mut dtable) = (vec![T::from_f32(1.0); n as usize], vec![0f32; 8], vec![0f32; 3]);
    launch!(cuda, format!("embedding_backward_{}", T::SUFFIX), (4, 1, 1), 128, 0;
        &dy, &ids, &order, &mut dtable, &mut parts, n as i32, 1, 3);
    launch!(cuda, "embedding_join_f32", (4, 1, 1), 128, 0; &parts, &ids, &order, &mut dtable, n as i32, 1, 3);
    let count = |id: u32| ids.iter().filter(|i| **i == id).count() as f32;
    assert_eq!(dtable, [0.0, count(1), count(2)]);
    // and are seen as NaN when they are read
    let mut y = unwritten::<T>(2);
    launch!(cuda, format!("embedding_forward_{}", T::SUFFIX), (1, 1, 1), 256, 0;
        &vec![0u32, 9], &numbers::<T>(3, 1), &mut y, 2i64, 1, 3);
    assert!(!y[0].to_f64().is_nan() && y[1].to_f64().is_nan());
    // rows of a tensor and back
    let (mut dx, rows) = (numbers::<T>(5 * 8, 1), vec![3u32, 0]);
    let (before, dy) = (wide(&dx), numbers::<T>(2 * 8, 2));
    launch!(cuda, format!("scatter_rows_{}", T::SUFFIX), (1, 1, 1), 256, 0; &dy, &rows, &mut dx, 2i64, 8);
    let dy = wide(&dy);
    let expected: Vec<f64> = (0..40)
        .map(|i| {
            before[i] + rows.iter().position(|r| *r as usize == i / 8).map_or(0.0, |k| dy[k * 8 + i % 8])
        })
        .collect();
    assert_near("scatter rows", &dx, &expected, T::TOLERANCE);
}

#[test]
fn embedding_of_both_types() {
    Emulator::in_both_orders(|cuda| {
        embedding::<f32>(cuda);
        embedding::<Bf16>(cuda);
    });
}

fn rope<T: Number>(cuda: &Emulator) {
    for (batch, t, heads, head_dim, extra, start) in
        [(1, 1, 1, 2, 0, 0), (2, 7, 3, 10, 3, 2), (2, 5, 2, 32, 8, 1), (1, 9, 4, 64, 0, 0)]
    {
        let width = heads * head_dim;
        let stride = width + extra;
        let x = numbers::<T>(batch * t * stride, 1);
        let dy = numbers::<T>(batch * t * width, 2);
        let part: Vec<f64> = wide(&x).chunks(stride).flat_map(|row| row[..width].to_vec()).collect();
        let table = RopeTable::new(head_dim, 16, 10_000.0).unwrap();
        let (expected, gradients) =
            differentiate(&[(&[batch, t, width], part)], Some(&wide(&dy)), |x, _| x[0].rope(&table, start));
        #[allow(clippy::type_complexity, reason = "named nowhere else")]
        let rows = |which: fn((&[f64], &[f64])) -> Vec<f64>| -> Vec<f32> {
            (0..16).flat_map(|p| which(table.row(p))).map(|v| v as f32).collect()
        };
        let (cos, sin) = (rows(|r| r.0.to_vec()), rows(|r| r.1.to_vec()));
        let what = format!("rope {batch} x {t} x {heads} x {head_dim}");
        let mut y = unwritten::<T>(batch * t * width);
        let grid = elementwise(batch * t * width / 2);
        launch!(cuda, format!("rope_{}", T::SUFFIX), grid, 256, 0;
            &x, &cos, &sin, &mut y, (batch * t) as i64, t as i32, heads as i32, head_dim as i32,
            stride as i64, width as i64, start as i32, 1f32);
        assert_near(&what, &y, &expected, T::TOLERANCE);
        let mut dx = dy.clone();
        let in_place = dx.as_mut_ptr();
        // SAFETY: only the kernel uses the two.
        let dy = unsafe { std::slice::from_raw_parts(in_place, dx.len()) };
        launch!(cuda, format!("rope_{}", T::SUFFIX), grid, 256, 0;
            dy, &cos, &sin, &mut dx, (batch * t) as i64, t as i32, heads as i32, head_dim as i32,
            width as i64, width as i64, start as i32, -1f32);
        assert_near(&format!("{what}: dx"), &dx, &gradients[0], T::TOLERANCE);
    }
}

fn learned_positions<T: Number>(cuda: &Emulator) {
    for (batch, t, width) in [(1, 1, 1), (3, 5, 7), (4, 6, 16)] {
        let (x, table) = (numbers::<T>(batch * t * width, 1), numbers::<T>((t + 2) * width, 2));
        let dy = numbers::<T>(batch * t * width, 3);
        let (expected, gradients) = differentiate(
            &[(&[batch, t, width], wide(&x)), (&[t + 2, width], wide(&table))],
            Some(&wide(&dy)),
            |x, w| x[0].add_positions(&w[1]),
        );
        let n = t * width;
        let mut y = unwritten::<T>(batch * n);
        launch!(cuda, format!("add_positions_forward_{}", T::SUFFIX), elementwise(batch * n), 256, 0;
            &x, &table, &mut y, batch as i32, n as i64);
        assert_near("positions", &y, &expected, T::TOLERANCE);
        let mut dtable = vec![0f32; (t + 2) * width];
        for accumulate in [0, 1] {
            launch!(cuda, format!("add_positions_backward_{}", T::SUFFIX), elementwise(n), 256, 0;
                &dy, &mut dtable, batch as i32, n as i64, accumulate);
            let factor = f64::from(accumulate + 1);
            let expected: Vec<f64> = gradients[1].iter().map(|g| g * factor).collect();
            assert_near("positions: dtable", &dtable, &expected, 1e-5);
        }
    }
}

#[test]
fn positions_of_both_types() {
    Emulator::in_both_orders(|cuda| {
        rope::<f32>(cuda);
        rope::<Bf16>(cuda);
        learned_positions::<f32>(cuda);
        learned_positions::<Bf16>(cuda);
    });
}

fn relative_bias<T: Number>(cuda: &Emulator) {
    for (t, s, heads, rows) in [(1usize, 1usize, 1usize, 1usize), (7, 10, 3, 5), (50, 50, 2, 40)] {
        let (pairs, distances) = (t * s, (t + s - 1) as u64);
        let bucket = |i: u64| if i % 5 == 3 { u32::MAX } else { (hash(i, 1) % rows as u64) as u32 };
        let buckets: Vec<u32> = (0..distances).map(bucket).collect();
        let (table, dbias) = (numbers::<T>(rows * heads, 2), numbers::<T>(heads * pairs, 3));
        let mut bias = unwritten::<T>(heads * pairs);
        launch!(cuda, format!("relative_bias_forward_{}", T::SUFFIX), elementwise(heads * pairs), 256, 0;
            &buckets, &table, &mut bias, t as i32, s as i32, heads as i32, rows as i32);
        let table = wide(&table);
        let mut dtable = vec![0f64; rows * heads];
        let mut expected = Vec::new();
        for (i, dbias) in wide(&dbias).into_iter().enumerate() {
            let (head, query, key) = (i / pairs, i % pairs / s, i % s);
            match buckets[t - 1 - query + key] {
                u32::MAX => expected.push(T::from_f32(-1e9).to_f64()),
                bucket => {
                    let at = bucket as usize * heads + head;
                    expected.push(table[at]);
                    dtable[at] += dbias;
                }
            }
        }
        assert_near("relative bias", &bias, &expected, 0.0);
        let count = pairs.div_ceil(2048);
        let mut parts = unwritten::<f32>(count * rows * heads);
        launch!(cuda, format!("relative_bias_backward_{}", T::SUFFIX), (count, heads, 1), 256, 0;
            &buckets, &dbias, &mut parts, t as i32, s as i32, heads as i32, rows as i32);
        let got = sum_parts(cuda, &parts, rows * heads);
        assert_near("relative bias: dtable", &got, &with_ones(&dtable), 1e-5);
    }
}

#[test]
fn relative_bias_of_both_types() {
    Emulator::in_both_orders(|cuda| {
        relative_bias::<f32>(cuda);
        relative_bias::<Bf16>(cuda);
    });
}
