//! Attention against its definition written out, in double precision, and its forms against each other.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::{Device, Tensor};
use proptest::prelude::*;
use rand::Rng;
use replica_core::Seed;
use replica_nn::Value;
use replica_nn::ops::{Attention, RopeTable, Scores};

fn numbers(shape: &[usize], rng: &mut impl Rng) -> Tensor {
    let draw = |_| rng.next_u32() as f64 / 2_147_483_648.0 - 1.0;
    let data: Vec<f64> = (0..shape.iter().product()).map(draw).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

fn worst(a: &Tensor, b: &Tensor) -> f64 {
    let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
    difference.max(0).unwrap().to_scalar::<f64>().unwrap()
}

/// `[batch, rows, heads, d]` as nested vectors.
type Heads = Vec<Vec<Vec<Vec<f64>>>>;

fn heads(x: &Tensor, heads: usize) -> Heads {
    let (batch, rows, width) = x.dims3().unwrap();
    let x = x.reshape((batch * rows, heads, width / heads)).unwrap().to_vec3::<f64>().unwrap();
    x.chunks(rows).map(<[_]>::to_vec).collect()
}

/// The sums of the definition, one query at a time.
fn definition(
    [q, k, v]: [&Tensor; 3],
    attention: Attention,
    mask: &[Vec<u8>],
    bias: &[Vec<Vec<f64>>],
) -> Tensor {
    let (q, k, v) = (heads(q, attention.heads), heads(k, attention.heads), heads(v, attention.heads));
    let mut y = Vec::new();
    for b in 0..q.len() {
        let (t, s) = (q[b].len(), k[b].len());
        for i in 0..t {
            for h in 0..attention.heads {
                let seen = |j: &usize| mask[b][*j] != 0 && (!attention.causal || *j <= i + s - t);
                let score = |j: usize| {
                    let dot: f64 = q[b][i][h].iter().zip(&k[b][j][h]).map(|(q, k)| q * k).sum();
                    (attention.scale * dot + bias[h][i][j]).exp()
                };
                let weights: Vec<(usize, f64)> = (0..s).filter(seen).map(|j| (j, score(j))).collect();
                let total: f64 = weights.iter().map(|(_, w)| w).sum();
                let mut row = vec![0.0; q[b][i][h].len()];
                for (j, w) in &weights {
                    row.iter_mut().zip(&v[b][*j][h]).for_each(|(y, v)| *y += w / total * v);
                }
                y.extend(row);
            }
        }
    }
    let (batch, t, width) = (q.len(), q[0].len(), attention.heads * q[0][0][0].len());
    Tensor::from_vec(y, (batch, t, width), &Device::Cpu).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn equals_its_definition(batch in 1usize..3, t in 1usize..80, more in 0usize..9, num_heads in 1usize..3, d in 1usize..5, causal: bool, keep in 0u32..4, seed: u64) {
        let mut rng = Seed(seed).stream("test");
        let (s, width) = (t + more, num_heads * d);
        let [q, k, v] = [t, s, s].map(|rows| numbers(&[batch, rows, width], &mut rng));
        let bias = numbers(&[num_heads, t, s], &mut rng);
        // every key kept, or about 3/4, 1/2, 1/4 of them
        let mask: Vec<Vec<u8>> = (0..batch).map(|_| (0..s).map(|_| u8::from(rng.next_u32() % 4 >= keep)).collect()).collect();
        let attention = Attention { heads: num_heads, scale: 0.6, causal };
        let expected = definition([&q, &k, &v], attention, &mask, &bias.to_vec3().unwrap());
        let mask = Tensor::new(mask, &Device::Cpu).unwrap();
        let bias = Value::from(bias);
        let [q, k, v] = [q, k, v].map(Value::from);
        let scores = Scores { mask: Some(&mask), bias: Some(&bias), rope: None };
        let y = q.attention_with(&k, &v, attention, scores).unwrap();
        prop_assert!(worst(y.tensor(), &expected) < 1e-12);
    }

    #[test]
    fn packed_and_turned_inside_equal_separate_and_turned_before(t in 1usize..70, half in 1usize..4, seed: u64) {
        let mut rng = Seed(seed).stream("test");
        let attention = Attention { heads: 2, scale: 0.6, causal: true };
        let width = 4 * half;
        let qkv = numbers(&[2, t, 3 * width], &mut rng);
        let table = RopeTable::new(2 * half, t, 100.0).unwrap();
        let part = |i: usize| Value::from(qkv.narrow(2, i * width, width).unwrap().contiguous().unwrap());
        let [q, k] = [part(0), part(1)].map(|x| x.rope(&table, 0).unwrap());
        let separate = q.attention(&k, &part(2), attention).unwrap();
        let scores = Scores { rope: Some(&table), ..Scores::default() };
        let packed = Value::from(qkv.clone()).self_attention(attention, scores).unwrap();
        prop_assert!(worst(separate.tensor(), packed.tensor()) < 1e-12);
    }
}

#[test]
fn a_mask_of_another_shape_is_refused() {
    let x = Value::from(Tensor::zeros((2, 3, 4), candle_core::DType::F64, &Device::Cpu).unwrap());
    let mask = Tensor::zeros((2, 4), candle_core::DType::U8, &Device::Cpu).unwrap();
    let scores = Scores { mask: Some(&mask), ..Scores::default() };
    let attention = Attention { heads: 2, scale: 1.0, causal: false };
    let error = x.attention_with(&x, &x, attention, scores).err().unwrap().to_string();
    assert!(error.contains("expected [2, 3] of u8"), "{error}");
}
