//! Scaled dot-product attention (Vaswani et al. 2017) over heads that lie side by side in the last dimension:
//! q `[batch, t, heads * head_dim]`, k `[batch, s, heads * head_dim]`, v `[batch, s, heads * value_dim]`, result
//! `[batch, t, heads * value_dim]`.
//!
//! Kept for backward: q, k, v, the result, and the log-sum-exp of every row of scores. Probabilities are
//! computed again block by block (FlashAttention-2, Dao 2023), so no `[t, s]` tensor is ever stored.

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use super::for_device;
use super::gemm::Matrix;
use super::panels::Panels;
use super::rope::{Angles, RopeTable};
use crate::real::Real;
use crate::simd::{dot, exp_in_place, max, vectorised};
use crate::storage::{SharedMut, buffer, slice, tensor};
use crate::tape::{Grad, Value};

/// How queries attend to keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Number of heads.
    pub heads: usize,
    /// Factor on the scores; 1 / sqrt(head_dim) unless a model says otherwise.
    pub scale: f64,
    /// Whether query i sees only keys up to i + (s - t): itself and what came before.
    pub causal: bool,
}

/// What changes the scores before the softmax.
#[derive(Clone, Copy, Default)]
pub struct Scores<'a> {
    /// `[batch, s]` of u8: keys that are 0 are seen by no query (padding). A query that sees no key at all
    /// gets zeros.
    pub mask: Option<&'a Tensor>,
    /// `[heads, t, s]`, added to the scaled scores of every batch entry (T5's relative positions).
    pub bias: Option<&'a Value>,
    /// Turns key j by position j and query i by position i + (s - t) first.
    pub rope: Option<&'a RopeTable>,
}

impl Scores<'_> {
    /// That mask, bias and positions fit a call.
    pub(crate) fn check(&self, size: Size) -> Result<()> {
        let Size { batch, t, s, heads, .. } = size;
        if let Some(mask) = self.mask.filter(|m| m.dims() != [batch, s] || m.dtype() != DType::U8) {
            bail!("attention: mask {mask:?}, expected [{batch}, {s}] of u8");
        }
        if let Some(bias) = self.bias.filter(|b| b.tensor().dims() != [heads, t, s]) {
            bail!("attention: bias {:?}, expected {:?}", bias.tensor().dims(), [heads, t, s]);
        }
        if self.rope.is_some() && t > s {
            bail!("attention: {t} queries for {s} keys have no rotary positions");
        }
        Ok(())
    }
}

/// Queries a task works on at a time.
const BLOCK: usize = 64;

impl Value {
    /// softmax(scale * q k^T) v for every head; `self` is q.
    ///
    /// # Errors
    /// Shapes that do not fit each other, or more queries than keys in causal attention.
    pub fn attention(&self, k: &Value, v: &Value, attention: Attention) -> Result<Value> {
        self.attention_with(k, v, attention, Scores::default())
    }

    /// softmax(scale * q k^T + bias) v over the keys that the mask leaves.
    ///
    /// # Errors
    /// As [`Value::attention`]; a mask, bias or table of another shape.
    pub fn attention_with(
        &self,
        k: &Value,
        v: &Value,
        attention: Attention,
        scores: Scores,
    ) -> Result<Value> {
        for_device!(self.tensor(), attend(Inputs::Separate([self, k, v]), attention, scores))
    }

    /// Attention of a sequence to itself; `self` is `[batch, t, 3 * heads * head_dim]`, queries, keys and
    /// values side by side, as one linear layer computes them.
    ///
    /// # Errors
    /// As [`Value::attention_with`].
    pub fn self_attention(&self, attention: Attention, scores: Scores) -> Result<Value> {
        for_device!(self.tensor(), attend(Inputs::Packed(self), attention, scores))
    }
}

