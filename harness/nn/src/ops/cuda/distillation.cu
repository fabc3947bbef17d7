// Divergence of a student's distribution from a teacher's, sum of p_t (ln p_t - ln p_s), of all tokens or of the
// teacher's nucleus (ops/distillation.rs).
// Kept for backward: the gradient itself.
//
// A block a row. Bound by memory without a nucleus; with one, by at most 48 more passes over the teacher's row, which
// the cache holds: the nucleus is found by halving the range of numbers, not by sorting.
#include "replica.cuh"

// Numbers in their order, as unsigned integers; -0 is 0.
__device__ __forceinline__ u32 rank_of(float v) {
    const u32 bits = __float_as_uint(v + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// The smallest number in [low, high] for which `holds`; it holds for `high` and all between. All threads ask the same.
template <typename F>
__device__ __forceinline__ u32 first_that(u32 low, u32 high, F holds) {
    while (low < high) {
        const u32 middle = low + (high - low) / 2;
        if (holds(middle)) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

// Of a row's softmax: its largest logit, and the sum of exponentials relative to that.
struct Scale {
    float top, sum;
};

template <typename T>
__device__ __forceinline__ Scale scale_of(const T* row, int vocab, float* scratch) {
    float top = -INFINITE, sum = 0;
    for (int i = threadIdx.x; i < vocab; i += 256) top = larger(top, to_float(row[i]));
    top = block_max<256>(top, scratch);
    for (int i = threadIdx.x; i < vocab; i += 256) sum += expf(to_float(row[i]) - top);
    return {top, block_sum<256>(sum, scratch)};
}

// What is in the nucleus: tokens of a higher rank than `rank`, and those of this rank below `end`.
struct Nucleus {
    u32 rank, end;
    __device__ __forceinline__ bool holds(u32 of, int token) const {
        return of > rank || (of == rank && u32(token) < end);
    }
};

// The most likely tokens, the first of equals first, whose probabilities before them sum to at most top_p.
template <typename T>
__device__ __forceinline__ Nucleus nucleus_of(const T* teacher, int vocab, Scale scale, float top_p, float* sums,
                                              int* counts) {
    if (top_p >= 1) return {0, u32(vocab)};
    const float limit = top_p * scale.sum;
    const auto mass_above = [&](u32 rank) {
        float sum = 0;
        for (int i = threadIdx.x; i < vocab; i += 256) {
            const float v = to_float(teacher[i]);
            if (rank_of(v) > rank) sum += expf(v - scale.top);
        }
        return block_sum<256>(sum, sums);
    };
    const auto equals_below = [&](u32 rank, u32 end) {
        int count = 0;
        for (int i = threadIdx.x; i < vocab; i += 256) count += u32(i) < end && rank_of(to_float(teacher[i])) == rank;
        return block_sum<256>(count, counts);
    };
    const u32 rank = first_that(0, rank_of(scale.top), [&](u32 rank) { return mass_above(rank) <= limit; });
    // how many tokens of this rank have at most top_p before them
    const int equals = equals_below(rank, u32(vocab));
    const float bits = __uint_as_float(rank >> 31 ? rank & 0x7fffffffu : ~rank), each = expf(bits - scale.top);
    const float room = limit - mass_above(rank);
    if (equals <= 1 || room >= each * float(equals - 1)) return {rank, u32(vocab)};
    const int kept = 1 + int(room / each);
    return {rank, first_that(0, u32(vocab), [&](u32 end) { return equals_below(rank, end) >= kept; })};
}

// losses[row]: the row's divergence over the tokens kept, divided by their number. gradient (nullable): that times
// 1 / rows, by the student's logits.
template <typename T>
__device__ __forceinline__ void distillation(const T* student, const T* teacher, T* gradient, float* losses, int vocab,
                                             float top_p, float share) {
    __shared__ float scratch[8];
    __shared__ int counts[8];
    const long long start = (long long)blockIdx.x * vocab;
    student += start;
    teacher += start;
    const Scale s = scale_of(student, vocab, scratch), t = scale_of(teacher, vocab, scratch);
    const Nucleus nucleus = nucleus_of(teacher, vocab, t, top_p, scratch, counts);
    // ln p_t - ln p_s without large numbers between
    const float shift = float(double(s.top) - double(t.top) + log(double(s.sum)) - log(double(t.sum)));
    float mass = 0, loss = 0;
    int count = 0;
    for (int i = threadIdx.x; i < vocab; i += 256) {
        const float v = to_float(teacher[i]);
        if (!nucleus.holds(rank_of(v), i)) continue;
        const float p = expf(v - t.top) / t.sum;
        count += 1;
        mass += p;
        // 0 ln 0 is 0; a NaN stays
        if (!(p <= 0)) loss += p * ((v - to_float(student[i])) + shift);
    }
    mass = block_sum<256>(mass, scratch);
    loss = block_sum<256>(loss, scratch);
    const float weight = 1.0f / float(block_sum<256>(count, counts));
    if (threadIdx.x == 0) losses[blockIdx.x] = weight * loss;
    if (gradient == nullptr) return;
    const bool packed = is_aligned(student) && is_aligned(teacher) && is_aligned(gradient + start);
    map_range(int(threadIdx.x), 256, vocab, packed, gradient + start,
              [&](int i, float of_student, float of_teacher) {
                  const float p = nucleus.holds(rank_of(of_teacher), i) ? expf(of_teacher - t.top) / t.sum : 0.0f;
                  return share * weight * (mass * (expf(of_student - s.top) / s.sum) - p);
              },
              student, teacher);
}

#define EXPORT(T, t)                                                                                              \
    KERNEL(256, distillation_##t, const T* student, const T* teacher, T* gradient, float* losses, int vocab,      \
           float top_p, float share) {                                                                            \
        distillation(student, teacher, gradient, losses, vocab, top_p, share);                                    \
    }
FOR_TYPES(EXPORT)
