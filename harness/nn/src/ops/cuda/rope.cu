// Rotary position embedding, half-split layout (ops/rope.rs), in place or not, on rows that may be part of wider ones.
// Kept for backward: nothing but the table; the gradient turns by the opposite angle, sign = -1.
//
// Bound by memory.
#include "replica.cuh"

template <typename T>
__device__ __forceinline__ void rope(const T* x, const float* cos, const float* sin, T* y, long long rows, int t,
                                     int heads, int head_dim, long long x_stride, long long y_stride, int start,
                                     float sign) {
    const int half = head_dim / 2;
    const bool packed = half % PACK == 0 && x_stride % PACK == 0 && y_stride % PACK == 0 && is_aligned(x) &&
                        is_aligned(y) && is_aligned(cos) && is_aligned(sin);
    over_matrix(rows, heads * half, packed, [&](auto size, long long row, int i) {
        const int head = i / half, c = i % half;
        const long long angle = (start + (row - quotient(row, t) * t)) * half + c;
        const T* from = x + row * x_stride + head * head_dim + c;
        T* to = y + row * y_stride + head * head_dim + c;
        float a[size.value], b[size.value], co[size.value], si[size.value];
        load_pack(from, a);
        load_pack(from + half, b);
        load_pack(cos + angle, co);
        load_pack(sin + angle, si);
#pragma unroll
        for (int j = 0; j < size.value; ++j) {
            const float s = sign * si[j], first = a[j];
            a[j] = first * co[j] - b[j] * s;
            b[j] = b[j] * co[j] + first * s;
        }
        store_pack(to, a);
        store_pack(to + half, b);
    });
}

#define EXPORT(T, t)                                                                                             \
    KERNEL(256, rope_##t, const T* x, const float* cos, const float* sin, T* y, long long rows, int length,      \
           int heads, int head_dim, long long x_stride, long long y_stride, int start, float sign) {             \
        rope(x, cos, sin, y, rows, length, heads, head_dim, x_stride, y_stride, start, sign);                    \
    }
FOR_TYPES(EXPORT)
