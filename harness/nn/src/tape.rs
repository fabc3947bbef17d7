//! Reverse-mode differentiation without a graph of tensors.
//!
//! An operation computes its result at once and, if a gradient is wanted, pushes a closure that knows how
//! to send the result's gradient on to its inputs. [`Tape::backward`] calls the closures in reverse order.
//! Each closure owns what its backward pass needs and is dropped as soon as it has run; the first gradient
//! of a value is moved, later ones are added in place; parameter gradients accumulate in [`Gradients`],
//! which lives across steps. A value without a tape records nothing: the same model code serves inference.

#[cfg(feature = "cuda")]
mod cuda;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use candle_core::{Result, Shape, Tensor, TensorId, bail};
use rayon::prelude::*;

use crate::real::Real;
use crate::simd::vectorised;
use crate::storage::{buffer, slice, slice_mut, tensor};

#[cfg(feature = "cuda")]
pub(crate) use cuda::Destination;

/// Elements a task of an elementwise loop works on.
pub(crate) const CHUNK: usize = 16 * 1024;

type Backward = Box<dyn FnOnce(Grad, &mut Flow) -> Result<()>>;

/// The operations of one forward pass.
#[derive(Clone)]
pub struct Tape(Rc<Inner>);

struct Inner {
    nodes: RefCell<Vec<Option<Backward>>>,
    gradients: Gradients,
}

/// A tensor in a computation that may be differentiated.
#[derive(Clone)]
pub struct Value {
    tensor: Tensor,
    tape: Option<Tape>,
    slot: Option<usize>,
}

impl Tape {
    /// An empty tape whose parameter gradients are added to `gradients`.
    pub fn new(gradients: &Gradients) -> Self {
        Self(Rc::new(Inner { nodes: RefCell::default(), gradients: gradients.clone() }))
    }

    /// An input that needs no gradient.
    pub fn constant(&self, tensor: Tensor) -> Value {
        Value { tensor, tape: Some(self.clone()), slot: None }
    }

    /// An input whose gradient is wanted: a [`candle_core::Var`]'s tensor.
    ///
    /// # Errors
    /// The tensor is not a variable.
    pub fn variable(&self, tensor: &Tensor) -> Result<Value> {
        if !tensor.is_variable() {
            bail!("a gradient is kept only for variables; use Tape::constant for other tensors");
        }
        let target = tensor.clone();
        Ok(self.record(tensor.clone(), move |dy, flow| flow.send_to_parameter(&target, dy)))
    }

    /// Makes `tensor` the result of an operation whose backward pass is `backward`.
    pub(crate) fn record(
        &self,
        tensor: Tensor,
        backward: impl FnOnce(Grad, &mut Flow) -> Result<()> + 'static,
    ) -> Value {
        let mut nodes = self.0.nodes.borrow_mut();
        nodes.push(Some(Box::new(backward)));
        Value { tensor, tape: Some(self.clone()), slot: Some(nodes.len() - 1) }
    }

    /// Adds the gradient of a scalar to the gradients of everything it depends on. The tape is empty
    /// afterwards.
    ///
    /// # Errors
    /// `loss` is not a scalar, or a device failed.
    pub fn backward(&self, loss: &Value) -> Result<()> {
        if loss.tensor.elem_count() != 1 {
            bail!("backward starts from a scalar, got shape {:?}", loss.tensor.shape());
        }
        let one = one_like(&loss.tensor)?;
        self.backward_from(loss, one)
    }

    /// As [`Tape::backward`], for the scalar `sum(value * cotangent)`.
    ///
    /// # Errors
    /// The shapes differ, or a device failed.
    pub fn backward_from(&self, value: &Value, cotangent: Tensor) -> Result<()> {
        if value.tensor.shape() != cotangent.shape() {
            bail!("cotangent {:?} for a value of shape {:?}", cotangent.shape(), value.tensor.shape());
        }
        self.backward_with(value, Grad::new(cotangent))
    }

