//! The selective scan of Mamba (Gu and Dao 2023): for every channel d and mode n,
//! `h_t = exp(step_t A) h_(t-1) + step_t B_t u_t` and `y_t = sum over n of C_t h_t + D u_t`, where
//! `step = softplus(delta + bias)` and `A = -exp(a_log)`; u and delta `[batch, l, d]`, B and C `[batch, l, n]`; O(l).
//!
//! Kept for backward: the inputs, and the state before every 32nd step; the states in between are computed again,
//! 32 steps of 16 channels at a time, which fits the cache. The whole of them would be 2 n times the input.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::activation::sigmoid;
use super::for_device;
use super::linear::add_partial;
use crate::real::Real;
use crate::simd::{sum, vectorised};
use crate::storage::{SharedMut, buffer, slices, tensor};
use crate::tape::{Grad, Value};

/// Channels that are worked on together.
const LANES: usize = 16;
/// Steps between kept states.
const CHUNK: usize = 32;
/// Blocks of channels whose shares of dB and dC are summed in one task.
const BLOCKS: usize = 8;

type Lanes<T> = [T; LANES];

/// The weights of a selective scan over d channels with n modes each.
#[derive(Clone)]
pub struct SelectiveScan {
    /// `[d, n]`; A is `-exp(a_log)`.
    pub a_log: Tensor,
    /// D `[d]`; 0 if absent.
    pub skip: Option<Tensor>,
    /// `[d]`, added to delta; 0 if absent.
    pub delta_bias: Option<Tensor>,
    /// Whether the step is `softplus(delta + bias)`, as in Mamba, or `delta + bias` itself.
    pub softplus: bool,
}

impl Value {
    /// The scan of `self` `[batch, l, d]` with `delta` `[batch, l, d]`, `b` and `c` `[batch, l, n]`.
    ///
    /// # Errors
    /// Shapes that do not fit each other; on a GPU more than 16 modes.
    pub fn selective_scan(
        &self,
        delta: &Value,
        b: &Value,
        c: &Value,
        weights: &SelectiveScan,
    ) -> Result<Value> {
        for_device!(self.tensor(), selective_scan([self, delta, b, c], weights))
    }
}

/// The sizes of one call.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub(super) batch: usize,
    pub(super) l: usize,
    pub(super) d: usize,
    pub(super) n: usize,
    softplus: bool,
}

impl Size {
    pub(super) fn of([u, delta, b, c]: [&Tensor; 4], weights: &SelectiveScan) -> Result<Self> {
        let (batch, l, d) = u.dims3()?;
        let (_, n) = weights.a_log.dims2()?;
        let per_channel = |w: &Option<Tensor>| w.as_ref().is_none_or(|w| w.dims() == [d]);
        let fits = delta.dims() == u.dims()
            && b.dims() == [batch, l, n]
            && c.dims() == [batch, l, n]
            && weights.a_log.dims() == [d, n]
            && per_channel(&weights.skip)
            && per_channel(&weights.delta_bias);
        if !fits || batch * l * d * n == 0 {
            let (a, delta, b, c) = (weights.a_log.dims(), delta.dims(), b.dims(), c.dims());
            bail!(
                "selective_scan: u [{batch}, {l}, {d}], delta {delta:?}, B {b:?}, C {c:?}, A {a:?}; expected delta like \
                 u, B and C [{batch}, {l}, n], A [{d}, n], skip and bias [{d}]"
            );
        }
        Ok(Self { batch, l, d, n, softplus: weights.softplus })
    }

    fn blocks(self) -> usize {
        self.d.div_ceil(LANES)
    }

    fn groups(self) -> usize {
        self.blocks().div_ceil(BLOCKS)
    }

    fn chunks(self) -> usize {
        self.l.div_ceil(CHUNK)
    }
}

/// The weights of all blocks, padded to whole blocks.
struct Weights<T> {
    /// `[blocks, n]`, negative.
    a: Vec<Lanes<T>>,
    skip: Vec<Lanes<T>>,
    bias: Vec<Lanes<T>>,
}

