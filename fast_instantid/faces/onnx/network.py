"""A face network that can be run: the same few lines of use for torch and for onnxruntime."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

from ...errors import BackendError, ModelFileError
from ...placement import Placement
from ...recorder import stage
from ...weights import fingerprint
from .graph import Graph
from .module import check_operators, to_module
from .onednn import has_onednn, use_onednn

if TYPE_CHECKING:
    import onnxruntime

# What a device is called to what onnxruntime calls the provider that runs on it.
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
_INDEXED = {"cuda", "tensorrt", "rocm", "migraphx", "directml"}  # several of them can be in one machine


class Network(Protocol):
    """What detector and recogniser need of a backend."""

    backend: str
    """Backend and device or provider really in use, such as ``"torch (cuda:0)"``."""
    on_cpu: bool

    @property
    def fingerprint(self) -> str:
        """Identifies the results: the content of the file that was opened, and the kind of arithmetic that runs it."""
        ...

    def run(self, images: np.ndarray, mean: float, scale: float) -> list[np.ndarray]:
        """Run a batch.

        Args:
            images: ``(N, H, W, 3)`` uint8 RGB.
            mean, scale: the network sees ``(images - mean) * scale``, in float32.

        Returns:
            the outputs in the file's order, float32.
        """
        ...


def load_network(
    graph: Graph, backend: str, device: str | torch.device | None, dtype: str | torch.dtype = torch.float32
) -> Network:
    """A network on ``backend`` ("torch" or "onnxruntime").

    Args:
        dtype: what torch computes in; onnxruntime computes in that of the file.

    Raises:
        BackendError: an unknown backend, one that is not installed, a device or provider that is not there, or a dtype
            that the backend cannot compute in.
        ModelFileError: an operator that the torch backend does not know.
    """
    if backend == "torch":
        placement = Placement.resolve(device, dtype)
        return TorchNetwork(graph, placement.device, placement.dtype)
    if backend == "onnxruntime":
        if Placement.resolve("cpu", dtype).dtype != torch.float32:
            raise BackendError(
                f"face backend 'onnxruntime' computes in the dtype of the file: {dtype} needs backend 'torch'"
            )
        return OnnxRuntimeNetwork(graph.path, str(device or "cpu"))
    raise BackendError(f"face backend {backend!r} is not known: choose 'torch' or 'onnxruntime'")


class TorchNetwork:
    """The network as a torch module, channels-last; on a CPU with its weights packed (packed.py).

    It is loaded when it first runs. Where all faces are known already, or only keypoints are wanted, some never are.

    Args:
        dtype: of weights and computation. What goes in is scaled in fp32, and what comes out is fp32, whatever it is.
    """

    def __init__(self, graph: Graph, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        check_operators(graph)
        self.device = device
        self.dtype = dtype
        approximate = "" if dtype == torch.float32 else str(dtype).removeprefix("torch.")
        self.backend = f"torch ({device}{approximate and f', {approximate}'})"
        self.on_cpu = device.type == "cpu"
        self._approximate = approximate
        self._packs = self.on_cpu and has_onednn(dtype)
        self._graph = graph
        self._loading = threading.Lock()
        self._module: nn.Module | None = None

    @property
    def fingerprint(self) -> str:
        """See :class:`Network`."""
        suffix = "/packed" if self._packs else ""
        suffix += f"/{self._approximate}" if self._approximate else ""
        return f"{self._graph.fingerprint}/torch/{self.device.type}{suffix}"

    @property
    def module(self) -> nn.Module:
        """The loaded network.

        Raises:
            ModelFileError: the nodes of the file do not fit together.
        """
        with self._loading:
            if self._module is None:
                with stage("load network"):
                    module = to_module(self._graph).to(self.dtype)
                    if self._packs:
                        self._module = self.place(use_onednn(module))
                    else:
                        self._module = self.place(module.to(memory_format=torch.channels_last))  # pyright: ignore[reportCallIssue]
            return self._module

    def place(self, module: nn.Module) -> nn.Module:
        """Where the weights are kept: on the device, from now on."""
        return module.to(self.device)

    def run(self, images: np.ndarray, mean: float, scale: float) -> list[np.ndarray]:
        module = self.module
        device = next(module.parameters()).device  # whoever ``place`` left the weights to may have moved them
        with stage("network", nbytes=images.nbytes), torch.inference_mode(), _exact_float32(device):
            batch = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)  # channels-last as it lies
            outputs = module(batch.float().sub_(mean).mul_(scale).to(self.dtype))
            return [output.float().cpu().numpy() for output in outputs]


class OnnxRuntimeNetwork:
    """The network in an onnxruntime session on exactly the provider asked for."""

    def __init__(self, path: Path, device: str) -> None:
        self.provider, index = _provider(device)
        self.backend = f"onnxruntime ({self.provider}{'' if index is None else f', device {index}'})"
        self.on_cpu = self.provider == PROVIDERS["cpu"]
        with stage("load network"):
            self.fingerprint = f"{fingerprint(path)}/onnxruntime/{self.provider}"
            self._session = _session(path, self.provider, {} if index is None else {"device_id": index})
        self._input = self._session.get_inputs()[0].name

    def run(self, images: np.ndarray, mean: float, scale: float) -> list[np.ndarray]:
        batch = (images.transpose(0, 3, 1, 2).astype(np.float32, order="C") - np.float32(mean)) * np.float32(scale)
        with stage("network", nbytes=images.nbytes):
            return self._session.run(None, {self._input: batch})  # pyright: ignore[reportReturnType]


_precision_lock = threading.Lock()


@contextmanager
def _exact_float32(device: torch.device) -> Generator[None]:
    """No TF32 on CUDA: it would move boxes and embeddings by 1e-3, and with them the noise that is seeded by the sum of
    an embedding. The setting is one for the whole process, so one thread at a time has it."""
    if device.type != "cuda":
        yield
        return
    with _precision_lock:
        settings = _precision_settings()
        before = [getattr(owner, name) for owner, name, _ in settings]
        try:
            for owner, name, exact in settings:
                setattr(owner, name, exact)
            yield
        finally:
            for (owner, name, _), value in zip(settings, before, strict=True):
                setattr(owner, name, value)


def _precision_settings() -> list[tuple[Any, str, Any]]:
    """Where torch keeps it, and what means exact. The old names may not be touched where the new ones are in use."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):
        return [(matmul, "fp32_precision", "ieee"), (cudnn.conv, "fp32_precision", "ieee")]
    return [(matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]


def _provider(device: str) -> tuple[str, int | None]:
    """The provider, and the index of the device if one was named, of ``"cuda:1"``."""
    name, _, index = device.partition(":")
    provider = PROVIDERS.get(name.lower(), name)
    if provider not in PROVIDERS.values():
        raise BackendError(f"onnxruntime has no provider for device {device!r}: choose one of {', '.join(PROVIDERS)}")
    if not index:
        return provider, None
    if not index.isdecimal() or name.lower() not in _INDEXED:
        raise BackendError(f"device {device!r}: onnxruntime takes an index only for {', '.join(sorted(_INDEXED))}")
    return provider, int(index)


def _session(path: Path, provider: str, settings: dict[str, int]) -> onnxruntime.InferenceSession:
    """A session that runs any batch size, or an error where onnxruntime would quietly fall back to the CPU."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"face backend 'onnxruntime' needs the package {error.name!r}: pip install onnx onnxruntime (or the "
            f"build of onnxruntime for your GPU, and only that), or use torch, which needs neither"
        ) from error
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise BackendError(
            f"{provider} is not in this onnxruntime {onnxruntime.__version__}, which has {', '.join(available)}: "
            f"install the onnxruntime package made for it (and only that one), or use torch"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Each session has threads of its own. Spinning on after a run, the detector's would take the cores from the
    # recogniser; "python -m benchmarks faces" shows what that costs insightface.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source: str | bytes = str(path)
    model: Any = onnx.load(source, load_external_data=False)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    if batch.dim_value == 1:
        # SCRFD was exported with its batch labelled 1, though nothing in the graph depends on it.
        batch.dim_param = "batch"
        source = model.SerializeToString()
    del model
    try:
        session = onnxruntime.InferenceSession(source, options, providers=[(provider, settings)])
    except Exception as error:  # onnxruntime's own exceptions share no base but this
        raise ModelFileError(f"{path}: onnxruntime cannot load it: {error}") from error
    if session.get_providers()[0] != provider:
        raise BackendError(
            f"{provider} was asked for, but onnxruntime fell back to {session.get_providers()[0]}: its libraries could "
            f"not be loaded; see the onnxruntime message above, or use torch"
        )
    return session