/// Where queries, keys and values come from.
pub(crate) enum Inputs<'a> {
    Separate([&'a Value; 3]),
    Packed(&'a Value),
}

impl Inputs<'_> {
    pub(crate) fn values(&self) -> &[&Value] {
        match self {
            Inputs::Separate(values) => values,
            Inputs::Packed(value) => std::slice::from_ref(value),
        }
    }

    pub(crate) fn size(&self, attention: Attention) -> Result<Size> {
        let Attention { heads, causal, .. } = attention;
        let (batch, t, [width, value_width], s, fits) = match self {
            Inputs::Separate([q, k, v]) => {
                let (batch, t, width) = q.tensor().dims3()?;
                let (_, s, value_width) = v.tensor().dims3()?;
                let fits =
                    k.tensor().dims() == [batch, s, width] && v.tensor().dims() == [batch, s, value_width];
                (batch, t, [width, value_width], s, fits)
            }
            Inputs::Packed(qkv) => {
                let (batch, t, packed) = qkv.tensor().dims3()?;
                (batch, t, [packed / 3; 2], t, packed % 3 == 0)
            }
        };
        if !fits || heads == 0 || width % heads != 0 || value_width % heads != 0 || (causal && t > s) {
            let shapes: Vec<_> = self.values().iter().map(|x| x.tensor().dims()).collect();
            bail!("attention: q, k, v {shapes:?} with {heads} heads, causal {causal}");
        }
        let (head_dim, value_dim) = (width / heads, value_width / heads);
        Ok(Size { batch, t, s, heads, head_dim, value_dim, causal })
    }
}

/// The sizes of one call.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) batch: usize,
    pub(crate) t: usize,
    pub(crate) s: usize,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) value_dim: usize,
    pub(crate) causal: bool,
}

impl Size {
    /// Of queries and keys.
    pub(crate) fn width(self) -> usize {
        self.heads * self.head_dim
    }

    /// Of values and results.
    pub(crate) fn value_width(self) -> usize {
        self.heads * self.value_dim
    }
}

/// One of q, k, v, y and their gradients: `[batch, rows, stride]`, of which the columns from `first` on belong to heads
/// of `dim` each.
#[derive(Clone, Copy)]
struct Place {
    rows: usize,
    stride: usize,
    first: usize,
    dim: usize,
}

impl Place {
    /// Offset of row 0 of a head.
    fn head(self, batch: usize, head: usize) -> usize {
        batch * self.rows * self.stride + self.first + head * self.dim
    }
}

/// Everything the kernels need to know beside the numbers.
struct Call<T> {
    size: Size,
    scale: T,
    /// Places of q, k, v.
    places: [Place; 3],
    keys: Vec<Keys>,
    bias: Option<Tensor>,
    angles: Option<Angles<T>>,
}

/// The keys of a batch entry that may be seen.
struct Keys {
    /// Those from here on may not.
    end: usize,
    /// Which before `end` may be; all without.
    holes: Option<Vec<bool>>,
}

impl<T: Real> Call<T> {
    fn new(inputs: &Inputs, attention: Attention, scores: Scores) -> Result<Self> {
        let size = inputs.size(attention)?;
        let width = size.width();
        let places = match inputs {
            Inputs::Separate(_) => {
                [(size.t, size.head_dim), (size.s, size.head_dim), (size.s, size.value_dim)]
                    .map(|(rows, dim)| Place { rows, stride: size.heads * dim, first: 0, dim })
            }
            Inputs::Packed(_) => [0, width, 2 * width].map(|first| Place {
                rows: size.t,
                stride: 3 * width,
                first,
                dim: size.head_dim,
            }),
        };
        scores.check(size)?;
        let angles = scores.rope.map(|table| table.window::<T>(0, size.s, size.head_dim)).transpose()?;
        Ok(Self {
            size,
            scale: T::from_f64(attention.scale),
            places,
            keys: keys(scores.mask, size)?,
            bias: scores.bias.map(|b| b.tensor().clone()),
            angles,
        })
    }

    /// Place of y and dy.
    fn out(&self) -> Place {
        Place { rows: self.size.t, stride: self.size.value_width(), first: 0, dim: self.size.value_dim }
    }

    /// Number of keys that query `i` of a batch entry may see, holes included.
    fn visible(&self, batch: usize, i: usize) -> usize {
        let causal = if self.size.causal { i + 1 + self.size.s - self.size.t } else { self.size.s };
        causal.min(self.keys[batch].end)
    }

