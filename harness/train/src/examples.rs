//! What a model is trained on, and the order in which it is seen.

use candle_core::Result;
use rand::Rng;
use replica_core::Seed;
use replica_nn::Staging;

use crate::recipe::Recipe;

/// Numbered examples that can be put together to batches.
pub trait Examples {
    /// Some of them on the device.
    type Batch;

    /// What curves count of them.
    const UNIT: &'static str = "tokens";

    /// How many there are.
    fn count(&self) -> usize;

    /// How many of what curves count a training step sees.
    fn units_a_step(&self, recipe: &Recipe) -> u64 {
        recipe.tokens_a_step()
    }

    /// The given ones as a batch, without waiting for the device.
    ///
    /// # Errors
    /// A device failed.
    fn staged(&self, indices: &[usize], staging: &mut Staging) -> Result<Self::Batch>;
}

/// The examples of training step `step`: every epoch is a new permutation of all `count`, drawn from the seed's
/// `data-order` stream, so the order is a function of seed and step.
pub fn order(seed: Seed, count: usize, batch_size: usize) -> impl FnMut(u64) -> Vec<usize> {
    let mut current: Option<(u64, Vec<usize>)> = None;
    move |step| {
        let first = step * batch_size as u64;
        (first..first + batch_size as u64)
            .map(|position| {
                let (epoch, within) = (position / count as u64, position % count as u64);
                if current.as_ref().is_none_or(|(e, _)| *e != epoch) {
                    current = Some((epoch, permutation(count, seed, epoch)));
                }
                current.as_ref().map_or(0, |(_, order)| order[within as usize])
            })
            .collect()
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
        fn every_epoch_sees_every_example_once(n in 1usize..40, batch in 1usize..7, seed: u64) {
            let seen: Vec<usize> =
                (0..(2 * n).div_ceil(batch) as u64).flat_map(order(Seed(seed), n, batch)).collect();
            for epoch in seen.chunks_exact(n).take(2) {
                let mut sorted = epoch.to_vec();
                sorted.sort_unstable();
                prop_assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            }
            // any step can be asked for without the ones before it
            let step = seen.len() as u64 / batch as u64 / 2;
            prop_assert_eq!(order(Seed(seed), n, batch)(step), seen[step as usize * batch..][..batch].to_vec());
        }
    }
}
