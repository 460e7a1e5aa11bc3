"""Small pictures of what is being drawn, by a linear approximation of the model's own VAE."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch
from PIL import Image

from .documents import encoded


class Previews:
    """A linear map from a latent to the mean colour of its 8 x 8 pixels, fitted to pictures of the warm-up."""

    def __init__(self) -> None:
        self._map: torch.Tensor | None = None  # (channels + 1, 3)

    def fit(self, latents: torch.Tensor, image: Image.Image) -> None:
        """Fit by least squares to the latents ``(1, C, H, W)`` of a picture."""
        height, width = latents.shape[2:]
        small = image.convert("RGB").resize((width, height), Image.Resampling.BOX)
        colours = torch.from_numpy(np.array(small, np.float32)).reshape(-1, 3)
        self._map = torch.linalg.lstsq(_columns(latents[0]), colours).solution

    def jpeg(self, latents: torch.Tensor) -> str:
        """A JPEG of latents ``(C, H, W)`` in base64, one pixel for each; "" before :meth:`fit`."""
        if self._map is None:
            return ""
        pixels = (_columns(latents) @ self._map).clamp(0, 255).to(torch.uint8)
        image = Image.fromarray(pixels.reshape(*latents.shape[1:], 3).numpy())
        return base64.b64encode(encoded(image, "JPEG", quality=85, subsampling=0)).decode()


def expected(scheduler: Any, step: int, before: torch.Tensor | None, after: torch.Tensor) -> torch.Tensor:
    """The latents that a sampler heads for, from those before and after a step: ``x = a * x0 + s * noise`` in both.

    Exact for Euler and DDIM (Song et al. 2021, equation 12), near for others; ``after`` where nothing tells.
    """
    if before is None or step + 1 >= len(scheduler.timesteps):
        return after
    if type(scheduler).__name__.startswith("Euler"):
        (a0, a1), (s0, s1) = (1.0, 1.0), (float(scheduler.sigmas[i]) for i in (step, step + 1))
    else:
        kept = [float(scheduler.alphas_cumprod[int(scheduler.timesteps[i])]) for i in (step, step + 1)]
        (a0, a1), (s0, s1) = ((x**0.5 for x in kept), ((1 - x) ** 0.5 for x in kept))
    return (s1 * before - s0 * after) / (s1 * a0 - s0 * a1)


def _columns(latents: torch.Tensor) -> torch.Tensor:
    """``(pixels, channels + 1)`` float32, the last column 1."""
    flat = latents.detach().float().cpu().flatten(1).T
    return torch.cat([flat, torch.ones(len(flat), 1)], dim=1)