    /// Rows of a head's queries or keys from row `first` on, turned if the call says so: where they are, or in `turned`.
    ///
    /// # Safety
    /// `data` is the tensor that `place` describes; `rows` rows from `first` exist.
    unsafe fn turned(
        &self,
        data: *const T,
        place: Place,
        (first, rows, position): (usize, usize, usize),
        turned: &mut Vec<T>,
    ) -> Matrix<*const T> {
        let d = self.size.head_dim;
        let Some(angles) = &self.angles else {
            // SAFETY: passed on to the caller.
            return Matrix::rows(unsafe { data.add(first * place.stride) }, place.stride);
        };
        turned.resize(rows * d, T::zero());
        for (i, to) in turned.chunks_exact_mut(d).enumerate() {
            // SAFETY: passed on to the caller.
            let from = unsafe { std::slice::from_raw_parts(data.add((first + i) * place.stride), d) };
            angles.turn(to, from, position + i, T::one());
        }
        Matrix::rows(turned.as_ptr(), d)
    }

    /// Turns the gradients of turned rows back, in place.
    ///
    /// # Safety
    /// As [`Call::turned`]; nobody else uses these rows meanwhile.
    unsafe fn turn_back(
        &self,
        data: *mut T,
        place: Place,
        (first, rows, position): (usize, usize, usize),
        row: &mut Vec<T>,
    ) {
        let Some(angles) = &self.angles else { return };
        let d = self.size.head_dim;
        for i in 0..rows {
            // SAFETY: passed on to the caller.
            let gradient = unsafe { std::slice::from_raw_parts_mut(data.add((first + i) * place.stride), d) };
            row.clear();
            row.extend_from_slice(gradient);
            angles.turn(gradient, row, position + i, T::zero() - T::one());
        }
    }
}

/// What of the mask `[batch, s]` the kernels use: padding at the end costs nothing, only holes are looked at.
fn keys(mask: Option<&Tensor>, size: Size) -> Result<Vec<Keys>> {
    let Some(mask) = mask else {
        return Ok((0..size.batch).map(|_| Keys { end: size.s, holes: None }).collect());
    };
    slice::<u8, _>(mask, |mask| {
        let entry = |mask: &[u8]| {
            let end = mask.iter().rposition(|m| *m != 0).map_or(0, |last| last + 1);
            let holes = mask[..end].contains(&0).then(|| mask[..end].iter().map(|m| *m == 0).collect());
            Keys { end, holes }
        };
        mask.chunks_exact(size.s).map(entry).collect()
    })
}

fn attend<T: Real>(inputs: Inputs, attention: Attention, scores: Scores) -> Result<Value> {
    let call = Call::<T>::new(&inputs, attention, scores)?;
    let values = inputs.values();
    let kept: Vec<Tensor> = values.iter().map(|x| x.tensor().clone()).collect();
    let (y, log_sum_exp) = with_slices(&kept, |[q, k, v]| {
        with_slice(call.bias.as_ref(), |bias| forward([q, k, v], bias, &call))
    })??;
    let y = tensor(y, (call.size.batch, call.size.t, call.size.value_width()))?;
    let recorded: Vec<&Value> = values.iter().copied().chain(scores.bias).collect();
    let Some(tape) = Value::recording(&recorded, &[]) else { return Ok(values[0].unrecorded(y)) };
    let slots: Vec<Option<usize>> = values.iter().map(|x| x.slot()).collect();
    let bias_slot = scores.bias.and_then(Value::slot);
    let result = y.clone();
    Ok(tape.record(y, move |dy, flow| {
        let mut gradients: Vec<Vec<T>> = kept.iter().map(|x| buffer::<T>(x.elem_count())).collect();
        let bias_len = bias_slot.and(call.bias.as_ref()).map_or(0, Tensor::elem_count);
        let mut dbias = vec![T::zero(); bias_len];
        with_slices(&kept, |inputs| {
            with_slice(call.bias.as_ref(), |bias| {
                slice::<T, _>(&result, |y| {
                    slice::<T, _>(dy.tensor(), |dy| {
                        backward(inputs, [y, dy], &log_sum_exp, bias, &mut gradients, &mut dbias, &call);
                    })
                })
            })
        })????;
        for ((slot, gradient), input) in slots.into_iter().zip(gradients).zip(&kept) {
            flow.send_to_slot::<T>(slot, Grad::new(tensor(gradient, input.shape())?))?;
        }
        match &call.bias {
            Some(bias) if bias_len > 0 => {
                flow.send_to_slot::<T>(bias_slot, Grad::new(tensor(dbias, bias.shape())?))
            }
            _ => Ok(()),
        }
    }))
}

