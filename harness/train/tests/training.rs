//! The loop on examples that are no text: points on a plane.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::AtomicBool;

use candle_core::{DType, Device, Result, Tensor};
use replica_core::trial::{self, Silent};
use replica_core::{Seed, TrialContext};
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
}
