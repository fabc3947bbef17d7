// Diagonal complex recurrence x_t = z x_(t-1) + q v_t from 0, over time or against it (S5, ops/diagonal_scan.rs), for
// v = B u [batch, length, p] complex; z and q of each mode, or with intervals of each mode and step; without, q is part
// of B. States are stored such that their product with C is the output: times 1 or 2, and conjugated.
// Kept for backward: the states. The gradient follows the same recurrence the other way with conj(z).
//
// Factors and states are in double precision: a rounded z would be off by t roundings after t steps. Bound by memory, with
// intervals by the factors' exponentials: chunks of 64 steps run side by side, first for their products and last
// states, then, with the state that reaches them, for their results; v is read twice. p lies across threads, so accesses
// are coalesced.
#include "diagonal.cuh"

constexpr int SCAN_CHUNK = 64, SCAN_THREADS = 64;

// The model's modes and the intervals [batch, length] between steps, which are 1 if null.
struct ScanModes {
    const float *re, *im, *log_step, *intervals;
    int bilinear, clip;
    double rate;

    __device__ __forceinline__ double2 lambda_of(int i) const {
        return make_double2(clip ? -larger(-double(re[i]), 1e-4) : double(re[i]), im[i]);
    }
    __device__ __forceinline__ double step_of(int i) const { return rate * exp(double(log_step[i])); }
};

#define SCAN_ARGUMENTS                                                                                             \
    const float *lambda_re, const float *lambda_im, const float *log_step, const float *intervals, int bilinear, \
        int clip, double rate
#define SCAN_MODES ScanModes{lambda_re, lambda_im, log_step, intervals, bilinear, clip, rate}

// One mode of one batch entry, in the order in which a kernel goes through its steps.
struct Walk {
    double2 lambda;
    double step;
    const float* intervals;
    int bilinear, length, backwards;
    Mode uniform;

    __device__ __forceinline__ Walk(const ScanModes& modes, int i, int length, int backwards)
        : lambda(modes.lambda_of(i)), step(modes.step_of(i)), intervals(modes.intervals), bilinear(modes.bilinear),
          length(length), backwards(backwards), uniform(discretised(lambda, step, bilinear)) {
        if (intervals != nullptr) intervals += (long long)blockIdx.z * length;
    }
    // The time of step s.
    __device__ __forceinline__ int time(int s) const { return backwards ? length - 1 - s : s; }
    __device__ __forceinline__ double interval(int s) const { return intervals == nullptr ? 1.0 : intervals[time(s)]; }
    __device__ __forceinline__ Mode mode(int s) const {
        return intervals == nullptr ? uniform : discretised(lambda, step * interval(s), bilinear);
    }
    // What multiplies the input at a step.
    __device__ __forceinline__ double2 input(const Mode& mode, double2 v) const {
        return intervals == nullptr ? v : mode.q * v;
    }
};

// Rows of complex numbers, [batch, length] of them, `stride` floats apart.
struct Rows {
    float* data;
    long long stride;

    __device__ __forceinline__ float2* at(int length, int t, int i) const {
        return reinterpret_cast<float2*>(data + ((long long)blockIdx.z * length + t) * stride) + i;
    }
};

// Steps of a block's chunk.
__device__ __forceinline__ int chunk_end(int length) { return smaller((blockIdx.y + 1) * SCAN_CHUNK, length); }

// carry[b, chunk, 0] = product of the factors, carry[b, chunk, 1] = last state of a chunk that starts from 0. With
// `adjoint` the input is the gradient of states, `scale` times it and conjugated, and the factor of a step is that of
// the step before.
KERNEL(64, diagonal_scan_chunk_f32, SCAN_ARGUMENTS, float* v, long long stride, float scale, double2* carry, int length,
       int p, int backwards, int adjoint) {
    const int i = blockIdx.x * SCAN_THREADS + threadIdx.x;
    if (i >= p) return;
    const Walk walk(SCAN_MODES, i, length, backwards);
    const Rows rows{v, stride};
    double2 product = make_double2(1, 0), state = make_double2(0, 0);
    const int first = blockIdx.y * SCAN_CHUNK;
    double2 before = adjoint && first > 0 ? walk.mode(first - 1).z : make_double2(0, 0);
    for (int s = first; s < chunk_end(length); ++s) {
        const Mode mode = walk.mode(s);
        double2 in = wide(*rows.at(length, walk.time(s), i)), factor = mode.z;
        if (adjoint) {
            in = double(scale) * conjugate(in);
            factor = conjugate(before);
            before = mode.z;
        } else {
            in = walk.input(mode, in);
        }
        product = factor * product;
        state = factor * state + in;
    }
    double2* to = carry + ((long long)blockIdx.z * gridDim.y + blockIdx.y) * 2 * p + i;
    to[0] = product;
    to[p] = state;
}

