"""Where a suite measures. It imports nothing of the package, so that sessions may import it before their pack."""

from __future__ import annotations

import torch


def on(device: str) -> tuple[torch.device, torch.dtype]:
    """The device, and the type that is measured on it: half precision on a GPU, fp32 elsewhere."""
    if device == "cuda":
        return torch.device("cuda", 0), torch.float16  # with its number, as hosts name it
    return torch.device(device), torch.float32


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