/// The elements of q, k, v, which are three tensors or one.
fn with_slices<T: Real, R>(tensors: &[Tensor], f: impl FnOnce([&[T]; 3]) -> R) -> Result<R> {
    match tensors {
        [q, k, v] => slice::<T, _>(q, |q| slice::<T, _>(k, |k| slice::<T, _>(v, |v| f([q, k, v]))))??,
        [qkv] => slice::<T, _>(qkv, |qkv| f([qkv; 3])),
        _ => bail!("attention: one or three inputs"),
    }
}

fn with_slice<T: Real, R>(tensor: Option<&Tensor>, f: impl FnOnce(Option<&[T]>) -> R) -> Result<R> {
    match tensor {
        Some(tensor) => slice::<T, _>(tensor, |data| f(Some(data))),
        None => Ok(f(None)),
    }
}

/// Working memory of a task.
struct Scratch<T> {
    p: Vec<T>,
    ds: Vec<T>,
    /// Keys and values, and their transposes, of a head; queries and gradients of a block.
    keys: Panels<T>,
    keys_t: Panels<T>,
    values: Panels<T>,
    values_t: Panels<T>,
    queries: Panels<T>,
    out: Panels<T>,
    turned_queries: Vec<T>,
    turned_keys: Vec<T>,
}

impl<T: Real> Scratch<T> {
    fn new(size: Size, backward: bool) -> Self {
        let block = BLOCK.min(size.t) * size.s;
        Self {
            p: buffer(block),
            ds: buffer(if backward { block } else { 0 }),
            keys: Panels::new(),
            keys_t: Panels::new(),
            values: Panels::new(),
            values_t: Panels::new(),
            queries: Panels::new(),
            out: Panels::new(),
            turned_queries: Vec::new(),
            turned_keys: Vec::new(),
        }
    }
}

/// Adds the bias to the scores of a row and turns those of unseen keys to minus infinity.
#[inline(always)]
fn adjust<T: Real>(row: &mut [T], bias: Option<&[T]>, holes: Option<&[bool]>) {
    if let Some(bias) = bias {
        row.iter_mut().zip(bias).for_each(|(s, b)| *s += *b);
    }
    if let Some(holes) = holes {
        row.iter_mut().zip(holes).for_each(|(s, hole)| *s = if *hole { T::lowest() } else { *s });
    }
}

/// Zeros what a hole must not contribute: the exponential function returns tiny numbers, not 0.
#[inline(always)]
fn clear_holes<T: Real>(row: &mut [T], holes: Option<&[bool]>) {
    if let Some(holes) = holes {
        row.iter_mut().zip(holes).for_each(|(p, hole)| *p = if *hole { T::zero() } else { *p });
    }
}

/// Result and log-sum-exp `[batch * heads, t]`.
fn forward<T: Real>([q, k, v]: [&[T]; 3], bias: Option<&[T]>, call: &Call<T>) -> (Vec<T>, Vec<T>) {
    let size = call.size;
    let (t, s, d, dv) = (size.t, size.s, size.head_dim, size.value_dim);
    let [q_place, k_place, v_place] = call.places;
    let out_place = call.out();
    let mut y = buffer::<T>(size.batch * t * size.value_width());
    let mut log_sum_exp = buffer::<T>(size.batch * size.heads * t);
    let out = SharedMut::new(&mut y);
    log_sum_exp.par_chunks_mut(t).enumerate().for_each_init(
        || Scratch::new(size, false),
        |scratch, (task, log_sum_exp)| {
            let (batch, head) = (task / size.heads, task % size.heads);
            let keys = &call.keys[batch];
            // SAFETY: offsets and strides lie within the slices by the checked shapes; tasks write disjoint heads.
            unsafe {
                let q = q.as_ptr().add(q_place.head(batch, head));
                let k = k.as_ptr().add(k_place.head(batch, head));
                let v = v.as_ptr().add(v_place.head(batch, head));
                let out = out.ptr().add(out_place.head(batch, head));
                let turned_keys = call.turned(k, k_place, (0, keys.end, 0), &mut scratch.turned_keys);
                scratch.keys_t.pack((d, keys.end), turned_keys.t());
                scratch.values.pack((keys.end, dv), Matrix::rows(v, v_place.stride));
                for first in (0..t).step_by(BLOCK) {
                    let rows = BLOCK.min(t - first);
                    let cols = call.visible(batch, first + rows - 1);
                    let p = &mut scratch.p[..rows * cols];
                    let queries = call.turned(
                        q,
                        q_place,
                        (first, rows, (first + s).saturating_sub(t)),
                        &mut scratch.turned_queries,
                    );
                    let to = Matrix::rows(p.as_mut_ptr(), cols);
                    scratch.keys_t.product((rows, cols, d), to, false, call.scale, queries);
                    let mut inverse = [T::zero(); BLOCK];
                    vectorised(
                        #[inline(always)]
                        || {
                            for i in 0..rows {
                                let visible = call.visible(batch, first + i);
                                let (seen, hidden) = p[i * cols..(i + 1) * cols].split_at_mut(visible);
                                let bias = bias.map(|b| &b[(head * t + first + i) * s..][..visible]);
                                let holes = keys.holes.as_ref().map(|h| &h[..visible]);
                                adjust(seen, bias, holes);
                                let top = max(seen);
                                let mut total = exp_in_place(seen, top);
                                if holes.is_some() {
                                    clear_holes(seen, holes);
                                    total = crate::simd::sum(seen);
                                }
                                hidden.fill(T::zero());
                                let any = total > T::zero();
                                inverse[i] = if any { T::one() / total } else { T::zero() };
                                log_sum_exp[first + i] = if any { top + total.ln() } else { T::zero() };
                            }
                        },
                    );
                    let here = out.add(first * out_place.stride);
                    let (to, p) = (Matrix::rows(here, out_place.stride), Matrix::rows(p.as_ptr(), cols));
                    scratch.values.product((rows, dv, cols), to, false, T::one(), p);
                    vectorised(
                        #[inline(always)]
                        || {
                            for (i, inverse) in inverse[..rows].iter().enumerate() {
                                let y = std::slice::from_raw_parts_mut(here.add(i * out_place.stride), dv);
                                y.iter_mut().for_each(|v| *v *= *inverse);
                            }
                        },
                    );
                }
            }
        },
    );
    (y, log_sum_exp)
}

