//! The training loop.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use candle_core::{Device, Tensor};
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

/// Tensors by name.
type Weights = HashMap<String, Tensor>;

/// What early stopping goes by.
const JUDGED: &str = "valid_loss";

/// The best validation of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps done before it.
    pub step: u64,
    /// What it measured.
    pub valid_loss: f64,
    /// Validations since.
    since: u64,
}

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
    /// The best validation, where the recipe has a `patience`: the weights that are left are those of its step.
    #[serde(default)]
    pub best: Option<Best>,
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

    /// Books a validation for early stopping; whether it is the best so far. A tie is no progress.
    fn improves(&mut self, measured: &[(&'static str, f64)], recipe: &Recipe) -> Result<bool, TrialError> {
        let Some((_, loss)) = measured.iter().find(|(name, _)| *name == JUDGED) else {
            return Err(TrialError::failed(format!(
                "patience: this training measures no `{JUDGED}` to stop by; leave the key out"
            )));
        };
        if !loss.is_finite() {
            let (what, value) = (JUDGED.to_owned(), *loss as f32);
            let learning_rate = recipe.learning_rate;
            return Err(TrialError::NonFinite { step: self.steps, what, value, learning_rate });
        }
        match &mut self.best {
            Some(best) if *loss >= best.valid_loss => {
                best.since += 1;
                Ok(false)
            }
            best => {
                *best = Some(Best { step: self.steps, valid_loss: *loss, since: 0 });
                Ok(true)
            }
        }
    }

    /// Whether patience has run out.
    fn is_over(&self, recipe: &Recipe) -> bool {
        self.best.zip(recipe.patience).is_some_and(|(best, patience)| best.since >= patience)
    }

    /// Median seconds a step, leaving out the first ones, which allocate.
    pub fn median_step_seconds(&self) -> Option<f64> {
        let mut times = self.step_seconds.get(self.step_seconds.len().min(3)..)?.to_vec();
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied()
    }
}

/// Trains `parameters` in place. `loss(tape, batch, dropout)` is the mean over a batch; `validate` gives named points
/// on the log's curves, such as `valid_loss`. With a `patience` in the recipe training may end before its last step, and
/// `parameters` are left as they were at the best validation.
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
    // the weights of the best validation, under early stopping only
    let (mut log, mut kept) = resume(parameters, &mut optimiser, context)?.unwrap_or_default();
    let mut order = examples::order(seed, data.count(), recipe.batch_size);
    let dropout_key = seed.counter_key("dropout");
    let gradients = Gradients::default();
    // our choice: a run loses at most a twentieth of its work
    let checkpoint_every = recipe.steps.div_ceil(20).max(10);

    let mut staging = Staging::new(parameters.device());
    // steps taken; the log knows of fewer until a GPU is asked what the last ones saw
    let mut step = log.steps;
    let mut started = Instant::now();

    while step < recipe.steps && !log.is_over(recipe) {
        if context.check_cancelled().is_err() {
            log.read(&mut optimiser, recipe, context, started)?;
            save(parameters, &optimiser, &kept, &log, context)?;
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
            let measured = validate().map_err(TrialError::failed)?;
            for (name, value) in &measured {
                log.point(name, seen, *value);
            }
            if recipe.patience.is_some() && log.improves(&measured, recipe)? {
                kept = copies(parameters).map_err(TrialError::failed)?;
            }
        }
        if checkpoint {
            save(parameters, &optimiser, &kept, &log, context)?;
        }
        started = Instant::now();
    }
    if log.best.is_some() {
        parameters.load(&kept).map_err(TrialError::failed)?;
    }
    Ok(log)
}

/// All parameters as they are now, on the CPU.
fn copies(parameters: &Parameters) -> candle_core::Result<Weights> {
    let all = parameters.all().into_iter();
    // a tensor on the CPU shares the parameter's memory until it is copied
    all.map(|(name, var)| Ok((name, var.as_tensor().to_device(&Device::Cpu)?.copy()?))).collect()
}

fn save(
    parameters: &Parameters,
    optimiser: &AdamW,
    kept: &Weights,
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
    tensors.extend(kept.iter().map(|(name, t)| (format!("best.{name}"), t.clone())));
    checkpoint::save(folder, log.steps, &tensors, log).map_err(|e| TrialError::Storage(Box::new(e)))
}

fn resume(
    parameters: &Parameters,
    optimiser: &mut AdamW,
    context: &TrialContext,
) -> Result<Option<(Log, Weights)>, TrialError> {
    let Some(folder) = &context.checkpoints else { return Ok(None) };
    let Some((tensors, log)) =
        checkpoint::load::<Log>(folder).map_err(|e| TrialError::Storage(Box::new(e)))?
    else {
        return Ok(None);
    };
    let under = |prefix: &str| -> Weights {
        tensors
            .iter()
            .filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_owned(), t.clone())))
            .collect()
    };
    parameters.load(&under("w.")).map_err(TrialError::failed)?;
    optimiser.restore(log.steps, &tensors).map_err(TrialError::failed)?;
    Ok(Some((log, under("best."))))
}
