"""Runnable face networks, with one interface for torch and onnxruntime."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import fx

from ...errors import BackendError, ModelFileError
from ...locks import fork_safe_lock
from ...placement import Placement, has_onednn, thread_defaults
from ...recorder import stage
from ...weights import Known
from .first_run import first_run
from .graph import Graph
from .module import check_operators, to_module
from .numbers import Reduction, check_weights, results_of
from .onednn import use_onednn
from .runtime import OnnxRuntimeNetwork


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
        self._approximate = "" if dtype == torch.float32 else str(dtype).removeprefix("torch.")
        self.backend = f"torch ({device}{self._approximate and f', {self._approximate}'})"
        self.on_cpu = device.type == "cpu"
        self.pixel_device = device if device.type == "cuda" else torch.device("cpu")
        """Where pictures are scaled and faces aligned."""
        self._uses_onednn = self.on_cpu and has_onednn(dtype)
        self._graph = graph
        self._loading = fork_safe_lock()
        self._module: fx.GraphModule | None = None
        self._has_run: set[torch.Size] = set()  # shapes of the input

    def result_id(self, lasting: bool = True) -> str:
        """Identifies the results of equal input: the file, backend, device type and dtype.

        Args:
            lasting: by the file's content, which is read for that; else by its version, for this process alone.
        """
        suffix = "/onednn" if self._uses_onednn else ""
        suffix += f"/{self._approximate}" if self._approximate else ""
        return f"{self._graph.fingerprint if lasting else self._graph.version}/torch/{self.device.type}{suffix}"

    @property
    def module(self) -> fx.GraphModule:
        """The loaded network.

        Raises:
            ModelFileError: the nodes of the file do not fit together, a weight is NaN or infinite, or the file was
                written to since it was opened.
        """
        with self._loading:
            if self._module is None:
                with stage("load network"):
                    self._graph.version.check_mapping()
                    check_weights(self._graph)
                    fixed_size = None not in self._graph.inputs[0].shape[2:]
                    defers = self._uses_onednn and fixed_size and self.dtype == torch.float32
                    with torch.device("cpu"):  # whatever torch's default device is
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
            return results_of(outputs, reduce, self._graph.path, self.backend)


Network: TypeAlias = TorchNetwork | OnnxRuntimeNetwork

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
