// Rows of a table by index (ops/embedding.rs).
// Kept for backward: the ids. They are sorted on the device, so that rows of the same id are added in the order of
// their positions, in float and without atomics: chunks of sorted positions first, runs over several chunks after.
//
// Bound by memory, but for the sort by counting ranks, n^2 comparisons: some 0.1 ms for 32,768 ids (estimate).
#include "replica.cuh"

constexpr int EMBEDDING_CHUNK = 64;  // sorted positions of a block
constexpr u32 NO_ID = 0xffffffffu;

// order[rank of i] = i, sorted by (id, i).
KERNEL(64, embedding_rank, const u32* ids, u32* order, int n) {
    __shared__ u32 tile[256];
    const int i = blockIdx.x * 64 + threadIdx.x;
    const u32 id = i < n ? ids[i] : 0;
    int rank = 0;
    for (int first = 0; first < n; first += 256) {
        __syncthreads();
        for (int j = threadIdx.x; j < 256; j += 64) tile[j] = first + j < n ? ids[first + j] : NO_ID;
        __syncthreads();
        const int count = smaller(256, n - first);
        // earlier positions of the same id come first
#pragma unroll 8
        for (int j = 0; j < count; ++j) rank += tile[j] < id || (tile[j] == id && first + j < i);
    }
    if (i < n) order[rank] = i;
}

// Blocks (chunk, tile of columns): a run of equal ids within the chunk goes to the table; one that reaches beyond it
// into parts[2 * chunk], if it began before, or parts[2 * chunk + 1], if it begins here. An id beyond the
// table adds nothing.
template <typename T>
__device__ __forceinline__ void embedding_backward(const T* dy, const u32* ids, const u32* order, float* dtable,
                                                   float* parts, int n, int width, int vocab) {
    __shared__ u32 positions[EMBEDDING_CHUNK], keys[EMBEDDING_CHUNK + 2];
    const int first = blockIdx.x * EMBEDDING_CHUNK, count = smaller(EMBEDDING_CHUNK, n - first);
    // keys[k + 1] belongs to sorted position first + k
    for (int k = int(threadIdx.x) - 1; k <= count; k += 128) {
        const int sorted = first + k;
        const u32 position = sorted >= 0 && sorted < n ? order[sorted] : NO_ID;
        if (k >= 0 && k < count) positions[k] = position;
        keys[k + 1] = position == NO_ID ? NO_ID : ids[position];
    }
    __syncthreads();
    const int c = blockIdx.y * 128 + threadIdx.x;
    if (c >= width) return;
    float sum = 0;
    bool began_before = keys[0] == keys[1];
    for (int start = 0; start < count; start += 8) {
        // eight loads on their way at a time
        float v[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            v[j] = start + j < count ? to_float(dy[(long long)positions[start + j] * width + c]) : 0.0f;
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const int k = start + j;
            if (k >= count) break;
            sum += v[j];
            const u32 id = keys[k + 1];
            const bool ends = keys[k + 2] != id;
            if (!ends && k + 1 < count) continue;
            if (ends && !began_before) {
                if (id < u32(vocab)) dtable[(long long)id * width + c] += sum;
            } else {
                parts[(2ll * blockIdx.x + (began_before ? 0 : 1)) * width + c] = sum;
            }
            began_before = false;
            sum = 0;
        }
    }
}

// Adds up the runs that begin in a chunk and reach beyond it.
KERNEL(128, embedding_join_f32, const float* parts, const u32* ids, const u32* order, float* dtable, int n, int width,
       int vocab) {
    const int c = blockIdx.y * 128 + threadIdx.x;
    const int first = blockIdx.x * EMBEDDING_CHUNK, next = first + EMBEDDING_CHUNK;
    if (c >= width || next >= n) return;
    const u32 id = ids[order[next - 1]];
    const bool began_before = first > 0 && ids[order[first - 1]] == id && ids[order[first]] == id;
    if (began_before || ids[order[next]] != id || id >= u32(vocab)) return;
    float sum = parts[(2ll * blockIdx.x + 1) * width + c];
    for (int begin = next; begin < n && ids[order[begin]] == id; begin += EMBEDDING_CHUNK) {
        sum += parts[2ll * (begin / EMBEDDING_CHUNK) * width + c];
        if (ids[order[smaller(begin + EMBEDDING_CHUNK, n) - 1]] != id) break;
    }
    dtable[(long long)id * width + c] += sum;
}

template <typename T>
__device__ __forceinline__ void embedding_forward(const u32* ids, const T* table, T* y, long long n, int width,
                                                  int vocab) {
    over_matrix(n, width, width % PACK == 0 && is_aligned(table) && is_aligned(y), [&](auto size, long long i, int c) {
        float v[size.value];
        if (ids[i] < u32(vocab)) {
            load_pack(table + (long long)ids[i] * width + c, v);
        } else {
            // no error can be raised from here; NaN is seen at the next check of the loss
            for (int j = 0; j < size.value; ++j) v[j] = NAN;
        }
        store_pack(y + i * width + c, v);
    });
}

template <typename T>
__device__ __forceinline__ void scatter_rows(const T* dy, const u32* rows, T* dx, long long n, int width) {
    over_matrix(n, width, width % PACK == 0 && is_aligned(dy) && is_aligned(dx), [&](auto size, long long i, int c) {
        float v[size.value], old[size.value];
        T* to = dx + (long long)rows[i] * width + c;
        load_pack(dy + i * width + c, v);
        load_pack(static_cast<const T*>(to), old);
#pragma unroll
        for (int j = 0; j < size.value; ++j) v[j] += old[j];
        store_pack(to, v);
    });
}

#define EXPORT(T, t)                                                                                              \
    KERNEL(256, embedding_forward_##t, const u32* ids, const T* table, T* y, long long n, int width, int vocab) { \
        embedding_forward(ids, table, y, n, width, vocab);                                                        \
    }                                                                                                             \
    KERNEL(128, embedding_backward_##t, const T* dy, const u32* ids, const u32* order, float* dtable,             \
           float* parts, int n, int width, int vocab) {                                                           \
        embedding_backward(dy, ids, order, dtable, parts, n, width, vocab);                                       \
    }                                                                                                             \
    KERNEL(256, scatter_rows_##t, const T* dy, const u32* rows, T* dx, long long n, int width) {                  \
        scatter_rows(dy, rows, dx, n, width);                                                                     \
    }
FOR_TYPES(EXPORT)
