// Causal convolution with a long kernel, by FFT, u and y [batch, channels, length], kernel [1 or 2, channels, taps]:
// y[l] = sum over s of kernel[0][s] u[l - s] + kernel[1][s] u[l + 1 + s] + skip u[l]. n is a power of two, at least
// length + taps.
// Kept for backward: u, and the kernel's spectrum, [channels, n] complex, which forward needs anyway.
//
// Two batch entries are the real and imaginary part of one transform: as the kernel is real, their results come out
// the same way. Up to n = 4096 a transform lives in the shared memory of one block (Stockham, radix 4, padded against
// bank conflicts); above, n = rows * 4096 takes three passes over global memory: columns, rows, columns.
// Bound by shared memory up to 4096, by global memory above.
#include "complex.cuh"

constexpr int FFT_EACH = 8;       // elements a thread works on
constexpr int FFT_ROW = 4096;     // row of a transform in several passes

// Index in shared memory: a skipped element every 16 puts strided stores on different banks.
__device__ __forceinline__ int padded(int i) { return i + i / 16; }

__device__ __forceinline__ float2 unit(float half_turns) {
    float2 w;
    sincospif(half_turns, &w.y, &w.x);
    return w;
}

// v = transform of four numbers; sign -1 forward, +1 inverse.
__device__ __forceinline__ void transform(float2 (&v)[4], float sign) {
    const float2 a = v[0] + v[2], b = v[0] - v[2], c = v[1] + v[3], d = v[1] - v[3];
    const float2 turned = make_float2(-sign * d.y, sign * d.x);
    v[0] = a + c;
    v[1] = b + turned;
    v[2] = a - c;
    v[3] = b - turned;
}

// Transform of n complex numbers in shared memory by all threads of a block, in natural order, without scaling.
__device__ __forceinline__ void fft(float2* z, int n, float sign) {
    int size = 1;
    if ((31 - __clz(n)) % 2 == 1) {
        float2 v[FFT_EACH];
#pragma unroll
        for (int i = 0; i < FFT_EACH / 2; ++i) {
            const int j = threadIdx.x + i * blockDim.x;
            if (j < n / 2) v[2 * i] = z[padded(j)], v[2 * i + 1] = z[padded(j + n / 2)];
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < FFT_EACH / 2; ++i) {
            const int j = threadIdx.x + i * blockDim.x;
            if (j < n / 2) {
                z[padded(2 * j)] = v[2 * i] + v[2 * i + 1];
                z[padded(2 * j + 1)] = v[2 * i] - v[2 * i + 1];
            }
        }
        __syncthreads();
        size = 2;
    }
    for (; size < n; size *= 4) {
        float2 v[FFT_EACH / 4][4];
#pragma unroll
        for (int i = 0; i < FFT_EACH / 4; ++i) {
            const int j = threadIdx.x + i * blockDim.x;
            if (j < n / 4) {
                const float2 w = unit(sign * (j & (size - 1)) / (2.0f * size)), w2 = w * w;
                v[i][0] = z[padded(j)];
                v[i][1] = w * z[padded(j + n / 4)];
                v[i][2] = w2 * z[padded(j + n / 2)];
                v[i][3] = w * w2 * z[padded(j + n / 2 + n / 4)];
                transform(v[i], sign);
            }
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < FFT_EACH / 4; ++i) {
            const int j = threadIdx.x + i * blockDim.x;
            if (j < n / 4) {
                const int k = j & (size - 1), to = (j - k) * 4 + k;
#pragma unroll
                for (int r = 0; r < 4; ++r) z[padded(to + r * size)] = v[i][r];
            }
        }
        __syncthreads();
    }
}

// f(m, i) for the elements i of a thread, the m-th each.
template <typename F>
__device__ __forceinline__ void each_element(int n, F f) {
#pragma unroll
    for (int m = 0; m < FFT_EACH; ++m) {
        const int i = threadIdx.x + m * blockDim.x;
        if (i < n) f(m, i);
    }
}

// Element l of two batch entries; zero beyond the ends.
template <typename T>
__device__ __forceinline__ float2 read_pair(const T* u, int pair, int channel, int batch, int channels, int length,
                                            int l) {
    if (l >= length) return make_float2(0, 0);
    const long long at = ((long long)(2 * pair) * channels + channel) * length + l;
    return make_float2(to_float(u[at]), 2 * pair + 1 < batch ? to_float(u[at + (long long)channels * length]) : 0.0f);
}

