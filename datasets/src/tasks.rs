//! Classification of sequences: the tasks of the Long Range Arena, and small ones that are always here.
//!
//! A [`TaskSpec`] is what a config says; [`TaskSpec::load`] generates the task, or reads it from verified files.
//! Whatever its kind, a [`SequenceTask`] is three splits of sequences with a class each:
//!
//! ```
//! use replica_datasets::{Inputs, Sources, TaskSpec, tasks::ListOps};
//!
//! let spec = TaskSpec::ListOps(ListOps { train: 100, valid: 10, test: 10, ..ListOps::mini() });
//! let task = spec.load(&Sources::offline("nowhere"))?;
//! let batch = task.train.batch(&[3, 1], None);
//! assert_eq!((batch.rows, batch.labels.len()), (2, 2));
//! let Inputs::Tokens(ids) = &batch.inputs else { unreachable!() };
//! assert_eq!(ids.len(), batch.rows * batch.width);
//! # Ok::<(), replica_datasets::Error>(())
//! ```

mod bytes;
mod files;
pub mod images;
mod listops;
mod papers;
pub mod pathfinder;
mod reviews;
pub mod scripture;
mod sequences;
mod spec;

pub use images::{Cifar10Jpeg, Digits, MnistTest};
pub use listops::ListOps;
pub use papers::Aan;
pub use pathfinder::Pathfinder;
pub use reviews::Imdb;
pub use scripture::{SameChapter, Testament, WordOrder};
pub use sequences::{Batch, Coding, Inputs, SequenceTask, Sequences};
pub use spec::TaskSpec;

/// The grammar of ListOps: reading, evaluating and writing its expressions.
pub mod expressions {
    pub use super::listops::{VOCABULARY, ids, read, value, write};
}

use rand::Rng;

/// A number below `n`, with a bias of less than n / 2^32.
///
/// Written here and not taken from a library, as published digests depend on it.
fn below(rng: &mut (impl Rng + ?Sized), n: u32) -> u32 {
    ((u64::from(rng.next_u32()) * u64::from(n)) >> 32) as u32
}

/// A random order of the numbers below `n`.
fn shuffled(rng: &mut (impl Rng + ?Sized), n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for last in (1..n).rev() {
        order.swap(last, below(rng, last as u32 + 1) as usize);
    }
    order
}

/// The longest sequence of any split.
fn longest(splits: [&Sequences; 3]) -> usize {
    splits.map(Sequences::max_len).into_iter().max().unwrap_or(0)
}
