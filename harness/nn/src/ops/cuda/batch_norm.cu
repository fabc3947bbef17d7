// Batch norm of the last dimension over all others (ops/batch_norm.rs).
// Kept for backward: x, and mean and 1 / sqrt(var + eps) of every column.
//
// Bound by memory. Moments of some rows are taken about these rows' own mean, which a second pass over them finds in
// the cache, and are joined in double precision: a mean far from 0 costs no digits.
#include "replica.cuh"

constexpr int BN_COLUMNS = 32;  // columns of a block, one a lane
constexpr int BN_GROUPS = 8;    // rows of a block at a time, one a warp

// The same column's numbers of all warps, added in their order.
template <typename V>
__device__ __forceinline__ V column_sum(V v, V (&scratch)[BN_GROUPS][BN_COLUMNS]) {
    const int lane = threadIdx.x % 32;
    __syncthreads();
    scratch[threadIdx.x / 32][lane] = v;
    __syncthreads();
    V total = 0;
#pragma unroll
    for (int g = 0; g < BN_GROUPS; ++g) total += scratch[g][lane];
    return total;
}

// Blocks (columns, p): rows p * size to (p + 1) * size. parts [count, 2, width]: mean, sum of squares about it.
template <typename T>
__device__ __forceinline__ void batch_norm_moments(const T* x, float* parts, long long rows, int size, int width) {
    __shared__ float scratch[BN_GROUPS][BN_COLUMNS];
    const int c = blockIdx.x * BN_COLUMNS + threadIdx.x % 32;
    const long long first = (long long)blockIdx.y * size, end = first + size < rows ? first + size : rows;
    const bool inside = c < width;
    float sum = 0, squares = 0;
    for (long long row = first + threadIdx.x / 32; inside && row < end; row += BN_GROUPS) {
        sum += to_float(x[row * width + c]);
    }
    const float mean = column_sum(sum, scratch) / float(end - first);
    for (long long row = first + threadIdx.x / 32; inside && row < end; row += BN_GROUPS) {
        const float d = to_float(x[row * width + c]) - mean;
        squares += d * d;
    }
    squares = column_sum(squares, scratch);
    if (inside && threadIdx.x < 32) {
        float* to = parts + (long long)blockIdx.y * 2 * width + c;
        to[0] = mean;
        to[width] = squares;
    }
}

// Mean and variance of all rows, from those of `count` parts of `size` rows, the last one shorter.
KERNEL(256, batch_norm_join_f32, const float* parts, float* mean, float* variance, long long rows, int size, int count,
       int width) {
    __shared__ double scratch[BN_GROUPS][BN_COLUMNS];
    const int c = blockIdx.x * BN_COLUMNS + threadIdx.x % 32;
    const bool inside = c < width;
    const auto of = [&](int p) {
        const long long left = rows - (long long)p * size;
        return double(left < size ? left : size);
    };
    double sum = 0, squares = 0;
    for (int p = threadIdx.x / 32; inside && p < count; p += BN_GROUPS) {
        sum += of(p) * parts[(long long)p * 2 * width + c];
    }
    const double m = column_sum(sum, scratch) / double(rows);
    for (int p = threadIdx.x / 32; inside && p < count; p += BN_GROUPS) {
        const float* part = parts + (long long)p * 2 * width + c;
        const double d = part[0] - m;
        squares += part[width] + of(p) * d * d;
    }
    squares = column_sum(squares, scratch);
    if (inside && threadIdx.x < 32) {
        mean[c] = float(m);
        variance[c] = float(squares / double(rows));
    }
}

// kept [2, width]: the mean, 1 / sqrt(variance + eps).
KERNEL(256, batch_norm_keep_f32, const float* mean, const float* variance, float* kept, int width, float eps) {
    const int c = blockIdx.x * 256 + threadIdx.x;
    if (c < width) {
        kept[c] = mean[c];
        kept[width + c] = 1.0f / sqrtf(variance[c] + eps);
    }
}

