"""The function behind the KSampler node."""

from __future__ import annotations

import torch

import comfy.model_management
import comfy.samplers


def sample(
    model, noise, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, callback=None, **kwargs
) -> torch.Tensor:
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)
    sampler = comfy.samplers.ksampler(sampler_name)
    return sample_custom(model, noise, cfg, sampler, sigmas, positive, negative, latent_image, None, callback, **kwargs)


def sample_custom(
    model,
    noise,
    cfg,
    sampler,
    sigmas,
    positive,
    negative,
    latent_image,
    noise_mask=None,
    callback=None,
    disable_pbar=False,
    seed=None,
) -> torch.Tensor:
    arguments = model, noise, positive, negative, cfg, model.load_device, sampler, sigmas, model.model_options
    samples = comfy.samplers.sample(*arguments, latent_image, noise_mask, callback, disable_pbar, seed)
    return samples.to(comfy.model_management.intermediate_device())
