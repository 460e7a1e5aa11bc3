"""Devices and dtypes of a host started with ``--cpu``; loading, unloading, interruption."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_CPU = torch.device("cpu")


def get_torch_device() -> torch.device:
    return _CPU


def intermediate_device() -> torch.device:
    return _CPU


def unet_offload_device() -> torch.device:
    return _CPU


def should_use_fp16(device=None, model_params=0, prioritize_performance=True, manual_cast=False) -> bool:
    return False


def unet_dtype(
    device=None,
    model_params=0,
    supported_dtypes=(torch.float16, torch.bfloat16, torch.float32),
    weight_dtype=None,
) -> torch.dtype:
    """Of diffusion models that do not say otherwise; flags can make it any type, an 8-bit float too."""
    return torch.float32


def get_free_memory(dev=None, torch_free_too=False) -> float:
    return 64e9


def soft_empty_cache(force: bool = False) -> None:
    pass


def cast_to_device(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None, copy=False) -> torch.Tensor:
    return tensor.to(device=device, dtype=dtype, copy=copy)


def module_size(module: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


class LoadedModel:
    """A patcher that is loaded. The list of them keeps none alive."""

    def __init__(self, model: ModelPatcher) -> None:
        self._model = weakref.ref(model)
        self.device = model.load_device

    @property
    def model(self) -> ModelPatcher | None:
        return self._model()

    def model_load(self) -> None:
        self.model.model_patches_to(self.device)
        self.model.model_patches_to(self.model.model_dtype())
        self.model.unpatch_model(unpatch_weights=False)  # what another clone patched
        self.model.patch_model(self.device)

    def model_unload(self) -> None:
        if self.model is not None:
            self.model.detach()


current_loaded_models: list[LoadedModel] = []
"""Latest first."""


def load_models_gpu(
    models: list[ModelPatcher],
    memory_required=0,
    force_patch_weights=False,
    minimum_memory_required=None,
    force_full_load=False,
) -> None:
    """Load patchers, and those that their patches name; a clone takes the place of what it was cloned from."""
    named = [extra for model in models for extra in model.model_patches_models()]
    for model in dict.fromkeys([*models, *named]):
        for loaded in [*current_loaded_models]:
            if loaded.model is None or (model.is_clone(loaded.model) and model is not loaded.model):
                current_loaded_models.remove(loaded)
                if loaded.model is not None:
                    loaded.model.detach(unpatch_all=False)
        loaded = next((loaded for loaded in current_loaded_models if loaded.model is model), None)
        if loaded is not None:
            current_loaded_models.remove(loaded)
        current_loaded_models.insert(0, loaded or LoadedModel(model))
        current_loaded_models[0].model_load()


def free_memory(memory_required: float, device: torch.device, keep_loaded: list[LoadedModel] = ()) -> list[LoadedModel]:
    """Unload what was used longest ago until so many bytes are free; here the first one or all of them."""
    if memory_required <= get_free_memory(device):
        return []
    unloaded = [loaded for loaded in current_loaded_models if loaded.device == device and loaded not in keep_loaded]
    for loaded in unloaded:
        loaded.model_unload()
        current_loaded_models.remove(loaded)
    return unloaded


def unload_all_models() -> None:
    free_memory(1e30, get_torch_device())


class InterruptProcessingException(Exception):
    pass


_interrupted = False


def interrupt_current_processing(value: bool = True) -> None:
    global _interrupted
    _interrupted = value


def processing_interrupted() -> bool:
    return _interrupted


def throw_exception_if_processing_interrupted() -> None:
    """Raise once for each interruption."""
    if _interrupted:
        interrupt_current_processing(False)
        raise InterruptProcessingException
