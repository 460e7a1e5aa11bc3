"""ControlNets as conditioning carries them: cheap copies of one network, each with a hint, in a chain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import comfy.model_management
import comfy.model_patcher
import comfy.utils


class ControlBase:
    def __init__(self) -> None:
        self.cond_hint_original: Tensor | None = None
        self.cond_hint: Tensor | None = None
        self.strength = 1.0
        self.timestep_percent_range = (0.0, 1.0)
        self.timestep_range: tuple[float, float] | None = None
        self.previous_controlnet: ControlBase | None = None

    def set_cond_hint(self, cond_hint, strength=1.0, timestep_percent_range=(0.0, 1.0), vae=None, extra_concat=()):
        self.cond_hint_original = cond_hint
        self.strength = strength
        self.timestep_percent_range = timestep_percent_range
        return self

    def set_previous_controlnet(self, controlnet: ControlBase | None) -> ControlBase:
        self.previous_controlnet = controlnet
        return self

    def copy_to(self, c: ControlBase) -> None:
        c.cond_hint_original = self.cond_hint_original
        c.strength = self.strength
        c.timestep_percent_range = self.timestep_percent_range

    def pre_run(self, model, percent_to_timestep_function) -> None:
        start, end = self.timestep_percent_range
        self.timestep_range = percent_to_timestep_function(start), percent_to_timestep_function(end)
        if self.previous_controlnet is not None:
            self.previous_controlnet.pre_run(model, percent_to_timestep_function)

    def control_merge(self, control, control_prev, output_dtype):
        control = {name: [output * self.strength for output in outputs] for name, outputs in control.items()}
        if control_prev is None:
            return control
        return {
            name: [a + b for a, b in zip(control_prev[name], parts, strict=True)] for name, parts in control.items()
        }

    def cleanup(self) -> None:
        if self.previous_controlnet is not None:
            self.previous_controlnet.cleanup()
        self.cond_hint = None
        self.timestep_range = None

    def get_models(self) -> list[comfy.model_patcher.ModelPatcher]:
        return [] if self.previous_controlnet is None else self.previous_controlnet.get_models()


class ControlNet(ControlBase):
    def __init__(self, control_model=None, load_device=None, manual_cast_dtype=None) -> None:
        super().__init__()
        self.control_model = control_model
        self.load_device = load_device
        self.manual_cast_dtype = manual_cast_dtype
        self.model_sampling_current = None
        if control_model is not None:
            offload_device = comfy.model_management.unet_offload_device()
            self.control_model_wrapped = comfy.model_patcher.ModelPatcher(control_model, load_device, offload_device)

    def copy(self) -> ControlNet:
        c = ControlNet(None, self.load_device, self.manual_cast_dtype)
        c.control_model = self.control_model
        c.control_model_wrapped = self.control_model_wrapped
        self.copy_to(c)
        return c

    def get_models(self) -> list[comfy.model_patcher.ModelPatcher]:
        return [*super().get_models(), self.control_model_wrapped]

    def pre_run(self, model, percent_to_timestep_function) -> None:
        super().pre_run(model, percent_to_timestep_function)
        self.model_sampling_current = model.model_sampling

    def cleanup(self) -> None:
        self.model_sampling_current = None
        super().cleanup()

    def get_control(
        self, x_noisy: Tensor, t: Tensor, cond: dict[str, Any], batched_number: int, transformer_options: dict
    ) -> dict[str, list[Tensor | None]] | None:
        before = None
        if self.previous_controlnet is not None:
            before = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        if self.timestep_range is not None and not self.timestep_range[1] <= t[0] <= self.timestep_range[0]:
            return before
        dtype = self.manual_cast_dtype or self.control_model.dtype
        context = cond.get("crossattn_controlnet", cond["c_crossattn"])
        control = self.control_model(
            x=self.model_sampling_current.calculate_input(t, x_noisy).to(dtype),
            hint=self._hint(x_noisy, batched_number, dtype),
            timesteps=self.model_sampling_current.timestep(t).to(dtype),
            context=comfy.model_management.cast_to_device(context, x_noisy.device, dtype),
            y=comfy.model_management.cast_to_device(cond["y"], x_noisy.device, dtype),
        )
        return self.control_merge(control, before, output_dtype=None)

    def _hint(self, x_noisy: Tensor, batched_number: int, dtype: torch.dtype) -> Tensor:
        """The hint at the size of the picture, made once for each run; several hints recur in every chunk."""
        height, width = (8 * size for size in x_noisy.shape[2:])
        if self.cond_hint is None or self.cond_hint.shape[2:] != (height, width):
            hint = comfy.utils.common_upscale(self.cond_hint_original, width, height, "nearest-exact", "center")
            self.cond_hint = hint.to(x_noisy.device, dtype)
        if len(self.cond_hint) not in (1, len(x_noisy)):
            per_chunk = comfy.utils.repeat_to_batch_size(self.cond_hint, len(x_noisy) // batched_number)
            self.cond_hint = torch.cat([per_chunk] * batched_number)
        return self.cond_hint
