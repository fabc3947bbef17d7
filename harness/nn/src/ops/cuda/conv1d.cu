// Depthwise causal convolution over time, at most 16 taps (Mamba): y[l] = bias + sum over k of w[k] x[l - (K - 1) + k].
// Kept for backward: x.
//
// Bound by memory: a thread holds the window of 16 neighbouring results of a channel in registers; channels lie side
// by side, so that accesses are coalesced.
#include "replica.cuh"

constexpr int CONV_STEPS = 16;   // results a thread computes
constexpr int CONV_TILE = 128;   // steps a block sums the weight's gradient over

// Calls f with the number of taps rounded up to a constant.
template <typename F>
__device__ __forceinline__ void with_taps(int k, F f) {
    if (k <= 4) return f(Size<4>{});
    if (k <= 8) return f(Size<8>{});
    f(Size<16>{});
}

// y[l] = bias + sum over m of taps[m] x[l - m], or x[l + m] if `ahead`; taps[m] = w[K - 1 - m].
template <int MAX, typename T>
__device__ __forceinline__ void convolve(const T* x, const T* w, const T* bias, T* y, int length, int channels, int k,
                                         bool ahead) {
    const int c = blockIdx.x * 128 + threadIdx.x, first = blockIdx.y * CONV_STEPS;
    if (c >= channels) return;
    x += (long long)blockIdx.z * length * channels + c;
    y += (long long)blockIdx.z * length * channels + c;
    const int begin = ahead ? first : first - (MAX - 1);
    float window[CONV_STEPS + MAX - 1], taps[MAX];
#pragma unroll
    for (int i = 0; i < CONV_STEPS + MAX - 1; ++i) {
        const int l = begin + i;
        window[i] = l >= 0 && l < length ? to_float(x[(long long)l * channels]) : 0.0f;
    }
#pragma unroll
    for (int m = 0; m < MAX; ++m) taps[m] = m < k ? to_float(w[(long long)c * k + k - 1 - m]) : 0.0f;
    const float start = bias == nullptr ? 0.0f : to_float(bias[c]);
#pragma unroll
    for (int i = 0; i < CONV_STEPS; ++i) {
        float sum = start;
#pragma unroll
        for (int m = 0; m < MAX; ++m) {
            if (m < k) sum += taps[m] * window[ahead ? i + m : i + MAX - 1 - m];
        }
        if (first + i < length) y[(long long)(first + i) * channels] = from_float<T>(sum);
    }
}

// Sums over the steps of a tile and a batch entry.
template <int MAX, typename T>
__device__ __forceinline__ void weight_gradient(const T* dy, const T* x, float* dw_parts, float* db_parts, int length,
                                                int channels, int k) {
    const int c = blockIdx.x * 128 + threadIdx.x, first = blockIdx.y * CONV_TILE;
    if (c >= channels) return;
    dy += (long long)blockIdx.z * length * channels + c;
    x += (long long)blockIdx.z * length * channels + c;
    float window[MAX], dw[MAX] = {}, db = 0;
    window[0] = 0;
#pragma unroll
    for (int m = 1; m < MAX; ++m) {
        window[m - 1] = first - m >= 0 ? to_float(x[(long long)(first - m) * channels]) : 0.0f;
    }
    window[MAX - 1] = 0;
#pragma unroll 4
    for (int l = first; l < smaller(first + CONV_TILE, length); ++l) {
#pragma unroll
        for (int m = MAX - 1; m > 0; --m) window[m] = window[m - 1];
        window[0] = to_float(x[(long long)l * channels]);
        const float d = to_float(dy[(long long)l * channels]);
        db += d;
#pragma unroll
        for (int m = 0; m < MAX; ++m) dw[m] += d * window[m];
    }
    const long long part = (long long)blockIdx.z * gridDim.y + blockIdx.y;
#pragma unroll
    for (int m = 0; m < MAX; ++m) {
        if (m < k) dw_parts[(part * channels + c) * k + k - 1 - m] = dw[m];
    }
    if (db_parts != nullptr) db_parts[part * channels + c] = db;
}

#define EXPORT(T, t)                                                                                                 \
    KERNEL(128, conv1d_forward_##t, const T* x, const T* w, const T* bias, T* y, int batch, int length,              \
           int channels, int k) {                                                                                    \
        with_taps(k, [&](auto max) { convolve<max.value>(x, w, bias, y, length, channels, k, false); });             \
    }                                                                                                                \
    KERNEL(128, conv1d_backward_input_##t, const T* dy, const T* w, T* dx, int batch, int length, int channels,      \
           int k) {                                                                                                  \
        with_taps(k, [&](auto max) {                                                                                 \
            convolve<max.value>(dy, w, static_cast<const T*>(nullptr), dx, length, channels, k, true);               \
        });                                                                                                          \
    }                                                                                                                \
    KERNEL(128, conv1d_backward_weight_##t, const T* dy, const T* x, float* dw_parts, float* db_parts, int batch,    \
           int length, int channels, int k) {                                                                        \
        with_taps(k, [&](auto max) {                                                                                 \
            weight_gradient<max.value>(dy, x, dw_parts, db_parts, length, channels, k);                              \
        });                                                                                                          \
    }
FOR_TYPES(EXPORT)
