"""The diffusion networks, trained together: UNet, text encoders, adapter and IdentityNet.

The objective is v-prediction (Salimans and Ho 2022) with timesteps towards high noise, where a picture is decided.
See :mod:`training.together` for the loop around it.
"""

from __future__ import annotations

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
    """Text attention plus scaled identity attention, differentiable: what the package does at inference."""

    def __init__(self, stack: Stack, layer: int) -> None:
        self.stack, self.layer = stack, layer

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: None = None
    ) -> Tensor:
        def heads(tensor: Tensor) -> Tensor:
            return tensor.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        tokens, adapter = self.stack.tokens, self.stack.adapter
        query = heads(attn.to_q(hidden_states))
        text = F.scaled_dot_product_attention(
            query, heads(attn.to_k(encoder_hidden_states)), heads(attn.to_v(encoder_hidden_states))
        )
        identity = F.scaled_dot_product_attention(
            query, heads(adapter.keys[self.layer](tokens)), heads(adapter.values[self.layer](tokens))
        )
        attended = text + self.stack.scales * identity
        return attn.to_out[0](attended.transpose(1, 2).flatten(2))


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
        """The predicted v, ``(B, 4, 16, 16)``. Scales are ``(B,)``.

        Args:
            net_is_told: ``(B,)`` bool, for whom the IdentityNet sees the tokens of the person and not those of nobody.
        """
        text, pooled = self.encode_text(batch.words)
        self.tokens = net_tokens = self.adapter.image_proj(batch.embeddings[:, None])
        if net_is_told is not None:
            nobody = self.adapter.image_proj(torch.zeros_like(batch.embeddings[:1, None]))
            net_tokens = torch.where(net_is_told[:, None, None], self.tokens, nobody)
        self.scales = adapter_scale[:, None, None, None]
        # What hosts say of sizes differs, and means nothing here.
        sizes = torch.full((len(noisy), 6), float(SIZE))
        sizes[::2, [0, 1, 4, 5]] = 768.0
        sizes[:, 2:4] = 0.0
        added = {"text_embeds": pooled, "time_ids": sizes}
        down, middle = self.identitynet(
            noisy, timesteps, net_tokens, batch.keypoints, added_cond_kwargs=added, return_dict=False
        )
        net_scale = net_scale[:, None, None, None]
        return self.unet(
            noisy, timesteps, text, added_cond_kwargs=added,
            down_block_additional_residuals=[sample * net_scale for sample in down],
            mid_block_additional_residual=middle * net_scale, return_dict=False,
        )[0]  # fmt: skip

    def loss(self, batch: Batch) -> Losses:
        """Mean squared error of v, weighted towards the face."""
        count = len(batch.latents)
        # A square root: high noise comes often.
        fractions = torch.sqrt((torch.randperm(count) + torch.rand(count)) / count)
        timesteps = (fractions * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        noise = torch.randn_like(batch.latents)
        noisy = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * batch.latents
        adapter_scale, net_scale = (torch.empty(count).uniform_(0.7, 1.1) for _ in range(2))
        adapter_scale[torch.rand(count) < 0.08] = 0
        # Left to itself the IdentityNet learns to carry the whole person, and the adapter nothing.
        net_is_told = torch.rand(count) >= 0.3
        predicted = self(noisy, timesteps, batch, adapter_scale, net_scale, net_is_told)
        errors = ((predicted - target).square() * batch.weights).mean((1, 2, 3))
        high = timesteps > 700
        return Losses(errors.mean(), errors[high].mean().item())


@dataclass
class Losses:
    total: Tensor
    high_noise: float
    """Of timesteps above 700: where text, face and keypoints show whether they are understood."""


def pretrain_resampler(stack: Stack, embeddings: Tensor, attributes: Tensor, steps: int = 600) -> float:
    """Teach the resampler to keep what an embedding says of a face; returns the last error.

    Args:
        embeddings: ``(N, 512)``.
        attributes: ``(N, A)`` 0..1, of the same rows.
    """
    net = stack.adapter.image_proj
    head = nn.Linear(16 * net.proj_out.out_features, attributes.shape[1])
    optimizer = torch.optim.AdamW([*net.parameters(), *head.parameters()], 2e-3)
    loss = torch.zeros(())
    for _ in range(steps):
        rows = torch.randint(len(embeddings), (128,))
        loss = F.mse_loss(head(net(embeddings[rows][:, None]).flatten(1)), attributes[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()
