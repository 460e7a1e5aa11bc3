"""Ways to take a sampling step. To measure another, add a function of ``Packs`` to ``VARIANTS``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.networks import as_our_adapter, random_adapter
from benchmarks.nodes.host import Host, Patched, call, compile_model, load_pack
from benchmarks.sizes import EMBEDDING_DIM, IDENTITY_TOKENS, WEIGHT


class Packs:
    """Both node packs in one host, each with the same adapter and the same face.

    Args:
        reference: a checkout of cubiq/ComfyUI_InstantID, or None.
    """

    def __init__(self, host: Host, reference: Path | None) -> None:
        self.host, self._reference_folder = host, reference
        self.faces = _OneFace(host.size.side)

    @cached_property
    def adapter_weights(self) -> dict[str, dict[str, Tensor]]:
        """Random weights in the layout of ``ip-adapter.bin``; 423 million numbers at full size."""
        return random_adapter(self.host.size, self.host.random)

    @cached_property
    def our_adapter(self) -> Any:
        """What our loader node returns."""
        return as_our_adapter(self.adapter_weights, self.host.device, self.host.dtype)

    @cached_property
    def reference(self) -> ModuleType:
        """The module of the reference pack with its nodes."""
        if self._reference_folder is None:
            raise RuntimeError("not measured: --reference names no checkout of cubiq/ComfyUI_InstantID")
        if importlib.util.find_spec("insightface") is None:  # it wants the name when it is imported, and here no more
            app = ModuleType("insightface.app")
            app.FaceAnalysis = None
            sys.modules |= {"insightface": ModuleType("insightface"), "insightface.app": app}
        pack = load_pack(self._reference_folder.resolve())
        return sys.modules[f"{pack.__name__}.InstantID"]

    @cached_property
    def reference_adapter(self) -> Any:
        """What the reference's loader node returns."""
        with self.host.device:  # or it would fill the weights with random numbers on the CPU first
            return self.reference.InstantID(
                self.adapter_weights,
                cross_attention_dim=self.host.size.resampler_dim,
                output_cross_attention_dim=self.host.size.token_width,
                clip_embeddings_dim=EMBEDDING_DIM,
                clip_extra_context_tokens=IDENTITY_TOKENS,
            )

    def apply(self, node: type, adapter: Any) -> Patched:
        """Model and prompts after a pack's Apply InstantID."""
        host = self.host
        inputs = {"instantid": adapter, "insightface": self.faces, "control_net": host.control_net}
        inputs |= {"model": host.model, "positive": host.positive, "negative": host.negative, "image": host.image}
        return Patched(*call(node, **inputs, start_at=0.0, end_at=1.0, weight=WEIGHT))


def plain(packs: Packs) -> Patched:
    """SDXL and a ControlNet with as many tokens as an IdentityNet, without a pack."""
    return packs.host.without_instantid(packs.host.positive)


def reference(packs: Packs) -> Patched:
    """The reference pack's Apply InstantID."""
    return packs.apply(packs.reference.ApplyInstantID, packs.reference_adapter)


def reference_without_syncs(packs: Packs) -> Patched:
    """The same, but its layers find the noise level on the CPU: what they cost where they do not wait for the GPU."""
    from comfy.patcher_extension import WrappersMP

    patched = reference(packs)
    kept: list[Tensor] = []

    def with_sigmas_on_cpu(run, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **more):
        if not kept:  # all steps that are measured have this noise level
            kept.append(transformer_options["sigmas"].cpu())
        options = {**transformer_options, "sigmas": kept[0]}
        return run(x, t, c_concat, c_crossattn, control, options, **more)

    patched.model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "benchmark", with_sigmas_on_cpu)
    return patched


def ours(packs: Packs) -> Patched:
    """Our Apply InstantID, with nothing kept from one step for the next."""
    from comfy.patcher_extension import WrappersMP

    patched = ours_with_caches(packs)
    patched.model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, "fast_instantid")
    return patched


def ours_with_caches(packs: Packs) -> Patched:
    """Our Apply InstantID as it is: what the ControlNet makes of its picture is computed in the first step only, which
    is none of those that are measured."""
    from fast_instantid.comfyui.nodes import ApplyInstantID

    return packs.apply(ApplyInstantID, packs.our_adapter)


def compiled(build: Callable[[], Patched]) -> Patched:
    """A variant through ComfyUI's TorchCompileModel. That drops torch's guards on patches, so others would run its
    graphs: measure each variant in a process of its own."""
    patched = build()
    return replace(patched, model=compile_model(patched.model))


VARIANTS: dict[str, Callable[[Packs], Patched]] = {
    "plain": plain,
    "reference": reference,
    "ours": ours,
    "ours, caches": ours_with_caches,
    "reference, no syncs": reference_without_syncs,
}
"""Names of the variants, in the order of their turns. Each is compared with "plain" and "reference", so a choice
of variants names these two."""


class _OneFace:
    """A face analysis in insightface's shape, which sees the same face in every picture."""

    def __init__(self, side: int) -> None:
        unit = side / 8
        self._box = np.array([2, 2, 6, 6], np.float32) * unit
        self._points = np.array([[3, 3], [5, 3], [4, 4], [3, 5], [5, 5]], np.float32) * unit
        self._embedding = np.random.default_rng(0).standard_normal(EMBEDDING_DIM, np.float32)
        self.det_model = self
        self.models = {"detection": self, "recognition": self}

    def get(self, img: np.ndarray, max_num: int = 0) -> list[dict[str, Any]]:
        return [{"bbox": self._box, "kps": self._points, "det_score": 1.0, "embedding": self._embedding}]

    def detect(self, img: np.ndarray, **_: Any) -> tuple[np.ndarray, np.ndarray]:
        return np.append(self._box, np.float32(1))[None], self._points[None]

    def get_feat(self, crop: np.ndarray) -> np.ndarray:
        return self._embedding[None]
