//! Rows of a table by index: ids `[..]` of u32, table `[vocab, width]`, result `[.., width]`.
//!
//! Kept for backward: the ids. Equal ids add up in the order of their positions; tasks split the columns,
//! so the order does not depend on the number of threads.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::{ROWS, for_device};
use crate::real::Real;
use crate::storage::{SharedMut, buffer, slice, tensor};
use crate::tape::Value;

impl Value {
    /// `table[ids]`; `self` holds the ids as u32.
    ///
    /// # Errors
    /// An id is not below the table's number of rows.
    pub fn embedding(&self, table: &Tensor) -> Result<Value> {
        for_device!(table, embedding(self, table))
    }
}

/// Columns a task of the backward pass works on.
const COLUMNS: usize = 64;

fn embedding<T: Real>(ids: &Value, table: &Tensor) -> Result<Value> {
    let (vocab, width) = table.dims2()?;
    let indices: Vec<u32> = slice::<u32, _>(ids.tensor(), <[u32]>::to_vec)?;
    if let Some(id) = indices.iter().find(|&&id| id as usize >= vocab) {
        bail!("embedding: id {id} for a table of {vocab} rows");
    }
    let mut y = buffer::<T>(indices.len() * width);
    slice::<T, _>(table, |table| {
        y.par_chunks_mut(ROWS * width).zip(indices.par_chunks(ROWS)).for_each(|(y, ids)| {
            for (y, &id) in y.chunks_exact_mut(width).zip(ids) {
                y.copy_from_slice(&table[id as usize * width..][..width]);
            }
        });
    })?;
    let mut dims = ids.tensor().dims().to_vec();
    dims.push(width);
    let y = tensor(y, dims)?;
    let Some(tape) = Value::recording(&[ids], &[table]) else { return Ok(ids.unrecorded(y)) };
    let table = table.clone();
    Ok(tape.record(y, move |dy, flow| {
        slice::<T, _>(dy.tensor(), |dy| {
            flow.add_to_parameter::<T>(&table, |dw, fresh| {
                if fresh {
                    dw.par_chunks_mut(ROWS * width).for_each(|rows| rows.fill(T::zero()));
                }
                let dw = SharedMut::new(dw);
                (0..width.div_ceil(COLUMNS)).into_par_iter().for_each(|task| {
                    let (start, end) = (task * COLUMNS, ((task + 1) * COLUMNS).min(width));
                    for (row, &id) in dy.chunks_exact(width).zip(&indices) {
                        // SAFETY: ids are below vocab as checked above, and this task alone writes these columns.
                        let target = unsafe {
                            std::slice::from_raw_parts_mut(
                                dw.ptr().add(id as usize * width + start),
                                end - start,
                            )
                        };
                        target.iter_mut().zip(&row[start..end]).for_each(|(t, v)| *t += *v);
                    }
                });
            })
        })?
    }))
}
