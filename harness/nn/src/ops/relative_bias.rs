//! A learned bias for attention scores that depends on how far a key stands from its query (Raffel et al. 2020): buckets
//! `[t + s - 1]` of u32, one a distance; table `[buckets, heads]`; result `[heads, t, s]`.
//!
//! Kept for backward: the buckets. Each head's gradients add up in the order of the pairs, in one task.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::for_device;
use crate::real::Real;
use crate::storage::{buffer, slice, tensor};
use crate::tape::Value;

/// In place of a bucket: keys at this distance are out of reach.
pub const OUT_OF_REACH: u32 = u32::MAX;

/// What is added to the scores of keys out of reach.
const UNSEEN: f64 = -1e9;

impl Value {
    /// `y[h, i, j] = table[self[t - 1 - i + j], h]` for t queries: `self` holds the buckets of the distances between
    /// a key and a query as u32, from the first key and the last query on. [`OUT_OF_REACH`] hides keys.
    ///
    /// # Errors
    /// Fewer buckets than queries, or one that is not below the table's number of rows.
    pub fn relative_bias(&self, queries: usize, table: &Tensor) -> Result<Value> {
        let distances = self.tensor().dims1()?;
        if queries == 0 || distances < queries {
            bail!(
                "relative_bias: {distances} distances for {queries} queries; at least one a query is expected"
            );
        }
        for_device!(table, relative_bias(self, (queries, distances + 1 - queries), table))
    }
}

fn relative_bias<T: Real>(buckets: &Value, (t, s): (usize, usize), table: &Tensor) -> Result<Value> {
    let (rows, heads) = table.dims2()?;
    let buckets_of = slice::<u32, _>(buckets.tensor(), <[u32]>::to_vec)?;
    if let Some(bucket) = buckets_of.iter().find(|&&bucket| bucket as usize >= rows && bucket != OUT_OF_REACH)
    {
        bail!("relative_bias: bucket {bucket} for a table of {rows} rows");
    }
    let mut y = buffer::<T>(heads * t * s);
    slice::<T, _>(table, |table| {
        y.par_chunks_mut(t * s).enumerate().for_each(|(head, y)| {
            let of = |bucket: &u32| match *bucket {
                OUT_OF_REACH => T::from_f64(UNSEEN),
                bucket => table[bucket as usize * heads + head],
            };
            let by_distance: Vec<T> = buckets_of.iter().map(of).collect();
            for (i, y) in y.chunks_exact_mut(s).enumerate() {
                y.copy_from_slice(&by_distance[t - 1 - i..][..s]);
            }
        });
    })?;
    let y = tensor(y, (heads, t, s))?;
    let Some(tape) = Value::recording(&[buckets], &[table]) else { return Ok(buckets.unrecorded(y)) };
    let table = table.clone();
    Ok(tape.record(y, move |dy, flow| {
        slice::<T, _>(dy.tensor(), |dy| {
            let sums = |dy: &[T]| {
                let mut sums = vec![T::zero(); rows];
                for (i, dy) in dy.chunks_exact(s).enumerate() {
                    for (&bucket, dy) in buckets_of[t - 1 - i..].iter().zip(dy) {
                        if bucket != OUT_OF_REACH {
                            sums[bucket as usize] += *dy;
                        }
                    }
                }
                sums
            };
            let by_head: Vec<Vec<T>> = dy.par_chunks(t * s).map(sums).collect();
            flow.add_to_parameter::<T>(&table, |dw, fresh| {
                if fresh {
                    dw.fill(T::zero());
                }
                for (head, sums) in by_head.iter().enumerate() {
                    dw.iter_mut().skip(head).step_by(heads).zip(sums).for_each(|(w, sum)| *w += *sum);
                }
            })
        })?
    }))
}
