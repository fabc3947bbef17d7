// CUDA on a CPU: the kernels of src/ops/cuda compile against this header as plain C++ (`c++ -include emulator.h`)
// and run block after block, every thread of a block as a fiber that gives way at barriers and warp operations.
//
// It is stricter than a GPU: shared memory starts as NaN, an asynchronous copy arrives only when it is waited
// for, lanes are not in step between warp operations, a warp runs ahead of the others until a barrier stops it, and
// a thread that leaves before a barrier is an error. With a second launch in reverse order of threads, most missing
// barriers show up as wrong results.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define REPLICA_EMULATOR
#define __device__
#define __host__
#define __forceinline__ inline
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#if defined(__SANITIZE_ADDRESS__)
// red zones surround only what is not thread-local: run such a test with one thread
#define __shared__ static
#else
#define __shared__ static thread_local
#endif

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// bfloat16: the upper half of a float, rounded to nearest even.
struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 v) {
    const uint32_t wide = uint32_t(v.bits) << 16;
    float f;
    std::memcpy(&f, &wide, 4);
    return f;
}
inline __nv_bfloat16 __float2bfloat16(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return {0x7fff};
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline unsigned __float_as_uint(float f) {
    unsigned bits;
    std::memcpy(&bits, &f, 4);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(unsigned(v)); }
inline void sincospi(double x, double* s, double* c) {
    // less whole turns, as rounding of x pi would be an error of many turns' size
    const double angle = (x - 2 * std::rint(x / 2)) * 3.14159265358979323846;
    *s = std::sin(angle);
    *c = std::cos(angle);
}
inline void sincospif(float x, float* s, float* c) {
    double sine, cosine;
    sincospi(x, &sine, &cosine);
    *s = float(sine);
    *c = float(cosine);
}

namespace emulator {

constexpr int WARP = 32;
constexpr size_t STACK = 256 * 1024;

struct Copy {
    void* to;
    const void* from;
    bool valid;
};

enum class State { Ready, AtBarrier, InWarp, Done };

struct Fiber {
    ucontext_t context{};
    std::unique_ptr<char[]> stack{new char[STACK]};
    State state = State::Done;
    // asynchronous copies: groups that have been committed, and the open one
    std::vector<std::vector<Copy>> groups;
    std::vector<Copy> open;
};

struct Warp {
    void* arguments[WARP] = {};
    int arrived = 0;
    const void* operation = nullptr;
};

// One block at a time on the calling thread.
struct Machine {
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Warp> warps;
    ucontext_t scheduler{};
    const std::function<void()>* body = nullptr;
    unsigned threads = 0, current = 0, at_barrier = 0;
    std::unique_ptr<char[]> shared;
    std::string error;
    const void* scheduler_stack = nullptr;
    size_t scheduler_size = 0;
};
inline thread_local Machine machine;
inline thread_local bool reversed = false;

inline void switch_to_scheduler(bool last) {
    Machine& m = machine;
    Fiber& f = *m.fibers[m.current];
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(last ? nullptr : &fake, m.scheduler_stack, m.scheduler_size);
    swapcontext(&f.context, &m.scheduler);
    __sanitizer_finish_switch_fiber(fake, &m.scheduler_stack, &m.scheduler_size);
#else
    (void)last;
    swapcontext(&f.context, &m.scheduler);
#endif
}

inline void run_fiber() {
    Machine& m = machine;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &m.scheduler_stack, &m.scheduler_size);
#endif
    (*m.body)();
    Fiber& f = *m.fibers[m.current];
    if (!f.groups.empty() || !f.open.empty()) m.error = "a thread ended before its asynchronous copies were waited for";
    f.state = State::Done;
    switch_to_scheduler(true);
}

inline void resume(unsigned i) {
    Machine& m = machine;
    Fiber& f = *m.fibers[i];
    m.current = i;
    threadIdx = {i, 0, 0};
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, f.stack.get(), STACK);
    swapcontext(&m.scheduler, &f.context);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    swapcontext(&m.scheduler, &f.context);
#endif
}

