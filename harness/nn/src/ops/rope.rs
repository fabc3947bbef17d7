//! Rotary position embedding (Su et al. 2021), half-split layout (GPT-NeoX, LLaMA): the pair (i, i + d/2) of
//! a head turns by the angle `position * base^(-2 i / d)`.
//!
//! Kept for backward: nothing but the table; the gradient turns by the opposite angle.

use std::sync::Arc;

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::for_device;
use crate::real::Real;
use crate::simd::{elementwise, vectorised};
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

    /// That positions `start..start + len` exist for heads of `head_dim`.
    pub(crate) fn check(&self, start: usize, len: usize, head_dim: usize) -> Result<()> {
        let half = self.head_dim / 2;
        let positions = self.cos.len() / half.max(1);
        if half == 0 || head_dim != self.head_dim || start + len > positions {
            let wanted = format!("{len} positions from {start} for heads of {head_dim}");
            bail!("rope: {wanted}, the table has {positions} for heads of {}", self.head_dim);
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

    /// Angles of positions `start..start + len` for heads of `head_dim`.
    pub(crate) fn window<T: Real>(&self, start: usize, len: usize, head_dim: usize) -> Result<Angles<T>> {
        self.check(start, len, head_dim)?;
        let half = self.head_dim / 2;
        let numbers =
            |v: &[f64]| v[start * half..(start + len) * half].iter().map(|v| T::from_f64(*v)).collect();
        Ok(Angles { half, cos: numbers(&self.cos), sin: numbers(&self.sin) })
    }
}

/// Cosines and sines `[positions, head_dim / 2]` of a range of positions.
pub(crate) struct Angles<T> {
    half: usize,
    cos: Vec<T>,
    sin: Vec<T>,
}

impl<T: Real> Angles<T> {
    /// `to` is the head `from`, turned by `sign` times the angles of `position`.
    #[inline(always)]
    pub(crate) fn turn(&self, to: &mut [T], from: &[T], position: usize, sign: T) {
        let half = self.half;
        let (cos, sin) = (&self.cos[position * half..][..half], &self.sin[position * half..][..half]);
        let ((y1, y2), (x1, x2)) = (to.split_at_mut(half), from.split_at(half));
        elementwise([y1, y2], [x1, x2, cos, sin], |_, [x1, x2, cos, sin]| {
            let sin = sign * sin;
            [x1 * cos - x2 * sin, x2 * cos + x1 * sin]
        });
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
    let (_, t, width) = x.tensor().dims3()?;
    if table.head_dim == 0 || width % table.head_dim != 0 {
        bail!("rope: width {width} is no multiple of the table's head_dim {}", table.head_dim);
    }
    let angles = Arc::new(table.window::<T>(start, t, table.head_dim)?);
    let y = slice::<T, _>(x.tensor(), |x| turn(x, &angles, (t, width), T::one()))?;
    let y = tensor(y, x.tensor().shape())?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let slot = x.slot();
    Ok(tape.record(y, move |dy, flow| {
        let dx = slice::<T, _>(dy.tensor(), |dy| turn(dy, &angles, (t, width), T::zero() - T::one()))?;
        flow.send_to_slot::<T>(slot, Grad::new(tensor(dx, dy.tensor().shape())?))
    }))
}

/// Turns every head by `sign` times the angle of its row.
fn turn<T: Real>(x: &[T], angles: &Angles<T>, (t, width): (usize, usize), sign: T) -> Vec<T> {
    let mut y = buffer::<T>(x.len());
    let d = 2 * angles.half;
    y.par_chunks_mut(t * width).zip(x.par_chunks(t * width)).for_each(|(y, x)| {
        vectorised(
            #[inline(always)]
            || {
                for (j, (y, x)) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).enumerate() {
                    for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                        angles.turn(y, x, j, sign);
                    }
                }
            },
        );
    });
    y
}
