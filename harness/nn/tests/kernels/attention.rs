//! Attention: masks, biases, packed rows and tiles that are not full.

use replica_nn::ops::Attention;

use crate::emulator::{Argument, Emulator, NULL, launch};
use crate::reference::{Bf16, Number, assert_near, differentiate, hash, numbers, unwritten, wide};

/// One call.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    heads: usize,
    t: usize,
    s: usize,
    head_dim: usize,
    value_dim: usize,
    causal: bool,
    mask: bool,
    bias: bool,
    /// Elements between rows beyond the heads.
    extra: usize,
}

/// Definition, in double precision: result, log-sum-exp, and the gradients of q, k, v and the bias.
struct Definition {
    o: Vec<f64>,
    lse: Vec<f64>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
    dbias: Vec<f64>,
}

impl Case {
    fn width(self) -> usize {
        self.heads * self.head_dim
    }

    fn value_width(self) -> usize {
        self.heads * self.value_dim
    }

    fn scale(self) -> f64 {
        0.7 / (self.head_dim as f64).sqrt()
    }

    /// q, k, v and do are contiguous; `mask` and `bias` are empty if there are none.
    fn definition(self, [q, k, v, d_o]: [&[f64]; 4], mask: &[u8], bias: &[f32]) -> Definition {
        let Case { batch, heads, t, s, head_dim: d, value_dim: n, .. } = self;
        let (w, u) = (self.width(), self.value_width());
        let zeros = |n: usize| vec![0.0; n];
        let (mut o, mut lse) = (zeros(batch * t * u), zeros(batch * heads * t));
        let (mut dq, mut dk, mut dv) = (zeros(batch * t * w), zeros(batch * s * w), zeros(batch * s * u));
        let mut dbias = zeros(heads * t * s);
        for (b, h, i) in (0..batch).flat_map(|b| (0..heads).flat_map(move |h| (0..t).map(move |i| (b, h, i))))
        {
            let row = (b * t + i) * w + h * d;
            let key = |j: usize| (b * s + j) * w + h * d;
            let (out, value) = ((b * t + i) * u + h * n, |j: usize| (b * s + j) * u + h * n);
            let dot = |a: &[f64], c: &[f64]| a.iter().zip(c).map(|(a, c)| a * c).sum::<f64>();
            let seen: Vec<usize> = (0..s)
                .filter(|j| !self.causal || j + t <= i + s)
                .filter(|j| mask.is_empty() || mask[b * s + j] != 0)
                .collect();
            let score = |j: usize| {
                let bias = if bias.is_empty() { 0.0 } else { f64::from(bias[(h * t + i) * s + j]) };
                self.scale() * dot(&q[row..][..d], &k[key(j)..][..d]) + bias
            };
            let scores: Vec<f64> = seen.iter().map(|j| score(*j)).collect();
            let top = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
            let total: f64 = scores.iter().map(|x| (x - top).exp()).sum();
            lse[(b * heads + h) * t + i] = if seen.is_empty() { f64::INFINITY } else { top + total.ln() };
            let p: Vec<f64> = scores.iter().map(|x| (x - top).exp() / total).collect();
            let dp: Vec<f64> = seen.iter().map(|j| dot(&d_o[out..][..n], &v[value(*j)..][..n])).collect();
            let delta: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            for ((j, p), dp) in seen.into_iter().zip(p).zip(dp) {
                let ds = p * (dp - delta);
                dbias[(h * t + i) * s + j] += ds;
                for e in 0..n {
                    o[out + e] += p * v[value(j) + e];
                    dv[value(j) + e] += p * d_o[out + e];
                }
                for e in 0..d {
                    dq[row + e] += self.scale() * ds * k[key(j) + e];
                    dk[key(j) + e] += self.scale() * ds * q[row + e];
                }
            }
        }
        Definition { o, lse, dq, dk, dv, dbias }
    }

    /// Rows of heads, `width` together, out of rows with something else between them.
    fn heads_of<T: Copy>(self, rows: &[T], width: usize) -> Vec<T> {
        rows.chunks(width + self.extra).flat_map(|row| row[..width].to_vec()).collect()
    }
}

