// Scaled dot-product attention (ops/attention.rs) by the scheme of FlashAttention-2 (Dao 2023), with a key mask and an
// additive bias. Kept for backward: q, k, v, the result and the log-sum-exp of every row of scores, plus infinity for
// a row that sees no key; probabilities are computed again tile by tile, so nothing of size [t, s] is stored.
//
// bf16: bound by tensor cores (mma.sync) for long sequences; four warps own 16 rows of a tile of 64 each and keep
// scores and probabilities in registers. float: bound by FMA and shared memory, tiles of 64 x 64, or 32 above head_dim 64;
// values may have another width than keys, and go through the tiles in slices of 64 or 128 columns.
// Backward takes two passes over the tiles, one by keys (dk, dv) and one by queries (dq), instead of atomic additions.
#include "replica.cuh"

constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

// Where a block's head lies, and what its queries may see.
struct Scores {
    int t, s;
    int causal;
    float scale;               // times log2(e): exponentials are powers of two
    const u8* key_mask;        // [s] of this batch entry, or nothing
    const float* bias;         // [t, s] of this head, or nothing

    __device__ __forceinline__ Scores(int batch_entry, int head, int t, int s, int causal, float scale,
                                      const u8* key_mask, const float* bias)
        : t(t),
          s(s),
          causal(causal),
          scale(scale * LOG2_E),
          key_mask(key_mask == nullptr ? nullptr : key_mask + (long long)batch_entry * s),
          bias(bias == nullptr ? nullptr : bias + (long long)head * t * s) {}

    // Score of query i and key j in units of log2 from their product.
    __device__ __forceinline__ float operator()(float product, int i, int j) const {
        const bool seen = i < t && j < s && (!causal || j <= i + s - t) && (key_mask == nullptr || key_mask[j] != 0);
        if (!seen) return -INFINITE;
        return bias == nullptr ? product * scale : product * scale + bias[(long long)i * s + j] * LOG2_E;
    }

    // All keys first .. first + n are seen by all queries from `query` on, without a bias.
    __device__ __forceinline__ bool plain(int query, int queries, int first, int n) const {
        return key_mask == nullptr && bias == nullptr && first + n <= s && query + queries <= t &&
               (!causal || first + n - 1 <= query + s - t);
    }

    // Number of keys that queries up to `last` see, and the first query that sees a key.
    __device__ __forceinline__ int keys_until(int last) const {
        return causal ? larger(0, smaller(s, last + 1 + s - t)) : s;
    }
    __device__ __forceinline__ int first_query(int key) const { return causal ? larger(0, key - (s - t)) : 0; }
};

// ---- bf16: tiles in shared memory with rows of D + 8 elements, which keeps ldmatrix free of bank conflicts

constexpr int TILE = 64;      // rows of a block, 16 a warp
constexpr int THREADS = 128;

// A head size, and the layout of its tiles.
template <int D>
struct Head {
    static constexpr int STRIDE = D + 8;
    // Rows to walk over in the other direction; 32 keeps the accumulators of D = 128 in registers.
    static constexpr int STEP = D == 128 ? 32 : 64;
};

// Starts the copy of rows first .. first + N of a head; zeros beyond `rows`.
template <int D, int N>
__device__ __forceinline__ void copy_rows(bf16* tile, const bf16* head, int first, int rows, long long stride,
                                          bool aligned) {
    constexpr int PACKS = D / PACK;
#pragma unroll 4
    for (int i = threadIdx.x; i < N * PACKS; i += THREADS) {
        const int r = i / PACKS, c = i % PACKS * PACK;
        bf16* to = tile + r * Head<D>::STRIDE + c;
        const bool valid = first + r < rows;
        const bf16* from = head + (valid ? (first + r) * stride + c : 0);
        if (aligned) {
            copy_async(to, from, valid);
        } else {
            for (int j = 0; j < PACK; ++j) to[j] = valid ? from[j] : from_float<bf16>(0);
        }
    }
}

// acc[16, N] += a[16, D] b[N, D]^T, both in shared memory.
template <int D, int N>
__device__ __forceinline__ void multiply_rows(float (&acc)[N / 8][4], const bf16* a, const bf16* b) {
    const int lane = threadIdx.x % 32, matrix = lane / 8, r = lane % 8;
    const bf16* a_row = a + (matrix % 2 * 8 + r) * Head<D>::STRIDE + matrix / 2 * 8;
    const bf16* b_row = b + (matrix / 2 * 8 + r) * Head<D>::STRIDE + matrix % 2 * 8;
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        unsigned x[4];
        ldmatrix(x, a_row + k);
#pragma unroll
        for (int n = 0; n < N / 16; ++n) {
            unsigned y[4];
            ldmatrix(y, b_row + n * 16 * Head<D>::STRIDE + k);
            mma_16x8x16(acc[2 * n], x, {y[0], y[1]});
            mma_16x8x16(acc[2 * n + 1], x, {y[2], y[3]});
        }
    }
}

// acc[16, D] += p[16, N] b[N, D], p in registers as the result of multiply_rows, b in shared memory.
template <int D, int N>
__device__ __forceinline__ void multiply_kept(float (&acc)[D / 8][4], const unsigned (&p)[N / 16][4], const bf16* b) {
    const int lane = threadIdx.x % 32, matrix = lane / 8, r = lane % 8;
    const bf16* b_row = b + (matrix % 2 * 8 + r) * Head<D>::STRIDE + matrix / 2 * 8;
#pragma unroll
    for (int k = 0; k < N / 16; ++k) {
#pragma unroll
        for (int n = 0; n < D / 16; ++n) {
            unsigned y[4];
            ldmatrix_transposed(y, b_row + k * 16 * Head<D>::STRIDE + n * 16);
            mma_16x8x16(acc[2 * n], p[k], {y[0], y[1]});
            mma_16x8x16(acc[2 * n + 1], p[k], {y[2], y[3]});
        }
    }
}

// Rounds a product's result to bf16, in the layout of a left factor.
template <int N>
__device__ __forceinline__ void keep(unsigned (&p)[N / 16][4], const float (&acc)[N / 8][4]) {
#pragma unroll
    for (int k = 0; k < N / 16; ++k) {
        p[k][0] = pair_of(acc[2 * k][0], acc[2 * k][1]);
        p[k][1] = pair_of(acc[2 * k][2], acc[2 * k][3]);
        p[k][2] = pair_of(acc[2 * k + 1][0], acc[2 * k + 1][1]);
        p[k][3] = pair_of(acc[2 * k + 1][2], acc[2 * k + 1][3]);
    }
}

