// Windows over time, [batch, l, width] to [batch * pieces, steps, width], and their sums back (ops/windows.rs).
// Kept for backward: nothing; each of the two is the other's backward.
//
// Bound by memory: every element is read and written once.
#include "replica.cuh"

// Window i of a sequence begins at step i * length - before and has `steps` = before + length + after of them.
struct Windows {
    int pieces, steps, l, length, before;

    // The windows that hold step t: the first, and the last.
    __device__ __forceinline__ int first(int t) const {
        const int after = steps - before - length;
        return larger(0, t - after) / length;
    }
    __device__ __forceinline__ int last(int t) const { return smaller(pieces - 1, (t + before) / length); }
};

// y (+)= the steps of windows, zeros where a sequence has none.
template <typename T>
__device__ __forceinline__ void cut(const T* x, T* y, long long windows, Windows w, int width, int accumulate) {
    const bool packed = width % PACK == 0 && is_aligned(x) && is_aligned(y);
    over_matrix(windows * w.steps, width, packed, [&](auto size, long long row, int c) {
        const long long window = quotient(row, w.steps), b = quotient(window, w.pieces);
        const int t = int(window - b * w.pieces) * w.length + int(row - window * w.steps) - w.before;
        const bool seen = 0 <= t && t < w.l;
        if (!seen && accumulate) return;
        float v[size.value] = {}, old[size.value] = {};
        T* to = y + row * width + c;
        if (seen) load_pack(x + (b * w.l + t) * width + c, v);
        if (accumulate) load_pack(static_cast<const T*>(to), old);
#pragma unroll
        for (int j = 0; j < size.value; ++j) v[j] += old[j];
        store_pack(to, v);
    });
}

// x (+)= the sum of what windows have for a step, in their order.
template <typename T>
__device__ __forceinline__ void add_up(const T* y, T* x, long long batch, Windows w, int width, int accumulate) {
    const bool packed = width % PACK == 0 && is_aligned(x) && is_aligned(y);
    over_matrix(batch * w.l, width, packed, [&](auto size, long long row, int c) {
        const long long b = quotient(row, w.l);
        const int t = int(row - b * w.l);
        float sum[size.value] = {}, v[size.value];
        T* to = x + row * width + c;
        if (accumulate) load_pack(static_cast<const T*>(to), sum);
        for (int i = w.first(t); i <= w.last(t); ++i) {
            const long long place = (b * w.pieces + i) * w.steps + (t + w.before - i * w.length);
            load_pack(y + place * width + c, v);
#pragma unroll
            for (int j = 0; j < size.value; ++j) sum[j] += v[j];
        }
        store_pack(to, sum);
    });
}

#define EXPORT(T, t)                                                                                            \
    KERNEL(256, windows_cut_##t, const T* x, T* y, long long windows, int pieces, int steps, int l, int length, \
           int before, int width, int accumulate) {                                                             \
        cut(x, y, windows, Windows{pieces, steps, l, length, before}, width, accumulate);                       \
    }                                                                                                           \
    KERNEL(256, windows_sum_##t, const T* y, T* x, long long batch, int pieces, int steps, int l, int length,   \
           int before, int width, int accumulate) {                                                             \
        add_up(y, x, batch, Windows{pieces, steps, l, length, before}, width, accumulate);                      \
    }
FOR_TYPES(EXPORT)
