"""The diffusion networks, trained together: UNet, text encoders, adapter and IdentityNet.

The objective is v-prediction (Salimans and Ho 2022) with timesteps towards high noise, where a picture is decided.
See :mod:`training.together` for the loop around it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from training.conditions import Batch
from training.networks import (
    Adapter,
    cross_attention_layers,
    identitynet,
    scheduler,
    text_encoders,
    unet,
)
from training.world import SIZE


class _IdentityAttention:
    """Text attention plus scaled identity attention as in the package, but differentiable."""

    def __init__(self, stack: Stack, layer: int) -> None:
        self.stack, self.layer = stack, layer

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: None = None
    ) -> Tensor:
        def heads(tensor: Tensor) -> Tensor:
            return tensor.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        tokens, adapter = self.stack.tokens, self.stack.adapter
        faces = len(tokens) // len(hidden_states)
        query = heads(attn.to_q(hidden_states))
        text = F.scaled_dot_product_attention(
            query, heads(attn.to_k(encoder_hidden_states)), heads(attn.to_v(encoder_hidden_states))
        )
        identity = F.scaled_dot_product_attention(
            _apart(query, faces), heads(adapter.keys[self.layer](tokens)), heads(adapter.values[self.layer](tokens))
        )
        attended = text + self.stack.scales * _together(identity, faces)
        return attn.to_out[0](attended.transpose(1, 2).flatten(2))


def _apart(queries: Tensor, faces: int) -> Tensor:
    """``(B, heads, N, d)`` of pictures of several faces to ``(B faces, heads, N / faces, d)``: each face's square.

    It is what regions do, one for each square, at inference.
    """
    if faces == 1:
        return queries
    side = math.isqrt(queries.shape[2] // faces)
    return queries.unflatten(2, (side, faces, side)).movedim(3, 1).flatten(0, 1).flatten(2, 3)


def _together(attended: Tensor, faces: int) -> Tensor:
    """The inverse of :func:`_apart`."""
    if faces == 1:
        return attended
    side = math.isqrt(attended.shape[2])
    return attended.unflatten(2, (side, side)).unflatten(0, (-1, faces)).movedim(1, 3).flatten(2, 4)


class Stack(nn.Module):
    """All networks that are trained together, and their loss.

    Args:
        words: whose tokens the text encoders read.
    """

    def __init__(self, words: CLIPTokenizer) -> None:
        super().__init__()
        self.unet: UNet2DConditionModel = unet()
        self.identitynet: ControlNetModel = identitynet()
        self.text, self.text_2 = text_encoders(words)
        layers = cross_attention_layers(self.unet)
        self.adapter = Adapter([layer.inner_dim for _, layer in layers])
        for i, (_, layer) in enumerate(layers):
            layer.set_processor(_IdentityAttention(self, i))
        self.register_buffer("alphas", scheduler().alphas_cumprod, persistent=False)
        self.tokens: Tensor
        self.scales: Tensor
        self._begin_shallow()
        self._prepare_conditioning()
        self.to(memory_format=torch.channels_last)  # convolutions with few channels: twice as fast

    @torch.no_grad()
    def _begin_shallow(self) -> None:
        """Let each transformer begin with one block: the others add nothing until they have learnt something."""
        for network in (self.unet, self.identitynet):
            for name, module in network.named_modules():
                if name.endswith(("to_out.0", "ff.net.2")) and ".transformer_blocks.0." not in name:
                    for parameter in module.parameters():
                        parameter.zero_()

    @torch.no_grad()
    def _prepare_conditioning(self) -> None:
        """Let signals through from the first step.

        With the usual initialisation, zeros at the outputs and small values before them, networks this small do not
        learn in any reasonable time that the keypoint picture means something.
        """
        outputs = [*self.identitynet.controlnet_down_blocks, self.identitynet.controlnet_mid_block]
        for output in outputs:
            nn.init.normal_(output.weight, std=0.5 / output.weight.shape[1] ** 0.5)
        embedding = self.identitynet.controlnet_cond_embedding
        nn.init.kaiming_normal_(embedding.conv_out.weight)
        layers = [embedding.conv_in, *embedding.blocks, embedding.conv_out]
        hint = torch.zeros(16, 3, SIZE, SIZE)
        for i in range(16):  # coloured squares stand in for dots
            for channel in range(3):
                x, y = torch.randint(20, SIZE - 40, (2,)).tolist()
                hint[i, channel, y : y + 20, x : x + 20] = 1
        for i, layer in enumerate(layers):
            hint = layer(hint)
            scale = (0.5 if i == len(layers) - 1 else 1.0) / hint.std()
            layer.weight *= scale
            layer.bias.zero_()
            hint = hint * scale if i == len(layers) - 1 else F.silu(hint * scale)

    def load_files(self, folder: Path) -> None:
        """Take the weights of an exported miniature: ``base/`` and ``instantid/`` in ``folder``."""
        base, instantid = folder / "base", folder / "instantid"
        exported = {
            self.unet: UNet2DConditionModel.from_pretrained(base / "unet"),
            self.identitynet: ControlNetModel.from_pretrained(instantid / "ControlNetModel"),
            self.text: CLIPTextModel.from_pretrained(base / "text_encoder"),
            self.text_2: CLIPTextModelWithProjection.from_pretrained(base / "text_encoder_2"),
        }
        for part, network in exported.items():
            part.load_state_dict(network.state_dict())
        self.adapter.load_checkpoint(load_file(instantid / "ip-adapter.safetensors"))

    def encode_text(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, T)`` ids to ``(B, T, 64)`` and ``(B, 32)``, as SDXL's pipeline reads them."""
        one = self.text(words, output_hidden_states=True)
        two = self.text_2(words, output_hidden_states=True)
        return torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1), two.text_embeds

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        batch: Batch,
        adapter_scale: Tensor,
        net_scale: Tensor,
        net_is_told: Tensor | None = None,
    ) -> Tensor:
        """The predicted v, of the shape of ``noisy``. Scales are ``(B,)``.

        Args:
            net_is_told: ``(B,)`` bool, whether the IdentityNet sees the people's tokens, or a zero embedding's.
        """
        text, pooled = self.encode_text(batch.words)
        self.tokens = self.adapter.image_proj(batch.embeddings.flatten(0, 1)[:, None])  # (B faces, tokens, width)
        net_tokens = self.tokens
        if net_is_told is not None:
            nobody = self.adapter.image_proj(torch.zeros_like(batch.embeddings[:1, :1]))
            told = net_is_told.repeat_interleave(batch.embeddings.shape[1], output_size=len(self.tokens))
            net_tokens = torch.where(told[:, None, None], self.tokens, nobody)
        self.scales = adapter_scale[:, None, None, None]
        added = {"text_embeds": pooled, "time_ids": _sizes(len(noisy), noisy.device)}
        down, middle = self.identitynet(
            noisy, timesteps, net_tokens.unflatten(0, (len(noisy), -1)).flatten(1, 2), batch.keypoints,
            added_cond_kwargs=added, return_dict=False,
        )  # fmt: skip
        net_scale = net_scale[:, None, None, None]
        return self.unet(
            noisy, timesteps, text, added_cond_kwargs=added,
            down_block_additional_residuals=[sample * net_scale for sample in down],
            mid_block_additional_residual=middle * net_scale, return_dict=False,
        )[0]  # fmt: skip

    def loss(self, batch: Batch) -> Losses:
        """Mean squared error of v, weighted towards the face."""
        count, device = len(batch.latents), batch.latents.device

        def uniform() -> Tensor:
            return torch.rand(count, device=device)

        # A square root: high noise comes often.
        fractions = torch.sqrt((torch.arange(count, device=device) + uniform()) / count)
        timesteps = (fractions * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        noise = torch.randn_like(batch.latents)
        noisy = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * batch.latents
        # Left to itself the IdentityNet learns to carry the whole person, and the adapter nothing. So it is often told
        # of nobody, and never has to do without the adapter: what is without it shows anybody.
        anybody = uniform() < 0.06
        adapter_scale, net_scale = 0.7 + 0.4 * uniform(), 0.7 + 0.4 * uniform()
        net_is_told = (uniform() < 0.5) & ~anybody
        predicted = self(noisy, timesteps, batch, adapter_scale * ~anybody, net_scale, net_is_told)
        errors = ((predicted - target).square() * batch.weights).mean((1, 2, 3))
        high = timesteps > 700
        return Losses(errors.mean(), ((errors * high).sum() / high.sum().clamp(min=1)).detach())


def _sizes(count: int, device: torch.device) -> Tensor:
    """``(count, 6)``: what hosts say of sizes and offsets differs, and means nothing here; every second row says
    otherwise than its neighbours."""
    every_second = (torch.arange(count, device=device) % 2).float()[:, None]
    size = (SIZE + (768 - SIZE) * every_second).expand(-1, 2)
    return torch.cat([size, torch.zeros_like(size), size], 1)


@dataclass
class Losses:
    total: Tensor
    high_noise: Tensor
    """The loss of timesteps above 700, where text, face and keypoints show whether they are understood."""


def pretrain_resampler(stack: Stack, embeddings: Tensor, attributes: Tensor, steps: int) -> float:
    """Teach the resampler to keep what an embedding says of a face; returns the last error.

    Args:
        embeddings: ``(N, 512)``, on the device of the stack.
        attributes: ``(N, A)`` 0..1, of the same rows.
    """
    net = stack.adapter.image_proj
    head = nn.Linear(16 * net.proj_out.out_features, attributes.shape[1]).to(attributes.device)
    optimizer = torch.optim.AdamW([*net.parameters(), *head.parameters()], 2e-3)
    loss = torch.zeros(())
    for _ in range(steps):
        rows = torch.randint(len(embeddings), (128,), device=embeddings.device)
        loss = F.mse_loss(head(net(embeddings[rows][:, None]).flatten(1)), attributes[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()
