//! Sums, scalings and conversions, elementwise.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Address, Gpu, address, launch};
use super::{elements, kernel};
use crate::tape::Destination;

/// `y = a + b`; `y` may be one of them.
pub(crate) fn add(gpu: &Gpu, a: &Tensor, b: &Tensor, y: &Tensor) -> Result<()> {
    super::same_type("add", a, &[b, y])?;
    let n = a.elem_count();
    launch!(gpu, "elementwise", &kernel("add", a)?, elements(n), address(a)?, address(b)?, address(y)?, n)
}

/// `to (+)= a * factor[0] * from`, with conversion between float32 and bfloat16; the factor on the device may be
/// left out.
pub(crate) fn scale(
    gpu: &Gpu,
    from: &Tensor,
    to: &Destination,
    a: f32,
    factor: Option<&Tensor>,
) -> Result<()> {
    let function = match (from.dtype(), to.tensor.dtype()) {
        (DType::F32, DType::F32) => "scale_f32",
        (DType::BF16, DType::BF16) => "scale_bf16",
        (DType::BF16, DType::F32) => "scale_bf16_f32",
        (DType::F32, DType::BF16) => "scale_f32_bf16",
        (from, to) => bail!("scale: f32 and bf16 are expected on a GPU, got {from:?} and {to:?}"),
    };
    let factor = factor.map_or(Ok(Address::NULL), address)?;
    let (n, from, flag) = (from.elem_count(), address(from)?, to.flag());
    let to = address(&to.tensor)?;
    launch!(gpu, "elementwise", function, elements(n), from, to, n, a, factor, flag)
}

/// A converted copy.
pub(crate) fn cast(gpu: &Gpu, from: &Tensor, dtype: DType) -> Result<Tensor> {
    let to = Destination { tensor: gpu.empty(from.shape(), dtype)?, accumulate: false };
    scale(gpu, from, &to, 1.0, None)?;
    Ok(to.tensor)
}

/// The tensor in float32: itself, or a converted copy.
pub(crate) fn float(gpu: &Gpu, tensor: &Tensor) -> Result<Tensor> {
    if tensor.dtype() == DType::F32 { Ok(tensor.clone()) } else { cast(gpu, tensor, DType::F32) }
}
