// Global gradient norm, clipping, and AdamW (Loshchilov and Hutter 2019) with float master weights.
// What changes from step to step (learning rate, corrections, clip factor) is read from device memory, so that a step
// can be a captured graph; a gradient that is not finite changes nothing.
//
// Bound by memory: 28 bytes a weight (w, m, v read and written, g read), 2 more for the bf16 copy.
#include "replica.cuh"

KERNEL(256, sum_squares_f32, const float* g, long long n, float* parts) {
    __shared__ float scratch[8];
    float sum = 0;
    over_range((long long)blockIdx.x * 256 + threadIdx.x, (long long)gridDim.x * 256, n, is_aligned(g),
               [&](long long, float v) { sum += v * v; }, g);
    sum = block_sum<256>(sum, scratch);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// out: the norm, the factor of clip_grad_norm_, and 1 if the norm is finite, else 0.
KERNEL(256, clip_f32, const float* parts, int parts_count, float max_norm, float* out) {
    __shared__ double scratch[8];
    double sum = 0;
    for (int i = threadIdx.x; i < parts_count; i += 256) sum += parts[i];
    sum = block_sum<256>(sum, scratch);
    if (threadIdx.x == 0) {
        const double norm = sqrt(sum);
        const double factor = max_norm / (norm + 1e-6);
        out[0] = float(norm);
        out[1] = max_norm <= 0 || factor > 1 ? 1.0f : float(factor);
        out[2] = norm < 3e38 ? 1.0f : 0.0f;
    }
}

// hyper: step size lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), decay 1 - lr * weight_decay.
KERNEL(256, adamw_f32, float* w, float* m, float* v, const float* g, bf16* copy, long long n, const float* hyper,
       const float* clip, float beta1, float beta2, float eps) {
    if (clip != nullptr && clip[2] == 0) return;
    const float factor = clip == nullptr ? 1.0f : clip[1];
    const float step_size = hyper[0], correction = hyper[1], decay = hyper[2];
    const long long first = (long long)blockIdx.x * 256 + threadIdx.x, step = (long long)gridDim.x * 256;
    const auto update = [&](auto size, long long i) {
        float weight[size.value], m1[size.value], m2[size.value], gradient[size.value];
        load_pack(static_cast<const float*>(w + i), weight);
        load_pack(static_cast<const float*>(m + i), m1);
        load_pack(static_cast<const float*>(v + i), m2);
        load_pack(g + i, gradient);
#pragma unroll
        for (int j = 0; j < size.value; ++j) {
            const float d = gradient[j] * factor;
            m1[j] = beta1 * m1[j] + (1.0f - beta1) * d;
            m2[j] = beta2 * m2[j] + (1.0f - beta2) * d * d;
            weight[j] = weight[j] * decay - step_size * m1[j] / (sqrtf(m2[j]) * correction + eps);
        }
        store_pack(w + i, weight);
        store_pack(m + i, m1);
        store_pack(v + i, m2);
        if (copy != nullptr) store_pack(copy + i, weight);
    };
    long long done = 0;
    if (is_aligned(w) && is_aligned(m) && is_aligned(v) && is_aligned(g) && is_aligned(copy)) {
        done = n / PACK * PACK;
        for (long long i = first * PACK; i < done; i += step * PACK) update(Size<PACK>{}, i);
    }
    for (long long i = done + first; i < n; i += step) update(Size<1>{}, i);
}
