//! The operations on NVIDIA GPUs: the functions that `Value`'s methods call for a CUDA tensor, under the names
//! of their CPU counterparts and with the same meaning, on float32 or bfloat16.
//!
//! Kernels (`*.cu`) are compiled by the build script. Nothing here waits for the device: what a host would have to
//! look at first, an id outside a table or a label outside the classes, gives NaN and so a loss that is refused.
//! Scalars, log-sum-exps, moments and the gradients of parameters are float32 whatever the values' type. Partial
//! sums are cut by shapes alone and added in a fixed order.

mod activation;
pub mod adamw;
mod add;
mod attention;
mod batch_norm;
mod causal_convolution;
mod columns;
mod conv1d;
mod cross_entropy;
mod damped_average;
pub(crate) mod device;
mod diagonal_kernel;
mod diagonal_scan;
mod distillation;
mod dropout;
pub(crate) mod elementwise;
mod embedding;
mod gemm;
mod glu;
mod layer_norm;
mod linear;
mod low_rank_kernel;
mod pair;
mod pool;
mod relative_bias;
mod rms_norm;
mod rope;
mod scale;
mod select;
mod selective_scan;
mod squared_error;
pub(crate) mod staging;
mod sum;
mod transpose;
mod windows;

use candle_core::{DType, Result, Tensor, bail};
use device::{Gpu, Grid, address, launch};

use crate::tape::{Destination, Flow, Grad};

pub(crate) use activation::{activate, gate};
pub(crate) use add::{add, add_positions_from};
pub(crate) use attention::attend;
pub(crate) use batch_norm::{batch_norm, column_moments, mix};
pub(crate) use causal_convolution::causal_convolution;
pub(crate) use columns::columns;
pub(crate) use conv1d::{causal_conv1d, depthwise_conv1d};
pub(crate) use cross_entropy::{cross_entropy, linear_cross_entropy};
pub(crate) use damped_average::damped_taps;
pub(crate) use diagonal_kernel::diagonal_taps;
pub(crate) use diagonal_scan::diagonal_scan;
pub(crate) use distillation::distillation;
pub(crate) use dropout::{dropout, tied_dropout};
pub(crate) use embedding::embedding;
pub(crate) use glu::glu;
pub(crate) use layer_norm::layer_norm;
pub(crate) use linear::{linear, linear_activation};
pub(crate) use low_rank_kernel::low_rank_taps;
pub(crate) use pair::pair_features;
pub(crate) use pool::mean_of_first;
pub(crate) use relative_bias::relative_bias;
pub(crate) use rms_norm::rms_norm;
pub(crate) use rope::{Table, rope};
pub(crate) use scale::scale;
pub(crate) use select::select;
pub(crate) use selective_scan::selective_scan;
pub(crate) use squared_error::mean_squared_error;
pub(crate) use sum::sum;
pub(crate) use transpose::transpose;
pub(crate) use windows::{joined, windows};

/// Sends a gradient on, for code that knows of no device.
pub(crate) fn send(flow: &mut Flow, slot: Option<usize>, grad: Grad) -> Result<()> {
    flow.send(slot, grad)
}

/// The kernels' PTX, written by the build script.
pub(crate) mod kernels {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// `stem_f32` or `stem_bf16`: the kernel for a tensor's type.
fn kernel(stem: &str, tensor: &Tensor) -> Result<String> {
    match tensor.dtype() {
        DType::F32 => Ok(format!("{stem}_f32")),
        DType::BF16 => Ok(format!("{stem}_bf16")),
        other => bail!("{stem}: f32 or bf16 is expected on a GPU, got {other:?}"),
    }
}

/// All tensors of an operation have the type of the first.
fn same_type(name: &str, first: &Tensor, others: &[&Tensor]) -> Result<()> {
    match others.iter().find(|t| t.dtype() != first.dtype()) {
        Some(other) => bail!("{name}: {:?} beside {:?}; one type is expected", first.dtype(), other.dtype()),
        None => Ok(()),
    }
}

/// Pieces that `rows` are cut into for partial sums: at least `least` rows each, at most `most` pieces.
fn parts(rows: usize, least: usize, most: usize) -> usize {
    rows.div_ceil(least).clamp(1, most)
}

/// The launch of an elementwise kernel on `n` elements.
fn elements(n: usize) -> Grid {
    Grid { blocks: (n.div_ceil(2048).clamp(1, 65_536), 1, 1), threads: 256, shared: 0 }
}

/// Adds up partial sums `[parts, n]`, in their order.
fn sum_parts(gpu: &Gpu, partial: &Tensor, to: &Destination) -> Result<()> {
    let n = to.tensor.elem_count();
    let count = device::int(partial.elem_count() / n.max(1))?;
    let grid = Grid { blocks: (n.div_ceil(32).max(1), 1, 1), threads: 256, shared: 0 };
    launch!(gpu, "sums", "sum_parts_f32", grid, address(partial)?, address(&to.tensor)?, count, n, to.flag())
}

/// Adds up partial sums `[parts, n]` to the gradient of the value in `slot`, a tensor `like` this one.
fn sum_parts_to_slot(
    gpu: &Gpu,
    flow: &mut Flow,
    slot: Option<usize>,
    partial: &Tensor,
    like: &Tensor,
) -> Result<()> {
    if slot.is_none() {
        return Ok(());
    }
    let to = flow.take(gpu, slot, like.shape(), like.dtype())?;
    if like.dtype() == DType::F32 {
        sum_parts(gpu, partial, &to)?;
    } else {
        let total = Destination { tensor: gpu.empty(like.shape(), DType::F32)?, accumulate: false };
        sum_parts(gpu, partial, &total)?;
        elementwise::scale(gpu, &total.tensor, &to, 1.0, None)?;
    }
    flow.put(slot, to);
    Ok(())
}