// Writes this warp's 16 rows, by way of its rows of a tile so that lanes write 16 bytes side by side.
template <int D>
__device__ __forceinline__ void store_rows(const float (&acc)[D / 8][4], float low, float high, bf16* tile, bf16* head,
                                           int first, int rows, long long stride, bool aligned) {
    const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4 * 2;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
        *reinterpret_cast<u32*>(tile + g * Head<D>::STRIDE + n * 8 + c) = pair_of(acc[n][0] * low, acc[n][1] * low);
        *reinterpret_cast<u32*>(tile + (g + 8) * Head<D>::STRIDE + n * 8 + c) =
            pair_of(acc[n][2] * high, acc[n][3] * high);
    }
    __syncwarp();
    for (int i = lane; i < 16 * D / PACK; i += 32) {
        const int r = i / (D / PACK), column = i % (D / PACK) * PACK;
        if (first + r >= rows) continue;
        const bf16* from = tile + r * Head<D>::STRIDE + column;
        bf16* to = head + (first + r) * stride + column;
        if (aligned) {
            *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
        } else {
            for (int j = 0; j < PACK; ++j) to[j] = from[j];
        }
    }
}

__device__ __forceinline__ bool rows_aligned(const void* p, long long stride) {
    return is_aligned(p) && stride % PACK == 0;
}

// Reductions over the four lanes that share a row.
__device__ __forceinline__ float quad_max(float v) {
    v = larger(v, __shfl_xor_sync(ALL_LANES, v, 1));
    return larger(v, __shfl_xor_sync(ALL_LANES, v, 2));
}
__device__ __forceinline__ float quad_sum(float v) {
    v += __shfl_xor_sync(ALL_LANES, v, 1);
    return v + __shfl_xor_sync(ALL_LANES, v, 2);
}

template <int D>
__device__ __forceinline__ void attention_forward(Head<D>, const bf16* q, const bf16* k, const bf16* v, bf16* o,
                                                  float* lse, const u8* key_mask, const float* bias, int heads, int t,
                                                  int s, long long q_stride, long long k_stride, long long v_stride,
                                                  long long o_stride, float scale, int causal) {
    DYNAMIC_SHARED(bf16, tiles);
    bf16 *q_tile = tiles, *k_tile = q_tile + TILE * Head<D>::STRIDE, *v_tile = k_tile + TILE * Head<D>::STRIDE;
    const int b = blockIdx.y / heads, h = blockIdx.y % heads;
    // the longest rows of a causal mask first
    const int query = (causal ? gridDim.x - 1 - blockIdx.x : blockIdx.x) * TILE;
    const Scores scores(b, h, t, s, causal, scale, key_mask, bias);
    q += (long long)b * t * q_stride + h * D;
    k += (long long)b * s * k_stride + h * D;
    v += (long long)b * s * v_stride + h * D;
    o += (long long)b * t * o_stride + h * D;
    const bool k_aligned = rows_aligned(k, k_stride), v_aligned = rows_aligned(v, v_stride);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4 * 2;
    const int row = query + warp * 16 + g;
    const int keys = scores.keys_until(smaller(query + TILE, t) - 1);

    copy_rows<D, TILE>(q_tile, q, query, t, q_stride, rows_aligned(q, q_stride));
    copy_rows<D, TILE>(k_tile, k, 0, s, k_stride, k_aligned);
    copy_async_commit();
    float out[D / 8][4] = {};
    float top[2] = {-INFINITE, -INFINITE}, sum[2] = {0, 0};
    for (int key = 0; key < keys; key += TILE) {
        // v arrives during the first product, the next k during the second
        copy_rows<D, TILE>(v_tile, v, key, s, v_stride, v_aligned);
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads();
        float p[TILE / 8][4] = {};
        multiply_rows<D, TILE>(p, q_tile + warp * 16 * Head<D>::STRIDE, k_tile);
        __syncthreads();
        if (key + TILE < keys) copy_rows<D, TILE>(k_tile, k, key + TILE, s, k_stride, k_aligned);
        copy_async_commit();

        if (scores.plain(query, TILE, key, TILE)) {
#pragma unroll
            for (int n = 0; n < TILE / 8; ++n) {
#pragma unroll
                for (int e = 0; e < 4; ++e) p[n][e] *= scores.scale;
            }
        } else {
#pragma unroll
            for (int n = 0; n < TILE / 8; ++n) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    p[n][e] = scores(p[n][e], row + e / 2 * 8, key + n * 8 + c + e % 2);
                }
            }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float high = top[half];
#pragma unroll
            for (int n = 0; n < TILE / 8; ++n) high = larger(high, larger(p[n][2 * half], p[n][2 * half + 1]));
            high = quad_max(high);
            // a row that has seen no key yet
            const float shift = high == -INFINITE ? 0.0f : high;
            const float shrink = exp2f(top[half] - shift);
            top[half] = high;
            sum[half] *= shrink;
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                out[n][2 * half] *= shrink;
                out[n][2 * half + 1] *= shrink;
            }
#pragma unroll
            for (int n = 0; n < TILE / 8; ++n) {
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; ++e) {
                    p[n][e] = exp2f(p[n][e] - shift);
                    sum[half] += p[n][e];
                }
            }
        }
        unsigned kept[TILE / 16][4];
        keep<TILE>(kept, p);
        copy_async_wait<1>();
        __syncthreads();
        multiply_kept<D, TILE>(out, kept, v_tile);
        __syncthreads();
    }
    copy_async_wait<0>();
    // with no keys at all the copies of other threads may still be on their way into the tile that is reused
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        sum[half] = quad_sum(sum[half]);
        const int i = row + half * 8;
        if (lane % 4 == 0 && i < t && lse != nullptr) {
            lse[(long long)blockIdx.y * t + i] = sum[half] == 0 ? INFINITE : (top[half] + log2f(sum[half])) * LN_2;
        }
        sum[half] = sum[half] == 0 ? 0.0f : 1.0f / sum[half];
    }
    store_rows<D>(out, sum[0], sum[1], q_tile + warp * 16 * Head<D>::STRIDE, o, query + warp * 16, t, o_stride,
                  rows_aligned(o, o_stride));
}

