//! Matrix products by cuBLAS, accumulated in float32; float32 inputs keep their precision unless candle's
//! `set_gemm_reduced_precision_f32` asks for TF32.
//!
//! cuBLAS stores matrices by columns, so a row-major product is asked for as its transpose.

use candle_core::cuda::cudarc::cublas::{result, sys};
use candle_core::cuda::{WrapErr, gemm_reduced_precision_f32};
use candle_core::{DType, Result, Tensor, bail};

use super::device::{Gpu, address, int};

/// A matrix in cuBLAS's terms: a tensor, whether it is transposed, and the distance between its columns.
struct Operand<'a> {
    tensor: &'a Tensor,
    transposed: bool,
    leading: usize,
}

/// `y[n, o] (+)= x[n, k] w[o, k]^T`: a linear layer's forward pass.
pub(crate) fn matmul_nt(
    gpu: &Gpu,
    y: &Tensor,
    accumulate: bool,
    x: &Tensor,
    w: &Tensor,
    (n, o, k): (usize, usize, usize),
) -> Result<()> {
    let w = Operand { tensor: w, transposed: true, leading: k };
    let x = Operand { tensor: x, transposed: false, leading: k };
    product(gpu, y, accumulate, w, x, (o, n, k))
}

/// `dx[n, k] (+)= dy[n, o] w[o, k]`: its gradient by the input.
pub(crate) fn matmul_nn(
    gpu: &Gpu,
    dx: &Tensor,
    accumulate: bool,
    dy: &Tensor,
    w: &Tensor,
    (n, o, k): (usize, usize, usize),
) -> Result<()> {
    let w = Operand { tensor: w, transposed: false, leading: k };
    let dy = Operand { tensor: dy, transposed: false, leading: o };
    product(gpu, dx, accumulate, w, dy, (k, n, o))
}

/// `dw[o, k] (+)= dy[n, o]^T x[n, k]`: its gradient by the weight.
pub(crate) fn matmul_tn(
    gpu: &Gpu,
    dw: &Tensor,
    accumulate: bool,
    dy: &Tensor,
    x: &Tensor,
    (n, o, k): (usize, usize, usize),
) -> Result<()> {
    let x = Operand { tensor: x, transposed: false, leading: k };
    let dy = Operand { tensor: dy, transposed: true, leading: o };
    product(gpu, dw, accumulate, x, dy, (k, o, n))
}

/// `c[m, n] (+)= a[m, k] b[k, n]`, all by columns; `c` is dense.
fn product(
    gpu: &Gpu,
    c: &Tensor,
    accumulate: bool,
    a: Operand,
    b: Operand,
    (m, n, k): (usize, usize, usize),
) -> Result<()> {
    let dtype = a.tensor.dtype();
    if b.tensor.dtype() != dtype {
        bail!("matmul: {dtype:?} and {:?}; both factors have the same type", b.tensor.dtype());
    }
    if c.elem_count() != m * n || a.tensor.elem_count() != m * k || b.tensor.elem_count() != k * n {
        bail!("matmul: {:?} and {:?} for {:?}", a.tensor.shape(), b.tensor.shape(), c.shape());
    }
    if m * n == 0 {
        return Ok(());
    }
    if k == 0 {
        return if accumulate { Ok(()) } else { gpu.clear(c) };
    }
    let compute = if dtype == DType::F32 && gemm_reduced_precision_f32() {
        sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32
    } else {
        sys::cublasComputeType_t::CUBLAS_COMPUTE_32F
    };
    let operation = |transposed| match transposed {
        true => sys::cublasOperation_t::CUBLAS_OP_T,
        false => sys::cublasOperation_t::CUBLAS_OP_N,
    };
    let (alpha, beta) = (1f32, if accumulate { 1f32 } else { 0f32 });
    let blas = gpu.blas()?;
    // SAFETY: addresses and distances are those of whole matrices of m * k, k * n and m * n elements, as
    // checked; alpha and beta are host numbers, read before the call returns.
    unsafe {
        result::gemm_ex(
            *blas.handle(),
            operation(a.transposed),
            operation(b.transposed),
            int(m)?,
            int(n)?,
            int(k)?,
            (&raw const alpha).cast(),
            address(a.tensor)?.0 as *const _,
            number_type(dtype)?,
            int(a.leading)?,
            address(b.tensor)?.0 as *const _,
            number_type(dtype)?,
            int(b.leading)?,
            (&raw const beta).cast(),
            address(c)?.0 as *mut _,
            number_type(c.dtype())?,
            int(m)?,
            compute,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .w()
}

fn number_type(dtype: DType) -> Result<sys::cudaDataType_t> {
    match dtype {
        DType::F32 => Ok(sys::cudaDataType_t::CUDA_R_32F),
        DType::BF16 => Ok(sys::cudaDataType_t::CUDA_R_16BF),
        other => bail!("matmul: f32 or bf16 is expected on a GPU, got {other:?}"),
    }
}
