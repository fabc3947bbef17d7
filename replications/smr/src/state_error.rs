//! The Non-Stable State problem in numbers (paper card, section 2.4; the reconstruction is ours, the paper's Proposition 1
//! is known from its reviews).
//!
//! A system that is discretised for the step d, `x_(k+1) = Ab x_k + Bb u(t_k)`, is fed samples that were taken at other
//! times s_k. Its state is off by e with `e_(k+1) = Ab e_k + Bb (u(s_k) - u(t_k))`. With |s_k - t_k| <= eps and u of slope at
//! most S, mode by mode `|e_k| <= |Bb| S eps (1 - |Ab|^k) / (1 - |Ab|)`: bounded if the spectral radius of Ab is below 1,
//! growing as its k-th power if it is above.

use std::collections::BTreeMap;
use std::f64::consts::{PI, TAU};

use candle_core::{DType, Device, Tensor};
use replica_core::record::Curve;
use replica_core::{Measurements, Seed};
use replica_nn::ops::Discretisation;
use replica_nn::{Complex64, Parameters, Value};
use serde::{Deserialize, Serialize};

use crate::data::unit;
use crate::replay::{Replay, ReplayConfig};

/// A diagonal system and the input it is fed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateError {
    /// Real parts of A that are tried; the first one's error over time is a curve.
    pub real_parts: Vec<f64>,
    /// Modes; imaginary parts are pi n, as in S4D-Lin.
    pub modes: usize,
    /// The step, seconds.
    pub step: f64,
    /// Largest shift of a sample, in steps.
    pub jitter: f64,
    /// Steps.
    pub steps: usize,
    /// Sinusoids of the input, up to 1.6 Hz.
    pub components: usize,
    /// SMR at its initial values in front of the system, on the scalar input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<ReplayConfig>,
}

impl StateError {
    /// What makes no sense, as "key = value: what is allowed".
    pub fn problem(&self) -> Option<String> {
        if self.real_parts.is_empty() || self.real_parts.iter().any(|r| !r.is_finite()) {
            return Some("real_parts: at least one finite number is expected".to_owned());
        }
        if !(self.step.is_finite() && self.step > 0.0 && (0.0..=0.5).contains(&self.jitter)) {
            return Some("step must be above 0 and jitter in [0, 0.5]".to_owned());
        }
        if self.modes == 0 || self.components == 0 || self.steps < 20 {
            return Some("modes and components: at least 1, steps: at least 20".to_owned());
        }
        self.replay.and_then(|r| r.problem())
    }
}

/// `u(t) = sum of amplitude sin(2 pi frequency t + phase)`.
pub struct Input {
    /// (amplitude, frequency in hertz, phase).
    pub waves: Vec<(f64, f64, f64)>,
}

impl Input {
    /// The value at a time.
    pub fn at(&self, t: f64) -> f64 {
        self.waves.iter().map(|(a, f, phase)| a * (TAU * f * t + phase).sin()).sum()
    }

    /// A bound on the slope.
    pub fn slope(&self) -> f64 {
        self.waves.iter().map(|(a, f, _)| a.abs() * TAU * f).sum()
    }
}

/// States `[steps][modes]` after each input of a recurrence with given intervals, from 0.
pub fn states(lambda: &[Complex64], inputs: &[f64], intervals: impl Fn(usize) -> f64) -> Vec<Vec<Complex64>> {
    let mut x = vec![Complex64::ZERO; lambda.len()];
    let advance = |(k, u): (usize, &f64)| {
        for (x, lambda) in x.iter_mut().zip(lambda) {
            let (z, q) = Discretisation::ZeroOrderHold.of(*lambda, intervals(k));
            *x = z * *x + q * *u;
        }
        x.clone()
    };
    inputs.iter().enumerate().map(advance).collect()
}

/// Euclidean distances of states.
pub fn distances(a: &[Vec<Complex64>], b: &[Vec<Complex64>]) -> Vec<f64> {
    let distance = |(a, b): (&Vec<Complex64>, &Vec<Complex64>)| {
        a.iter().zip(b).map(|(a, b)| (a - b).norm_sqr()).sum::<f64>().sqrt()
    };
    a.iter().zip(b).map(distance).collect()
}

/// What the error cannot exceed after each step.
pub fn bounds(lambda: &[Complex64], step: f64, deviation: f64, steps: usize) -> Vec<f64> {
    let modes: Vec<(f64, f64)> = lambda
        .iter()
        .map(|l| {
            let (z, q) = Discretisation::ZeroOrderHold.of(*l, step);
            (z.norm(), q.norm())
        })
        .collect();
    let mut sums = vec![0.0; lambda.len()];
    let advance = |_| {
        for (sum, (z, q)) in sums.iter_mut().zip(&modes) {
            *sum = *sum * z + q * deviation;
        }
        sums.iter().map(|s| s * s).sum::<f64>().sqrt()
    };
    (0..steps).map(advance).collect()
}

