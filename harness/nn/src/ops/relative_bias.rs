//! A learned bias for attention scores that depends on where key and query stand (Raffel et al. 2020): buckets
//! `[t, s]` of u32, table `[buckets, heads]`, result `[heads, t, s]`.
//!
//! Kept for backward: the buckets. Each head's gradients add up in the order of the pairs, in one task.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::for_device;
use crate::real::Real;
use crate::storage::{buffer, slice, tensor};
use crate::tape::Value;

impl Value {
    /// `y[h, i, j] = table[self[i, j], h]`; `self` holds the buckets as u32.
    ///
    /// # Errors
    /// A bucket is not below the table's number of rows.
    pub fn relative_bias(&self, table: &Tensor) -> Result<Value> {
        for_device!(table, relative_bias(self, table))
    }
}

fn relative_bias<T: Real>(buckets: &Value, table: &Tensor) -> Result<Value> {
    let (t, s) = buckets.tensor().dims2()?;
    let (rows, heads) = table.dims2()?;
    let indices: Vec<u32> = slice::<u32, _>(buckets.tensor(), <[u32]>::to_vec)?;
    if let Some(bucket) = indices.iter().find(|&&bucket| bucket as usize >= rows) {
        bail!("relative_bias: bucket {bucket} for a table of {rows} rows");
    }
    let pairs = (t * s).max(1);
    let mut y = buffer::<T>(heads * t * s);
    slice::<T, _>(table, |table| {
        y.par_chunks_mut(pairs).enumerate().for_each(|(head, y)| {
            y.iter_mut().zip(&indices).for_each(|(y, &bucket)| *y = table[bucket as usize * heads + head]);
        });
    })?;
    let y = tensor(y, (heads, t, s))?;
    let Some(tape) = Value::recording(&[buckets], &[table]) else { return Ok(buckets.unrecorded(y)) };
    let table = table.clone();
    Ok(tape.record(y, move |dy, flow| {
        slice::<T, _>(dy.tensor(), |dy| {
            let sums = |dy: &[T]| {
                let mut sums = vec![T::zero(); rows];
                dy.iter().zip(&indices).for_each(|(dy, &bucket)| sums[bucket as usize] += *dy);
                sums
            };
            let by_head: Vec<Vec<T>> = dy.par_chunks(pairs).map(sums).collect();
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
