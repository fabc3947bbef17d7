//! `x + y`, elementwise, and `x + table[start..start + t]`, broadcast over the batch (learned positions).
//!
//! Kept for backward: nothing. The gradient of a sum goes to both sides without a copy.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::for_device;
use crate::real::Real;
use crate::simd::vectorised;
use crate::storage::{buffer, slice, tensor};
use crate::tape::{CHUNK, Value};

impl Value {
    /// `self + other`, of the same shape.
    ///
    /// # Errors
    /// The shapes differ.
    pub fn add(&self, other: &Value) -> Result<Value> {
        for_device!(self.tensor(), add(self, other))
    }

    /// `self[b, t, :] + table[t, :]` for `self` `[b, t, width]` and `table` `[>= t, width]`.
    ///
    /// # Errors
    /// The sequence is longer than the table, or the widths differ.
    pub fn add_positions(&self, table: &Tensor) -> Result<Value> {
        self.add_positions_from(table, 0)
    }

    /// `self[b, t, :] + table[start + t, :]`: the sequence follows `start` tokens that were seen before.
    ///
    /// # Errors
    /// As [`Value::add_positions`].
    pub fn add_positions_from(&self, table: &Tensor, start: usize) -> Result<Value> {
        for_device!(self.tensor(), add_positions_from(self, table, start))
    }
}

fn add<T: Real>(a: &Value, b: &Value) -> Result<Value> {
    if a.tensor().shape() != b.tensor().shape() {
        bail!("add: {:?} and {:?}", a.tensor().shape(), b.tensor().shape());
    }
    let mut y = buffer::<T>(a.tensor().elem_count());
    slice::<T, _>(a.tensor(), |a| {
        slice::<T, _>(b.tensor(), |b| {
            y.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK)).zip(b.par_chunks(CHUNK)).for_each(
                |((y, a), b)| {
                    vectorised(
                        #[inline(always)]
                        || y.iter_mut().zip(a).zip(b).for_each(|((y, a), b)| *y = *a + *b),
                    );
                },
            );
        })
    })??;
    let y = tensor(y, a.tensor().shape())?;
    let Some(tape) = Value::recording(&[a, b], &[]) else { return Ok(a.unrecorded(y)) };
    let (a, b) = (a.slot(), b.slot());
    Ok(tape.record(y, move |dy, flow| {
        flow.send_to_slot::<T>(a, dy.clone())?;
        flow.send_to_slot::<T>(b, dy)
    }))
}

/// Batch, steps and width of a sequence whose positions are in the table.
pub(super) fn sizes(x: &Tensor, table: &Tensor, start: usize) -> Result<(usize, usize, usize)> {
    let (batch, t, width) = x.dims3()?;
    let (rows, table_width) = table.dims2()?;
    if start + t > rows || width != table_width {
        let input = format!("input [{batch}, {t}, {width}] from position {start}");
        bail!("add_positions: {input} for a table [{rows}, {table_width}]");
    }
    Ok((batch, t, width))
}

fn add_positions_from<T: Real>(x: &Value, table: &Tensor, start: usize) -> Result<Value> {
    let (batch, t, width) = sizes(x.tensor(), table, start)?;
    let (first, len) = (start * width, t * width);
    let mut y = buffer::<T>(batch * len);
    slice::<T, _>(x.tensor(), |x| {
        slice::<T, _>(table, |p| {
            y.par_chunks_mut(len).zip(x.par_chunks(len)).for_each(|(y, x)| {
                vectorised(
                    #[inline(always)]
                    || y.iter_mut().zip(x).zip(&p[first..][..len]).for_each(|((y, x), p)| *y = *x + *p),
                );
            });
        })
    })??;
    let y = tensor(y, x.tensor().shape())?;
    let Some(tape) = Value::recording(&[x], &[table]) else { return Ok(x.unrecorded(y)) };
    let (slot, table) = (x.slot(), table.clone());
    Ok(tape.record(y, move |dy, flow| {
        slice::<T, _>(dy.tensor(), |dy| {
            flow.add_to_parameter::<T>(&table, |dp, fresh| {
                if fresh {
                    dp.fill(T::zero());
                }
                dp[first..][..len].par_chunks_mut(CHUNK).enumerate().for_each(|(i, dp)| {
                    for row in dy.chunks_exact(len) {
                        let row = &row[i * CHUNK..][..dp.len()];
                        vectorised(
                            #[inline(always)]
                            || dp.iter_mut().zip(row).for_each(|(p, v)| *p += *v),
                        );
                    }
                });
            })
        })??;
        flow.send_to_slot::<T>(slot, dy)
    }))
}
