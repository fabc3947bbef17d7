// Mamba's selective scan (Gu and Dao 2023): x_t = exp(step_t A) x_{t-1} + step_t B_t u_t, y_t = C_t x_t + skip u_t, for
// every channel and its up to 16 states, with step = softplus(delta + bias) and A = -exp(a_log). Kept for backward: the
// inputs and the states before every chunk of 32 steps, 64 bytes a channel and chunk; the states in between are computed
// again and stay in registers.
//
// Bound by exponentials and, in backward, by the sums over states (shuffles): one thread a state, so that the
// recurrence itself is one fused multiply-add a step.
#include "activation.cuh"

constexpr int MAMBA_CHANNELS = 32, MAMBA_STATES = 16, MAMBA_CHUNK = 32, MAMBA_THREADS = 512;
constexpr int MAMBA_GROUP = 8;  // steps whose gradients of B and C are summed over the channels at a time
constexpr float MAMBA_LOG2_E = 1.4426950408889634f;

// What makes steps of delta.
struct Step {
    const float* bias;
    int softplus;

    __device__ __forceinline__ float input(float delta, int channel) const {
        return bias == nullptr ? delta : delta + bias[channel];
    }
    __device__ __forceinline__ float operator()(float delta, int channel) const {
        return softplus ? Softplus::y(input(delta, channel)) : input(delta, channel);
    }
    __device__ __forceinline__ float slope(float step) const {
        // sigmoid of the input, from softplus itself
        return softplus ? -expm1f(-step) : 1.0f;
    }
};

using Steps = float[MAMBA_CHUNK][MAMBA_CHANNELS];
using Projections = float[MAMBA_CHUNK][MAMBA_STATES];

// Steps first .. first + 32 of the block's channels; zeros beyond the ends, for which a step changes nothing.
template <typename T, typename F>
__device__ __forceinline__ void read_steps(Steps& to, const T* from, int first, int length, int channels, F f) {
    for (int i = threadIdx.x; i < MAMBA_CHUNK * MAMBA_CHANNELS; i += MAMBA_THREADS) {
        const int l = i / MAMBA_CHANNELS, c = i % MAMBA_CHANNELS, channel = blockIdx.x * MAMBA_CHANNELS + c;
        const bool valid = first + l < length && channel < channels;
        const long long at = ((long long)blockIdx.y * length + first + l) * channels + channel;
        to[l][c] = valid ? f(to_float(from[at]), channel) : 0.0f;
    }
}

template <typename T>
__device__ __forceinline__ void write_steps(T* to, const Steps& from, int first, int length, int channels) {
#pragma unroll 1
    for (int i = threadIdx.x; i < MAMBA_CHUNK * MAMBA_CHANNELS; i += MAMBA_THREADS) {
        const int l = i / MAMBA_CHANNELS, c = i % MAMBA_CHANNELS, channel = blockIdx.x * MAMBA_CHANNELS + c;
        if (first + l < length && channel < channels) {
            to[((long long)blockIdx.y * length + first + l) * channels + channel] = from_float<T>(from[l][c]);
        }
    }
}

template <typename T>
__device__ __forceinline__ void read_projections(Projections& to, const T* from, int first, int length, int states) {
    for (int i = threadIdx.x; i < MAMBA_CHUNK * MAMBA_STATES; i += MAMBA_THREADS) {
        const int l = i / MAMBA_STATES, n = i % MAMBA_STATES;
        const bool valid = first + l < length && n < states;
        to[l][n] = valid ? to_float(from[((long long)blockIdx.y * length + first + l) * states + n]) : 0.0f;
    }
}

// Sum over the 16 threads of a channel.
__device__ __forceinline__ float state_sum(float v) {
#pragma unroll
    for (int mask = 8; mask > 0; mask /= 2) v += __shfl_xor_sync(ALL_LANES, v, mask);
    return v;
}

