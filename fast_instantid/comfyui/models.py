"""InstantID's models from ComfyUI's folders."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath

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
from ..identity.checkpoint import ADAPTER_NAMES
from ..locks import fork_safe_lock
from ..weights import file_version
from .memory import ManagedNetwork
from .settings import follow_settings

logger = logging.getLogger("fast_instantid")

_ONNXRUNTIME = "onnxruntime "
_ONNXRUNTIME_DEVICES = ("CPU", "CUDA", "TensorRT", "ROCm", "MIGraphX", "CoreML", "DirectML", "OpenVINO")
_DEVICE_TYPES = {"CPU": "cpu", "CUDA": "cuda", "ROCM": "cuda", "CoreML": "mps"}  # ROCm builds of torch say "cuda" too
PROVIDERS = [*_DEVICE_TYPES, "auto", *(_ONNXRUNTIME + name for name in _ONNXRUNTIME_DEVICES)]
"""The reference's four, which now name torch's device; "auto" for ComfyUI's device; and the devices of onnxruntime."""

PEOPLE, POSES = "instantid_people", "instantid_poses"
"""The host's names of the folders ``people`` and ``poses`` in ``models/instantid``."""

_analyzers: dict[tuple[object, ...], FaceAnalyzer] = {}  # by backend, device, file versions, threshold and sizes
_lock = fork_safe_lock()


def register_folders() -> None:
    """Register ``models/instantid``, those in it, and ``models/insightface``, beside extra_model_paths.yaml."""
    for name, folder, extensions in (
        ("instantid", ("instantid",), folder_paths.supported_pt_extensions),
        ("insightface", ("insightface",), {".onnx"}),
        (PEOPLE, ("instantid", "people"), {".safetensors"}),
        (POSES, ("instantid", "poses"), {".json"}),
    ):
        paths, known = folder_paths.folder_names_and_paths.get(name, ([], set()))
        default = os.path.join(folder_paths.models_dir, *folder)
        others = [path for path in paths if path != default]
        with suppress(OSError):
            os.makedirs(default, exist_ok=True)  # so that users find it
        # Folders that only extra_model_paths.yaml names have no extensions.
        folder_paths.folder_names_and_paths[name] = ([*others, default], known or extensions)


def adapter_names() -> list[str]:
    """Return the files below ``models/instantid`` without the people."""
    return [name for name in folder_paths.get_filename_list("instantid") if PureWindowsPath(name).parts[0] != "people"]


def adapter_path(name: str) -> Path:
    """Return the adapter file with a workflow's ``name``.

    Without such a file, it is the only one of that file name in another folder, else the only file that has one of the
    adapter's usual names, else the only file.

    Raises:
        ModelFileError: none, or several; the message lists them and the searched folders.
    """
    name = str(PurePosixPath(name.replace("\\", "/")))  # workflows made on Windows
    present = adapter_names()
    path = folder_paths.get_full_path("instantid", name)
    for wanted in ([PureWindowsPath(name).name], ADAPTER_NAMES, [PureWindowsPath(file).name for file in present]):
        fitting = [file for file in present if PureWindowsPath(file).name in wanted]
        if path is None and len(fitting) == 1:
            path = folder_paths.get_full_path("instantid", fitting[0])
        if path is not None:
            return Path(path)
        if fitting:  # which one, is for the user to say
            break
    looked = ", ".join(folder_paths.get_folder_paths("instantid"))
    found = f"there are {', '.join(present)}" if present else "no model file there"
    raise ModelFileError(
        f"InstantID's adapter {name!r} is not in {looked} ({found}). Put ip-adapter.bin (1.69 GB, from "
        "huggingface.co/InstantX/InstantID) there, press R in the browser, and choose it in the node"
    )


def analyzer_of(pack: Pack, provider: str, threshold: float = 0.5, sizes: Sequence[int] | None = None) -> FaceAnalyzer:
    """Return face analysis on one of :data:`PROVIDERS`, loaded once for all nodes and workflows.

    ``threshold`` and ``sizes`` are those of :meth:`FaceAnalyzer.load`.

    Raises:
        BackendError: onnxruntime or its provider is missing.
    """
    backend, device = backend_of(provider)
    versions = file_version(pack.detector.path), file_version(pack.recognizer.path)
    key = (backend, str(device), *versions, threshold, sizes and tuple(sizes))
    with _lock:
        if key not in _analyzers:
            try:
                if isinstance(device, str):
                    _analyzers[key] = FaceAnalyzer.load(pack.folder, backend, device, threshold=threshold, sizes=sizes)
                else:
                    network = TorchNetwork if device.type == "cpu" else ManagedNetwork
                    detector = Detector(network(pack.detector, device), pack.detector, threshold, sizes)
                    recognizer = Recognizer(network(pack.recognizer, device), pack.recognizer)
                    _analyzers[key] = FaceAnalyzer(detector, recognizer)
            except BackendError as error:
                raise BackendError(
                    f"InstantID Face Analysis cannot run on {provider!r}: {error}. That is 'auto'"
                ) from error
            logger.info("face analysis with %s on %s", pack.folder, _analyzers[key].backend)
        return _analyzers[key]


def release() -> None:
    """Drop all face networks, and all cached faces and identities."""
    with _lock:
        _analyzers.clear()
    shared_cache().clear()


def find_face_pack() -> Pack:
    """Find the face networks in ComfyUI's folders; a ModelFileError names the folders and the missing files."""
    follow_settings()
    problems: list[str] = []
    # The usual folder first: other packs keep networks for other purposes elsewhere.
    for folder in reversed(folder_paths.get_folder_paths("insightface")):
        found = look_for_pack(folder, shared_cache())
        if isinstance(found, Pack):
            found.warn(shared_cache())
            return found
        problems.append(found)
    destination = Path(folder_paths.models_dir, "insightface", "models")
    raise ModelFileError(
        f"InstantID's face models were not found. {'. '.join(problems)}. Needed are {NEEDED}: download them ("
        f"huggingface.co/DIAMONIK7777/antelopev2, or antelopev2.zip, unpacked) into {destination / 'antelopev2'}"
    )


def backend_of(provider: str) -> tuple[str, str | torch.device]:
    """Return backend and device of a provider: "onnxruntime" and a name, or "torch" and its device."""
    if provider.startswith(_ONNXRUNTIME):
        return "onnxruntime", provider.removeprefix(_ONNXRUNTIME).lower()
    device = comfy.model_management.get_torch_device()
    wanted = _DEVICE_TYPES.get(provider, device.type)
    if wanted == "cpu":
        return "torch", torch.device("cpu")
    if wanted != device.type:
        logger.warning(
            "InstantID Face Analysis: this ComfyUI does not run on %s; faces are analysed on %s. Choose 'auto' in the "
            "node to avoid this warning",
            provider,
            device,
        )
    return "torch", device
