// Mean over the first positions of every sequence, [batch, t, width] to [batch, width] (ops/pool.rs).
// Kept for backward: the lengths.
//
// Bound by memory: forward reads the positions that count once, backward writes all of them.
#include "replica.cuh"

constexpr int POOL_COLUMNS = 32;  // columns of a block, one a lane
constexpr int POOL_GROUPS = 8;    // positions of a block at a time, one a warp

// Blocks (columns, p, b): positions p * size to (p + 1) * size of sequence b. parts [count, batch, width]: their sums.
template <typename T>
__device__ __forceinline__ void pool_sums(const T* x, const u32* lengths, float* parts, int t, int size, int width) {
    __shared__ float sums[POOL_GROUPS][POOL_COLUMNS];
    const int lane = threadIdx.x % 32, group = threadIdx.x / 32, c = blockIdx.x * POOL_COLUMNS + lane;
    const long long b = blockIdx.z, batch = gridDim.z;
    const T* row = x + b * t * width + c;
    const int first = blockIdx.y * size, end = smaller(first + size, int(lengths[b]));
    float sum = 0;
    for (int i = first + group; c < width && i < end; i += POOL_GROUPS) sum += to_float(row[(long long)i * width]);
    sums[group][lane] = sum;
    __syncthreads();
    if (group == 0 && c < width) {
        for (int g = 1; g < POOL_GROUPS; ++g) sum += sums[g][lane];
        parts[((long long)blockIdx.y * batch + b) * width + c] = sum;
    }
}

// y[b] = sum of parts / length, in the order of positions.
template <typename T>
__device__ __forceinline__ void pool_mean(const float* parts, const u32* lengths, T* y, int count, long long batch,
                                          int width) {
    over_matrix(batch, width, false, [&](auto, long long b, int c) {
        float sum = 0;
        for (int p = 0; p < count; ++p) sum += parts[(p * batch + b) * width + c];
        y[b * width + c] = from_float<T>(sum / float(lengths[b]));
    });
}

template <typename T>
__device__ __forceinline__ void pool_backward(const T* dy, const u32* lengths, T* dx, long long batch, int t, int width,
                                              int accumulate) {
    const bool packed = width % PACK == 0 && is_aligned(dy) && is_aligned(dx);
    over_matrix(batch * t, width, packed, [&](auto size, long long row, int c) {
        const long long b = quotient(row, t);
        const u32 length = lengths[b];
        const bool counts = row - b * t < length;
        if (!counts && accumulate) return;
        float v[size.value] = {}, old[size.value] = {};
        T* to = dx + row * width + c;
        if (counts) load_pack(dy + b * width + c, v);
        if (accumulate) load_pack(static_cast<const T*>(to), old);
#pragma unroll
        for (int j = 0; j < size.value; ++j) v[j] = old[j] + v[j] / float(length);
        store_pack(to, v);
    });
}

#define EXPORT(T, t)                                                                                               \
    KERNEL(256, pool_sums_##t, const T* x, const u32* lengths, float* parts, int steps, int size, int width) {     \
        pool_sums(x, lengths, parts, steps, size, width);                                                          \
    }                                                                                                              \
    KERNEL(256, pool_mean_##t, const float* parts, const u32* lengths, T* y, int count, long long batch,           \
           int width) {                                                                                            \
        pool_mean(parts, lengths, y, count, batch, width);                                                         \
    }                                                                                                              \
    KERNEL(256, pool_backward_##t, const T* dy, const u32* lengths, T* dx, long long batch, int steps, int width,  \
           int accumulate) {                                                                                       \
        pool_backward(dy, lengths, dx, batch, steps, width, accumulate);                                           \
    }
FOR_TYPES(EXPORT)
