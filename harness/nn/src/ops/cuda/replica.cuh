// What all kernels share: number types, 16-byte loads, reductions in a fixed order, tensor cores, asynchronous copies.
// The test compiles the same files for the CPU; tests/kernels/emulator.h then stands for everything of CUDA.
#pragma once

#ifndef REPLICA_EMULATOR
#include <cuda_bf16.h>

// A kernel for blocks of at most `threads` threads.
#define KERNEL(threads, name, ...) extern "C" __global__ void __launch_bounds__(threads) name(__VA_ARGS__)

#define DYNAMIC_SHARED(type, name)                                 \
    extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
    type* name = reinterpret_cast<type*>(dynamic_shared)

// d += a b for a 16 x 16, b 16 x 8 (bf16) and d 16 x 8 (float), spread over the lanes of a warp: with g = lane / 4,
// c = lane % 4 * 2, a holds the pairs (g, c), (g + 8, c), (g, c + 8), (g + 8, c + 8), b (c, g), (c + 8, g), along k;
// d holds (g, c), (g, c + 1), (g + 8, c), (g + 8, c + 1).
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices of bf16 from shared memory: lane i gives the address of row i % 8 of matrix i / 8 and gets
// the pair (i / 4, i % 4 * 2) of each; of the transposes in the second function.
__device__ __forceinline__ void ldmatrix(unsigned (&to)[4], const void* row) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_transposed(unsigned (&to)[4], const void* row) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

// Copies 16 aligned bytes to shared memory without waiting; zeros if not `valid`.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// All but the latest `pending` groups of this thread's copies have arrived.
template <int pending>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
}
#endif

using bf16 = __nv_bfloat16;
using u8 = unsigned char;
using u32 = unsigned int;
using u64 = unsigned long long;

// Both number types of activations and weights, with the suffix of the kernels' names.
#define FOR_TYPES(EXPORT) EXPORT(float, f32) EXPORT(bf16, bf16)

constexpr float INFINITE = __builtin_huge_valf();
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(bf16 v) { return __bfloat162float(v); }
template <typename T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
    return v;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float v) {
    return __float2bfloat16(v);
}

__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int larger(int a, int b) { return a > b ? a : b; }
// The other one if one is NaN, as fmaxf.
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }
__device__ __forceinline__ int ceil_div(int a, int b) { return (a + b - 1) / b; }

__device__ __forceinline__ bool is_aligned(const void* p) { return (reinterpret_cast<size_t>(p) & 15) == 0; }