// dk and dv of 64 keys: scores transposed, a warp owns 16 keys and walks over the queries that see them.
template <int D>
__device__ __forceinline__ void attention_backward_kv(Head<D>, const bf16* q, const bf16* k, const bf16* v,
                                                      const bf16* d_o, const float* lse, const float* delta,
                                                      const u8* key_mask, const float* bias, bf16* dk, bf16* dv,
                                                      int heads, int t, int s, long long q_stride, long long k_stride,
                                                      long long v_stride, long long do_stride, long long dk_stride,
                                                      long long dv_stride, float scale, int causal) {
    constexpr int N = Head<D>::STEP;
    DYNAMIC_SHARED(bf16, tiles);
    bf16 *k_tile = tiles, *v_tile = k_tile + TILE * Head<D>::STRIDE, *q_tile = v_tile + TILE * Head<D>::STRIDE;
    bf16* do_tile = q_tile + N * Head<D>::STRIDE;
    float *lse_tile = reinterpret_cast<float*>(do_tile + N * Head<D>::STRIDE), *delta_tile = lse_tile + N;
    const int b = blockIdx.y / heads, h = blockIdx.y % heads;
    const int key = blockIdx.x * TILE;
    const Scores scores(b, h, t, s, causal, scale, key_mask, bias);
    q += (long long)b * t * q_stride + h * D;
    k += (long long)b * s * k_stride + h * D;
    v += (long long)b * s * v_stride + h * D;
    d_o += (long long)b * t * do_stride + h * D;
    dk += (long long)b * s * dk_stride + h * D;
    dv += (long long)b * s * dv_stride + h * D;
    lse += (long long)blockIdx.y * t;
    delta += (long long)blockIdx.y * t;
    const bool q_aligned = rows_aligned(q, q_stride), do_aligned = rows_aligned(d_o, do_stride);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4 * 2;
    const int own = warp * 16 * Head<D>::STRIDE;

    copy_rows<D, TILE>(k_tile, k, key, s, k_stride, rows_aligned(k, k_stride));
    copy_rows<D, TILE>(v_tile, v, key, s, v_stride, rows_aligned(v, v_stride));
    float dk_acc[D / 8][4] = {}, dv_acc[D / 8][4] = {};
    for (int query = scores.first_query(key) / N * N; query < t; query += N) {
        copy_rows<D, N>(q_tile, q, query, t, q_stride, q_aligned);
        copy_rows<D, N>(do_tile, d_o, query, t, do_stride, do_aligned);
        copy_async_commit();
        if (threadIdx.x < N) {
            const int i = query + threadIdx.x;
            lse_tile[threadIdx.x] = i < t ? lse[i] * LOG2_E : INFINITE;
            delta_tile[threadIdx.x] = i < t ? delta[i] : 0;
        }
        copy_async_wait<0>();
        __syncthreads();
        float p[N / 8][4] = {};
        unsigned kept[N / 16][4];
        multiply_rows<D, N>(p, k_tile + own, q_tile);
        const bool plain = scores.plain(query, N, key, TILE);
#pragma unroll
        for (int n = 0; n < N / 8; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int i = n * 8 + c + e % 2, j = key + warp * 16 + g + e / 2 * 8;
                const float score = plain ? p[n][e] * scores.scale : scores(p[n][e], query + i, j);
                p[n][e] = exp2f(score - lse_tile[i]);
            }
        }
        keep<N>(kept, p);
        multiply_kept<D, N>(dv_acc, kept, do_tile);
        float ds[N / 8][4] = {};
        multiply_rows<D, N>(ds, v_tile + own, do_tile);
#pragma unroll
        for (int n = 0; n < N / 8; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) ds[n][e] = p[n][e] * (ds[n][e] - delta_tile[n * 8 + c + e % 2]);
        }
        keep<N>(kept, ds);
        multiply_kept<D, N>(dk_acc, kept, q_tile);
        __syncthreads();
    }
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    const int first = key + warp * 16;
    store_rows<D>(dk_acc, scale, scale, k_tile + own, dk, first, s, dk_stride, rows_aligned(dk, dk_stride));
    store_rows<D>(dv_acc, 1, 1, v_tile + own, dv, first, s, dv_stride, rows_aligned(dv, dv_stride));
}

// ds = p * (dp - delta) of this warp's 16 queries and N keys; the score's gradient without the scale.
template <int D, int N>
__device__ __forceinline__ void score_gradient(float (&ds)[N / 8][4], const Scores& scores, const bf16* q_rows,
                                               const bf16* do_rows, const bf16* k_tile, const bf16* v_tile, int query,
                                               int key, const float (&lse)[2], const float (&delta)[2]) {
    const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4 * 2;
    float p[N / 8][4] = {};
    multiply_rows<D, N>(p, q_rows, k_tile);
    const bool plain = scores.plain(query, 16, key, N);
#pragma unroll
    for (int n = 0; n < N / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int i = query + g + e / 2 * 8, j = key + n * 8 + c + e % 2;
            const float score = plain ? p[n][e] * scores.scale : scores(p[n][e], i, j);
            p[n][e] = exp2f(score - lse[e / 2]);
        }
    }
    multiply_rows<D, N>(ds, do_rows, v_tile);
#pragma unroll
    for (int n = 0; n < N / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) ds[n][e] = p[n][e] * (ds[n][e] - delta[e / 2]);
    }
}

// Log-sum-exp (in units of log2) and delta of the two rows of a lane.
__device__ __forceinline__ void row_statistics(float (&lse_rows)[2], float (&delta_rows)[2], const float* lse,
                                               const float* delta, int row, int t) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int i = row + half * 8;
        lse_rows[half] = i < t ? lse[i] * LOG2_E : INFINITE;
        delta_rows[half] = i < t ? delta[i] : 0;
    }
}

