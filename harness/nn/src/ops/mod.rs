//! Training operations, one a file: forward, backward, and what is kept in between.
//!
//! Operations are methods of [`Value`](crate::Value). Weights are plain tensors; they get a gradient if
//! they are variables.

mod activation;
mod add;
mod attention;
mod causal_convolution;
mod columns;
mod conv1d;
mod cross_entropy;
mod diagonal_kernel;
mod diagonal_scan;
mod discretisation;
mod dropout;
mod embedding;
mod gemm;
mod glu;
mod layer_norm;
mod linear;
mod panels;
mod relative_bias;
mod rms_norm;
mod rope;
mod scale;
mod select;
mod selective_scan;
mod squared_error;
mod sum;
mod transpose;

pub use activation::Activation;
pub use attention::{Attention, Scores};
pub use cross_entropy::IGNORE;
pub use diagonal_kernel::{DiagonalKernel, StepTransform};
pub use diagonal_scan::DiagonalScan;
pub use discretisation::Discretisation;
pub use dropout::Dropout;
pub use gemm::{matmul_nn, matmul_nt, matmul_tn};
pub use rope::RopeTable;
pub use selective_scan::SelectiveScan;

pub(crate) use panels::PanelKernel;

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
