// Bias of attention scores by the distance of a key from its query (ops/relative_bias.rs):
// bias[h, i, j] = table[buckets[t - 1 - i + j], h].
// Kept for backward: the buckets. A lane owns a bucket and goes through the pairs in order, 256 a warp, so that there
// are no atomics; parts of 2,048 pairs are added in order afterwards.
//
// Forward is bound by memory, backward by four instructions a pair and 32 buckets.
#include "replica.cuh"

constexpr int BIAS_PAIRS = 256;  // pairs of a warp
constexpr u32 OUT_OF_REACH = 0xffffffffu;
constexpr float UNSEEN = -1e9f;

__device__ __forceinline__ u32 bucket_of(const u32* buckets, long long pair, int queries, int keys) {
    const long long query = quotient(pair, keys);
    return buckets[queries - 1 - query + (pair - query * keys)];
}

// Blocks (part, head): parts[part, bucket, head] = sum over the part's pairs of the bucket.
template <typename T>
__device__ __forceinline__ void relative_bias_backward(const u32* buckets, const T* dbias, float* parts,
                                                       int queries, int keys, int heads, int rows) {
    __shared__ float sums[8][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, head = blockIdx.y;
    const long long pairs = (long long)queries * keys, first = ((long long)blockIdx.x * 8 + warp) * BIAS_PAIRS;
    for (int row = 0; row < rows; row += 32) {
        float sum = 0;
        for (int i = 0; i < BIAS_PAIRS; i += 32) {
            const long long pair = first + i + lane;
            const bool valid = pair < pairs;
            const u32 bucket = valid ? bucket_of(buckets, pair, queries, keys) : OUT_OF_REACH;
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
__device__ __forceinline__ void relative_bias_forward(const u32* buckets, const T* table, T* bias, int queries,
                                                      int keys, int heads, int rows) {
    const long long pairs = (long long)queries * keys, step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < heads * pairs; i += step) {
        const long long head = quotient(i, pairs);
        const u32 bucket = bucket_of(buckets, i - head * pairs, queries, keys);
        // no error can be raised from here; NaN is seen at the next check of the loss
        bias[i] = bucket < u32(rows) ? table[(long long)bucket * heads + head]
                                     : from_float<T>(bucket == OUT_OF_REACH ? UNSEEN : NAN);
    }
}

#define EXPORT(T, t)                                                                                            \
    KERNEL(256, relative_bias_forward_##t, const u32* buckets, const T* table, T* bias, int queries, int keys,  \
           int heads, int rows) {                                                                               \
        relative_bias_forward(buckets, table, bias, queries, keys, heads, rows);                                \
    }                                                                                                           \
    KERNEL(256, relative_bias_backward_##t, const u32* buckets, const T* dbias, float* parts, int queries,      \
           int keys, int heads, int rows) {                                                                     \
        relative_bias_backward(buckets, dbias, parts, queries, keys, heads, rows);                              \
    }
FOR_TYPES(EXPORT)
