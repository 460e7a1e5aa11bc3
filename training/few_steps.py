"""A LoRA of the UNet for few steps without guidance, as LCM-LoRA is one for SDXL (Luo et al. 2023, arXiv 2311.05556).

The teacher is the miniature with guidance, identity tokens and IdentityNet. It draws whole pictures. The student is the
same UNet with a LoRA. From every noisy latent on the way to a picture, it learns to predict the end of the way: the
consistency function of Song et al. 2023 (arXiv 2303.01469). LCM-LoRA learns that from its own predictions at the next
step, because a whole way of SDXL is dear. Here it is cheap, and so the target is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from fast_instantid.miniature import GUIDANCE
from training.conditions import Batch, Conditions, tokens
from training.diffusion import Stack
from training.networks import tokenizer
from training.run import Run
from training.together import Average

FILE = "lcm-lora.safetensors"
"""Name of the result, in the folder of the miniature's base model."""

_RATE = 2e-3
_HUBER = 1e-2
_LAYERS = r".*(attn1\.to_[qkv]|attn[12]\.to_out\.0|attn2\.to_q|conv1|conv2|time_emb_proj|samplers\.0\.conv)"


@dataclass(frozen=True)
class Plan:
    """Length and sizes of the distillation.

    Args:
        ways: pictures of the teacher.
        teacher_steps: noisy latents on the way to each.
        steps: of the optimizer.
        batch: latents per step.
        rank: of each layer's LoRA.
    """

    ways: int = 512
    teacher_steps: int = 6
    steps: int = 500
    batch: int = 16
    rank: int = 3
    seed: int = 0


@dataclass
class Ways:
    """The teacher's ways from noise to ``N`` pictures, each of ``S`` steps."""

    noisy: Tensor
    """``(S, N, 4, 16, 16)``"""
    timesteps: Tensor
    """``(S,)`` for each batch of pictures alike: ``(S, N)``."""
    conditions: Batch
    """Its latents are the ends."""

    def save(self, path: Path) -> None:
        torch.save({"noisy": self.noisy, "timesteps": self.timesteps, **vars(self.conditions)}, path)

    @classmethod
    def load(cls, path: Path) -> Ways:
        state = torch.load(path, weights_only=True)
        return cls(state.pop("noisy"), state.pop("timesteps"), Batch(**state))


@torch.no_grad()
def draw_ways(stack: Stack, conditions: Conditions, nothing_said: Tensor, plan: Plan) -> Ways:
    """Draw the teacher's pictures by DDIM, from noise and at timesteps that differ from batch to batch."""
    parts: list[Ways] = []
    for start in range(0, plan.ways, plan.batch):
        batch = conditions.batch(plan.batch)
        noisy, seen = torch.randn_like(batch.latents), []
        count = len(noisy)
        nobody = replace(batch, words=nothing_said.expand(count, -1), embeddings=torch.zeros_like(batch.embeddings))
        places = torch.arange(plan.teacher_steps) + 0.8 * torch.rand(plan.teacher_steps) - 0.4
        places[0] = 0  # pure noise
        timesteps = ((1 - places / plan.teacher_steps) * (len(stack.alphas) - 1)).long()
        for i, timestep in enumerate(timesteps):
            seen.append(noisy)
            now = timestep.expand(count)
            cond, uncond = (stack(noisy, now, one, *_scales(count)) for one in (batch, nobody))
            clean, noise = parts_of(noisy, uncond + GUIDANCE * (cond - uncond), stack.alphas[now])
            alpha = stack.alphas[timesteps[i + 1]] if i + 1 < len(timesteps) else torch.ones(())
            noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        batch.latents = noisy
        parts.append(Ways(torch.stack(seen), timesteps[:, None].expand(-1, count).contiguous(), batch))
        print(f"few steps: the teacher drew {start + count} of {plan.ways}", flush=True)
    whole = {name: torch.cat([vars(part.conditions)[name] for part in parts]) for name in vars(batch)}
    return Ways(torch.cat([p.noisy for p in parts], 1), torch.cat([p.timesteps for p in parts], 1), Batch(**whole))


def distil(folder: Path, weights: Path, plan: Plan = Plan()) -> None:
    """Train, or go on, and write ``base/lcm-lora.safetensors`` into ``weights``.

    :func:`training.prepare.prepare` has been in ``folder``.
    """
    torch.manual_seed(plan.seed)
    words = tokenizer(folder / "tokenizer")
    stack = Stack(words)
    stack.load_files(weights)
    stack.requires_grad_(False).eval()
    if not (folder / "ways.pt").exists():
        conditions = Conditions(folder, words, [plan.seed, 7])
        draw_ways(stack, conditions, tokens(words, [""]), plan).save(folder / "ways.pt")
    ways = Ways.load(folder / "ways.pt")
    stack.unet.add_adapter(LoraConfig(r=plan.rank, lora_alpha=plan.rank, target_modules=_LAYERS))
    lora = torch.nn.ParameterList(p for p in stack.unet.parameters() if p.requires_grad)
    optimizer = torch.optim.AdamW(lora, _RATE, (0.9, 0.99), weight_decay=1e-4)
    average = Average(lora)
    run = Run(folder / "few_steps.pt", plan.steps, {"lora": lora, "optimizer": optimizer, "average": average}, every=20)
    torch.manual_seed(plan.seed + 1 + run.step)
    for _ in run:
        picture = torch.randint(ways.noisy.shape[1], (plan.batch,))
        step = torch.randint(len(ways.noisy), (plan.batch,))
        noisy, timesteps = ways.noisy[step, picture], ways.timesteps[step, picture]
        batch = Batch(*(tensor[picture] for tensor in ways.conditions.tensors))
        predicted = stack(noisy, timesteps, batch, *_scales(plan.batch))
        clean, _ = parts_of(noisy, predicted, stack.alphas[timesteps])
        errors = ((clean - batch.latents).square() + _HUBER**2).sqrt() - _HUBER
        loss = (errors * batch.weights).mean()
        run.anneal(optimizer, _RATE)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lora, 1.0)
        optimizer.step()
        average.update()
        run.log(loss=loss)
    lora.load_state_dict(average.weights)
    state = get_peft_model_state_dict(stack.unet)
    tensors = {f"unet.{name}": value.half().contiguous() for name, value in state.items()}
    save_file(tensors, weights / "base" / FILE, metadata={"format": "pt"})


def _scales(count: int) -> Tensor:
    """The default strengths of adapter and IdentityNet."""
    return torch.full((2, count), 0.8)


def parts_of(noisy: Tensor, predicted: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor]:
    """The clean latent and the noise of a noisy latent and its v (Salimans and Ho 2022, appendix D)."""
    alphas = alphas.view(-1, 1, 1, 1)
    return (
        alphas.sqrt() * noisy - (1 - alphas).sqrt() * predicted,
        alphas.sqrt() * predicted + (1 - alphas).sqrt() * noisy,
    )
