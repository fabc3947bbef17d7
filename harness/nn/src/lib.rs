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
//! Results do not depend on the number of threads: work is cut into pieces whose number depends on the
//! shapes alone, and partial sums are added in the order of the pieces.

pub mod init;
pub mod layers;
pub mod ops;
pub mod parameters;
mod real;
pub mod shapes;
mod simd;
mod storage;
pub mod tape;

pub use layers::{LayerNorm, Linear, RmsNorm};
pub use parameters::Parameters;
pub use real::Real;
pub use shapes::Shapes;
pub use simd::{instruction_set, vectorised};
pub use storage::{slice, slice_mut, slices};
pub use tape::{Gradients, Tape, Value};
