//! A workload ready to take steps.

use std::path::Path;

use candle_core::{DType, Device};
use replica_nn::{Gradients, Parameters, Tape};
use replica_train::AdamW;
use replica_train::adamw::Outcome;

use crate::error::BenchError;
use crate::file;
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

    fn try_step(&mut self) -> candle_core::Result<f32> {
        let tape = Tape::new(&self.gradients);
        let loss = self.model.loss(&tape)?;
        tape.backward(&loss)?;
        self.optimiser.step(&self.gradients, self.workload.learning_rate(), loss.tensor())?;
        match self.optimiser.outcomes()?.pop() {
            Some(Outcome { loss, not_finite: None, .. }) => Ok(loss),
            Some(Outcome { gradient_norm, not_finite: Some(parameter), .. }) => {
                candle_core::bail!("the gradient of `{parameter}` is not finite (norm {gradient_norm})")
            }
            None => candle_core::bail!("the optimiser took no step"),
        }
    }
}
