//! Sum of all elements, as a scalar.
//!
//! Kept for backward: nothing but the shape.

use candle_core::Result;
use rayon::prelude::*;

use super::for_device;
use crate::real::Real;
use crate::simd;
use crate::storage::{slice, tensor};
use crate::tape::{CHUNK, Value};

impl Value {
    /// Sum of all elements, of shape `[]`.
    ///
    /// # Errors
    /// A device failed.
    pub fn sum(&self) -> Result<Value> {
        for_device!(self.tensor(), sum(self))
    }
}

fn sum<T: Real>(x: &Value) -> Result<Value> {
    let total = slice::<T, _>(x.tensor(), |x| {
        let parts: Vec<T> = x.par_chunks(CHUNK).map(|part| simd::sum(part)).collect();
        parts.into_iter().fold(T::zero(), |a, b| a + b)
    })?;
    let y = tensor(vec![total], ())?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let (slot, shape) = (x.slot(), x.tensor().shape().clone());
    Ok(tape.record(y, move |dy, flow| {
        let g = dy.tensor().to_scalar::<T>()?;
        flow.add_to_slot::<T>(slot, &shape, |dx, fresh| {
            dx.iter_mut().for_each(|d| *d = if fresh { g } else { *d + g });
        })
    }))
}
