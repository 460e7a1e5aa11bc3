"""Runnable face networks, with one interface for torch and onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import fx

from ...errors import BackendError, ModelFileError
from ...locks import fork_safe_lock
from ...placement import Placement, is_out_of_memory, thread_defaults
from ...recorder import stage
from ...sources import no_telemetry
from ...weights import Known
from .first_run import first_run
from .graph import Graph
from .module import check_operators, to_module, unknown_operators
from .onednn import has_onednn, use_onednn

if TYPE_CHECKING:
    import onnxruntime

# Name of a device -> onnxruntime's provider for it.
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
_INDEXED = {"cuda", "tensorrt", "rocm", "migraphx", "directml"}  # a machine can have several of them


def load_network(
    graph: Graph, backend: str, device: str | torch.device | None, dtype: str | torch.dtype = torch.float32
) -> TorchNetwork | OnnxRuntimeNetwork:
    """Make a network runnable.

    Args:
        backend: "torch" or "onnxruntime".
        dtype: of the computation in torch; onnxruntime computes in that of the file.

    Raises:
        BackendError: the backend, device or provider is unknown or missing, or cannot compute in ``dtype``.
        ModelFileError: the torch backend does not know an operator, or a weight is NaN or infinite.
    """
    if backend == "torch":
        placement = Placement.resolve(device, dtype)
        return TorchNetwork(graph, placement.device, placement.dtype)
    if backend == "onnxruntime":
        if Placement.resolve("cpu", dtype).dtype != torch.float32:
            raise BackendError(
                f"face backend 'onnxruntime' computes in the dtype of the file: {dtype} needs backend 'torch'"
            )
        check_weights(graph)
        return OnnxRuntimeNetwork(graph, str(device or "cpu"))
    raise BackendError(f"face backend {backend!r} is not known: choose 'torch' or 'onnxruntime'")


class TorchNetwork:
    """The network as a torch module, channels-last; on a CPU in oneDNN's layout (onednn.py).

    It is loaded on first use: known faces need no network, and keypoints alone no recogniser.

    Args:
        dtype: of weights and computation. Input is scaled in fp32, and outputs are fp32, for any dtype.
    """

    def __init__(self, graph: Graph, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        if not isinstance(graph, Known):  # those were checked
            check_operators(graph)
        self.device = device
        self.dtype = dtype
        approximate = "" if dtype == torch.float32 else str(dtype).removeprefix("torch.")
        self.backend = f"torch ({device}{approximate and f', {approximate}'})"
        self.on_cpu = device.type == "cpu"
        self.pixel_device = device if device.type == "cuda" else torch.device("cpu")
        """Where pictures are scaled and faces aligned."""
        self._approximate = approximate
        self._uses_onednn = self.on_cpu and has_onednn(dtype)
        self._graph = graph
        self._loading = fork_safe_lock()
        self._module: fx.GraphModule | None = None
        self._has_run: set[torch.Size] = set()  # shapes of the input

    @property
    def result_id(self) -> str:
        """Identifies the results of equal input: the file's fingerprint, backend, device type and dtype."""
        suffix = "/onednn" if self._uses_onednn else ""
        suffix += f"/{self._approximate}" if self._approximate else ""
        return f"{self._graph.fingerprint}/torch/{self.device.type}{suffix}"

    @property
    def module(self) -> fx.GraphModule:
        """The loaded network.

        Raises:
            ModelFileError: the nodes of the file do not fit together, a weight is NaN or infinite, or the file was
                written to since it was opened.
        """
        with self._loading:
            if self._module is None:
                with stage("load network"), torch.device("cpu"):  # whatever torch's default device is
                    self._graph.version.check_mapping()
                    check_weights(self._graph)
                    fixed_size = None not in self._graph.inputs[0].shape[2:]
                    defers = self._uses_onednn and fixed_size and self.dtype == torch.float32
                    module = to_module(self._graph, defers).to(self.dtype)
                    self._graph.version.check_mapping()
                    if self._uses_onednn:
                        self._module = self.place(use_onednn(module, fixed_size))
                    else:
                        self._module = self.place(module.to(memory_format=torch.channels_last))  # pyright: ignore[reportCallIssue]
            return self._module

    def to(self, device: torch.device) -> TorchNetwork:
        """Return the network on another device, or itself; it is loaded on first use there."""
        return self if device == self.device else TorchNetwork(self._graph, device, self.dtype)

    def place(self, module: fx.GraphModule) -> fx.GraphModule:
        """Move the loaded module to where its weights are kept, the device, and return it."""
        return module.to(self.device)

    @cached_property
    def on_the_cpu(self) -> TorchNetwork:
        """The same network on the CPU, for when the device has no memory."""
        return TorchNetwork(self._graph, torch.device("cpu"), self.dtype)

    def run(self, images: torch.Tensor, mean: float, scale: float, reduce: Reduction | None = None) -> list[np.ndarray]:
        """Run a batch. Its results leave the device in one copy.

        Args:
            images: ``(N, H, W, 3)`` uint8 RGB, on any device.
            mean, scale: the network reads ``(images - mean) * scale``, in float32.
            reduce: makes the results of the outputs on the device, without waiting for it.

        Returns:
            the outputs in the file's order, float32, or what ``reduce`` makes of them.

        Raises:
            ModelFileError: NaN or infinity in the outputs.
        """
        module = self.module
        device = next((weight.device for weight in module.parameters()), self.device)  # ComfyUI may have moved them
        with (
            stage("network", nbytes=images.nbytes),
            thread_defaults(device),
            torch.inference_mode(),
            _exact_float32(device),
        ):
            batch = images.to(device).permute(0, 3, 1, 2)  # a view, channels-last
            batch = batch.float().sub_(mean).mul_(scale).to(self.dtype)
            if batch.shape in self._has_run:
                outputs = module(batch)
            else:
                outputs = first_run(module, self._graph, batch)
                try:
                    self._graph.version.check_mapping()  # it read weights
                except ModelFileError:
                    self._module = None
                    raise
                self._has_run.add(batch.shape)
            return _results(outputs, reduce, self._graph.path, self.backend)