template <int D>
__device__ __forceinline__ void attention_backward_q(Head<D>, const bf16* q, const bf16* k, const bf16* v,
                                                     const bf16* d_o, const float* lse, const float* delta,
                                                     const u8* key_mask, const float* bias, bf16* dq, int heads, int t,
                                                     int s, long long q_stride, long long k_stride, long long v_stride,
                                                     long long do_stride, long long dq_stride, float scale,
                                                     int causal) {
    constexpr int N = Head<D>::STEP;
    DYNAMIC_SHARED(bf16, tiles);
    bf16 *q_tile = tiles, *do_tile = q_tile + TILE * Head<D>::STRIDE, *k_tile = do_tile + TILE * Head<D>::STRIDE;
    bf16* v_tile = k_tile + N * Head<D>::STRIDE;
    const int b = blockIdx.y / heads, h = blockIdx.y % heads;
    const int query = (causal ? gridDim.x - 1 - blockIdx.x : blockIdx.x) * TILE;
    const Scores scores(b, h, t, s, causal, scale, key_mask, bias);
    q += (long long)b * t * q_stride + h * D;
    k += (long long)b * s * k_stride + h * D;
    v += (long long)b * s * v_stride + h * D;
    d_o += (long long)b * t * do_stride + h * D;
    dq += (long long)b * t * dq_stride + h * D;
    const bool k_aligned = rows_aligned(k, k_stride), v_aligned = rows_aligned(v, v_stride);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first = query + warp * 16, own = warp * 16 * Head<D>::STRIDE;
    float lse_rows[2], delta_rows[2];
    row_statistics(lse_rows, delta_rows, lse + (long long)blockIdx.y * t, delta + (long long)blockIdx.y * t,
                   first + lane / 4, t);

    copy_rows<D, TILE>(q_tile, q, query, t, q_stride, rows_aligned(q, q_stride));
    copy_rows<D, TILE>(do_tile, d_o, query, t, do_stride, rows_aligned(d_o, do_stride));
    const int keys = scores.keys_until(smaller(query + TILE, t) - 1);
    float acc[D / 8][4] = {};
    for (int key = 0; key < keys; key += N) {
        copy_rows<D, N>(k_tile, k, key, s, k_stride, k_aligned);
        copy_rows<D, N>(v_tile, v, key, s, v_stride, v_aligned);
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
        float ds[N / 8][4] = {};
        score_gradient<D, N>(ds, scores, q_tile + own, do_tile + own, k_tile, v_tile, first, key, lse_rows, delta_rows);
        unsigned kept[N / 16][4];
        keep<N>(kept, ds);
        multiply_kept<D, N>(acc, kept, k_tile);
        __syncthreads();
    }
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    store_rows<D>(acc, scale, scale, q_tile + own, dq, first, t, dq_stride, rows_aligned(dq, dq_stride));
}

// The bias's gradient for 64 queries and N keys of a head: the batch entries are added in order.
template <int D>
__device__ __forceinline__ void attention_backward_bias(Head<D>, const bf16* q, const bf16* k, const bf16* v,
                                                        const bf16* d_o, const float* lse, const float* delta,
                                                        const u8* key_mask, const float* bias, float* dbias, int batch,
                                                        int heads, int t, int s, long long q_stride, long long k_stride,
                                                        long long v_stride, long long do_stride, float scale,
                                                        int causal, int accumulate) {
    constexpr int N = Head<D>::STEP;
    DYNAMIC_SHARED(bf16, tiles);
    bf16 *q_tile = tiles, *do_tile = q_tile + TILE * Head<D>::STRIDE, *k_tile = do_tile + TILE * Head<D>::STRIDE;
    bf16* v_tile = k_tile + N * Head<D>::STRIDE;
    const int h = blockIdx.z, query = blockIdx.y * TILE, key = blockIdx.x * N;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4 * 2;
    const int first = query + warp * 16, own = warp * 16 * Head<D>::STRIDE;
    float total[N / 8][4] = {};
    for (int b = 0; b < batch; ++b) {
        const Scores scores(b, h, t, s, causal, scale, key_mask, bias);
        const bf16 *q_head = q + (long long)b * t * q_stride + h * D, *k_head = k + (long long)b * s * k_stride + h * D;
        const bf16* v_head = v + (long long)b * s * v_stride + h * D;
        const bf16* do_head = d_o + (long long)b * t * do_stride + h * D;
        const long long statistics = (long long)(b * heads + h) * t;
        __syncthreads();
        copy_rows<D, TILE>(q_tile, q_head, query, t, q_stride, rows_aligned(q_head, q_stride));
        copy_rows<D, TILE>(do_tile, do_head, query, t, do_stride, rows_aligned(do_head, do_stride));
        copy_rows<D, N>(k_tile, k_head, key, s, k_stride, rows_aligned(k_head, k_stride));
        copy_rows<D, N>(v_tile, v_head, key, s, v_stride, rows_aligned(v_head, v_stride));
        copy_async_commit();
        float lse_rows[2], delta_rows[2];
        row_statistics(lse_rows, delta_rows, lse + statistics, delta + statistics, first + g, t);
        copy_async_wait<0>();
        __syncthreads();
        float ds[N / 8][4] = {};
        score_gradient<D, N>(ds, scores, q_tile + own, do_tile + own, k_tile, v_tile, first, key, lse_rows, delta_rows);
#pragma unroll
        for (int n = 0; n < N / 8; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) total[n][e] += ds[n][e];
        }
    }
#pragma unroll
    for (int n = 0; n < N / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int i = first + g + e / 2 * 8, j = key + n * 8 + c + e % 2;
            if (i >= t || j >= s) continue;
            float* to = dbias + ((long long)h * t + i) * s + j;
            *to = accumulate ? *to + total[n][e] : total[n][e];
        }
    }
}

// ---- float: a block of 16 x 16 threads; thread (y, x) owns rows y, y + 16, .. and columns x, x + 16, .. of a product

// Rows of a tile have an odd number of words, so that a column lies on different banks.
__device__ __forceinline__ int row_words(int head_dim) { return head_dim | 1; }

template <int M>
__device__ __forceinline__ void read_rows(float* tile, const float* head, int first, int rows, long long stride,
                                          int head_dim) {
    for (int i = threadIdx.x; i < M * head_dim; i += 256) {
        const int r = i / head_dim, c = i % head_dim;
        tile[r * row_words(head_dim) + c] = first + r < rows ? head[(first + r) * stride + c] : 0;
    }
}

