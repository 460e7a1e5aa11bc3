"""Where ComfyUI keeps the model files, and what we make of them."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from pathlib import Path, PurePosixPath

import comfy.model_management
import folder_paths
import torch

from ..cache import shared_cache
from ..errors import BackendError, ModelFileError
from ..faces import FaceAnalyzer
from ..faces.detector import Detector
from ..faces.onnx.network import TorchNetwork
from ..faces.pack import NEEDED, Pack, look_for_pack
from ..faces.recognizer import Recognizer
from ..weights import file_version
from .memory import ManagedAdapter, ManagedNetwork

logger = logging.getLogger("fast_instantid")

_ONNXRUNTIME = "onnxruntime "
_ONNXRUNTIME_DEVICES = ("CPU", "CUDA", "TensorRT", "ROCm", "MIGraphX", "CoreML", "DirectML", "OpenVINO")
_DEVICE_TYPES = {"CPU": "cpu", "CUDA": "cuda", "ROCM": "cuda", "CoreML": "mps"}  # ROCm builds of torch say "cuda" too
PROVIDERS = [*_DEVICE_TYPES, "auto", *(_ONNXRUNTIME + name for name in _ONNXRUNTIME_DEVICES)]
"""The reference's four, which now name the device that torch runs on; ComfyUI's own device, whichever that is; and what
onnxruntime can run on."""

_analyzers: dict[tuple[str, ...], FaceAnalyzer] = {}  # by their files, and where they run
_lock = threading.Lock()


def register_folders() -> None:
    """Tell ComfyUI of ``models/instantid`` and ``models/insightface``, beside folders of extra_model_paths.yaml."""
    for name, extensions in (("instantid", folder_paths.supported_pt_extensions), ("insightface", {".onnx"})):
        paths, known = folder_paths.folder_names_and_paths.get(name, ([], set()))
        default = os.path.join(folder_paths.models_dir, name)
        others = [path for path in paths if path != default]
        with suppress(OSError):
            os.makedirs(default, exist_ok=True)  # for people to find it
        # Folders that come from extra_model_paths.yaml alone know of no extensions.
        folder_paths.folder_names_and_paths[name] = ([*others, default], known or extensions)


def adapter_path(name: str) -> Path:
    """The adapter file that a workflow calls ``name``, in whichever folder it lies here.

    Raises:
        ModelFileError: there is none, or there are several; the message says where it was looked for.
    """
    name = str(PurePosixPath(name.replace("\\", "/")))  # workflows made on Windows
    present = folder_paths.get_filename_list("instantid")
    same_name = [file for file in present if PurePosixPath(file.replace("\\", "/")).name == PurePosixPath(name).name]
    path = folder_paths.get_full_path("instantid", name)
    if path is None and len(same_name) == 1:
        path = folder_paths.get_full_path("instantid", same_name[0])
    if path is not None:
        return Path(path)
    looked = ", ".join(folder_paths.get_folder_paths("instantid"))
    found = f"there are {', '.join(present)}" if present else "no model file there"
    raise ModelFileError(
        f"InstantID's adapter {name!r} is not in {looked} ({found}). Put ip-adapter.bin (1.69 GB, from "
        "huggingface.co/InstantX/InstantID) there, press R in the browser, and choose it in the node"
    )


def load_adapter(name: str) -> ManagedAdapter:
    """Open an adapter file.

    Raises:
        ModelFileError: missing, damaged, or another kind of file, which the message names.
    """
    return ManagedAdapter.load(adapter_path(name), device="cpu")


def load_analyzer(provider: str) -> FaceAnalyzer:
    """:func:`analyzer_of` the face networks in ComfyUI's folders.

    Raises:
        ModelFileError: no model pack; the message says where it was looked for.
        BackendError: onnxruntime or its provider is not there.
    """
    return analyzer_of(find_face_pack(), provider)


def analyzer_of(pack: Pack, provider: str) -> FaceAnalyzer:
    """Face analysis as ``provider``, one of :data:`PROVIDERS`, says; loaded once for all nodes and workflows.

    Raises:
        BackendError: onnxruntime or its provider is not there.
    """
    backend, device = backend_of(provider)
    key = (backend, str(device), file_version(pack.detector.path), file_version(pack.recognizer.path))
    with _lock:
        if key not in _analyzers:
            try:
                _analyzers[key] = _load(pack, backend, device)
            except BackendError as error:
                raise BackendError(
                    f"InstantID Face Analysis cannot run on {provider!r}: {error}. That is 'auto'"
                ) from error
            logger.info("face analysis with %s on %s", pack.folder, _analyzers[key].backend)
        return _analyzers[key]


def release() -> None:
    """Let go of face networks, and of faces and identities that were computed."""
    with _lock:
        _analyzers.clear()
    shared_cache().clear()


def _load(pack: Pack, backend: str, device: str | torch.device) -> FaceAnalyzer:
    if isinstance(device, str):
        return FaceAnalyzer.load(pack.folder, backend, device)
    network = TorchNetwork if device.type == "cpu" else ManagedNetwork
    detector = Detector(network(pack.detector, device), pack.detector)
    return FaceAnalyzer(detector, Recognizer(network(pack.recognizer, device), pack.recognizer))


def find_face_pack() -> Pack:
    """The face networks in ComfyUI's folders.

    Raises:
        ModelFileError: there are none; the message says where they were looked for, and what is missing.
    """
    problems: list[str] = []
    # The usual folder first: in others, packs keep networks for other purposes.
    for folder in reversed(folder_paths.get_folder_paths("insightface")):
        found = look_for_pack(folder)
        if isinstance(found, Pack):
            found.warn()
            return found
        problems.append(found)
    destination = Path(folder_paths.models_dir, "insightface", "models")
    raise ModelFileError(
        f"InstantID's face models were not found. {'. '.join(problems)}. Needed are {NEEDED}: download them ("
        f"huggingface.co/DIAMONIK7777/antelopev2, or antelopev2.zip, unpacked) into {destination / 'antelopev2'}"
    )


def backend_of(provider: str) -> tuple[str, str | torch.device]:
    """What runs face networks as ``provider`` says, and where: "onnxruntime" and a name, or "torch" and its device."""
    if provider.startswith(_ONNXRUNTIME):
        return "onnxruntime", provider.removeprefix(_ONNXRUNTIME).lower()
    device = comfy.model_management.get_torch_device()
    wanted = _DEVICE_TYPES.get(provider, device.type)
    if wanted == "cpu":
        return "torch", torch.device("cpu")
    if wanted != device.type:
        logger.warning(
            "InstantID Face Analysis: there is no %s here, so faces are analysed on %s, as everything in this ComfyUI. "
            "Choose 'auto' there, and this is not said again",
            provider,
            device,
        )
    return "torch", device
