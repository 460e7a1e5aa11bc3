"""The numbers that go into a network's module and come out of it: finite, and out in one copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from ...errors import ModelFileError
from .graph import Graph

Reduction: TypeAlias = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
"""Makes what is wanted of a network's outputs, on their device."""


def check_weights(graph: Graph) -> None:
    """Refuse NaN and infinity with a ModelFileError: infinity may vanish in a ReLU, and NaN in a comparison."""
    for name, weight in graph.initializers.items():
        if weight.dtype.kind != "f" or math.isfinite(torch.from_numpy(weight).sum()):  # by all threads, in one pass
            continue
        if not np.isfinite(weight).all():  # the sum may overflow
            raise ModelFileError(f"{graph.path}: its tensor {name!r} holds NaN or infinity; download it again")


def results_of(outputs: Sequence[torch.Tensor], reduce: Reduction | None, path: Path, backend: str) -> list[np.ndarray]:
    """The outputs, or what is made of them, in one copy to the host; a ModelFileError if an output is not finite."""
    outputs = [output.float() for output in outputs]
    results = outputs if reduce is None else reduce(outputs)
    zero = torch.cat([output.reshape(-1) for output in outputs]).mul_(0).sum()  # NaN times 0, and infinity, are NaN
    numbers = torch.cat([zero.view(1), *(result.reshape(-1) for result in results)]).cpu().numpy()
    if numbers[0] != 0:
        raise ModelFileError(
            f"{path}: its results hold NaN or infinity on {backend}: download it again, or compute in float32"
        )
    parts = np.split(numbers[1:], np.cumsum([result.numel() for result in results])[:-1])
    return [part.reshape(result.shape) for part, result in zip(parts, results, strict=True)]