// acc += a b^T for rows of two tiles.
template <int R>
__device__ __forceinline__ void multiply_rows(float (&acc)[R][R], const float* a, const float* b, int head_dim) {
    const int y = threadIdx.x / 16, x = threadIdx.x % 16, words = row_words(head_dim);
#pragma unroll 4
    for (int d = 0; d < head_dim; ++d) {
        float u[R], v[R];
#pragma unroll
        for (int i = 0; i < R; ++i) u[i] = a[(y + 16 * i) * words + d], v[i] = b[(x + 16 * i) * words + d];
#pragma unroll
        for (int i = 0; i < R; ++i) {
#pragma unroll
            for (int j = 0; j < R; ++j) acc[i][j] += u[i] * v[j];
        }
    }
}

// acc[row, d] += sum over k of p[row, k] b[k, d]; of p[k, row] if TRANSPOSED.
template <int R, int J, bool TRANSPOSED>
__device__ __forceinline__ void multiply_kept(float (&acc)[R][J], const float* p, const float* b, int head_dim) {
    constexpr int M = 16 * R, WORDS = M + 1;
    const int y = threadIdx.x / 16, x = threadIdx.x % 16, words = row_words(head_dim);
#pragma unroll 4
    for (int k = 0; k < M; ++k) {
        float u[R];
#pragma unroll
        for (int i = 0; i < R; ++i) u[i] = TRANSPOSED ? p[k * WORDS + y + 16 * i] : p[(y + 16 * i) * WORDS + k];
#pragma unroll
        for (int j = 0; j < J; ++j) {
            const float v = x + 16 * j < head_dim ? b[k * words + x + 16 * j] : 0;
#pragma unroll
            for (int i = 0; i < R; ++i) acc[i][j] += u[i] * v;
        }
    }
}

template <int R, int J>
__device__ __forceinline__ void write_rows(const float (&acc)[R][J], const float (&factor)[R], float* head, int first,
                                           int rows, long long stride, int head_dim) {
    const int y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < R; ++i) {
#pragma unroll
        for (int j = 0; j < J; ++j) {
            const int row = first + y + 16 * i, d = x + 16 * j;
            if (row < rows && d < head_dim) head[row * stride + d] = acc[i][j] * factor[i];
        }
    }
}

// Sums and maxima over the 16 threads that share a row.
__device__ __forceinline__ float row_max(float v) {
#pragma unroll
    for (int mask = 8; mask > 0; mask /= 2) v = larger(v, __shfl_xor_sync(ALL_LANES, v, mask));
    return v;
}
__device__ __forceinline__ float row_sum(float v) {
#pragma unroll
    for (int mask = 8; mask > 0; mask /= 2) v += __shfl_xor_sync(ALL_LANES, v, mask);
    return v;
}

// Columns of values. Block z of forward has slice z; the tiles of values and of the result's gradient hold a slice.
struct Slice {
    int first, columns;

    __device__ __forceinline__ Slice(int index, int width, int value_dim)
        : first(index * width), columns(smaller(width, value_dim - index * width)) {}
};

template <int R, int J>
__device__ __forceinline__ void float_forward(int head_dim, int value_dim, const float* q, const float* k,
                                              const float* v, float* o, float* lse, const u8* key_mask,
                                              const float* bias, int heads, int t, int s, long long q_stride,
                                              long long k_stride, long long v_stride, long long o_stride, float scale,
                                              int causal) {
    constexpr int M = 16 * R;
    const Slice slice(blockIdx.z, 16 * J, value_dim);
    DYNAMIC_SHARED(float, tiles);
    float *q_tile = tiles, *kv_tile = q_tile + M * row_words(head_dim);
    float* p_tile = kv_tile + M * row_words(larger(head_dim, slice.columns));
    const int b = blockIdx.y / heads, h = blockIdx.y % heads;
    const int query = (causal ? gridDim.x - 1 - blockIdx.x : blockIdx.x) * M;
    const Scores scores(b, h, t, s, causal, scale, key_mask, bias);
    q += (long long)b * t * q_stride + h * head_dim;
    k += (long long)b * s * k_stride + h * head_dim;
    v += (long long)b * s * v_stride + h * value_dim + slice.first;
    o += (long long)b * t * o_stride + h * value_dim + slice.first;
    const int y = threadIdx.x / 16, x = threadIdx.x % 16;
    read_rows<M>(q_tile, q, query, t, q_stride, head_dim);
    float out[R][J] = {}, top[R], sum[R];
#pragma unroll
    for (int i = 0; i < R; ++i) top[i] = -INFINITE, sum[i] = 0;
    const int keys = scores.keys_until(smaller(query + M, t) - 1);
    for (int key = 0; key < keys; key += M) {
        read_rows<M>(kv_tile, k, key, s, k_stride, head_dim);
        __syncthreads();
        float p[R][R] = {};
        multiply_rows<R>(p, q_tile, kv_tile, head_dim);
        __syncthreads();
        read_rows<M>(kv_tile, v, key, s, v_stride, slice.columns);
#pragma unroll
        for (int i = 0; i < R; ++i) {
            float high = top[i];
#pragma unroll
            for (int j = 0; j < R; ++j) {
                p[i][j] = scores(p[i][j], query + y + 16 * i, key + x + 16 * j);
                high = larger(high, p[i][j]);
            }
            high = row_max(high);
            const float shift = high == -INFINITE ? 0.0f : high;
            const float shrink = exp2f(top[i] - shift);
            top[i] = high;
            sum[i] *= shrink;
#pragma unroll
            for (int j = 0; j < J; ++j) out[i][j] *= shrink;
#pragma unroll
            for (int j = 0; j < R; ++j) {
                const float e = exp2f(p[i][j] - shift);
                sum[i] += e;
                p_tile[(y + 16 * i) * (M + 1) + x + 16 * j] = e;
            }
        }
        __syncthreads();
        multiply_kept<R, J, false>(out, p_tile, kv_tile, slice.columns);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < R; ++i) {
        sum[i] = row_sum(sum[i]);
        const int row = query + y + 16 * i;
        if (blockIdx.z == 0 && x == 0 && row < t && lse != nullptr) {
            lse[(long long)blockIdx.y * t + row] = sum[i] == 0 ? INFINITE : (top[i] + log2f(sum[i])) * LN_2;
        }
        sum[i] = sum[i] == 0 ? 0.0f : 1.0f / sum[i];
    }
    write_rows(out, sum, o, query, t, o_stride, slice.columns);
}

