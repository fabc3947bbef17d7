#!/usr/bin/env bash
# Runs the GPU tests on a machine without a GPU: a driver, cuBLAS and cuRAND made of plain C++ (emulator/), on which the
# project's own kernels run as C++ too. It finds wrong arguments, sizes, lifetimes, masks and arithmetic of everything
# that the Rust code asks of a device; speed, tensor cores, memory ordering and the real libraries remain for
# gpu-tests.sh. Needs a C++ compiler and a tool chain for the build, which takes ten minutes the first time.
#
#   ci/cuda/emulate.sh [test filter]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

chain="${REPLICA_CUDA_TOOLCHAIN:-target/cuda-toolchain}"
environment="$(ci/cuda/toolchain.sh --link "$chain")"
eval "$environment"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target/cuda}"

out="$(mkdir -p "$CARGO_TARGET_DIR/emulator" && cd "$CARGO_TARGET_DIR/emulator" && pwd)"
kernels=harness/nn/src/ops/cuda
tests=harness/nn/tests/kernels
flags=(-O2 -g1 -std=c++17 -fPIC -Wall -Wno-unknown-pragmas "-I$tests" "-I$kernels")
newest="$(ls -t $kernels/*.cu* $tests/*.h $tests/*.cpp ci/cuda/emulator/*.cpp | head -n 1)"
if [[ ! -e "$out/libcuda.so.1" || "$newest" -nt "$out/libcuda.so.1" ]]; then
    for source in $kernels/*.cu $tests/launch.cpp ci/cuda/emulator/driver.cpp; do
        echo "$out/$(basename "$source").o" "$source"
    done | xargs -P "$(nproc)" -n 2 c++ "${flags[@]}" -include emulator.h -x c++ -c -o
    c++ -shared -Wl,-soname,libcuda.so.1 -o "$out/libcuda.so.1" "$out"/*.o
    c++ "${flags[@]}" -shared -Wl,-soname,libcublas.so.13 -Wl,-rpath,'$ORIGIN' -o "$out/libcublas.so.13" \
        ci/cuda/emulator/blas.cpp "$out/libcuda.so.1"
    c++ "${flags[@]}" -shared -Wl,-soname,libcurand.so.10 -o "$out/libcurand.so.10" ci/cuda/emulator/random.cpp
fi

export LD_LIBRARY_PATH="$out${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
cargo test --locked --no-fail-fast --features replica-cli/cuda --package replica-cli --package replica-nn --package replica-train \
    --package replica-lpa --package replica-smr --test cuda -- "$@"
