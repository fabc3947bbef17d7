//! Windows over time: pieces of a sequence, with some of what comes before and after each, as sequences of their own, so
//! that attention within them is local and takes time linear in the length.
//!
//! Kept for backward: nothing. A step that lies in several windows gets the sum of its gradients, in their order.

use std::ops::Range;

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::for_device;
use crate::real::Real;
use crate::storage::{buffer, slices, tensor};
use crate::tape::Value;

impl Value {
    /// Windows `[batch * pieces, before + length + after, width]` of `self` `[batch, l, width]`: one around each of the
    /// `pieces = ceil(l / length)` pieces of a sequence, with zeros where it has no steps.
    ///
    /// # Errors
    /// A length of 0, or another number of dimensions.
    pub fn windows(&self, length: usize, before: usize, after: usize) -> Result<Value> {
        let (batch, l, width) = self.tensor().dims3()?;
        if length == 0 || batch * l * width == 0 {
            bail!("windows: pieces of {length} steps of [{batch}, {l}, {width}]; none may be 0");
        }
        let size = Size { batch, l, width, length, before, after };
        for_device!(self.tensor(), windows(self, size))
    }

    /// The sequences `[batch, l, width]` that the windows `self` `[batch * pieces, length, width]` are the pieces of.
    ///
    /// # Errors
    /// `l` steps do not make that many pieces.
    pub fn joined(&self, batch: usize, l: usize) -> Result<Value> {
        let (rows, length, width) = self.tensor().dims3()?;
        let size = Size { batch, l, width, length, before: 0, after: 0 };
        if length == 0 || batch * l * width == 0 || rows != batch * size.pieces() {
            bail!("joined: [{rows}, {length}, {width}] is not {batch} sequences of {l} steps");
        }
        for_device!(self.tensor(), joined(self, size))
    }
}

/// The mask `[batch * pieces, before + length + after]` of the steps that windows of `[batch, l, ..]` really have; none
/// if they have all.
///
/// # Errors
/// A device failed.
pub(crate) fn window_mask(
    (batch, l): (usize, usize),
    (length, before, after): (usize, usize, usize),
    device: &Device,
) -> Result<Option<Tensor>> {
    let size = Size { batch, l, width: 1, length, before, after };
    if before + after == 0 && l.is_multiple_of(length) {
        return Ok(None);
    }
    let mut mask = vec![0u8; batch * size.pieces() * size.steps()];
    for (row, mask) in mask.chunks_exact_mut(size.steps()).enumerate() {
        let (steps, place) = size.seen(row % size.pieces());
        mask[place..place + steps.len()].fill(1);
    }
    Tensor::from_vec(mask, (batch * size.pieces(), size.steps()), device).map(Some)
}

/// The sizes of one call.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) batch: usize,
    pub(crate) l: usize,
    pub(crate) width: usize,
    pub(crate) length: usize,
    pub(crate) before: usize,
    pub(crate) after: usize,
}

impl Size {
    pub(crate) fn pieces(self) -> usize {
        self.l.div_ceil(self.length)
    }

    /// Steps of a window.
    pub(crate) fn steps(self) -> usize {
        self.before + self.length + self.after
    }

    pub(crate) fn of_windows(self) -> [usize; 3] {
        [self.batch * self.pieces(), self.steps(), self.width]
    }

    pub(crate) fn of_sequences(self) -> [usize; 3] {
        [self.batch, self.l, self.width]
    }

    /// The steps of the sequence that window `i` of it has, and the place of the first in the window.
    pub(crate) fn seen(self, i: usize) -> (Range<usize>, usize) {
        let start = i * self.length;
        let first = start.saturating_sub(self.before);
        let end = self.l.min(start + self.length + self.after);
        (first..end, self.before + first - start)
    }

    /// As [`Size::seen`], in elements.
    fn elements(self, i: usize) -> (Range<usize>, usize) {
        let (steps, place) = self.seen(i);
        (steps.start * self.width..steps.end * self.width, place * self.width)
    }
}

/// Copies sequences into windows.
fn cut<T: Real>(x: &[T], y: &mut [T], size: Size) {
    let (sequence, window) = (size.l * size.width, size.steps() * size.width);
    y.par_chunks_mut(window).enumerate().for_each(|(row, y)| {
        let (from, to) = size.elements(row % size.pieces());
        let x = &x[row / size.pieces() * sequence..][from];
        y[..to].fill(T::zero());
        y[to..to + x.len()].copy_from_slice(x);
        y[to + x.len()..].fill(T::zero());
    });
}

/// Adds windows up to sequences, or assigns the sums.
fn add_up<T: Real>(y: &[T], x: &mut [T], assign: bool, size: Size) {
    let (sequence, window) = (size.l * size.width, size.steps() * size.width);
    x.par_chunks_mut(sequence).zip(y.par_chunks(size.pieces() * window)).for_each(|(x, y)| {
        if assign {
            x.fill(T::zero());
        }
        for (i, y) in y.chunks_exact(window).enumerate() {
            let (to, from) = size.elements(i);
            x[to].iter_mut().zip(&y[from..]).for_each(|(x, y)| *x += *y);
        }
    });
}

fn windows<T: Real>(x: &Value, size: Size) -> Result<Value> {
    let shape = x.tensor().shape().clone();
    let mut y = buffer::<T>(size.of_windows().iter().product());
    slices::<T, _, 1>([x.tensor()], |[x]| cut(x, &mut y, size))?;
    let y = tensor(y, size.of_windows().to_vec())?;
    let Some(tape) = Value::recording(&[x], &[]) else { return Ok(x.unrecorded(y)) };
    let slot = x.slot();
    Ok(tape.record(y, move |dy, flow| {
        slices::<T, _, 1>([dy.tensor()], |[dy]| {
            flow.add_to_slot::<T>(slot, &shape, |dx, fresh| add_up(dy, dx, fresh, size))
        })?
    }))
}

fn joined<T: Real>(y: &Value, size: Size) -> Result<Value> {
    let shape = y.tensor().shape().clone();
    let mut x = buffer::<T>(size.of_sequences().iter().product());
    slices::<T, _, 1>([y.tensor()], |[y]| add_up(y, &mut x, true, size))?;
    let x = tensor(x, size.of_sequences().to_vec())?;
    let Some(tape) = Value::recording(&[y], &[]) else { return Ok(y.unrecorded(x)) };
    let slot = y.slot();
    Ok(tape.record(x, move |dx, flow| {
        slices::<T, _, 1>([dx.tensor()], |[dx]| {
            flow.add_to_slot::<T>(slot, &shape, |dy, fresh| {
                if fresh {
                    cut(dx, dy, size);
                } else {
                    let window = size.steps() * size.width;
                    for (row, dy) in dy.chunks_exact_mut(window).enumerate() {
                        let (from, to) = size.elements(row % size.pieces());
                        let dx = &dx[row / size.pieces() * size.l * size.width..][from];
                        dy[to..].iter_mut().zip(dx).for_each(|(dy, dx)| *dy += *dx);
                    }
                }
            })
        })?
    }))
}
