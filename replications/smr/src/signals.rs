//! The toy regression of sampling-step adaptation (paper card, section 7.3, ours): a signal of a few sinusoids is sampled
//! at a grid of times; the model, which is not told the times, gives the response of a first-order low-pass at the same
//! times. It is trained on one uniform grid and tested on others.

use std::f64::consts::TAU;

use candle_core::Result;
use rand::Rng;
use replica_core::Seed;
use replica_nn::Staging;
use replica_train::{Examples, Recipe};
use serde::{Deserialize, Serialize};

use crate::data::{Batch, Targets, intervals, unit};

/// Times at which a signal is sampled. The number of samples is always the same, so the duration changes with the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// Part of the metric's name.
    pub id: String,
    /// For people.
    pub label: String,
    /// Mean distance of samples, seconds.
    pub step: f64,
    /// Largest shift of a sample in steps, uniform in both directions.
    #[serde(default)]
    pub jitter: f64,
    /// Whether times are uniformly random over the grid's duration instead.
    #[serde(default)]
    pub random: bool,
    /// Whether the grid counts as off the grid of training in `off_grid_rmse`.
    #[serde(default)]
    pub off: bool,
}

/// The task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignalSpec {
    /// Step of training, seconds.
    pub step: f64,
    /// Steps of training sequences are uniform between these instead, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixed_steps: Option<(f64, f64)>,
    /// Samples a sequence.
    pub length: usize,
    /// Sinusoids a signal.
    pub components: usize,
    /// Their frequencies, uniform between these, hertz.
    pub frequencies: (f64, f64),
    /// Time constant of the low-pass, seconds.
    pub tau: f64,
    /// First samples that no error is measured at: the model has not seen enough.
    pub skip: usize,
    /// Test signals.
    pub test: usize,
    /// Other grids that are tested.
    #[serde(default)]
    pub grids: Vec<Grid>,
}

impl SignalSpec {
    /// What makes no sense, as "key = value: what is allowed".
    pub fn problem(&self) -> Option<String> {
        let steps = self.grids.iter().map(|g| ("grids.step", g.step));
        let positive = [("step", self.step), ("tau", self.tau)];
        if let Some((key, value)) =
            positive.into_iter().chain(steps).find(|(_, v)| !(v.is_finite() && *v > 0.0))
        {
            return Some(format!("{key} = {value}: a finite number above 0 is expected"));
        }
        if let Some(grid) = self.grids.iter().find(|g| !(0.0..=0.5).contains(&g.jitter)) {
            return Some(format!("grids.jitter = {}: a number in [0, 0.5] is expected", grid.jitter));
        }
        if self.components == 0 || self.test == 0 {
            return Some("components and test: at least 1 is expected".to_owned());
        }
        (self.skip >= self.length)
            .then(|| format!("skip = {}: less than length = {} is expected", self.skip, self.length))
    }

    /// The grid of training.
    pub fn training_grid(&self) -> Grid {
        Grid {
            id: "train".to_owned(),
            label: "the step of training".to_owned(),
            step: self.step,
            jitter: 0.0,
            random: false,
            off: false,
        }
    }
}

/// Numbered signals on a grid.
#[derive(Clone)]
pub struct Signals {
    spec: SignalSpec,
    grid: Grid,
    seed: Seed,
    purpose: &'static str,
    mixed: bool,
    count: usize,
}

impl Signals {
    /// `count` training signals of a trial's seed.
    pub fn training(spec: &SignalSpec, seed: Seed, count: usize) -> Self {
        Self {
            grid: spec.training_grid(),
            spec: spec.clone(),
            seed,
            purpose: "training signals",
            mixed: true,
            count,
        }
    }

    /// The test signals, the same for every trial, on a grid.
    pub fn test(spec: &SignalSpec, grid: &Grid) -> Self {
        Self {
            spec: spec.clone(),
            grid: grid.clone(),
            seed: Seed(0),
            purpose: "test signals",
            mixed: false,
            count: spec.test,
        }
    }

    /// Other signals on the grid of training, to choose hyper-parameters by.
    pub fn validation(spec: &SignalSpec) -> Self {
        Self { purpose: "validation signals", ..Self::test(spec, &spec.training_grid()) }
    }

    /// Times, samples and targets of a signal.
    pub fn signal(&self, index: usize) -> (Vec<f64>, Vec<f32>, Vec<f32>) {
        let SignalSpec { components, frequencies: (low, high), tau, length, .. } = self.spec;
        let mut rng = self.seed.named_stream(self.purpose, &index.to_string());
        let mut uniform = |low: f64, high: f64| low + (high - low) * unit(&mut rng);
        // amplitudes between 0.2 and 1, and their sum about 1 (our choice)
        let waves: Vec<(f64, f64, f64)> = (0..components)
            .map(|_| (uniform(0.4, 2.0) / components as f64, TAU * uniform(low, high), uniform(0.0, TAU)))
            .collect();
        let step = match self.spec.mixed_steps.filter(|_| self.mixed) {
            Some((low, high)) => uniform(low, high),
            None => self.grid.step,
        };
        let times =
            self.times(step, length, &mut self.seed.named_stream("sampling times", &index.to_string()));
        let at = |t: f64, wave: &dyn Fn(f64, f64, f64, f64) -> f64| -> f32 {
            waves.iter().map(|(amplitude, omega, phase)| wave(*amplitude, *omega, *phase, t)).sum::<f64>()
                as f32
        };
        let input = |a: f64, w: f64, phase: f64, t: f64| a * (w * t + phase).sin();
        let response = |a: f64, w: f64, phase: f64, t: f64| {
            a / (1.0 + (w * tau).powi(2)).sqrt() * (w * t + phase - (w * tau).atan()).sin()
        };
        let samples = times.iter().map(|t| at(*t, &input)).collect();
        let targets = times.iter().map(|t| at(*t, &response)).collect();
        (times, samples, targets)
    }

    fn times(&self, step: f64, length: usize, rng: &mut impl Rng) -> Vec<f64> {
        if self.grid.random {
            let mut times: Vec<f64> = (0..length).map(|_| step * length as f64 * unit(rng)).collect();
            times.sort_by(f64::total_cmp);
            return times;
        }
        (0..length).map(|k| step * (k as f64 + self.grid.jitter * (2.0 * unit(rng) - 1.0))).collect()
    }
}

impl Examples for Signals {
    type Batch = Batch;
    const UNIT: &'static str = "sequences";

    fn count(&self) -> usize {
        self.count
    }

    fn units_a_step(&self, recipe: &Recipe) -> u64 {
        recipe.batch_size as u64
    }

    fn staged(&self, indices: &[usize], staging: &mut Staging) -> Result<Batch> {
        let (rows, l) = (indices.len(), self.spec.length);
        let (mut inputs, mut targets, mut gaps) = (Vec::new(), Vec::new(), Vec::new());
        for index in indices {
            let (times, samples, response) = self.signal(*index);
            gaps.extend(intervals(&times, self.spec.step));
            inputs.extend(samples);
            targets.extend(response);
        }
        Ok(Batch {
            inputs: staging.send(inputs, (rows, l, 1))?,
            lengths: vec![l; rows],
            intervals: Some(staging.send(gaps, (rows, l))?),
            targets: Targets::Values(staging.send(targets, (rows, l))?),
        })
    }
}
