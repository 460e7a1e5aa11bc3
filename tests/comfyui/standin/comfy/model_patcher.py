"""Clones of a model that share its weights and differ in options, wrappers and callbacks.

Options are copied deeply, as before 0.14. Newer versions copy dictionaries and lists alone: tests of that put another
``copy`` into this module.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable
from typing import Any

import torch

import comfy.model_management
import comfy.patcher_extension
import comfy.utils
from comfy.patcher_extension import CallbacksMP


class ModelPatcher:
    def __init__(self, model, load_device, offload_device, size: int = 0, weight_inplace_update: bool = False) -> None:
        self.model = model
        self.load_device = load_device
        self.offload_device = offload_device
        self.size = size or comfy.model_management.module_size(model)
        self.weight_inplace_update = weight_inplace_update
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.object_patches: dict[str, Any] = {}
        self.object_patches_backup: dict[str, Any] = {}
        self.patches_uuid = uuid.uuid4()
        self.parent: ModelPatcher | None = None
        self.callbacks: dict[str, dict[str | None, list[Callable]]] = {}
        self.wrappers: dict[str, dict[str | None, list[Callable]]] = {}
        if getattr(model, "device", None) is None:
            model.device = offload_device
        model.model_loaded_weight_memory = getattr(model, "model_loaded_weight_memory", 0)

    def clone(self) -> ModelPatcher:
        n = type(self)(self.model, self.load_device, self.offload_device, self.size, self.weight_inplace_update)
        n.model_options = copy.deepcopy(self.model_options)
        n.object_patches = self.object_patches.copy()
        n.object_patches_backup = self.object_patches_backup
        n.patches_uuid = self.patches_uuid
        n.parent = self
        n.callbacks = comfy.patcher_extension.copy_nested_dicts(self.callbacks)
        n.wrappers = comfy.patcher_extension.copy_nested_dicts(self.wrappers)
        for callback in self.get_all_callbacks(CallbacksMP.ON_CLONE):
            callback(self, n)
        return n

    def is_clone(self, other: Any) -> bool:
        return getattr(other, "model", None) is self.model

    def model_size(self) -> int:
        return self.size

    def loaded_size(self) -> int:
        return self.model.model_loaded_weight_memory

    def model_dtype(self) -> torch.dtype | None:
        return self.model.get_dtype() if hasattr(self.model, "get_dtype") else None

    def current_loaded_device(self) -> torch.device:
        return self.model.device

    # Options

    def set_model_patch(self, patch: Callable, name: str) -> None:
        patches = self.model_options["transformer_options"].setdefault("patches", {})
        patches[name] = [*patches.get(name, []), patch]

    def set_model_attn2_patch(self, patch: Callable) -> None:
        self.set_model_patch(patch, "attn2_patch")

    def set_model_patch_replace(self, patch: Callable, name: str, block_name: str, number: int, transformer_index=None):
        """New dictionaries on the way down to the one that changes."""
        options = dict(self.model_options["transformer_options"])
        replace = options["patches_replace"] = dict(options.get("patches_replace", {}))
        key = (block_name, number) if transformer_index is None else (block_name, number, transformer_index)
        replace[name] = {**replace.get(name, {}), key: patch}
        self.model_options["transformer_options"] = options

    def set_model_attn2_replace(self, patch: Callable, block_name: str, number: int, transformer_index=None) -> None:
        self.set_model_patch_replace(patch, "attn2", block_name, number, transformer_index)

    def set_model_unet_function_wrapper(self, unet_wrapper_function: Callable) -> None:
        self.model_options["model_function_wrapper"] = unet_wrapper_function

    def set_model_sampler_cfg_function(self, sampler_cfg_function: Callable, disable_cfg1_optimization=False) -> None:
        self.model_options["sampler_cfg_function"] = sampler_cfg_function
        if disable_cfg1_optimization:
            self.model_options["disable_cfg1_optimization"] = True

    def set_model_sampler_post_cfg_function(self, post_cfg_function: Callable, disable_cfg1_optimization=False) -> None:
        functions = self.model_options.get("sampler_post_cfg_function", [])
        self.model_options["sampler_post_cfg_function"] = [*functions, post_cfg_function]
        if disable_cfg1_optimization:
            self.model_options["disable_cfg1_optimization"] = True

    def add_object_patch(self, name: str, obj: Any) -> None:
        self.object_patches[name] = obj

    def get_model_object(self, name: str) -> Any:
        for patches in (self.object_patches, self.object_patches_backup):  # then what another clone has replaced
            if name in patches:
                return patches[name]
        return comfy.utils.get_attr(self.model, name)

    # Wrappers and callbacks

    def add_callback(self, call_type: str, callback: Callable) -> None:
        self.add_callback_with_key(call_type, None, callback)

    def add_callback_with_key(self, call_type: str, key: str | None, callback: Callable) -> None:
        self.callbacks.setdefault(call_type, {}).setdefault(key, []).append(callback)

    def remove_callbacks_with_key(self, call_type: str, key: str) -> None:
        self.callbacks.get(call_type, {}).pop(key, None)

    def get_all_callbacks(self, call_type: str) -> list[Callable]:
        return [callback for callbacks in self.callbacks.get(call_type, {}).values() for callback in callbacks]

    def add_wrapper(self, wrapper_type: str, wrapper: Callable) -> None:
        self.add_wrapper_with_key(wrapper_type, None, wrapper)

    def add_wrapper_with_key(self, wrapper_type: str, key: str | None, wrapper: Callable) -> None:
        self.wrappers.setdefault(wrapper_type, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, wrapper_type: str, key: str) -> None:
        self.wrappers.get(wrapper_type, {}).pop(key, None)

    # Loading

    def model_patches_to(self, device: torch.device | torch.dtype | None) -> None:
        """Called with a device and then with a type; a patch with ``to`` is replaced by what that returns."""
        options = self.model_options["transformer_options"]
        for name, patches in options.get("patches", {}).items():
            options["patches"][name] = [_moved(patch, device) for patch in patches]
        for patches in options.get("patches_replace", {}).values():
            patches.update({key: _moved(patch, device) for key, patch in patches.items()})
        if "model_function_wrapper" in self.model_options:
            wrapper = self.model_options["model_function_wrapper"]
            self.model_options["model_function_wrapper"] = _moved(wrapper, device)

    def model_patches_models(self) -> list[ModelPatcher]:
        options = self.model_options["transformer_options"]
        patches = [patch for patches in options.get("patches", {}).values() for patch in patches]
        patches += [patch for replaced in options.get("patches_replace", {}).values() for patch in replaced.values()]
        patches.append(self.model_options.get("model_function_wrapper"))
        return [model for patch in patches if hasattr(patch, "models") for model in patch.models()]

    def patch_model(self, device_to: torch.device | None = None, **kwargs: Any) -> torch.nn.Module:
        for name, value in self.object_patches.items():
            self.object_patches_backup.setdefault(name, comfy.utils.set_attr(self.model, name, value))
        if device_to is not None and not self.loaded_size():
            self.model.to(device_to)
            self.model.device = device_to
            self.model.model_loaded_weight_memory = self.size
            for callback in self.get_all_callbacks(CallbacksMP.ON_LOAD):
                callback(self, device_to, 0, False, True)
        return self.model

    def unpatch_model(self, device_to: torch.device | None = None, unpatch_weights: bool = True) -> None:
        for name, value in self.object_patches_backup.items():
            comfy.utils.set_attr(self.model, name, value)
        self.object_patches_backup.clear()
        if unpatch_weights and device_to is not None:
            self.model.to(device_to)
            self.model.device = device_to
            self.model.model_loaded_weight_memory = 0

    def detach(self, unpatch_all: bool = True) -> torch.nn.Module:
        self.model_patches_to(self.offload_device)
        if unpatch_all:
            self.unpatch_model(self.offload_device)
        for callback in self.get_all_callbacks(CallbacksMP.ON_DETACH):
            callback(self, unpatch_all)
        return self.model

    # Sampling

    def pre_run(self) -> None:
        self.model.current_patcher = self
        for callback in self.get_all_callbacks(CallbacksMP.ON_PRE_RUN):
            callback(self)

    def prepare_state(self, timestep: torch.Tensor) -> None:
        for callback in self.get_all_callbacks(CallbacksMP.ON_PREPARE_STATE):
            callback(self, timestep)

    def cleanup(self) -> None:
        self.model.current_patcher = None
        for callback in self.get_all_callbacks(CallbacksMP.ON_CLEANUP):
            callback(self)


def _moved(patch: Any, device: torch.device | torch.dtype | None) -> Any:
    return patch.to(device) if hasattr(patch, "to") else patch
