#!/usr/bin/env bash
# Training steps against PyTorch, and what came out against our targets.
#
#   ci/bench/run.sh [--install] [FOLDER] [-- OPTIONS]
#
# FOLDER (default: target/bench) gets bench.json. --install makes a virtual environment with torch in FOLDER/venv first;
# without it the Python that `replica bench` finds is used. OPTIONS go to `replica bench`, e.g. `-- decoder-small --compile`.
# Environment: REPLICA_THREADS (2), REPLICA_ROUNDS (9).
# Exit code: that of `replica bench`: a missed target is shown, it is no failure, as machines differ.
#
# The twins of the workloads are the other scripts in this folder; twin.py says how they are asked.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

install=
folder=target/bench
if [[ "${1:-}" == --install ]]; then install=1; shift; fi
if [[ $# -gt 0 && "$1" != -- ]]; then folder="$1"; shift; fi
if [[ "${1:-}" == -- ]]; then shift; fi
mkdir -p "$folder"

if [[ -n "$install" ]]; then
    [[ -x "$folder/venv/bin/python" ]] || python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet torch
    export REPLICA_PYTHON="$PWD/$folder/venv/bin/python"
fi
python="${REPLICA_PYTHON:-python3}"

code=0
cargo run --quiet --release --locked --package replica-cli -- bench \
    --threads "${REPLICA_THREADS:-2}" --rounds "${REPLICA_ROUNDS:-9}" --output "$folder/bench.json" "$@" || code=$?
((code == 0 || code == 1)) || exit "$code"
if command -v "$python" >/dev/null; then "$python" ci/bench/targets.py "$folder/bench.json"; fi
exit "$code"