impl<T: Real> Weights<T> {
    fn new(weights: &SelectiveScan, size: Size) -> Result<Self> {
        let zero = [T::zero(); LANES];
        let per_channel = |weight: &Option<Tensor>| -> Result<Vec<Lanes<T>>> {
            let mut lanes = vec![zero; size.blocks()];
            if let Some(weight) = weight {
                slices::<T, _, 1>([weight], |[w]| {
                    lanes.iter_mut().zip(w.chunks(LANES)).for_each(|(l, w)| l[..w.len()].copy_from_slice(w));
                })?;
            }
            Ok(lanes)
        };
        let mut a = vec![zero; size.blocks() * size.n];
        slices::<T, _, 1>([&weights.a_log], |[a_log]| {
            for (channel, row) in a_log.chunks_exact(size.n).enumerate() {
                for (n, v) in row.iter().enumerate() {
                    a[channel / LANES * size.n + n][channel % LANES] = T::zero() - v.exp();
                }
            }
        })?;
        Ok(Self { a, skip: per_channel(&weights.skip)?, bias: per_channel(&weights.delta_bias)? })
    }
}

/// A block's channels of one time step; zeros beyond the last channel.
#[inline(always)]
fn load<T: Real>(row: &[T]) -> Lanes<T> {
    let mut lanes = [T::zero(); LANES];
    if row.len() >= LANES {
        lanes.copy_from_slice(&row[..LANES]);
    } else {
        lanes[..row.len()].copy_from_slice(row);
    }
    lanes
}

/// Writes a block's channels of one time step.
///
/// # Safety
/// The first `width` elements from `to` are nobody else's.
#[inline(always)]
unsafe fn store<T: Real>(to: *mut T, lanes: &Lanes<T>, width: usize) {
    // SAFETY: passed on to the caller.
    let row = unsafe { std::slice::from_raw_parts_mut(to, width.min(LANES)) };
    if row.len() == LANES {
        row.copy_from_slice(lanes);
    } else {
        row.copy_from_slice(&lanes[..row.len()]);
    }
}

/// ln(1 + e^x).
#[inline(always)]
fn softplus<T: Real>(x: T) -> T {
    let away = if x > T::zero() { T::zero() - x } else { x };
    x.larger(T::zero()) + away.exp().ln_1p()
}

#[inline(always)]
fn steps<T: Real>(delta: Lanes<T>, bias: &Lanes<T>, transform: bool) -> Lanes<T> {
    let mut step = delta;
    for i in 0..LANES {
        step[i] += bias[i];
        if transform {
            step[i] = softplus(step[i]);
        }
    }
    step
}

fn selective_scan<T: Real>(inputs: [&Value; 4], weights: &SelectiveScan) -> Result<Value> {
    let tensors = inputs.map(Value::tensor);
    let size = Size::of(tensors, weights)?;
    let trainable: Vec<&Tensor> =
        std::iter::once(&weights.a_log).chain(&weights.skip).chain(&weights.delta_bias).collect();
    let tape = Value::recording(&inputs, &trainable);
    let lanes = Weights::<T>::new(weights, size)?;
    let (y, states) = slices::<T, _, 4>(tensors, |inputs| forward(inputs, &lanes, tape.is_some(), size))?;
    let y = tensor(y, tensors[0].shape())?;
    let Some(tape) = tape else { return Ok(inputs[0].unrecorded(y)) };
    let (slots, kept, weights) = (inputs.map(Value::slot), tensors.map(Clone::clone), weights.clone());
    Ok(tape.record(y, move |dy, flow| {
        let [u, delta, b, c] = &kept;
        let gradients = slices::<T, _, 5>([u, delta, b, c, dy.tensor()], |[u, delta, b, c, dy]| {
            backward([u, delta, b, c], dy, &lanes, &states, size)
        })?;
        flow.add_to_parameter::<T>(&weights.a_log, |t, fresh| add_partial(t, !fresh, &gradients.a_log))?;
        if let Some(skip) = &weights.skip {
            flow.add_to_parameter::<T>(skip, |t, fresh| add_partial(t, !fresh, &gradients.skip))?;
        }
        if let Some(bias) = &weights.delta_bias {
            flow.add_to_parameter::<T>(bias, |t, fresh| add_partial(t, !fresh, &gradients.bias))?;
        }
        for ((slot, gradient), input) in slots.into_iter().zip(gradients.inputs).zip(&kept) {
            flow.send_to_slot::<T>(slot, Grad::new(tensor(gradient, input.shape())?))?;
        }
        Ok(())
    }))
}

