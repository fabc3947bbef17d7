//! Rotary position embedding (Su et al. 2021), half-split layout (GPT-NeoX, LLaMA): the pair (i, i + d/2) of
//! a head turns by the angle `position * base^(-2 i / d)`.
//!
//! Kept for backward: nothing but the table; the gradient turns by the opposite angle.

use std::sync::Arc;

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::for_device;
use crate::real::Real;
use crate::simd::vectorised;
use crate::storage::{buffer, slice, tensor};
use crate::tape::{Grad, Value};

/// Cosines and sines of all positions, computed in double precision.
#[derive(Clone)]
pub struct RopeTable {
    head_dim: usize,
    /// `[positions, head_dim / 2]` each.
    cos: Arc<Vec<f64>>,
    sin: Arc<Vec<f64>>,
    #[cfg(feature = "cuda")]
    device: super::cuda::Table,
}

impl RopeTable {
    /// Angles of positions `0..positions` for heads of `head_dim`.
    ///
    /// # Errors
    /// `head_dim` is odd.
    pub fn new(head_dim: usize, positions: usize, base: f64) -> Result<Self> {
        if !head_dim.is_multiple_of(2) {
            bail!("rotary positions need an even head_dim, got {head_dim}");
        }
        let half = head_dim / 2;
        let angle = |i: usize| (i / half) as f64 * base.powf(-2.0 * (i % half) as f64 / head_dim as f64);
        let angles: Vec<f64> = (0..positions * half).map(angle).collect();
        Ok(Self {
            head_dim,
            cos: Arc::new(angles.iter().map(|a| a.cos()).collect()),
            sin: Arc::new(angles.iter().map(|a| a.sin()).collect()),
            #[cfg(feature = "cuda")]
            device: super::cuda::Table::default(),
        })
    }

    /// Cosines and sines of one position, each `[head_dim / 2]`.
    pub fn row(&self, position: usize) -> (&[f64], &[f64]) {
        let half = self.head_dim / 2;
        (&self.cos[position * half..][..half], &self.sin[position * half..][..half])
    }

    /// That the table fits an input `[batch, t, width]` from position `start`.
    pub(crate) fn check(&self, batch: usize, t: usize, width: usize, start: usize) -> Result<()> {
        let half = self.head_dim / 2;
        if half == 0 || width % self.head_dim != 0 || (start + t) * half > self.cos.len() {
            bail!(
                "rope: input [{batch}, {t}, {width}] from position {start} for heads of {} and {} positions",
                self.head_dim,
                self.cos.len() / half.max(1)
            );
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Calls `f` with the place for copies on devices, all cosines and all sines.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_device<R>(&self, f: impl FnOnce(&super::cuda::Table, &[f64], &[f64]) -> R) -> R {
        f(&self.device, &self.cos, &self.sin)
    }
}

impl Value {
    /// Turns every head of `self` `[batch, t, heads * head_dim]`; row j of the sequence has position `start + j`.
    ///
    /// # Errors
    /// The width is no multiple of the table's head_dim, or a position lies beyond the table.
    pub fn rope(&self, table: &RopeTable, start: usize) -> Result<Value> {
        for_device!(self.tensor(), rope(self, table, start))
    }
}

fn rope<T: Real>(x: &Value, table: &RopeTable, start: usize) -> Result<Value> {
    let (batch, t, width) = x.tensor().dims3()?;
    table.check(batch, t, width, start)?;
    let half = table.head_dim / 2;
    let window = start * half..(start + t) * half;
    let number = |v: &f64| T::from_f64(*v);
    let cos: Arc<Vec<T>> = Arc::new(table.cos[window.clone()].iter().map(number).collect());
    let sin: Arc<Vec<T>> = Arc::new(table.sin[window].iter().map(number).collect());
    let y = slice::<T, _>(x.tensor(), |x| turn(x, &cos, &sin, (t, width, half), T::one()))?;
    let y = tensor(y, x.tensor().shape())?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let slot = x.slot();
    Ok(tape.record(y, move |dy, flow| {
        let dx =
            slice::<T, _>(dy.tensor(), |dy| turn(dy, &cos, &sin, (t, width, half), T::zero() - T::one()))?;
        flow.send_to_slot::<T>(slot, Grad::new(tensor(dx, dy.tensor().shape())?))
    }))
}

/// Turns by `sign` times the angle.
fn turn<T: Real>(x: &[T], cos: &[T], sin: &[T], (t, width, half): (usize, usize, usize), sign: T) -> Vec<T> {
    let mut y = buffer::<T>(x.len());
    y.par_chunks_mut(t * width).zip(x.par_chunks(t * width)).for_each(|(y, x)| {
        vectorised(
            #[inline(always)]
            || {
                for (j, (y, x)) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).enumerate() {
                    let (c, s) = (&cos[j * half..][..half], &sin[j * half..][..half]);
                    for (y, x) in y.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
                        let ((y1, y2), (x1, x2)) = (y.split_at_mut(half), x.split_at(half));
                        for i in 0..half {
                            y1[i] = x1[i] * c[i] - sign * x2[i] * s[i];
                            y2[i] = x2[i] * c[i] + sign * x1[i] * s[i];
                        }
                    }
                }
            },
        );
    });
    y
}
