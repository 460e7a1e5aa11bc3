#!/usr/bin/env bash
# Pack what a machine with a GPU, Python and torch lacks to run `python -m benchmarks gpu`, without a network:
#     bundle.sh ARCHIVE WHEELS [COMFYUI REFERENCE]
# This project, wheels of pure Python, ComfyUI without its front end, and the reference pack. Unpacked, it is started by
# `bash gpu-bundle/run.sh`.
set -euo pipefail
root="$(cd "$(dirname "$0")/../.." && pwd)"
archive="$1" wheels="$2" comfyui="${3:-}" reference="${4:-}"
most=60000000 # bytes, packed or not: machines that are lent for a time take little
fail() { echo "$1" >&2; exit 1; }

bundle="$(mktemp -d)/gpu-bundle"
trap 'rm -rf "$(dirname "$bundle")"' EXIT
mkdir -p "$bundle/project" "$bundle/wheels" "$(dirname "$archive")"
cp "$root/benchmarks/gpu/run.sh" "$bundle"
copy() { tar -C "$1" --null --files-from - -cf - | tar -C "$2" -xf -; } # the files that are named on standard input

project=(fast_instantid benchmarks examples tests locales __init__.py InstantID.py pyproject.toml LICENSE NOTICE)
git -C "$root" ls-files -z --cached --others --exclude-standard -- "${project[@]}" ':!benchmarks/results' |
    (cd "$root" && while IFS= read -r -d '' name; do [[ ! -f "$name" ]] || printf '%s\0' "$name"; done) |
    copy "$root" "$bundle/project"
for wheel in "$wheels"/*.whl; do
    [[ "$wheel" != *"/*.whl" ]] || continue # there are none
    [[ "$wheel" == *-none-any.whl ]] || fail "$wheel is not pure Python: it may not fit the other machine"
    cp "$wheel" "$bundle/wheels"
done
if [[ -n "$comfyui" ]]; then
    [[ -d "$comfyui/comfy" ]] || fail "$comfyui is no checkout of ComfyUI: it has no folder comfy"
    [[ -f "$reference/CrossAttentionPatch.py" ]] || fail "'$reference' is no checkout of cubiq/ComfyUI_InstantID"
    mkdir "$bundle/comfyui" "$bundle/reference"
    skipped='\./(tests|tests-unit|custom_nodes|comfy_api_nodes|alembic_db|script_examples|blueprints|\..*)/.*'
    # Settings of its models are smaller than 20 kB, and vocabularies larger.
    (cd "$comfyui" && find . -regextype posix-extended -type f ! -regex "$skipped" \
        \( -name '*.py' -o -name LICENSE -o -path './comfy/*.json' -size -20k \) -print0) | copy "$comfyui" "$bundle/comfyui"
    cp "$reference"/{*.py,pyproject.toml,LICENSE} "$bundle/reference"
fi
tar -C "$(dirname "$bundle")" -czf "$archive" gpu-bundle
unpacked="$(find "$bundle" -type f -exec cat {} + | wc -c)"
((unpacked < most)) || fail "$unpacked bytes unpacked, and at most $most may be packed"
echo "written: $archive, $(($(wc -c <"$archive") / 1000)) kB, unpacked $((unpacked / 1000)) kB"