template <typename T>
__device__ __forceinline__ void selective_scan_forward(const T* u, const T* delta, Step step_of,
                                                       const float* a_log, const T* Bm, const T* Cm, const float* skip,
                                                       T* y, float* states, int length, int d, int n_states) {
    __shared__ Steps u_tile, delta_tile, y_tile;
    __shared__ Projections b_tile, c_tile;
    const int n = threadIdx.x % MAMBA_STATES, c = threadIdx.x / MAMBA_STATES;
    const int channel = blockIdx.x * MAMBA_CHANNELS + c;
    const bool valid = channel < d && n < n_states;
    const float a = valid ? -expf(a_log[(long long)channel * n_states + n]) * MAMBA_LOG2_E : 0.0f;
    const float direct = skip != nullptr && channel < d ? skip[channel] : 0.0f;
    const auto plain = [](float v, int) { return v; };
    const int chunks = ceil_div(length, MAMBA_CHUNK);
    float x = 0;
    for (int chunk = 0; chunk < chunks; ++chunk) {
        const int first = chunk * MAMBA_CHUNK;
        read_steps(u_tile, u, first, length, d, plain);
        read_steps(delta_tile, delta, first, length, d, step_of);
        read_projections(b_tile, Bm, first, length, n_states);
        read_projections(c_tile, Cm, first, length, n_states);
        if (valid && states != nullptr) {
            states[(((long long)blockIdx.y * chunks + chunk) * d + channel) * n_states + n] = x;
        }
        __syncthreads();
#pragma unroll 4
        for (int l = 0; l < MAMBA_CHUNK; ++l) {
            const float step = delta_tile[l][c], input = u_tile[l][c];
            x = exp2f(step * a) * x + step * input * b_tile[l][n];
            const float sum = state_sum(c_tile[l][n] * x);
            if (n == 0) y_tile[l][c] = sum + direct * input;
        }
        __syncthreads();
        write_steps(y, y_tile, first, length, d);
    }
}

