"""VRAM is the host's to give: what is on the GPU is there by its leave, and goes when it asks.

Face networks are models of the host's like any other. The adapter never is on the GPU as a whole: its weights pass
through while an identity is made, into room that the host was asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import comfy.model_management as host
import comfy.model_patcher
import numpy as np
import torch
from torch import Tensor, nn

from ..faces.onnx.network import TorchNetwork
from ..identity import Adapter, Identity, Resampler

# Estimates of what running takes beside the weights, in bytes: SCRFD and IResNet hold a few feature maps at a time, of
# up to 64 channels at half the size of the picture; the resampler and one layer's projections are small beside theirs.
_ACTIVATIONS_PER_PIXEL = 64
_ACTIVATIONS_OF_PROJECTION = 64 << 20


class ManagedNetwork(TorchNetwork):
    """A face network that ComfyUI loads before it runs and may unload at any other time."""

    def place(self, module: nn.Module) -> nn.Module:
        """In main memory, until it is needed."""
        # Looked up now: newer versions put a class of their own into this name when they start.
        patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
        self._patcher = patcher(module, load_device=self.device, offload_device=torch.device("cpu"))
        return module

    def run(self, images: np.ndarray, mean: float, scale: float) -> list[np.ndarray]:
        # Whole or not at all (with --novram): the host can only keep a part of networks built of its own layers.
        room = images.size * _ACTIVATIONS_PER_PIXEL
        _ = self.module  # which places it, where that was not done yet
        host.load_models_gpu([self._patcher], memory_required=room, force_full_load=True)
        return super().run(images, mean, scale)


class ManagedAdapter(Adapter):
    """An adapter that asks ComfyUI for room while its weights pass through the GPU."""

    def get_image_embeds(self, clip_embed: Tensor, clip_embed_zeroed: Tensor) -> tuple[Tensor, Tensor]:
        """The reference's name for the resampler, which other packs call: ``(M, 1, 512) -> (M, 16, W)``, twice."""
        resampler = Resampler.from_state_dict(self.weights.image_proj)
        cond, uncond = resampler(torch.cat([clip_embed, clip_embed_zeroed])).chunk(2)
        return cond, uncond

    def project(self, combined: Tensor, noise: float) -> Identity:
        device, dtype = self.placement.device, self.placement.dtype
        resampler = sum(tensor.numel() for tensor in self.weights.image_proj.values())
        layer = max(key.numel() for key, _ in self.weights.layers)
        # The resampler's weights come a layer at a time as well; asking for all of them leaves room for the bank.
        host.free_memory((resampler + layer) * dtype.itemsize + _ACTIVATIONS_OF_PROJECTION, device)
        return super().project(combined, noise)


def when_unloading(release: Callable[[], None]) -> None:
    """Have ``release`` called whenever ComfyUI unloads all models: for ``/free``, for its button "Unload models", and
    after it ran out of memory. The host has no event for that, so its function is wrapped.
    """
    unload_all_models = host.unload_all_models

    @functools.wraps(unload_all_models)
    def unload_and_release() -> None:
        unload_all_models()
        release()

    host.unload_all_models = unload_and_release
