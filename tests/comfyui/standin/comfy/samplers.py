"""One run of sampling: conditioning is encoded, joined into batches and guided; Euler's method only."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

import comfy.conds
import comfy.model_management
import comfy.patcher_extension
import comfy.utils
from comfy.patcher_extension import WrapperExecutor, WrappersMP, copy_nested_dicts, get_all_wrappers

Cond = dict[str, Any]
ModelOptions = dict[str, Any]


class CondObj(NamedTuple):
    """One conditioning, ready for one model evaluation."""

    input_x: Tensor
    mult: Tensor
    conditioning: dict[str, comfy.conds.CONDRegular]
    control: Any
    uuid: uuid.UUID


def get_area_and_mult(cond: Cond, x_in: Tensor, timestep_in: Tensor) -> CondObj | None:
    """None outside the conditioning's range of steps. Areas are not supported, masks are."""
    if timestep_in[0] > cond.get("timestep_start", math.inf) or timestep_in[0] < cond.get("timestep_end", 0.0):
        return None
    mult = torch.ones_like(x_in)
    if "mask" in cond:
        mask = comfy.utils.repeat_to_batch_size(cond["mask"] * cond.get("mask_strength", 1.0), len(x_in))
        mult = mask.unsqueeze(1).expand_as(x_in)
    conditioning = {name: c.process_cond(batch_size=len(x_in)) for name, c in cond["model_conds"].items()}
    return CondObj(x_in, mult * cond.get("strength", 1.0), conditioning, cond.get("control"), cond["uuid"])


def can_concat_cond(c1: CondObj, c2: CondObj) -> bool:
    """Into one batch go equal shapes under the very same ControlNet object."""
    if c1.input_x.shape != c2.input_x.shape or c1.control is not c2.control:
        return False
    names = c1.conditioning.keys()
    same_names = names == c2.conditioning.keys()
    return same_names and all(c1.conditioning[name].can_concat(c2.conditioning[name]) for name in names)


def calc_cond_batch(
    model, conds: list[list[Cond] | None], x_in: Tensor, timestep: Tensor, model_options: ModelOptions
) -> list[Tensor]:
    """The denoised latent for each of ``conds``, in as few model evaluations as their shapes allow."""
    wrappers = get_all_wrappers(WrappersMP.CALC_COND_BATCH, model_options, is_model_options=True)
    executor = WrapperExecutor.new_executor(_calc_cond_batch, wrappers)
    return executor.execute(model, conds, x_in, timestep, model_options)


def _calc_cond_batch(model, conds, x_in, timestep, model_options) -> list[Tensor]:
    sums = [torch.zeros_like(x_in) for _ in conds]
    counts = [torch.full_like(x_in, 1e-37) for _ in conds]
    to_run = [(get_area_and_mult(x, x_in, timestep), i) for i, cond in enumerate(conds) for x in cond or []]
    to_run = [entry for entry in to_run if entry[0] is not None]
    model.current_patcher.prepare_state(timestep)
    while to_run:
        first = to_run[0][0]
        batch = [entry for entry in to_run if can_concat_cond(entry[0], first)]
        to_run = [entry for entry in to_run if not any(entry is taken for taken in batch)]
        batch.reverse()  # so that the unconditional chunk comes first: [1, 0]
        outputs = _evaluate(model, batch, timestep, model_options)
        for (cond, i), output in zip(batch, outputs, strict=True):
            sums[i] += output * cond.mult
            counts[i] += cond.mult
    return [total / count for total, count in zip(sums, counts, strict=True)]


def _evaluate(model, batch: list[tuple[CondObj, int]], timestep: Tensor, model_options: ModelOptions) -> list[Tensor]:
    cond_objs = [cond for cond, _ in batch]
    chunks = len(batch)
    input_x = torch.cat([cond.input_x for cond in cond_objs])
    c: dict[str, Any] = {
        name: value.concat([cond.conditioning[name] for cond in cond_objs[1:]])
        for name, value in cond_objs[0].conditioning.items()
    }
    timestep_ = torch.cat([timestep] * chunks)
    transformer_options = copy_nested_dicts(model_options.get("transformer_options", {}))
    transformer_options["cond_or_uncond"] = cond_or_uncond = [i for _, i in batch]
    transformer_options["uuids"] = [cond.uuid for cond in cond_objs]
    transformer_options["sigmas"] = timestep
    c["transformer_options"] = transformer_options
    control = cond_objs[0].control
    if control is not None:
        c["control"] = control.get_control(input_x, timestep_, c, chunks, transformer_options)
    if "model_function_wrapper" in model_options:
        arguments = {"input": input_x, "timestep": timestep_, "c": c, "cond_or_uncond": cond_or_uncond}
        return model_options["model_function_wrapper"](model.apply_model, arguments).chunk(chunks)
    return model.apply_model(input_x, timestep_, **c).chunk(chunks)


