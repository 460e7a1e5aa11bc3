"""The loop that trains the diffusion networks, in processes of one thread that average their gradients.

On two cores that is faster than one process with two threads: the networks are too small to share one picture's work.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.conditions import Conditions
from training.data import Portraits
from training.diffusion import Stack, pretrain_resampler
from training.networks import tokenizer
from training.run import Run

_PEAK_RATE = 2e-3
_EMA = 0.998


@dataclass(frozen=True)
class Plan:
    """How long and how large.

    Args:
        steps: of the optimizer.
        batch: pictures per step and process.
        processes: each with one thread.
    """

    steps: int = 6000
    batch: int = 16
    processes: int = 2
    seed: int = 0


def train(folder: Path, plan: Plan) -> Stack:
    """Train, or go on with what an earlier call left; returns the average of the last few hundred steps' weights.

    ``folder`` holds ``train/`` (the portraits), ``latents.pt`` and ``embeddings.pt``; weights in ``start/`` are gone on
    from, where there are any.
    """
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "store"
        if plan.processes == 1:
            _train_part(0, folder, plan, store)
        else:
            torch.multiprocessing.spawn(_train_part, (folder, plan, store), plan.processes)
    return averaged(folder)


def averaged(folder: Path) -> Stack:
    """The exponential moving average of the weights, as the last checkpoint has it."""
    stack = Stack(tokenizer(folder / "tokenizer"))
    state = torch.load(folder / "diffusion.pt", weights_only=True)["average"]
    stack.load_state_dict(state["weights"])
    return stack.eval()


class Average:
    """An exponential moving average of the parameters; early on, of all steps alike."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.count = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.count += 1
        decay = min(_EMA, self.count / (self.count + 10))
        torch._foreach_lerp_(list(self.weights.values()), list(model.state_dict().values()), 1 - decay)

    def state_dict(self) -> dict[str, object]:
        return {"weights": self.weights, "count": self.count}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.weights, self.count = state["weights"], state["count"]  # pyright: ignore


def _train_part(rank: int, folder: Path, plan: Plan, store: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=plan.processes)
    torch.manual_seed(plan.seed)
    words = tokenizer(folder / "tokenizer") if rank == 0 else None
    dist.barrier()
    words = words or tokenizer(folder / "tokenizer")
    portraits = Portraits.load(folder / "train")
    latents, embeddings = (torch.load(folder / f"{name}.pt", mmap=True) for name in ("latents", "embeddings"))
    stack = Stack(words)
    optimizer = torch.optim.AdamW(_groups(stack), _PEAK_RATE, (0.9, 0.98), foreach=True)
    average = Average(stack)
    parts = {"stack": stack, "optimizer": optimizer, "average": average}
    run = Run(folder / "diffusion.pt", plan.steps, parts, every=100, quiet=rank > 0)
    if run.step == 0 and (folder / "start").exists():
        stack.load_files(folder / "start")
        parts["average"] = average = Average(stack)
    elif run.step == 0:
        attributes = torch.tensor(portraits.attributes).repeat_interleave(portraits.each, 0)
        error = pretrain_resampler(stack, embeddings, attributes)
        if rank == 0:
            print(f"resampler: reads attributes with a mean squared error of {error:.4f}", flush=True)
        parts["average"] = average = Average(stack)
    torch.manual_seed(plan.seed + 1000 * run.step + rank + 1)
    conditions = Conditions(portraits, latents, embeddings, words, [plan.seed, run.step, rank])
    for _ in run:
        losses = stack.loss(conditions.batch(plan.batch))
        optimizer.zero_grad()
        losses.total.backward()
        _average_gradients(stack, plan.processes)
        torch.nn.utils.clip_grad_norm_(stack.parameters(), 1.0)
        run.anneal(optimizer, _PEAK_RATE)
        optimizer.step()
        if rank == 0:
            average.update(stack)
            run.log(loss=losses.total.item(), high_noise=losses.high_noise)
    dist.destroy_process_group()


def _groups(stack: Stack) -> list[dict[str, object]]:
    """Matrices decay a little; biases and norms don't."""
    matrices = [parameter for parameter in stack.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in stack.parameters() if parameter.dim() < 2]
    return [{"params": matrices, "weight_decay": 1e-3}, {"params": others, "weight_decay": 0.0}]


def _average_gradients(stack: nn.Module, processes: int) -> None:
    if processes == 1:
        return
    # Whoever got no gradient in this step, the last layers of a text encoder, gets none in any process.
    gradients: list[Tensor] = [parameter.grad for parameter in stack.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= processes
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