    /// As [`Tape::backward_from`], for a gradient that others may read too.
    pub(crate) fn backward_with(&self, value: &Value, cotangent: Grad) -> Result<()> {
        let nodes = std::mem::take(&mut *self.0.nodes.borrow_mut());
        let mut flow = Flow { slots: Vec::new(), gradients: self.0.gradients.clone() };
        flow.slots.resize_with(nodes.len(), || None);
        if let Some(slot) = value.slot {
            flow.slots[slot] = Some(cotangent);
        }
        for (slot, node) in nodes.into_iter().enumerate().rev() {
            if let (Some(backward), Some(dy)) = (node, flow.slots[slot].take()) {
                backward(dy, &mut flow)?;
            }
        }
        Ok(())
    }
}

/// 1, in a scalar's type and shape, where it is.
fn one_like(scalar: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if scalar.device().is_cuda() && scalar.dtype() == candle_core::DType::F32 {
        return cuda::one_like(scalar);
    }
    Tensor::ones(scalar.shape(), scalar.dtype(), scalar.device())
}

impl From<Tensor> for Value {
    /// A value for inference: nothing is recorded.
    fn from(tensor: Tensor) -> Self {
        Self { tensor, tape: None, slot: None }
    }
}

impl Value {
    /// The numbers.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Whether anything the value depends on wants a gradient.
    pub fn needs_gradient(&self) -> bool {
        self.slot.is_some()
    }

    /// The same numbers, cut off from what they were computed from.
    pub fn detach(&self) -> Self {
        Self { tensor: self.tensor.clone(), tape: self.tape.clone(), slot: None }
    }

    /// A constant on the same tape as this value: labels or ids that meet it later.
    pub fn constant_beside(&self, tensor: Tensor) -> Value {
        self.unrecorded(tensor)
    }

    pub(crate) fn tape(&self) -> Option<Tape> {
        self.tape.clone()
    }

    pub(crate) fn slot(&self) -> Option<usize> {
        self.slot
    }

    /// The tape to record on, if one of `inputs` needs a gradient or one of `weights` is trainable.
    pub(crate) fn recording(inputs: &[&Value], weights: &[&Tensor]) -> Option<Tape> {
        let tape = inputs.iter().find_map(|v| v.tape.clone())?;
        let wanted = inputs.iter().any(|v| v.slot.is_some()) || weights.iter().any(|w| w.is_variable());
        wanted.then_some(tape)
    }

    /// A result that records nothing but stays on the inputs' tape.
    pub(crate) fn unrecorded(&self, tensor: Tensor) -> Value {
        Value { tensor, tape: self.tape.clone(), slot: None }
    }
}

/// A gradient on its way back. Clones share memory.
#[derive(Clone)]
pub(crate) struct Grad {
    tensor: Tensor,
    owners: Rc<()>,
}

impl Grad {
    pub(crate) fn new(tensor: Tensor) -> Self {
        Self { tensor, owners: Rc::new(()) }
    }

    pub(crate) fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Whether nobody else reads this gradient, so that it may be overwritten.
    pub(crate) fn is_unique(&self) -> bool {
        Rc::strong_count(&self.owners) == 1
    }
}

/// The state of a backward pass.
pub(crate) struct Flow {
    slots: Vec<Option<Grad>>,
    gradients: Gradients,
}

impl Flow {
    /// Where the gradients of parameters go.
    pub(crate) fn gradients(&self) -> &Gradients {
        &self.gradients
    }

    /// Lets `write(destination, fresh)` put its contribution into the gradient of the value in `slot`:
    /// assign if `fresh`, add otherwise. Nothing is called for a value that needs no gradient.
    pub(crate) fn add_to_slot<T: Real>(
        &mut self,
        slot: Option<usize>,
        shape: &Shape,
        write: impl FnOnce(&mut [T], bool),
    ) -> Result<()> {
        let Some(slot) = slot else { return Ok(()) };
        let grad = match self.slots[slot].take() {
            None => {
                let mut data = buffer::<T>(shape.elem_count());
                write(&mut data, true);
                Grad::new(tensor(data, shape)?)
            }
            Some(grad) => {
                let grad = if grad.is_unique() { grad } else { Grad::new(grad.tensor.copy()?) };
                slice_mut::<T>(&grad.tensor, |data| write(data, false))?;
                grad
            }
        };
        self.slots[slot] = Some(grad);
        Ok(())
    }

