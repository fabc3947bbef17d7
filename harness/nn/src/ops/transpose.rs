//! `[batch, a, b]` to `[batch, b, a]`: between time-major and channel-major sequences.
//!
//! Kept for backward: nothing.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::for_device;
use crate::real::Real;
use crate::storage::{buffer, slices, tensor};
use crate::tape::{Grad, Value};

/// Side of the squares that are moved at a time: a few pages on either side.
const SIDE: usize = 32;

impl Value {
    /// Swaps the last two of three dimensions.
    ///
    /// # Errors
    /// There are not three.
    pub fn transpose(&self) -> Result<Value> {
        for_device!(self.tensor(), transpose(self))
    }
}

fn transpose<T: Real>(x: &Value) -> Result<Value> {
    let y = swapped::<T>(x.tensor())?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let slot = x.slot();
    Ok(tape.record(y, move |dy, flow| flow.send_to_slot::<T>(slot, Grad::new(swapped::<T>(dy.tensor())?))))
}

fn swapped<T: Real>(x: &Tensor) -> Result<Tensor> {
    let (batch, rows, cols) = x.dims3()?;
    let mut y = buffer::<T>(batch * rows * cols);
    slices::<T, _, 1>([x], |[x]| {
        let matrices = y.par_chunks_mut((rows * cols).max(1)).zip(x.par_chunks((rows * cols).max(1)));
        matrices.for_each(|(y, x)| {
            y.par_chunks_mut(SIDE * rows).enumerate().for_each(|(block, y)| {
                for row in (0..rows).step_by(SIDE) {
                    for (i, y) in y.chunks_exact_mut(rows).enumerate() {
                        let column = block * SIDE + i;
                        let y = &mut y[row..rows.min(row + SIDE)];
                        y.iter_mut().zip(row..).for_each(|(y, r)| *y = x[r * cols + column]);
                    }
                }
            });
        });
    })?;
    tensor(y, (batch, cols, rows))
}
