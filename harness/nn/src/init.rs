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
        let drawn = parameter.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?;
        let values = Tensor::from_vec(values(drawn), parameter.shape(), &Device::Cpu)?;
        let values = values.to_dtype(parameter.dtype())?.to_device(parameter.device())?;
        match parameter.rank() {
            0 => bail!("`{name}`: a computed parameter has at least one dimension"),
            _ => parameter.slice_set(&values, 0, 0)?,
        }
    }
    Ok(parameter)
}