// Element i of a channel's kernel as a periodic sequence: what looks ahead lies at the end.
struct Taps {
    int channels, taps, sides, n;

    // Where it lies in the kernel, or -1.
    __device__ __forceinline__ long long index(int channel, int i) const {
        if (i < taps) return (long long)channel * taps + i;
        if (sides == 2 && i >= n - taps) return (long long)(channels + channel) * taps + n - 1 - i;
        return -1;
    }
    __device__ __forceinline__ float2 read(const float* kernel, int channel, int i) const {
        const long long at = index(channel, i);
        return make_float2(at < 0 ? 0.0f : kernel[at], 0);
    }
    __device__ __forceinline__ void write(float* kernel, int channel, int i, float2 v) const {
        const long long at = index(channel, i);
        if (at >= 0) kernel[at] = v.x;
    }
    __device__ __forceinline__ long long size() const { return (long long)sides * channels * taps; }
};

// z = inverse transform of (transform of z) * factor.
__device__ __forceinline__ void filter(float2* z, const float2* factor, int n, int conjugated, float scale) {
    fft(z, n, -1);
    each_element(n, [&](int, int i) {
        const float2 w = conjugated ? conjugate(factor[i]) : factor[i];
        z[padded(i)] = z[padded(i)] * w * make_float2(scale, 0);
    });
    __syncthreads();
    fft(z, n, 1);
}

// sum = sum over pairs of conj(transform of u) * (transform of dy), back in time.
template <typename U, typename D>
__device__ __forceinline__ void correlate(float2* z, int n, float scale, int pairs, int first, int step, U read_u,
                                          D read_dy) {
    float2 sum[FFT_EACH] = {};
    for (int pair = first; pair < pairs; pair += step) {
        float2 spectrum[FFT_EACH];
        each_element(n, [&](int, int i) { z[padded(i)] = read_u(pair, i); });
        __syncthreads();
        fft(z, n, -1);
        each_element(n, [&](int m, int i) { spectrum[m] = z[padded(i)]; });
        __syncthreads();
        each_element(n, [&](int, int i) { z[padded(i)] = read_dy(pair, i); });
        __syncthreads();
        fft(z, n, -1);
        each_element(n, [&](int m, int i) { sum[m] = sum[m] + conjugate(spectrum[m]) * z[padded(i)]; });
        __syncthreads();
    }
    each_element(n, [&](int m, int i) { z[padded(i)] = sum[m] * make_float2(scale, 0); });
    __syncthreads();
    fft(z, n, 1);
}

// y[l] of the two entries of a pair, with the direct path.
template <typename T>
__device__ __forceinline__ void write_pair(T* y, const T* u, const float* skip, float2 v, int pair, int channel,
                                           int batch, int channels, int length, int l) {
    if (l >= length) return;
    if (skip != nullptr) {
        v = v + make_float2(skip[channel], 0) * read_pair(u, pair, channel, batch, channels, length, l);
    }
    const long long at = ((long long)(2 * pair) * channels + channel) * length + l;
    y[at] = from_float<T>(v.x);
    if (2 * pair + 1 < batch) y[at + (long long)channels * length] = from_float<T>(v.y);
}

KERNEL(512, long_convolution_spectrum_f32, const float* kernel, float2* spectrum, int channels, int taps, int sides,
       int n) {
    DYNAMIC_SHARED(float2, z);
    const int channel = blockIdx.x;
    each_element(n, [&](int, int i) { z[padded(i)] = Taps{channels, taps, sides, n}.read(kernel, channel, i); });
    __syncthreads();
    fft(z, n, -1);
    each_element(n, [&](int, int i) { spectrum[(long long)channel * n + i] = z[padded(i)]; });
}

// ---- n > 4096, up to 65536: element n1 * 4096 + n2 in time, (k1, n2) after the columns, (k1, k2) after the rows

