"""The loop that trains the diffusion networks: on a GPU, or in processes of one thread that average their gradients.

On two cores that is faster than one process with two threads: the networks are too small to share one picture's work.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from training.conditions import Conditions
from training.data import Portraits
from training.diffusion import Stack, pretrain_resampler
from training.networks import tokenizer
from training.run import Run
from training.step import Step

_PEAK_RATE = 2e-3
_EMA = 0.998
_PAIRS = 4
"""Each fourth batch is one of pairs, half as many pictures of twice the width."""


@dataclass(frozen=True)
class Plan:
    """Length and sizes of the training.

    Args:
        steps: of the optimizer.
        batch: pictures per step and process.
        processes: each with one thread; on a GPU there is one.
        device: of torch, "cpu" or "cuda".
        resampler_steps: of pretraining the resampler, before all else.
    """

    steps: int = 6000
    batch: int = 16
    processes: int = 2
    device: str = "cpu"
    seed: int = 0
    resampler_steps: int = 600


def train(folder: Path, plan: Plan) -> Stack:
    """Train, or resume, and return the average weights of the last few hundred steps.

    :func:`training.prepare.prepare` has been in ``folder``; from weights in ``start/`` it goes on.
    """
    if plan.device != "cpu":
        _train(folder, plan)
    else:
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
    state = torch.load(folder / "diffusion.pt", weights_only=True, map_location="cpu")["average"]
    stack.load_state_dict(state["weights"])
    return stack.eval()


class Average:
    """An exponential moving average of the parameters; early on, of all steps alike."""

    def __init__(self, model: nn.Module) -> None:
        self._model = list(model.state_dict().values())  # the parameters themselves
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.count = 0

    @torch.no_grad()
    def update(self) -> None:
        self.count += 1
        decay = min(_EMA, self.count / (self.count + 10))
        torch._foreach_lerp_(list(self.weights.values()), self._model, 1 - decay)

    def state_dict(self) -> dict[str, object]:
        return {"weights": self.weights, "count": self.count}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.weights, self.count = state["weights"], state["count"]  # pyright: ignore


def _train_part(rank: int, folder: Path, plan: Plan, store: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=plan.processes)
    if rank == 0:
        tokenizer(folder / "tokenizer")  # writes files that all of them read
    dist.barrier()
    _train(folder, plan, rank)
    dist.destroy_process_group()


def _train(folder: Path, plan: Plan, rank: int = 0) -> None:
    device = torch.device(plan.device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(plan.seed)
    words = tokenizer(folder / "tokenizer")
    stack = Stack(words)
    if (folder / "start").exists():
        stack.load_files(folder / "start")
    stack.to(device)
    # A graph reads the rate from where it is, so it must be a tensor.
    rate = torch.tensor(_PEAK_RATE, device=device) if on_gpu else _PEAK_RATE
    how = {"fused": True, "capturable": True} if on_gpu else {"foreach": True}
    optimizer = torch.optim.AdamW(_groups(stack), rate, (0.9, 0.98), **how)
    average = Average(stack)
    parts = {"stack": stack, "optimizer": optimizer, "average": average}
    run = Run(folder / "diffusion.pt", plan.steps, parts, every=1000 if on_gpu else 100, quiet=rank > 0)
    conditions = Conditions(folder, words, [plan.seed, run.step, rank], device)
    if run.step == 0 and not (folder / "start").exists():
        portraits = Portraits.load(folder / "train")
        attributes = torch.tensor(portraits.attributes).repeat_interleave(portraits.each, 0).to(device)
        error = pretrain_resampler(stack, conditions.embeddings, attributes, plan.resampler_steps)
        if rank == 0:
            print(f"resampler: reads attributes with a mean squared error of {error:.4f}", flush=True)
        average = parts["average"] = Average(stack)
    torch.manual_seed(plan.seed + 1000 * run.step + rank + 1)
    step = Step(stack, optimizer, plan.processes if not on_gpu else 1)
    for number in run:
        if number % _PAIRS == _PAIRS - 1:
            batch = conditions.pairs(max(1, plan.batch // 2))
        else:
            batch = conditions.batch(plan.batch)
        run.anneal(optimizer, _PEAK_RATE)
        losses = step(batch)
        if rank == 0:
            average.update()
            run.log(loss=losses.total, high_noise=losses.high_noise)


def _groups(stack: Stack) -> list[dict[str, object]]:
    """Matrices decay a little; biases and norms don't."""
    matrices = [parameter for parameter in stack.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in stack.parameters() if parameter.dim() < 2]
    return [{"params": matrices, "weight_decay": 1e-3}, {"params": others, "weight_decay": 0.0}]


os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
