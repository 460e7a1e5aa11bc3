"""The time that the preset "fast" saves at SDXL's real size, on the CPU: random weights in SDXL's UNet and IdentityNet.

    python -m examples.fast_step

One run of 256 x 256 pixels without guidance in fp32 takes 16 GB. In every fourth step the IdentityNet runs, and in the
others its last output is used again. The steps of both kinds are timed in turns, in the same run: CPU seconds of one
thread, which other programs hardly disturb.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    EulerDiscreteScheduler,
    StableDiffusionXLControlNetPipeline,
    UNet2DConditionModel,
)
from PIL import Image

from fast_instantid import Identity, InstantID, pipelines
from fast_instantid.identity.bank import IdentityBank
from fast_instantid.pipelines.approximations import FAST
from fast_instantid.pipelines.cross_attention import cross_attention_layers

_CONFIGURATIONS = Path(pipelines.__file__).parent / "sdxl"
_STEPS, _SIDE, _WIDTH = 9, 256, 2048


def filled(kind: type, folder: str) -> torch.nn.Module:
    """A network of the published configuration with small random weights."""
    with torch.device("meta"):
        network = kind.from_config(kind.load_config(_CONFIGURATIONS / folder))
    network.to_empty(device="cpu")
    for parameter in network.parameters():
        parameter.data.uniform_(-0.02, 0.02)
    return network.requires_grad_(False).eval()


def main() -> None:
    """Time the steps, and print the medians."""
    torch.set_num_threads(1)
    unet, net = filled(UNet2DConditionModel, "unet"), filled(ControlNetModel, "controlnet")
    vae = AutoencoderKL(block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4,
                        up_block_types=("UpDecoderBlock2D",) * 4)  # fmt: skip
    pipe = StableDiffusionXLControlNetPipeline(
        vae, None, None, None, None, unet, net, EulerDiscreteScheduler(timestep_spacing="trailing"),
        add_watermarker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    widths = [layer.inner_dim for layer in cross_attention_layers(unet).values()]
    banks = [tuple(torch.randn(2, 16, width) for width in widths) for _ in range(2)]
    person = Identity(torch.randn(2, 16, _WIDTH), IdentityBank(*banks))
    instantid = InstantID(pipe, identity_net=0)
    words, pooled = torch.randn(1, 77, _WIDTH), torch.randn(1, 1280)
    ends = [time.process_time()]

    def end(pipe: object, step: int, timestep: object, tensors: dict[str, object]) -> dict[str, object]:
        ends.append(time.process_time())
        return tensors

    instantid(
        people=person, keypoints=Image.new("RGB", (_SIDE, _SIDE), "red"), approximations=replace(FAST, layers=None),
        prompt_embeds=words, pooled_prompt_embeds=pooled, negative_prompt_embeds=words,
        negative_pooled_prompt_embeds=pooled, num_inference_steps=_STEPS, output_type="latent", guidance_scale=1.0,
        callback_on_step_end=end,
    )  # fmt: skip
    seconds = [after - before for before, after in pairwise(ends)]
    every = FAST.identity_net_every
    full = statistics.median(seconds[::every])
    without = statistics.median(second for step, second in enumerate(seconds) if step % every)
    print("steps:", ", ".join(f"{second:.2f} s" for second in seconds))
    saved = 1 - (full + (every - 1) * without) / every / full
    print(f"with the IdentityNet {full:.2f} s, without {without:.2f} s: fast saves {100 * saved:.0f} % of a step")


if __name__ == "__main__":
    main()
