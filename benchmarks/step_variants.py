"""The ways to take a sampling step that are measured. Add another to ``VARIANTS``: a function of the host."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.step_host import IDENTITY_TOKENS, WEIGHT, Patched, Size, StepHost
from benchmarks.workflow_host import load_pack

EMBEDDING_DIM = 512
_DEPTH, _INNER_DIM = 4, 1280


class Packs:
    """Both node packs in one host, each with the same adapter and the same face.

    Args:
        reference: a checkout of cubiq/ComfyUI_InstantID, or None.
    """

    def __init__(self, host: StepHost, reference: Path | None) -> None:
        self.host, self._reference_folder = host, reference
        self.faces = _OneFace(host.size.side)

    @cached_property
    def adapter_weights(self) -> dict[str, dict[str, Tensor]]:
        """As ``ip-adapter.bin`` holds them, random; 423 million numbers at full size."""
        return random_adapter(self.host.size, self.host.random)

    @cached_property
    def our_adapter(self) -> Any:
        """What our loader node returns."""
        return as_our_adapter(self.adapter_weights, self.host.device, self.host.dtype)

    @cached_property
    def reference(self) -> ModuleType:
        """The module of the reference pack that has its nodes."""
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
        """What a pack's Apply InstantID makes of model and prompts."""
        host = self.host
        return Patched(
            *node().apply_instantid(
                instantid=adapter,
                insightface=self.faces,
                control_net=host.control_net,
                image=host.image,
                model=host.model,
                positive=host.positive,
                negative=host.negative,
                start_at=0.0,
                end_at=1.0,
                weight=WEIGHT,
            )
        )


def random_adapter(size: Size, random: Callable[..., Tensor]) -> dict[str, dict[str, Tensor]]:
    """The weights of an adapter, as ``ip-adapter.bin`` holds them.

    Args:
        random: ``random(*shape, gain=1.0)`` makes normal numbers.
    """
    from fast_instantid.identity.resampler import Resampler

    with torch.device("meta"):
        resampler = Resampler(
            dim=size.resampler_dim,
            depth=_DEPTH,
            inner_dim=_INNER_DIM,
            feed_forward_dim=4 * size.resampler_dim,
            num_queries=IDENTITY_TOKENS,
            embedding_dim=EMBEDDING_DIM,
            output_dim=size.token_width,
        )
    image_proj: dict[str, Tensor] = {}
    for name, tensor in resampler.state_dict().items():
        if tensor.ndim > 1:
            image_proj[name] = random(*tensor.shape, gain=tensor.shape[-1] ** -0.5)
        else:
            image_proj[name] = random(*tensor.shape, gain=0.1) + float(name.endswith("weight"))
    projections = {
        f"{2 * i + 1}.to_{part}_ip.weight": random(channels, size.token_width, gain=size.token_width**-0.5)
        for i, channels in enumerate(size.layer_channels)
        for part in "kv"
    }
    return {"image_proj": image_proj, "ip_adapter": projections}


def as_our_adapter(weights: dict[str, dict[str, Tensor]], device: torch.device, dtype: torch.dtype) -> Any:
    """Our Adapter on weights that lie in memory."""
    from fast_instantid import Cache
    from fast_instantid.identity import Adapter
    from fast_instantid.identity.checkpoint import AdapterWeights
    from fast_instantid.placement import Placement

    projections = [*weights["ip_adapter"].values()]
    layers = tuple(zip(projections[::2], projections[1::2], strict=True))
    return Adapter(
        AdapterWeights(Path("random"), weights["image_proj"], layers, "random"),
        Placement.resolve(device, dtype),
        Cache(),
    )


def plain(packs: Packs) -> Patched:
    """SDXL and a ControlNet that is fed with as many tokens as an IdentityNet: no pack at all, the floor."""
    host = packs.host
    control_net = host.control_net.copy().set_cond_hint(host.image.movedim(-1, 1), WEIGHT, (0.0, 1.0))
    prompts: list[list[list[Any]]] = []
    for prompt in (host.positive, host.negative):
        tokens = torch.randn(1, IDENTITY_TOKENS, host.size.token_width)
        control = {"control": control_net, "control_apply_to_uncond": False, "cross_attn_controlnet": tokens}
        prompts.append([[text, {**options, **control}] for text, options in prompt])
    return Patched(host.model.clone(), *prompts)


def reference(packs: Packs) -> Patched:
    """The reference pack's Apply InstantID."""
    return packs.apply(packs.reference.ApplyInstantID, packs.reference_adapter)


def reference_without_syncs(packs: Packs) -> Patched:
    """The same, but its layers find the noise level on the CPU: what they cost where they do not wait for the GPU."""
    from comfy.patcher_extension import WrappersMP

    patched = reference(packs)
    kept: list[Tensor] = []

    def with_sigmas_on_cpu(
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Any = None,
        **kwargs: Any,
    ) -> Any:
        if not kept:  # all steps that are measured have this noise level
            kept.append(transformer_options["sigmas"].cpu())
        options = {**transformer_options, "sigmas": kept[0]}
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

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


VARIANTS: dict[str, Callable[[Packs], Patched]] = {
    "plain": plain,
    "reference": reference,
    "ours": ours,
    "ours, caches": ours_with_caches,
    "reference, no syncs": reference_without_syncs,
}
"""In the order in which they take turns. Each is compared with "plain" and "reference": name those too where only some
are named."""
COMPILED = ("plain", "ours")


def compiled(patched: Patched) -> Patched:
    """The same with the UNet compiled, as ComfyUI's TorchCompileModel node does it."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    def without_transformer_options(guards: Any) -> list[bool]:
        return [guard.name.find("transformer_options") < 0 for guard in guards]

    model = patched.model.clone()
    set_torch_compile_wrapper(model, backend="inductor", options={"guard_filter_fn": without_transformer_options})
    return Patched(model, patched.positive, patched.negative)


class _OneFace:
    """In insightface's shape: a face analysis that sees the same face in every picture."""

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
