//! The layers of Mega and SPADE against what defines them, written out step by step in double precision.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::{DType, Device, Tensor};
use rand::Rng;
use replica_core::Seed;
use replica_nn::ops::{Discretisation, StepTransform};
use replica_nn::s4d::Modes;
use replica_nn::t5::relative_bucket;
use replica_nn::{
    Gradients, LocalAttention, LocalAttentionConfig, Mega, MegaConfig, MovingAverage, Parameters, S4dConfig,
    Spade, Tape, Value,
};

fn parameters(seed: u64) -> Parameters {
    Parameters::new(Seed(seed), DType::F64, &Device::Cpu)
}

fn input(seed: u64, shape: (usize, usize, usize)) -> Tensor {
    let mut rng = Seed(seed).stream("input");
    let n = shape.0 * shape.1 * shape.2;
    let data: Vec<f64> = (0..n).map(|_| f64::from(rng.next_u32()) / 2f64.powi(31) - 1.0).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

fn numbers(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn mega(chunk: Option<usize>, truncation: Option<usize>, bidirectional: bool) -> MegaConfig {
    MegaConfig {
        width: 3,
        hidden: 5,
        shared: 2,
        state: 4,
        truncation,
        chunk,
        positions: chunk.unwrap_or(12),
        bidirectional,
        dropout: 0.0,
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `h_t = q h_(t-1) + p beta x_t`, `y_t = silu(gamma h_t / sqrt(n) + omega x_t)`; in two directions, the sum of both.
#[test]
fn the_moving_average_is_its_recurrence() {
    for bidirectional in [false, true] {
        for l in [1, 2, 7, 64, 300] {
            let config = mega(None, None, bidirectional);
            let (width, n) = (config.width, config.state);
            let parameters = parameters(1);
            let average = MovingAverage::new(config, parameters.builder()).unwrap();
            let x = input(2, (2, l, width));
            let y = numbers(average.forward(&Value::from(x.clone())).unwrap().tensor());
            let x = numbers(&x);
            let [delta, alpha, beta, gamma, omega] = ["delta", "alpha", "beta", "gamma", "omega"]
                .map(|name| numbers(&parameters.get(name).unwrap()));
            for (b, c) in (0..2 * width).map(|i| (i / width, i % width)) {
                let at = |t: usize| (b * l + t) * width + c;
                let mut expected: Vec<f64> = (0..l).map(|t| omega[c] * x[at(t)]).collect();
                for side in 0..if bidirectional { 2 } else { 1 } {
                    let row = (side * width + c) * n;
                    let mut h = vec![0.0; n];
                    for step in 0..l {
                        let t = if side == 0 { step } else { l - 1 - step };
                        for (i, h) in h.iter_mut().enumerate() {
                            let p = sigmoid(delta[row + i]);
                            let q = 1.0 - p * sigmoid(alpha[row + i]);
                            *h = q * *h + p * beta[row + i] * x[at(t)];
                            expected[t] += gamma[row + i] * *h / (n as f64).sqrt();
                        }
                    }
                }
                for (t, v) in expected.into_iter().enumerate() {
                    let silu = v * sigmoid(v);
                    assert!((y[at(t)] - silu).abs() < 1e-12, "l {l}, step {t}: {} against {silu}", y[at(t)]);
                }
            }
        }
    }
}

/// With a truncated kernel an output sees that many inputs, itself among them.
#[test]
fn a_truncated_average_forgets() {
    let parameters = parameters(1);
    let average = MovingAverage::new(mega(None, Some(3), false), parameters.builder()).unwrap();
    let run = |x: &Tensor| numbers(average.forward(&Value::from(x.clone())).unwrap().tensor());
    let before = input(2, (1, 9, 3));
    let first = Tensor::from_vec([vec![1.0; 3], vec![0.0; 24]].concat(), (1, 9, 3), &Device::Cpu).unwrap();
    let (a, b) = (run(&before), run(&(&before + first).unwrap()));
    let changed = |t: usize| (0..3).any(|c| (a[3 * t + c] - b[3 * t + c]).abs() > 1e-9);
    assert_eq!((0..9).map(changed).collect::<Vec<_>>(), [[true; 3], [false; 3], [false; 3]].concat());
}

/// With averages that are switched off, queries and keys are constants, so that attention weighs values by relative
/// position alone, within chunks.
#[test]
fn attention_of_mega_stays_within_its_chunk() {
    let (l, chunk) = (11, 4);
    for bidirectional in [false, true] {
        let config = mega(Some(chunk), None, bidirectional);
        let (width, hidden) = (config.width, config.hidden);
        let parameters = parameters(4);
        let layer = Mega::new(config, parameters.builder()).unwrap();
        for (name, var) in parameters.all() {
            let value = match name.as_str() {
                "move.gamma" | "move.omega" => 0.0,
                "mx_proj.bias" | "rel_pos_bias.rel_pos_bias" => 1.0,
                _ => continue,
            };
            let mut values = vec![value; var.elem_count()];
            if name == "rel_pos_bias.rel_pos_bias" {
                values = (0..2 * chunk - 1).map(|i| 0.3 * (i as f64 - 2.0)).collect();
            }
            var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
        }
        let get = |name: &str| numbers(&parameters.get(name).unwrap());
        let (v_weight, h_weight) = (get("v_proj.weight"), get("h_proj.weight"));
        let x = input(5, (1, l, width));
        let zero = Value::from(x.zeros_like().unwrap());
        let y = numbers(layer.forward(&Value::from(x.clone()), &zero, None).unwrap().tensor());
        let x = numbers(&x);
        let silu = |v: f64| v * sigmoid(v);
        for t in 0..l {
            let seen: Vec<usize> = (t / chunk * chunk..l.min((t / chunk + 1) * chunk))
                .filter(|j| bidirectional || *j <= t)
                .collect();
            let weights: Vec<f64> = seen
                .iter()
                .map(|j| (0.3 * (*j as f64 - t as f64 + chunk as f64 - 1.0 - 2.0)).exp())
                .collect();
            let total: f64 = weights.iter().sum();
            let attended = |h: usize| -> f64 {
                let value =
                    |j: usize| silu((0..width).map(|c| v_weight[h * width + c] * x[j * width + c]).sum());
                seen.iter().zip(&weights).map(|(j, w)| w / total * value(*j)).sum()
            };
            for c in 0..width {
                let inner: f64 =
                    (0..hidden).map(|h| h_weight[c * hidden + h] * attended(h) * silu(1.0)).sum();
                let expected = sigmoid(1.0) * silu(1.0 + inner);
                let got = y[t * width + c];
                assert!(
                    (got - expected).abs() < 1e-12,
                    "{bidirectional}, step {t}: {got} against {expected}"
                );
            }
        }
    }
}

fn local(bidirectional: bool) -> LocalAttentionConfig {
    LocalAttentionConfig { width: 5, heads: 2, radius: 3, bidirectional, buckets: 4, max_distance: 8 }
}

/// Blocks, their borders and incomplete last ones make no difference to attention within the radius.
#[test]
fn local_attention_sees_its_radius() {
    for bidirectional in [false, true] {
        for l in [1, 2, 3, 4, 5, 7, 8, 9, 13, 16] {
            let LocalAttentionConfig { width, heads, radius, buckets, max_distance, .. } =
                local(bidirectional);
            let parameters = parameters(6);
            let vb = parameters.builder();
            let layer = LocalAttention::new(local(bidirectional), vb.clone(), vb).unwrap();
            let x = input(7, (2, l, width));
            let y = numbers(layer.forward(&Value::from(x.clone())).unwrap().tensor());
            let x = numbers(&x);
            let get = |name: &str| numbers(&parameters.get(name).unwrap());
            let [q, k, v, o] = ["q.weight", "k.weight", "v.weight", "o.weight"].map(get);
            let table = get("relative_attention_bias.weight");
            let d = width.div_ceil(heads);
            let product = |w: &[f64], row: usize, x: &[f64]| -> f64 {
                w[row * x.len()..][..x.len()].iter().zip(x).map(|(w, x)| w * x).sum()
            };
            for (b, t) in (0..2 * l).map(|i| (i / l, i % l)) {
                let step = |t: usize| &x[(b * l + t) * width..][..width];
                let last = if bidirectional { (t + radius).min(l - 1) } else { t };
                let seen: Vec<usize> = (t.saturating_sub(radius)..=last).collect();
                let mut joined = Vec::new();
                for head in 0..heads {
                    let of = |w: &[f64], t: usize| -> Vec<f64> {
                        (0..d).map(|i| product(w, head * d + i, step(t))).collect()
                    };
                    let query = of(&q, t);
                    let weight = |j: usize| {
                        let score: f64 = query.iter().zip(of(&k, j)).map(|(q, k)| q * k).sum();
                        let row = relative_bucket(j as i64 - t as i64, bidirectional, buckets, max_distance);
                        (score / (d as f64).sqrt() + table[row as usize * heads + head]).exp()
                    };
                    let weights: Vec<f64> = seen.iter().map(|j| weight(*j)).collect();
                    let total: f64 = weights.iter().sum();
                    for i in 0..d {
                        joined.push(seen.iter().zip(&weights).map(|(j, w)| w / total * of(&v, *j)[i]).sum());
                    }
                }
                for c in 0..width {
                    let (got, expected) = (y[(b * l + t) * width + c], product(&o, c, &joined));
                    assert!(
                        (got - expected).abs() < 1e-10,
                        "{bidirectional}, {l} steps, step {t}: {got} against {expected}"
                    );
                }
            }
        }
    }
}

/// Gradients of `sum(c f(x))` by x and all parameters against central differences.
fn check(parameters: &Parameters, x: &Tensor, f: impl Fn(&Value) -> Value) {
    let gradients = Gradients::default();
    let tape = Tape::new(&gradients);
    let input = candle_core::Var::from_tensor(x).unwrap();
    let y = f(&tape.variable(input.as_tensor()).unwrap());
    let cotangent: Vec<f64> = (0..y.tensor().elem_count()).map(|i| ((7 * i) % 5) as f64 - 1.7).collect();
    let g = Tensor::from_vec(cotangent.clone(), y.tensor().shape(), &Device::Cpu).unwrap();
    tape.backward_from(&y, g).unwrap();
    let objective = || -> f64 {
        let y = f(&Value::from(input.as_tensor().copy().unwrap()));
        numbers(y.tensor()).iter().zip(&cotangent).map(|(y, c)| y * c).sum()
    };
    for (name, var) in parameters.all().into_iter().chain([("x".to_owned(), input.clone())]) {
        let analytic = numbers(&gradients.tensor(var.as_tensor()).unwrap_or_else(|| panic!("{name}")));
        let at = numbers(var.as_tensor());
        for i in 0..at.len() {
            let moved = |by: f64| {
                let mut values = at.clone();
                values[i] += by;
                var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
                objective()
            };
            let numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            moved(0.0);
            let error = (analytic[i] - numeric).abs() / (1.0 + numeric.abs());
            assert!(error < 2e-7, "{name}[{i}]: {} by backward, {numeric} by differences", analytic[i]);
        }
    }
}

#[test]
fn gradients_of_mega() {
    for (chunk, bidirectional) in [(None, false), (Some(3), false), (Some(3), true)] {
        let parameters = parameters(8);
        let layer = Mega::new(mega(chunk, None, bidirectional), parameters.builder()).unwrap();
        // the authors' initial weights leave next to no gradients to queries and keys
        for (name, var) in parameters.all() {
            if name.ends_with("weight") || name.ends_with("gamma") {
                var.set(&(var.as_tensor() * 20.0).unwrap()).unwrap();
            }
        }
        check(&parameters, &input(9, (2, 7, 3)), |x| layer.forward(x, x, None).unwrap());
    }
}

#[test]
fn gradients_of_spade() {
    for bidirectional in [false, true] {
        let parameters = parameters(10);
        let vb = parameters.builder();
        let model = S4dConfig {
            width: 5,
            state: 4,
            copies: 1,
            modes: Modes::Legs,
            steps: (1e-2, 1e-1),
            transform: StepTransform::Softplus,
            discretisation: Discretisation::Bilinear,
            bidirectional,
            dropout: 0.0,
            tied_dropout: false,
        };
        let layer = Spade::bottom(local(bidirectional), model, 9, vb.clone(), vb).unwrap();
        check(&parameters, &input(11, (2, 9, 5)), |x| layer.forward(x).unwrap());
    }
}
