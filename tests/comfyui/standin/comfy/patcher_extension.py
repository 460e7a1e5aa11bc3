"""Wrappers and callbacks that a model patcher carries into sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class CallbacksMP:
    ON_CLONE = "on_clone"
    ON_LOAD = "on_load_after"
    ON_DETACH = "on_detach_after"
    ON_CLEANUP = "on_cleanup"
    ON_PRE_RUN = "on_pre_run"
    ON_PREPARE_STATE = "on_prepare_state"


class WrappersMP:
    OUTER_SAMPLE = "outer_sample"
    PREPARE_SAMPLING = "prepare_sampling"
    SAMPLER_SAMPLE = "sampler_sample"
    PREDICT_NOISE = "predict_noise"
    CALC_COND_BATCH = "calc_cond_batch"
    APPLY_MODEL = "apply_model"
    DIFFUSION_MODEL = "diffusion_model"


def get_all_wrappers(wrapper_type: str, transformer_options: dict, is_model_options: bool = False) -> list[Callable]:
    if is_model_options:
        transformer_options = transformer_options.get("transformer_options", {})
    by_key = transformer_options.get("wrappers", {}).get(wrapper_type, {})
    return [wrapper for wrappers in by_key.values() for wrapper in wrappers]


class WrapperExecutor:
    """The rest of a chain of wrappers: a wrapper is called with it and goes on by calling it."""

    def __init__(self, original: Callable, class_obj: Any, wrappers: list[Callable], idx: int = 0) -> None:
        self.original = original
        self.class_obj = class_obj
        self.wrappers = wrappers
        self.idx = idx

    @classmethod
    def new_executor(cls, original: Callable, wrappers: list[Callable], idx: int = 0) -> WrapperExecutor:
        return cls(original, None, wrappers, idx)

    @classmethod
    def new_class_executor(
        cls, original: Callable, class_obj: Any, wrappers: list[Callable], idx: int = 0
    ) -> WrapperExecutor:
        return cls(original, class_obj, wrappers, idx)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        if self.idx == len(self.wrappers):
            return self.original(*args, **kwargs)
        return self.wrappers[self.idx](self, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        rest = WrapperExecutor(self.original, self.class_obj, self.wrappers, self.idx + 1)
        return rest.execute(*args, **kwargs)


def copy_nested_dicts(input_dict: dict) -> dict:
    """New dictionaries all the way down, and new lists in them; everything else is shared."""
    copied = dict(input_dict)
    for key, value in input_dict.items():
        if isinstance(value, dict):
            copied[key] = copy_nested_dicts(value)
        elif isinstance(value, list):
            copied[key] = list(value)
    return copied


def merge_nested_dicts(dict1: dict, dict2: dict, copy_dict1: bool = True) -> dict:
    """``dict2`` over ``dict1``: dictionaries are merged, lists joined, other values replaced."""
    merged = copy_nested_dicts(dict1) if copy_dict1 else dict1
    for key, value in dict2.items():
        if isinstance(value, dict):
            merged[key] = merge_nested_dicts(merged.get(key, {}), value)
        elif isinstance(value, list):
            merged[key] = merged.get(key, []) + value
        else:
            merged[key] = value
    return merged
