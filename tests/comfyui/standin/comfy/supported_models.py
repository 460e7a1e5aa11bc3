"""The configuration that SDXL is built from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

import comfy.model_base


class SDXL:
    latent_format = SimpleNamespace(latent_channels=4, latent_dimensions=2, scale_factor=0.13025)

    def __init__(self, unet_config: dict[str, Any]) -> None:
        self.unet_config = dict(unet_config)
        self.manual_cast_dtype: torch.dtype | None = None

    def set_inference_dtype(self, dtype: torch.dtype, manual_cast_dtype: torch.dtype | None) -> None:
        self.unet_config["dtype"] = dtype
        self.manual_cast_dtype = manual_cast_dtype

    def get_model(self, state_dict: dict, prefix: str = "", device=None) -> comfy.model_base.SDXL:
        return comfy.model_base.SDXL(self, device=device)
