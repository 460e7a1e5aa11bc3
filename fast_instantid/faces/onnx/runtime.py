"""Face networks in onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from ...errors import BackendError, ModelFileError
from ...placement import is_out_of_memory
from ...recorder import stage
from ...sources import no_telemetry
from .first_run import first_run
from .graph import Graph
from .module import to_module, unknown_operators
from .numbers import Reduction, results_of

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
            shape = (1, 3, *(side or 640 for side in graph.inputs[0].shape[2:]))
            self._session = _session(graph, self.provider, settings, partial(self._bound, shape))
            graph.version.check_mapping()
        self._input = self._session.get_inputs()[0].name

    def result_id(self, lasting: bool = True) -> str:
        """Identifies the results of equal input, as :meth:`.TorchNetwork.result_id`."""
        return f"{self._graph.fingerprint if lasting else self._graph.version}/onnxruntime/{self.provider}"

    @cached_property
    def on_the_cpu(self) -> OnnxRuntimeNetwork:
        """The same network on the CPU."""
        return OnnxRuntimeNetwork(self._graph, "cpu")

    def run(self, images: torch.Tensor, mean: float, scale: float, reduce: Reduction | None = None) -> list[np.ndarray]:
        """Run a batch, as ``TorchNetwork.run`` does."""
        batch = (images.permute(0, 3, 1, 2).float().contiguous().numpy() - np.float32(mean)) * np.float32(scale)
        with stage("network", nbytes=images.nbytes):
            self._bound(batch.shape)
            try:
                outputs: list[Any] = self._session.run(None, {self._input: batch})  # pyright: ignore[reportAssignmentType]
            except Exception as error:  # onnxruntime's exceptions share no other base
                if is_out_of_memory(error):
                    raise
                raise ModelFileError(f"{self._graph.path}: onnxruntime cannot run it: {str(error)[:300]}") from error
            return results_of([*map(torch.from_numpy, outputs)], reduce, self._graph.path, self.backend)

    def _bound(self, shape: tuple[int, ...]) -> None:
        """Check a run as :func:`first_run` does, by our own module without data, if that knows all operators."""
        if shape not in self._has_run and self._shapes:
            first_run(self._shapes, self._graph, torch.empty(shape, device="meta"))
        self._has_run.add(shape)

    @cached_property
    def _shapes(self) -> fx.GraphModule | None:
        return None if unknown_operators(self._graph) else to_module(self._graph).to("meta")


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