// Transform of N numbers in registers, in natural order.
template <int N>
struct Columns {
    static __device__ __forceinline__ void transform_all(float2 (&v)[N], float sign) {
        float2 even[N / 2], odd[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; ++i) even[i] = v[2 * i], odd[i] = v[2 * i + 1];
        Columns<N / 2>::transform_all(even, sign);
        Columns<N / 2>::transform_all(odd, sign);
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
            const float2 w = unit(sign * 2 * i / N) * odd[i];
            v[i] = even[i] + w;
            v[i + N / 2] = even[i] - w;
        }
    }
};
template <>
struct Columns<2> {
    static __device__ __forceinline__ void transform_all(float2 (&v)[2], float) {
        const float2 a = v[0], b = v[1];
        v[0] = a + b;
        v[1] = a - b;
    }
};
template <>
struct Columns<4> {
    static __device__ __forceinline__ void transform_all(float2 (&v)[4], float sign) { transform(v, sign); }
};

template <typename F>
__device__ __forceinline__ void with_columns(int n, F f) {
    switch (n / FFT_ROW) {
        case 2: return f(Size<2>{});
        case 4: return f(Size<4>{});
        case 8: return f(Size<8>{});
        default: return f(Size<16>{});
    }
}

// read(l) is element l in time.
template <int N, typename F>
__device__ __forceinline__ void columns_forward(float2* z, int channels, F read) {
    const int column = blockIdx.x * 128 + threadIdx.x;
    float2 v[N];
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = read(i * FFT_ROW + column);
    Columns<N>::transform_all(v, -1);
    z += ((long long)blockIdx.z * channels + blockIdx.y) * N * FFT_ROW + column;
#pragma unroll
    for (int i = 0; i < N; ++i) z[i * FFT_ROW] = v[i] * unit(-2.0f * (i * column) / (N * FFT_ROW));
}

template <int N>
__device__ __forceinline__ void columns_back(float2 (&v)[N], const float2* z, int channels) {
    const int column = blockIdx.x * 128 + threadIdx.x;
    z += ((long long)blockIdx.z * channels + blockIdx.y) * N * FFT_ROW + column;
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = z[i * FFT_ROW] * unit(2.0f * (i * column) / (N * FFT_ROW));
    Columns<N>::transform_all(v, 1);
}

// Where a block's row begins: blocks (k1, channel, pair).
__device__ __forceinline__ long long row_start(int entry, int channels, int n) {
    return ((long long)entry * channels + blockIdx.y) * n + (long long)blockIdx.x * FFT_ROW;
}

KERNEL(512, long_convolution_rows_spectrum_f32, float2* z, int channels, int n) {
    DYNAMIC_SHARED(float2, row);
    z += row_start(0, channels, n);
    each_element(FFT_ROW, [&](int, int i) { row[padded(i)] = z[i]; });
    __syncthreads();
    fft(row, FFT_ROW, -1);
    each_element(FFT_ROW, [&](int, int i) { z[i] = row[padded(i)]; });
}

KERNEL(512, long_convolution_rows_apply_f32, float2* z, const float2* spectrum, int channels, int n, int conjugated) {
    DYNAMIC_SHARED(float2, row);
    z += row_start(blockIdx.z, channels, n);
    each_element(FFT_ROW, [&](int, int i) { row[padded(i)] = z[i]; });
    __syncthreads();
    filter(row, spectrum + row_start(0, channels, n), FFT_ROW, conjugated, 1.0f / n);
    each_element(FFT_ROW, [&](int, int i) { z[i] = row[padded(i)]; });
}

KERNEL(512, long_convolution_rows_backward_f32, const float2* u, const float2* dy, float2* dkernel, int pairs,
       int channels, int n) {
    DYNAMIC_SHARED(float2, row);
    const auto read = [&](const float2* z) {
        return [=](int pair, int i) { return z[row_start(pair, channels, n) + i]; };
    };
    correlate(row, FFT_ROW, 1.0f / n, pairs, blockIdx.z, gridDim.z, read(u), read(dy));
    dkernel += row_start(blockIdx.z, channels, n);
    each_element(FFT_ROW, [&](int, int i) { dkernel[i] = row[padded(i)]; });
}

KERNEL(128, long_convolution_columns_spectrum_f32, const float* kernel, float2* spectrum, int channels, int taps,
       int sides, int n) {
    with_columns(n, [&](auto size) {
        columns_forward<decltype(size)::value>(spectrum, channels, [&](int i) {
            return Taps{channels, taps, sides, n}.read(kernel, blockIdx.y, i);
        });
    });
}