// Eight elements at a time: one 16-byte access of bf16, two of float.
constexpr int PACK = 8;
__device__ __forceinline__ void load_pack(const float* p, float (&v)[PACK]) {
    const float4 a = *reinterpret_cast<const float4*>(p), b = *reinterpret_cast<const float4*>(p + 4);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
__device__ __forceinline__ void load_pack(const bf16* p, float (&v)[PACK]) {
    const uint4 raw = *reinterpret_cast<const uint4*>(p);
    const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        v[2 * i] = __uint_as_float(words[i] << 16);
        v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}
__device__ __forceinline__ void store_pack(float* p, const float (&v)[PACK]) {
    *reinterpret_cast<float4*>(p) = make_float4(v[0], v[1], v[2], v[3]);
    *reinterpret_cast<float4*>(p + 4) = make_float4(v[4], v[5], v[6], v[7]);
}
// One element, for what is not a multiple of eight or not aligned.
template <typename T>
__device__ __forceinline__ void load_pack(const T* p, float (&v)[1]) {
    v[0] = to_float(p[0]);
}
template <typename T>
__device__ __forceinline__ void store_pack(T* p, const float (&v)[1]) {
    p[0] = from_float<T>(v[0]);
}
// Two floats as bf16 in one register, the first in the lower half.
__device__ __forceinline__ u32 pair_of(float low, float high) {
#ifdef REPLICA_EMULATOR
    return u32(__float2bfloat16(low).bits) | u32(__float2bfloat16(high).bits) << 16;
#else
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const u32*>(&pair);
#endif
}
__device__ __forceinline__ void store_pack(bf16* p, const float (&v)[PACK]) {
    *reinterpret_cast<uint4*>(p) =
        make_uint4(pair_of(v[0], v[1]), pair_of(v[2], v[3]), pair_of(v[4], v[5]), pair_of(v[6], v[7]));
}

template <typename V>
__device__ __forceinline__ V warp_sum(V v) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) v += __shfl_xor_sync(ALL_LANES, v, mask);
    return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) v = larger(v, __shfl_xor_sync(ALL_LANES, v, mask));
    return v;
}
// Sum over a block of THREADS threads, the same for all of them; `scratch` has THREADS / 32 places.
template <int THREADS, typename V>
__device__ __forceinline__ V block_sum(V v, V* scratch) {
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    V total = 0;
#pragma unroll
    for (int i = 0; i < THREADS / 32; ++i) total += scratch[i];
    return total;
}
template <int THREADS>
__device__ __forceinline__ float block_max(float v, float* scratch) {
    v = warp_max(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    float top = scratch[0];
#pragma unroll
    for (int i = 1; i < THREADS / 32; ++i) top = larger(top, scratch[i]);
    return top;
}

// Eight elements of an input of the loops below.
template <typename X>
struct PackOf {
    const X* x;
    float v[PACK];
    __device__ __forceinline__ explicit PackOf(const X* x) : x(x) {}
    __device__ __forceinline__ void load(long long i) { load_pack(x + i, v); }
};

// y[i] = f(i, x[i]...) for the i < n of thread `first` of `step`; f works on floats. `packed`: 16-byte accesses,
// for which all pointers must be aligned.
template <typename I, typename F, typename Y, typename... X>
__device__ __forceinline__ void map_range(I first, I step, I n, bool packed, Y* y, F f, const X*... x) {
    I done = 0;
    if (packed) {
        done = n / PACK * PACK;
        for (I i = first * PACK; i < done; i += step * PACK) {
            const auto pack = [&](auto... in) {
                float out[PACK];
                (in.load(i), ...);
#pragma unroll
                for (int j = 0; j < PACK; ++j) out[j] = f(i + j, in.v[j]...);
                store_pack(y + i, out);
            };
            pack(PackOf<X>(x)...);
        }
    }
    for (I i = done + first; i < n; i += step) y[i] = from_float<Y>(f(i, to_float(x[i])...));
}

// f(i, x[i]...) for the same i: sums over a row.
template <typename I, typename F, typename... X>
__device__ __forceinline__ void over_range(I first, I step, I n, bool packed, F f, const X*... x) {
    I done = 0;
    if (packed) {
        done = n / PACK * PACK;
        for (I i = first * PACK; i < done; i += step * PACK) {
            const auto pack = [&](auto... in) {
                (in.load(i), ...);
#pragma unroll
                for (int j = 0; j < PACK; ++j) f(i + j, in.v[j]...);
            };
            pack(PackOf<X>(x)...);
        }
    }
    for (I i = done + first; i < n; i += step) f(i, to_float(x[i])...);
}

// y[i] = f(i, x[i]...), elementwise, by the whole grid.
template <typename F, typename Y, typename... X>
__device__ __forceinline__ void map_elements(long long n, Y* y, F f, const X*... x) {
    map_range((long long)blockIdx.x * blockDim.x + threadIdx.x, (long long)gridDim.x * blockDim.x, n,
              is_aligned(y) && (is_aligned(x) && ...), y, f, x...);
}

// The same for results that are assigned or added to: y[i] (+)= f(i, x[i]...).
template <typename F, typename Y, typename... X>
__device__ __forceinline__ void map_or_add(long long n, Y* y, int accumulate, F f, const X*... x) {
    if (accumulate) {
        const auto add = [&](long long i, float old, auto... v) { return old + f(i, v...); };
        map_elements(n, y, add, static_cast<const Y*>(y), x...);
    } else {
        map_elements(n, y, f, x...);
    }
}

template <int N>
struct Size {
    static constexpr int value = N;
};

// i / n for i >= 0, n > 0; by 32 bits if they suffice, which takes a fraction of the instructions.
__device__ __forceinline__ long long quotient(long long i, long long n) {
    return ((i | n) >> 32) == 0 ? (long long)(u32(i) / u32(n)) : i / n;
}

// f(Size<N>, row, column) for N columns at a time, over a matrix by the whole grid; N = 8 if `packed`, for which
// the width is a multiple of 8 and all pointers and strides are aligned, else 1.
template <typename F>
__device__ __forceinline__ void over_matrix(long long rows, int width, bool packed, F f) {
    const long long step = (long long)gridDim.x * blockDim.x;
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (packed) {
        const int packs = width / PACK;
        for (; i < rows * packs; i += step) {
            const long long row = quotient(i, packs);
            f(Size<PACK>{}, row, int(i - row * packs) * PACK);
        }
    } else {
        for (; i < rows * width; i += step) {
            const long long row = quotient(i, width);
            f(Size<1>{}, row, int(i - row * width));
        }
    }
}