/// Writes dq, dk, dv into `gradients`, which are three buffers or one, and adds to `dbias` unless it is empty.
fn backward<T: Real>(
    inputs: [&[T]; 3],
    [y, dy]: [&[T]; 2],
    log_sum_exp: &[T],
    bias: Option<&[T]>,
    gradients: &mut [Vec<T>],
    dbias: &mut [T],
    call: &Call<T>,
) {
    let size = call.size;
    let outputs = match gradients {
        [dq, dk, dv] => [SharedMut::new(dq), SharedMut::new(dk), SharedMut::new(dv)],
        all => [SharedMut::new(&mut all[0]); 3],
    };
    let head = |scratch: &mut Scratch<T>, batch: usize, head: usize, dbias: &mut [T]| {
        let log_sum_exp = &log_sum_exp[(batch * size.heads + head) * size.t..][..size.t];
        let bias = bias.map(|b| &b[head * size.t * size.s..][..size.t * size.s]);
        backward_head((batch, head), inputs, [y, dy], log_sum_exp, bias, outputs, dbias, scratch, call);
    };
    let scratch = || Scratch::new(size, true);
    if dbias.is_empty() {
        let tasks = (0..size.batch * size.heads).into_par_iter().with_max_len(1);
        tasks.for_each_init(scratch, |scratch, task| {
            head(scratch, task / size.heads, task % size.heads, &mut []);
        });
    } else {
        // the bias is the batch entries' common one: a head's entries go one after the other
        let tasks = dbias.par_chunks_mut(size.t * size.s).enumerate();
        tasks.for_each_init(scratch, |scratch, (h, dbias)| {
            (0..size.batch).for_each(|batch| head(scratch, batch, h, dbias));
        });
    }
}

