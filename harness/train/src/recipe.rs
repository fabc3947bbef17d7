//! The hyper-parameters of a training run.

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

/// The number format a model computes with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision everywhere.
    #[default]
    F32,
    /// bfloat16 for weights and activations of a model on a GPU; what is trained, sums, losses and gradients of
    /// parameters stay in single precision.
    Bf16,
}

impl Precision {
    fn is_single(&self) -> bool {
        *self == Self::F32
    }

    /// The tensors' type on a device.
    ///
    /// # Errors
    /// The CPU has no kernels for bfloat16.
    pub fn on(self, device: &Device) -> Result<DType, String> {
        match (self, device.is_cuda()) {
            (Self::F32, _) => Ok(DType::F32),
            (Self::Bf16, true) => Ok(DType::BF16),
            (Self::Bf16, false) => Err("dtype = \"bf16\" is computed on GPUs only; use --device cuda, or a \
                                        configuration with dtype = \"f32\""
                .to_owned()),
        }
    }
}

/// How a model is trained. Every value is part of a trial's identity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Number format the model computes with; single precision if nothing is said.
    #[serde(default, skip_serializing_if = "Precision::is_single")]
    pub dtype: Precision,
    /// Optimiser steps.
    pub steps: u64,
    /// Sequences a step.
    pub batch_size: usize,
    /// Tokens a sequence.
    pub seq_len: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// AdamW's decay of the first moment.
    pub beta1: f64,
    /// AdamW's decay of the second moment.
    pub beta2: f64,
    /// AdamW's epsilon.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global gradient norm; larger gradients are scaled down to it.
    pub clip_norm: f64,
    /// Steps between validations; there is always one at the end.
    pub eval_every: u64,
    /// Blocks of each evaluation set that are used, evenly spread; 0 for all.
    pub eval_blocks: usize,
}

impl Recipe {
    /// What makes no sense, as "key = value: what is allowed".
    pub fn problem(&self) -> Option<String> {
        let positive =
            [("learning_rate", self.learning_rate), ("eps", self.eps), ("clip_norm", self.clip_norm)];
        if let Some((key, value)) = positive.into_iter().find(|(_, v)| !(v.is_finite() && *v > 0.0)) {
            return Some(format!("{key} = {value}: a finite number above 0 is expected"));
        }
        let fractions = [("beta1", self.beta1), ("beta2", self.beta2)];
        if let Some((key, value)) = fractions.into_iter().find(|(_, v)| !(0.0..1.0).contains(v)) {
            return Some(format!("{key} = {value}: a number in [0, 1) is expected"));
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return Some(format!(
                "weight_decay = {}: a finite number, 0 or more, is expected",
                self.weight_decay
            ));
        }
        let counts =
            [("steps", self.steps), ("batch_size", self.batch_size as u64), ("eval_every", self.eval_every)];
        if let Some((key, _)) = counts.into_iter().find(|(_, v)| *v == 0) {
            return Some(format!("{key} = 0: at least 1 is expected"));
        }
        if self.seq_len < 2 {
            return Some(format!(
                "seq_len = {}: at least 2 is expected, one token to predict the next",
                self.seq_len
            ));
        }
        if self.warmup_steps > self.steps {
            return Some(format!(
                "warmup_steps = {}: at most steps = {} is expected",
                self.warmup_steps, self.steps
            ));
        }
        None
    }

    /// Tokens a step.
    pub fn tokens_a_step(&self) -> u64 {
        (self.batch_size * self.seq_len) as u64
    }

    /// Tokens in all steps together.
    pub fn tokens(&self) -> u64 {
        self.steps * self.tokens_a_step()
    }
}
