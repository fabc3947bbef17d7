#!/usr/bin/env bash
# Runs a command in an environment that can build feature `cuda`: with the installed toolkit if there is one (CUDA_HOME,
# nvcc on PATH or /usr/local/cuda), otherwise with a tool chain made for it.
#
#   ci/cuda/with-toolchain.sh cargo test --features replica-cli/cuda ...
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

if [[ -z "${CUDA_HOME:-}" && -x /usr/local/cuda/bin/nvcc ]]; then
    export CUDA_HOME=/usr/local/cuda PATH="/usr/local/cuda/bin:$PATH"
fi
if ! command -v nvcc >/dev/null && [[ ! -x "${CUDA_HOME:-}/bin/nvcc" ]]; then
    environment="$("$root/ci/cuda/toolchain.sh" --link "${REPLICA_CUDA_TOOLCHAIN:-$root/target/cuda-toolchain}")"
    eval "$environment"
fi
# the first with bfloat16; newer GPUs compile the PTX for themselves
export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-80}"
exec "$@"
