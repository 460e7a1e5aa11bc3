"""SDXL without its text encoders: the UNet, its noise levels, and what conditioning becomes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import comfy.conds
import comfy.model_management
import comfy.model_sampling
import comfy.ops
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel, timestep_embedding
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers


class SDXL(torch.nn.Module):
    def __init__(self, model_config, device=None) -> None:
        super().__init__()
        self.model_config = model_config
        self.latent_format = model_config.latent_format
        self.manual_cast_dtype = model_config.manual_cast_dtype
        self.device = device
        self.current_patcher = None
        self.diffusion_model = UNetModel(**model_config.unet_config, device=device, operations=comfy.ops.manual_cast)
        self.model_sampling = comfy.model_sampling.EPS()

    def get_dtype(self) -> torch.dtype:
        return self.diffusion_model.dtype

    def memory_required(self, input_shape: list[int], cond_shapes: dict | None = None) -> float:
        return 0.0

    def process_latent_in(self, latent: Tensor) -> Tensor:
        return latent * self.latent_format.scale_factor

    def process_latent_out(self, latent: Tensor) -> Tensor:
        return latent / self.latent_format.scale_factor

    def encode_adm(self, pooled_output: Tensor, width: int, height: int, **kwargs: Any) -> Tensor:
        """Pooled text, then six sizes and offsets of 256 numbers each."""
        sizes = torch.tensor([height, width, 0, 0, height, width])
        return torch.cat([pooled_output, timestep_embedding(sizes, 256).flatten().expand(len(pooled_output), -1)], 1)

    def extra_conds(self, **kwargs: Any) -> dict[str, comfy.conds.CONDRegular]:
        out = {"y": comfy.conds.CONDRegular(self.encode_adm(**kwargs))}
        for name, key in (("cross_attn", "c_crossattn"), ("cross_attn_controlnet", "crossattn_controlnet")):
            if kwargs.get(name) is not None:
                out[key] = comfy.conds.CONDCrossAttn(kwargs[name])
        return out

    def apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        transformer_options = {} if transformer_options is None else transformer_options
        wrappers = get_all_wrappers(WrappersMP.APPLY_MODEL, transformer_options)
        executor = WrapperExecutor.new_class_executor(self._apply_model, self, wrappers)
        return executor.execute(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def _apply_model(self, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs) -> Tensor:
        dtype = self.manual_cast_dtype or self.get_dtype()
        noisy = self.model_sampling.calculate_input(t, x).to(dtype)
        timestep = self.model_sampling.timestep(t).float()
        extra = {
            name: comfy.model_management.cast_to_device(value, noisy.device, dtype) for name, value in kwargs.items()
        }
        options = {"context": c_crossattn.to(noisy), "control": control, "transformer_options": transformer_options}
        output = self.diffusion_model(noisy, timestep, **options, **extra).float()
        return self.model_sampling.calculate_denoised(t, output, x)
