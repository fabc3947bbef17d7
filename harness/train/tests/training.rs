//! The loop on examples that are no text: points on a plane.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::*;
use replica_core::trial::{self, Progress, Silent};
use replica_core::{Seed, TrialContext, TrialError};
use replica_nn::{Linear, Parameters, Staging};
use replica_train::recipe::ParameterGroup;
use replica_train::{Examples, Log, Recipe, train};

/// y = 2 a - b at 24 points.
struct Plane;

impl Examples for Plane {
    type Batch = (Tensor, Tensor);

    const UNIT: &'static str = "points";

    fn count(&self) -> usize {
        24
    }

    fn staged(&self, indices: &[usize], staging: &mut Staging) -> Result<Self::Batch> {
        let point = |i: usize| [(i % 5) as f32 / 5.0, (i % 7) as f32 / 7.0];
        let points: Vec<f32> = indices.iter().flat_map(|&i| point(i)).collect();
        let values: Vec<f32> = points.chunks(2).map(|p| 2.0 * p[0] - p[1]).collect();
        Ok((staging.send(points, (indices.len(), 2))?, staging.send(values, (indices.len(), 1))?))
    }
}

fn recipe() -> Recipe {
    Recipe {
        dtype: Default::default(),
        steps: 60,
        batch_size: 8,
        micro_batches: 1,
        seq_len: 2,
        learning_rate: 0.1,
        warmup_steps: 0,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.0,
        clip_norm: 1.0,
        groups: Vec::new(),
        eval_every: 20,
        patience: None,
        eval_blocks: 0,
    }
}