class OnnxRuntimeNetwork:
    """The network in an onnxruntime session, on the requested provider and no other."""

    pixel_device = torch.device("cpu")

    def __init__(self, graph: Graph, device: str) -> None:
        name, _, index = device.partition(":")
        self.provider = PROVIDERS.get(name.lower(), name)
        if self.provider not in PROVIDERS.values():
            raise BackendError(
                f"onnxruntime has no provider for device {device!r}: choose one of {', '.join(PROVIDERS)}"
            )
        if index and (not index.isdecimal() or name.lower() not in _INDEXED):
            raise BackendError(f"device {device!r}: onnxruntime takes an index only for {', '.join(sorted(_INDEXED))}")
        settings = {"device_id": int(index)} if index else {}
        self.backend = f"onnxruntime ({self.provider}{f', device {int(index)}' if index else ''})"
        self.on_cpu = self.provider == PROVIDERS["cpu"]
        self._graph = graph
        self._has_run: set[tuple[int, ...]] = set()  # shapes of the input
        with stage("load network"):
            self.result_id = f"{graph.fingerprint}/onnxruntime/{self.provider}"
            shape = (1, 3, *(side or 640 for side in graph.inputs[0].shape[2:]))
            self._session = _session(graph, self.provider, settings, partial(self._bound, shape))
            graph.version.check_mapping()
        self._input = self._session.get_inputs()[0].name

    @cached_property
    def on_the_cpu(self) -> OnnxRuntimeNetwork:
        """As :attr:`TorchNetwork.on_the_cpu`."""
        return OnnxRuntimeNetwork(self._graph, "cpu")

    def run(self, images: torch.Tensor, mean: float, scale: float, reduce: Reduction | None = None) -> list[np.ndarray]:
        """Run a batch, as :meth:`TorchNetwork.run` does."""
        batch = (images.permute(0, 3, 1, 2).float().contiguous().numpy() - np.float32(mean)) * np.float32(scale)
        with stage("network", nbytes=images.nbytes):
            self._bound(batch.shape)
            try:
                outputs: list[Any] = self._session.run(None, {self._input: batch})  # pyright: ignore[reportAssignmentType]
            except Exception as error:  # onnxruntime's exceptions share no other base
                if is_out_of_memory(error):
                    raise
                raise ModelFileError(f"{self._graph.path}: onnxruntime cannot run it: {str(error)[:300]}") from error
            return _results([*map(torch.from_numpy, outputs)], reduce, self._graph.path, self.backend)

    def _bound(self, shape: tuple[int, ...]) -> None:
        """Check memory and time of a run by one of our own module without data, if that knows all operators.

        Raises:
            ModelFileError: see :func:`first_run`.
        """
        if shape not in self._has_run and self._shapes:
            first_run(self._shapes, self._graph, torch.empty(shape, device="meta"))
        self._has_run.add(shape)

    @cached_property
    def _shapes(self) -> fx.GraphModule | None:
        return None if unknown_operators(self._graph) else to_module(self._graph).to("meta")


def check_weights(graph: Graph) -> None:
    """Refuse NaN and infinity with a ModelFileError: infinity may vanish in a ReLU, and NaN in a comparison."""
    for name, weight in graph.initializers.items():
        if weight.dtype.kind == "f" and not np.isfinite(weight).all():
            raise ModelFileError(f"{graph.path}: its tensor {name!r} holds NaN or infinity; download it again")


def _results(outputs: Sequence[torch.Tensor], reduce: Reduction | None, path: Path, backend: str) -> list[np.ndarray]:
    """The outputs, or what is made of them, in one copy to the host; a ModelFileError if an output is not finite."""
    outputs = [output.float() for output in outputs]
    results = outputs if reduce is None else reduce(outputs)
    zero = torch.cat([output.reshape(-1) for output in outputs]).mul_(0).sum()  # NaN times 0, and infinity, are NaN
    numbers = torch.cat([zero.view(1), *(result.reshape(-1) for result in results)]).cpu().numpy()
    if numbers[0] != 0:
        raise ModelFileError(
            f"{path}: its results hold NaN or infinity on {backend}: download it again, or compute in float32"
        )
    parts = np.split(numbers[1:], np.cumsum([result.numel() for result in results])[:-1])
    return [part.reshape(result.shape) for part, result in zip(parts, results, strict=True)]


Network: TypeAlias = TorchNetwork | OnnxRuntimeNetwork
Reduction: TypeAlias = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]

_precision_lock = fork_safe_lock()


@contextmanager
def _exact_float32(device: torch.device) -> Generator[None]:
    """Disable TF32 on CUDA, which would move boxes and embeddings by 1e-3, and so the noise seeded by an embedding.

    torch has no such setting for one thread. Meanwhile, other threads' fp32 work runs exactly too, and slower."""
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
    """Owner, name and exact value of each setting; torch refuses the old names where the new ones are in use."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):
        return [(matmul, "fp32_precision", "ieee"), (cudnn.conv, "fp32_precision", "ieee")]
    return [(matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]


def _session(
    graph: Graph, provider: str, settings: dict[str, int], check: Callable[[], None]
) -> onnxruntime.InferenceSession:
    """A session that runs any batch size, after a check; an error where onnxruntime would fall back to the CPU."""
    no_telemetry()
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
    check()  # a session computes at once what is constant
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    # Each session has its own threads. If the detector's kept spinning after a run, they would take cores from the
    # recogniser; "python -m benchmarks faces" measures the cost for insightface.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = bytes(graph.content)
    try:
        model: Any = onnx.load_model_from_string(source)
        batch = model.graph.input[0].type.tensor_type.shape.dim[0]
        if batch.dim_value == 1:
            # SCRFD was exported with a batch of 1, though nothing in the graph depends on it.
            batch.dim_param = "batch"
            source = model.SerializeToString()
        del model
        session = onnxruntime.InferenceSession(source, options, providers=[(provider, settings)])
    except Exception as error:  # the exceptions of onnx and onnxruntime share no other base
        raise ModelFileError(f"{graph.path}: onnxruntime cannot load it: {str(error)[:300]}") from error
    if session.get_providers()[0] != provider:
        raise BackendError(
            f"{provider} was asked for, but onnxruntime fell back to {session.get_providers()[0]}: its libraries could "
            f"not be loaded; see the onnxruntime message above, or use torch"
        )
    return session
