// Root-mean-square norm over the last dimension (ops/rms_norm.rs).
// Kept for backward: x, and 1 / rms of every row: 4 bytes a row save a pass over x.
//
// Bound by memory, as layer norm.
#include "replica.cuh"

constexpr int RMS_ROWS = 8;        // rows of a block at a time, one a warp
constexpr int RMS_COLUMNS = 8;     // columns a thread sums the weight's gradient for
constexpr int RMS_TILE = 256 * RMS_COLUMNS;

template <typename T>
__device__ __forceinline__ void rms_norm_forward(const T* x, const T* weight, T* y, float* rstd, long long rows,
                                                 int width, float eps) {
    const int lane = threadIdx.x % 32;
    const long long row = (long long)blockIdx.x * RMS_ROWS + threadIdx.x / 32;
    if (row >= rows) return;
    const T* x_row = x + row * width;
    const bool packed = width % PACK == 0 && is_aligned(x) && is_aligned(y) && is_aligned(weight);
    float squares = 0;
    over_range(lane, 32, width, packed, [&](int, float v) { squares += v * v; }, x_row);
    const float r = 1.0f / sqrtf(warp_sum(squares) / width + eps);
    map_range(lane, 32, width, packed, y + row * width, [&](int, float v, float w) { return v * r * w; }, x_row,
              weight);
    if (lane == 0 && rstd != nullptr) rstd[row] = r;
}

// Blocks (p, tile): rows p * 8, (p + parts) * 8, .. and, for the weight, the columns of a tile.
template <typename T>
__device__ __forceinline__ void rms_norm_backward(const T* dy, const T* x, const T* weight, const float* rstd, T* dx,
                                                  float* dweight_parts, long long rows, int width, int accumulate_dx) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int tile = blockIdx.y * RMS_TILE + threadIdx.x;
    const bool packed = width % PACK == 0 && is_aligned(x) && is_aligned(dy) && is_aligned(weight) && is_aligned(dx);
    float dw[RMS_COLUMNS] = {};
    for (long long first = (long long)blockIdx.x * RMS_ROWS; first < rows; first += (long long)gridDim.x * RMS_ROWS) {
        // the sums by column go first, as dx may overwrite dy
        if (dweight_parts != nullptr) {
            for (int i = 0; i < RMS_ROWS && first + i < rows; ++i) {
                const long long row = first + i;
                const float r = rstd[row];
#pragma unroll
                for (int j = 0; j < RMS_COLUMNS; ++j) {
                    const int c = tile + j * 256;
                    if (c < width) dw[j] += to_float(dy[row * width + c]) * r * to_float(x[row * width + c]);
                }
            }
            __syncthreads();
        }
        const long long row = first + warp;
        if (blockIdx.y == 0 && row < rows) {
            const float r = rstd[row];
            const T *x_row = x + row * width, *dy_row = dy + row * width;
            T* dx_row = dx + row * width;
            float m = 0;
            over_range(lane, 32, width, packed, [&](int, float v, float d, float w) { m += d * w * v; }, x_row, dy_row,
                       weight);
            m = warp_sum(m) * r * r * r / width;
            const auto slope = [&](int, float v, float d, float w) { return d * w * r - v * m; };
            if (accumulate_dx) {
                map_range(lane, 32, width, packed, dx_row,
                          [&](int c, float v, float d, float w, float old) { return old + slope(c, v, d, w); }, x_row,
                          dy_row, weight, static_cast<const T*>(dx_row));
            } else {
                map_range(lane, 32, width, packed, dx_row, slope, x_row, dy_row, weight);
            }
        }
    }
#pragma unroll
    for (int j = 0; j < RMS_COLUMNS; ++j) {
        const int c = tile + j * 256;
        if (c < width && dweight_parts != nullptr) dweight_parts[(long long)blockIdx.x * width + c] = dw[j];
    }
}

#define EXPORT(T, t)                                                                                                \
    KERNEL(256, rms_norm_forward_##t, const T* x, const T* weight, T* y, float* rstd, long long rows, int width,    \
           float eps) {                                                                                             \
        rms_norm_forward(x, weight, y, rstd, rows, width, eps);                                                     \
    }                                                                                                               \
    KERNEL(256, rms_norm_backward_##t, const T* dy, const T* x, const T* weight, const float* rstd, T* dx,          \
           float* dweight_parts, long long rows, int width, int accumulate_dx) {                                    \
        rms_norm_backward(dy, x, weight, rstd, dx, dweight_parts, rows, width, accumulate_dx);                      \
    }
FOR_TYPES(EXPORT)