    /// Sends a whole gradient to the value in `slot`: moved if it is the first, added otherwise.
    pub(crate) fn send_to_slot<T: Real>(&mut self, slot: Option<usize>, grad: Grad) -> Result<()> {
        match slot {
            Some(i) if self.slots[i].is_none() => {
                self.slots[i] = Some(grad);
                Ok(())
            }
            _ => {
                let shape = grad.tensor.shape().clone();
                slice::<T, _>(&grad.tensor, |dy| {
                    self.add_to_slot::<T>(slot, &shape, |dx, fresh| assign_or_add(dx, dy, fresh))
                })?
            }
        }
    }

    /// As [`Flow::add_to_slot`], for a parameter. Nothing is called for a frozen one.
    pub(crate) fn add_to_parameter<T: Real>(
        &mut self,
        parameter: &Tensor,
        write: impl FnOnce(&mut [T], bool),
    ) -> Result<()> {
        if parameter.is_variable() { self.gradients.write(parameter, write) } else { Ok(()) }
    }

    fn send_to_parameter(&mut self, parameter: &Tensor, grad: Grad) -> Result<()> {
        #[cfg(feature = "cuda")]
        if parameter.device().is_cuda() {
            return self.send_to_parameter_on_device(parameter, &grad);
        }
        match parameter.dtype() {
            candle_core::DType::F64 => slice::<f64, _>(&grad.tensor, |dy| {
                self.add_to_parameter::<f64>(parameter, |dw, fresh| assign_or_add(dw, dy, fresh))
            })?,
            _ => slice::<f32, _>(&grad.tensor, |dy| {
                self.add_to_parameter::<f32>(parameter, |dw, fresh| assign_or_add(dw, dy, fresh))
            })?,
        }
    }
}

/// `dst = src` or `dst += src`.
pub(crate) fn assign_or_add<T: Real>(dst: &mut [T], src: &[T], assign: bool) {
    dst.par_chunks_mut(CHUNK).zip(src.par_chunks(CHUNK)).for_each(|(d, s)| {
        if assign {
            d.copy_from_slice(s);
        } else {
            vectorised(
                #[inline(always)]
                || d.iter_mut().zip(s).for_each(|(d, s)| *d += *s),
            );
        }
    });
}

/// As [`assign_or_add`], for few numbers that come in double precision.
pub(crate) fn assign_or_add_rounded<T: Real>(dst: &mut [T], src: impl Iterator<Item = f64>, assign: bool) {
    for (d, s) in dst.iter_mut().zip(src) {
        let s = T::from_f64(s);
        *d = if assign { s } else { *d + s };
    }
}

/// Gradients of parameters, one buffer each, kept across steps. Clones share the buffers.
#[derive(Clone, Default)]
pub struct Gradients(Rc<RefCell<HashMap<TensorId, Slot>>>);

struct Slot {
    tensor: Tensor,
    /// Whether the buffer holds a gradient of the current step.
    filled: bool,
}

impl Gradients {
    /// The gradient of a parameter, if one has been computed since the last [`Gradients::clear`].
    pub fn tensor(&self, parameter: &Tensor) -> Option<Tensor> {
        let slots = self.0.borrow();
        slots.get(&parameter.id()).filter(|slot| slot.filled).map(|slot| slot.tensor.clone())
    }

    /// Forgets all gradients; the buffers stay for the next step.
    pub fn clear(&self) {
        self.0.borrow_mut().values_mut().for_each(|slot| slot.filled = false);
    }

    fn write<T: Real>(&self, parameter: &Tensor, write: impl FnOnce(&mut [T], bool)) -> Result<()> {
        use std::collections::hash_map::Entry;
        match self.0.borrow_mut().entry(parameter.id()) {
            Entry::Occupied(mut slot) => {
                let slot = slot.get_mut();
                let fresh = !std::mem::replace(&mut slot.filled, true);
                slice_mut::<T>(&slot.tensor, |data| write(data, fresh))
            }
            Entry::Vacant(entry) => {
                let mut data = buffer::<T>(parameter.elem_count());
                write(&mut data, true);
                entry.insert(Slot { tensor: tensor(data, parameter.shape())?, filled: true });
                Ok(())
            }
        }
    }
}
