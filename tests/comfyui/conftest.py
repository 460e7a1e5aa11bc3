"""One suite, two hosts: a real ComfyUI where ``COMFYUI_PATH`` names a checkout, elsewhere the stand-in of this folder.

``REFERENCE_PATH`` and ``IPADAPTER_PATH`` name checkouts of cubiq's ComfyUI_InstantID and ComfyUI_IPAdapter_plus; what
needs them is skipped without.
"""

from __future__ import annotations

import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import tests  # before the host comes in sight: a checkout of ComfyUI has a package of the same name
from benchmarks.nodes.host import load_pack

assert tests
ROOT = Path(__file__).resolve().parent.parent.parent
REAL_HOST = "COMFYUI_PATH" in os.environ
HOST = Path(os.environ.get("COMFYUI_PATH", Path(__file__).parent / "standin")).resolve()
REFERENCE = os.environ.get("REFERENCE_PATH")
IPADAPTER = os.environ.get("IPADAPTER_PATH")
if not (HOST / "comfy").is_dir():
    raise pytest.UsageError(f"COMFYUI_PATH is {HOST}, where no ComfyUI is: give the folder that has main.py in it")

# The host fixes its devices and folders when it is imported, and tests import it while they are collected.
_base = tempfile.TemporaryDirectory(prefix="fast-instantid-comfyui-")
sys.path.insert(0, str(HOST))
from comfy.cli_args import args  # noqa: E402

args.cpu = True
args.base_directory = _base.name
os.makedirs(os.path.join(_base.name, "models"))
import folder_paths  # noqa: E402

from tests.comfyui import tiny  # noqa: E402


def pytest_report_collectionfinish() -> str:
    """After the collection: pytest asks only the outermost folder for its header."""

    def found(path: str | None, variable: str) -> str:
        return path or f"NOT found ({variable} is not set)"

    host = f"real, {_version()}, {HOST}" if REAL_HOST else "the stand-in (COMFYUI_PATH is not set)"
    return (
        f"ComfyUI: {host}; front end: {os.environ.get('FRONT_END_ROOT', 'the installed one')}; "
        f"reference pack: {found(REFERENCE, 'REFERENCE_PATH')}; IPAdapter_plus: {found(IPADAPTER, 'IPADAPTER_PATH')}"
    )


def _version() -> str:
    from comfyui_version import __version__

    return __version__


@pytest.fixture(scope="session")
def our_pack() -> ModuleType:
    """The repository, loaded as a custom node."""
    return load_pack(ROOT)


@pytest.fixture(scope="session")
def ours(our_pack: ModuleType) -> dict[str, type]:
    """Our nodes by id."""
    return our_pack.NODE_CLASS_MAPPINGS


@pytest.fixture(scope="session")
def real_host() -> Path:
    """The checkout of a real ComfyUI."""
    if not REAL_HOST:
        pytest.skip("needs a real ComfyUI: set COMFYUI_PATH to a checkout")
    return HOST


@pytest.fixture(scope="session")
def host_nodes(real_host: Path):
    """``host_nodes("nodes_freelunch", "FreeU_V2", **inputs)``: the outputs of one of the host's own nodes."""

    def execute(module: str, node_id: str, **inputs: Any) -> Any:
        node = getattr(import_module(f"comfy_extras.{module}"), node_id)
        if not hasattr(node, "execute"):  # of the first kind
            return tiny.call(node, **inputs)
        with torch.inference_mode():
            return node.execute(**inputs).args

    return execute


@pytest.fixture(scope="session")
def reference_pack(real_host: Path, face_pack: Path) -> ModuleType:
    """cubiq's ComfyUI_InstantID. It reads the folder of the face models when it is imported."""
    if REFERENCE is None:
        pytest.skip("needs the reference pack: set REFERENCE_PATH to a checkout of cubiq/ComfyUI_InstantID")
    return load_pack(Path(REFERENCE))


@pytest.fixture(scope="session")
def reference(reference_pack: ModuleType) -> dict[str, type]:
    """The reference's nodes by id."""
    return reference_pack.NODE_CLASS_MAPPINGS


@pytest.fixture(scope="session")
def ipadapter_pack(real_host: Path) -> ModuleType:
    """cubiq's ComfyUI_IPAdapter_plus."""
    if IPADAPTER is None:
        pytest.skip("needs IPAdapter_plus: set IPADAPTER_PATH to a checkout of cubiq/ComfyUI_IPAdapter_plus")
    return load_pack(Path(IPADAPTER))


@pytest.fixture(scope="session")
def face_pack(pack: Path) -> Path:
    """The face networks of the other tests, where the host's users keep them: ``models/insightface/models``."""
    folder = Path(folder_paths.models_dir) / "insightface" / "models" / "antelopev2"
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(pack)
    return folder


@pytest.fixture(scope="session")
def faces(face_pack: Path) -> Any:
    """insightface's own analysis of those networks. Both packs take it; what they make of it can then be compared."""
    from insightface.app import FaceAnalysis

    analysis = FaceAnalysis("antelopev2", root=str(face_pack.parent.parent), providers=["CPUExecutionProvider"])
    analysis.prepare(ctx_id=0, det_size=(640, 640))
    return analysis


@pytest.fixture(scope="session")
def adapter(ours: dict[str, type]) -> Any:
    """A tiny adapter, loaded by our loader node."""
    folder = Path(folder_paths.models_dir) / "instantid"
    folder.mkdir(exist_ok=True)
    (model,) = tiny.call(ours["InstantIDModelLoader"], instantid_file=tiny.adapter_file(folder).name)
    return model


@pytest.fixture(scope="session")
def portraits(astronaut: np.ndarray) -> torch.Tensor:
    """``(3, 512, 512, 3)`` float32 in 0..1: an IMAGE of one face, as it is, mirrored, and darker."""
    photo = torch.from_numpy(astronaut).float() / 255
    return torch.stack([photo, photo.flip(1), photo * 0.9])


@pytest.fixture(scope="session")
def portrait(portraits: torch.Tensor) -> torch.Tensor:
    """``(1, 512, 512, 3)``: an IMAGE of one face."""
    return portraits[:1]


@pytest.fixture
def model() -> Any:
    return tiny.tiny_model()


@pytest.fixture(scope="session")
def controlnet() -> Any:
    return tiny.tiny_controlnet()


@pytest.fixture(scope="session")
def positive() -> list[list[Any]]:
    return tiny.conditioning(seed=1)


@pytest.fixture(scope="session")
def negative() -> list[list[Any]]:
    return tiny.conditioning(seed=2)
