//! Fused training operations on candle tensors, and the blocks models are built from.
//!
//! Plain candle builds a backward pass out of many small operations, each of which allocates, clears
//! and reads its tensors again. Here every operation of a training step is one function over slices with
//! a backward pass of its own (`ops/`, one operation a file), and a [`Tape`] calls them in reverse order.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use replica_core::Seed;
//! use replica_nn::{Gradients, Linear, Parameters, Tape, init};
//!
//! # fn main() -> candle_core::Result<()> {
//! let parameters = Parameters::new(Seed(1), DType::F32, &Device::Cpu);
//! let layer = Linear::new(4, 2, true, init::linear, parameters.builder().pp("fc"))?;
//!
//! let gradients = Gradients::default();
//! let tape = Tape::new(&gradients);
//! let x = tape.constant(Tensor::ones((3, 4), DType::F32, &Device::Cpu)?);
//! let loss = layer.forward(&x)?.sum()?;
//! tape.backward(&loss)?;
//! let bias = &parameters.get("fc.bias").expect("the layer has a bias");
//! assert_eq!(gradients.tensor(bias).expect("it is trainable").to_vec1::<f32>()?, [3.0, 3.0]);
//! # Ok(()) }
//! ```
//!
//! With feature `cuda` the same operations run on NVIDIA GPUs ([`accelerator`]), in float32 or bfloat16.
//!
//! Results do not depend on the number of threads: work is cut into pieces whose number depends on the
//! shapes alone, and partial sums are added in the order of the pieces.

pub mod accelerator;
pub mod cache;
mod checkpoint;
pub mod hippo;
pub mod init;
pub mod layers;
pub mod mamba;
pub mod mega;
pub mod ops;
pub mod parameters;
mod real;
pub mod s4d;
pub mod s5;
pub mod shapes;
mod simd;
pub mod spade;
pub mod staging;
mod storage;
pub mod t5;
pub mod tape;

pub use cache::{KeyValueCache, LayerCache};
pub use checkpoint::checkpoint;
pub use layers::{BatchNorm, LayerNorm, Linear, RmsNorm};
pub use mamba::{Mamba, MambaConfig};
pub use mega::{Mega, MegaConfig, MovingAverage};
#[cfg(feature = "cuda")]
pub use ops::cuda::adamw;
pub use parameters::{Parameter, Parameters};
pub use real::Real;
pub use rustfft::num_complex::Complex64;
pub use s4d::{S4d, S4dConfig};
pub use s5::{S5, S5Config};
pub use shapes::Shapes;
pub use simd::{instruction_set, vectorised};
pub use spade::{LocalAttention, LocalAttentionConfig, Spade};
pub use staging::Staging;
pub use storage::{slice, slice_mut, slices};
pub use t5::{T5, T5Config};
pub use tape::{Gradients, Tape, Value};
