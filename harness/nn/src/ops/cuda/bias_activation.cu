// Bias and activation after a matrix product, y = act(x + bias), and the bias's gradient (ops/linear.rs).
// Kept for backward: x + bias, the activation's input; nothing without an activation.
//
// Bound by memory: one pass each way.
#include "activation.cuh"

constexpr int BIAS_ROWS = 8;          // rows of a block at a time, one a warp
constexpr int BIAS_TILE = 32 * PACK;  // columns of a block

template <typename T>
__device__ __forceinline__ void bias_activation_forward(const T* x, const T* bias, T* pre, T* y, long long rows,
                                                        int width, int activation) {
    const bool packed =
        width % PACK == 0 && is_aligned(x) && is_aligned(bias) && is_aligned(pre) && is_aligned(y);
    with_activation(activation, [&](auto act) {
        over_matrix(rows, width, packed, [&](auto size, long long row, int c) {
            float v[size.value], b[size.value] = {};
            load_pack(x + row * width + c, v);
            if (bias != nullptr) load_pack(bias + c, b);
#pragma unroll
            for (int j = 0; j < size.value; ++j) v[j] += b[j];
            if (pre != nullptr) store_pack(pre + row * width + c, v);
#pragma unroll
            for (int j = 0; j < size.value; ++j) v[j] = act.y(v[j]);
            store_pack(y + row * width + c, v);
        });
    });
}

// Blocks (tile of columns, p): rows p * 8, (p + parts) * 8, ..
template <typename T>
__device__ __forceinline__ void bias_activation_backward(const T* dy, const T* kept, T* dpre, float* dbias_parts,
                                                         long long rows, int width, int activation) {
    __shared__ float sums[BIAS_ROWS][BIAS_TILE];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int tile = blockIdx.x * BIAS_TILE;
    const bool packed = width % PACK == 0 && is_aligned(dy) && is_aligned(kept) && is_aligned(dpre);
    const long long first = (long long)blockIdx.y * BIAS_ROWS + warp, step = (long long)gridDim.y * BIAS_ROWS;
    // column j of this lane
    const auto column = [&](int j) { return packed ? lane * PACK + j : lane + 32 * j; };
    float total[PACK] = {};
    with_activation(activation, [&](auto act) {
        for (long long row = first; row < rows; row += step) {
            const long long start = row * width + tile;
            float d[PACK] = {}, v[PACK] = {};
            if (packed) {
                if (tile + lane * PACK >= width) continue;
                load_pack(dy + start + lane * PACK, d);
                if (kept != nullptr) load_pack(kept + start + lane * PACK, v);
            } else {
#pragma unroll
                for (int j = 0; j < PACK; ++j) {
                    if (tile + column(j) < width) {
                        d[j] = to_float(dy[start + column(j)]);
                        if (kept != nullptr) v[j] = to_float(kept[start + column(j)]);
                    }
                }
            }
#pragma unroll
            for (int j = 0; j < PACK; ++j) {
                d[j] *= act.slope(v[j]);
                total[j] += d[j];
            }
            if (dpre != nullptr && packed) {
                store_pack(dpre + start + lane * PACK, d);
            } else if (dpre != nullptr) {
#pragma unroll
                for (int j = 0; j < PACK; ++j) {
                    if (tile + column(j) < width) dpre[start + column(j)] = from_float<T>(d[j]);
                }
            }
        }
    });
    if (dbias_parts == nullptr) return;
#pragma unroll
    for (int j = 0; j < PACK; ++j) sums[warp][column(j)] = total[j];
    __syncthreads();
    const int c = threadIdx.x;
    if (tile + c < width) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < BIAS_ROWS; ++i) sum += sums[i][c];
        dbias_parts[(long long)blockIdx.y * width + tile + c] = sum;
    }
}

#define EXPORT(T, t)                                                                                              \
    KERNEL(256, bias_activation_forward_##t, const T* x, const T* bias, T* pre, T* y, long long rows, int width,  \
           int activation) {                                                                                      \
        bias_activation_forward(x, bias, pre, y, rows, width, activation);                                        \
    }                                                                                                             \
    KERNEL(256, bias_activation_backward_##t, const T* dy, const T* kept, T* dpre, float* dbias_parts,            \
           long long rows, int width, int activation) {                                                           \
        bias_activation_backward(dy, kept, dpre, dbias_parts, rows, width, activation);                           \
    }
FOR_TYPES(EXPORT)
