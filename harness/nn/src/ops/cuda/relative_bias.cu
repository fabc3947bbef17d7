// Bias of attention scores by buckets of relative positions (ops/relative_bias.rs): bias[h, i, j] = table[buckets[i, j], h].
// Kept for backward: the buckets. A lane owns a bucket and goes through the pairs in order, 256 a warp, so that there
// are no atomics; parts of 2,048 pairs are added in order afterwards.
//
// Forward is bound by memory, backward by four instructions a pair and 32 buckets.
#include "replica.cuh"

constexpr int BIAS_PAIRS = 256;  // pairs of a warp

// Blocks (part, head): parts[part, bucket, head] = sum over the part's pairs of the bucket.
template <typename T>
__device__ __forceinline__ void relative_bias_backward(const u32* buckets, const T* dbias, float* parts,
                                                       long long pairs, int heads, int rows) {
    __shared__ float sums[8][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, head = blockIdx.y;
    const long long first = ((long long)blockIdx.x * 8 + warp) * BIAS_PAIRS;
    for (int row = 0; row < rows; row += 32) {
        float sum = 0;
        for (int i = 0; i < BIAS_PAIRS; i += 32) {
            const long long pair = first + i + lane;
            const bool valid = pair < pairs;
            const u32 bucket = valid ? buckets[pair] : 0;
            const float v = valid ? to_float(dbias[head * pairs + pair]) : 0;
#pragma unroll
            for (int j = 0; j < 32; ++j) {
                const float other = __shfl_sync(ALL_LANES, v, j);
                sum += __shfl_sync(ALL_LANES, bucket, j) == u32(row + lane) ? other : 0.0f;
            }
        }
        sums[warp][lane] = sum;
        __syncthreads();
        if (warp == 0 && row + lane < rows) {
            float total = 0;
#pragma unroll
            for (int w = 0; w < 8; ++w) total += sums[w][lane];
            parts[((long long)blockIdx.x * rows + row + lane) * heads + head] = total;
        }
        __syncthreads();
    }
}

template <typename T>
__device__ __forceinline__ void relative_bias_forward(const u32* buckets, const T* table, T* bias, long long pairs,
                                                      int heads, int rows) {
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < heads * pairs; i += step) {
        const long long head = quotient(i, pairs);
        const u32 bucket = buckets[i - head * pairs];
        // no error can be raised from here; NaN is seen at the next check of the loss
        bias[i] = bucket < u32(rows) ? table[(long long)bucket * heads + head] : from_float<T>(NAN);
    }
}

#define EXPORT(T, t)                                                                                            \
    KERNEL(256, relative_bias_forward_##t, const u32* buckets, const T* table, T* bias, long long pairs,        \
           int heads, int rows) {                                                                               \
        relative_bias_forward(buckets, table, bias, pairs, heads, rows);                                        \
    }                                                                                                           \
    KERNEL(256, relative_bias_backward_##t, const u32* buckets, const T* dbias, float* parts, long long pairs,  \
           int heads, int rows) {                                                                               \
        relative_bias_backward(buckets, dbias, parts, pairs, heads, rows);                                      \
    }
FOR_TYPES(EXPORT)
