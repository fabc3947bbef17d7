// Diagonal complex recurrence x_t = a_t x_{t-1} + b_t from x_{-1} = 0 (S5): [batch, length, p].
// Kept for backward: a and x. Its backward pass is the same recurrence in the other direction with conj(a_{t+1}).
//
// Bound by memory: chunks of 64 steps run side by side, first for their products and last states, then, with the
// state that reaches them, for their results; b is read twice. p lies across threads, so accesses are coalesced.
#include "complex.cuh"

constexpr int SCAN_CHUNK = 64;

// The factor on the state that arrives at step l.
__device__ __forceinline__ float2 scan_factor(const float2* a, int l, int length, long long a_time, int reverse) {
    if (!reverse) return a[l * a_time];
    return l + 1 < length ? conjugate(a[(l + 1) * a_time]) : make_float2(0, 0);
}

// carry[b, chunk, 0] = product of the factors, carry[b, chunk, 1] = last state of a chunk that starts from 0.
KERNEL(128, scan_chunk_f32, const float2* a, const float2* b, float2* carry, int batch, int length, int p,
       long long a_batch, long long a_time, int reverse) {
    const int i = blockIdx.x * 128 + threadIdx.x;
    if (i >= p) return;
    a += blockIdx.z * a_batch + i;
    b += (long long)blockIdx.z * length * p + i;
    const int first = blockIdx.y * SCAN_CHUNK, count = smaller(SCAN_CHUNK, length - first);
    float2 product = make_float2(1, 0), state = make_float2(0, 0);
#pragma unroll 4
    for (int j = 0; j < count; ++j) {
        const int l = reverse ? first + count - 1 - j : first + j;
        const float2 factor = scan_factor(a, l, length, a_time, reverse);
        product = factor * product;
        state = factor * state + b[(long long)l * p];
    }
    float2* to = carry + ((long long)blockIdx.z * gridDim.y + blockIdx.y) * 2 * p + i;
    to[0] = product;
    to[p] = state;
}

// Replaces the last states by the states that arrive at the chunks.
KERNEL(128, scan_carry_f32, float2* carry, int batch, int chunks, int p, int reverse) {
    const int i = blockIdx.x * 128 + threadIdx.x;
    if (i >= p) return;
    carry += (long long)blockIdx.z * chunks * 2 * p + i;
    float2 state = make_float2(0, 0);
#pragma unroll 4
    for (int j = 0; j < chunks; ++j) {
        float2* at = carry + (long long)(reverse ? chunks - 1 - j : j) * 2 * p;
        const float2 last = at[p];
        at[p] = state;
        state = at[0] * state + last;
    }
}

KERNEL(128, scan_apply_f32, const float2* a, const float2* b, const float2* carry, float2* x, int batch, int length,
       int p, long long a_batch, long long a_time, int reverse) {
    const int i = blockIdx.x * 128 + threadIdx.x;
    if (i >= p) return;
    a += blockIdx.z * a_batch + i;
    b += (long long)blockIdx.z * length * p + i;
    x += (long long)blockIdx.z * length * p + i;
    const int first = blockIdx.y * SCAN_CHUNK, count = smaller(SCAN_CHUNK, length - first);
    float2 state = carry[(((long long)blockIdx.z * gridDim.y + blockIdx.y) * 2 + 1) * p + i];
#pragma unroll 4
    for (int j = 0; j < count; ++j) {
        const int l = reverse ? first + count - 1 - j : first + j;
        state = scan_factor(a, l, length, a_time, reverse) * state + b[(long long)l * p];
        x[(long long)l * p] = state;
    }
}

// da_t = db_t conj(x_{t-1}), every step or summed over a chunk.
KERNEL(128, scan_backward_a_f32, const float2* db, const float2* x, float2* da, int batch, int length, int p,
       int per_step) {
    const int i = blockIdx.x * 128 + threadIdx.x;
    if (i >= p) return;
    const long long start = (long long)blockIdx.z * length * p + i;
    const int first = blockIdx.y * SCAN_CHUNK, last = smaller(first + SCAN_CHUNK, length);
    float2 sum = make_float2(0, 0);
#pragma unroll 4
    for (int l = first; l < last; ++l) {
        const float2 before = l > 0 ? x[start + (long long)(l - 1) * p] : make_float2(0, 0);
        const float2 gradient = db[start + (long long)l * p] * conjugate(before);
        if (per_step) da[start + (long long)l * p] = gradient;
        sum = sum + gradient;
    }
    if (!per_step) da[((long long)blockIdx.z * gridDim.y + blockIdx.y) * p + i] = sum;
}
