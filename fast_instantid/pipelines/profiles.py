"""Profiles: sampling in few steps without guidance, with weights that were distilled for it."""

from __future__ import annotations

import importlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import FastInstantIDError, ModelFileError
from ..sources import local_path
from . import attachment
from .load import load_lora

_MERGED = "-merged"
_NOISE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
"""What the configuration of a scheduler says of the noise that the UNet was trained with."""


@dataclass(frozen=True)
class Profile:
    """A way to sample in few steps.

    Args:
        name: of the LoRA's adapter in the pipeline.
        steps: by default.
        scheduler: diffusers' class; "" leaves the pipeline's own.
        settings: of the scheduler. From the pipeline's scheduler it takes the noise schedule alone.
        repository: of the LoRA, or of the base model, on the Hugging Face hub.
        lora: file name; "" for weights that are in the base model.
    """

    name: str = ""
    steps: int = 0
    scheduler: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    repository: str = ""
    lora: str = ""

    @classmethod
    def of(cls, profile: str | Profile | None) -> Profile:
        """Return a profile by its name; for None, one that changes nothing.

        ``NAME-merged`` is for a base model with the LoRA merged into it. A FastInstantIDError for another name.
        """
        if profile is None or isinstance(profile, Profile):
            return profile or cls()
        name = str(profile).removesuffix(_MERGED)
        if name not in PROFILES:
            known = ", ".join(PROFILES)
            raise FastInstantIDError(f"no profile {profile!r}: choose from {known}; or NAME{_MERGED}, without its LoRA")
        return PROFILES[name] if name == profile else replace(PROFILES[name], lora="")

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the pipeline's call, in place of its usual defaults."""
        return {"num_inference_steps": self.steps, "guidance_scale": 1.0} if self.name else {}

    def load(self, pipe: Any) -> None:
        """Load the LoRA from the models folder or the hub's cache, as the inactive adapter ``name``. Idempotent.

        Raises:
            ModelFileError: the file is missing, or holds something else; says how to get it.
        """
        if not self.lora or self.name in getattr(_unet(pipe), "peft_config", ()):
            return
        try:
            path = local_path(self.repository, "a LoRA") / self.lora
        except ModelFileError:
            path = Path(self.lora)
        if not path.is_file():
            raise ModelFileError(
                f"profile {self.name} needs the LoRA {self.lora} of {self.repository}, which is not here: get it by "
                f"'hf download {self.repository} {self.lora}', or load it by pipe.load_lora_weights(FILE, "
                f"adapter_name={self.name!r}); {self.name}{_MERGED} is for a base model that holds it"
            )
        before = {layer: active for layer, active, _ in _adapters(pipe)}
        load_lora(pipe, path, self.name)
        for layer, _, _ in _adapters(pipe):
            layer.set_adapter(before.get(layer, []))

    @contextmanager
    def applied(self, pipe: Any, steps: int | None) -> Generator[None]:
        """Sample in this way for a block of code. Scheduler and adapters are restored exactly.

        Raises:
            ModelFileError: the LoRA is missing.
            FastInstantIDError: the scheduler cannot do so many steps.
        """
        with attachment.turn_of(pipe):
            self.load(pipe)
            usual, adapters = pipe.scheduler, _adapters(pipe) if self.lora else []
            try:
                if self.scheduler:
                    pipe.scheduler = self._scheduler(usual.config, steps)
                for layer, active, is_off in adapters:
                    layer.set_adapter([*dict.fromkeys([*([] if is_off else active), self.name])])
                    layer.enable_adapters(True)
                yield
            finally:
                if self.scheduler:
                    pipe.scheduler = usual
                for layer, active, is_off in adapters:
                    layer.set_adapter(active)
                    layer.enable_adapters(not is_off)

    def _scheduler(self, usual: Mapping[str, Any], steps: int | None) -> Any:
        kind = getattr(importlib.import_module("diffusers"), self.scheduler)
        scheduler = kind.from_config({name: usual[name] for name in _NOISE if name in usual}, **self.settings)
        try:
            scheduler.set_timesteps(steps or self.steps)
        except ValueError as error:
            raise FastInstantIDError(f"profile {self.name} cannot do {steps} steps: {error}") from error
        return scheduler


def _unet(pipe: Any) -> Any:
    return getattr(pipe.unet, "_orig_mod", pipe.unet)


def _adapters(pipe: Any) -> list[tuple[Any, list[str], bool]]:
    """Return the UNet's layers with LoRAs, each with the names of the active ones, and whether all are off."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # an optional package, without which there are no LoRAs

    layers = [layer for layer in _unet(pipe).modules() if isinstance(layer, BaseTunerLayer)]
    return [(layer, [*layer.active_adapters], layer.disable_adapters) for layer in layers]


_TRAILING = {"timestep_spacing": "trailing"}
_DDIM = {**_TRAILING, "clip_sample": False, "set_alpha_to_one": False}
_DMD2 = {"original_inference_steps": 40}  # of which each tenth is a timestep of its training: 999, 749, 499, 249
_ROWS: list[Any] = [
    ("lcm", 8, "LCMScheduler", {}, "latent-consistency/lcm-lora-sdxl", "pytorch_lora_weights.safetensors"),
    ("lightning", 4, "EulerDiscreteScheduler", _TRAILING, "ByteDance/SDXL-Lightning",
     "sdxl_lightning_4step_lora.safetensors"),
    ("dmd2", 4, "LCMScheduler", _DMD2, "tianweiy/DMD2", "dmd2_sdxl_4step_lora_fp16.safetensors"),
    ("hyper", 8, "DDIMScheduler", _DDIM, "ByteDance/Hyper-SD", "Hyper-SDXL-8steps-lora.safetensors"),
    ("turbo", 4, "EulerAncestralDiscreteScheduler", _TRAILING, "stabilityai/sdxl-turbo"),
]  # fmt: skip
PROFILES = {row[0]: Profile(*row) for row in _ROWS}
"""Schedulers, steps and files of the published model cards, by name."""
