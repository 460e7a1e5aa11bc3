"""Where a suite measures. It imports nothing of the package, so that sessions may import it before their pack."""

from __future__ import annotations

import torch


def on(device: str) -> tuple[torch.device, torch.dtype]:
    """The device, and the type that is measured on it: half precision on a GPU, fp32 elsewhere."""
    place = torch.device(device)
    if place.type != "cuda":
        return place, torch.float32
    return torch.device("cuda", place.index or 0), torch.float16  # with its number, as hosts name it


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
