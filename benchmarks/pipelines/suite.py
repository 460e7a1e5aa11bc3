"""InstantID in diffusers: ours attached to a pipeline, beside InstantX's attention processors, and without an identity.

All sides draw latent pictures with one StableDiffusionXLControlNetPipeline, prompts encoded before, VAE left out:

- reference: InstantX's way (instantx.py). All 70 layers project the face's tokens at every step.
- ours: InstantID(pipe).attached(identity). The identity is made once and cached; attaching and detaching counts.
- limit: the plain pipeline without InstantID.

Weights are random; UNet and ControlNet have SDXL's 70 layers with 32 (tiny), 64 (middle) or all (full) of its 320
channels. `held_bytes` is what each side keeps for one person. Where the pictures of reference and ours differ in fp32,
nothing is reported; in fp16, rounding grows over the steps, and the difference is reported.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    EulerDiscreteScheduler,
    StableDiffusionXLControlNetPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from benchmarks.common import SIDES, Comparison, compare, finite, metadata, notes, report
from benchmarks.device import on, synchronize
from benchmarks.networks import as_our_adapter, random_adapter
from benchmarks.pipelines.instantx import InstantXWay
from benchmarks.sizes import EMBEDDING_DIM, IDENTITY_TOKENS, SIZES, TEXT_TOKENS, WEIGHT, Size
from fast_instantid.pipelines import InstantID

PIPELINE_SIZES = {"tiny": SIZES["tiny"], "middle": SIZES["small"], "full": SIZES["full"]}
TOLERANCE = 1e-3
"""How far pictures may lie apart, relative to what the identity does to them."""
_CFG = 5.0


def run(device: str, sizes: list[str], steps: int, runs: int, json_path: Path | None) -> None:
    """Measure, print, and save where asked."""
    print(__doc__, flush=True)
    place, dtype = on(device)
    comparisons: list[Comparison] = []
    about = metadata(["torch", "diffusers", "numpy"], place)
    about |= {"dtype": str(dtype).removeprefix("torch."), "steps": steps}
    about |= {"parameters": {}, "differences": {}, "notes": notes(__doc__)}
    for name in sizes:
        print(f"{name} ...", flush=True)
        with torch.no_grad():
            bench = Bench(PIPELINE_SIZES[name], place, dtype, steps)
            about["parameters"][name] = bench.parameters
            about["differences"][name] = bench.difference()
            comparisons += bench.rows(name, runs)
        del bench
    for comparison in comparisons:
        print(f"{comparison.name}: {json.dumps(comparison.facts)}")
    report(json_path, "pipelines", comparisons, about)


class Bench:
    """A pipeline, and the three ways to draw with it."""

    def __init__(self, size: Size, device: torch.device, dtype: torch.dtype, steps: int) -> None:
        self._size, self._device, self._dtype, self._steps = size, device, dtype, steps
        torch.manual_seed(0)
        self.pipe = make_pipeline(size, device, dtype)
        weights = random_adapter(size, self._random)
        self._theirs = InstantXWay(self.pipe, weights, IDENTITY_TOKENS, WEIGHT)
        self.adapter = as_our_adapter(weights, device, dtype)
        self.instantid = InstantID(self.pipe, identity_net=0)
        self._prompts = [self._random(1, TEXT_TOKENS, size.token_width) for _ in range(2)]
        self._pooled = [self._random(1, size.pooled_width) for _ in range(2)]
        self._hint = torch.rand(1, 3, size.side, size.side, device=device).to(dtype)

    @property
    def parameters(self) -> dict[str, int]:
        networks = {"UNet": self.pipe.unet, "ControlNet": self.pipe.controlnet}
        return {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}

    def reference(self, embedding: Tensor, seed: int, steps: int) -> Tensor:
        """``(1, 4, h, w)``; so are the others'."""
        return self._theirs.draw(partial(self._draw, seed, steps), embedding, *self._prompts)

    def ours(self, embedding: Tensor, seed: int, steps: int) -> Tensor:
        identity = self.adapter.identity(embedding)
        with self.instantid.attached(identity, scale=WEIGHT):
            return self.limit(embedding, seed, steps)

    def limit(self, embedding: Tensor, seed: int, steps: int, **options: Any) -> Tensor:
        prompt, negative = self._prompts
        return self._draw(seed, steps, prompt_embeds=prompt, negative_prompt_embeds=negative, **options)

    def difference(self) -> dict[str, float | None]:
        """The difference between ours and the reference, relative to the effect of the identity.

        Raises:
            SystemExit: they differ.
        """
        embedding = torch.randn(1, EMBEDDING_DIM, device=self._device, dtype=self._dtype)
        pictures = {side: self.in_its_pipeline(side)(embedding, 0, self._steps).float() for side in SIDES}
        effect = float((pictures["reference"] - pictures["limit"]).abs().max())
        apart = float((pictures["ours"] - pictures["reference"]).abs().max()) / effect if effect else float("nan")
        if self._dtype == torch.float32 and not apart <= TOLERANCE:  # also where it is NaN
            raise SystemExit(
                f"ours and InstantX's way differ by {apart:.1e} of the identity's effect; nothing is reported"
            )
        return finite({"effect_of_the_identity": effect, "ours": apart})

    def held(self, someone: Tensor) -> dict[str, int]:
        """Bytes that each side keeps for one person."""
        return {"reference": self._theirs.held_bytes, "ours": self.adapter.identity(someone).nbytes, "limit": 0}

    def rows(self, name: str, runs: int) -> list[Comparison]:
        """A new person, and the same again."""
        sides = {side: self.in_its_pipeline(side) for side in SIDES}
        someone, seeds = torch.randn(1, EMBEDDING_DIM), count(1)

        def draw(way: Callable[..., Tensor], is_new: bool, run: int) -> None:
            embedding = torch.randn(1, EMBEDDING_DIM) if is_new else someone
            way(embedding.to(self._device, self._dtype), next(seeds), self._steps)

        wait, held = partial(synchronize, self._device), self.held(someone)
        found: list[Comparison] = []
        for title, is_new in (("a new person", True), ("the same person again", False)):
            jobs = {side: partial(draw, way, is_new) for side, way in sides.items()}
            found.append(compare(f"{name}: {title}", **jobs, runs=runs, recorder=None, wait=wait))
            found[-1].facts = {"held_bytes": held}
        return found

    def in_its_pipeline(self, side: str) -> Callable[..., Tensor]:
        """The side's way, with InstantX's processors set for the reference only."""

        def draw(embedding: Tensor, seed: int, steps: int) -> Tensor:
            if side == "reference":
                self._theirs.load()
            else:
                self._theirs.unload()
            return getattr(self, side)(embedding, seed, steps)

        return draw

    def _draw(self, seed: int, steps: int, **options: Any) -> Tensor:
        pooled, negative = self._pooled
        usual = {"image": self._hint, "num_inference_steps": steps, "guidance_scale": _CFG, "output_type": "latent"}
        usual |= {"controlnet_conditioning_scale": WEIGHT, "generator": torch.Generator().manual_seed(seed)}
        usual |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": negative}
        return self.pipe(**usual | dict.fromkeys(("height", "width"), self._size.side) | options).images

    def _random(self, *shape: int, gain: float = 1.0) -> Tensor:
        return torch.randn(shape, device=self._device, dtype=self._dtype) * gain


def make_pipeline(size: Size, device: torch.device, dtype: torch.dtype) -> Any:
    """SDXL with a ControlNet and without text encoders, random weights, made on the device."""
    channels = [size.channels * factor for factor in (1, 2, 4)]
    blocks: dict[str, Any] = {
        "block_out_channels": channels,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": [width // size.head_channels for width in channels],  # the number of heads
        "cross_attention_dim": size.token_width,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": size.pooled_width + 6 * 256,
    }
    with device:
        unet = UNet2DConditionModel(up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), **blocks)
        net = ControlNetModel(**blocks)
        # The pipeline reads its scale and dtype, and nothing is decoded.
        vae = AutoencoderKL(block_out_channels=(32,) * 4, down_block_types=("DownEncoderBlock2D",) * 4)
    for network in (unet, net, vae):
        nn.Module.to(network.eval(), dtype)  # diffusers' own warns of layers to keep in float32, and names none
    outputs = [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out]
    for output in outputs:  # they start as zeros
        nn.init.normal_(output.weight, std=0.1 / output.weight[0].numel() ** 0.5)
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    parts = {"vae": vae, "unet": unet, "controlnet": net, "scheduler": scheduler, "add_watermarker": False}
    parts |= dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = StableDiffusionXLControlNetPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe
