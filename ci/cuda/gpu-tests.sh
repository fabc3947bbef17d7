#!/usr/bin/env bash
# What to run on a machine with an NVIDIA GPU, in this order: is everything there, do all operations and the models agree
# with the CPU, do the published shapes train, does the paper at scale `gpu`. Stops at the first failure.
#
#   ci/cuda/gpu-tests.sh [cuda:N]
#
# NVIDIA's libraries must be where the loader finds them: the driver's libcuda.so.1, and libcublas.so.13 with friends from a
# toolkit, or from Python wheels (their nvidia/cu13/lib folder on LD_LIBRARY_PATH).
# Environment: REPLICA_GPU_RUN=0 leaves out the last step, which takes 20 minutes or more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
device="${1:-cuda:0}"

step() {
    printf '\n== %s (%ss)\n' "$*" "$SECONDS"
    "$@"
}

out="${CARGO_TARGET_DIR:-target}/gpu-tests"
mkdir -p "$out"
step ci/cuda/build.sh
replica() {
    step "${CARGO_TARGET_DIR:-target}/release/replica" --runs "$out/runs" --site "$out/site" "$@"
}
replica doctor

# a test that is skipped says so; here that is a failure
step ci/cuda/with-toolchain.sh cargo test --release --locked --features replica-cli/cuda --package replica-cli \
    --package replica-nn --package replica-train --package replica-lpa --package replica-smr --test cuda 2>&1 | tee "$out/tests.log"
if grep -q 'skipped, no GPU' "$out/tests.log"; then
    echo "error: nothing was tested on a GPU" >&2
    exit 1
fi

# the published shapes of setting 2 for 50 steps: time and memory of a step, with nothing else running
replica run lpa/cost --scale paper --config ci/cuda/lpa-50-steps.toml --device "$device"

if [[ "${REPLICA_GPU_RUN:-1}" == 1 ]]; then
    replica run lpa --scale gpu --device "$device" --resume
    replica check lpa --scale gpu --device "$device"
fi
