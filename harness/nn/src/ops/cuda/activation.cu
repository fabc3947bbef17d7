// Activations and gated ones, act(gate) * up (ops/activation.rs).
// Kept for backward: the inputs; computing the derivative again is free next to reading them.
//
// Bound by memory.
#include "activation.cuh"

template <typename T>
__device__ __forceinline__ void glu_forward(const T* gate, const T* up, T* y, long long rows, int width,
                                            long long gate_stride, long long up_stride, int activation) {
    const bool packed = width % PACK == 0 && gate_stride % PACK == 0 && up_stride % PACK == 0 && is_aligned(gate) &&
                        is_aligned(up) && is_aligned(y);
    with_activation(activation, [&](auto act) {
        over_matrix(rows, width, packed, [&](auto size, long long row, int c) {
            float g[size.value], u[size.value];
            load_pack(gate + row * gate_stride + c, g);
            load_pack(up + row * up_stride + c, u);
#pragma unroll
            for (int j = 0; j < size.value; ++j) g[j] = act.y(g[j]) * u[j];
            store_pack(y + row * width + c, g);
        });
    });
}

template <typename T>
__device__ __forceinline__ void glu_backward(const T* dy, const T* gate, const T* up, T* dgate, T* dup, long long rows,
                                             int width, long long gate_stride, long long up_stride,
                                             long long dgate_stride, long long dup_stride, int activation) {
    const bool packed = width % PACK == 0 && gate_stride % PACK == 0 && up_stride % PACK == 0 &&
                        dgate_stride % PACK == 0 && dup_stride % PACK == 0 && is_aligned(gate) && is_aligned(up) &&
                        is_aligned(dy) && is_aligned(dgate) && is_aligned(dup);
    with_activation(activation, [&](auto act) {
        over_matrix(rows, width, packed, [&](auto size, long long row, int c) {
            float g[size.value], u[size.value], d[size.value];
            load_pack(gate + row * gate_stride + c, g);
            load_pack(up + row * up_stride + c, u);
            load_pack(dy + row * width + c, d);
#pragma unroll
            for (int j = 0; j < size.value; ++j) {
                u[j] *= d[j] * act.slope(g[j]);
                g[j] = d[j] * act.y(g[j]);
            }
            store_pack(dgate + row * dgate_stride + c, u);
            store_pack(dup + row * dup_stride + c, g);
        });
    });
}

#define EXPORT(T, t)                                                                                                  \
    KERNEL(256, activation_forward_##t, const T* x, T* y, long long n, int activation) {                              \
        with_activation(activation, [&](auto act) {                                                                   \
            map_elements(n, y, [&](long long, float v) { return act.y(v); }, x);                                      \
        });                                                                                                           \
    }                                                                                                                 \
    KERNEL(256, activation_backward_##t, const T* dy, const T* kept, T* dx, long long n, int activation) {            \
        with_activation(activation, [&](auto act) {                                                                   \
            map_elements(n, dx, [&](long long, float d, float v) { return d * act.slope(v); }, dy, kept);             \
        });                                                                                                           \
    }                                                                                                                 \
    KERNEL(256, glu_forward_##t, const T* gate, const T* up, T* y, long long rows, int width, long long gate_stride,  \
           long long up_stride, int activation) {                                                                     \
        glu_forward(gate, up, y, rows, width, gate_stride, up_stride, activation);                                    \
    }                                                                                                                 \
    KERNEL(256, glu_backward_##t, const T* dy, const T* gate, const T* up, T* dgate, T* dup, long long rows,          \
           int width, long long gate_stride, long long up_stride, long long dgate_stride, long long dup_stride,       \
           int activation) {                                                                                          \
        glu_backward(dy, gate, up, dgate, dup, rows, width, gate_stride, up_stride, dgate_stride, dup_stride,         \
                     activation);                                                                                     \
    }
FOR_TYPES(EXPORT)