/// The log, and weight and bias at the end.
fn run(recipe: &Recipe) -> (Log, Vec<f32>) {
    let parameters = Parameters::new(Seed(1), DType::F32, &Device::Cpu);
    let model = Linear::new(2, 1, true, replica_nn::init::linear, parameters.builder()).unwrap();
    let context = TrialContext {
        device: trial::Device::Cpu,
        progress: &Silent,
        cancel: &AtomicBool::new(false),
        checkpoints: None,
    };
    let loss = |tape: &replica_nn::Tape, (x, y): (Tensor, Tensor), _: &_| {
        model.forward(&tape.constant(x))?.mean_squared_error(&y)
    };
    let log =
        train(&parameters, recipe, &Plane, Seed(1), &context, loss, || Ok(vec![("answer", 42.0)])).unwrap();
    let all = parameters.all();
    let values = all.iter().flat_map(|(_, v)| v.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    (log, values.collect())
}

#[test]
fn points_are_learnt_and_curves_count_them() {
    let (log, _) = run(&recipe());
    let loss = &log.curves["train_loss"];
    assert_eq!((loss.x_label.as_str(), loss.x.as_slice()), ("points", &[320.0, 640.0, 960.0][..]));
    assert!(loss.y[2] < loss.y[0] / 20.0, "{:?}", loss.y);
    assert_eq!(log.curves["answer"].y, [42.0; 3]);
}

/// Parts of a batch are the batch, but for rounding.
#[test]
fn gradients_of_micro_batches_add_up() {
    let (whole, weights) = run(&recipe());
    for micro_batches in [2, 4, 8] {
        let (parts, same_weights) = run(&Recipe { micro_batches, ..recipe() });
        let losses = |log: &Log| log.curves["train_loss"].y.clone();
        let pairs = losses(&whole).into_iter().zip(losses(&parts));
        let weights = weights.iter().map(|w| f64::from(*w)).zip(same_weights.iter().map(|w| f64::from(*w)));
        for (a, b) in pairs.chain(weights) {
            assert!((a - b).abs() < 1e-4, "{micro_batches} parts: {a} against {b}");
        }
    }
}

#[test]
fn a_group_without_a_rate_stays_where_it_is() {
    let frozen = ParameterGroup {
        parameters: vec!["bias".to_owned()],
        learning_rate: Some(1e-30),
        weight_decay: None,
    };
    let start = run(&Recipe { steps: 1, learning_rate: 1e-30, ..recipe() }).1;
    let end = run(&Recipe { groups: vec![frozen], ..recipe() }).1;
    assert_eq!(start[0], end[0], "the bias");
    assert!((start[1] - end[1]).abs() > 0.1, "a weight");
}

#[test]
fn what_makes_no_sense_is_named() {
    let problem = |recipe: Recipe| recipe.problem().unwrap();
    let three = problem(Recipe { micro_batches: 3, ..recipe() });
    assert_eq!(three, "micro_batches = 3: a divisor of batch_size = 8 is expected");
    let group =
        |learning_rate, weight_decay| ParameterGroup { parameters: Vec::new(), learning_rate, weight_decay };
    let rate = problem(Recipe { groups: vec![group(Some(-1.0), None)], ..recipe() });
    assert_eq!(rate, "groups.learning_rate = -1: a finite number above 0 is expected");
    let decay = problem(Recipe { groups: vec![group(None, Some(-0.5))], ..recipe() });
    assert_eq!(decay, "groups.weight_decay = -0.5: a finite number, 0 or more, is expected");
    let patience = problem(Recipe { patience: Some(0), ..recipe() });
    assert_eq!(patience, "patience = 0: at least 1 is expected");
}

/// Knows the latest step, and stops a run after one.
struct Watch {
    done: AtomicU64,
    stop_at: Option<u64>,
    cancel: AtomicBool,
}

impl Progress for Watch {
    fn step(&self, done: u64, _: u64, _: f32, _: u64) {
        self.done.store(done, Ordering::Relaxed);
        if self.stop_at == Some(done) {
            self.cancel.store(true, Ordering::Relaxed);
        }
    }
}

type Weights = Vec<u32>;

fn bits(parameters: &Parameters) -> Weights {
    let values =
        parameters.all().into_iter().flat_map(|(_, v)| v.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    values.map(f32::to_bits).collect()
}

/// A run whose validations measure `losses` in turn: its log, what is left, and what there was at every validation, by step.
fn validated(
    recipe: &Recipe,
    losses: &[f64],
    (folder, stop_at): (Option<&Path>, Option<u64>),
) -> std::result::Result<(Log, Weights, HashMap<u64, Weights>), TrialError> {
    let parameters = Parameters::new(Seed(1), DType::F32, &Device::Cpu);
    let model = Linear::new(2, 1, true, replica_nn::init::linear, parameters.builder()).unwrap();
    let watch = Watch { done: AtomicU64::new(0), stop_at, cancel: AtomicBool::new(false) };
    let context = TrialContext {
        device: trial::Device::Cpu,
        progress: &watch,
        cancel: &watch.cancel,
        checkpoints: folder.map(Path::to_owned),
    };
    let loss = |tape: &replica_nn::Tape, (x, y): (Tensor, Tensor), _: &_| {
        model.forward(&tape.constant(x))?.mean_squared_error(&y)
    };
    let mut seen = HashMap::new();
    let validate = || {
        let step = watch.done.load(Ordering::Relaxed);
        seen.insert(step, bits(&parameters));
        Ok(vec![("answer", 42.0), ("valid_loss", losses[(step / recipe.eval_every) as usize - 1])])
    };
    let log = train(&parameters, recipe, &Plane, Seed(1), &context, loss, validate)?;
    Ok((log, bits(&parameters), seen))
}

fn patient(patience: u64) -> Recipe {
    Recipe { eval_every: 5, patience: Some(patience), ..recipe() }
}

#[test]
fn training_stops_when_validation_stops_improving() {
    let losses = [3.0, 2.0, 2.5, 2.0, 1.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.01];
    let (log, left, seen) = validated(&patient(2), &losses, (None, None)).unwrap();
    let best = log.best.unwrap();
    assert_eq!((log.steps, best.step, best.valid_loss), (20, 10, 2.0), "a tie is no progress");
    assert_eq!(log.curves["valid_loss"].y, losses[..4]);
    assert_eq!((&left, log.trace.0.len()), (&seen[&10], 20));
    assert_ne!(left, seen[&20]);

    // one that never stops leaves the best, too; without patience it is the last
    let rising: Vec<f64> = (1..=12).map(f64::from).collect();
    let (log, left, seen) = validated(&patient(99), &rising, (None, None)).unwrap();
    assert_eq!((log.steps, left == seen[&5]), (60, true));
    let (log, left, seen) =
        validated(&Recipe { patience: None, ..patient(1) }, &rising, (None, None)).unwrap();
    assert_eq!((log.steps, log.best, left == seen[&60]), (60, None, true));
}

#[test]
fn early_stopping_needs_a_loss_that_is_a_number() {
    let error = validated(&patient(2), &[2.0, f64::NAN], (None, None)).unwrap_err();
    assert!(
        matches!(&error, TrialError::NonFinite { step: 10, what, .. } if what == "valid_loss"),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever validations say and wherever a run is interrupted, what is left are the weights of the best validation.
    #[test]
    fn the_best_validation_is_what_is_left(
        losses in proptest::collection::vec((0u8..6).prop_map(f64::from), 12), patience in 1u64..5, stop_at in 1u64..60,
    ) {
        let recipe = patient(patience);
        let (mut best, mut last) = (0, 0);
        for (i, loss) in losses.iter().enumerate() {
            last = i;
            if *loss < losses[best] {
                best = i;
            }
            if (i - best) as u64 == patience {
                break;
            }
        }
        let (log, left, seen) = validated(&recipe, &losses, (None, None)).unwrap();
        prop_assert_eq!((log.steps, log.best.unwrap().step), (5 * (last as u64 + 1), 5 * (best as u64 + 1)));
        prop_assert_eq!(&left, &seen[&log.best.unwrap().step]);

        prop_assume!(stop_at < log.steps);
        let folder = tempfile::tempdir().unwrap();
        let place = Some(folder.path());
        let stopped = validated(&recipe, &losses, (place, Some(stop_at))).err();
        prop_assert!(matches!(stopped, Some(TrialError::Interrupted)));
        let (resumed, same, _) = validated(&recipe, &losses, (place, None)).unwrap();
        prop_assert_eq!((resumed.steps, resumed.best, &resumed.curves), (log.steps, log.best, &log.curves));
        prop_assert_eq!(same, left);
    }
}
