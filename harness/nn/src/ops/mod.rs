//! Training operations, one a file: forward, backward, and what is kept in between.
//!
//! Operations are methods of [`Value`](crate::Value). Weights are plain tensors; they get a gradient if
//! they are variables.

mod activation;
mod add;
mod attention;
mod batch_norm;
mod causal_convolution;
mod columns;
mod conv1d;
mod cross_entropy;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod damped_average;
mod diagonal_kernel;
mod diagonal_scan;
mod discretisation;
mod distillation;
mod dropout;
mod embedding;
mod fourier;
mod gemm;
mod glu;
mod layer_norm;
mod linear;
mod low_rank_kernel;
#[cfg(feature = "mkl")]
mod mkl;
mod pair;
mod panels;
mod pool;
mod relative_bias;
mod rms_norm;
mod rope;
mod scale;
mod select;
mod selective_scan;
mod squared_error;
mod sum;
mod transpose;
mod windows;

pub use activation::Activation;
pub use attention::{Attention, Scores};
pub use batch_norm::Moments;
pub use cross_entropy::IGNORE;
pub use damped_average::DampedAverage;
pub use diagonal_kernel::{DiagonalKernel, StepTransform};
pub use diagonal_scan::DiagonalScan;
pub use discretisation::Discretisation;
pub use dropout::Dropout;
pub use gemm::{FOREIGN_PRODUCTS, matmul_nn, matmul_nt, matmul_tn};
pub use low_rank_kernel::LowRankKernel;
pub use relative_bias::OUT_OF_REACH;
pub use rope::RopeTable;
pub use selective_scan::SelectiveScan;

pub(crate) use panels::PanelKernel;
pub(crate) use windows::window_mask;

/// Calls an operation for a tensor's device and number type: the function of this name in `cuda` for a CUDA
/// tensor, otherwise the one beside the caller, which is generic over [`Real`](crate::Real). Every operation has both:
/// one without kernels does not compile with feature `cuda`, and without the feature the test below finds it.
macro_rules! for_device {
    ($tensor:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match ($tensor.device(), $tensor.dtype()) {
            #[cfg(feature = "cuda")]
            (candle_core::Device::Cuda(_), _) => $crate::ops::cuda::$function($($argument),*),
            (_, candle_core::DType::F32) => $function::<f32>($($argument),*),
            (_, candle_core::DType::F64) => $function::<f64>($($argument),*),
            (_, other) => candle_core::bail!("{}: f32 or f64 is expected, got {other:?}", stringify!($function)),
        }
    };
}
pub(crate) use for_device;

/// Rows a task of a row-wise loop works on. It fixes the order of partial sums, whatever the number of threads.
pub(crate) const ROWS: usize = 64;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    /// What feature `cuda` finds by not compiling, on a machine that cannot build it: an operation without kernels.
    #[test]
    fn every_operation_has_a_cuda_function() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let module = fs::read_to_string(source.join("ops/cuda/mod.rs")).unwrap();
        // names after `use` or `fn`
        let functions: Vec<&str> = module
            .split(';')
            .filter_map(|item| item.split_once("pub(crate) use").or_else(|| item.split_once("pub(crate) fn")))
            .flat_map(|(_, names)| names.split(|c: char| !c.is_alphanumeric() && c != '_'))
            .collect();
        let files = fs::read_dir(source.join("ops")).unwrap().map(|entry| entry.unwrap().path());
        let mut found = 0;
        for file in
            files.filter(|f| f.is_file() && !f.ends_with("mod.rs")).chain([source.join("checkpoint.rs")])
        {
            let text = fs::read_to_string(&file).unwrap();
            for call in text.split("for_device!(").skip(1) {
                let name = call.split_once(", ").unwrap().1.split('(').next().unwrap();
                assert!(functions.contains(&name), "{}: `{name}` has no CUDA function", file.display());
                found += 1;
            }
        }
        assert!(found > 30, "{found} operations");
    }
}
