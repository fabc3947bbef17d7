// Diagonal systems in double precision: discretisation (ops/discretisation.rs) and the channels of S4's kernels
// (ops/diagonal_kernel.rs). Derivatives are those of analytic functions.
#pragma once

#include "complex.cuh"

__device__ __forceinline__ double2 exponential(double2 m) {
    double s, c;
    sincos(m.y, &s, &c);
    return exp(m.x) * make_double2(c, s);
}

// A discrete mode, x_t = z x_(t-1) + q u_t, and its derivatives by lambda and by the step.
struct Mode {
    double2 z, q, z_by_lambda, z_by_step, q_by_lambda, q_by_step;
};

// exp(m), phi(m) = (exp(m) - 1) / m and its derivative.
__device__ __forceinline__ void phi(double2 m, double2& z, double2& value, double2& slope) {
    if (norm(m) > 0.25) {
        const double2 over = inverse(m);
        z = exponential(m);
        value = (z - make_double2(1, 0)) * over;
        slope = (z - value) * over;
        return;
    }
    // phi = sum of m^k / (k + 1)!, phi' = sum of (k + 1) m^k / (k + 2)!
    double2 factor = make_double2(1, 0);
    value = slope = make_double2(0, 0);
    for (int k = 0; k < 16; ++k) {
        factor = 1.0 / (k + 1) * factor;
        value = value + factor;
        slope = slope + (k + 1.0) / (k + 2.0) * factor;
        factor = factor * m;
    }
    z = make_double2(1, 0) + m * value;
}

__device__ __forceinline__ Mode discretised(double2 lambda, double step, int bilinear) {
    const double2 one = make_double2(1, 0);
    if (bilinear) {
        const double2 half = 0.5 * step * lambda, over = inverse(one - half), square = over * over;
        return {(one + half) * over, step * over, step * square, square * lambda, 0.5 * step * step * square, square};
    }
    double2 z, value, slope;
    phi(step * lambda, z, value, slope);
    return {z, step * value, step * z, z * lambda, step * step * slope, z};
}

// The powers of a z whose logarithm is known in double precision: no error grows with the exponent.
struct Powers {
    double decay, turns;

    explicit __device__ __forceinline__ Powers(double2 logarithm)
        : decay(logarithm.x), turns(logarithm.y / 6.283185307179586) {}
    __device__ __forceinline__ float2 operator()(int l) const {
        const double angle = l * turns;
        float s, c;
        sincospif(2 * float(angle - rint(angle)), &s, &c);
        const float size = expf(float(l * decay));
        return make_float2(size * c, size * s);
    }
};

// The parameters of S4's kernels: h channels, copies sets of n modes, channel i uses set i % copies.
struct Diagonal {
    const float *step, *a_real, *a_imag, *b, *c;
    int h, n, copies, softplus, conjugated, bilinear;
    double rate;

    __device__ __forceinline__ double step_of(int channel) const {
        const double v = step[channel];
        return rate * (softplus ? larger(v, 0.0) + log1p(exp(-fabs(v))) : exp(v));
    }
    // Derivative of the step by its parameter.
    __device__ __forceinline__ double step_slope(int channel) const {
        const double v = step[channel];
        return rate * (softplus ? 1 / (1 + exp(-v)) : exp(v));
    }
    __device__ __forceinline__ int place(int channel, int i) const { return channel % copies * n + i; }
    __device__ __forceinline__ double2 lambda_of(int channel, int i) const {
        const int at = place(channel, i);
        return make_double2(-exp(double(a_real[at])), conjugated ? -a_imag[at] : a_imag[at]);
    }
    __device__ __forceinline__ double2 b_of(int channel, int i) const {
        return b == nullptr ? make_double2(1, 0) : pair(b, place(channel, i));
    }
    __device__ __forceinline__ long long c_place(int kernel, int channel, int i) const {
        return ((long long)kernel * h + channel) * n + i;
    }
    __device__ __forceinline__ double2 c_of(int kernel, int channel, int i) const {
        return pair(c, c_place(kernel, channel, i));
    }
    static __device__ __forceinline__ double2 pair(const float* data, long long i) {
        return make_double2(data[2 * i], data[2 * i + 1]);
    }
    // Element i of an array of complex gradients, from an analytic derivative.
    static __device__ __forceinline__ void put(float* to, long long i, double2 derivative) {
        to[2 * i] = float(derivative.x);
        to[2 * i + 1] = float(-derivative.y);
    }
};

// Where channels put what they add to the gradients of A and B, [h, n], and of the steps, [n, h].
struct DiagonalShares {
    float *a_real, *a_imag, *b, *step;

    __device__ __forceinline__ void put(const Diagonal& model, int channel, int i, double2 by_lambda, double2 by_b,
                                        double by_step) const {
        const long long at = (long long)channel * model.n + i;
        // a_real is the logarithm of minus the real part
        a_real[at] = float(by_lambda.x * model.lambda_of(channel, i).x);
        a_imag[at] = float(model.conjugated ? by_lambda.y : -by_lambda.y);
        Diagonal::put(b, at, by_b);
        step[(long long)i * model.h + channel] = float(by_step * model.step_slope(channel));
    }
};

// The arguments that kernels of both files begin with, and what they make of them.
#define DIAGONAL_ARGUMENTS                                                                                       \
    const float *step, const float *a_real, const float *a_imag, const float *b, const float *c, int h, int n,   \
        int copies, int softplus, int conjugated, int bilinear, double rate
#define DIAGONAL_MODEL Diagonal{step, a_real, a_imag, b, c, h, n, copies, softplus, conjugated, bilinear, rate}