def cfg_function(
    model, cond_pred, uncond_pred, cond_scale, x, timestep, model_options=None, cond=None, uncond=None
) -> Tensor:
    model_options = model_options or {}
    shared = {"cond_scale": cond_scale, "sigma": timestep, "input": x, "model": model, "model_options": model_options}
    shared |= {"cond_denoised": cond_pred, "uncond_denoised": uncond_pred}
    if "sampler_cfg_function" in model_options:
        args = {"cond": x - cond_pred, "uncond": x - uncond_pred, "timestep": timestep, **shared}
        args |= {"input_cond": cond, "input_uncond": uncond}
        result = x - model_options["sampler_cfg_function"](args)
    else:
        result = uncond_pred + (cond_pred - uncond_pred) * cond_scale
    for function in model_options.get("sampler_post_cfg_function", []):
        result = function({"denoised": result, "cond": cond, "uncond": uncond, **shared})
    return result


def sampling_function(model, x, timestep, uncond, cond, cond_scale, model_options=None, seed=None) -> Tensor:
    model_options = model_options or {}
    if math.isclose(cond_scale, 1.0) and not model_options.get("disable_cfg1_optimization", False):
        uncond = None
    cond_pred, uncond_pred = calc_cond_batch(model, [cond, uncond], x, timestep, model_options)
    return cfg_function(model, cond_pred, uncond_pred, cond_scale, x, timestep, model_options, cond, uncond)


class CFGGuider:
    """Guided by ``positive`` and ``negative``; other guiders override ``set_conds`` and ``predict_noise``."""

    def __init__(self, model_patcher) -> None:
        self.model_patcher = model_patcher
        self.model_options = model_patcher.model_options
        self.original_conds: dict[str, list[Cond]] = {}
        self.cfg = 1.0

    def set_conds(self, positive, negative) -> None:
        self.inner_set_conds({"positive": positive, "negative": negative})

    def set_cfg(self, cfg: float) -> None:
        self.cfg = cfg

    def inner_set_conds(self, conds: dict[str, list]) -> None:
        for name, entries in conds.items():
            self.original_conds[name] = [
                {**options, "cross_attn": tokens, "model_conds": {}, "uuid": uuid.uuid4()}
                for tokens, options in entries
            ]

    def __call__(self, x: Tensor, timestep: Tensor, model_options: ModelOptions, seed=None) -> Tensor:
        return self._wrapped(WrappersMP.PREDICT_NOISE, self.predict_noise)(x, timestep, model_options, seed)

    def predict_noise(self, x, timestep, model_options=None, seed=None) -> Tensor:
        positive, negative = self.conds.get("positive"), self.conds.get("negative")
        return sampling_function(self.inner_model, x, timestep, negative, positive, self.cfg, model_options, seed)

    def sample(
        self, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None
    ) -> Tensor:
        self.conds = {name: [dict(cond) for cond in conds] for name, conds in self.original_conds.items()}
        own_options = self.model_options
        self.model_options = copy_nested_dicts(own_options)
        transformer_options = self.model_options["transformer_options"]
        for kind in ("wrappers", "callbacks"):
            carried = getattr(self.model_patcher, kind)
            merged = comfy.patcher_extension.merge_nested_dicts(transformer_options.get(kind, {}), carried)
            transformer_options[kind] = merged
        try:
            outer_sample = self._wrapped(WrappersMP.OUTER_SAMPLE, self.outer_sample)
            return outer_sample(noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed)
        finally:
            self.model_options = own_options

    def outer_sample(self, noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed) -> Tensor:
        prepare = self._wrapped(WrappersMP.PREPARE_SAMPLING, _prepare_sampling)
        self.inner_model = prepare(self.model_patcher, noise.shape, self.conds, model_options=self.model_options)
        device = self.model_patcher.load_device
        moved = noise.to(device), latent_image.to(device), device, sampler, sigmas.to(device)
        try:
            self.model_patcher.pre_run()
            return self.inner_sample(*moved, denoise_mask, callback, disable_pbar, seed)
        finally:
            self.model_patcher.cleanup()
            for control in _controls(self.conds):
                control.cleanup()

    def inner_sample(
        self, noise, latent_image, device, sampler, sigmas, denoise_mask, callback, disable_pbar, seed
    ) -> Tensor:
        if torch.count_nonzero(latent_image) > 0:  # an empty latent has no scale
            latent_image = self.inner_model.process_latent_in(latent_image)
        self.conds = process_conds(self.inner_model, noise, self.conds, device)
        model_options = copy_nested_dicts(self.model_options)
        model_options["transformer_options"]["sample_sigmas"] = sigmas
        sample = self._wrapped(WrappersMP.SAMPLER_SAMPLE, sampler.sample, sampler)
        extra_args = {"model_options": model_options, "seed": seed}
        samples = sample(self, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)
        return self.inner_model.process_latent_out(samples.float())

    def _wrapped(self, kind: str, original: Callable, class_obj: Any = None) -> Callable:
        wrappers = get_all_wrappers(kind, self.model_options, is_model_options=True)
        return WrapperExecutor.new_class_executor(original, class_obj or self, wrappers).execute