inline void run_block(const std::function<void()>& body) {
    Machine& m = machine;
    m.body = &body;
    m.at_barrier = 0;
    m.warps.assign(m.threads / WARP, Warp{});
    while (m.fibers.size() < m.threads) m.fibers.push_back(std::make_unique<Fiber>());
    for (unsigned i = 0; i < m.threads; ++i) {
        Fiber& f = *m.fibers[i];
        f.groups.clear();
        f.open.clear();
        f.state = State::Ready;
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.get();
        f.context.uc_stack.ss_size = STACK;
        f.context.uc_link = nullptr;
        makecontext(&f.context, run_fiber, 0);
    }
    for (;;) {
        bool progress = false;
        unsigned done = 0;
        // a warp runs as far as it can before the next one begins: nothing but barriers keeps them together
        for (unsigned w = 0; w < m.threads / WARP; ++w) {
            const unsigned first = (reversed ? m.threads / WARP - 1 - w : w) * WARP;
            for (bool ran = true; ran;) {
                ran = false;
                for (unsigned lane = 0; lane < WARP; ++lane) {
                    const unsigned i = first + (reversed ? WARP - 1 - lane : lane);
                    if (m.fibers[i]->state != State::Ready) continue;
                    resume(i);
                    ran = progress = true;
                    if (!m.error.empty()) return;
                }
            }
        }
        for (unsigned i = 0; i < m.threads; ++i) done += m.fibers[i]->state == State::Done;
        if (done == m.threads) return;
        if (!progress) {
            m.error = "deadlock: some threads wait at a barrier or warp operation that others never reach";
            return;
        }
    }
}

// Waits until all lanes of the warp are here; the last one computes for all.
inline void warp_operation(void* argument, void (*compute)(void**)) {
    Machine& m = machine;
    Warp& warp = m.warps[m.current / WARP];
    if (warp.arrived == 0) {
        warp.operation = reinterpret_cast<const void*>(compute);
    } else if (warp.operation != reinterpret_cast<const void*>(compute)) {
        m.error = "the lanes of a warp are in different warp operations";
        switch_to_scheduler(false);
    }
    warp.arguments[m.current % WARP] = argument;
    if (++warp.arrived == WARP) {
        compute(warp.arguments);
        warp.arrived = 0;
        const unsigned first = m.current / WARP * WARP;
        for (unsigned i = first; i < first + WARP; ++i) m.fibers[i]->state = State::Ready;
    } else {
        m.fibers[m.current]->state = State::InWarp;
        switch_to_scheduler(false);
    }
}

template <typename T>
struct Shuffle {
    T value, result;
    int source;
};
template <typename T>
void shuffle(void** lanes) {
    for (int i = 0; i < WARP; ++i) {
        auto* lane = static_cast<Shuffle<T>*>(lanes[i]);
        lane->result = static_cast<Shuffle<T>*>(lanes[lane->source])->value;
    }
}
template <typename T>
T shuffle_from(T value, int source) {
    Shuffle<T> argument{value, value, source};
    warp_operation(&argument, shuffle<T>);
    return argument.result;
}

struct Mma {
    float* d;
    const unsigned *a, *b;
};
inline float half_of(unsigned pair, int which) { return __bfloat162float({uint16_t(pair >> (16 * which))}); }
// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 by the fragment layouts of the PTX manual.
inline void mma(void** lanes) {
    float a[16][16], b[16][8];
    for (int i = 0; i < WARP; ++i) {
        const auto* lane = static_cast<Mma*>(lanes[i]);
        const int group = i / 4, in_group = i % 4;
        for (int r = 0; r < 4; ++r) {
            for (int h = 0; h < 2; ++h) {
                a[group + 8 * (r % 2)][in_group * 2 + h + 8 * (r / 2)] = half_of(lane->a[r], h);
            }
        }
        for (int r = 0; r < 2; ++r) {
            for (int h = 0; h < 2; ++h) b[in_group * 2 + h + 8 * r][group] = half_of(lane->b[r], h);
        }
    }
    for (int i = 0; i < WARP; ++i) {
        auto* lane = static_cast<Mma*>(lanes[i]);
        for (int c = 0; c < 4; ++c) {
            const int row = i / 4 + 8 * (c / 2), col = i % 4 * 2 + c % 2;
            float sum = lane->d[c];
            for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][col];
            lane->d[c] = sum;
        }
    }
}

