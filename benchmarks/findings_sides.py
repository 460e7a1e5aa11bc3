"""Both sides of the findings in one ComfyUI: the same tiny networks, faces and adapter for the reference and for us."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import onnxruntime
import torch
from insightface.app import FaceAnalysis
from torch import Tensor

from benchmarks.step_host import Patched, StepHost
from benchmarks.step_variants import Packs
from examples.tiny_faces import write_landmark_net, write_tiny_pack
from fast_instantid import Cache, FaceAnalyzer
from fast_instantid.faces.onnx.network import TorchNetwork
from fast_instantid.identity.resampler import Resampler


@dataclass(frozen=True)
class Finding:
    """One number of each side, or of each way to do something."""

    issue: str
    """Of the report: "1" to "10", or the name of a section."""
    name: str
    unit: str
    """"count", "bytes", "seconds" or "" for words."""
    values: dict[str, float | str]


@dataclass(frozen=True)
class NetworkRun:
    """One run of a face network."""

    pictures: int
    side: int
    """In pixels: 640 of a detector, 112 of a recogniser."""


@dataclass
class Side:
    """A pack: its Apply InstantID, its adapter and its face networks."""

    name: str
    host: StepHost
    node: type
    adapter: Any
    faces: Any
    extract: Callable[..., Tensor | None]
    """Its ``extractFeatures(faces, image, extract_kps)``."""
    resampler_passes: Callable[[], Any]
    """A context in which a list grows by one with each pass through the resampler."""

    def apply(self, image: Tensor, **inputs: Any) -> Patched:
        """What Apply InstantID makes of model and prompts."""
        host = self.host
        inputs = {
            "model": host.model,
            "positive": host.positive,
            "negative": host.negative,
            "control_net": host.control_net,
            "start_at": 0.0,
            "end_at": 1.0,
            "weight": 0.8,
        } | inputs
        node = self.node()
        return Patched(*node.apply_instantid(instantid=self.adapter, insightface=self.faces, image=image, **inputs))


class Sides:
    """The reference and ours.

    Args:
        checkout: of cubiq/ComfyUI_InstantID; None for the re-implementation of its algorithm.
        folder: for the face networks.
    """

    def __init__(self, host: StepHost, checkout: Path | None, folder: Path) -> None:
        self.host, self._checkout = host, checkout
        self.pack = write_tiny_pack(folder)
        write_landmark_net(folder / "1k3d68.onnx", 3309, width=4)
        write_landmark_net(folder / "2d106det.onnx", 212, width=4)
        write_landmark_net(folder / "genderage.onnx", 3, width=4, size=96)
        self.packs = Packs(host, checkout)
        self.analysis = FaceAnalysis(name=str(folder), providers=["CPUExecutionProvider"])
        self.analysis.prepare(ctx_id=-1, det_size=(640, 640))

    @cached_property
    def reference(self) -> Side:
        if self._checkout is None:
            from benchmarks import findings_reference as module

            adapter, extract = module.adapter(self.packs.adapter_weights), module.extract_features
        else:
            module: ModuleType = self.packs.reference
            adapter, extract = self.packs.reference_adapter, module.extractFeatures
        return Side(
            "reference",
            self.host,
            module.ApplyInstantID,
            adapter,
            self.analysis,
            extract,
            lambda: _hooked(adapter.image_proj_model),
        )

    @cached_property
    def ours(self) -> Side:
        from fast_instantid.comfyui.nodes import ApplyInstantID, extractFeatures

        analyzer = FaceAnalyzer.load(self.pack, device="cpu", cache=Cache())
        return Side(
            "ours",
            self.host,
            ApplyInstantID,
            self.packs.our_adapter,
            analyzer,
            extractFeatures,
            _resampler_calls,
        )

    @property
    def both(self) -> tuple[Side, Side]:
        return self.reference, self.ours


def medians(
    ways: dict[str, Callable[[], object]], runs: int, calls: int = 1, pause: float = 0.0
) -> dict[str, float | str]:
    """Seconds of one call of each way, taken in turn, A B C A B C, after a warm-up of each.

    Args:
        calls: in a row, of which the mean is taken.
        pause: in seconds, before them.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs + 1):
        for name, way in ways.items():
            time.sleep(pause)
            start = time.perf_counter()
            for _ in range(calls):
                way()
            if run:
                times[name].append((time.perf_counter() - start) / calls)
    return {name: round(statistics.median(found), 9) for name, found in times.items()}


@contextmanager
def network_runs() -> Iterator[list[NetworkRun]]:
    """Runs of face networks in the block, whichever side's."""
    runs: list[NetworkRun] = []
    of_onnxruntime, of_torch = onnxruntime.InferenceSession.run, TorchNetwork.run

    def run_session(session: Any, names: Any, feed: dict[str, Any], *options: Any) -> Any:
        [batch] = feed.values()
        runs.append(NetworkRun(len(batch), batch.shape[-1]))
        return of_onnxruntime(session, names, feed, *options)

    def run_module(network: Any, images: Any, *options: Any) -> Any:
        runs.append(NetworkRun(len(images), images.shape[2]))
        return of_torch(network, images, *options)

    with (
        patch.object(onnxruntime.InferenceSession, "run", run_session),
        patch.object(TorchNetwork, "run", run_module),
    ):
        yield runs


@contextmanager
def _hooked(module: torch.nn.Module) -> Iterator[list[int]]:
    passes: list[int] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    try:
        yield passes
    finally:
        handle.remove()


@contextmanager
def _resampler_calls() -> Iterator[list[int]]:
    passes: list[int] = []
    forward = Resampler.forward

    def counted(resampler: Resampler, embeddings: Tensor) -> Tensor:
        passes.append(len(embeddings))
        return forward(resampler, embeddings)

    with patch.object(Resampler, "forward", counted):
        yield passes