// Replaces the last states by the states that arrive at the chunks.
KERNEL(64, diagonal_scan_carry_f64, double2* carry, int chunks, int p) {
    const int i = blockIdx.x * SCAN_THREADS + threadIdx.x;
    if (i >= p) return;
    carry += (long long)blockIdx.z * chunks * 2 * p + i;
    double2 state = make_double2(0, 0);
#pragma unroll 4
    for (int j = 0; j < chunks; ++j) {
        double2* at = carry + (long long)j * 2 * p;
        const double2 last = at[p];
        at[p] = state;
        state = at[0] * state + last;
    }
}

KERNEL(64, diagonal_scan_apply_f32, SCAN_ARGUMENTS, float* v, long long v_stride, const double2* carry, float* x,
       long long x_stride, float scale, int length, int p, int backwards) {
    const int i = blockIdx.x * SCAN_THREADS + threadIdx.x;
    if (i >= p) return;
    const Walk walk(SCAN_MODES, i, length, backwards);
    const Rows inputs{v, v_stride}, states{x, x_stride};
    double2 state = carry[(((long long)blockIdx.z * gridDim.y + blockIdx.y) * 2 + 1) * p + i];
    for (int s = blockIdx.y * SCAN_CHUNK; s < chunk_end(length); ++s) {
        const Mode mode = walk.mode(s);
        const int t = walk.time(s);
        state = mode.z * state + walk.input(mode, wide(*inputs.at(length, t, i)));
        *states.at(length, t, i) = narrow(double(scale) * conjugate(state));
    }
}

// Gradients dv (+)= of the inputs from those of the states in dx; and what a chunk adds to the modes' derivatives, parts
// [batch * chunks, 3, p]: by z and nothing, or with intervals by lambda and the step. `backwards` is against the scan.
KERNEL(64, diagonal_scan_backward_f32, SCAN_ARGUMENTS, float* v, long long v_stride, const double2* carry, float* x,
       float* dx, long long x_stride, float scale, float* dv, float* parts, int length, int p, int backwards,
       int accumulate) {
    const int i = blockIdx.x * SCAN_THREADS + threadIdx.x;
    if (i >= p) return;
    const Walk walk(SCAN_MODES, i, length, backwards);
    const Rows inputs{v, v_stride}, input_gradients{dv, v_stride}, states{x, x_stride}, gradients{dx, x_stride};
    const long long part = (long long)blockIdx.z * gridDim.y + blockIdx.y;
    const double2 zero = make_double2(0, 0);
    double2 g = carry[(part * 2 + 1) * p + i], by_mode = zero;
    double by_step = 0;
    const int first = blockIdx.y * SCAN_CHUNK;
    double2 last = first > 0 ? walk.mode(first - 1).z : zero;
    for (int s = first; s < chunk_end(length); ++s) {
        const Mode mode = walk.mode(s);
        const int t = walk.time(s);
        g = conjugate(last) * g + double(scale) * conjugate(wide(*gradients.at(length, t, i)));
        last = mode.z;
        // the state before t in the scan is conjugated as it is stored; the gradient becomes a derivative likewise
        double2 by_z = zero, by_input = g;
        if (s + 1 < length) {
            by_z = 1 / double(scale) * conjugate(wide(*states.at(length, walk.time(s + 1), i))) * conjugate(g);
        }
        if (intervals == nullptr) {
            by_mode = by_mode + by_z;
        } else {
            const double2 by_q = wide(*inputs.at(length, t, i)) * conjugate(g);
            by_input = conjugate(mode.q) * g;
            by_mode = by_mode + by_z * mode.z_by_lambda + by_q * mode.q_by_lambda;
            by_step += (by_z * mode.z_by_step + by_q * mode.q_by_step).x * walk.interval(s);
        }
        float2* to = input_gradients.at(length, t, i);
        *to = narrow(accumulate ? wide(*to) + by_input : by_input);
    }
    parts += part * 3 * p + i;
    parts[0] = float(by_mode.x);
    parts[p] = float(by_mode.y);
    parts[2 * p] = float(by_step);
}