fn check<T: Number>(cuda: &Emulator, case: Case) {
    let Case { batch, heads, t, s, head_dim, value_dim, causal, .. } = case;
    let (width, value_width) = (case.width(), case.value_width());
    let (stride, value_stride) = (width + case.extra, value_width + case.extra);
    let (q, k) = (numbers::<T>(batch * t * stride, 1), numbers::<T>(batch * s * stride, 2));
    let (v, d_o) = (numbers::<T>(batch * s * value_stride, 3), numbers::<T>(batch * t * value_stride, 4));
    // the last batch entry sees no key at all
    let mask: Vec<u8> = match case.mask {
        true => (0..batch * s)
            .map(|i| u8::from(!hash(i as u64, 5).is_multiple_of(3) && i / s + 1 < batch))
            .collect(),
        false => Vec::new(),
    };
    let bias = if case.bias { numbers::<f32>(heads * t * s, 6) } else { Vec::new() };
    let contiguous = [(&q, width), (&k, width), (&v, value_width), (&d_o, value_width)]
        .map(|(x, width)| wide(&case.heads_of(x, width)));
    let expected = case.definition(contiguous.each_ref().map(Vec::as_slice), &mask, &bias);
    let what = |of: &str| format!("{case:?}: {of}");
    if !(case.mask || case.bias || causal && t > s) {
        let attention = Attention { heads, scale: case.scale(), causal };
        let [q, k, v, d_o] = &contiguous;
        let [queries, keys, values] = [[batch, t, width], [batch, s, width], [batch, s, value_width]];
        let inputs: [(&[usize], _); 3] = [(&queries, q.clone()), (&keys, k.clone()), (&values, v.clone())];
        let (o, gradients) =
            differentiate(&inputs, Some(d_o), |x, _| x[0].attention(&x[1], &x[2], attention));
        assert_near(&what("definition"), &expected.o.iter().map(|v| *v as f32).collect::<Vec<_>>(), &o, 1e-6);
        for (got, of) in [&expected.dq, &expected.dk, &expected.dv].into_iter().zip(&gradients) {
            assert_near(&what("definition"), &got.iter().map(|v| *v as f32).collect::<Vec<_>>(), of, 1e-6);
        }
    }

    let float = T::SUFFIX == "f32";
    let suffix = if float { "f32".to_owned() } else { format!("bf16_d{head_dim}") };
    let name = |pass: &str| format!("attention_{pass}_{suffix}");
    let tile = if float && head_dim > 64 { 32 } else { 64 };
    let step = if float {
        tile
    } else if head_dim == 128 {
        32
    } else {
        64
    };
    let threads = if float { 256 } else { 128 };
    // columns of values that a block takes at a time; tiles of keys, of values, and of scores
    let columns = if head_dim > 64 { 128 } else { 64 };
    let slices = if float { value_dim.div_ceil(columns) } else { 1 };
    let of_values = value_dim.min(columns);
    let floats = |keys: usize, values: usize, squares: usize| {
        4 * tile * (keys * (head_dim | 1) + values * (of_values | 1) + squares * (tile + 1))
    };
    let shared = |rows: usize| rows * (head_dim + 8) * 2;
    let optional = |empty: bool, buffer: &dyn Fn() -> Argument<'static>| if empty { NULL } else { buffer() };
    let raw = |p: *const u8| Argument::Buffer(p as *mut std::ffi::c_void, std::marker::PhantomData);
    let mask_argument = || optional(mask.is_empty(), &|| raw(mask.as_ptr()));
    let bias_argument = || optional(bias.is_empty(), &|| raw(bias.as_ptr().cast()));
    let [b_, h_, t_, s_, d_, v_] = [batch, heads, t, s, head_dim, value_dim].map(|n| n as i32);
    let (stride_, values_, scale) = (stride as i64, value_stride as i64, case.scale() as f32);
    let causal_ = i32::from(causal);
    let tolerance = if float { 2e-5 } else { 2.0 * T::TOLERANCE };

    let mut o = unwritten::<T>(batch * t * value_stride);
    let mut lse = unwritten::<f32>(batch * heads * t);
    let two = if head_dim > of_values { floats(2, 0, 1) } else { floats(1, 1, 1) };
    launch!(cuda, name("forward"), (t.div_ceil(tile), batch * heads, slices), threads,
        if float { two } else { shared(64 + 2 * 64) };
        &q, &k, &v, &mut o, &mut lse, mask_argument(), bias_argument(), b_, h_, t_, s_, d_, v_,
        stride_, stride_, values_, values_, scale, causal_);
    assert_near(&what("o"), &case.heads_of(&o, value_width), &expected.o, tolerance);
    for (got, of) in lse.iter().zip(&expected.lse) {
        let near = f64::from(*got) == *of || (f64::from(*got) - of).abs() < tolerance;
        assert!(near, "{}: {got}, expected {of}", what("lse"));
    }

    let mut delta = unwritten::<f32>(batch * heads * t);
    launch!(cuda, format!("attention_delta_{}", T::SUFFIX), ((batch * t * heads).div_ceil(8), 1, 1), 256, 0;
        &o, &d_o, &mut delta, b_, h_, t_, v_, values_, values_);
    let (mut dk, mut dv) = (unwritten::<T>(batch * s * stride), unwritten::<T>(batch * s * value_stride));
    let parts = if slices > 1 { slices + 1 } else { 1 };
    launch!(cuda, name("backward_kv"), (s.div_ceil(tile), batch * heads, parts), threads,
        if float { floats(2, 2, 2) } else { shared(2 * 64 + 2 * step) + 2 * step * 4 };
        &q, &k, &v, &d_o, &lse, &delta, mask_argument(), bias_argument(), &mut dk, &mut dv, b_, h_, t_, s_, d_, v_,
        stride_, stride_, values_, values_, stride_, values_, scale, causal_);
    assert_near(&what("dk"), &case.heads_of(&dk, width), &expected.dk, tolerance);
    assert_near(&what("dv"), &case.heads_of(&dv, value_width), &expected.dv, tolerance);

    let mut dq = unwritten::<T>(batch * t * stride);
    launch!(cuda, name("backward_q"), (t.div_ceil(tile), batch * heads, 1), threads,
        if float { floats(2, 2, 1) } else { shared(2 * 64 + 2 * step) };
        &q, &k, &v, &d_o, &lse, &delta, mask_argument(), bias_argument(), &mut dq, b_, h_, t_, s_, d_, v_,
        stride_, stride_, values_, values_, stride_, scale, causal_);
    assert_near(&what("dq"), &case.heads_of(&dq, width), &expected.dq, tolerance);

    if case.bias {
        let mut dbias = unwritten::<f32>(heads * t * s);
        for accumulate in [0, 1] {
            launch!(cuda, name("backward_bias"), (s.div_ceil(step), t.div_ceil(64.min(tile)), heads), threads,
                if float { floats(2, 2, 0) } else { shared(2 * 64 + 2 * step) };
                &q, &k, &v, &d_o, &lse, &delta, mask_argument(), bias_argument(), &mut dbias, b_, h_, t_, s_, d_, v_,
                stride_, stride_, values_, values_, scale, causal_, accumulate);
            let factor = f64::from(accumulate + 1);
            let of: Vec<f64> = expected.dbias.iter().map(|g| g * factor).collect();
            assert_near(&what("dbias"), &dbias, &of, tolerance);
        }
    }
}

