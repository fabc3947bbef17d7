//! Mean squared error against given numbers, as a scalar.
//!
//! Kept for backward: the differences.

use candle_core::{Result, Tensor, bail};

use super::for_device;
use crate::real::Real;
use crate::storage::{slice, tensor};
use crate::tape::Value;

impl Value {
    /// Mean of (self - targets)^2 over all elements; `targets` has as many, in the same order.
    ///
    /// # Errors
    /// The numbers of elements differ.
    pub fn mean_squared_error(&self, targets: &Tensor) -> Result<Value> {
        for_device!(self.tensor(), mean_squared_error(self, targets))
    }
}

fn mean_squared_error<T: Real>(x: &Value, targets: &Tensor) -> Result<Value> {
    if x.tensor().elem_count() != targets.elem_count() {
        bail!("mean_squared_error: {:?} against {:?}", x.tensor().shape(), targets.shape());
    }
    let differences: Vec<T> = slice::<T, _>(x.tensor(), |x| {
        slice::<T, _>(targets, |y| x.iter().zip(y).map(|(x, y)| *x - *y).collect())
    })??;
    let n = T::of(differences.len());
    let total = differences.iter().map(|d| d.to_f64() * d.to_f64()).sum::<f64>();
    let loss = tensor(vec![T::from_f64(total / differences.len() as f64)], ())?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(loss)) };
    let (slot, shape) = (x.slot(), x.tensor().shape().clone());
    Ok(tape.record(loss, move |dy, flow| {
        let scale = T::of(2) * dy.tensor().to_scalar::<T>()? / n;
        flow.add_to_slot::<T>(slot, &shape, |dx, fresh| {
            for (d, difference) in dx.iter_mut().zip(&differences) {
                *d = if fresh { *difference * scale } else { difference.mul_add(scale, *d) };
            }
        })
    }))
}
