// What two documents have in common, [2 n, width] to [n, 4 width]: a, b, a - b, a b (ops/pair.rs).
// Kept for backward: the documents.
//
// Bound by memory.
#include "replica.cuh"

template <typename T>
__device__ __forceinline__ void pair_forward(const T* x, T* y, long long pairs, int width) {
    const bool packed = width % PACK == 0 && is_aligned(x) && is_aligned(y);
    over_matrix(pairs, width, packed, [&](auto size, long long row, int c) {
        float a[size.value], b[size.value], difference[size.value], product[size.value];
        load_pack(x + row * width + c, a);
        load_pack(x + (pairs + row) * width + c, b);
#pragma unroll
        for (int j = 0; j < size.value; ++j) {
            difference[j] = a[j] - b[j];
            product[j] = a[j] * b[j];
        }
        T* to = y + row * 4 * width + c;
        store_pack(to, a);
        store_pack(to + width, b);
        store_pack(to + 2 * width, difference);
        store_pack(to + 3 * width, product);
    });
}

template <typename T>
__device__ __forceinline__ void pair_backward(const T* dy, const T* x, T* dx, long long pairs, int width,
                                              int accumulate) {
    const bool packed = width % PACK == 0 && is_aligned(dy) && is_aligned(x) && is_aligned(dx);
    over_matrix(pairs, width, packed, [&](auto size, long long row, int c) {
        float a[size.value], b[size.value], da[size.value], db[size.value];
        float difference[size.value], product[size.value], old_a[size.value] = {}, old_b[size.value] = {};
        const T* from = dy + row * 4 * width + c;
        T *to_a = dx + row * width + c, *to_b = dx + (pairs + row) * width + c;
        load_pack(x + row * width + c, a);
        load_pack(x + (pairs + row) * width + c, b);
        load_pack(from, da);
        load_pack(from + width, db);
        load_pack(from + 2 * width, difference);
        load_pack(from + 3 * width, product);
        if (accumulate) {
            load_pack(static_cast<const T*>(to_a), old_a);
            load_pack(static_cast<const T*>(to_b), old_b);
        }
#pragma unroll
        for (int j = 0; j < size.value; ++j) {
            da[j] = old_a[j] + da[j] + difference[j] + product[j] * b[j];
            db[j] = old_b[j] + db[j] - difference[j] + product[j] * a[j];
        }
        store_pack(to_a, da);
        store_pack(to_b, db);
    });
}

#define EXPORT(T, t)                                                                                    \
    KERNEL(256, pair_forward_##t, const T* x, T* y, long long pairs, int width) {                       \
        pair_forward(x, y, pairs, width);                                                               \
    }                                                                                                   \
    KERNEL(256, pair_backward_##t, const T* dy, const T* x, T* dx, long long pairs, int width,          \
           int accumulate) {                                                                            \
        pair_backward(dy, x, dx, pairs, width, accumulate);                                             \
    }
FOR_TYPES(EXPORT)
