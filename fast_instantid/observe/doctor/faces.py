"""What would really run the face networks, and why it is not what was asked for."""

from __future__ import annotations

import ctypes
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .places import Places, pip
from .report import Finding
from .versions import installed

_MADE_FOR = {
    "CUDAExecutionProvider": "onnxruntime-gpu",
    "TensorrtExecutionProvider": "onnxruntime-gpu",
    "MIGraphXExecutionProvider": "onnxruntime-migraphx",
    "DmlExecutionProvider": "onnxruntime-directml",
    "OpenVINOExecutionProvider": "onnxruntime-openvino",
}
_BUILDS = re.compile(
    r"onnxruntime(-(gpu|directml|openvino|rocm|migraphx|silicon|training|qnn|cann|vitisai).*)?|ort(-gpu)?-nightly.*"
)
_LIBRARY = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "tensorrt"}
_USE_TORCH = {
    "diffusers": "or leave out --backend onnxruntime: torch needs none of this",
    "comfyui": "or choose 'auto' as provider, which is torch and needs none of this",
}


def backend(places: Places) -> Iterator[Finding]:
    """Loads a tiny network where the real ones would be loaded, and runs it."""
    if places.backend == "onnxruntime":
        yield from _onnxruntime(places.device or "cpu", _USE_TORCH[places.host])
    else:
        yield from _torch(places.device)


def several_onnxruntimes(places: Places) -> Iterator[Finding]:
    """All of them bring the one module ``onnxruntime``."""
    builds = {name: copies[0].version for name, copies in installed().items() if is_onnxruntime(name)}
    if len(builds) > 1:
        asked = places.backend == "onnxruntime"
        keep = next((name for name in builds if name != "onnxruntime"), "onnxruntime")
        yield Finding(
            "warning" if asked else "note",
            f"{len(builds)} builds of onnxruntime are installed: "
            + ", ".join(f"{name} {version}" for name, version in sorted(builds.items())),
            "They overwrite each other's files, and the one installed last wins: mostly the one for the CPU, without a "
            "word. " + ("" if asked else "Ours run in torch, which does not mind; other packs may be slow by it."),
            f"{pip('uninstall', *sorted(builds))}, then: {pip('install', keep)}",
        )


CHECKS = (backend, several_onnxruntimes)


def is_onnxruntime(name: str) -> bool:
    """Whether a distribution brings the module ``onnxruntime``."""
    return _BUILDS.fullmatch(name) is not None


def _torch(device: str | None) -> Iterator[Finding]:
    import torch

    from ...errors import BackendError
    from ...placement import Placement

    try:
        placed = Placement.resolve(device).device
    except BackendError as error:
        yield Finding("broken", str(error), "Face networks asked to run there are not loaded.", "see Machine above")
        return
    try:
        picture, weight = torch.zeros(1, 3, 8, 8, device=placed), torch.zeros(4, 3, 3, 3, device=placed)
        torch.nn.functional.conv2d(picture, weight).cpu()
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        yield Finding(
            "broken",
            f"the face networks would run in torch on {placed}, which fails: {reason}",
            "A convolution of a few numbers was tried there.",
            "free memory there, or see Machine above; meanwhile, run them on cpu",
        )
        return
    yield Finding("ok", f"the face networks run in torch on {placed}")


def _onnxruntime(device: str, use_torch: str) -> Iterator[Finding]:
    import numpy as np

    from ...errors import BackendError
    from ...faces.onnx.network import OnnxRuntimeNetwork

    try:
        with tempfile.TemporaryDirectory() as folder:
            network = OnnxRuntimeNetwork(_write_tiny_network(Path(folder) / "tiny.onnx"), device)
            network.run(np.zeros((1, 8, 8, 3), np.uint8), 0.0, 1.0)
    except ImportError as error:
        why, do = _explained(device, use_torch)
        found = (
            f"the face networks cannot run in onnxruntime: {error.name or error} is not installed or cannot be loaded"
        )
        yield Finding("broken", found, "The backend needs the packages onnx and onnxruntime. " + why, do)
        return
    except BackendError as error:
        why, do = _explained(device, use_torch)
        yield Finding("broken", f"the face networks cannot run in onnxruntime on {device}: {error}", why, do)
        return
    yield Finding("ok", f"the face networks run in {network.backend}; a tiny one was tried")
    import torch

    if network.on_cpu and torch.cuda.is_available():
        yield Finding(
            "note",
            "onnxruntime runs them on the CPU, although there is a GPU",
            "That is what was asked for.",
            f"name the GPU as device, {use_torch}, and takes the GPU by itself",
        )


def _write_tiny_network(path: Path) -> Path:
    """``(N, 3, 8, 8)`` in, the same out: all that it takes to load a provider."""
    from onnx import TensorProto, helper, save  # the backend needs this package too

    def picture(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8])

    graph = helper.make_graph([helper.make_node("Relu", ["in"], ["out"])], "tiny", [picture("in")], [picture("out")])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6), str(path))
    return path


def _explained(device: str, use_torch: str) -> tuple[str, str]:
    """Why onnxruntime has not got the provider of ``device``, and what to do."""
    import torch

    from ...faces.onnx.network import PROVIDERS

    builds = sorted(name for name in installed() if is_onnxruntime(name))
    provider = PROVIDERS.get(device.partition(":")[0].lower(), device)
    if provider == "ROCMExecutionProvider":
        return (
            "onnxruntime has no provider for ROCm any more: it ended with ROCm 7.1, and MIGraphX is its successor.",
            f"--device migraphx with the build onnxruntime-migraphx, {use_torch} and runs on AMD's GPUs",
        )
    build = _MADE_FOR.get(provider)
    onnx = () if "onnx" in installed() else ("onnx",)
    if not builds:
        return "", f"{pip('install', *onnx, build or 'onnxruntime')}, {use_torch}"
    if build is not None and builds != [build] and (build not in builds or len(builds) > 1):
        return (
            f"That provider is in the build {build}; installed: {', '.join(builds)}.",
            f"{pip('uninstall', *builds)}, then: {pip('install', *onnx, build)}, {use_torch}",
        )
    if provider in _LIBRARY and (reason := _library_error(_LIBRARY[provider])):
        return (
            f"{reason}{cuda_versions(reason, torch.version.cuda)}",
            f"install that version of CUDA and cuDNN, {use_torch}",
        )
    if onnx:
        return "", f"{pip('install onnx')}, {use_torch}"
    return "A tiny network was tried there.", f"see the message of onnxruntime, {use_torch}"


def _library_error(provider: str) -> str:
    """What the system says when it loads the library of a provider; empty where that works."""
    import onnxruntime

    name = (
        f"onnxruntime_providers_{provider}.dll"
        if sys.platform == "win32"
        else f"libonnxruntime_providers_{provider}.so"
    )
    library = Path(onnxruntime.__file__).parent / "capi" / name
    if not library.is_file():
        return f"Its library {library} is missing."
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return f"The system cannot load its library: {error}."
    return ""


def cuda_versions(reason: str, cuda: str | None) -> str:
    """A sentence where a library of another CUDA than torch's is missed; else nothing."""
    wanted = re.search(r"lib(?:cublas|cublasLt|cudart|cufft|curand)\.so\.(\d+)", reason)
    if wanted is None or cuda is None or cuda.split(".")[0] == wanted[1]:
        return ""
    return f" This onnxruntime was built for CUDA {wanted[1]}, and torch brings CUDA {cuda}."
