//! The training loop.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use candle_core::Tensor;
use replica_core::record::{Curve, Trace};
use replica_core::{Seed, TrialContext, TrialError};
use replica_nn::ops::Dropout;
use replica_nn::{Gradients, Parameters, Staging, Tape, Value};
use serde::{Deserialize, Serialize};

use crate::adamw::{AdamW, Outcome};
use crate::checkpoint;
use crate::examples::{self, Examples};
use crate::recipe::Recipe;
use crate::schedule::learning_rate;

/// What a training run wrote down.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Log {
    /// `train_loss` (mean since the point before) and what the validations measured, over tokens or what else the
    /// examples count.
    pub curves: BTreeMap<String, Curve>,
    /// Bits of loss and gradient norm of every step.
    pub trace: Trace,
    /// Steps done.
    pub steps: u64,
    /// Sum and number of losses since the last point of `train_loss`.
    pending: (f64, u64),
    /// Seconds of every step of this process, without evaluations and checkpoints; on a GPU means over the steps
    /// that are waited for at once.
    #[serde(skip)]
    pub step_seconds: Vec<f64>,
}

impl Log {
    fn point(&mut self, name: &str, (seen, unit): (u64, &str), y: f64) {
        let curve = self
            .curves
            .entry(name.to_owned())
            .or_insert_with(|| Curve { x_label: unit.to_owned(), ..Curve::default() });
        curve.x.push(seen as f64);
        curve.y.push(y);
    }

    /// Writes down what the optimiser's steps since the last call saw, which began at `started`.
    fn read(
        &mut self,
        optimiser: &mut AdamW,
        recipe: &Recipe,
        context: &TrialContext,
        started: Instant,
    ) -> Result<(), TrialError> {
        let outcomes = optimiser.outcomes().map_err(TrialError::failed)?;
        let seconds = started.elapsed().as_secs_f64() / outcomes.len() as f64;
        for Outcome { loss, gradient_norm, not_finite } in outcomes {
            let refused = match &not_finite {
                _ if !loss.is_finite() => Some(("loss".to_owned(), loss)),
                Some(parameter) => Some((format!("the gradient of `{parameter}`"), gradient_norm)),
                None => None,
            };
            if let Some((what, value)) = refused {
                let (step, learning_rate) = (self.steps, recipe.learning_rate);
                return Err(TrialError::NonFinite { step, what, value, learning_rate });
            }
            self.trace.push(loss, gradient_norm);
            self.step_seconds.push(seconds);
            self.steps += 1;
            self.pending = (self.pending.0 + f64::from(loss), self.pending.1 + 1);
            let tokens = self.steps * recipe.tokens_a_step();
            context.progress.step(self.steps, recipe.steps, loss, tokens);
        }
        Ok(())
    }

    /// Median seconds a step, leaving out the first ones, which allocate.
    pub fn median_step_seconds(&self) -> Option<f64> {
        let mut times = self.step_seconds.get(self.step_seconds.len().min(3)..)?.to_vec();
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied()
    }
}

