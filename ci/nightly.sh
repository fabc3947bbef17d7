#!/usr/bin/env bash
# The nightly replication: runs every paper, compares with the goldens, renders the report and keeps the history.
#
#   ci/nightly.sh [FOLDER]
#
# FOLDER (default: nightly) holds runs/, history.jsonl and one dated folder a night with the pages, the check and the log.
# Environment: REPLICA_SCALE (small), REPLICA_DEVICE (cpu, cuda or cuda:N; builds with feature `cuda`), REPLICA_KEEP
# (nights kept, 30).
# Exit code: the first that is not 0 of run and check, so that a night that moved a result fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder="${1:-nightly}"
scale="${REPLICA_SCALE:-small}"
device="${REPLICA_DEVICE:-cpu}"
keep="${REPLICA_KEEP:-30}"
night="$folder/$(date -u +%Y-%m-%dT%H%M%SZ)"
mkdir -p "$night"

if [[ "$device" == cpu ]]; then
    cargo build --release --locked --package replica-cli
else
    ci/cuda/build.sh
fi
replica() {
    "${CARGO_TARGET_DIR:-target}/release/replica" --runs "$folder/runs" --site "$night/site" "$@"
}

code=0
# an interrupted night goes on where it stopped; a finished trial of the same code is not run again
replica run --scale "$scale" --device "$device" --resume >"$night/run.txt" 2> >(tee "$night/run.log" >&2) || code=$?
cat "$night/run.txt"
replica check --scale "$scale" --device "$device" --json >"$night/check.json" || { failed=$?; ((code)) || code=$failed; }
replica check --scale "$scale" --device "$device" || true
replica report --scale "$scale" --device "$device" --history "$folder/history.jsonl"

# the newest nights stay; names are dates, so they sort
find "$folder" -mindepth 1 -maxdepth 1 -type d -name '20*' | sort | head -n "-$keep" | while read -r old; do
    rm -rf "$old"
done
ln -sfn "$(basename "$night")" "$folder/latest"
exit "$code"
