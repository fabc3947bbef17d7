//! Training operations, one a file: forward, backward, and what is kept in between.
//!
//! Operations are methods of [`Value`](crate::Value). Weights are plain tensors; they get a gradient if
//! they are variables.

mod activation;
mod add;
mod attention;
mod cross_entropy;
mod dropout;
mod embedding;
mod gemm;
mod layer_norm;
mod linear;
mod relative_bias;
mod rms_norm;
mod rope;
mod scale;
mod select;
mod squared_error;
mod sum;

pub use activation::Activation;
pub use attention::{Attention, Scores};
pub use cross_entropy::IGNORE;
pub use dropout::Dropout;
pub use gemm::{matmul_nn, matmul_nt, matmul_tn};
pub use rope::RopeTable;

/// Calls a function generic over [`Real`](crate::Real) for a tensor's number type.
macro_rules! for_dtype {
    ($dtype:expr, $($function:ident)::+($($argument:expr),* $(,)?)) => {
        match $dtype {
            candle_core::DType::F32 => $($function)::+::<f32>($($argument),*),
            candle_core::DType::F64 => $($function)::+::<f64>($($argument),*),
            other => candle_core::bail!("f32 or f64 is expected, got {other:?}"),
        }
    };
}
pub(crate) use for_dtype;

/// Rows a task of a row-wise loop works on. It fixes the order of partial sums, whatever the number of threads.
pub(crate) const ROWS: usize = 64;
