//! A token stream cut into blocks.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use replica_nn::Staging;
use replica_nn::ops::IGNORE;

use crate::examples::Examples;

/// Token blocks of equal length. Clones share the tokens.
#[derive(Clone, Debug)]
pub struct Blocks {
    tokens: Arc<[u32]>,
    seq_len: usize,
}

/// Sequences of one step.
pub struct Batch {
    /// Token ids `[batch, seq_len]`, u32.
    pub ids: Tensor,
    /// The id that follows each one within its block, i64; the last position of a block is ignored.
    pub labels: Tensor,
}

impl Blocks {
    /// Consecutive blocks of `seq_len`; a shorter rest is left out.
    pub fn new(tokens: impl Into<Arc<[u32]>>, seq_len: usize) -> Self {
        Self { tokens: tokens.into(), seq_len }
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.tokens.len() / self.seq_len
    }

    /// Whether the stream was shorter than a block.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens a block.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// At most `limit` blocks, evenly spread over the stream; all of them for 0.
    pub fn spread(&self, limit: usize) -> Self {
        if limit == 0 || limit >= self.len() {
            return self.clone();
        }
        let picked = (0..limit).map(|i| i * self.len() / limit);
        let tokens: Vec<u32> = picked.flat_map(|b| self.block(b).iter().copied()).collect();
        Self::new(tokens, self.seq_len)
    }

    fn block(&self, index: usize) -> &[u32] {
        &self.tokens[index * self.seq_len..][..self.seq_len]
    }

    /// Given blocks as a batch.
    ///
    /// # Errors
    /// A device failed.
    pub fn batch(&self, indices: &[usize], device: &Device) -> Result<Batch> {
        self.staged(indices, &mut Staging::new(device))
    }
}

impl Examples for Blocks {
    type Batch = Batch;

    fn count(&self) -> usize {
        self.len()
    }

    fn staged(&self, indices: &[usize], staging: &mut Staging) -> Result<Batch> {
        let shape = (indices.len(), self.seq_len);
        let ids: Vec<u32> = indices.iter().flat_map(|&b| self.block(b).iter().copied()).collect();
        let next = |block: &[u32]| {
            let mut labels: Vec<i64> = block[1..].iter().map(|&id| i64::from(id)).collect();
            labels.push(IGNORE);
            labels
        };
        let labels: Vec<i64> = indices.iter().flat_map(|&b| next(self.block(b))).collect();
        Ok(Batch { ids: staging.send(ids, shape)?, labels: staging.send(labels, shape)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_the_next_ids_within_the_block() {
        let blocks = Blocks::new(vec![1, 2, 3, 4, 5, 6, 7], 3);
        let batch = blocks.batch(&[1, 0], &Device::Cpu).unwrap();
        assert_eq!(batch.ids.to_vec2::<u32>().unwrap(), [[4, 5, 6], [1, 2, 3]]);
        assert_eq!(batch.labels.to_vec2::<i64>().unwrap(), [[5, 6, IGNORE], [2, 3, IGNORE]]);
    }

    #[test]
    fn spread_covers_the_stream() {
        let blocks = Blocks::new((0..20).collect::<Vec<_>>(), 2);
        assert_eq!(*blocks.spread(5).tokens, [0, 1, 4, 5, 8, 9, 12, 13, 16, 17]);
        assert_eq!(blocks.spread(0).len(), 10);
        assert_eq!(blocks.spread(99).len(), 10);
    }
}
