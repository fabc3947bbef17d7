// Sums (ops/sum.rs, ops/squared_error.rs) and the second step of all sums that blocks begin.
// Kept for backward: of the sum nothing, of the squared error both inputs. No atomics: partial sums are added in order.
//
// Bound by memory.
#include "replica.cuh"

// out[i] (+)= parts[0][i] + parts[1][i] + ..; eight groups of parts side by side, 32 columns a block.
KERNEL(256, sum_parts_f32, const float* parts, float* out, int parts_count, long long n, int accumulate) {
    __shared__ float sums[8][32];
    const int lane = threadIdx.x % 32, group = threadIdx.x / 32;
    const long long i = (long long)blockIdx.x * 32 + lane;
    const int size = ceil_div(parts_count, 8);
    const int first = group * size, last = smaller(first + size, parts_count);
    float sum = 0;
    if (i < n) {
#pragma unroll 8
        for (int p = first; p < last; ++p) sum += parts[p * n + i];
    }
    sums[group][lane] = sum;
    __syncthreads();
    if (group == 0 && i < n) {
        float total = sums[0][lane];
        for (int g = 1; g < 8; ++g) total += sums[g][lane];
        out[i] = accumulate ? out[i] + total : total;
    }
}

// out[0] = scale * sum of parts.
KERNEL(256, total_f32, const float* parts, float* out, int parts_count, float scale) {
    __shared__ float scratch[8];
    float sum = 0;
    for (int p = threadIdx.x; p < parts_count; p += 256) sum += parts[p];
    sum = block_sum<256>(sum, scratch);
    if (threadIdx.x == 0) out[0] = scale * sum;
}

// parts[block] = sum of f(x[i]...) over the block's elements.
template <typename F, typename... X>
__device__ __forceinline__ void sum_elements(float* parts, long long n, F f, const X*... x) {
    __shared__ float scratch[8];
    float sum = 0;
    over_range((long long)blockIdx.x * 256 + threadIdx.x, (long long)gridDim.x * 256, n, (is_aligned(x) && ...),
               [&](long long, auto... v) { sum += f(v...); }, x...);
    sum = block_sum<256>(sum, scratch);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

#define EXPORT(T, t)                                                                                              \
    KERNEL(256, sum_##t, const T* x, float* parts, long long n) {                                                 \
        sum_elements(parts, n, [](float v) { return v; }, x);                                                     \
    }                                                                                                             \
    KERNEL(256, squared_error_forward_##t, const T* x, const T* target, float* parts, long long n) {              \
        sum_elements(parts, n, [](float v, float y) { return (v - y) * (v - y); }, x, target);                    \
    }                                                                                                             \
    KERNEL(256, squared_error_backward_##t, const T* x, const T* target, const float* dloss, T* dx, long long n,  \
           float scale, int accumulate) {                                                                         \
        const float factor = dloss[0] * scale;                                                                    \
        map_or_add(n, dx, accumulate, [=](long long, float v, float y) { return factor * (v - y); }, x, target);  \
    }                                                                                                             \
    KERNEL(256, fill_##t, T* dx, const float* value, long long n, int accumulate) {                               \
        const float v = value[0];                                                                                 \
        map_or_add(n, dx, accumulate, [=](long long) { return v; });                                              \
    }
FOR_TYPES(EXPORT)
