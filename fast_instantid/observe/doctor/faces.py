"""Checks of the backend that runs the face networks: a small network is loaded and run where they would run."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

from ...errors import BackendError, first_line
from ...faces.onnx.graph import read_graph
from ...faces.onnx.runtime import PROVIDERS, OnnxRuntimeNetwork
from ...miniature import files
from ...placement import Placement
from ..report import Finding
from .places import Places, pip
from .versions import installed

_MADE_FOR = dict.fromkeys(("CUDAExecutionProvider", "TensorrtExecutionProvider"), "onnxruntime-gpu") | {
    f"{name}ExecutionProvider": f"onnxruntime-{build}"
    for name, build in (("MIGraphX", "migraphx"), ("Dml", "directml"), ("OpenVINO", "openvino"))
}
_BUILDS = re.compile(r"onnxruntime(?!-extensions|-genai|-tools)(-.*)?|ort-.*nightly.*")


def backend(places: Places) -> Iterator[Finding]:
    """Run a small network where the face networks would run."""
    if places.backend == "onnxruntime":
        device = places.device or "cpu"
        try:
            network = OnnxRuntimeNetwork(read_graph(files().pack / "glintr100.onnx"), device)
            network.run(torch.zeros(1, 112, 112, 3, dtype=torch.uint8), 0.0, 1.0)
            yield Finding("ok", f"the face networks run in {network.backend}; the miniature's recogniser was tried")
        except BackendError as error:
            why, do = _explained(device)
            found = f"the face networks cannot run in onnxruntime on {device}: {error}"
            torch_instead = "--backend torch" if places.host == "diffusers" else "provider 'auto'"
            yield Finding("broken", found, why, f"{do}; or use torch, which needs none of this: {torch_instead}")
        return
    try:
        placed = Placement.resolve(places.device).device
        picture, weight = torch.zeros(1, 3, 8, 8, device=placed), torch.zeros(4, 3, 3, 3, device=placed)
        torch.nn.functional.conv2d(picture, weight).cpu()
        yield Finding("ok", f"the face networks run in torch on {placed}")
    except BackendError as error:
        yield Finding("broken", str(error), "The face networks cannot run there.", "see Machine above")
    except Exception as error:
        text = f"the face networks cannot run in torch on {places.device or 'the best device'}: {first_line(error)}"
        yield Finding("broken", text, "A small convolution was tried.", "free memory there, or run them on cpu")


def _explained(device: str) -> tuple[str, str]:
    """Say why onnxruntime lacks the provider of ``device``, and what to do."""
    builds = sorted(name for name in installed() if _BUILDS.fullmatch(name))
    provider = PROVIDERS.get(device.partition(":")[0].lower(), device)
    if provider == "ROCMExecutionProvider":
        why = "onnxruntime has no provider for ROCm any more: it ended with ROCm 7.1, and MIGraphX is its successor."
        return why, "use --device migraphx with the build onnxruntime-migraphx"
    build = _MADE_FOR.get(provider, "onnxruntime")
    needed = [*(() if "onnx" in installed() else ("onnx",)), *(() if builds else (build,))]
    if builds and provider in _MADE_FOR and builds != [build]:
        why = f"That provider is in the build {build}; installed: {', '.join(builds)}."
        return why, f"{pip('uninstall', *builds)}, then: {pip('install', build)}"
    if needed:
        return "The backend needs the packages onnx and onnxruntime.", pip("install", *needed)
    why = f"A small network was tried there. torch brings CUDA {torch.version.cuda}; onnxruntime may need another one."
    return why, "see the message of onnxruntime; install the CUDA and cuDNN that it was built for"
