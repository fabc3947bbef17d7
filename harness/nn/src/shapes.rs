//! A model's parameter names and shapes, without memory for their values.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use crate::parameters::is_trained;

/// Records what a model's constructor asks for, so that models of any size can be counted with the very
/// code that builds them.
#[derive(Clone, Default)]
pub struct Shapes(Arc<Mutex<BTreeMap<String, Shape>>>);

impl Shapes {
    /// A builder that hands out zeros which take no memory.
    pub fn builder(&self) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), DType::F32, Device::Cpu)
    }

    /// What was asked for, by name.
    pub fn all(&self) -> BTreeMap<String, Shape> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Number of scalars in trained parameters whose name `select` accepts.
    pub fn count(&self, select: impl Fn(&str) -> bool) -> usize {
        self.all()
            .iter()
            .filter(|(name, _)| is_trained(name) && select(name))
            .map(|(_, shape)| shape.elem_count())
            .sum()
    }
}

impl SimpleBackend for Shapes {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let zeros = Tensor::zeros((), dtype, device)?.broadcast_as(shape.clone())?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), shape);
        Ok(zeros)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        bail!("`{name}`: a shape is needed to count parameters")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.all().contains_key(name)
    }
}
