// Cross-entropy of logits [rows, vocab] against i64 labels, -100 ignored (ops/cross_entropy.rs).
// Kept for backward: the log-sum-exp of every row; the gradient may overwrite the logits.
//
// Bound by memory: forward reads the logits once (the largest and the sum go along together), backward reads and
// writes them; the fused kernel reads a row again while it is in the cache.
#include "replica.cuh"

constexpr long long IGNORE = -100;

// Log-sum-exp of a row by a block of 256 threads.
template <typename T>
__device__ __forceinline__ float log_sum_exp(const T* row, int vocab) {
    __shared__ float scratch[8];
    float top = -INFINITE, sum = 0;
    const auto add = [&](float v) {
        if (v > top) {
            sum *= expf(top - v);
            top = v;
        }
        sum += v == -INFINITE ? 0.0f : expf(v - top);
    };
    over_range(int(threadIdx.x), 256, vocab, is_aligned(row), [&](int, float v) { add(v); }, row);
    const float all = block_max<256>(top, scratch);
    return all + logf(block_sum<256>(top == -INFINITE ? sum : sum * expf(top - all), scratch));
}

template <typename T>
__device__ __forceinline__ float row_loss(const T* row, long long label, float lse, int vocab) {
    if (label == IGNORE) return 0;
    // no error can be raised from here; NaN is seen at the next check of the loss
    return label >= 0 && label < vocab ? lse - to_float(row[label]) : NAN;
}

// to = (softmax - one_hot) * scale, zero for an ignored label; `to` may be `row`.
template <typename T>
__device__ __forceinline__ void row_gradient(const T* row, T* to, long long label, float lse, float scale, int vocab) {
    const float factor = label == IGNORE ? 0.0f : scale;
    map_range(int(threadIdx.x), 256, vocab, is_aligned(row) && is_aligned(to), to,
              [&](int c, float v) {
                  return factor == 0.0f ? 0.0f : (expf(v - lse) - (c == label ? 1.0f : 0.0f)) * factor;
              },
              row);
}

// scale[0] = 1 / number of labels that count.
KERNEL(256, cross_entropy_count, const long long* labels, float* scale, long long rows) {
    __shared__ int scratch[8];
    int count = 0;
    for (long long i = threadIdx.x; i < rows; i += 256) count += labels[i] != IGNORE;
    count = block_sum<256>(count, scratch);
    if (threadIdx.x == 0) scale[0] = 1.0f / float(count);
}

// out[0] = scale[0] * sum of losses, the sum in double precision.
KERNEL(256, cross_entropy_mean_f32, const float* losses, const float* scale, float* out, long long rows) {
    __shared__ double scratch[8];
    double sum = 0;
    for (long long i = threadIdx.x; i < rows; i += 256) sum += losses[i];
    sum = block_sum<256>(sum, scratch);
    if (threadIdx.x == 0) out[0] = float(sum * scale[0]);
}

#define EXPORT(T, t)                                                                                                 \
    KERNEL(256, cross_entropy_forward_##t, const T* logits, const long long* labels, float* lse, float* losses,      \
           long long rows, int vocab) {                                                                              \
        const T* row = logits + (long long)blockIdx.x * vocab;                                                       \
        const float z = log_sum_exp(row, vocab);                                                                     \
        if (threadIdx.x == 0) {                                                                                      \
            lse[blockIdx.x] = z;                                                                                     \
            losses[blockIdx.x] = row_loss(row, labels[blockIdx.x], z, vocab);                                        \
        }                                                                                                            \
    }                                                                                                                \
    KERNEL(256, cross_entropy_backward_##t, const T* logits, T* dlogits, const long long* labels, const float* lse,  \
           const float* scale, const float* dloss, long long rows, int vocab) {                                      \
        const long long start = (long long)blockIdx.x * vocab;                                                       \
        const float factor = dloss == nullptr ? scale[0] : scale[0] * dloss[0];                                      \
        row_gradient(logits + start, dlogits + start, labels[blockIdx.x], lse[blockIdx.x], factor, vocab);           \
    }                                                                                                                \
    KERNEL(256, cross_entropy_fused_##t, T* logits, const long long* labels, float* losses, const float* scale,      \
           long long rows, int vocab) {                                                                              \
        T* row = logits + (long long)blockIdx.x * vocab;                                                             \
        const long long label = labels[blockIdx.x];                                                                  \
        const float z = log_sum_exp(static_cast<const T*>(row), vocab);                                              \
        if (threadIdx.x == 0) losses[blockIdx.x] = row_loss(row, label, z, vocab);                                   \
        /* thread 0 has read the label's logit before it is overwritten */                                          \
        __syncthreads();                                                                                             \
        row_gradient(static_cast<const T*>(row), row, label, z, scale[0], vocab);                                    \
    }
FOR_TYPES(EXPORT)
