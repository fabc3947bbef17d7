//! Gated linear unit (Dauphin et al. 2017): the first half of the last dimension times the sigmoid of the second.
//!
//! Kept for backward: the input.

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::activation::sigmoid;
use super::{ROWS, for_device};
use crate::real::Real;
use crate::simd::vectorised;
use crate::storage::{buffer, slices, tensor};
use crate::tape::{Grad, Value};

impl Value {
    /// `x[.., ..n] * sigmoid(x[.., n..])` for a last dimension of 2 n, as `nn.GLU`.
    ///
    /// # Errors
    /// The last dimension is odd.
    pub fn glu(&self) -> Result<Value> {
        for_device!(self.tensor(), glu(self))
    }
}

fn glu<T: Real>(x: &Value) -> Result<Value> {
    let mut dims = x.tensor().dims().to_vec();
    let width = match dims.last_mut() {
        Some(last) if *last > 0 && last.is_multiple_of(2) => {
            *last /= 2;
            *last
        }
        _ => bail!("glu: the last dimension of {:?} must be even", x.tensor().dims()),
    };
    let mut y = buffer::<T>(x.tensor().elem_count() / 2);
    let rows = ROWS * width;
    slices::<T, _, 1>([x.tensor()], |[x]| {
        y.par_chunks_mut(rows).zip(x.par_chunks(2 * rows)).for_each(|(y, x)| {
            vectorised(
                #[inline(always)]
                || {
                    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(2 * width)) {
                        let (value, gate) = x.split_at(width);
                        y.iter_mut().zip(value).zip(gate).for_each(|((y, v), g)| *y = *v * sigmoid(*g));
                    }
                },
            );
        });
    })?;
    let y = tensor(y, dims)?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let (slot, x) = (x.slot(), x.tensor().clone());
    Ok(tape.record(y, move |dy, flow| {
        let mut dx = buffer::<T>(x.elem_count());
        slices::<T, _, 2>([&x, dy.tensor()], |[x, dy]| {
            let inputs = x.par_chunks(2 * rows).zip(dy.par_chunks(rows));
            dx.par_chunks_mut(2 * rows).zip(inputs).for_each(|(dx, (x, dy))| {
                vectorised(
                    #[inline(always)]
                    || {
                        let rows = dx.chunks_exact_mut(2 * width).zip(x.chunks_exact(2 * width));
                        for ((dx, x), dy) in rows.zip(dy.chunks_exact(width)) {
                            let ((dv, dg), (value, gate)) = (dx.split_at_mut(width), x.split_at(width));
                            for i in 0..width {
                                let s = sigmoid(gate[i]);
                                dv[i] = dy[i] * s;
                                dg[i] = dv[i] * value[i] * (T::one() - s);
                            }
                        }
                    },
                );
            });
        })?;
        flow.send_to_slot::<T>(slot, Grad::new(tensor(dx, x.shape())?))
    }))
}
