// Learned positions: y[b] = x[b] + table[..t] (ops/add.rs), n = t * width elements of the table.
// Kept for backward: nothing; the table's gradient adds the batch entries in order.
//
// Bound by memory.
#include "replica.cuh"

template <typename T>
__device__ __forceinline__ void add_positions_forward(const T* x, const T* table, T* y, int batch, long long n) {
    const bool packed = n % PACK == 0 && is_aligned(x) && is_aligned(table) && is_aligned(y);
    const long long step = (long long)gridDim.x * blockDim.x, first = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const auto add = [&](auto size, long long i) {
        float v[size.value], p[size.value];
        load_pack(x + i, v);
        load_pack(table + (i - quotient(i, n) * n), p);
#pragma unroll
        for (int j = 0; j < size.value; ++j) v[j] += p[j];
        store_pack(y + i, v);
    };
    if (packed) {
        for (long long i = first * PACK; i < batch * n; i += step * PACK) add(Size<PACK>{}, i);
    } else {
        for (long long i = first; i < batch * n; i += step) add(Size<1>{}, i);
    }
}

template <typename T>
__device__ __forceinline__ void add_positions_backward(const T* dy, float* dtable, int batch, long long n,
                                                       int accumulate) {
    const auto sum = [&](long long i) {
        float total = 0;
        for (int b = 0; b < batch; ++b) total += to_float(dy[b * n + i]);
        return total;
    };
    map_or_add(n, dtable, accumulate, sum);
}

#define EXPORT(T, t)                                                                                              \
    KERNEL(256, add_positions_forward_##t, const T* x, const T* table, T* y, int batch, long long n) {            \
        add_positions_forward(x, table, y, batch, n);                                                             \
    }                                                                                                             \
    KERNEL(256, add_positions_backward_##t, const T* dy, float* dtable, int batch, long long n, int accumulate) { \
        add_positions_backward(dy, dtable, batch, n, accumulate);                                                 \
    }
FOR_TYPES(EXPORT)