template <typename T>
__device__ __forceinline__ void batch_norm_forward(const T* x, const float* kept, const T* weight, const T* bias, T* y,
                                                   long long rows, int width) {
    const bool packed = width % PACK == 0 && is_aligned(x) && is_aligned(kept) && is_aligned(weight) &&
                        is_aligned(bias) && is_aligned(y);
    over_matrix(rows, width, packed, [&](auto size, long long row, int c) {
        float v[size.value], m[size.value], r[size.value], w[size.value], b[size.value];
        load_pack(x + row * width + c, v);
        load_pack(kept + c, m);
        load_pack(kept + width + c, r);
        load_pack(weight + c, w);
        load_pack(bias + c, b);
#pragma unroll
        for (int j = 0; j < size.value; ++j) v[j] = (v[j] - m[j]) * r[j] * w[j] + b[j];
        store_pack(y + row * width + c, v);
    });
}

// Blocks as for the moments. parts [count, 2, width]: sums of dy times the normalised x, and of dy.
template <typename T>
__device__ __forceinline__ void batch_norm_backward_sums(const T* dy, const T* x, const float* kept, float* parts,
                                                         long long rows, int size, int width) {
    __shared__ float scratch[BN_GROUPS][BN_COLUMNS];
    const int c = blockIdx.x * BN_COLUMNS + threadIdx.x % 32;
    const long long first = (long long)blockIdx.y * size, end = first + size < rows ? first + size : rows;
    const bool inside = c < width;
    const float m = inside ? kept[c] : 0, r = inside ? kept[width + c] : 0;
    float along = 0, level = 0;
    for (long long row = first + threadIdx.x / 32; inside && row < end; row += BN_GROUPS) {
        const float d = to_float(dy[row * width + c]);
        along += d * ((to_float(x[row * width + c]) - m) * r);
        level += d;
    }
    along = column_sum(along, scratch);
    level = column_sum(level, scratch);
    if (inside && threadIdx.x < 32) {
        float* to = parts + (long long)blockIdx.y * 2 * width + c;
        to[0] = along;
        to[width] = level;
    }
}

// dx (+)= w r (dy - share (sum of dy + normalised x * sum of dy normalised x)); share = 0 for moments that are not x's.
template <typename T>
__device__ __forceinline__ void batch_norm_backward(const T* dy, const T* x, const float* kept, const T* weight,
                                                    const float* sums, T* dx, long long rows, int width, float share,
                                                    int accumulate) {
    const bool packed = width % PACK == 0 && is_aligned(dy) && is_aligned(x) && is_aligned(kept) &&
                        is_aligned(weight) && is_aligned(sums) && is_aligned(dx);
    over_matrix(rows, width, packed, [&](auto size, long long row, int c) {
        float v[size.value], d[size.value], m[size.value], r[size.value], w[size.value];
        float along[size.value], level[size.value], old[size.value] = {};
        load_pack(x + row * width + c, v);
        load_pack(dy + row * width + c, d);
        load_pack(kept + c, m);
        load_pack(kept + width + c, r);
        load_pack(weight + c, w);
        load_pack(sums + c, along);
        load_pack(sums + width + c, level);
        if (accumulate) load_pack(static_cast<const T*>(dx) + row * width + c, old);
#pragma unroll
        for (int j = 0; j < size.value; ++j) {
            const float normal = (v[j] - m[j]) * r[j];
            v[j] = old[j] + w[j] * r[j] * (d[j] - share * (level[j] + normal * along[j]));
        }
        store_pack(dx + row * width + c, v);
    });
}

#define EXPORT(T, t)                                                                                               \
    KERNEL(256, batch_norm_moments_##t, const T* x, float* parts, long long rows, int size, int width) {           \
        batch_norm_moments(x, parts, rows, size, width);                                                           \
    }                                                                                                              \
    KERNEL(256, batch_norm_forward_##t, const T* x, const float* kept, const T* weight, const T* bias, T* y,       \
           long long rows, int width) {                                                                            \
        batch_norm_forward(x, kept, weight, bias, y, rows, width);                                                 \
    }                                                                                                              \
    KERNEL(256, batch_norm_backward_sums_##t, const T* dy, const T* x, const float* kept, float* parts,            \
           long long rows, int size, int width) {                                                                  \
        batch_norm_backward_sums(dy, x, kept, parts, rows, size, width);                                           \
    }                                                                                                              \
    KERNEL(256, batch_norm_backward_##t, const T* dy, const T* x, const float* kept, const T* weight,              \
           const float* sums, T* dx, long long rows, int width, float share, int accumulate) {                     \
        batch_norm_backward(dy, x, kept, weight, sums, dx, rows, width, share, accumulate);                        \
    }
FOR_TYPES(EXPORT)
