"""Batch sizes, resizing, dotted attributes, and the progress bar."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F

PROGRESS_BAR_HOOK: Callable | None = None


def set_progress_bar_global_hook(function: Callable | None) -> None:
    global PROGRESS_BAR_HOOK
    PROGRESS_BAR_HOOK = function


class ProgressBar:
    def __init__(self, total: int, node_id: str | None = None) -> None:
        self.total = total
        self.current = 0
        self.hook = PROGRESS_BAR_HOOK
        self.node_id = node_id

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
        self.total = self.total if total is None else total
        self.current = min(value, self.total)
        if self.hook is not None:
            self.hook(self.current, self.total, preview, node_id=self.node_id)

    def update(self, value: int) -> None:
        self.update_absolute(self.current + value)


def repeat_to_batch_size(tensor: torch.Tensor, batch_size: int) -> torch.Tensor:
    if len(tensor) < batch_size:
        tensor = tensor.repeat(-(-batch_size // len(tensor)), *[1] * (tensor.ndim - 1))
    return tensor[:batch_size]


def common_upscale(samples: torch.Tensor, width: int, height: int, upscale_method: str, crop: str) -> torch.Tensor:
    """Resize ``(B, C, H, W)``; ``crop="center"`` first cuts it to the new aspect ratio."""
    if crop == "center":
        old_height, old_width = samples.shape[-2:]
        old_aspect, new_aspect = old_width / old_height, width / height
        x = round(old_width * (1 - new_aspect / old_aspect) / 2) if old_aspect > new_aspect else 0
        y = round(old_height * (1 - old_aspect / new_aspect) / 2) if old_aspect < new_aspect else 0
        samples = samples[..., y : old_height - y, x : old_width - x]
    return F.interpolate(samples, size=(height, width), mode=upscale_method)


def get_attr(obj: Any, attr: str) -> Any:
    return reduce(getattr, attr.split("."), obj)


def set_attr(obj: Any, attr: str, value: Any) -> Any:
    """Set a dotted attribute; return what was there."""
    *path, name = attr.split(".")
    owner = reduce(getattr, path, obj)
    old = getattr(owner, name)
    setattr(owner, name, value)
    return old