// A head's values and its result's gradient.
struct Outer {
    const float *d_o, *v;
    long long do_stride, v_stride;
    int t, s, value_dim;

    __device__ __forceinline__ Outer(int b, int h, const float* d_o, const float* v, long long do_stride,
                                     long long v_stride, int t, int s, int value_dim)
        : d_o(d_o + (long long)b * t * do_stride + h * value_dim),
          v(v + (long long)b * s * v_stride + h * value_dim),
          do_stride(do_stride),
          v_stride(v_stride),
          t(t),
          s(s),
          value_dim(value_dim) {}

    template <int M>
    __device__ __forceinline__ void read_gradient(float* do_tile, Slice slice, int query) const {
        read_rows<M>(do_tile, d_o + slice.first, query, t, do_stride, slice.columns);
    }
    template <int M>
    __device__ __forceinline__ void read_values(float* v_tile, Slice slice, int key) const {
        read_rows<M>(v_tile, v + slice.first, key, s, v_stride, slice.columns);
    }
    // dp += do v^T over all slices but the first, which comes into the tiles afterwards.
    template <int R, int J>
    __device__ __forceinline__ void multiply_later(float (&dp)[R][R], float* do_tile, float* v_tile, int query,
                                                   int key) const {
        constexpr int M = 16 * R, COLUMNS = 16 * J;
        for (int i = 1; i < ceil_div(value_dim, COLUMNS); ++i) {
            const Slice slice(i, COLUMNS, value_dim);
            read_gradient<M>(do_tile, slice, query);
            read_values<M>(v_tile, slice, key);
            __syncthreads();
            multiply_rows<R>(dp, do_tile, v_tile, slice.columns);
            __syncthreads();
        }
    }
};

// Products of queries (rows) and keys (columns) to probabilities.
template <int R>
__device__ __forceinline__ void probabilities(float (&p)[R][R], const Scores& scores, int query, int key,
                                              const float* lse) {
    const int y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < R; ++i) {
        const int row = query + y + 16 * i;
        const float z = row < scores.t ? lse[row] * LOG2_E : INFINITE;
#pragma unroll
        for (int j = 0; j < R; ++j) p[i][j] = exp2f(scores(p[i][j], row, key + x + 16 * j) - z);
    }
}

// Gradients of probabilities to those of scores without the scale, ds = p (dp - delta).
template <int R>
__device__ __forceinline__ void score_gradient(float (&ds)[R][R], const float (&p)[R][R], const Scores& scores,
                                               int query, const float* delta) {
    const int y = threadIdx.x / 16;
#pragma unroll
    for (int i = 0; i < R; ++i) {
        const int row = query + y + 16 * i;
        const float d = row < scores.t ? delta[row] : 0;
#pragma unroll
        for (int j = 0; j < R; ++j) ds[i][j] = p[i][j] * (ds[i][j] - d);
    }
}

// Writes a square of numbers to the tile that multiply_kept reads.
template <int R>
__device__ __forceinline__ void keep_square(float* tile, const float (&square)[R][R]) {
    constexpr int WORDS = 16 * R + 1;
    const int y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < R; ++i) {
#pragma unroll
        for (int j = 0; j < R; ++j) tile[(y + 16 * i) * WORDS + x + 16 * j] = square[i][j];
    }
}

// dk, and a slice of dv, or one of the two.
template <int R, int J, bool KEYS, bool VALUES>
__device__ __forceinline__ void float_backward_part(int head_dim, int value_dim, Slice slice, const float* q,
                                                    const float* k, const float* v, const float* d_o,
                                                    const float* lse, const float* delta, const u8* key_mask,
                                                    const float* bias, float* dk, float* dv, int heads, int t, int s,
                                                    long long q_stride, long long k_stride, long long v_stride,
                                                    long long do_stride, long long dk_stride, long long dv_stride,
                                                    float scale, int causal) {
    constexpr int M = 16 * R, COLUMNS = 16 * J;
    const int tile = M * row_words(head_dim), value_tile = M * row_words(smaller(COLUMNS, value_dim));
    DYNAMIC_SHARED(float, tiles);
    float *k_tile = tiles, *q_tile = k_tile + tile, *v_tile = q_tile + tile, *do_tile = v_tile + value_tile;
    float *p_tile = do_tile + value_tile, *ds_tile = p_tile + M * (M + 1);
    const int b = blockIdx.y / heads, h = blockIdx.y % heads, key = blockIdx.x * M;
    const Scores scores(b, h, t, s, causal, scale, key_mask, bias);
    const Outer outer(b, h, d_o, v, do_stride, v_stride, t, s, value_dim);
    q += (long long)b * t * q_stride + h * head_dim;
    lse += (long long)blockIdx.y * t;
    delta += (long long)blockIdx.y * t;
    read_rows<M>(k_tile, k + (long long)b * s * k_stride + h * head_dim, key, s, k_stride, head_dim);
    if (KEYS && VALUES) outer.read_values<M>(v_tile, slice, key);
    float dk_acc[R][J] = {}, dv_acc[R][J] = {};
    for (int query = scores.first_query(key) / M * M; query < t; query += M) {
        float p[R][R] = {}, ds[R][R] = {};
        if (KEYS && !VALUES) {
            outer.multiply_later<R, J>(ds, do_tile, v_tile, query, key);
            outer.read_values<M>(v_tile, slice, key);
        }
        read_rows<M>(q_tile, q, query, t, q_stride, head_dim);
        outer.read_gradient<M>(do_tile, slice, query);
        __syncthreads();
        multiply_rows<R>(p, q_tile, k_tile, head_dim);
        probabilities<R>(p, scores, query, key, lse);
        if (VALUES) keep_square<R>(p_tile, p);
        if (KEYS) {
            multiply_rows<R>(ds, do_tile, v_tile, slice.columns);
            score_gradient<R>(ds, p, scores, query, delta);
            keep_square<R>(ds_tile, ds);
        }
        __syncthreads();
        if (VALUES) multiply_kept<R, J, true>(dv_acc, p_tile, do_tile, slice.columns);
        if (KEYS) multiply_kept<R, J, true>(dk_acc, ds_tile, q_tile, head_dim);
        __syncthreads();
    }
    float unit[R], scales[R];
#pragma unroll
    for (int i = 0; i < R; ++i) unit[i] = 1, scales[i] = scale;
    dk += (long long)b * s * dk_stride + h * head_dim;
    dv += (long long)b * s * dv_stride + h * value_dim + slice.first;
    if (KEYS) write_rows(dk_acc, scales, dk, key, s, dk_stride, head_dim);
    if (VALUES) write_rows(dv_acc, unit, dv, key, s, dv_stride, slice.columns);
}

