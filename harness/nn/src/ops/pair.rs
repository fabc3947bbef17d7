//! What two documents have in common, as a classifier sees it: `[2 n, width]` to `[n, 4 width]`.
//!
//! Kept for backward: the documents.

use candle_core::{Result, Tensor, bail};

use super::for_device;
use crate::real::Real;
use crate::storage::{buffer, slices, tensor};
use crate::tape::Value;

impl Value {
    /// With a the first half of the rows and b the second: rows `[a, b, a - b, a b]` (the Long Range Arena's
    /// retrieval).
    ///
    /// # Errors
    /// Not two dimensions, or an odd number of rows.
    pub fn pair_features(&self) -> Result<Value> {
        for_device!(self.tensor(), pair_features(self))
    }
}

/// Pairs and width.
pub(super) fn check_pairs(x: &Tensor) -> Result<(usize, usize)> {
    let (rows, width) = x.dims2()?;
    if !rows.is_multiple_of(2) || rows == 0 {
        bail!("pair_features: {rows} rows; an even number is expected, first documents before second ones");
    }
    Ok((rows / 2, width))
}

fn pair_features<T: Real>(x: &Value) -> Result<Value> {
    let (pairs, width) = check_pairs(x.tensor())?;
    let half = pairs * width;
    let mut y = buffer::<T>(4 * half);
    slices::<T, _, 1>([x.tensor()], |[x]| {
        let (a, b) = x.split_at(half);
        for ((y, a), b) in y.chunks_exact_mut(4 * width).zip(a.chunks_exact(width)).zip(b.chunks_exact(width))
        {
            y[..width].copy_from_slice(a);
            y[width..2 * width].copy_from_slice(b);
            for i in 0..width {
                y[2 * width + i] = a[i] - b[i];
                y[3 * width + i] = a[i] * b[i];
            }
        }
    })?;
    let y = tensor(y, (pairs, 4 * width))?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let (slot, x) = (x.slot(), x.tensor().clone());
    Ok(tape.record(y, move |dy, flow| {
        slices::<T, _, 2>([&x, dy.tensor()], |[x, dy]| {
            let (a, b) = x.split_at(half);
            flow.add_to_slot::<T>(slot, &(2 * pairs, width).into(), |dx, fresh| {
                if fresh {
                    dx.fill(T::zero());
                }
                let (da, db) = dx.split_at_mut(half);
                for (row, dy) in dy.chunks_exact(4 * width).enumerate() {
                    for i in 0..width {
                        let at = row * width + i;
                        let (difference, product) = (dy[2 * width + i], dy[3 * width + i]);
                        da[at] += dy[i] + difference + product * b[at];
                        db[at] += dy[width + i] - difference + product * a[at];
                    }
                }
            })
        })?
    }))
}
