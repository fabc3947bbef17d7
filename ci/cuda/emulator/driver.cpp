// A CUDA driver without a GPU, for tests of the code that calls one: the functions of libcuda that this project uses, on
// host memory, with the kernels as harness/nn/tests/kernels/emulator.h runs them.
//
// It is as late as a driver may be: what is asked of a stream is done when somebody waits for it, so that host memory
// which changes or goes too early is found. It is as strict as it can be: new and freed device memory is NaN, writes
// beyond the end of a block are found when it is freed, launches are checked against the limits of real devices.
#include "emulator.h"

#include <deque>
#include <mutex>
#include <unordered_map>

extern "C" int emulator_launch(const char*, const unsigned*, unsigned, size_t, void**, const size_t*, size_t);
extern "C" const char* emulator_error();

namespace {

constexpr int SUCCESS = 0, INVALID_VALUE = 1, NOT_FOUND = 500, LAUNCH_FAILED = 719;
constexpr size_t GUARD = 64;

struct Function {
    std::string name;
    size_t shared = 48 * 1024;
};

std::mutex lock;
std::deque<std::function<void()>> queue;
std::unordered_map<char*, size_t> blocks;
std::map<std::string, Function> functions;
std::unordered_map<char*, size_t> pinned;
size_t used = 0, high = 0;
int failure = SUCCESS;
thread_local void* current = nullptr;
int context_object, stream_object, pool_object;

void fail(const std::string& what) {
    std::fprintf(stderr, "emulated driver: %s\n", what.c_str());
    failure = LAUNCH_FAILED;
}

int later(std::function<void()> work) {
    std::lock_guard<std::mutex> guard(lock);
    if (failure != SUCCESS) return failure;
    queue.push_back(std::move(work));
    return SUCCESS;
}

int drain() {
    std::lock_guard<std::mutex> guard(lock);
    while (!queue.empty()) {
        const auto work = std::move(queue.front());
        queue.pop_front();
        work();
    }
    return failure;
}

bool is_pinned(const void* host) {
    std::lock_guard<std::mutex> guard(lock);
    for (const auto& [start, size] : pinned) {
        if (host >= start && host < start + size) return true;
    }
    return false;
}

// That a range lies in a block that has been handed out.
void check_range(const char* what, uint64_t address, size_t size) {
    std::lock_guard<std::mutex> guard(lock);
    for (const auto& [start, length] : blocks) {
        const auto first = reinterpret_cast<uint64_t>(start);
        if (address >= first && address + size <= first + length) return;
    }
    fail(std::string(what) + " outside of device memory");
}

}  // namespace

extern "C" {

// For the emulated cuBLAS: its work waits in the same queue.
int emulator_later(void (*work)(void*), void* argument) {
    return later([=] { work(argument); });
}

int cuInit(unsigned) { return SUCCESS; }
int cuDriverGetVersion(int* version) { return *version = 13000, SUCCESS; }
int cuDeviceGetCount(int* count) { return *count = 1, SUCCESS; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal == 0 ? SUCCESS : INVALID_VALUE; }
int cuDeviceGetName(char* name, int length, int) { return std::snprintf(name, length, "emulated GPU"), SUCCESS; }
int cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = size_t(1) << 32, SUCCESS; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
    constexpr int MAJOR = 75, MINOR = 76, POOLS = 115;
    *value = attribute == MAJOR ? 9 : attribute == MINOR ? 0 : attribute == POOLS;
    return SUCCESS;
}
int cuGetErrorName(int code, const char** name) {
    return *name = code == LAUNCH_FAILED ? "CUDA_ERROR_LAUNCH_FAILED" : "CUDA_ERROR", SUCCESS;
}
int cuGetErrorString(int code, const char** text) { return cuGetErrorName(code, text); }

int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &context_object, SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxGetCurrent(void** context) { return *context = current, SUCCESS; }
int cuCtxSetCurrent(void* context) { return current = context, SUCCESS; }
int cuCtxSynchronize() { return drain(); }

int cuStreamCreate(void** stream, unsigned) { return *stream = &stream_object, SUCCESS; }
int cuStreamDestroy_v2(void*) { return SUCCESS; }
int cuStreamSynchronize(void*) { return drain(); }
int cuStreamWaitEvent(void*, void*, unsigned) { return SUCCESS; }
int cuEventCreate(void** event, unsigned) { return *event = new char, SUCCESS; }
int cuEventDestroy_v2(void* event) { return delete static_cast<char*>(event), SUCCESS; }
int cuEventRecord(void*, void*) { return SUCCESS; }
int cuEventSynchronize(void*) { return drain(); }

int cuDeviceGetDefaultMemPool(void** pool, int) { return *pool = &pool_object, SUCCESS; }
constexpr int USED_HIGH = 8;
int cuMemPoolSetAttribute(void*, int attribute, void* value) {
    if (attribute == USED_HIGH && *static_cast<uint64_t*>(value) == 0) high = used;
    return SUCCESS;
}
int cuMemPoolGetAttribute(void*, int attribute, void* value) {
    if (attribute != USED_HIGH) return INVALID_VALUE;
    return *static_cast<uint64_t*>(value) = high, SUCCESS;
}

