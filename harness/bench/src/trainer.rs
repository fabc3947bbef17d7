//! A workload ready to take steps.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use replica_nn::{Gradients, Parameters, Tape, slice};
use replica_train::AdamW;
use replica_train::adamw::Outcome;

use crate::clock::Clock;
use crate::error::BenchError;
use crate::file;
use crate::twin::Turn;
use crate::workload::{Model, Workload};

/// Model, gradients and optimiser of a workload.
pub struct Trainer<'a> {
    workload: &'a dyn Workload,
    model: Box<dyn Model>,
    gradients: Gradients,
    optimiser: AdamW,
}

impl<'a> Trainer<'a> {
    /// Starts from a file that [`file::write`] has written.
    ///
    /// # Errors
    /// The file cannot be read, or belongs to another workload.
    pub fn load(workload: &'a dyn Workload, path: &Path) -> Result<Self, BenchError> {
        let engine = BenchError::engine(workload.name());
        let (weights, data) = file::read(path)?;
        let parameters = Parameters::from_tensors(weights, DType::F32, &Device::Cpu).map_err(&engine)?;
        let model = workload.model(parameters.builder(), &data).map_err(&engine)?;
        let optimiser = AdamW::new(&parameters, workload.optimiser()).map_err(&engine)?;
        Ok(Self { workload, model, gradients: Gradients::default(), optimiser })
    }

    /// One training step: forward, backward, update. Returns the loss before the update.
    ///
    /// # Errors
    /// An operation failed, or a gradient is not finite.
    pub fn step(&mut self) -> Result<f32, BenchError> {
        self.try_step().map_err(BenchError::engine(self.workload.name()))
    }

    /// `steps` of them, timed.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn turn(&mut self, steps: usize) -> Result<Turn, BenchError> {
        let mut turn = Turn::default();
        for _ in 0..steps {
            let clock = Clock::start();
            let loss = self.step()?;
            let (seconds, cpu_seconds) = clock.seconds();
            turn.losses.push(loss.into());
            turn.seconds.push(seconds);
            turn.cpu_seconds.push(cpu_seconds);
        }
        Ok(turn)
    }

    fn try_step(&mut self) -> candle_core::Result<f32> {
        let tape = Tape::new(&self.gradients);
        let y = self.model.forward(&tape)?;
        let loss = match self.model.cotangent() {
            None => {
                tape.backward(&y)?;
                y.tensor().clone()
            }
            Some(cotangent) => {
                let count = cotangent.elem_count() as f64;
                let loss = dot(y.tensor(), cotangent)? / count;
                tape.backward_from(&y, (cotangent / count)?)?;
                Tensor::new(loss as f32, y.tensor().device())?
            }
        };
        self.optimiser.step(&self.gradients, self.workload.learning_rate(), &loss)?;
        match self.optimiser.outcomes()?.pop() {
            Some(Outcome { loss, not_finite: None, .. }) => Ok(loss),
            Some(Outcome { gradient_norm, not_finite: Some(parameter), .. }) => {
                candle_core::bail!("the gradient of `{parameter}` is not finite (norm {gradient_norm})")
            }
            None => candle_core::bail!("the optimiser took no step"),
        }
    }
}

/// Sum of the products of paired elements.
fn dot(x: &Tensor, y: &Tensor) -> candle_core::Result<f64> {
    const CHUNK: usize = 16 * 1024;
    slice::<f32, _>(x, |x| {
        slice::<f32, _>(y, |y| {
            let product = |(x, y): (&[f32], &[f32])| {
                x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>()
            };
            let parts: Vec<f64> = x.par_chunks(CHUNK).zip(y.par_chunks(CHUNK)).map(product).collect();
            parts.iter().sum()
        })
    })?
}
