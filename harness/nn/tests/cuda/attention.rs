//! Attention, its windows, and the damped averages beside it.

use candle_core::{DType, Device, Tensor};
use replica_nn::ops::{Attention, DampedAverage, RopeTable, Scores};
use replica_nn::{Value, accelerator};

use crate::compared::{LENGTHS, check, sent};

#[test]
fn attention() {
    for (batch, t, s, heads, d) in [
        (1, 1, 1, 1, 1),
        (2, 5, 8, 3, 7),
        (1, 70, 71, 2, 16),
        (2, 130, 130, 2, 32),
        (1, 200, 264, 3, 64),
        (1, 65, 129, 2, 128),
        (1, 40, 40, 2, 96),
    ] {
        for causal in [true, false] {
            let attention = Attention { heads, scale: 1.0 / (d as f64).sqrt(), causal };
            let (q, k) = ([batch, t, heads * d], [batch, s, heads * d]);
            check("attention", &[&q, &k, &k], &|x, _| x[0].attention(&x[1], &x[2], attention));
        }
    }
}

/// Values narrower and wider than keys, in one slice of their columns and in several, with all that changes scores.
#[test]
fn attention_to_values_of_another_width() {
    for (batch, t, s, heads, d, value_dim) in
        [(1, 1, 2, 1, 1, 3), (2, 5, 8, 3, 7, 2), (2, 70, 70, 2, 32, 200), (1, 66, 129, 1, 128, 300)]
    {
        let (q, k) = ([batch, t, heads * d], [batch, s, heads * d]);
        let (v, bias) = ([batch, s, heads * value_dim], [heads, t, s]);
        let seen: Vec<u8> = (0..batch * s).map(|i| u8::from(i % 7 != 3)).collect();
        let table = RopeTable::new(d, 256, 10_000.0);
        for causal in [true, false] {
            let attention = Attention { heads, scale: 1.0 / (d as f64).sqrt(), causal };
            check("attention", &[&q, &k, &v], &|x, _| x[0].attention(&x[1], &x[2], attention));
            check("attention with all", &[&q, &k, &v, &bias], &|x, w| {
                let mask = Tensor::from_slice(&seen, (batch, s), w[0].device())?;
                let rope = table.as_ref().ok();
                let scores = Scores { mask: Some(&mask), bias: Some(&x[3]), rope };
                x[0].attention_with(&x[1], &x[2], attention, scores)
            });
        }
    }
}

/// Keys wider than the kernels can take are refused.
#[test]
fn attention_names_keys_that_are_too_wide() {
    let Some(gpu) = accelerator::gpu_for_tests() else { return };
    let x =
        Value::from(sent(&Tensor::zeros((1, 2, 129), DType::F32, &Device::Cpu).unwrap(), DType::F32, &gpu));
    let error = x.attention(&x, &x, Attention { heads: 1, scale: 1.0, causal: true }).err().unwrap();
    assert!(error.to_string().contains("keys of 129 numbers a head; on a GPU at most 128"), "{error}");
}

/// Padding, holes, and an entry that sees nothing; a bias; positions; packed and separate inputs.
#[test]
fn scores() {
    for (batch, t, heads, d) in [(3, 9, 2, 6), (3, 70, 2, 32), (3, 65, 3, 64), (3, 66, 1, 128)] {
        let width = heads * d;
        let table = RopeTable::new(d, 128, 10_000.0).unwrap();
        let attention = |causal| Attention { heads, scale: 1.0 / (d as f64).sqrt(), causal };
        let mask = |device: &Device| {
            let seen = |i: usize| {
                u8::from(match i / t {
                    0 => i % t < t / 2,
                    1 => i % t != 3,
                    _ => false,
                })
            };
            Tensor::from_vec((0..batch * t).map(seen).collect::<Vec<_>>(), (batch, t), device)
        };
        for causal in [true, false] {
            check("packed attention", &[&[batch, t, 3 * width]], &|x, _| {
                x[0].self_attention(attention(causal), Scores { rope: Some(&table), ..Scores::default() })
            });
            let shape = [batch, t, width];
            check("masked attention", &[&shape, &shape, &shape], &|x, _| {
                let mask = mask(x[0].tensor().device())?;
                let scores = Scores { mask: Some(&mask), ..Scores::default() };
                x[0].attention_with(&x[1], &x[2], attention(causal), scores)
            });
            check("biased attention", &[&shape, &shape, &shape, &[heads, t, t]], &|x, _| {
                let scores = Scores { bias: Some(&x[3]), rope: Some(&table), ..Scores::default() };
                x[0].attention_with(&x[1], &x[2], attention(causal), scores)
            });
        }
        // queries that come after keys of an earlier call
        let (q, k) = ([batch, t - 5, width], [batch, t, width]);
        check("attention with positions", &[&q, &k, &k], &|x, _| {
            let scores = Scores { rope: Some(&table), ..Scores::default() };
            x[0].attention_with(&x[1], &x[2], attention(true), scores)
        });
    }
}

/// Windows with and without overlap, and with more in them than a sequence has.
#[test]
fn windows_over_time() {
    for (batch, l, width, length, before, after) in [
        (1, 1, 1, 1, 0, 0),
        (2, 12, 8, 4, 0, 0),
        (3, 11, 5, 4, 2, 1),
        (2, 7, 16, 3, 5, 4),
        (2, 300, 3, 64, 63, 0),
    ] {
        check("windows", &[&[batch, l, width]], &|x, _| {
            // twice: the second gradient is added to the first
            x[0].windows(length, before, after)?.add(&x[0].windows(length, before, after)?)
        });
        let pieces = l.div_ceil(length);
        check("joined", &[&[batch * pieces, length, width]], &|x, _| {
            x[0].joined(batch, l)?.add(&x[0].joined(batch, l)?)
        });
    }
}

#[test]
fn damped_averages() {
    for length in LENGTHS {
        for (sides, h, n) in [(1, 1, 1), (2, 3, 16), (2, 1, 300)] {
            let shape: &[usize] = &[sides * h, n];
            check("damped average", &[shape; 4], &|x, w| {
                let [delta, alpha, beta, gamma] = [0, 1, 2, 3].map(|i: usize| w[i].clone());
                DampedAverage { delta, alpha, beta, gamma, sides }.taps(length, &x[0])
            });
        }
    }
}
