"""Profiles: sampling in few steps without guidance, with weights that were distilled for it."""

from __future__ import annotations

import importlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import BackendError, FastInstantIDError, ModelFileError
from ..sources import local_path
from . import attachment
from .load import load_lora

_MERGED = "-merged"
_NOISE = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
    "rescale_betas_zero_snr",
)  # fmt: skip
"""What a scheduler's configuration says of the noise that the UNet was trained with."""


@dataclass(frozen=True)
class Profile:
    """A way to sample in few steps.

    Args:
        name: of the LoRA's adapter in the pipeline.
        scheduler: diffusers' class; "" leaves the pipeline's own.
        options: arguments of the pipeline's call, in place of its usual defaults.
        settings: of the scheduler. The pipeline's scheduler gives the noise schedule alone.
        lora: file name; "" for weights that are in the base model.
        repository: of the LoRA, or of the base model, on the Hugging Face hub.
    """

    name: str
    scheduler: str
    options: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    lora: str = ""
    repository: str = ""

    @classmethod
    def of(cls, profile: str | Profile | None) -> Profile:
        """Return a profile by its name; for None, one that changes nothing.

        ``NAME-merged`` is for a base model with the LoRA merged into it.

        Raises:
            FastInstantIDError: no such profile.
        """
        if isinstance(profile, Profile):
            return profile
        if profile is None:
            return cls("", "", {})
        name = str(profile).removesuffix(_MERGED)
        if name not in PROFILES:
            known = ", ".join(PROFILES)
            raise FastInstantIDError(f"no profile {profile!r}: choose from {known}; or NAME{_MERGED}, without its LoRA")
        return PROFILES[name] if name == profile else replace(PROFILES[name], lora="")

    def load(self, pipe: Any) -> None:
        """Load the LoRA into the pipeline as the adapter ``name``, inactive. Idempotent.

        It is looked for beside the base model, in the models folder and in the hub's cache, without network access.

        Raises:
            ModelFileError: the file is missing, or holds something else; says how to get it.
        """
        unet = _unet(pipe)
        if not self.lora or self.name in getattr(unet, "peft_config", ()):
            return
        path = Path(str(unet.config.get("_name_or_path"))).parent / f"{self.name}-lora.safetensors"
        if not path.is_file():
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
        before = {layer: active for layer, active, _ in _adapters(unet)}
        load_lora(pipe, path, self.name)
        for layer, _, _ in _adapters(unet):
            layer.set_adapter(before.get(layer, []))

    @contextmanager
    def applied(self, pipe: Any, steps: int | None = None) -> Generator[None]:
        """Sample in this way for a block of code. Scheduler and adapters are restored exactly.

        Args:
            steps: of the run, to refuse a number that the scheduler cannot do.

        Raises:
            ModelFileError: the LoRA is missing.
            FastInstantIDError: more steps than the scheduler can do.
        """
        if not self.name:
            yield
            return
        with attachment.turn_of(pipe):
            self.load(pipe)
            usual = pipe.scheduler
            scheduler = self._scheduler(usual.config, steps) if self.scheduler else usual
            adapters = _adapters(_unet(pipe)) if self.lora else []
            try:
                pipe.scheduler = scheduler
                for layer, active, is_off in adapters:
                    layer.set_adapter([*dict.fromkeys([*([] if is_off else active), self.name])])
                    layer.enable_adapters(True)
                yield
            finally:
                pipe.scheduler = usual
                for layer, active, is_off in adapters:
                    layer.set_adapter(active)
                    layer.enable_adapters(not is_off)

    def _scheduler(self, usual: Mapping[str, Any], steps: int | None) -> Any:
        kind = getattr(importlib.import_module("diffusers"), self.scheduler)
        scheduler = kind.from_config({name: usual[name] for name in _NOISE if name in usual}, **self.settings)
        try:
            if steps is not None:
                scheduler.set_timesteps(steps)
        except ValueError as error:
            raise FastInstantIDError(f"profile {self.name} cannot do {steps} steps: {error}") from error
        return scheduler


def _unet(pipe: Any) -> Any:
    return getattr(pipe.unet, "_orig_mod", pipe.unet)


def _adapters(unet: Any) -> list[tuple[Any, list[str], bool]]:
    """Return the UNet's layers with LoRAs, each with the names of the active ones, and whether all are off."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError as error:
        raise BackendError("LoRAs need peft: pip install peft") from error
    layers = [layer for layer in unet.modules() if isinstance(layer, BaseTunerLayer)]
    return [(layer, [*layer.active_adapters], layer.disable_adapters) for layer in layers]


def _few(steps: int) -> dict[str, Any]:
    return {"num_inference_steps": steps, "guidance_scale": 1.0}


_TRAILING = {"timestep_spacing": "trailing"}
PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "lcm", "LCMScheduler", _few(8), lora="pytorch_lora_weights.safetensors",
            repository="latent-consistency/lcm-lora-sdxl",
        ),
        Profile(
            "lightning", "EulerDiscreteScheduler", _few(4), _TRAILING, "sdxl_lightning_4step_lora.safetensors",
            "ByteDance/SDXL-Lightning",
        ),
        # Of 40 timesteps, each tenth: 999, 749, 499, 249, as it was trained.
        Profile(
            "dmd2", "LCMScheduler", _few(4), {"original_inference_steps": 40},
            "dmd2_sdxl_4step_lora_fp16.safetensors", "tianweiy/DMD2",
        ),
        Profile(
            "hyper", "DDIMScheduler", _few(8), {**_TRAILING, "clip_sample": False, "set_alpha_to_one": False},
            "Hyper-SDXL-8steps-lora.safetensors", "ByteDance/Hyper-SD",
        ),
        Profile(
            "turbo", "EulerAncestralDiscreteScheduler", _few(4), _TRAILING, repository="stabilityai/sdxl-turbo"
        ),
    )
}  # fmt: skip
"""The published ways, with the samplers and steps of their model cards."""
