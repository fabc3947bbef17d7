//! Perplexity of a language model on blocks.

use candle_core::{Device, Result, Tensor};
use replica_nn::{Staging, Value};

use crate::blocks::Blocks;
use crate::examples::Examples;

/// Mean negative log-likelihood over all predicted positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// Nats a token.
    pub mean_nll: f64,
}

impl Perplexity {
    /// exp(mean negative log-likelihood).
    pub fn perplexity(self) -> f64 {
        self.mean_nll.exp()
    }

    /// Bits a byte, for text with that many bytes a token: comparable across tokenizers.
    pub fn bits_per_byte(self, bytes_per_token: f64) -> f64 {
        self.mean_nll / std::f64::consts::LN_2 / bytes_per_token
    }

    /// The mean over batches of equal blocks, weighted by the number of blocks of each: what Hugging Face's
    /// Trainer reports.
    pub fn of_batches(batches: impl IntoIterator<Item = (f64, usize)>) -> Self {
        let (total, blocks) =
            batches.into_iter().fold((0.0, 0), |(t, n), (mean, len)| (t + mean * len as f64, n + len));
        Self { mean_nll: total / blocks as f64 }
    }
}

/// Evaluates on all blocks, each for itself: the first token of a block is not predicted, no context is
/// carried over. `loss(ids, labels)` is the mean over a batch's predicted positions.
///
/// # Errors
/// The model failed.
pub fn evaluate(
    blocks: &Blocks,
    batch_size: usize,
    device: &Device,
    loss: impl Fn(&Value, &Tensor) -> Result<Value>,
) -> Result<Perplexity> {
    let indices: Vec<usize> = (0..blocks.len()).collect();
    let mut staging = Staging::new(device);
    let mut means = Vec::new();
    for indices in indices.chunks(batch_size) {
        let batch = blocks.staged(indices, &mut staging)?;
        means.push((loss(&Value::from(batch.ids), &batch.labels)?.tensor().clone(), indices.len()));
    }
    // read at the end, so that a GPU never waits for the next batch
    let read = |(mean, len): (Tensor, usize)| Ok((f64::from(mean.to_scalar::<f32>()?), len));
    Ok(Perplexity::of_batches(means.into_iter().map(read).collect::<Result<Vec<_>>>()?))
}
