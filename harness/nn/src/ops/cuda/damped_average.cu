// The kernel of Mega's damped moving averages (ops/damped_average.rs), tap e = sum over dimensions of c q^e.
// Kept for backward: the parameters.
//
// Bound by arithmetic: q^e comes from the logarithm of q in double precision, as in diagonal.cuh, so no error grows with e.
#include "replica.cuh"

// The parameters of sides * h rows of n dimensions.
struct Damped {
    const float *delta, *alpha, *beta, *gamma;
    int n;
};

// A dimension of a row: p = sigmoid(delta), a = sigmoid(alpha), q = 1 - p a; beta over sqrt(n).
struct Dimension {
    double p, a, beta, gamma, logarithm;

    __device__ __forceinline__ Dimension(const Damped& model, int row, int i) {
        const long long at = (long long)row * model.n + i;
        p = sigmoid(model.delta[at]);
        a = sigmoid(model.alpha[at]);
        beta = model.beta[at] / sqrt(double(model.n));
        gamma = model.gamma[at];
        logarithm = log(larger(q(), 1e-300));
    }
    static __device__ __forceinline__ double sigmoid(double x) { return 1 / (1 + exp(-x)); }
    __device__ __forceinline__ double q() const { return 1 - p * a; }
    __device__ __forceinline__ double c() const { return p * beta * gamma; }
};

// q^e
__device__ __forceinline__ float power(double logarithm, int e) { return expf(float(e * logarithm)); }

#define DAMPED_ARGUMENTS const float *delta, const float *alpha, const float *beta, const float *gamma, int h, int n
#define DAMPED_MODEL Damped{delta, alpha, beta, gamma, n}

// y[side, channel, l] for blocks of taps and rows (side, channel), a thread a tap. The side that looks ahead stands one
// place before, its tap 0 in tap 0 of the other.
KERNEL(256, damped_taps_forward_f32, DAMPED_ARGUMENTS, float* y, int sides, int length) {
    __shared__ double logarithms[256];
    __shared__ float weights[256];
    const Damped model = DAMPED_MODEL;
    const int row = blockIdx.y, l = blockIdx.x * 256 + threadIdx.x, ahead = row / h;
    float sum = 0;
    for (int base = 0; base < n; base += 256) {
        __syncthreads();
        if (base + int(threadIdx.x) < n) {
            const Dimension dimension(model, row, base + threadIdx.x);
            logarithms[threadIdx.x] = dimension.logarithm;
            weights[threadIdx.x] = float(dimension.c());
        }
        __syncthreads();
        for (int i = 0; i < smaller(256, n - base); ++i) sum += weights[i] * power(logarithms[i], l + ahead);
    }
    if (l == 0 && !ahead && sides == 2) {
        float other = 0;
        for (int i = 0; i < n; ++i) other += float(Dimension(model, row + h, i).c());
        sum += other;
    }
    if (l < length) y[(long long)row * length + l] = l + ahead < length ? sum : 0;
}

// With S0 = sum of dy q^e and S1 = sum of dy e q^(e - 1) the loss changes by S0 dc + c S1 dq; a warp a dimension of a row.
KERNEL(256, damped_taps_backward_f32, DAMPED_ARGUMENTS, const float* dy, float* ddelta, float* dalpha, float* dbeta,
       float* dgamma, int length) {
    const int row = blockIdx.y, i = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32, ahead = row / h;
    if (i >= n) return;
    const Dimension d(DAMPED_MODEL, row, i);
    const float *own = dy + (long long)row * length, *first = own - (long long)ahead * h * length;
    double s0 = 0, s1 = 0;
    for (int e = lane; e < length; e += 32) {
        const double term = double(e == 0 ? first[0] : own[e - ahead]) * power(d.logarithm, e);
        s0 += term;
        s1 += e * term;
    }
    s0 = warp_sum(s0);
    s1 = warp_sum(s1) / larger(d.q(), 1e-300);
    if (lane != 0) return;
    const double by_q = d.c() * s1, by_p = s0 * d.beta * d.gamma - by_q * d.a, by_a = -by_q * d.p;
    const long long at = (long long)row * n + i;
    ddelta[at] = float(by_p * d.p * (1 - d.p));
    dalpha[at] = float(by_a * d.a * (1 - d.a));
    dbeta[at] = float(s0 * d.p * d.gamma / sqrt(double(n)));
    dgamma[at] = float(s0 * d.p * d.beta);
}
