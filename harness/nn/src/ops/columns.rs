//! Some columns of the last dimension: parts of a projection that are used apart.
//!
//! Kept for backward: nothing. The gradient goes into the input's own, next to that of the other parts.

use std::ops::Range;

use candle_core::{Result, Shape, bail};
use rayon::prelude::*;

use super::{ROWS, for_device};
use crate::real::Real;
use crate::storage::{buffer, slices, tensor};
use crate::tape::Value;

impl Value {
    /// The columns `range` of the last dimension.
    ///
    /// # Errors
    /// There are fewer columns, or the range is empty.
    pub fn columns(&self, range: Range<usize>) -> Result<Value> {
        for_device!(self.tensor(), columns(self, range))
    }
}

/// The shape of the columns, and the width they are taken from.
pub(super) fn part_of(shape: &Shape, range: &Range<usize>) -> Result<(Vec<usize>, usize)> {
    let mut dims = shape.dims().to_vec();
    match dims.last_mut() {
        Some(last) if !range.is_empty() && range.end <= *last => {
            let width = std::mem::replace(last, range.len());
            Ok((dims, width))
        }
        _ => bail!("columns: {range:?} of an input {dims:?}"),
    }
}

fn columns<T: Real>(x: &Value, range: Range<usize>) -> Result<Value> {
    let shape = x.tensor().shape().clone();
    let (dims, width) = part_of(&shape, &range)?;
    let part = range.len();
    let mut y = buffer::<T>(shape.elem_count() / width * part);
    slices::<T, _, 1>([x.tensor()], |[x]| {
        y.par_chunks_mut(ROWS * part).zip(x.par_chunks(ROWS * width)).for_each(|(y, x)| {
            for (y, x) in y.chunks_exact_mut(part).zip(x.chunks_exact(width)) {
                y.copy_from_slice(&x[range.clone()]);
            }
        });
    })?;
    let y = tensor(y, dims)?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let slot = x.slot();
    Ok(tape.record(y, move |dy, flow| {
        slices::<T, _, 1>([dy.tensor()], |[dy]| {
            flow.add_to_slot::<T>(slot, &shape, |dx, fresh| {
                dx.par_chunks_mut(ROWS * width).zip(dy.par_chunks(ROWS * part)).for_each(|(dx, dy)| {
                    for (dx, dy) in dx.chunks_exact_mut(width).zip(dy.chunks_exact(part)) {
                        if fresh {
                            dx.fill(T::zero());
                        }
                        dx[range.clone()].iter_mut().zip(dy).for_each(|(dx, dy)| *dx += *dy);
                    }
                });
            })
        })?
    }))
}
