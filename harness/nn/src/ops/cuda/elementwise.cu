// Sums and multiples of tensors, changes of number type, transposes (ops/add.rs; gradients that are assigned or added).
// Kept for backward: nothing.
//
// Bound by memory.
#include "replica.cuh"

// dst (+)= a * device_scale * src
template <typename S, typename D>
__device__ __forceinline__ void scale_elements(const S* src, D* dst, long long n, float a, const float* device_scale,
                                               int accumulate) {
    const float factor = device_scale == nullptr ? a : a * device_scale[0];
    map_or_add(n, dst, accumulate, [=](long long, float v) { return factor * v; }, src);
}

// y[b] = x[b]^T by tiles of 32 x 32; the padding keeps columns on different banks.
template <typename T>
__device__ __forceinline__ void transpose(const T* x, T* y, int rows, int cols) {
    __shared__ T tile[32][33];
    const int tx = threadIdx.x % 32, ty = threadIdx.x / 32;
    const int row = blockIdx.y * 32, col = blockIdx.x * 32;
    const long long start = (long long)blockIdx.z * rows * cols;
    for (int i = ty; i < 32; i += 8) {
        if (row + i < rows && col + tx < cols) tile[i][tx] = x[start + (long long)(row + i) * cols + col + tx];
    }
    __syncthreads();
    for (int i = ty; i < 32; i += 8) {
        if (col + i < cols && row + tx < rows) y[start + (long long)(col + i) * rows + row + tx] = tile[tx][i];
    }
}

// Some columns of the rows of one tensor into those of another: y[row, c] (+)= x[row, c], c < width.
template <typename T>
__device__ __forceinline__ void copy_columns(const T* x, T* y, long long rows, int width, long long x_stride,
                                             long long y_stride, int accumulate) {
    const bool packed =
        width % PACK == 0 && x_stride % PACK == 0 && y_stride % PACK == 0 && is_aligned(x) && is_aligned(y);
    over_matrix(rows, width, packed, [&](auto size, long long row, int c) {
        float v[size.value], old[size.value] = {};
        T* to = y + row * y_stride + c;
        load_pack(x + row * x_stride + c, v);
        if (accumulate) load_pack(static_cast<const T*>(to), old);
#pragma unroll
        for (int j = 0; j < size.value; ++j) v[j] += old[j];
        store_pack(to, v);
    });
}

#define EXPORT(T, t)                                                                                             \
    KERNEL(256, add_##t, const T* a, const T* b, T* y, long long n) {                                            \
        map_elements(n, y, [](long long, float u, float v) { return u + v; }, a, b);                             \
    }                                                                                                            \
    KERNEL(256, scale_##t, const T* src, T* dst, long long n, float a, const float* device_scale,                \
           int accumulate) {                                                                                     \
        scale_elements(src, dst, n, a, device_scale, accumulate);                                                \
    }                                                                                                            \
    KERNEL(256, copy_columns_##t, const T* x, T* y, long long rows, int width, long long x_stride,               \
           long long y_stride, int accumulate) {                                                                 \
        copy_columns(x, y, rows, width, x_stride, y_stride, accumulate);                                         \
    }                                                                                                            \
    KERNEL(256, transpose_##t, const T* x, T* y, int rows, int cols) { transpose(x, y, rows, cols); }
FOR_TYPES(EXPORT)

KERNEL(256, scale_bf16_f32, const bf16* src, float* dst, long long n, float a, const float* device_scale,
       int accumulate) {
    scale_elements(src, dst, n, a, device_scale, accumulate);
}
KERNEL(256, scale_f32_bf16, const float* src, bf16* dst, long long n, float a, const float* device_scale,
       int accumulate) {
    scale_elements(src, dst, n, a, device_scale, accumulate);
}
KERNEL(256, cast_f32_bf16, const float* x, bf16* y, long long n) {
    map_elements(n, y, [](long long, float v) { return v; }, x);
}
KERNEL(256, cast_bf16_f32, const bf16* x, float* y, long long n) {
    map_elements(n, y, [](long long, float v) { return v; }, x);
}