// The kernel's gradient is the real part.
KERNEL(128, long_convolution_columns_kernel_f32, const float2* z, float* dkernel_parts, int channels, int taps,
       int sides, int n) {
    const Taps kernel{channels, taps, sides, n};
    dkernel_parts += blockIdx.z * kernel.size();
    with_columns(n, [&](auto size) {
        constexpr int N = decltype(size)::value;
        float2 v[N];
        columns_back<N>(v, z, channels);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            kernel.write(dkernel_parts, blockIdx.y, i * FFT_ROW + blockIdx.x * 128 + threadIdx.x, v[i]);
        }
    });
}

#define EXPORT(T, t)                                                                                                   \
    KERNEL(512, long_convolution_apply_##t, const T* u, const float2* spectrum, const float* skip, T* y, int batch,    \
           int channels, int length, int n, int conjugated) {                                                          \
        DYNAMIC_SHARED(float2, z);                                                                                     \
        const int channel = blockIdx.x, pair = blockIdx.y;                                                             \
        each_element(n, [&](int, int i) { z[padded(i)] = read_pair(u, pair, channel, batch, channels, length, i); });  \
        __syncthreads();                                                                                               \
        filter(z, spectrum + (long long)channel * n, n, conjugated, 1.0f / n);                                         \
        each_element(n, [&](int, int i) {                                                                              \
            write_pair(y, u, skip, z[padded(i)], pair, channel, batch, channels, length, i);                           \
        });                                                                                                            \
    }                                                                                                                  \
    KERNEL(512, long_convolution_backward_kernel_##t, const T* u, const T* dy, float* dkernel_parts, int batch,        \
           int channels, int length, int taps, int sides, int n) {                                                     \
        DYNAMIC_SHARED(float2, z);                                                                                     \
        const int channel = blockIdx.x;                                                                                \
        const auto read = [&](const T* x) {                                                                            \
            return [=](int pair, int i) { return read_pair(x, pair, channel, batch, channels, length, i); };           \
        };                                                                                                             \
        correlate(z, n, 1.0f / n, ceil_div(batch, 2), blockIdx.y, gridDim.y, read(u), read(dy));                       \
        const Taps kernel{channels, taps, sides, n};                                                                   \
        dkernel_parts += blockIdx.y * kernel.size();                                                                   \
        each_element(n, [&](int, int i) { kernel.write(dkernel_parts, channel, i, z[padded(i)]); });                   \
    }                                                                                                                  \
    KERNEL(256, long_convolution_backward_skip_##t, const T* u, const T* dy, float* dskip, int batch, int channels,    \
           int length, int accumulate) {                                                                               \
        __shared__ float scratch[8];                                                                                   \
        float sum = 0;                                                                                                 \
        for (int b = 0; b < batch; ++b) {                                                                              \
            const long long start = ((long long)b * channels + blockIdx.x) * length;                                   \
            for (int l = threadIdx.x; l < length; l += 256) sum += to_float(u[start + l]) * to_float(dy[start + l]);   \
        }                                                                                                              \
        sum = block_sum<256>(sum, scratch);                                                                            \
        if (threadIdx.x == 0) dskip[blockIdx.x] = accumulate ? dskip[blockIdx.x] + sum : sum;                          \
    }                                                                                                                  \
    KERNEL(128, long_convolution_columns_##t, const T* u, float2* z, int batch, int channels, int length, int n) {     \
        with_columns(n, [&](auto size) {                                                                               \
            columns_forward<size.value>(z, channels, [&](int l) {                                                      \
                return read_pair(u, blockIdx.z, blockIdx.y, batch, channels, length, l);                               \
            });                                                                                                        \
        });                                                                                                            \
    }                                                                                                                  \
    KERNEL(128, long_convolution_columns_inverse_##t, const float2* z, const T* u, const float* skip, T* y, int batch, \
           int channels, int length, int n) {                                                                          \
        with_columns(n, [&](auto size) {                                                                               \
            constexpr int N = decltype(size)::value;                                                                   \
            float2 v[N];                                                                                               \
            columns_back<N>(v, z, channels);                                                                           \
            _Pragma("unroll") for (int i = 0; i < N; ++i) {                                                            \
                const int l = i * FFT_ROW + blockIdx.x * 128 + threadIdx.x;                                            \
                write_pair(y, u, skip, v[i], blockIdx.z, blockIdx.y, batch, channels, length, l);                      \
            }                                                                                                          \
        });                                                                                                            \
    }
FOR_TYPES(EXPORT)
