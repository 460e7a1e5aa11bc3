#!/usr/bin/env bash
# Measure all that a GPU can show, from this folder alone: bash run.sh --minutes 9 --results DIR. A second call with the
# same DIR takes up what is left; --list shows the rows. PYTHON=... names the interpreter, which has torch.
set -euo pipefail
bundle="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-python3}"
# Of the wheels, which are pure Python, those whose modules are missing here. What is installed stays as it is.
"$python" - "$bundle" <<'PYTHON'
import sys, zipfile
from importlib.util import find_spec
from pathlib import Path

bundle = Path(sys.argv[1])
for wheel in sorted(bundle.glob("wheels/*.whl")):
    with zipfile.ZipFile(wheel) as packed:
        tops = {name.split("/")[0].removesuffix(".py") for name in packed.namelist() if name.endswith(".py")}
        if not any(find_spec(top) for top in tops):
            print(f"missing here: {', '.join(sorted(tops))}; taken from {wheel.name}")
            packed.extractall(bundle / "site")
PYTHON
export PYTHONPATH="$bundle/project:$bundle/site" PYTHONSAFEPATH=1 HF_HUB_OFFLINE=1
packs=()
if [[ -d "$bundle/comfyui" ]]; then
    packs=(--comfyui "$bundle/comfyui" --reference "$bundle/reference")
fi
exec "$python" -m benchmarks gpu "${packs[@]}" --work "$bundle/work" "$@"