#[allow(clippy::too_many_arguments, reason = "one head's share of `backward`, which has them all")]
fn backward_head<T: Real>(
    (batch, head): (usize, usize),
    [q, k, v]: [&[T]; 3],
    [y, dy]: [&[T]; 2],
    log_sum_exp: &[T],
    bias: Option<&[T]>,
    [dq, dk, dv_all]: [SharedMut<T>; 3],
    dbias: &mut [T],
    scratch: &mut Scratch<T>,
    call: &Call<T>,
) {
    let size = call.size;
    let (t, s, d, dv) = (size.t, size.s, size.head_dim, size.value_dim);
    let [q_place, k_place, v_place] = call.places;
    let out_place = call.out();
    let out0 = out_place.head(batch, head);
    let keys = &call.keys[batch];
    let one = T::one();
    // SAFETY: offsets and strides lie within the slices by the checked shapes; calls write disjoint heads.
    unsafe {
        let q = q.as_ptr().add(q_place.head(batch, head));
        let k = k.as_ptr().add(k_place.head(batch, head));
        let values = Matrix::rows(v.as_ptr().add(v_place.head(batch, head)), v_place.stride);
        let dq = dq.ptr().add(q_place.head(batch, head));
        let dk = Matrix::rows(dk.ptr().add(k_place.head(batch, head)), k_place.stride);
        let dv_rows = Matrix::rows(dv_all.ptr().add(v_place.head(batch, head)), v_place.stride);
        let turned_keys = call.turned(k, k_place, (0, keys.end, 0), &mut scratch.turned_keys);
        scratch.keys.pack((keys.end, d), turned_keys);
        scratch.keys_t.pack((d, keys.end), turned_keys.t());
        scratch.values_t.pack((dv, keys.end), values.t());
        // From the last block, which sees most keys and so assigns their rows of dk and dv, to the first.
        let assigned = call.visible(batch, t - 1);
        for first in (0..t).step_by(BLOCK).rev() {
            let add = first + BLOCK < t;
            let rows = BLOCK.min(t - first);
            let cols = call.visible(batch, first + rows - 1);
            let (p, ds) = (&mut scratch.p[..rows * cols], &mut scratch.ds[..rows * cols]);
            let place = (first, rows, (first + s).saturating_sub(t));
            let queries = call.turned(q, q_place, place, &mut scratch.turned_queries);
            let out = Matrix::rows(dy.as_ptr().add(out0 + first * out_place.stride), out_place.stride);
            let p_out = Matrix::rows(p.as_mut_ptr(), cols);
            let ds_out = Matrix::rows(ds.as_mut_ptr(), cols);
            scratch.queries.pack((rows, d), queries);
            scratch.out.pack((rows, dv), out);
            scratch.keys_t.product((rows, cols, d), p_out, false, call.scale, queries);
            scratch.values_t.product((rows, cols, dv), ds_out, false, one, out);
            vectorised(
                #[inline(always)]
                || {
                    for i in 0..rows {
                        let row = out0 + (first + i) * out_place.stride;
                        let (visible, z) = (call.visible(batch, first + i), log_sum_exp[first + i]);
                        let delta = dot(&y[row..row + dv], &dy[row..row + dv]);
                        let (p, hidden_p) = p[i * cols..(i + 1) * cols].split_at_mut(visible);
                        let (ds, hidden_ds) = ds[i * cols..(i + 1) * cols].split_at_mut(visible);
                        let holes = keys.holes.as_ref().map(|h| &h[..visible]);
                        adjust(p, bias.map(|b| &b[(first + i) * s..][..visible]), holes);
                        for (p, ds) in p.iter_mut().zip(ds.iter_mut()) {
                            *p = (*p - z).exp();
                            *ds = *p * (*ds - delta);
                        }
                        clear_holes(p, holes);
                        clear_holes(ds, holes);
                        if !dbias.is_empty() {
                            let dbias = &mut dbias[(first + i) * s..][..visible];
                            dbias.iter_mut().zip(ds.iter()).for_each(|(b, ds)| *b += *ds);
                        }
                        ds.iter_mut().for_each(|ds| *ds *= call.scale);
                        hidden_p.fill(T::zero());
                        hidden_ds.fill(T::zero());
                    }
                },
            );
            let (p, ds) = (Matrix::rows(p.as_ptr(), cols), Matrix::rows(ds.as_ptr(), cols));
            let dq_rows = Matrix::rows(dq.add(first * q_place.stride), q_place.stride);
            scratch.keys.product((rows, d, cols), dq_rows, false, one, ds);
            scratch.queries.product((cols, d, rows), dk, add, one, ds.t());
            scratch.out.product((cols, dv, rows), dv_rows, add, one, p.t());
            call.turn_back(dq, q_place, place, &mut scratch.turned_queries);
        }
        for unseen in assigned..s {
            std::slice::from_raw_parts_mut(dk.data.add(unseen * dk.row_stride), d).fill(T::zero());
            std::slice::from_raw_parts_mut(dv_rows.data.add(unseen * dv_rows.row_stride), dv).fill(T::zero());
        }
        call.turn_back(dk.data, k_place, (0, assigned, 0), &mut scratch.turned_keys);
    }
}
