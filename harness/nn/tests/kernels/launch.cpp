// What the test calls: a launch by name, as of cuLaunchKernel.
#include "emulator.h"

extern "C" const char* emulator_error() { return emulator::machine.error.c_str(); }

extern "C" void emulator_reverse(int reversed) { emulator::reversed = reversed != 0; }

extern "C" int emulator_launch(const char* name, const unsigned* grid, unsigned threads, size_t shared,
                               void** arguments, const size_t* sizes, size_t count) {
    auto& m = emulator::machine;
    m.error.clear();
    const auto found = emulator::registry().find(name);
    if (found == emulator::registry().end()) {
        m.error = "no kernel of this name";
        return 1;
    }
    const auto& entry = found->second;
    if (std::vector<size_t>(sizes, sizes + count) != entry.sizes) {
        m.error = "the arguments do not have the number or sizes of the kernel's:";
        for (size_t size : entry.sizes) m.error += " " + std::to_string(size);
        return 1;
    }
    if (threads == 0 || threads > entry.threads || threads % emulator::WARP != 0) {
        m.error = "a block of " + std::to_string(threads) + " threads, the kernel takes " + std::to_string(entry.threads);
        return 1;
    }
    blockDim = {threads, 1, 1};
    gridDim = {grid[0], grid[1], grid[2]};
    m.threads = threads;
    const std::function<void()> body = [&] { entry.call(arguments); };
    for (unsigned z = 0; z < grid[2]; ++z) {
        for (unsigned y = 0; y < grid[1]; ++y) {
            for (unsigned x = 0; x < grid[0]; ++x) {
                blockIdx = {x, y, z};
                // operator new[] aligns to 16 bytes; a block finds NaN in its shared memory
                m.shared.reset(new char[shared]);
                std::memset(m.shared.get(), 0xff, shared);
                emulator::run_block(body);
                if (!m.error.empty()) {
                    m.error += " (block " + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")";
                    return 1;
                }
            }
        }
    }
    return 0;
}
