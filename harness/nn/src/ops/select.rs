//! One position of every sequence: `[batch, t, width]` to `[batch, width]`.
//!
//! Kept for backward: the positions.

use candle_core::{Result, bail};

use super::for_device;
use crate::real::Real;
use crate::storage::{slice, tensor};
use crate::tape::Value;

impl Value {
    /// `y[b] = x[b, positions[b]]`.
    ///
    /// # Errors
    /// Not one position a sequence, or one beyond its end.
    pub fn select_positions(&self, positions: &[usize]) -> Result<Value> {
        for_device!(self.tensor(), select(self, positions))
    }
}

fn select<T: Real>(x: &Value, positions: &[usize]) -> Result<Value> {
    let (batch, t, width) = x.tensor().dims3()?;
    if positions.len() != batch || positions.iter().any(|p| *p >= t) {
        bail!("select_positions: {positions:?} of [{batch}, {t}, {width}]");
    }
    let starts: Vec<usize> = positions.iter().enumerate().map(|(b, p)| (b * t + p) * width).collect();
    let y: Vec<T> = slice::<T, _>(x.tensor(), |x| {
        starts.iter().flat_map(|s| x[*s..*s + width].iter().copied()).collect()
    })?;
    let y = tensor(y, (batch, width))?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let (slot, shape) = (x.slot(), x.tensor().shape().clone());
    Ok(tape.record(y, move |dy, flow| {
        slice::<T, _>(dy.tensor(), |dy| {
            flow.add_to_slot::<T>(slot, &shape, |dx, fresh| {
                if fresh {
                    dx.fill(T::zero());
                }
                for (start, dy) in starts.iter().zip(dy.chunks_exact(width)) {
                    dx[*start..start + width].iter_mut().zip(dy).for_each(|(d, v)| *d += *v);
                }
            })
        })?
    }))
}
