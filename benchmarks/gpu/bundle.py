"""``python -m benchmarks.gpu.bundle``: what a machine with a GPU, Python and torch lacks to run ``benchmarks gpu``.

One archive of this project, ComfyUI without its front end, the reference pack, and wheels of pure Python. It needs the
standard library only. Start ``bash gpu-bundle/run.sh`` where it is unpacked.
"""

from __future__ import annotations

import argparse
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 60_000_000
"""Unpacked. Machines that are lent for a time take little."""
_PROJECT = ("fast_instantid/", "benchmarks/", "examples/", "tests/", "locales/")
_PROJECT += ("__init__.py", "InstantID.py", "pyproject.toml", "LICENSE", "NOTICE")
_NOT_HEADLESS = {
    "tests",
    "tests-unit",
    "custom_nodes",
    "comfy_api_nodes",
    "alembic_db",
    "script_examples",
    "blueprints",
}
_MOST_SETTING = 20_000  # bytes: settings of ComfyUI's models are less, vocabularies more


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.bundle", description=__doc__)
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help="a checkout of ComfyUI")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="a checkout of cubiq/ComfyUI_InstantID")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="with *-none-any.whl")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "build" / "gpu-bundle.tar.gz", metavar="FILE")
    options = parser.parse_args()
    if (options.comfyui is None) != (options.reference is None):
        parser.error("--comfyui and --reference are packed together: name both or none")
    files = {"run.sh": ROOT / "benchmarks" / "gpu" / "run.sh"}
    files |= {f"project/{path.relative_to(ROOT)}": path for path in _project()}
    if options.comfyui:
        comfyui, reference = options.comfyui.resolve(), options.reference.resolve()
        for name, folder in (("main.py", comfyui), ("CrossAttentionPatch.py", reference)):
            if not (folder / name).exists() and folder.name != "standin":
                parser.error(f"{folder} has no {name}")
        files |= {f"comfyui/{path.relative_to(comfyui)}": path for path in _headless(comfyui)}
        files |= {f"reference/{path.name}": path for path in reference.iterdir() if path.suffix in (".py", ".toml")}
    for path in options.wheels.glob("*.whl") if options.wheels else ():
        if not path.name.endswith("-none-any.whl"):
            parser.error(f"{path.name} is not pure Python")
        files[f"wheels/{path.name}"] = path
    total = sum(path.stat().st_size for path in files.values())
    if total >= MOST_BYTES:
        parser.error(f"{total / 1e6:.1f} MB, and at most {MOST_BYTES / 1e6:.0f} MB may be packed")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(options.output, "w:gz") as archive:
        for name, path in sorted(files.items()):
            archive.add(path, f"gpu-bundle/{name}", recursive=False)
    size = options.output.stat().st_size
    print(f"written: {options.output}, {size / 1e6:.1f} MB, unpacked {total / 1e6:.1f} MB in {len(files)} files")


def _project() -> Iterator[Path]:
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *_PROJECT]
    for name in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and not name.startswith("benchmarks/results/") and (ROOT / name).is_file():
            yield ROOT / name


def _headless(comfyui: Path) -> Iterator[Path]:
    """Its code, and the settings of its models."""
    for path in comfyui.rglob("*"):
        top = path.relative_to(comfyui).parts[0]
        if top in _NOT_HEADLESS or top.startswith(".") or not path.is_file():
            continue
        is_setting = path.suffix == ".json" and top == "comfy" and path.stat().st_size < _MOST_SETTING
        if path.suffix == ".py" or is_setting or path.name == "LICENSE":
            yield path


if __name__ == "__main__":
    main()
