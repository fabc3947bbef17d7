//! The hyper-parameters of a training run.

use candle_core::{DType, Device};
use replica_core::plan::Tuning;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

use crate::adamw::{Group, Options};

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
    /// Parts a step's batch is cut into, one after the other, to need less memory; their gradients add up. The loss is
    /// the mean of the parts' means.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub micro_batches: usize,
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
    /// Parameters with a learning rate or a decay of their own; the first group that names one counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<ParameterGroup>,
    /// Steps between validations; there is always one at the end.
    pub eval_every: u64,
    /// Early stopping: validations without a smaller `valid_loss` after which training ends. With it the weights of the
    /// best validation are what is left, however training ends; without it, those of the last step. The schedule of
    /// the learning rate is that of all `steps` either way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<u64>,
    /// Blocks of each evaluation set that are used, evenly spread; 0 for all.
    pub eval_blocks: usize,
}

/// Parameters that are trained differently from the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParameterGroup {
    /// Parts between the dots of their names, e.g. `bias` or `A_imag`. A name no parameter has is no error: hosts of one
    /// comparison have different parameters.
    pub parameters: Vec<String>,
    /// Peak learning rate, if not the recipe's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Decoupled weight decay, if not the recipe's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
}

fn one() -> usize {
    1
}

fn is_one(n: &usize) -> bool {
    *n == 1
}

impl Recipe {
    /// The optimiser's part.
    pub fn optimiser(&self) -> Options {
        let group = |group: &ParameterGroup| Group {
            parameters: group.parameters.clone(),
            relative_rate: group.learning_rate.map_or(1.0, |rate| rate / self.learning_rate),
            weight_decay: group.weight_decay.unwrap_or(self.weight_decay),
        };
        Options {
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            weight_decay: self.weight_decay,
            clip_norm: self.clip_norm,
            groups: self.groups.iter().map(group).collect(),
        }
    }

    /// What makes no sense, as "key = value: what is allowed".
    pub fn problem(&self) -> Option<String> {
        let own_rates = self.groups.iter().filter_map(|g| Some(("groups.learning_rate", g.learning_rate?)));
        let positive =
            [("learning_rate", self.learning_rate), ("eps", self.eps), ("clip_norm", self.clip_norm)];
        if let Some((key, value)) =
            positive.into_iter().chain(own_rates).find(|(_, v)| !(v.is_finite() && *v > 0.0))
        {
            return Some(format!("{key} = {value}: a finite number above 0 is expected"));
        }
        let fractions = [("beta1", self.beta1), ("beta2", self.beta2)];
        if let Some((key, value)) = fractions.into_iter().find(|(_, v)| !(0.0..1.0).contains(v)) {
            return Some(format!("{key} = {value}: a number in [0, 1) is expected"));
        }
        let own_decays = self.groups.iter().filter_map(|g| Some(("groups.weight_decay", g.weight_decay?)));
        let mut decays = std::iter::once(("weight_decay", self.weight_decay)).chain(own_decays);
        if let Some((key, value)) = decays.find(|(_, v)| !(v.is_finite() && *v >= 0.0)) {
            return Some(format!("{key} = {value}: a finite number, 0 or more, is expected"));
        }
        let counts = [
            ("steps", self.steps),
            ("batch_size", self.batch_size as u64),
            ("eval_every", self.eval_every),
            ("patience", self.patience.unwrap_or(1)),
        ];
        if let Some((key, _)) = counts.into_iter().find(|(_, v)| *v == 0) {
            return Some(format!("{key} = 0: at least 1 is expected"));
        }
        if self.micro_batches == 0 || !self.batch_size.is_multiple_of(self.micro_batches) {
            return Some(format!(
                "micro_batches = {}: a divisor of batch_size = {} is expected",
                self.micro_batches, self.batch_size
            ));
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

/// The search for a learning rate that every variant of a comparison gets.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Search {
    /// Rates tried.
    pub learning_rates: Vec<f64>,
    /// Seeds of the tuning trials.
    pub seeds: Vec<u64>,
    /// Steps of a tuning trial, if fewer than the recipe's; the schedule is that of a run of this length.
    pub steps: Option<u64>,
}

impl Search {
    /// The search as part of an experiment whose trials follow `recipe`, judged by `valid_loss`.
    ///
    /// # Errors
    /// What makes no sense, with the key and what is allowed.
    pub fn tuning(&self, recipe: &Recipe) -> Result<Tuning, String> {
        if let Some(rate) = self.learning_rates.iter().find(|r| !(r.is_finite() && **r > 0.0)) {
            return Err(format!("tuning: learning_rates has {rate}; finite numbers above 0 are expected"));
        }
        let mut overrides = Map::new();
        if let Some(steps) = self.steps {
            if steps == 0 || steps > recipe.steps {
                return Err(format!(
                    "tuning: steps = {steps}; 1 to the recipe's {} is expected",
                    recipe.steps
                ));
            }
            // the same share of warm-up
            overrides.insert("steps".to_owned(), json!(steps));
            overrides.insert("warmup_steps".to_owned(), json!(recipe.warmup_steps * steps / recipe.steps));
        }
        Ok(Tuning {
            parameter: "learning_rate".to_owned(),
            values: self.learning_rates.clone(),
            seeds: self.seeds.clone(),
            metric: "valid_loss".to_owned(),
            overrides,
        })
    }
}
