"""The pack at a start of ComfyUI, where there is nothing but what ComfyUI asks for: what works, and what it costs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from examples.tiny_adapter import write_tiny_adapter
from examples.tiny_faces import write_iresnet, write_skin_detector
from tests.comfyui.conftest import HOST, REAL_HOST, ROOT

SHIPPED = ["torch", "numpy", "pillow", "safetensors"]
"""What each ComfyUI asks for and the pack imports."""
ADAPTER = {"channels": [320] * 70, "token_width": 512}  # 92 MB

START = """
import importlib.util, json, os, sys
root, host, base, photo = sys.argv[1:]
sys.path.insert(0, host)
from comfy.cli_args import args
args.cpu, args.base_directory = True, base
import torch, comfy.utils, comfy.model_patcher, comfy.sample, comfy.controlnet, folder_paths
if importlib.util.find_spec("nodes"):
    import nodes  # with all that it imports: a running ComfyUI has that too
folder_paths.models_dir = os.path.join(base, "models")
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)

def models():
    names = [os.path.basename(path) for path in opened if path.startswith(base)]
    opened.clear()
    return sorted(set(names) - {"models"})

def counters():
    read = int(open("/proc/self/io").read().split("rchar:")[1].split()[0])
    resident = int(open("/proc/self/status").read().split("RssFile:")[1].split()[0]) * 1024
    return {"read": read, "resident": resident}

before = set(sys.modules)
spec = importlib.util.spec_from_file_location(root, os.path.join(root, "__init__.py"))
pack = sys.modules[root] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
added = set(sys.modules) - before
told = {"import": models()}
told["packages"] = sorted({name.split(".")[0] for name in added if not name.startswith((root, "fast_instantid@"))})
told["parts"] = sorted(name.removeprefix(root + ".fast_instantid.") for name in added if name.startswith(root))

@torch.inference_mode()
def call(node, **inputs):
    node = pack.NODE_CLASS_MAPPINGS[node]
    start = counters()
    (result,) = getattr(node(), node.FUNCTION)(**inputs)
    told[node.__name__] = {name: end - start[name] for name, end in counters().items()} | {"opened": models()}
    return result

adapter = call("InstantIDModelLoader", instantid_file="ip-adapter.bin")
faces = call("InstantIDFaceAnalysis", provider="CPU")
start = counters()["resident"]
total = sum(float(key.sum()) for key, _ in adapter.weights.layers)
told["used"] = counters()["resident"] - start
image = torch.load(photo)
told["drawn"] = call("FaceKeypointsPreprocessor", faceanalysis=faces, image=image).amax(dim=(0, 1, 2)).tolist()
told["embedding"] = faces.embed(image).shape
told["there"] = [name for name in ("cv2", "xxhash", "insightface", "onnx", "onnxruntime", "diffusers")
                 if importlib.util.find_spec(name)]
print(json.dumps(told))
"""


def link_packages(folder: Path, names: list[str]) -> None:
    """Make a folder of installed packages: these, what they need, and nothing else."""
    todo, seen = [*names], set[str]()
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        if name in seen:
            continue
        seen.add(name)
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            link = folder / top
            if not link.exists():
                link.symlink_to(str(package.locate_file(top)))
        needs = map(Requirement, package.requires or ())
        todo += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]


def hosts_requirements() -> list[str]:
    """Names of the packages that the host asks for; 0.8.0 imports requests and does not ask for it."""
    if not REAL_HOST:
        return SHIPPED
    lines = (HOST / "requirements.txt").read_text().splitlines()
    return [*re.findall(r"^[A-Za-z][\w.-]*", "\n".join(lines), re.MULTILINE), "requests"]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, portrait: torch.Tensor) -> dict[str, Any]:
    """A start of ComfyUI with the pack, both its loader nodes, and a face."""
    base = tmp_path_factory.mktemp("base")
    faces = base / "models" / "insightface" / "models" / "antelopev2"
    faces.mkdir(parents=True)
    (base / "models" / "instantid").mkdir()
    write_tiny_adapter(base / "models" / "instantid" / "ip-adapter.bin", **ADAPTER)
    write_skin_detector(faces / "scrfd_10g_bnkps.onnx")
    write_iresnet(faces / "glintr100.onnx", widths=(8, 16, 24, 256))  # 26 MB in its last layer
    for name in ("1k3d68.onnx", "2d106det.onnx", "genderage.onnx"):
        (faces / name).write_bytes(b"never opened")
    torch.save(portrait, base.parent / f"{base.name}.pt")
    packages = tmp_path_factory.mktemp("site-packages")
    link_packages(packages, hosts_requirements())
    command = [sys.executable, "-S", "-c", START, str(ROOT), str(HOST), str(base), f"{base}.pt"]
    pack = sum((faces / name).stat().st_size for name in ("scrfd_10g_bnkps.onnx", "glintr100.onnx"))
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    return json.loads(subprocess.check_output(command, text=True, env=environment).splitlines()[-1]) | {"pack": pack}


def test_a_face_is_analysed_with_what_comfyui_ships_and_nothing_else(started) -> None:
    assert started["there"] == []
    assert started["drawn"] == [1, 1, 1]
    assert started["embedding"] == [1, 512]


def test_the_host_asks_for_what_the_pack_imports(real_host: Path) -> None:
    assert set(SHIPPED) <= {name.lower() for name in hosts_requirements()}


def test_the_pack_imports_what_it_needs(started) -> None:
    there = {"torch", "numpy", "comfy", *sys.stdlib_module_names}
    assert set(started["packages"]) - there <= {"PIL", "safetensors", "blake3", "xxhash"}
    assert "comfyui.nodes" in started["parts"]


@pytest.mark.parametrize("part", ["observe.doctor", "observe.profile", "pipelines", "cli", "download", "fused.kernel"])
def test_parts_that_may_never_be_asked_for_are_not_imported(started, part: str) -> None:
    assert not [name for name in started["parts"] if f"{name}.".startswith(f"{part}.")]


def test_an_import_opens_no_model(started) -> None:
    folders = (ROOT / "example_workflows" / name for name in ("input", "people"))  # copied for the examples
    assert set(started["import"]) - {path.name for folder in folders for path in folder.iterdir()} == set()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_loader_nodes_read_no_large_file_whole(started) -> None:
    adapter, faces = started["InstantIDModelLoader"], started["InstantIDFaceAnalysis"]
    # ComfyUI's own settings say whether faces are kept on disk.
    assert set(adapter["opened"]) - {"comfy.settings.json"} == {"ip-adapter.bin"}
    networks = {"glintr100.onnx", "scrfd_10g_bnkps.onnx"}
    assert set(faces["opened"]) - {"comfy.settings.json"} == networks, "three of the five networks are not needed"
    assert adapter["read"] < 2e6
    assert adapter["resident"] < 5e6
    # Networks below 64 MiB, such as these, are read into memory: a file that is shortened later kills nothing.
    assert faces["read"] < 1e6 + started["pack"]
    assert faces["resident"] < 10e6
    assert started["used"] > 40e6, "the half of the adapter that was used is in memory then, and is seen there"
