// Ids that an embedding's backward pass may write to (ops/embedding.rs). An id beyond the table has made the loss NaN, so
// that it does not matter which row takes its gradient, as long as there is one.
#include "replica.cuh"

KERNEL(256, ids_within, const u32* ids, u32* within, long long n, int vocab) {
    const long long step = (long long)gridDim.x * 256;
    for (long long i = (long long)blockIdx.x * 256 + threadIdx.x; i < n; i += step) {
        within[i] = ids[i] < u32(vocab) ? ids[i] : u32(vocab) - 1;
    }
}
