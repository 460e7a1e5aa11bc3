"""Noise levels of SDXL: a discrete schedule of 1000, linear in the root of beta, and predictions of the noise."""

from __future__ import annotations

import torch
from torch import Tensor


class ModelSamplingDiscrete(torch.nn.Module):
    def __init__(self, linear_start: float = 0.00085, linear_end: float = 0.012, timesteps: int = 1000) -> None:
        super().__init__()
        betas = torch.linspace(linear_start**0.5, linear_end**0.5, timesteps, dtype=torch.float64) ** 2
        remaining = torch.cumprod(1 - betas, dim=0)
        sigmas = ((1 - remaining) / remaining) ** 0.5
        self.register_buffer("sigmas", sigmas.float())
        self.register_buffer("log_sigmas", sigmas.log().float())

    @property
    def sigma_min(self) -> Tensor:
        return self.sigmas[0]

    @property
    def sigma_max(self) -> Tensor:
        return self.sigmas[-1]

    def timestep(self, sigma: Tensor) -> Tensor:
        """The nearest timestep."""
        distances = (sigma.log() - self.log_sigmas[:, None]).abs()
        return distances.argmin(dim=0).view(sigma.shape)

    def sigma(self, timestep: Tensor) -> Tensor:
        """Geometric interpolation between the timesteps around."""
        t = timestep.float().clamp(0, len(self.sigmas) - 1)
        low, high, part = self.log_sigmas[t.floor().long()], self.log_sigmas[t.ceil().long()], t.frac()
        return ((1 - part) * low + part * high).exp()

    def percent_to_sigma(self, percent: float) -> float:
        """0 is before the first step whatever its noise, 1 after the last."""
        if percent <= 0.0:
            return 999999999.9
        if percent >= 1.0:
            return 0.0
        return self.sigma(torch.tensor((1.0 - percent) * 999.0)).item()


class EPS(ModelSamplingDiscrete):
    def calculate_input(self, sigma: Tensor, noise: Tensor) -> Tensor:
        return noise / (_like(sigma, noise) ** 2 + 1) ** 0.5

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        return model_input - model_output * _like(sigma, model_output)

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        scale = torch.sqrt(1.0 + sigma**2) if max_denoise else sigma
        return noise * scale + latent_image


def _like(sigma: Tensor, latent: Tensor) -> Tensor:
    return sigma.view(-1, *[1] * (latent.ndim - 1))
