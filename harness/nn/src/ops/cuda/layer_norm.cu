// Layer norm over the last dimension (ops/layer_norm.rs).
// Kept for backward: x, and mean and 1 / sqrt(var + eps) of every row: 8 bytes a row save two passes over x.
//
// Bound by memory: forward reads x and writes y, backward reads x and dy and writes dx, once; what is read again
// within a block comes from the L1 cache.
#include "replica.cuh"

constexpr int LN_ROWS = 8;         // rows of a block at a time, one a warp
constexpr int LN_COLUMNS = 8;      // columns a thread sums gradients of weight and bias for
constexpr int LN_TILE = 256 * LN_COLUMNS;

template <typename T>
__device__ __forceinline__ void layer_norm_forward(const T* x, const T* weight, const T* bias, T* y, float* mean,
                                                   float* rstd, long long rows, int width, float eps) {
    const int lane = threadIdx.x % 32;
    const long long row = (long long)blockIdx.x * LN_ROWS + threadIdx.x / 32;
    if (row >= rows) return;
    const T* x_row = x + row * width;
    T* y_row = y + row * width;
    const bool packed = width % PACK == 0 && is_aligned(x) && is_aligned(y) && is_aligned(weight) && is_aligned(bias);
    float sum = 0;
    over_range(lane, 32, width, packed, [&](int, float v) { sum += v; }, x_row);
    const float m = warp_sum(sum) / width;
    float squares = 0;
    over_range(lane, 32, width, packed, [&](int, float v) { squares += (v - m) * (v - m); }, x_row);
    const float r = 1.0f / sqrtf(warp_sum(squares) / width + eps);
    if (bias != nullptr) {
        map_range(lane, 32, width, packed, y_row,
                  [&](int, float v, float w, float b) { return (v - m) * r * w + b; }, x_row, weight, bias);
    } else {
        map_range(lane, 32, width, packed, y_row, [&](int, float v, float w) { return (v - m) * r * w; }, x_row,
                  weight);
    }
    if (lane == 0 && mean != nullptr) {
        mean[row] = m;
        rstd[row] = r;
    }
}

// Blocks (p, tile): rows p * 8, (p + parts) * 8, .. and, for weight and bias, the columns of a tile.
template <typename T>
__device__ __forceinline__ void layer_norm_backward(const T* dy, const T* x, const T* weight, const float* mean,
                                                    const float* rstd, T* dx, float* dweight_parts, float* dbias_parts,
                                                    long long rows, int width, int accumulate_dx) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int tile = blockIdx.y * LN_TILE + threadIdx.x;
    const bool packed = width % PACK == 0 && is_aligned(x) && is_aligned(dy) && is_aligned(weight) && is_aligned(dx);
    float dw[LN_COLUMNS] = {}, db[LN_COLUMNS] = {};
    for (long long first = (long long)blockIdx.x * LN_ROWS; first < rows; first += (long long)gridDim.x * LN_ROWS) {
        // the sums by column go first, as dx may overwrite dy
        if (dweight_parts != nullptr || dbias_parts != nullptr) {
            for (int i = 0; i < LN_ROWS && first + i < rows; ++i) {
                const long long row = first + i;
                const float m = mean[row], r = rstd[row];
#pragma unroll
                for (int j = 0; j < LN_COLUMNS; ++j) {
                    const int c = tile + j * 256;
                    if (c < width) {
                        const float d = to_float(dy[row * width + c]);
                        dw[j] += d * ((to_float(x[row * width + c]) - m) * r);
                        db[j] += d;
                    }
                }
            }
            __syncthreads();
        }
        const long long row = first + warp;
        if (blockIdx.y == 0 && row < rows) {
            const float m = mean[row], r = rstd[row];
            const T *x_row = x + row * width, *dy_row = dy + row * width;
            T* dx_row = dx + row * width;
            float m1 = 0, m2 = 0;
            over_range(lane, 32, width, packed,
                       [&](int, float v, float d, float w) {
                           m1 += d * w;
                           m2 += d * w * ((v - m) * r);
                       },
                       x_row, dy_row, weight);
            m1 = warp_sum(m1) / width;
            m2 = warp_sum(m2) / width;
            const auto slope = [&](int, float v, float d, float w) { return r * (d * w - m1 - (v - m) * r * m2); };
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
    for (int j = 0; j < LN_COLUMNS; ++j) {
        const int c = tile + j * 256;
        if (c < width && dweight_parts != nullptr) dweight_parts[(long long)blockIdx.x * width + c] = dw[j];
        if (c < width && dbias_parts != nullptr) dbias_parts[(long long)blockIdx.x * width + c] = db[j];
    }
}

#define EXPORT(T, t)                                                                                                 \
    KERNEL(256, layer_norm_forward_##t, const T* x, const T* weight, const T* bias, T* y, float* mean, float* rstd,  \
           long long rows, int width, float eps) {                                                                   \
        layer_norm_forward(x, weight, bias, y, mean, rstd, rows, width, eps);                                        \
    }                                                                                                                \
    KERNEL(256, layer_norm_backward_##t, const T* dy, const T* x, const T* weight, const float* mean,                \
           const float* rstd, T* dx, float* dweight_parts, float* dbias_parts, long long rows, int width,            \
           int accumulate_dx) {                                                                                      \
        layer_norm_backward(dy, x, weight, mean, rstd, dx, dweight_parts, dbias_parts, rows, width, accumulate_dx);  \
    }
FOR_TYPES(EXPORT)
