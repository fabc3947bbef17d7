//! What is trained.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder};
use rand::Rng;
use replica_core::Seed;
use replica_nn::{Parameters, Tape, Value};
use replica_train::adamw::Options;

use crate::product::Product;
use crate::workloads;

/// A model, its data and its cost: one training step that both sides can take.
pub trait Workload: Sync {
    /// What it is asked for by.
    fn name(&self) -> &'static str;

    /// Model and sizes in a line.
    fn about(&self) -> String;

    /// Whether it runs only when it is named, because it takes a machine of another class.
    fn on_request(&self) -> bool {
        false
    }

    /// File of its PyTorch twin in `ci/bench/`.
    fn twin(&self) -> &'static str;

    /// What the twin needs to know to build the same model, as JSON.
    fn config(&self) -> serde_json::Value;

    /// The batch, the same in every step, by name. Types are those PyTorch wants: i64 for ids and labels.
    ///
    /// # Errors
    /// A device failed.
    fn data(&self) -> Result<HashMap<String, Tensor>>;

    /// The model with its batch.
    ///
    /// # Errors
    /// Parameters of other shapes, or data that is missing.
    fn model(&self, vb: VarBuilder, data: &HashMap<String, Tensor>) -> Result<Box<dyn Model>>;

    /// Tokens (or time steps) a training step works on.
    fn tokens(&self) -> usize;

    /// Floating-point operations of a training step that the mathematics cannot do without: matrix products
    /// of the forward pass and the two of each in the backward pass, causal attention by the pairs that see
    /// each other. What an implementation computes again to save memory is not counted. Workloads without
    /// matrix products say what they count.
    fn flops(&self) -> f64;

    /// The matrix product that most of them are in, if there are matrix products.
    fn dominating(&self) -> Option<Product>;

    /// How the parameters are updated: AdamW of Brown et al. 2020, without clipping.
    fn optimiser(&self) -> Options {
        Options {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            clip_norm: f64::INFINITY,
            groups: Vec::new(),
        }
    }

    /// Learning rate of every step.
    fn learning_rate(&self) -> f64 {
        3e-4
    }
}

/// A model that has its batch.
pub trait Model {
    /// A forward pass recorded on `tape`: the loss.
    ///
    /// # Errors
    /// An operation refused its input.
    fn forward(&self, tape: &Tape) -> Result<Value>;

    /// For a single layer: the forward pass gives its output instead, and the loss is the mean of the output times
    /// this.
    fn cotangent(&self) -> Option<&Tensor> {
        None
    }
}

/// All workloads, in the order of the table.
pub fn all() -> Vec<Box<dyn Workload>> {
    workloads::all()
}

/// The tensor `name` of a workload's file.
///
/// # Errors
/// There is none.
pub(crate) fn take(data: &HashMap<String, Tensor>, name: &str) -> Result<Tensor> {
    match data.get(name) {
        Some(tensor) => Ok(tensor.clone()),
        None => candle_core::bail!("the file has no data `{name}`"),
    }
}

/// Numbers from N(0, 1), of the stream `name`.
pub(crate) fn draw_normal(name: &str, shape: impl Into<Shape>) -> Result<Tensor> {
    let parameters = Parameters::new(Seed(0), DType::F32, &Device::Cpu);
    let init = Init::Randn { mean: 0.0, stdev: 1.0 };
    parameters.builder().pp("bench").get_with_hints(shape.into(), name, init)?.copy()
}

/// `n` whole numbers below `below` from the stream `name`: the data of all workloads is drawn from seed 0.
pub(crate) fn draw(name: &str, n: usize, below: usize) -> Vec<i64> {
    let mut rng = Seed(0).named_stream("bench", name);
    // the bias of a 64-bit remainder is below below / 2^64
    (0..n).map(|_| (rng.next_u64() % below as u64) as i64).collect()
}