template <typename T>
__device__ __forceinline__ void selective_scan_backward(const T* dy, const T* u, const T* delta, Step step_of,
                                                        const float* a_log, const T* Bm, const T* Cm,
                                                        const float* skip, const float* states, T* du, T* ddelta,
                                                        float* da_log_parts,
                                                        float* dB_parts, float* dC_parts, float* dskip_parts,
                                                        int batch, int length, int d, int n_states) {
    __shared__ Steps u_tile, delta_tile, dy_tile, du_tile, ddelta_tile;
    __shared__ Projections b_tile, c_tile;
    __shared__ float sums[2][MAMBA_THREADS / 32][MAMBA_GROUP][MAMBA_STATES];
    const int n = threadIdx.x % MAMBA_STATES, c = threadIdx.x / MAMBA_STATES;
    const int channel = blockIdx.x * MAMBA_CHANNELS + c;
    const bool valid = channel < d && n < n_states;
    const float rate = valid ? -expf(a_log[(long long)channel * n_states + n]) : 0.0f;
    const float direct = skip != nullptr && channel < d ? skip[channel] : 0.0f;
    const auto plain = [](float v, int) { return v; };
    const int chunks = ceil_div(length, MAMBA_CHUNK);
    float g = 0, dA = 0, dskip = 0;
    for (int chunk = chunks - 1; chunk >= 0; --chunk) {
        const int first = chunk * MAMBA_CHUNK;
        read_steps(u_tile, u, first, length, d, plain);
        read_steps(delta_tile, delta, first, length, d, step_of);
        read_steps(dy_tile, dy, first, length, d, plain);
        read_projections(b_tile, Bm, first, length, n_states);
        read_projections(c_tile, Cm, first, length, n_states);
        const float start =
            valid ? states[(((long long)blockIdx.y * chunks + chunk) * d + channel) * n_states + n] : 0.0f;
        __syncthreads();
        float x[MAMBA_CHUNK];
#pragma unroll
        for (int l = 0; l < MAMBA_CHUNK; ++l) {
            const float step = delta_tile[l][c];
            const float before = l == 0 ? start : x[l == 0 ? 0 : l - 1];
            x[l] = exp2f(step * (rate * MAMBA_LOG2_E)) * before + step * u_tile[l][c] * b_tile[l][n];
        }
#pragma unroll
        for (int l = MAMBA_CHUNK - 1; l >= 0; --l) {
            const float step = delta_tile[l][c], input = u_tile[l][c], d_y = dy_tile[l][c], b = b_tile[l][n];
            const float factor = exp2f(step * (rate * MAMBA_LOG2_E)), before = l == 0 ? start : x[l == 0 ? 0 : l - 1];
            // g is the gradient of x_l
            g += c_tile[l][n] * d_y;
            dA += g * before * factor * step;
            const float d_step = state_sum(g * (before * factor * rate + input * b));
            const float d_input = state_sum(g * step * b);
            if (n == 0) {
                ddelta_tile[l][c] = d_step * step_of.slope(step);
                du_tile[l][c] = d_input + direct * d_y;
                dskip += d_y * input;
            }
            float dB = g * step * input, dC = d_y * x[l];
            dB += __shfl_xor_sync(ALL_LANES, dB, 16);
            dC += __shfl_xor_sync(ALL_LANES, dC, 16);
            if (threadIdx.x % 32 < MAMBA_STATES) {
                sums[0][threadIdx.x / 32][l % MAMBA_GROUP][n] = dB;
                sums[1][threadIdx.x / 32][l % MAMBA_GROUP][n] = dC;
            }
            g *= factor;
            if (l % MAMBA_GROUP == 0) {
                __syncthreads();
                if (threadIdx.x < 2 * MAMBA_GROUP * MAMBA_STATES) {
                    const int which = threadIdx.x / (MAMBA_GROUP * MAMBA_STATES);
                    const int at = first + l + threadIdx.x / MAMBA_STATES % MAMBA_GROUP;
                    float total = 0;
#pragma unroll
                    for (int warp = 0; warp < MAMBA_THREADS / 32; ++warp) {
                        total += sums[which][warp][threadIdx.x / MAMBA_STATES % MAMBA_GROUP][n];
                    }
                    float* parts = which == 0 ? dB_parts : dC_parts;
                    if (at < length && n < n_states) {
                        parts[(((long long)blockIdx.x * batch + blockIdx.y) * length + at) * n_states + n] = total;
                    }
                }
                __syncthreads();
            }
        }
        write_steps(du, du_tile, first, length, d);
        write_steps(ddelta, ddelta_tile, first, length, d);
        __syncthreads();
    }
    if (valid) da_log_parts[((long long)blockIdx.y * d + channel) * n_states + n] = dA * rate;
    if (n == 0 && channel < d && dskip_parts != nullptr) dskip_parts[(long long)blockIdx.y * d + channel] = dskip;
}

#define EXPORT(T, t)                                                                                                  \
    KERNEL(512, selective_scan_forward_##t, const T* u, const T* delta, const float* delta_bias, const float* a_log,  \
           const T* Bm, const T* Cm, const float* skip, T* y, float* states, int softplus, int batch, int length,     \
           int d, int n) {                                                                                            \
        selective_scan_forward(u, delta, Step{delta_bias, softplus}, a_log, Bm, Cm, skip, y, states, length, d, n);   \
    }                                                                                                                 \
    KERNEL(512, selective_scan_backward_##t, const T* dy, const T* u, const T* delta, const float* delta_bias,        \
           const float* a_log, const T* Bm, const T* Cm, const float* skip, const float* states, T* du, T* ddelta,    \
           float* da_log_parts, float* dB_parts, float* dC_parts, float* dskip_parts, int softplus, int batch,        \
           int length, int d, int n) {                                                                                \
        selective_scan_backward(dy, u, delta, Step{delta_bias, softplus}, a_log, Bm, Cm, skip, states, du, ddelta,    \
                                da_log_parts, dB_parts, dC_parts, dskip_parts, batch, length, d, n);                  \
    }
FOR_TYPES(EXPORT)