int cuMemAllocAsync(uint64_t* address, size_t size, void*) {
    if (size == 0) return INVALID_VALUE;
    std::lock_guard<std::mutex> guard(lock);
    // addresses of a driver's pool are multiples of 256
    char* block = static_cast<char*>(std::aligned_alloc(256, (size + GUARD + 255) / 256 * 256));
    std::memset(block, 0xff, size);
    std::memset(block + size, 0xa5, GUARD);
    blocks[block] = size;
    used += size;
    high = std::max(high, used);
    return *address = reinterpret_cast<uint64_t>(block), SUCCESS;
}
int cuMemFreeAsync(uint64_t address, void*) {
    return later([=] {
        char* block = reinterpret_cast<char*>(address);
        const auto found = blocks.find(block);
        if (found == blocks.end()) return fail("memory is freed that was not allocated");
        const size_t size = found->second;
        for (size_t i = 0; i < GUARD; ++i) {
            if (static_cast<unsigned char>(block[size + i]) != 0xa5) {
                fail("something wrote beyond the end of a block of " + std::to_string(size) + " bytes");
                break;
            }
        }
        std::memset(block, 0xff, size);
        used -= size;
        blocks.erase(found);
        std::free(block);
    });
}
int cuMemHostAlloc(void** host, size_t size, unsigned) {
    std::lock_guard<std::mutex> guard(lock);
    char* memory = static_cast<char*>(std::malloc(size));
    pinned[memory] = size;
    return *host = memory, SUCCESS;
}
int cuMemFreeHost(void* host) {
    std::lock_guard<std::mutex> guard(lock);
    std::memset(host, 0xff, pinned[static_cast<char*>(host)]);
    pinned.erase(static_cast<char*>(host));
    return std::free(host), SUCCESS;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t size, void*) {
    check_range("a copy", to, size);
    if (is_pinned(from)) {
        return later([=] { std::memcpy(reinterpret_cast<void*>(to), from, size); });
    }
    // pageable memory is read before the call returns
    const std::string staged(static_cast<const char*>(from), size);
    return later([=] { std::memcpy(reinterpret_cast<void*>(to), staged.data(), size); });
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t size, void*) {
    const int status = drain();
    check_range("a copy", from, size);
    return std::memcpy(to, reinterpret_cast<void*>(from), size), status;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t size, void*) {
    check_range("a copy", to, size);
    check_range("a copy", from, size);
    return later([=] { std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), size); });
}
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t n, void*) {
    check_range("a memset", to, n);
    return later([=] { std::memset(reinterpret_cast<void*>(to), value, n); });
}
int cuMemsetD32Async(uint64_t to, unsigned value, size_t n, void*) {
    check_range("a memset", to, 4 * n);
    return later([=] { std::fill_n(reinterpret_cast<unsigned*>(to), n, value); });
}

int cuModuleLoadData(void** module, const void* image) {
    // the PTX is not run, but the names in it are those that may be asked for
    return *module = new std::string(static_cast<const char*>(image)), SUCCESS;
}
int cuModuleUnload(void* module) { return delete static_cast<std::string*>(module), SUCCESS; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
    const auto& ptx = *static_cast<std::string*>(module);
    if (ptx.find(std::string(".entry ") + name + "(") == std::string::npos) return NOT_FOUND;
    if (emulator::registry().find(name) == emulator::registry().end()) return NOT_FOUND;
    std::lock_guard<std::mutex> guard(lock);
    functions[name].name = name;
    return *function = &functions[name], SUCCESS;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
    constexpr int MAX_DYNAMIC_SHARED = 8;
    // what an H100 or A100 and newer give one block; the smallest of them, 8.6, gives 99 KiB
    if (attribute != MAX_DYNAMIC_SHARED || value > 227 * 1024) return INVALID_VALUE;
    return static_cast<Function*>(function)->shared = size_t(value), SUCCESS;
}
int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                   unsigned threads_z, unsigned shared, void*, void** arguments, void**) {
    const auto& f = *static_cast<Function*>(function);
    if (x == 0 || y == 0 || z == 0 || y > 65535 || z > 65535 || threads_y != 1 || threads_z != 1 || shared > f.shared) {
        fail(f.name + ": a launch that no device takes");
        return INVALID_VALUE;
    }
    // the values of the arguments are copied, what they point to is not
    const auto& sizes = emulator::registry().at(f.name).sizes;
    std::vector<uint64_t> values(sizes.size());
    for (size_t i = 0; i < sizes.size(); ++i) std::memcpy(&values[i], arguments[i], sizes[i]);
    return later([=]() mutable {
        std::vector<void*> pointers(values.size());
        for (size_t i = 0; i < values.size(); ++i) pointers[i] = &values[i];
        const unsigned grid[] = {x, y, z};
        if (emulator_launch(f.name.c_str(), grid, threads, shared, pointers.data(), sizes.data(), sizes.size())) {
            fail(f.name + ": " + emulator_error());
        }
    });
}

}  // extern "C"