// A block has both if there is one slice; of several slices block z + 1 has one, and block 0 has dk.
template <int R, int J, typename... A>
__device__ __forceinline__ void float_backward_kv(int head_dim, int value_dim, A... arguments) {
    constexpr int COLUMNS = 16 * J;
    if (value_dim <= COLUMNS) {
        float_backward_part<R, J, true, true>(head_dim, value_dim, Slice(0, COLUMNS, value_dim), arguments...);
    } else if (blockIdx.z == 0) {
        float_backward_part<R, J, true, false>(head_dim, value_dim, Slice(0, COLUMNS, value_dim), arguments...);
    } else {
        const Slice slice(blockIdx.z - 1, COLUMNS, value_dim);
        float_backward_part<R, J, false, true>(head_dim, value_dim, slice, arguments...);
    }
}

template <int R, int J>
__device__ __forceinline__ void float_backward_q(int head_dim, int value_dim, const float* q, const float* k,
                                                 const float* v, const float* d_o, const float* lse,
                                                 const float* delta, const u8* key_mask, const float* bias, float* dq,
                                                 int heads, int t, int s, long long q_stride, long long k_stride,
                                                 long long v_stride, long long do_stride, long long dq_stride,
                                                 float scale, int causal) {
    constexpr int M = 16 * R, COLUMNS = 16 * J;
    const Slice slice(0, COLUMNS, value_dim);
    const bool one = value_dim <= COLUMNS;
    const int tile = M * row_words(head_dim), value_tile = M * row_words(slice.columns);
    DYNAMIC_SHARED(float, tiles);
    float *q_tile = tiles, *k_tile = q_tile + tile, *v_tile = k_tile + tile, *do_tile = v_tile + value_tile;
    float* ds_tile = do_tile + value_tile;
    const int b = blockIdx.y / heads, h = blockIdx.y % heads;
    const int query = (causal ? gridDim.x - 1 - blockIdx.x : blockIdx.x) * M;
    const Scores scores(b, h, t, s, causal, scale, key_mask, bias);
    const Outer outer(b, h, d_o, v, do_stride, v_stride, t, s, value_dim);
    k += (long long)b * s * k_stride + h * head_dim;
    lse += (long long)blockIdx.y * t;
    delta += (long long)blockIdx.y * t;
    read_rows<M>(q_tile, q + (long long)b * t * q_stride + h * head_dim, query, t, q_stride, head_dim);
    if (one) outer.read_gradient<M>(do_tile, slice, query);
    float acc[R][J] = {};
    const int keys = scores.keys_until(smaller(query + M, t) - 1);
    for (int key = 0; key < keys; key += M) {
        float p[R][R] = {}, ds[R][R] = {};
        outer.multiply_later<R, J>(ds, do_tile, v_tile, query, key);
        read_rows<M>(k_tile, k, key, s, k_stride, head_dim);
        outer.read_values<M>(v_tile, slice, key);
        if (!one) outer.read_gradient<M>(do_tile, slice, query);
        __syncthreads();
        multiply_rows<R>(p, q_tile, k_tile, head_dim);
        multiply_rows<R>(ds, do_tile, v_tile, slice.columns);
        probabilities<R>(p, scores, query, key, lse);
        score_gradient<R>(ds, p, scores, query, delta);
        keep_square<R>(ds_tile, ds);
        __syncthreads();
        multiply_kept<R, J, false>(acc, ds_tile, k_tile, head_dim);
        __syncthreads();
    }
    float scales[R];
#pragma unroll
    for (int i = 0; i < R; ++i) scales[i] = scale;
    write_rows(acc, scales, dq + (long long)b * t * dq_stride + h * head_dim, query, t, dq_stride, head_dim);
}

template <int R, int J>
__device__ __forceinline__ void float_backward_bias(int head_dim, int value_dim, const float* q, const float* k,
                                                    const float* v, const float* d_o, const float* lse,
                                                    const float* delta, const u8* key_mask, const float* bias,
                                                    float* dbias, int batch, int heads, int t, int s,
                                                    long long q_stride, long long k_stride, long long v_stride,
                                                    long long do_stride, float scale, int causal, int accumulate) {
    constexpr int M = 16 * R;
    const Slice slice(0, 16 * J, value_dim);
    const int tile = M * row_words(head_dim), value_tile = M * row_words(slice.columns);
    DYNAMIC_SHARED(float, tiles);
    float *q_tile = tiles, *k_tile = q_tile + tile, *v_tile = k_tile + tile, *do_tile = v_tile + value_tile;
    const int h = blockIdx.z, query = blockIdx.y * M, key = blockIdx.x * M;
    const int y = threadIdx.x / 16, x = threadIdx.x % 16;
    float total[R][R] = {};
    for (int b = 0; b < batch; ++b) {
        const Scores scores(b, h, t, s, causal, scale, key_mask, bias);
        const Outer outer(b, h, d_o, v, do_stride, v_stride, t, s, value_dim);
        float p[R][R] = {}, ds[R][R] = {};
        __syncthreads();
        outer.multiply_later<R, J>(ds, do_tile, v_tile, query, key);
        read_rows<M>(q_tile, q + (long long)b * t * q_stride + h * head_dim, query, t, q_stride, head_dim);
        read_rows<M>(k_tile, k + (long long)b * s * k_stride + h * head_dim, key, s, k_stride, head_dim);
        outer.read_gradient<M>(do_tile, slice, query);
        outer.read_values<M>(v_tile, slice, key);
        __syncthreads();
        const long long statistics = (long long)(b * heads + h) * t;
        multiply_rows<R>(p, q_tile, k_tile, head_dim);
        multiply_rows<R>(ds, do_tile, v_tile, slice.columns);
        probabilities<R>(p, scores, query, key, lse + statistics);
        score_gradient<R>(ds, p, scores, query, delta + statistics);
#pragma unroll
        for (int i = 0; i < R; ++i) {
#pragma unroll
            for (int j = 0; j < R; ++j) total[i][j] += ds[i][j];
        }
    }
#pragma unroll
    for (int i = 0; i < R; ++i) {
#pragma unroll
        for (int j = 0; j < R; ++j) {
            const int row = query + y + 16 * i, column = key + x + 16 * j;
            if (row >= t || column >= s) continue;
            float* to = dbias + ((long long)h * t + row) * s + column;
            *to = accumulate ? *to + total[i][j] : total[i][j];
        }
    }
}

