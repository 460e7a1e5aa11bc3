"""InstantX's way to InstantID in diffusers, re-implemented.

After github.com/instantX-research/InstantID (``ip_adapter/attention_processor.py``,
``pipeline_stable_diffusion_xl_instantid.py``): the adapter's projections are in the attention processors, the identity
tokens are appended to the prompt's embeddings, and each of the 70 layers splits them off and projects them, at every
step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProjectingProcessor(nn.Module):
    """Text attention plus ``scale`` times identity attention, whose keys and values it projects in each call.

    Args:
        to_key, to_value: ``(C, width)`` each.
        num_tokens: how many at the end of ``encoder_hidden_states`` are the identity's.
    """

    def __init__(self, to_key: Tensor, to_value: Tensor, num_tokens: int, scale: float) -> None:
        super().__init__()
        self.to_k_ip, self.to_v_ip = (nn.Parameter(weight, requires_grad=False) for weight in (to_key, to_value))
        self.num_tokens, self.scale = num_tokens, scale

    def forward(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """``(B, N, C), (B, T + num_tokens, width) -> (B, N, C)``"""
        text, identity = encoder_hidden_states[:, : -self.num_tokens], encoder_hidden_states[:, -self.num_tokens :]
        query = attn.to_q(hidden_states)

        def attend(key: Tensor, value: Tensor) -> Tensor:
            heads = (tensor.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for tensor in (query, key, value))
            return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)

        attended = attend(attn.to_k(text), attn.to_v(text))
        attended = attended + self.scale * attend(F.linear(identity, self.to_k_ip), F.linear(identity, self.to_v_ip))
        return attn.to_out[1](attn.to_out[0](attended))


class InstantXWay:
    """A person in a pipeline of diffusers: processors set once, and tokens made for every picture.

    Args:
        pipe: a StableDiffusionXLControlNetPipeline.
        weights: of the adapter, on the pipeline's device and in its dtype.
    """

    def __init__(self, pipe: Any, weights: dict[str, dict[str, Tensor]], num_tokens: int, scale: float) -> None:
        from fast_instantid.identity.resampler import Resampler  # the same network as InstantX's

        self._pipe = pipe
        self.resampler = Resampler.from_state_dict(weights["image_proj"])
        projections = [*weights["ip_adapter"].values()]
        layers = iter(zip(projections[::2], projections[1::2], strict=True))
        self._plain = pipe.unet.attn_processors
        self._processors = {
            name: ProjectingProcessor(*next(layers), num_tokens, scale) if "attn2" in name else processor
            for name, processor in self._plain.items()
        }

    def load(self) -> None:
        """Set the processors."""
        self._pipe.unet.set_attn_processor(dict(self._processors))

    def unload(self) -> None:
        self._pipe.unet.set_attn_processor(dict(self._plain))

    def draw(self, draw: Callable[..., Tensor], embedding: Tensor, prompt: Tensor, negative: Tensor) -> Tensor:
        """One picture.

        Args:
            draw: calls the pipeline with ``prompt_embeds`` and ``negative_prompt_embeds``.
            embedding: ``(1, 512)``, of the face.
            prompt, negative: ``(1, T, width)`` each.
        """
        pair = torch.stack([torch.zeros_like(embedding), embedding])  # (2, 1, 512): uncond and cond
        tokens = self.resampler(pair)

        def see_tokens(net: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
            return args, kwargs | {"encoder_hidden_states": tokens}

        hook = self._pipe.controlnet.register_forward_pre_hook(see_tokens, with_kwargs=True)
        try:
            return draw(
                prompt_embeds=torch.cat([prompt, tokens[1:]], dim=1),
                negative_prompt_embeds=torch.cat([negative, tokens[:1]], dim=1),
            )
        finally:
            hook.remove()

    @property
    def held_bytes(self) -> int:
        """Bytes of the modules that it adds to a pipeline."""
        added = [self.resampler, *(found for found in self._processors.values() if isinstance(found, nn.Module))]
        return sum(parameter.nbytes for module in added for parameter in module.parameters())
