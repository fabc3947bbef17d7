//! The backward pass on a GPU: kernels write to or add to device buffers, and nothing waits for them.
//!
//! Gradients of values have the values' type; parameter gradients are float32 whatever the parameter's type,
//! in buffers whose addresses never change.

use std::collections::hash_map::Entry;

use candle_core::{DType, Result, Shape, Tensor};

use super::{Flow, Grad, Gradients, Slot};
use crate::ops::cuda::device::{Gpu, address};
use crate::ops::cuda::elementwise;

/// Where a kernel puts a gradient.
pub(crate) struct Destination {
    pub(crate) tensor: Tensor,
    /// Whether it adds to what is there; otherwise it writes every element.
    pub(crate) accumulate: bool,
}

impl Destination {
    /// The flag that kernels take.
    pub(crate) fn flag(&self) -> i32 {
        i32::from(self.accumulate)
    }
}

impl Flow {
    /// Where the gradient of the value in `slot` goes; give it back with [`Flow::put`]. A value that needs no
    /// gradient gets scratch memory.
    pub(crate) fn take(
        &mut self,
        gpu: &Gpu,
        slot: Option<usize>,
        shape: &Shape,
        dtype: DType,
    ) -> Result<Destination> {
        match slot.and_then(|slot| self.slots[slot].take()) {
            None => Ok(Destination { tensor: gpu.empty(shape, dtype)?, accumulate: false }),
            Some(grad) if grad.is_unique() => Ok(Destination { tensor: grad.tensor, accumulate: true }),
            Some(grad) => Ok(Destination { tensor: duplicate(gpu, &grad.tensor)?, accumulate: true }),
        }
    }

    /// Puts the gradient of the value in `slot` back after a kernel wrote it.
    pub(crate) fn put(&mut self, slot: Option<usize>, destination: Destination) {
        if let Some(slot) = slot {
            self.slots[slot] = Some(Grad::new(destination.tensor));
        }
    }

    /// As [`Flow::send_to_slot`]: moved if it is the first, added otherwise.
    pub(crate) fn send(&mut self, slot: Option<usize>, grad: Grad) -> Result<()> {
        let Some(slot) = slot else { return Ok(()) };
        let sum = match self.slots[slot].take() {
            None => grad,
            Some(have) => {
                let gpu = Gpu::of(&grad.tensor)?;
                // a sum can be kept in whichever of the two nobody else reads
                let (into, other) = match (have.is_unique(), grad.is_unique()) {
                    (true, _) => (have, grad),
                    (false, true) => (grad, have),
                    (false, false) => (Grad::new(duplicate(&gpu, &have.tensor)?), grad),
                };
                elementwise::add(&gpu, &into.tensor, &other.tensor, &into.tensor)?;
                into
            }
        };
        self.slots[slot] = Some(sum);
        Ok(())
    }

    /// Where the gradient of a parameter goes; nothing for a frozen one.
    pub(crate) fn parameter(&mut self, parameter: &Tensor) -> Result<Option<Destination>> {
        if parameter.is_variable() { self.gradients.destination(parameter).map(Some) } else { Ok(None) }
    }

    /// As [`Flow::send_to_parameter`].
    pub(super) fn send_to_parameter_on_device(&mut self, parameter: &Tensor, grad: &Grad) -> Result<()> {
        let Some(to) = self.parameter(parameter)? else { return Ok(()) };
        elementwise::scale(&Gpu::of(parameter)?, &grad.tensor, &to, 1.0, None)
    }
}

/// The float32 number 1 in a scalar's shape, without a wait for an upload.
pub(super) fn one_like(scalar: &Tensor) -> Result<Tensor> {
    let gpu = Gpu::of(scalar)?;
    let one = gpu.empty(scalar.shape(), DType::F32)?;
    gpu.write(address(&one)?, &[1f32.to_bits()])?;
    Ok(one)
}

/// A copy with memory of its own.
fn duplicate(gpu: &Gpu, tensor: &Tensor) -> Result<Tensor> {
    let copy = gpu.empty(tensor.shape(), tensor.dtype())?;
    gpu.copy(tensor, address(&copy)?)?;
    Ok(copy)
}

impl Gradients {
    fn destination(&self, parameter: &Tensor) -> Result<Destination> {
        match self.0.borrow_mut().entry(parameter.id()) {
            Entry::Occupied(mut slot) => {
                let slot = slot.get_mut();
                let accumulate = std::mem::replace(&mut slot.filled, true);
                Ok(Destination { tensor: slot.tensor.clone(), accumulate })
            }
            Entry::Vacant(entry) => {
                let tensor = Gpu::of(parameter)?.empty(parameter.shape(), DType::F32)?;
                entry.insert(Slot { tensor: tensor.clone(), filled: true });
                Ok(Destination { tensor, accumulate: false })
            }
        }
    }
}