struct LdMatrix {
    const void* row;
    unsigned* to;
};
// ldmatrix.sync.aligned.m8n8.x4[.trans].shared.b16: lanes 8j..8j+7 give the rows of matrix j.
template <bool TRANSPOSED>
void ldmatrix(void** lanes) {
    for (int j = 0; j < 4; ++j) {
        uint16_t matrix[8][8];
        for (int r = 0; r < 8; ++r) {
            const void* row = static_cast<LdMatrix*>(lanes[8 * j + r])->row;
            if (reinterpret_cast<uintptr_t>(row) % 16 != 0) machine.error = "ldmatrix: a row is not aligned to 16 bytes";
            std::memcpy(matrix[r], row, 16);
        }
        for (int i = 0; i < WARP; ++i) {
            const int row = i / 4, col = i % 4 * 2;
            const uint16_t low = TRANSPOSED ? matrix[col][row] : matrix[row][col];
            const uint16_t high = TRANSPOSED ? matrix[col + 1][row] : matrix[row][col + 1];
            static_cast<LdMatrix*>(lanes[i])->to[j] = low | unsigned(high) << 16;
        }
    }
}

inline void nothing(void**) {}

struct Entry {
    std::function<void(void**)> call;
    std::vector<size_t> sizes;
    unsigned threads;
};
inline std::map<std::string, Entry>& registry() {
    static std::map<std::string, Entry> entries;
    return entries;
}

template <typename... A, size_t... I>
void call_with(void (*f)(A...), void** arguments, std::index_sequence<I...>) {
    f(*static_cast<std::remove_reference_t<A>*>(arguments[I])...);
}

struct Register {
    template <typename... A>
    Register(const char* name, unsigned threads, void (*f)(A...)) {
        auto call = [f](void** arguments) { call_with(f, arguments, std::index_sequence_for<A...>{}); };
        registry()[name] = Entry{call, {sizeof(A)...}, threads};
    }
};

}  // namespace emulator

inline void __syncthreads() {
    using namespace emulator;
    Machine& m = machine;
    if (++m.at_barrier == m.threads) {
        m.at_barrier = 0;
        for (unsigned i = 0; i < m.threads; ++i) m.fibers[i]->state = State::Ready;
    } else {
        m.fibers[m.current]->state = State::AtBarrier;
        switch_to_scheduler(false);
    }
}
inline void __syncwarp(unsigned = 0xffffffff) { emulator::warp_operation(nullptr, emulator::nothing); }
template <typename T>
T __shfl_xor_sync(unsigned, T v, int mask) {
    return emulator::shuffle_from(v, int(emulator::machine.current % 32) ^ mask);
}
template <typename T>
T __shfl_down_sync(unsigned, T v, int delta) {
    const int lane = emulator::machine.current % 32;
    return emulator::shuffle_from(v, lane + delta < 32 ? lane + delta : lane);
}
template <typename T>
T __shfl_sync(unsigned, T v, int source) {
    return emulator::shuffle_from(v, source & 31);
}

inline void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    emulator::Mma argument{d, a, b};
    emulator::warp_operation(&argument, emulator::mma);
}
inline void ldmatrix(unsigned (&to)[4], const void* row) {
    emulator::LdMatrix argument{row, to};
    emulator::warp_operation(&argument, emulator::ldmatrix<false>);
}
inline void ldmatrix_transposed(unsigned (&to)[4], const void* row) {
    emulator::LdMatrix argument{row, to};
    emulator::warp_operation(&argument, emulator::ldmatrix<true>);
}
inline void copy_async(void* to, const void* from, bool valid) {
    std::memset(to, 0xff, 16);
    auto& m = emulator::machine;
    m.fibers[m.current]->open.push_back({to, from, valid});
}
inline void copy_async_commit() {
    auto& f = *emulator::machine.fibers[emulator::machine.current];
    f.groups.push_back(std::move(f.open));
    f.open.clear();
}
// All but the latest `pending` groups have arrived.
template <int pending>
void copy_async_wait() {
    auto& f = *emulator::machine.fibers[emulator::machine.current];
    while (f.groups.size() > size_t(pending)) {
        for (const auto& copy : f.groups.front()) {
            if (copy.valid) {
                std::memcpy(copy.to, copy.from, 16);
            } else {
                std::memset(copy.to, 0, 16);
            }
        }
        f.groups.erase(f.groups.begin());
    }
}

#define KERNEL(threads, name, ...)                                     \
    extern "C" void name(__VA_ARGS__);                                 \
    static emulator::Register register_##name(#name, threads, name);   \
    extern "C" void name(__VA_ARGS__)

#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulator::machine.shared.get())
