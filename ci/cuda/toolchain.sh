#!/usr/bin/env bash
# Makes a CUDA tool chain in DIR for a machine without an installed toolkit, and prints the environment to use it:
#
#   eval "$(ci/cuda/toolchain.sh DIR)"
#
# Compiler and headers come from Python wheels (toolchain.txt, about 104 MB, licences of NVIDIA). With --link also the
# archives that a program links to in place of NVIDIA's libraries: their functions open the real library at their first
# call, so that the program links here and starts anywhere. x86-64 Linux; needs python3 with pip, and for --link gcc.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
link=no
if [[ "${1:-}" == --link ]]; then
    link=yes
    shift
fi
dir="$(mkdir -p "${1:?usage: toolchain.sh [--link] DIR}" && cd "$1" && pwd)"
if [[ "$(uname -sm)" != "Linux x86_64" ]]; then
    echo "error: wheels are pinned for x86-64 Linux, this is $(uname -sm); install the CUDA toolkit" >&2
    exit 1
fi

# complete or not there at all: an interrupted download leaves no half a tool chain
if [[ ! -e "$dir/toolkit" ]]; then
    fresh="$(mktemp -d "$dir/fresh.XXXXXX")"
    trap 'rm -rf "$fresh"' EXIT
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
        --dest "$fresh/wheels" --requirement "$here/toolchain.txt" >&2
    for wheel in "$fresh"/wheels/*.whl; do
        python3 -m zipfile -e "$wheel" "$fresh/files"
    done
    home="$fresh/files/nvidia/cu13"
    chmod +x "$home"/bin/* "$home"/nvvm/bin/*
    mv "$home" "$dir/toolkit"
fi
if [[ "$link" == yes && ! -e "$dir/link/libcuda.a" ]]; then
    # the functions that cudarc, the Rust binding, declares
    manifest="$(cargo metadata --format-version 1 --locked --features replica-cli/cuda --manifest-path "$here/../../Cargo.toml" |
        python3 -c 'import json, sys; print(*(p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == "cudarc"))')"
    fresh="$(mktemp -d "$dir/fresh.XXXXXX")"
    trap 'rm -rf "$fresh"' EXIT
    python3 "$here/lazy.py" "$(dirname "$manifest")" "$fresh/link" >&2
    ln -s ../toolkit/lib/libcudart_static.a "$fresh/link/libcudart.a"
    mv "$fresh/link" "$dir/link"
fi

cat <<ENV
export CUDA_HOME="$dir/toolkit" PATH="$dir/toolkit/bin:\$PATH" CUDARC_CUDA_VERSION=13000
export CUDA_COMPUTE_CAP="\${CUDA_COMPUTE_CAP:-80}"
ENV
if [[ "$link" == yes ]]; then
    echo "export LIBRARY_PATH=\"$dir/link\${LIBRARY_PATH:+:\$LIBRARY_PATH}\""
fi