/// The result, and the states `[batch, blocks, chunks, n, lanes]` before each chunk if they are to be kept.
fn forward<T: Real>(
    [u, delta, b, c]: [&[T]; 4],
    weights: &Weights<T>,
    keep: bool,
    size: Size,
) -> (Vec<T>, Vec<Lanes<T>>) {
    let Size { batch, l, d, n, .. } = size;
    let mut y = buffer::<T>(u.len());
    let per_block = if keep { size.chunks() * n } else { 0 };
    let zero = [T::zero(); LANES];
    let mut states = vec![zero; batch * size.blocks() * per_block];
    let (out, kept) = (SharedMut::new(&mut y), SharedMut::new(&mut states));
    (0..batch * size.blocks()).into_par_iter().for_each_init(
        || vec![zero; n],
        |h, task| {
            let (entry, block) = (task / size.blocks(), task % size.blocks());
            let (first, width) = (block * LANES, LANES.min(d - block * LANES));
            let a = &weights.a[block * n..][..n];
            let (skip, bias) = (&weights.skip[block], &weights.bias[block]);
            // SAFETY: tasks own the states of their block.
            let kept = unsafe { std::slice::from_raw_parts_mut(kept.ptr().add(task * per_block), per_block) };
            h.fill(zero);
            vectorised(
                #[inline(always)]
                || {
                    for t in 0..l {
                        if keep && t % CHUNK == 0 {
                            kept[t / CHUNK * n..][..n].copy_from_slice(h);
                        }
                        let row = (entry * l + t) * d + first;
                        let step = steps(load(&delta[row..row + width]), bias, size.softplus);
                        let u = load(&u[row..row + width]);
                        let (mut input, mut y) = (zero, zero);
                        for i in 0..LANES {
                            input[i] = step[i] * u[i];
                            y[i] = skip[i] * u[i];
                        }
                        let modes = (entry * l + t) * n..(entry * l + t + 1) * n;
                        for (((h, a), &b), &c) in h.iter_mut().zip(a).zip(&b[modes.clone()]).zip(&c[modes]) {
                            for i in 0..LANES {
                                h[i] = (step[i] * a[i]).exp().mul_add(h[i], input[i] * b);
                                y[i] = c.mul_add(h[i], y[i]);
                            }
                        }
                        // SAFETY: tasks own the channels of their block.
                        unsafe { store(out.ptr().add(row), &y, width) };
                    }
                },
            );
        },
    );
    (y, states)
}

/// Gradients of the inputs u, delta, B, C, and of the weights by batch entry.
struct Gradients<T> {
    inputs: [Vec<T>; 4],
    a_log: Vec<Vec<T>>,
    skip: Vec<Vec<T>>,
    bias: Vec<Vec<T>>,
}

/// A task's memory: a chunk of steps of one block, and shares of dB and dC of all its blocks.
struct Room<T> {
    /// States before and after each step, `[CHUNK + 1, n]`.
    h: Vec<Lanes<T>>,
    /// exp(step A), `[CHUNK, n]`.
    decay: Vec<Lanes<T>>,
    step: Vec<Lanes<T>>,
    /// `[CHUNK, n]`, summed over blocks.
    db: Vec<Lanes<T>>,
    dc: Vec<Lanes<T>>,
    /// By block: gradient of the state from later steps, `[BLOCKS, n]`.
    dh: Vec<Lanes<T>>,
    da: Vec<Lanes<T>>,
    dskip: [Lanes<T>; BLOCKS],
    dbias: [Lanes<T>; BLOCKS],
}

impl<T: Real> Room<T> {
    fn new(n: usize) -> Self {
        let zero = [T::zero(); LANES];
        let zeros = |steps: usize| vec![zero; steps * n];
        Self {
            h: zeros(CHUNK + 1),
            decay: zeros(CHUNK),
            step: vec![zero; CHUNK],
            db: zeros(CHUNK),
            dc: zeros(CHUNK),
            dh: zeros(BLOCKS),
            da: zeros(BLOCKS),
            dskip: [zero; BLOCKS],
            dbias: [zero; BLOCKS],
        }
    }

