"""GPU memory under ComfyUI's management.

ComfyUI loads and unloads the face networks as its own models. The adapter is never on the GPU as a whole: its weights
are streamed while an identity is computed, into memory that ComfyUI was asked to free.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace

import comfy.model_management as host
import comfy.model_patcher
import numpy as np
import torch
from torch import Tensor, fx

from ..faces.onnx.network import TorchNetwork
from ..faces.onnx.numbers import Reduction
from ..identity import Adapter, Identity
from ..identity.resampler import Resampler

# Estimated bytes of activations: SCRFD and IResNet hold a few feature maps of up to 64 channels at half the picture's
# size; those of the resampler and of one layer's projections are small.
_ACTIVATIONS_PER_PIXEL = 64
_ACTIVATIONS_OF_PROJECTION = 64 << 20


class ManagedNetwork(TorchNetwork):
    """A face network that ComfyUI loads before it runs and may unload at any other time."""

    def place(self, module: fx.GraphModule) -> fx.GraphModule:
        """Keep the module in host memory until it runs."""
        # Looked up late: newer hosts assign another class to this name when they start.
        patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
        self._patcher = patcher(module, load_device=self.device, offload_device=torch.device("cpu"))
        return module

    def run(self, images: Tensor, mean: float, scale: float, reduce: Reduction | None = None) -> list[np.ndarray]:
        room = images.numel() * _ACTIVATIONS_PER_PIXEL
        _ = self.module  # calls ``place`` at the first use
        # The host can load a network in part only if it is made of the host's own layers.
        host.load_models_gpu([self._patcher], memory_required=room, force_full_load=True)
        return super().run(images, mean, scale, reduce)


class ManagedAdapter(Adapter):
    """An adapter that asks ComfyUI for memory while its weights are streamed through the GPU."""

    # Under the reference's names, for other packs.

    @property
    def image_proj_model(self) -> Resampler:
        """The resampler, ``(M, 1, 512) -> (M, 16, W)``; it computes where its input is."""
        self.weights.version.check_mapping()
        return Resampler.from_state_dict(self.weights.image_proj)

    def get_image_embeds(self, clip_embed: Tensor, clip_embed_zeroed: Tensor) -> tuple[Tensor, Tensor]:
        """Run the resampler on each argument."""
        cond, uncond = self.image_proj_model(torch.cat([clip_embed, clip_embed_zeroed])).chunk(2)
        return cond, uncond

    @functools.cached_property
    def ip_layers(self) -> SimpleNamespace:
        """``ip_layers.to_kvs``: the projections of all layers by name, from ``1_to_k_ip`` on, streamed at each use."""

        def project(name: str, tokens: Tensor) -> Tensor:
            self.weights.version.check_mapping()
            return torch.nn.functional.linear(tokens, tensors[name].to(tokens))

        tensors = self.weights.named_tensors()
        names = {name: name.split(".") for name in tensors if name.startswith("ip_adapter.")}
        layers = {f"{number}_{part}": functools.partial(project, name) for name, (_, number, part, _) in names.items()}
        return SimpleNamespace(to_kvs=layers)

    def project(self, combined: Tensor, noise: float) -> Identity:
        device, dtype = self.placement.device, self.placement.dtype
        resampler = sum(tensor.numel() for tensor in self.weights.image_proj.values())
        layer = max(key.numel() for key, _ in self.weights.layers)
        # The resampler is streamed by layer too; asking for its whole size leaves room for the bank.
        host.free_memory((resampler + layer) * dtype.itemsize + _ACTIVATIONS_OF_PROJECTION, device)
        return super().project(combined, noise)


def call_on_unload(release: Callable[[], None]) -> None:
    """Call ``release`` whenever ComfyUI unloads all models: on request, and after it ran out of memory.

    The host has no event for that, so its function is wrapped.
    """
    unload_all_models = host.unload_all_models

    @functools.wraps(unload_all_models)
    def unload_and_release() -> None:
        unload_all_models()
        release()

    host.unload_all_models = unload_and_release
