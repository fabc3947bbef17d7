//! PyTorch's default initialisers as candle [`Init`]s, and initial values that are computed. candle's own `linear` draws from Kaiming's normal
//! distribution, 2.45 times wider.

use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use candle_nn::{Init, VarBuilder};

/// `nn.Linear`, weight and bias: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
pub fn linear(fan_in: usize) -> Init {
    let bound = 1.0 / (fan_in as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}

/// `nn.Embedding`: N(0, 1).
pub fn embedding() -> Init {
    Init::Randn { mean: 0.0, stdev: 1.0 }
}

/// A parameter whose initial values are `values(drawn)`, where `drawn` comes from `init`. A parameter that exists
/// already, as in a checkpoint, stays as it is.
///
/// # Errors
/// The builder has another shape under this name, or `values` changes the number of elements.
pub fn computed(
    vb: &VarBuilder,
    shape: impl Into<Shape>,
    name: &str,
    init: Init,
    values: impl FnOnce(Vec<f64>) -> Vec<f64>,
) -> Result<Tensor> {
    let exists = vb.contains_tensor(name);
    let parameter = vb.get_with_hints(shape, name, init)?;
    // a builder that only counts hands out zeros that take no memory
    if !exists && parameter.is_contiguous() {
        let drawn = parameter.to_device(&Device::Cpu)?.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?;
        overwrite(vb, name, &parameter, &Tensor::from_vec(values(drawn), parameter.shape(), &Device::Cpu)?)?;
    }
    Ok(parameter)
}

/// Gives the parameter of this name new values; of a model in bfloat16 also the master, which the next step would
/// otherwise bring back.
pub(crate) fn overwrite(vb: &VarBuilder, name: &str, parameter: &Tensor, values: &Tensor) -> Result<()> {
    if parameter.rank() == 0 {
        bail!("`{name}`: a computed parameter has at least one dimension");
    }
    let set = |to: &Tensor| to.slice_set(&values.to_dtype(to.dtype())?.to_device(to.device())?, 0, 0);
    if parameter.dtype() == DType::BF16 {
        set(&vb.get_with_hints_dtype(parameter.shape(), name, Init::Const(0.0), DType::F32)?)?;
    }
    set(parameter)
}

#[cfg(test)]
mod tests {
    use replica_core::Seed;

    use super::*;
    use crate::Parameters;

    /// In every number type: what the model computes with and what is trained start with the same values.
    #[test]
    fn masters_start_with_computed_values() {
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            let parameters = Parameters::new(Seed(1), dtype, &Device::Cpu);
            let zero = Init::Const(0.0);
            let made = computed(&parameters.builder(), (2, 2), "p", zero, |_| vec![1.0, 2.0, 3.0, 0.1]);
            let numbers = |t: &Tensor| t.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap()[1][1];
            let (variable, master) = (numbers(&made.unwrap()), numbers(&parameters.all()[0].1));
            assert!(
                (variable - 0.1).abs() < 1e-3 && (master - 0.1).abs() < 1e-8,
                "{dtype:?}: {variable}, {master}"
            );
        }
    }
}
