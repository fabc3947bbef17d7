// Dropout (ops/dropout.rs), optionally added to a residual.
// Kept for backward: nothing; the mask is a hash of (key, call, element), the same as on the CPU. The step's key is
// read from device memory, so that a captured graph draws new masks at every step.
//
// Bound by memory; the hash takes about 20 integer instructions an element.
#include "replica.cuh"

// The finaliser of splitmix64.
__device__ __forceinline__ u64 mix(u64 x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

template <typename T>
__device__ __forceinline__ void dropout(const T* x, const T* residual, T* y, long long n, u32 threshold, float scale,
                                        const u64* key, u64 call) {
    const u64 mask = mix(key[0] + mix(call));
    const auto kept = [=](long long i, float v) { return u32(mix(mask + i) >> 32) >= threshold ? v * scale : 0.0f; };
    if (residual == nullptr) {
        map_elements(n, y, kept, x);
    } else {
        map_elements(n, y, [=](long long i, float v, float r) { return r + kept(i, v); }, x, residual);
    }
}

// One draw for all steps of a channel of a sequence.
template <typename T>
__device__ __forceinline__ void tied_dropout(const T* x, T* y, long long rows, int steps, int width, u32 threshold,
                                             float scale, const u64* key, u64 call) {
    const u64 mask = mix(key[0] + mix(call));
    const bool packed = width % PACK == 0 && is_aligned(x) && is_aligned(y);
    over_matrix(rows, width, packed, [&](auto size, long long row, int c) {
        float v[size.value];
        load_pack(x + row * width + c, v);
        const u64 first = mask + quotient(row, steps) * width + c;
#pragma unroll
        for (int j = 0; j < size.value; ++j) v[j] = u32(mix(first + j) >> 32) >= threshold ? v[j] * scale : 0.0f;
        store_pack(y + row * width + c, v);
    });
}

#define EXPORT(T, t)                                                                                            \
    KERNEL(256, dropout_##t, const T* x, const T* residual, T* y, long long n, u32 threshold, float scale,      \
           const u64* key, u64 call) {                                                                          \
        dropout(x, residual, y, n, threshold, scale, key, call);                                                \
    }                                                                                                           \
    KERNEL(256, tied_dropout_##t, const T* x, T* y, long long rows, int steps, int width, u32 threshold,        \
           float scale, const u64* key, u64 call) {                                                             \
        tied_dropout(x, y, rows, steps, width, threshold, scale, key, call);                                    \
    }
FOR_TYPES(EXPORT)
