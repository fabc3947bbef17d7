#!/usr/bin/env bash
# Builds the `replica` program with feature `cuda`: with the installed toolkit if there is one (CUDA_HOME, nvcc on PATH
# or /usr/local/cuda), otherwise with a tool chain made for it. Further arguments go to cargo.
#
#   ci/cuda/build.sh                     target/release/replica
#   CUDA_COMPUTE_CAP=90 ci/cuda/build.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [[ -z "${CUDA_HOME:-}" && -x /usr/local/cuda/bin/nvcc ]]; then
    export CUDA_HOME=/usr/local/cuda PATH="/usr/local/cuda/bin:$PATH"
fi
if ! command -v nvcc >/dev/null && [[ ! -x "${CUDA_HOME:-}/bin/nvcc" ]]; then
    environment="$(ci/cuda/toolchain.sh --link "${REPLICA_CUDA_TOOLCHAIN:-target/cuda-toolchain}")"
    eval "$environment"
fi
# the first with bfloat16; newer GPUs compile the PTX for themselves
export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-80}"
exec cargo build --release --locked --package replica-cli --features cuda "$@"
