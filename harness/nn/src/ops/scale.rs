//! A constant factor: `y = c x`.
//!
//! Kept for backward: the factor.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::for_device;
use crate::real::Real;
use crate::simd::vectorised;
use crate::storage::{buffer, slice, tensor};
use crate::tape::{CHUNK, Grad, Value};

impl Value {
    /// `factor * self`.
    ///
    /// # Errors
    /// A device failed.
    pub fn scale(&self, factor: f64) -> Result<Value> {
        for_device!(self.tensor(), scale(self, factor))
    }
}

fn scale<T: Real>(x: &Value, factor: f64) -> Result<Value> {
    let times = move |x: &Tensor| {
        let (factor, mut y) = (T::from_f64(factor), buffer::<T>(x.elem_count()));
        slice::<T, _>(x, |x| {
            y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
                vectorised(
                    #[inline(always)]
                    || y.iter_mut().zip(x).for_each(|(y, x)| *y = factor * *x),
                );
            });
        })?;
        tensor(y, x.shape())
    };
    let y = times(x.tensor())?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let slot = x.slot();
    Ok(tape.record(y, move |dy, flow| flow.send_to_slot::<T>(slot, Grad::new(times(dy.tensor())?))))
}
