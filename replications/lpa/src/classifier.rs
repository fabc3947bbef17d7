//! Fine-tuning on sequence classification (`LPAForSequenceClassification`, setting 2).

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use replica_nn::{Linear, Value, init};

use crate::model::ModelConfig;
use crate::setting2::Decoder;

/// Decoder `LPA` with a head `classifier` on one position of the sequence.
pub struct SequenceClassifier {
    decoder: Decoder,
    head: Linear,
    pad_id: u32,
    num_labels: usize,
}

impl SequenceClassifier {
    /// Parameters under the authors' names.
    ///
    /// # Errors
    /// The builder has other shapes under these names.
    pub fn new(config: &ModelConfig, num_labels: usize, pad_id: u32, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            decoder: Decoder::new(config, vb.pp("LPA"))?,
            head: Linear::new(config.hidden_size, num_labels, true, init::linear, vb.pp("classifier"))?,
            pad_id,
            num_labels,
        })
    }

    /// The position a sequence is read at: the one before the first pad; the last one if there is no pad, or
    /// if the pad comes first (left padding).
    pub fn pooled_position(&self, ids: &[u32]) -> usize {
        match ids.iter().position(|id| *id == self.pad_id) {
            None | Some(0) => ids.len() - 1,
            Some(first_pad) => first_pad - 1,
        }
    }

    /// Logits `[batch, num_labels]` of ids `[batch, t]`.
    ///
    /// # Errors
    /// As [`Decoder::forward`].
    pub fn logits(&self, ids: &Value) -> Result<Value> {
        let positions: Vec<usize> =
            ids.tensor().to_vec2::<u32>()?.iter().map(|row| self.pooled_position(row)).collect();
        self.head.forward(&self.decoder.forward(ids, None)?.select_positions(&positions)?)
    }

    /// Cross-entropy against class labels (i64), or for one label the mean squared error against numbers.
    ///
    /// # Errors
    /// As [`SequenceClassifier::logits`].
    pub fn loss(&self, ids: &Value, labels: &Tensor) -> Result<Value> {
        let logits = self.logits(ids)?;
        if self.num_labels == 1 { logits.mean_squared_error(labels) } else { logits.cross_entropy(labels) }
    }
}
