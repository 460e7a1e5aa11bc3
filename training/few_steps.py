"""A LoRA of the UNet for few steps without guidance, as LCM-LoRA is one for SDXL (Luo et al. 2023, arXiv 2311.05556).

The teacher is the miniature with guidance, identity tokens and IdentityNet. It draws whole pictures. The student is the
same UNet with a LoRA. From every noisy latent on the way to a picture, it learns to predict the end of the way: the
consistency function of Song et al. 2023 (arXiv 2303.01469). LCM-LoRA learns that from its own predictions at the next
step, because a whole way of SDXL is dear. Here it is cheap, and so the target is exact.

    python -m training.few_steps WORK FOLDER

WORK is a folder in which ``python -m training`` has prepared its pictures. The LoRA is written into FOLDER. It is not
shipped: docs/guides/few_steps.md says why.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from fast_instantid import miniature
from training.conditions import Batch, Conditions, tokens
from training.diffusion import Stack
from training.networks import tokenizer
from training.run import Run
from training.together import Average

FILE = "lcm-lora.safetensors"
_RATE, _HUBER = 2e-3, 1e-2
_LAYERS = r".*(attn1\.to_[qkv]|attn[12]\.to_out\.0|attn2\.to_q|conv1|conv2|time_emb_proj|samplers\.0\.conv)"


@dataclass(frozen=True)
class Plan:
    """Length and sizes of the distillation.

    Args:
        ways: batches of pictures of the teacher.
        teacher_steps: noisy latents on the way to each.
        steps: of the optimizer.
        batch: pictures of a batch.
        rank: of each layer's LoRA.
    """

    ways: int = 14
    teacher_steps: int = 6
    steps: int = 150
    batch: int = 16
    rank: int = 3
    seed: int = 1


@torch.no_grad()
def draw_ways(stack: Stack, conditions: Conditions, nothing_said: Tensor, plan: Plan) -> list[Way]:
    """Draw the teacher's pictures by DDIM from noise, at timesteps that differ from batch to batch."""
    ways: list[Way] = []
    for number in range(plan.ways):
        batch = conditions.batch(plan.batch)
        noisy, seen = torch.randn_like(batch.latents), list[Tensor]()
        nobody = replace(batch, words=nothing_said.expand(plan.batch, -1), embeddings=0 * batch.embeddings)
        places = torch.arange(plan.teacher_steps) + 0.8 * torch.rand(plan.teacher_steps) - 0.4
        places[0] = 0  # pure noise
        timesteps = ((1 - places / plan.teacher_steps) * (len(stack.alphas) - 1)).long()
        for now, alpha in zip(timesteps, [*stack.alphas[timesteps[1:]], torch.ones(())], strict=True):
            seen.append(noisy)
            cond, uncond = (_predicted(stack, noisy, now.expand(plan.batch), one) for one in (batch, nobody))
            clean, noise = _parts(noisy, uncond + miniature.GUIDANCE * (cond - uncond), stack.alphas[now])
            noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        ways.append(Way(torch.stack(seen), timesteps, replace(batch, latents=noisy)))
        print(f"few steps: the teacher drew {number + 1} of {plan.ways} batches", flush=True)
    return ways


@dataclass
class Way:
    """The teacher's way from noise to the pictures of one batch, in ``S`` steps."""

    noisy: Tensor
    """``(S, B, 4, 16, 16)``"""
    timesteps: Tensor
    """``(S,)``"""
    end: Batch


def distil(work: Path, folder: Path, weights: Path, plan: Plan = Plan()) -> None:
    """Train, or go on, and write the LoRA for the miniature in ``weights`` into ``folder``."""
    torch.manual_seed(plan.seed)
    words = tokenizer(work / "tokenizer")
    stack = Stack(words)
    stack.load_files(weights)
    stack.requires_grad_(False).eval()
    ways = draw_ways(stack, Conditions(work, words, [plan.seed, 7]), tokens(words, [""]), plan)
    stack.unet.add_adapter(LoraConfig(r=plan.rank, lora_alpha=plan.rank, target_modules=_LAYERS))
    lora = torch.nn.ParameterList(p for p in stack.unet.parameters() if p.requires_grad)
    optimizer, average = torch.optim.AdamW(lora, _RATE, (0.9, 0.99), weight_decay=1e-4), Average(lora)
    run = Run(work / "few_steps.pt", plan.steps, {"lora": lora, "optimizer": optimizer, "average": average}, every=10)
    torch.manual_seed(plan.seed + 1 + run.step)
    for _ in run:
        way = ways[int(torch.randint(len(ways), ()))]
        step = torch.randint(plan.teacher_steps, (plan.batch,))
        noisy, timesteps = way.noisy[step, torch.arange(plan.batch)], way.timesteps[step]
        clean, _ = _parts(noisy, _predicted(stack, noisy, timesteps, way.end), stack.alphas[timesteps])
        errors = ((clean - way.end.latents).square() + _HUBER**2).sqrt() - _HUBER
        loss = (errors * way.end.weights).mean()
        run.anneal(optimizer, _RATE)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lora, 1.0)
        optimizer.step()
        average.update()
        run.log(loss=loss)
    lora.load_state_dict(average.weights)
    state = get_peft_model_state_dict(stack.unet)
    save_file({f"unet.{name}": value.half().contiguous() for name, value in state.items()}, folder / FILE)


def _predicted(stack: Stack, noisy: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
    """The v at the default strengths of adapter and IdentityNet."""
    return stack(noisy, timesteps, batch, *torch.full((2, len(noisy)), 0.8))


def _parts(noisy: Tensor, predicted: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor]:
    """The clean latent and the noise of a noisy latent and its v (Salimans and Ho 2022, appendix D)."""
    clean, noise = alphas.sqrt().view(-1, 1, 1, 1), (1 - alphas).sqrt().view(-1, 1, 1, 1)
    return clean * noisy - noise * predicted, clean * predicted + noise * noisy


if __name__ == "__main__":
    distil(Path(sys.argv[1]), Path(sys.argv[2]), miniature.files().base.parent)