    fn clear(&mut self) {
        let zero = [T::zero(); LANES];
        self.dh.fill(zero);
        self.da.fill(zero);
        self.dskip.fill(zero);
        self.dbias.fill(zero);
    }
}

fn backward<T: Real>(
    inputs: [&[T]; 4],
    dy: &[T],
    weights: &Weights<T>,
    states: &[Lanes<T>],
    size: Size,
) -> Gradients<T> {
    let Size { batch, l, d, n, .. } = size;
    let (mut du, mut ddelta) = (buffer::<T>(dy.len()), buffer::<T>(dy.len()));
    let shared = [SharedMut::new(&mut du), SharedMut::new(&mut ddelta)];
    // shares `[groups, batch, l, n]` of dB and dC
    let share = batch * l * n;
    let (mut db, mut dc) = (buffer::<T>(size.groups() * share), buffer::<T>(size.groups() * share));
    let shared_modes = [SharedMut::new(&mut db), SharedMut::new(&mut dc)];
    let per_entry = |width: usize| vec![vec![T::zero(); d * width]; batch];
    let (mut a_log, mut skip, mut bias) = (per_entry(n), per_entry(1), per_entry(1));
    let shared_weights: Vec<[SharedMut<T>; 3]> = a_log
        .iter_mut()
        .zip(&mut skip)
        .zip(&mut bias)
        .map(|((a, skip), bias)| [SharedMut::new(a), SharedMut::new(skip), SharedMut::new(bias)])
        .collect();
    (0..batch * size.groups()).into_par_iter().for_each_init(
        || Room::<T>::new(n),
        |room, task| {
            let (entry, group) = (task / size.groups(), task % size.groups());
            let blocks = group * BLOCKS..size.blocks().min((group + 1) * BLOCKS);
            room.clear();
            for chunk in (0..size.chunks()).rev() {
                let steps = chunk * CHUNK..l.min((chunk + 1) * CHUNK);
                let zero = [T::zero(); LANES];
                room.db.fill(zero);
                room.dc.fill(zero);
                for block in blocks.clone() {
                    let state = &states[((entry * size.blocks() + block) * size.chunks() + chunk) * n..][..n];
                    vectorised(
                        #[inline(always)]
                        || {
                            chunk_backward(
                                room,
                                inputs,
                                dy,
                                weights,
                                state,
                                shared,
                                (entry, block),
                                steps.clone(),
                                size,
                            )
                        },
                    );
                }
                let modes = group * share + (entry * l + steps.start) * n;
                for (shared, sums) in shared_modes.iter().zip([&room.db, &room.dc]) {
                    // SAFETY: tasks own the steps of their entry and group.
                    let out =
                        unsafe { std::slice::from_raw_parts_mut(shared.ptr().add(modes), steps.len() * n) };
                    out.iter_mut().zip(sums).for_each(|(o, lanes)| *o = sum(lanes));
                }
            }
            for (i, block) in blocks.enumerate() {
                let (first, width) = (block * LANES, LANES.min(d - block * LANES));
                let [a_log, skip, bias] = shared_weights[entry];
                // SAFETY: tasks own the channels of their blocks in their entry's sums.
                unsafe {
                    for channel in 0..width {
                        for mode in 0..n {
                            // dA / d(a_log) = A
                            let value = room.da[i * n + mode][channel] * weights.a[block * n + mode][channel];
                            *a_log.ptr().add((first + channel) * n + mode) = value;
                        }
                    }
                    store(skip.ptr().add(first), &room.dskip[i], width);
                    store(bias.ptr().add(first), &room.dbias[i], width);
                }
            }
        },
    );
    for sums in [&mut db, &mut dc] {
        let (total, others) = sums.split_at_mut(share);
        for other in others.chunks_exact(share) {
            crate::tape::assign_or_add(total, other, false);
        }
        sums.truncate(share);
    }
    Gradients { inputs: [du, ddelta, db, dc], a_log, skip, bias }
}

