#!/usr/bin/env bash
# Compiles the project's own CUDA kernels to PTX, for the oldest and the newest compute capability that is supported:
# seconds, no GPU, no Rust. Uses the nvcc that is there, or makes a tool chain (toolchain.sh). Without either, as on a
# machine without network, it says so and passes, unless REPLICA_REQUIRE_PTX=1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

find_nvcc() {
    local folder
    for folder in "${CUDA_HOME:-}" "${CUDA_PATH:-}" /usr/local/cuda; do
        if [[ -n "$folder" && -x "$folder/bin/nvcc" ]]; then
            echo "$folder/bin/nvcc"
            return
        fi
    done
    command -v nvcc
}

if ! nvcc="$(find_nvcc)"; then
    if environment="$(ci/cuda/toolchain.sh "${REPLICA_CUDA_TOOLCHAIN:-target/cuda-toolchain}")"; then
        eval "$environment"
        nvcc="$(find_nvcc)"
    elif [[ "${REPLICA_REQUIRE_PTX:-0}" == 1 ]]; then
        echo "error: no nvcc, and no tool chain could be made; the kernels were not compiled" >&2
        exit 1
    else
        echo "note: no nvcc, and no tool chain could be made; the kernels were NOT compiled"
        exit 0
    fi
fi

out="$(mktemp -d)"
trap 'rm -rf "$out"' EXIT
echo "$nvcc: $("$nvcc" --version | sed -n 's/.*release \([^,]*\),.*/CUDA \1/p')"
sources=(harness/nn/src/ops/cuda/*.cu)
for source in "${sources[@]}"; do
    for arch in 80 90; do
        echo "-arch=compute_$arch -o $out/$(basename "$source" .cu).$arch.ptx $source"
    done
done | xargs -P "$(nproc)" -L 1 "$nvcc" -ptx -O3 -std=c++17 --Werror all-warnings
for source in "${sources[@]}"; do
    name="$(basename "$source" .cu)"
    echo "$name: $(grep -c '^\.visible \.entry\|^	*\.entry\|^\.entry' "$out/$name.90.ptx" || true) kernels"
done
