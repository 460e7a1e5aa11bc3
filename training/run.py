"""A training run that can be stopped at any time and goes on where it was."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch


class Run:
    """Counts steps, prints progress, keeps a checkpoint.

        run = Run(folder / "recognizer.pt", steps=3000, parts={"model": model, "optimizer": optimizer})
        for step in run:
            ...
            run.log(loss=loss)

    Args:
        path: of the checkpoint; what an earlier run left there is loaded into ``parts`` and the count goes on.
        steps: at which it is done.
        parts: whatever has ``state_dict`` and ``load_state_dict``.
        quiet: True for all but one of several processes that train together: they neither print nor write.
    """

    def __init__(self, path: Path, steps: int, parts: Mapping[str, Any], every: int = 100, quiet: bool = False) -> None:
        self.path, self.steps, self.parts, self.every, self.quiet = path, steps, parts, every, quiet
        self.step = 0
        self.seconds = 0.0
        """Seconds of training, over all runs."""
        self._sums: dict[str, torch.Tensor | float] = {}
        self._logged = 0
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.step, self.seconds = state["step"], state["seconds"]
            for name, part in parts.items():
                part.load_state_dict(state[name])

    @property
    def done(self) -> float:
        """0..1"""
        return self.step / self.steps

    def __iter__(self) -> Iterator[int]:
        last = time.perf_counter()
        while self.step < self.steps:
            yield self.step
            self.step += 1
            now = time.perf_counter()
            self.seconds, last = self.seconds + now - last, now
            if self.step % self.every == 0 or self.step == self.steps:
                self._report()
                self.save()

    def anneal(self, optimizer: torch.optim.Optimizer, peak: float, decay: float = 0.4) -> None:
        """Set the learning rate of this step: up to ``peak`` in the first 2 %, constant, down to 0 in the last part."""
        rate = peak * min(1.0, self.done / 0.02 + 1e-3, (1 - self.done) / decay)
        for group in optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):  # a graph reads it there
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def log(self, **values: torch.Tensor | float) -> None:
        """Numbers of this step; their means are printed now and then. A GPU is not waited for."""
        for name, value in values.items():
            value = value.detach() if isinstance(value, torch.Tensor) else value
            self._sums[name] = value + self._sums.get(name, 0.0)
        self._logged += 1

    def save(self) -> None:
        if self.quiet:
            return
        state = {name: part.state_dict() for name, part in self.parts.items()}
        part = self.path.with_suffix(".part")
        torch.save({"step": self.step, "seconds": self.seconds, **state}, part)
        os.replace(part, self.path)

    def _report(self) -> None:
        means = "  ".join(f"{name} {float(value) / max(self._logged, 1):.4f}" for name, value in self._sums.items())
        self._sums, self._logged = {}, 0
        if not self.quiet:
            left = (self.steps - self.step) * self.seconds / self.step
            clock = f"{self.seconds:.0f} s, {left:.0f} s to go"
            print(f"{self.path.stem}: step {self.step} of {self.steps}  {means}  ({clock})", flush=True)