fn case(sizes: [usize; 5], causal: bool, mask: bool, bias: bool, extra: usize) -> Case {
    let [batch, heads, t, s, head_dim] = sizes;
    Case { batch, heads, t, s, head_dim, value_dim: head_dim, causal, mask, bias, extra }
}

#[test]
fn attention_in_float() {
    Emulator::in_both_orders(|cuda| {
        check::<f32>(cuda, case([1, 1, 1, 1, 1], true, false, false, 0));
        check::<f32>(cuda, case([2, 3, 37, 37, 20], true, false, false, 5));
        check::<f32>(cuda, case([1, 2, 70, 130, 16], true, false, false, 0));
        check::<f32>(cuda, case([2, 2, 65, 40, 33], false, true, true, 0));
        check::<f32>(cuda, case([1, 1, 90, 70, 64], true, false, true, 64));
        check::<f32>(cuda, case([2, 1, 45, 33, 128], true, true, false, 1));
        check::<f32>(cuda, case([1, 2, 33, 64, 100], false, false, true, 0));
    });
}

/// Values in one slice and in several, narrower and wider than keys.
#[test]
fn attention_to_values_of_another_width() {
    Emulator::in_both_orders(|cuda| {
        for (value_dim, case) in [
            (3, case([1, 2, 5, 5, 1], true, false, false, 0)),
            (7, case([2, 1, 37, 40, 20], true, true, true, 1)),
            (130, case([2, 2, 66, 70, 16], false, true, true, 0)),
            (200, case([1, 1, 70, 70, 64], true, false, true, 3)),
            (40, case([1, 2, 33, 35, 100], false, false, true, 0)),
            (300, case([1, 1, 40, 33, 128], true, false, false, 0)),
        ] {
            check::<f32>(cuda, Case { value_dim, causal: case.causal && case.t <= case.s, ..case });
        }
    });
}

#[test]
fn attention_in_bf16_on_tensor_cores() {
    Emulator::in_both_orders(|cuda| {
        check::<Bf16>(cuda, case([1, 1, 1, 1, 32], true, false, false, 0));
        check::<Bf16>(cuda, case([1, 2, 100, 100, 32], true, false, false, 64));
        check::<Bf16>(cuda, case([1, 2, 70, 130, 64], true, false, false, 0));
        check::<Bf16>(cuda, case([2, 2, 65, 40, 64], false, true, true, 0));
        check::<Bf16>(cuda, case([1, 1, 90, 70, 32], true, false, true, 1));
        check::<Bf16>(cuda, case([2, 1, 45, 70, 128], true, true, true, 8));
        check::<Bf16>(cuda, case([1, 1, 64, 128, 128], false, false, false, 0));
    });
}
