// The convolution kernel of a diagonal state-space model (ops/diagonal_kernel.rs), y[kernel, channel, l] = sum over modes
// of 2 Re(B C q z^l).
// Kept for backward: the parameters.
//
// Bound by arithmetic: z^l comes from its logarithm in double precision, once every few taps, which are multiples of
// a float power apart; so no error grows with l and almost all work is in single precision.
#include "diagonal.cuh"

constexpr int TAPS_THREADS = 256, TAPS_EACH = 4;  // a thread's taps lie 256 apart
constexpr int TAPS_STRIDE = 16;                   // products between exact powers, in backward

// Logarithm of z and its derivatives by lambda and by the step.
struct Logarithm {
    double2 value, by_lambda, by_step;

    __device__ __forceinline__ Logarithm(double2 lambda, double step, int bilinear) {
        value = step * lambda;
        double2 slope = make_double2(1, 0);
        if (bilinear) {
            const double2 half = 0.5 * value, up = slope + half, down = slope - half;
            const double2 ratio = up * inverse(down);
            value = make_double2(0.5 * log(larger(norm(ratio), 1e-300)), atan2(ratio.y, ratio.x));
            slope = inverse(up * down);
        }
        by_lambda = step * slope;
        by_step = slope * lambda;
    }
};

KERNEL(256, diagonal_kernel_forward_f32, DIAGONAL_ARGUMENTS, float* y, int length) {
    __shared__ double2 logarithms[TAPS_THREADS];
    __shared__ float2 weights[TAPS_THREADS], jumps[TAPS_THREADS];
    const Diagonal model = DIAGONAL_MODEL;
    const int channel = blockIdx.y, kernel = blockIdx.z, first = blockIdx.x * TAPS_THREADS * TAPS_EACH + threadIdx.x;
    const double dt = model.step_of(channel);
    float sum[TAPS_EACH] = {};
    for (int base = 0; base < n; base += TAPS_THREADS) {
        __syncthreads();
        const int mode = base + threadIdx.x;
        if (mode < n) {
            const double2 lambda = model.lambda_of(channel, mode);
            const double2 q = discretised(lambda, dt, bilinear).q;
            const double2 logarithm = Logarithm(lambda, dt, bilinear).value;
            logarithms[threadIdx.x] = logarithm;
            weights[threadIdx.x] = narrow(2.0 * model.b_of(channel, mode) * model.c_of(kernel, channel, mode) * q);
            jumps[threadIdx.x] = Powers(logarithm)(TAPS_THREADS);
        }
        __syncthreads();
        for (int i = 0; i < smaller(TAPS_THREADS, n - base); ++i) {
            float2 v = weights[i] * Powers(logarithms[i])(first);
#pragma unroll
            for (int j = 0; j < TAPS_EACH; ++j) {
                sum[j] += v.x;
                v = v * jumps[i];
            }
        }
    }
    y += ((long long)kernel * h + channel) * length;
#pragma unroll
    for (int j = 0; j < TAPS_EACH; ++j) {
        if (first + j * TAPS_THREADS < length) y[first + j * TAPS_THREADS] = sum[j];
    }
}

// With S0 = sum of dy z^l and S1 = sum of dy l z^l the loss changes by 2 Re(S0 dw + w S1 d(log z)), w = B C q; a warp a
// mode of a channel.
KERNEL(256, diagonal_kernel_backward_f32, DIAGONAL_ARGUMENTS, const float* dy, float* dc, float* da_real, float* da_imag,
       float* db, float* dstep, int kernels, int length) {
    const Diagonal model = DIAGONAL_MODEL;
    const int channel = blockIdx.y, mode = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (mode >= n) return;
    const double dt = model.step_of(channel);
    const double2 lambda = model.lambda_of(channel, mode), weight_b = model.b_of(channel, mode);
    const Mode discrete = discretised(lambda, dt, bilinear);
    const Logarithm logarithm(lambda, dt, bilinear);
    const Powers power(logarithm.value);
    const float2 jump = power(32);
    double2 by_b = make_double2(0, 0), by_q = by_b, by_logarithm = by_b;
    for (int kernel = 0; kernel < kernels; ++kernel) {
        const float* g = dy + ((long long)kernel * h + channel) * length;
        float2 s0 = make_float2(0, 0), s1 = s0;
        for (int base = lane; base < length; base += 32 * TAPS_STRIDE) {
            float2 v = power(base);
#pragma unroll 4
            for (int l = base; l < smaller(length, base + 32 * TAPS_STRIDE); l += 32) {
                const float2 term = make_float2(g[l] * v.x, g[l] * v.y);
                s0 = s0 + term;
                s1 = s1 + make_float2(l * term.x, l * term.y);
                v = v * jump;
            }
        }
        const double2 sum = make_double2(warp_sum(double(s0.x)), warp_sum(double(s0.y)));
        const double2 slope = make_double2(warp_sum(double(s1.x)), warp_sum(double(s1.y)));
        const double2 weight_c = model.c_of(kernel, channel, mode), by_w = 2.0 * sum;
        by_b = by_b + by_w * weight_c * discrete.q;
        by_q = by_q + by_w * weight_b * weight_c;
        by_logarithm = by_logarithm + 2.0 * weight_b * weight_c * discrete.q * slope;
        if (lane == 0) Diagonal::put(dc, model.c_place(kernel, channel, mode), by_w * weight_b * discrete.q);
    }
    if (lane != 0) return;
    const double2 by_lambda = by_logarithm * logarithm.by_lambda + by_q * discrete.q_by_lambda;
    const double by_step = (by_logarithm * logarithm.by_step + by_q * discrete.q_by_step).x;
    DiagonalShares{da_real, da_imag, db, dstep}.put(model, channel, mode, by_lambda, by_b, by_step);
}