/// The steps of one chunk in one block: states forward, then gradients backward.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "one inner loop, cut out to be read")]
fn chunk_backward<T: Real>(
    room: &mut Room<T>,
    [u, delta, b, c]: [&[T]; 4],
    dy: &[T],
    weights: &Weights<T>,
    state: &[Lanes<T>],
    [du, ddelta]: [SharedMut<T>; 2],
    (entry, block): (usize, usize),
    steps_of_chunk: std::ops::Range<usize>,
    size: Size,
) {
    let Size { l, d, n, .. } = size;
    let (first, width) = (block * LANES, LANES.min(d - block * LANES));
    let a = &weights.a[block * n..][..n];
    let (skip, bias) = (&weights.skip[block], &weights.bias[block]);
    let zero = [T::zero(); LANES];
    let row = |t: usize| (entry * l + t) * d + first;
    let modes = |t: usize| (entry * l + t) * n..(entry * l + t + 1) * n;
    room.h[..n].copy_from_slice(state);
    for (s, t) in steps_of_chunk.clone().enumerate() {
        let step = steps(load(&delta[row(t)..row(t) + width]), bias, size.softplus);
        room.step[s] = step;
        let u = load(&u[row(t)..row(t) + width]);
        let mut input = zero;
        for i in 0..LANES {
            input[i] = step[i] * u[i];
        }
        let (before, after) = room.h[s * n..(s + 2) * n].split_at_mut(n);
        let decay = &mut room.decay[s * n..][..n];
        for ((((before, after), decay), a), &b) in
            before.iter().zip(after).zip(decay).zip(a).zip(&b[modes(t)])
        {
            for i in 0..LANES {
                decay[i] = (step[i] * a[i]).exp();
                after[i] = decay[i].mul_add(before[i], input[i] * b);
            }
        }
    }
    let local = block % BLOCKS;
    let (dh, da) = (&mut room.dh[local * n..][..n], &mut room.da[local * n..][..n]);
    for (s, t) in steps_of_chunk.enumerate().rev() {
        let (step, dy) = (room.step[s], load(&dy[row(t)..row(t) + width]));
        let (u, delta) = (load(&u[row(t)..row(t) + width]), load(&delta[row(t)..row(t) + width]));
        let mut input = zero;
        for i in 0..LANES {
            input[i] = step[i] * u[i];
        }
        // gradients of step * u and, through the decay, of the step
        let (mut dinput, mut dstep) = (zero, zero);
        let (before, after) = room.h[s * n..(s + 2) * n].split_at(n);
        let (decay, db, dc) =
            (&room.decay[s * n..][..n], &mut room.db[s * n..][..n], &mut room.dc[s * n..][..n]);
        let (b, c) = (&b[modes(t)], &c[modes(t)]);
        for m in 0..n {
            let (dh, da, db, dc) = (&mut dh[m], &mut da[m], &mut db[m], &mut dc[m]);
            let (before, after, decay, a, b, c) = (&before[m], &after[m], &decay[m], &a[m], b[m], c[m]);
            for i in 0..LANES {
                let g = c.mul_add(dy[i], dh[i]);
                dc[i] = dy[i].mul_add(after[i], dc[i]);
                db[i] = g.mul_add(input[i], db[i]);
                dinput[i] = g.mul_add(b, dinput[i]);
                dh[i] = g * decay[i];
                let through_decay = dh[i] * before[i];
                da[i] = through_decay.mul_add(step[i], da[i]);
                dstep[i] = through_decay.mul_add(a[i], dstep[i]);
            }
        }
        let (dskip, dbias) = (&mut room.dskip[local], &mut room.dbias[local]);
        let (mut du_row, mut ddelta_row) = (zero, zero);
        for i in 0..LANES {
            dskip[i] = dy[i].mul_add(u[i], dskip[i]);
            du_row[i] = dinput[i].mul_add(step[i], skip[i] * dy[i]);
            let g = dinput[i].mul_add(u[i], dstep[i]);
            let slope = if size.softplus { sigmoid(delta[i] + bias[i]) } else { T::one() };
            ddelta_row[i] = g * slope;
            dbias[i] += ddelta_row[i];
        }
        // SAFETY: the caller's task owns the channels of its blocks.
        unsafe {
            store(du.ptr().add(row(t)), &du_row, width);
            store(ddelta.ptr().add(row(t)), &ddelta_row, width);
        }
    }
}