def _controls(conds: dict[str, list[Cond]]) -> list[Any]:
    """Every ControlNet once."""
    return list(dict.fromkeys(c["control"] for entries in conds.values() for c in entries if c.get("control")))


def _prepare_sampling(model, noise_shape, conds, model_options=None):
    models = [wrapped for control in _controls(conds) for wrapped in control.get_models()]
    comfy.model_management.load_models_gpu([model, *models])
    return model.model


def process_conds(model, noise: Tensor, conds: dict[str, list[Cond]], device) -> dict[str, list[Cond]]:
    """Masks at the latent's size, ranges in sigmas, tensors as the model wants them."""
    height, width = noise.shape[2:]
    percent_to_sigma = model.model_sampling.percent_to_sigma
    for entries in conds.values():
        for cond in entries:
            if "mask" in cond:
                mask = cond["mask"].to(device)
                mask = mask.unsqueeze(0) if mask.ndim == 2 else mask
                if mask.shape[1:] != noise.shape[2:]:
                    resized = comfy.utils.common_upscale(mask.unsqueeze(1), width, height, "bilinear", "none")
                    mask = resized.squeeze(1)
                cond["mask"] = mask
            for name in ("start", "end"):
                if f"{name}_percent" in cond:
                    cond[f"timestep_{name}"] = percent_to_sigma(cond[f"{name}_percent"])
            cond["model_conds"] = model.extra_conds(**{"width": 8 * width, "height": 8 * height, **cond})
            if "control" in cond:
                cond["control"].pre_run(model, percent_to_sigma)
    return conds


class KSAMPLER:
    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        """Euler's method (Karras et al. 2022, algorithm 2 without churn)."""
        sampling = model_wrap.inner_model.model_sampling
        x = sampling.noise_scaling(sigmas[0], noise, latent_image, bool(sigmas[0] >= sampling.sigma_max * (1 - 1e-5)))
        for i, (sigma, following) in enumerate(pairwise(sigmas)):
            denoised = model_wrap(x, sigma * x.new_ones(len(x)), **extra_args)
            if callback is not None:
                callback(i, denoised, x, len(sigmas) - 1)
            x = x + (x - denoised) / sigma * (following - sigma)
        return x


def ksampler(sampler_name: str) -> KSAMPLER:
    if sampler_name != "euler":
        raise ValueError(f"the stand-in has no sampler {sampler_name!r}")
    return KSAMPLER()


def calculate_sigmas(model_sampling, scheduler_name: str, steps: int) -> Tensor:
    """Equal steps in time, down to zero noise."""
    if scheduler_name != "normal":
        raise ValueError(f"the stand-in has no scheduler {scheduler_name!r}")
    start, end = (model_sampling.timestep(s) for s in (model_sampling.sigma_max, model_sampling.sigma_min))
    sigmas = [float(model_sampling.sigma(t)) for t in torch.linspace(start, end, steps)]
    return torch.tensor([*sigmas, 0.0])


def sample(
    model,
    noise,
    positive,
    negative,
    cfg,
    device,
    sampler,
    sigmas,
    model_options=None,
    latent_image=None,
    denoise_mask=None,
    callback=None,
    disable_pbar=False,
    seed=None,
) -> Tensor:
    guider = CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider.sample(noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed)
