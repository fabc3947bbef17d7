//! `[batch, a, b]` to `[batch, b, a]`: between time-major and channel-major sequences.
//!
//! Kept for backward: nothing.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::for_device;
use crate::real::Real;
use crate::simd::vectorised;
use crate::storage::{buffer, slices, tensor};
use crate::tape::{Grad, Value};

/// Columns a task moves.
const COLUMNS: usize = 32;
/// Side of the squares that are moved at a time: what registers hold, and as few pages as lines.
const SIDE: usize = 8;

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
            y.par_chunks_mut(COLUMNS * rows).enumerate().for_each(|(block, y)| {
                vectorised(
                    #[inline(always)]
                    || columns(y, &x[block * COLUMNS..], rows, cols),
                );
            });
        });
    })?;
    tensor(y, (batch, cols, rows))
}

/// As rows of `y` the first columns of `x`, whose rows lie `stride` apart; as many as there is room for.
#[inline(always)]
fn columns<T: Real>(y: &mut [T], x: &[T], rows: usize, stride: usize) {
    let cols = y.len() / rows;
    for row in (0..rows).step_by(SIDE) {
        for col in (0..cols).step_by(SIDE) {
            let (height, width) = (SIDE.min(rows - row), SIDE.min(cols - col));
            if (height, width) == (SIDE, SIDE) {
                let mut square = [[T::zero(); SIDE]; SIDE];
                for (i, line) in square.iter_mut().enumerate() {
                    line.copy_from_slice(&x[(row + i) * stride + col..][..SIDE]);
                }
                for j in 0..SIDE {
                    let line: [T; SIDE] = std::array::from_fn(|i| square[i][j]);
                    y[(col + j) * rows + row..][..SIDE].copy_from_slice(&line);
                }
            } else {
                for j in col..col + width {
                    let y = &mut y[j * rows + row..][..height];
                    y.iter_mut().zip(row..).for_each(|(y, i)| *y = x[i * stride + j]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use candle_core::Device;

    use super::*;

    /// Less than a square, squares with and without a rest, several tasks.
    #[test]
    fn it_is_candles_transpose() {
        let sides = [1, 7, 8, 17, 40, 67];
        for (rows, cols) in sides.iter().flat_map(|rows| sides.map(|cols| (*rows, cols))) {
            let x = Tensor::arange(0f32, (2 * rows * cols) as f32, &Device::Cpu).unwrap();
            let x = x.reshape((2, rows, cols)).unwrap();
            let expected = x.transpose(1, 2).unwrap().to_vec3::<f32>().unwrap();
            assert_eq!(swapped::<f32>(&x).unwrap().to_vec3::<f32>().unwrap(), expected, "{rows} x {cols}");
        }
    }
}
