// Causal convolutions over time (ops/conv1d.rs). Depthwise, at most 16 taps (Mamba), y[l] = bias + sum over k of
// w[k] x[l - (K - 1) + k], then SiLU if wanted; and the windows that make a dense one a matrix product.
// Kept for backward: x; what goes into SiLU is computed again.
//
// Bound by memory: a thread holds the window of 16 neighbouring results of a channel in registers; channels lie side
// by side, so that accesses are coalesced.
#include "activation.cuh"

constexpr int CONV_STEPS = 16;   // results a thread computes
constexpr int CONV_TILE = 128;   // steps a block sums the weight's gradient over

// Calls f with the number of taps rounded up to a constant.
template <typename F>
__device__ __forceinline__ void with_taps(int k, F f) {
    if (k <= 4) return f(Size<4>{});
    if (k <= 8) return f(Size<8>{});
    f(Size<16>{});
}

// write(place, bias + sum over m of taps[m] x[l - m]), or x[l + m] if `ahead`; taps[m] = w[K - 1 - m].
template <int MAX, typename T, typename F>
__device__ __forceinline__ void convolve(const T* x, const T* w, const T* bias, int length, int channels, int k,
                                         bool ahead, F write) {
    const int c = blockIdx.x * 128 + threadIdx.x, first = blockIdx.y * CONV_STEPS;
    if (c >= channels) return;
    const long long sequence = (long long)blockIdx.z * length * channels + c;
    x += sequence;
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
        if (first + i < length) write(sequence + (long long)(first + i) * channels, sum);
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

// windows[row, i, j] = x[row - (k - 1) + j, i] within sequences of `length` rows: the rows that a weight
// [out, channels, k] is multiplied by.
template <typename T>
__device__ __forceinline__ void unfold(const T* x, T* windows, long long rows, int length, int channels, int k) {
    const long long step = (long long)gridDim.x * blockDim.x, width = (long long)channels * k;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < rows * width; i += step) {
        const long long row = quotient(i, width), l = row - quotient(row, length) * length;
        const int column = int(i - row * width), channel = column / k, back = k - 1 - column % k;
        windows[i] = l >= back ? x[(row - back) * channels + channel] : from_float<T>(0);
    }
}

// dx[row, i] (+)= sum over j of windows[row + (k - 1) - j, i, j].
template <typename T>
__device__ __forceinline__ void fold(const T* windows, T* dx, long long rows, int length, int channels, int k,
                                     int accumulate) {
    const auto sum = [&](long long i, auto...) {
        const long long row = quotient(i, channels), l = row - quotient(row, length) * length;
        const int channel = int(i - row * channels);
        float total = 0;
        for (int ahead = 0; ahead < k && l + ahead < length; ++ahead) {
            total += to_float(windows[((row + ahead) * channels + channel) * k + k - 1 - ahead]);
        }
        return total;
    };
    map_or_add(rows * channels, dx, accumulate, sum);
}

#define EXPORT(T, t)                                                                                             \
    KERNEL(128, conv1d_forward_##t, const T* x, const T* w, const T* bias, T* y, int batch, int length,          \
           int channels, int k, int silu) {                                                                      \
        with_taps(k, [&](auto max) {                                                                             \
            convolve<max.value>(x, w, bias, length, channels, k, false,                                          \
                                [&](long long i, float v) { y[i] = from_float<T>(silu ? Silu::y(v) : v); });     \
        });                                                                                                      \
    }                                                                                                            \
    KERNEL(128, conv1d_backward_silu_##t, const T* dy, const T* x, const T* w, const T* bias, T* dpre,           \
           int batch, int length, int channels, int k) {                                                         \
        with_taps(k, [&](auto max) {                                                                             \
            convolve<max.value>(x, w, bias, length, channels, k, false, [&](long long i, float v) {              \
                dpre[i] = from_float<T>(to_float(dy[i]) * Silu::slope(v));                                       \
            });                                                                                                  \
        });                                                                                                      \
    }                                                                                                            \
    KERNEL(128, conv1d_backward_input_##t, const T* dy, const T* w, T* dx, int batch, int length, int channels,  \
           int k) {                                                                                              \
        with_taps(k, [&](auto max) {                                                                             \
            convolve<max.value>(dy, w, static_cast<const T*>(nullptr), length, channels, k, true,                \
                                [&](long long i, float v) { dx[i] = from_float<T>(v); });                        \
        });                                                                                                      \
    }                                                                                                            \
    KERNEL(128, conv1d_backward_weight_##t, const T* dy, const T* x, float* dw_parts, float* db_parts,           \
           int batch, int length, int channels, int k) {                                                         \
        with_taps(k, [&](auto max) {                                                                             \
            weight_gradient<max.value>(dy, x, dw_parts, db_parts, length, channels, k);                          \
        });                                                                                                      \
    }                                                                                                            \
    KERNEL(256, conv1d_unfold_##t, const T* x, T* windows, long long rows, int length, int channels, int k) {    \
        unfold(x, windows, rows, length, channels, k);                                                           \
    }                                                                                                            \
    KERNEL(256, conv1d_fold_##t, const T* windows, T* dx, long long rows, int length, int channels, int k,       \
           int accumulate) {                                                                                     \
        fold(windows, dx, rows, length, channels, k, accumulate);                                                \
    }
FOR_TYPES(EXPORT)
