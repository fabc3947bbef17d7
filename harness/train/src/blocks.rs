//! A token stream cut into blocks, and the order in which they are seen.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use rand::Rng;
use replica_core::Seed;
use replica_nn::Staging;
use replica_nn::ops::IGNORE;

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

    /// As [`Blocks::batch`], without waiting for the device.
    ///
    /// # Errors
    /// A device failed.
    pub fn staged(&self, indices: &[usize], staging: &mut Staging) -> Result<Batch> {
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

    /// The blocks of training step `step`: every epoch is a new permutation of all blocks, drawn from the
    /// seed's `data-order` stream, so the order is a function of seed and step.
    pub fn order(&self, seed: Seed, batch_size: usize) -> impl FnMut(u64) -> Vec<usize> + '_ {
        let mut current: Option<(u64, Vec<usize>)> = None;
        move |step| {
            let first = step * batch_size as u64;
            (first..first + batch_size as u64)
                .map(|position| {
                    let (epoch, within) = (position / self.len() as u64, position % self.len() as u64);
                    if current.as_ref().is_none_or(|(e, _)| *e != epoch) {
                        current = Some((epoch, permutation(self.len(), seed, epoch)));
                    }
                    current.as_ref().map_or(0, |(_, order)| order[within as usize])
                })
                .collect()
        }
    }
}

/// Fisher and Yates.
fn permutation(n: usize, seed: Seed, epoch: u64) -> Vec<usize> {
    let mut rng = seed.named_stream("data-order", &epoch.to_string());
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        // the bias of a 64-bit remainder is below n / 2^64
        order.swap(i, (rng.next_u64() % (i as u64 + 1)) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_epoch_sees_every_block_once(n in 1usize..40, batch in 1usize..7, seed: u64) {
            let blocks = Blocks::new((0..n as u32 * 3 + 2).collect::<Vec<_>>(), 3);
            prop_assert_eq!(blocks.len(), n);
            let mut order = blocks.order(Seed(seed), batch);
            let seen: Vec<usize> = (0..(2 * n).div_ceil(batch) as u64).flat_map(&mut order).collect();
            for epoch in seen.chunks_exact(n).take(2) {
                let mut sorted = epoch.to_vec();
                sorted.sort_unstable();
                prop_assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            }
            // any step can be asked for without the ones before it
            let step = seen.len() as u64 / batch as u64 / 2;
            prop_assert_eq!(blocks.order(Seed(seed), batch)(step), seen[step as usize * batch..][..batch].to_vec());
        }
    }

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
