//! Divergence of a student's distribution from a teacher's, `sum of p_t (ln p_t - ln p_s)`, over logits `[.., vocab]`
//! (Hinton et al. 2015); of all tokens or of the teacher's nucleus (PaD, self-distillation).
//!
//! Kept for backward: the gradient itself, which is known up to the scalar that arrives from above.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::{ROWS, for_device};
use crate::real::Real;
use crate::storage::{buffer, slice, slices, tensor};
use crate::tape::{Grad, Value};

impl Value {
    /// `self` holds the student's logits, `teacher` the teacher's, which get no gradient. Without `top_p` the mean over
    /// all entries; with it, for each row the mean over the teacher's most likely tokens whose probabilities first
    /// exceed `top_p`, and the mean of that over rows. A scalar.
    ///
    /// # Errors
    /// Other shapes or number types than the teacher's, or a `top_p` outside (0, 1].
    pub fn distillation(&self, teacher: &Tensor, top_p: Option<f64>) -> Result<Value> {
        if self.tensor().shape() != teacher.shape() || self.tensor().dtype() != teacher.dtype() {
            bail!("distillation: student {:?}, teacher {:?}", self.tensor().shape(), teacher.shape());
        }
        if let Some(p) = top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            bail!("distillation: top_p = {p}: a number in (0, 1] is expected");
        }
        // probabilities never exceed 1, sums of them rounded do
        let top_p = top_p.filter(|p| *p < 1.0);
        for_device!(self.tensor(), distillation(self, teacher, top_p))
    }
}

/// Rows and tokens of logits.
pub(super) fn tokens(logits: &Tensor) -> Result<(usize, usize)> {
    match logits.dims().last() {
        Some(&vocab) if logits.elem_count() > 0 => Ok((logits.elem_count() / vocab, vocab)),
        _ => bail!("distillation: logits {:?} of no token", logits.shape()),
    }
}

fn distillation<T: Real>(student: &Value, teacher: &Tensor, top_p: Option<f64>) -> Result<Value> {
    let (rows, vocab) = tokens(student.tensor())?;
    let mut gradient = buffer::<T>(rows * vocab);
    let parts: Vec<f64> = slices::<T, _, 2>([student.tensor(), teacher], |[student, teacher]| {
        let group = ROWS * vocab;
        let inputs = student.par_chunks(group).zip(teacher.par_chunks(group));
        let sums = gradient.par_chunks_mut(group).zip(inputs).map(|(gradient, (student, teacher))| {
            let inputs = student.chunks_exact(vocab).zip(teacher.chunks_exact(vocab));
            let each = gradient.chunks_exact_mut(vocab).zip(inputs);
            each.map(|(gradient, (student, teacher))| row(gradient, student, teacher, top_p, rows))
                .sum::<f64>()
        });
        sums.collect()
    })?;
    let loss = tensor(vec![T::from_f64(parts.iter().sum())], ())?;
    let Some(tape) = Value::recording(&[student], &[]) else { return Ok(student.unrecorded(loss)) };
    let (slot, shape) = (student.slot(), student.tensor().shape().clone());
    Ok(tape.record(loss, move |dy, flow| {
        let scale = slice::<T, _>(dy.tensor(), |dy| dy[0])?;
        gradient.par_chunks_mut(ROWS * vocab).for_each(|rows| rows.iter_mut().for_each(|g| *g *= scale));
        flow.send_to_slot::<T>(slot, Grad::new(tensor(gradient, &shape)?))
    }))
}

/// One row's part of the loss, and its gradient.
fn row<T: Real>(gradient: &mut [T], student: &[T], teacher: &[T], top_p: Option<f64>, rows: usize) -> f64 {
    let (student, teacher) = (log_softmax(student), log_softmax(teacher));
    let mut kept = vec![top_p.is_none(); teacher.len()];
    if let Some(p) = top_p {
        let mut order: Vec<usize> = (0..teacher.len()).collect();
        order.sort_by(|a, b| teacher[*b].total_cmp(&teacher[*a]));
        let mut before = 0.0;
        for token in order {
            kept[token] = true;
            before += teacher[token].exp();
            if before > p {
                break;
            }
        }
    }
    let count = kept.iter().filter(|kept| **kept).count();
    let weight = 1.0 / (count * rows) as f64;
    let probability = |token: usize| if kept[token] { teacher[token].exp() } else { 0.0 };
    let mass: f64 = (0..kept.len()).map(probability).sum();
    let mut loss = 0.0;
    for (token, gradient) in gradient.iter_mut().enumerate() {
        let p = probability(token);
        *gradient = T::from_f64(weight * (mass * student[token].exp() - p));
        // 0 ln 0 is 0
        if p > 0.0 {
            loss += p * (teacher[token] - student[token]);
        }
    }
    weight * loss
}

fn log_softmax<T: Real>(logits: &[T]) -> Vec<f64> {
    let logits: Vec<f64> = logits.iter().map(|v| v.to_f64()).collect();
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum_exp = top + logits.iter().map(|v| (v - top).exp()).sum::<f64>().ln();
    logits.into_iter().map(|v| v - log_sum_exp).collect()
}