// Keys of any size up to 128 a head, and values of any size, in float; the size of tiles is a question of registers and
// shared memory.
struct AnyHead {
    int size, values;
};
template <typename... A>
__device__ __forceinline__ void attention_forward(AnyHead head, A... arguments) {
    if (head.size <= 64) {
        float_forward<4, 4>(head.size, head.values, arguments...);
    } else {
        float_forward<2, 8>(head.size, head.values, arguments...);
    }
}
template <typename... A>
__device__ __forceinline__ void attention_backward_kv(AnyHead head, A... arguments) {
    if (head.size <= 64) {
        float_backward_kv<4, 4>(head.size, head.values, arguments...);
    } else {
        float_backward_kv<2, 8>(head.size, head.values, arguments...);
    }
}
template <typename... A>
__device__ __forceinline__ void attention_backward_q(AnyHead head, A... arguments) {
    if (head.size <= 64) {
        float_backward_q<4, 4>(head.size, head.values, arguments...);
    } else {
        float_backward_q<2, 8>(head.size, head.values, arguments...);
    }
}
template <typename... A>
__device__ __forceinline__ void attention_backward_bias(AnyHead head, A... arguments) {
    if (head.size <= 64) {
        float_backward_bias<4, 4>(head.size, head.values, arguments...);
    } else {
        float_backward_bias<2, 8>(head.size, head.values, arguments...);
    }
}

// delta = sum over d of o * do: a warp a row of a head.
template <typename T>
__device__ __forceinline__ void attention_delta(const T* o, const T* d_o, float* delta, int batch, int heads, int t,
                                                int value_dim, long long o_stride, long long do_stride) {
    const long long index = (long long)blockIdx.x * 8 + threadIdx.x / 32;
    const long long row = index / heads;
    const int h = index % heads;
    if (row >= (long long)batch * t) return;
    const T *a = o + row * o_stride + h * value_dim, *b = d_o + row * do_stride + h * value_dim;
    float sum = 0;
    over_range(int(threadIdx.x % 32), 32, value_dim, is_aligned(a) && is_aligned(b),
               [&](int, float u, float v) { sum += u * v; }, a, b);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[(row / t * heads + h) * t + row % t] = sum;
}

#define EXPORT_DELTA(T, type)                                                                                \
    KERNEL(256, attention_delta_##type, const T* o, const T* d_o, float* delta, int batch, int heads, int t, \
           int value_dim, long long o_stride, long long do_stride) {                                         \
        attention_delta(o, d_o, delta, batch, heads, t, value_dim, o_stride, do_stride);                     \
    }
FOR_TYPES(EXPORT_DELTA)

// The kernels of a number type and, for bf16, a head size.
#define EXPORT(threads, T, suffix, HEAD)                                                                              \
    KERNEL(threads, attention_forward_##suffix, const T* q, const T* k, const T* v, T* o, float* lse,                 \
           const u8* key_mask, const float* bias, int batch, int heads, int t, int s, int head_dim, int value_dim,    \
           long long q_stride, long long k_stride, long long v_stride, long long o_stride, float scale, int causal) { \
        attention_forward(HEAD, q, k, v, o, lse, key_mask, bias, heads, t, s, q_stride, k_stride, v_stride, o_stride, \
                          scale, causal);                                                                             \
    }                                                                                                                 \
    KERNEL(threads, attention_backward_kv_##suffix, const T* q, const T* k, const T* v, const T* d_o,                 \
           const float* lse, const float* delta, const u8* key_mask, const float* bias, T* dk, T* dv, int batch,      \
           int heads, int t, int s, int head_dim, int value_dim, long long q_stride, long long k_stride,              \
           long long v_stride, long long do_stride, long long dk_stride, long long dv_stride, float scale,            \
           int causal) {                                                                                              \
        attention_backward_kv(HEAD, q, k, v, d_o, lse, delta, key_mask, bias, dk, dv, heads, t, s, q_stride,          \
                              k_stride, v_stride, do_stride, dk_stride, dv_stride, scale, causal);                    \
    }                                                                                                                 \
    KERNEL(threads, attention_backward_q_##suffix, const T* q, const T* k, const T* v, const T* d_o,                  \
           const float* lse, const float* delta, const u8* key_mask, const float* bias, T* dq, int batch, int heads,  \
           int t, int s, int head_dim, int value_dim, long long q_stride, long long k_stride, long long v_stride,     \
           long long do_stride, long long dq_stride, float scale, int causal) {                                       \
        attention_backward_q(HEAD, q, k, v, d_o, lse, delta, key_mask, bias, dq, heads, t, s, q_stride, k_stride,     \
                             v_stride, do_stride, dq_stride, scale, causal);                                          \
    }                                                                                                                 \
    KERNEL(threads, attention_backward_bias_##suffix, const T* q, const T* k, const T* v, const T* d_o,               \
           const float* lse, const float* delta, const u8* key_mask, const float* bias, float* dbias, int batch,      \
           int heads, int t, int s, int head_dim, int value_dim, long long q_stride, long long k_stride,              \
           long long v_stride, long long do_stride, float scale, int causal, int accumulate) {                        \
        attention_backward_bias(HEAD, q, k, v, d_o, lse, delta, key_mask, bias, dbias, batch, heads, t, s, q_stride,  \
                                k_stride, v_stride, do_stride, scale, causal, accumulate);                            \
    }
EXPORT(256, float, f32, (AnyHead{head_dim, value_dim}))
EXPORT(128, bf16, bf16_d32, Head<32>{})
EXPORT(128, bf16, bf16_d64, Head<64>{})
EXPORT(128, bf16, bf16_d128, Head<128>{})