/// Slope of the logarithm over the second half, a step: the growth rate that is left once transients have gone.
pub fn growth_rate(errors: &[f64]) -> f64 {
    let half = errors.len() / 2;
    let points: Vec<(f64, f64)> =
        errors[half..].iter().enumerate().map(|(k, e)| ((half + k) as f64, e.ln())).collect();
    slope(&points)
}

/// Slope of a least-squares line.
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let (mx, my) = points.iter().fold((0.0, 0.0), |(mx, my), (x, y)| (mx + x / n, my + y / n));
    let covariance: f64 = points.iter().map(|(x, y)| (x - mx) * (y - my)).sum();
    covariance / points.iter().map(|(x, _)| (x - mx).powi(2)).sum::<f64>()
}

/// Runs the systems of a config on one drawn input.
///
/// # Errors
/// SMR failed.
pub fn measure(config: &StateError, seed: Seed) -> candle_core::Result<Measurements> {
    let mut rng = seed.stream("state error");
    let mut uniform = |low: f64, high: f64| low + (high - low) * unit(&mut rng);
    let waves = (0..config.components).map(|_| (uniform(0.2, 1.0), uniform(0.1, 1.6), uniform(0.0, TAU)));
    let input = Input { waves: waves.collect() };
    let (step, steps) = (config.step, config.steps);
    let on_grid: Vec<f64> = (0..steps).map(|k| input.at(k as f64 * step)).collect();
    let shifted = (0..steps).map(|k| input.at((k as f64 + config.jitter * uniform(-1.0, 1.0)) * step));
    let shifted: Vec<f64> = shifted.collect();
    let (on_grid, shifted) = (replayed(config, seed, on_grid)?, replayed(config, seed, shifted)?);

    let mut measured = Measurements::default();
    let mut rates = Vec::new();
    let (mut worst_rate, mut beyond): (f64, f64) = (0.0, 0.0);
    for (which, real) in config.real_parts.iter().enumerate() {
        let lambda: Vec<Complex64> =
            (0..config.modes).map(|n| Complex64::new(*real, PI * n as f64)).collect();
        let truth = states(&lambda, &on_grid, |_| step);
        let errors = distances(&states(&lambda, &shifted, |_| step), &truth);
        let rate = growth_rate(&errors);
        rates.push(((real * step).exp(), rate.exp()));
        if *real > 0.0 {
            worst_rate = worst_rate.max((rate - real * step).abs());
        }
        let bounds = bounds(&lambda, step, input.slope() * config.jitter * step, steps);
        if config.replay.is_none() {
            beyond = errors.iter().zip(&bounds).map(|(e, b)| e / b).fold(beyond, f64::max);
        }
        if which > 0 {
            continue;
        }
        let size = |x: &[Complex64]| x.iter().map(|x| x.norm_sqr()).sum::<f64>().sqrt();
        let half = steps / 2;
        let rms = |v: &[f64]| (v.iter().map(|v| v * v).sum::<f64>() / v.len() as f64).sqrt();
        let sizes: Vec<f64> = truth.iter().map(|x| size(x)).collect();
        let error = rms(&errors[half..]);
        measured.metrics = BTreeMap::from([
            ("state_error".to_owned(), error),
            ("relative_error".to_owned(), error / rms(&sizes[half..])),
            ("growth_rate".to_owned(), rate),
            ("log_radius".to_owned(), real * step),
        ]);
        // beginning and shape are enough: one point in ten
        let thin = |y: &[f64]| {
            let kept = (9..steps).step_by(10);
            Curve {
                x_label: "steps".to_owned(),
                x: kept.clone().map(|k| (k + 1) as f64).collect(),
                y: kept.map(|k| y[k]).collect(),
            }
        };
        measured.curves.insert("state_error".to_owned(), thin(&errors));
        if config.replay.is_none() {
            measured.curves.insert("error_bound".to_owned(), thin(&bounds));
        }
    }
    if config.replay.is_none() {
        measured.metrics.insert("error_over_bound".to_owned(), beyond);
    }
    if config.real_parts.len() > 1 {
        measured.metrics.insert("rate_off".to_owned(), worst_rate);
        rates.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (x, y) = rates.into_iter().unzip();
        let curve = Curve { x_label: "spectral radius".to_owned(), x, y };
        measured.curves.insert("growth_factor".to_owned(), curve);
    }
    Ok(measured)
}

/// The input after SMR at its initial values, if the config has it.
fn replayed(config: &StateError, seed: Seed, input: Vec<f64>) -> candle_core::Result<Vec<f64>> {
    let Some(replay) = config.replay else { return Ok(input) };
    let parameters = Parameters::new(seed, DType::F64, &Device::Cpu);
    let module = Replay::new(replay, 1, parameters.builder().pp("smr"))?;
    let x = Tensor::from_vec(input, (1, config.steps, 1), &Device::Cpu)?;
    module.forward(&Value::from(x))?.tensor().flatten_all()?.to_vec1()
}