/// Trains `parameters` in place. `loss(tape, batch, dropout)` is the mean over a batch; `validate` gives named points
/// on the log's curves, such as `valid_loss`.
///
/// With a checkpoint folder in the context, a run that was killed goes on from its last checkpoint and
/// computes the same bits as one that was not.
///
/// # Errors
/// A loss or gradient that is not finite, a stop that was asked for, a checkpoint that cannot be written.
pub fn train<E: Examples>(
    parameters: &Parameters,
    recipe: &Recipe,
    data: &E,
    seed: Seed,
    context: &TrialContext,
    loss: impl Fn(&Tape, E::Batch, &Dropout) -> candle_core::Result<Value>,
    mut validate: impl FnMut() -> candle_core::Result<Vec<(&'static str, f64)>>,
) -> Result<Log, TrialError> {
    let mut optimiser = AdamW::new(parameters, recipe.optimiser()).map_err(TrialError::failed)?;
    let mut log = resume(parameters, &mut optimiser, context)?.unwrap_or_default();
    let mut order = examples::order(seed, data.count(), recipe.batch_size);
    let dropout_key = seed.counter_key("dropout");
    let gradients = Gradients::default();
    // our choice: a run loses at most a twentieth of its work
    let checkpoint_every = recipe.steps.div_ceil(20).max(10);

    let mut staging = Staging::new(parameters.device());
    // steps taken; the log knows of fewer until a GPU is asked what the last ones saw
    let mut step = log.steps;
    let mut started = Instant::now();

    while step < recipe.steps {
        if context.check_cancelled().is_err() {
            log.read(&mut optimiser, recipe, context, started)?;
            save(parameters, &optimiser, &log, context)?;
            return Err(TrialError::Interrupted);
        }
        let parts = recipe.micro_batches as u64;
        let part_loss = |(part, indices): (u64, &[usize])| {
            let tape = Tape::new(&gradients);
            let batch = data.staged(indices, &mut staging)?;
            let mut loss = loss(&tape, batch, &Dropout::new(dropout_key, step * parts + part))?;
            if parts > 1 {
                loss = loss.scale(1.0 / parts as f64)?;
            }
            tape.backward(&loss)?;
            Ok(loss.tensor().clone())
        };
        let indices = order(step);
        let loss = (0..parts)
            .zip(indices.chunks(recipe.batch_size / recipe.micro_batches))
            .map(part_loss)
            .reduce(|sum, part| sum? + part?)
            .unwrap_or_else(|| candle_core::bail!("a step without examples"))
            .map_err(TrialError::failed)?;
        let rate = learning_rate(recipe.learning_rate, recipe.warmup_steps, recipe.steps, step);
        optimiser.step(&gradients, rate, &loss).map_err(TrialError::failed)?;
        step += 1;

        let evaluate = step.is_multiple_of(recipe.eval_every) || step == recipe.steps;
        let checkpoint = step.is_multiple_of(checkpoint_every) && step < recipe.steps;
        if !(optimiser.due() || evaluate || checkpoint) {
            continue;
        }
        log.read(&mut optimiser, recipe, context, started)?;
        if evaluate {
            let seen = (step * data.units_a_step(recipe), E::UNIT);
            let (sum, n) = std::mem::take(&mut log.pending);
            log.point("train_loss", seen, sum / n as f64);
            for (name, value) in validate().map_err(TrialError::failed)? {
                log.point(name, seen, value);
            }
        }
        if checkpoint {
            save(parameters, &optimiser, &log, context)?;
        }
        started = Instant::now();
    }
    Ok(log)
}

fn save(
    parameters: &Parameters,
    optimiser: &AdamW,
    log: &Log,
    context: &TrialContext,
) -> Result<(), TrialError> {
    let Some(folder) = &context.checkpoints else { return Ok(()) };
    let mut tensors: HashMap<String, Tensor> = parameters
        .all()
        .into_iter()
        .map(|(name, var)| (format!("w.{name}"), var.as_tensor().clone()))
        .collect();
    tensors.extend(optimiser.state().map_err(TrialError::failed)?);
    checkpoint::save(folder, log.steps, &tensors, log).map_err(|e| TrialError::Storage(Box::new(e)))
}

fn resume(
    parameters: &Parameters,
    optimiser: &mut AdamW,
    context: &TrialContext,
) -> Result<Option<Log>, TrialError> {
    let Some(folder) = &context.checkpoints else { return Ok(None) };
    let Some((tensors, log)) =
        checkpoint::load::<Log>(folder).map_err(|e| TrialError::Storage(Box::new(e)))?
    else {
        return Ok(None);
    };
    let weights =
        tensors.iter().filter_map(|(name, t)| Some((name.strip_prefix("w.")?.to_owned(), t.clone())));
    parameters.load(&weights.collect()).map_err(TrialError::failed)?;
    optimiser.restore(log.steps, &tensors).map_err(TrialError::failed)?;
    Ok(Some(log))
}
