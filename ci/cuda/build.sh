#!/usr/bin/env bash
# Builds the `replica` program with feature `cuda`. Further arguments go to cargo.
#
#   ci/cuda/build.sh                             target/release/replica
#   CUDA_COMPUTE_CAP=90 ci/cuda/build.sh         for an H100 and newer only
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec ci/cuda/with-toolchain.sh cargo build --release --locked --package replica-cli --features cuda "$@"
