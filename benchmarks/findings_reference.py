"""What cubiq/ComfyUI_InstantID does, written anew and plainly, to stand where no checkout of it is at hand.

It follows the pack's algorithm at commit 1ef34ef step by step, for the options that are measured here: the default
ones, with or without a mask. ``tests/comfyui/test_reimplementation.py`` runs both in one ComfyUI and compares all
counts. Import it after a host is on ``sys.path``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_management
import numpy as np
import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor, nn

from benchmarks.step_host import IDENTITY_TOKENS
from benchmarks.workflow_host import LAYERS
from fast_instantid import draw_keypoints

_HEAD_CHANNELS = 64


def extract_features(analysis: Any, image: Tensor, extract_kps: bool = False) -> Tensor | None:
    """The embedding, or the keypoint picture, of the largest face of each picture ``(B, H, W, 3)``."""
    pictures = image.mul(255).clamp(0, 255).byte().cpu()[..., [2, 1, 0]].numpy()
    found: list[Tensor] = []
    for picture in pictures:
        for size in range(640, 128, -64):
            analysis.det_model.input_size = (size, size)  # which insightface ignores since 1.0
            faces = analysis.get(picture)
            if faces:
                face = max(faces, key=lambda face: np.prod(face["bbox"][2:] - face["bbox"][:2]))
                if extract_kps:
                    found.append(torch.from_numpy(draw_keypoints(picture.shape[1::-1], face["kps"])).float().div(255))
                else:
                    found.append(torch.from_numpy(face["embedding"]).unsqueeze(0))
                break
    return torch.stack(found) if found else None


class Resampler(nn.Module):
    """Four layers of latents that attend to the embedding and to themselves, then a feed-forward network."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({_safe(name): nn.Parameter(tensor) for name, tensor in weights.items()})
        self.depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers."))

    def forward(self, embedding: Tensor) -> Tensor:
        """``(B, n, 512) -> (B, 16, width)``"""
        latents = self._weight("latents").repeat(len(embedding), 1, 1)
        inputs = self._linear(embedding, "proj_in")
        for i in range(self.depth):
            latents = latents + self._attention(f"layers.{i}.0", inputs, latents)
            inner = F.gelu(self._linear(self._norm(latents, f"layers.{i}.1.0"), f"layers.{i}.1.1"))
            latents = latents + self._linear(inner, f"layers.{i}.1.3")
        return self._norm(self._linear(latents, "proj_out"), "norm_out")

    def _attention(self, name: str, inputs: Tensor, latents: Tensor) -> Tensor:
        inputs, latents = self._norm(inputs, f"{name}.norm1"), self._norm(latents, f"{name}.norm2")
        query = self._linear(latents, f"{name}.to_q")
        key, value = self._linear(torch.cat([inputs, latents], dim=1), f"{name}.to_kv").chunk(2, dim=-1)
        query, key, value = (
            tensor.unflatten(-1, (-1, _HEAD_CHANNELS)).transpose(1, 2) for tensor in (query, key, value)
        )
        scale = _HEAD_CHANNELS**-0.25
        weights = torch.softmax(((query * scale) @ (key * scale).transpose(-2, -1)).float(), dim=-1).to(value.dtype)
        return self._linear((weights @ value).transpose(1, 2).flatten(2), f"{name}.to_out")

    def _weight(self, name: str) -> Tensor | None:
        return self.weights.get(_safe(name))

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weight(f"{name}.weight"), self._weight(f"{name}.bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self._weight(f"{name}.weight"), self._weight(f"{name}.bias"))


class InstantID(nn.Module):
    """The adapter: the resampler, and a projection to keys and one to values for each of 70 layers."""

    def __init__(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.image_proj_model = Resampler(weights["image_proj"])
        self.projections = nn.ModuleDict()
        for name, weight in weights["ip_adapter"].items():
            linear = nn.Linear(*weight.shape[::-1], bias=False, device="meta")
            linear.weight = nn.Parameter(weight)
            self.projections[_safe(name.removesuffix(".weight"))] = linear


class Attn2Replace:
    """What stands in a layer's place: the text attention, and the sum of what was added."""

    def __init__(self, callback: Callable[..., Tensor], **kwargs: Any) -> None:
        self.callback, self.kwargs = [callback], [kwargs]

    def add(self, callback: Callable[..., Tensor], **kwargs: Any) -> None:
        self.callback.append(callback)
        self.kwargs.append(kwargs)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: Mapping[str, Any]) -> Tensor:
        out = optimized_attention(q, k, v, extra_options["n_heads"])
        sigma = extra_options["sigmas"].detach().cpu()[0].item()
        for callback, kwargs in zip(self.callback, self.kwargs, strict=True):
            if kwargs["sigma_end"] <= sigma <= kwargs["sigma_start"]:
                out = out + callback(out, q, k, v, extra_options, **kwargs)
        return out.to(q.dtype)


def instantid_attention(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_options: Mapping[str, Any],
    *,
    ipadapter: InstantID,
    module_key: str,
    weight: float,
    cond: Tensor,
    uncond: Tensor,
    mask: Tensor | None,
    **_: Any,
) -> Tensor | int:
    """The identity branch of one layer: project the tokens, repeat and order them, attend, weigh, mask."""
    chunks = extra_options["cond_or_uncond"]
    batch = len(q) // len(chunks)
    if weight == 0:
        return 0
    entries: list[Tensor] = []
    for part in ("k", "v"):
        projection = ipadapter.projections[f"{module_key}_to_{part}_ip"]
        both = [projection(tokens).repeat(batch, 1, 1) for tokens in (cond, uncond)]
        entries.append(torch.cat([both[i] for i in chunks]))
    added = optimized_attention(q, *entries, extra_options["n_heads"]) * weight
    if mask is not None:
        added = added * _mask(mask, q, out.shape[2], extra_options["original_shape"], batch, len(chunks))
    return added.to(q.dtype)


def _mask(mask: Tensor, q: Tensor, channels: int, shape: Any, batch: int, chunks: int) -> Tensor:
    """``(B, N, C)``, made anew by every layer of every step; sizes that do not divide are not handled here."""
    rows = int(shape[2] / math.sqrt(shape[2] * shape[3] / q.shape[1]))
    mask = F.interpolate(mask.unsqueeze(1), size=(rows, q.shape[1] // rows), mode="bilinear").squeeze(1)
    if len(mask) < batch:
        mask = torch.cat((mask, mask[-1:].repeat(batch - len(mask), 1, 1)))
    elif len(mask) > batch:
        mask = mask[:batch]
    mask = mask.repeat(chunks, 1, 1)
    return mask.view(len(mask), -1, 1).repeat(1, 1, channels)


class ApplyInstantID:
    """The node, with the signature of the pack's."""

    def apply_instantid(
        self,
        instantid: InstantID,
        insightface: Any,
        control_net: Any,
        image: Tensor,
        model: Any,
        positive: Any,
        negative: Any,
        start_at: float,
        end_at: float,
        weight: float = 0.8,
        mask: Tensor | None = None,
        noise: float = 0.35,
    ) -> tuple[Any, Any, Any]:
        device, dtype = comfy.model_management.get_torch_device(), comfy.model_management.unet_dtype()
        embedding = extract_features(insightface, image)
        if embedding is None:
            raise ValueError("Reference Image: No face detected.")
        keypoints = extract_features(insightface, image[0].unsqueeze(0), extract_kps=True)
        if len(embedding) > 1:
            embedding = embedding.mean(dim=0).unsqueeze(0)
        torch.manual_seed(int(embedding.sum().item()) % 1000000007)
        zeroed = noise * torch.rand_like(embedding)
        instantid.to(device, dtype=dtype)
        with torch.inference_mode():
            tokens = [instantid.image_proj_model(each.to(device, dtype=dtype)) for each in (embedding, zeroed)]
        work_model = model.clone()
        sampling = model.get_model_object("model_sampling")
        kwargs = {"ipadapter": instantid, "weight": weight, "cond": tokens[0], "uncond": tokens[1], "mask": mask}
        kwargs |= {"sigma_start": sampling.percent_to_sigma(start_at), "sigma_end": sampling.percent_to_sigma(end_at)}
        # The middle block comes last in the checkpoint, and the pack calls it 1, where the UNet asks for 0.
        layers = [layer for layer in LAYERS if layer[0] != "middle"] + [("middle", 1, i) for i in range(10)]
        for number, layer in enumerate(layers):
            _patch(work_model, layer, module_key=str(2 * number + 1), **kwargs)
        made: dict[Any, Any] = {}
        prompts: list[list[list[Any]]] = []
        for prompt, token in zip((positive, negative), tokens, strict=True):
            prompts.append([])
            for text, options in prompt:
                options = options.copy()
                previous = options.get("control")
                if previous not in made:
                    made[previous] = control_net.copy().set_cond_hint(
                        keypoints.movedim(-1, 1), weight, (start_at, end_at)
                    )
                    made[previous].set_previous_controlnet(previous)
                options |= {"control": made[previous], "control_apply_to_uncond": False}
                options["cross_attn_controlnet"] = token.to(comfy.model_management.intermediate_device())
                if mask is not None and token is tokens[0]:
                    options |= {"mask": mask, "set_area_to_bounds": False}
                prompts[-1].append([text, options])
        return work_model, *prompts


def _patch(model: Any, layer: tuple[Any, ...], **kwargs: Any) -> None:
    options = model.model_options["transformer_options"].copy()
    patches = options["patches_replace"] = options.get("patches_replace", {}).copy()
    attn2 = patches["attn2"] = patches.get("attn2", {}).copy()
    if layer in attn2:
        attn2[layer].add(instantid_attention, **kwargs)
    else:
        attn2[layer] = Attn2Replace(instantid_attention, **kwargs)
        model.model_options["transformer_options"] = options


def adapter(weights: Mapping[str, Mapping[str, Tensor]]) -> InstantID:
    """The adapter of random weights, in the checkpoint's layout; see ``step_variants.Packs.adapter_weights``."""
    found = InstantID(weights)
    assert found.image_proj_model.weights["latents"].shape[1] == IDENTITY_TOKENS
    return found


def _safe(name: str) -> str:
    return name.replace(".", "_")