// B [p, h] complex as [p, 2, h], real parts and imaginary parts, times q unless there are intervals. A block a mode.
KERNEL(128, diagonal_scan_inputs_f32, SCAN_ARGUMENTS, const float* b, float* matrix, int h) {
    const int i = blockIdx.x;
    const ScanModes modes = SCAN_MODES;
    const Mode mode = discretised(modes.lambda_of(i), modes.step_of(i), bilinear);
    for (int j = threadIdx.x; j < h; j += 128) {
        double2 value = Diagonal::pair(b, (long long)i * h + j);
        if (intervals == nullptr) value = value * mode.q;
        matrix[2LL * i * h + j] = float(value.x);
        matrix[(2LL * i + 1) * h + j] = float(value.y);
    }
}

// Gradients of B [p, h] complex, of Lambda and of the logarithms of steps, from that of the matrix and `count` parts.
KERNEL(128, diagonal_scan_backward_modes_f32, SCAN_ARGUMENTS, const float* b, const float* dmatrix, const float* parts,
       float* db, float* dre, float* dim, float* dlog_step, int count, int p, int h) {
    __shared__ double scratch[4];
    const int i = blockIdx.x;
    const ScanModes modes = SCAN_MODES;
    const double2 lambda = modes.lambda_of(i);
    const Mode mode = discretised(lambda, modes.step_of(i), bilinear);
    double2 by_q = make_double2(0, 0);
    for (int j = threadIdx.x; j < h; j += 128) {
        const long long at = (long long)i * h + j;
        const double2 g = make_double2(dmatrix[2LL * i * h + j], -dmatrix[(2LL * i + 1) * h + j]);
        by_q = by_q + g * Diagonal::pair(b, at);
        Diagonal::put(db, at, intervals == nullptr ? g * mode.q : g);
    }
    by_q = make_double2(block_sum<128>(by_q.x, scratch), block_sum<128>(by_q.y, scratch));
    double sums[3] = {};
    for (int part = threadIdx.x; part < count; part += 128) {
#pragma unroll
        for (int j = 0; j < 3; ++j) sums[j] += parts[((long long)part * 3 + j) * p + i];
    }
#pragma unroll
    for (int j = 0; j < 3; ++j) sums[j] = block_sum<128>(sums[j], scratch);
    if (threadIdx.x > 0) return;
    double2 by_lambda = make_double2(sums[0], sums[1]);
    double by_step = sums[2];
    if (intervals == nullptr) {
        by_step = (by_lambda * mode.z_by_step + by_q * mode.q_by_step).x;
        by_lambda = by_lambda * mode.z_by_lambda + by_q * mode.q_by_lambda;
    }
    // where it is clipped, a real part gets no gradient
    dre[i] = clip && lambda_re[i] > -1e-4 ? 0.0f : float(by_lambda.x);
    dim[i] = float(-by_lambda.y);
    dlog_step[i] = float(by_step * modes.step_of(i));
}

// y = skip * u, row by row.
KERNEL(256, diagonal_scan_skip_f32, const float* u, const float* skip, float* y, long long rows, int width) {
    const bool packed = width % PACK == 0 && is_aligned(u) && is_aligned(skip) && is_aligned(y);
    over_matrix(rows, width, packed, [&](auto size, long long row, int c) {
        float v[size.value], d[size.value];
        load_pack(u + row * width + c, v);
        load_pack(skip + c, d);
#pragma unroll
        for (int j = 0; j < size.value; ++j) v[j] *= d[j];
        store_pack(y + row * width + c, v);
    });
}

// parts[p] = sum over rows p, p + parts, .. of u * dy.
KERNEL(256, diagonal_scan_backward_skip_f32, const float* u, const float* dy, float* parts, long long rows, int width) {
    const int c = blockIdx.x * 256 + threadIdx.x;
    if (c >= width) return;
    float sum = 0;
    for (long long row = blockIdx.y; row < rows; row += gridDim.y) sum += u[row * width + c] * dy[row * width + c];
    parts[(long long)blockIdx.y * width + c] = sum;
}
