//! Gradient checkpointing (Chen et al. 2016): a part of a model keeps its inputs only and is computed again
//! when its gradient is wanted, which trades a second forward pass for memory.

use std::cell::RefCell;
use std::rc::Rc;

use candle_core::Result;

use crate::ops::for_device;
use crate::real::Real;
use crate::tape::{Flow, Grad, Tape, Value};

/// `f(inputs)`, of which nothing but the inputs is kept for the backward pass.
///
/// `f` is called again in the backward pass and must compute the same numbers: masks of dropout have to come
/// from a source that is made inside it.
///
/// # Errors
/// Those of `f`.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use replica_core::Seed;
/// use replica_nn::{Gradients, Linear, Parameters, Tape, checkpoint, init};
///
/// # fn main() -> candle_core::Result<()> {
/// let parameters = Parameters::new(Seed(1), DType::F32, &Device::Cpu);
/// let layer = Linear::new(4, 4, true, init::linear, parameters.builder())?;
/// let gradients = Gradients::default();
/// let tape = Tape::new(&gradients);
/// let x = tape.constant(Tensor::ones((3, 4), DType::F32, &Device::Cpu)?);
/// let y = checkpoint(&[&x], move |inputs| layer.forward(&layer.forward(&inputs[0])?))?;
/// tape.backward(&y.sum()?)?;
/// assert!(gradients.tensor(&parameters.get("weight").expect("it exists")).is_some());
/// # Ok(()) }
/// ```
pub fn checkpoint(inputs: &[&Value], f: impl Fn(&[Value]) -> Result<Value> + 'static) -> Result<Value> {
    let plain: Vec<Value> = inputs.iter().map(|x| Value::from(x.tensor().clone())).collect();
    let y = f(&plain)?;
    let Some(tape) = inputs.iter().find_map(|x| x.tape()) else { return Ok(y) };
    let slots: Vec<Option<usize>> = inputs.iter().map(|x| x.slot()).collect();
    Ok(tape.record(y.tensor().clone(), move |dy, flow| {
        let again = Tape::new(flow.gradients());
        let arrived: Vec<Rc<RefCell<Option<Grad>>>> = slots.iter().map(|_| Rc::default()).collect();
        let inputs: Vec<Value> = plain
            .iter()
            .zip(&slots)
            .zip(&arrived)
            .map(|((x, slot), arrived)| match slot {
                None => again.constant(x.tensor().clone()),
                Some(_) => {
                    let arrived = arrived.clone();
                    again.record(x.tensor().clone(), move |dx, _| {
                        *arrived.borrow_mut() = Some(dx);
                        Ok(())
                    })
                }
            })
            .collect();
        again.backward_with(&f(&inputs)?, dy)?;
        for (slot, arrived) in slots.iter().zip(arrived) {
            if let Some(dx) = arrived.take() {
                let tensor = dx.tensor().clone();
                for_device!(tensor, send(flow, *slot, dx))?;
            }
        }
        Ok(())
    }))
}

fn send<T: Real>(flow: &mut Flow, slot: Option<usize>, dx: Grad) -> Result<()> {
    flow.send_to_slot::<T>(slot, dx)
}
