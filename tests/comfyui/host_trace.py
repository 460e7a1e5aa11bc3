"""What a host does with the tiny SDXL, whichever host is first on ``sys.path``: latents, calls, and what patches see.

``python -m tests.comfyui.host_trace FILE`` writes it to a file.
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import comfy.cli_args
import torch

comfy.cli_args.args.cpu = True

import comfy.model_management as host  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.utils  # noqa: E402
import folder_paths  # noqa: E402
from comfy.ldm.modules.attention import optimized_attention  # noqa: E402
from comfy.patcher_extension import CallbacksMP, WrappersMP  # noqa: E402
from comfy_execution import progress  # noqa: E402

from tests.comfyui import tiny  # noqa: E402

WRAPPERS = ("OUTER_SAMPLE", "PREPARE_SAMPLING", "SAMPLER_SAMPLE", "PREDICT_NOISE", "CALC_COND_BATCH")
CALLBACKS = ("ON_PRE_RUN", "ON_PREPARE_STATE", "ON_CLEANUP")
SEEN = ("block", "block_index", "transformer_index", "cond_or_uncond", "original_shape", "activations_shape")


def trace() -> dict[str, Any]:
    """Latents by name; every call of a wrapper or callback; ``extra_options`` of every patched layer, as seen."""
    torch.set_num_threads(1)
    model = tiny.tiny_model()
    positive, negative = tiny.conditioning(1), tiny.conditioning(2)
    two_step = tiny.tiny_model(torch.float16, compute_dtype=torch.float32)
    patched, calls, options, names = _patched(model)
    positive_masked, negative_controlled = _controlled(positive, negative)
    latents = {
        "plain": tiny.sample(model, positive, negative),
        "without guidance": tiny.sample(model, positive, negative, cfg=1.0),
        "more tokens in the negative": tiny.sample(model, positive, tiny.conditioning(2, tokens=154)),
        "weights cast": tiny.sample(two_step, positive, negative, steps=2),
        "patched": tiny.sample(patched, positive_masked, negative_controlled, batch=2, width=192),
        "with other nodes": tiny.sample(_with_other_nodes(model), positive, negative),
        "three at once": _three_at_once(model, positive, negative),
    }
    parameters = [name for name, _ in model.model.diffusion_model.named_parameters()]
    traced = {"latents": latents, "parameters": parameters, "calls": calls, "options": options, "names": names}
    return {**traced, "management": _management(model), "progress": _progress(), "files": _files()}


def _patched(model: Any) -> tuple[Any, list[str], list[Any], list[list[str]]]:
    """Replacements under both kinds of keys, and something that listens at every place where one can."""
    calls: list[str] = []
    options: list[Any] = []
    names: list[list[str]] = []

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra_options: dict[str, Any]) -> torch.Tensor:
        names.append(sorted(extra_options))
        options.append([extra_options[name] for name in SEEN])
        options[-1] += [extra_options["n_heads"], extra_options["dim_head"], len(extra_options["sigmas"])]
        kwargs = {"attn_precision": extra_options["attn_precision"], "transformer_options": extra_options}
        return optimized_attention(q, k, v, extra_options["n_heads"], **kwargs) + q / 2

    def wrapper(name: str):
        return lambda executor, *args, **kwargs: (calls.append(name), executor(*args, **kwargs))[1]

    patched = model.clone()
    for i in range(10):
        patched.set_model_attn2_replace(attend, "middle", 0, i)
    patched.set_model_attn2_replace(attend, "input", 4, 1)
    patched.set_model_attn2_replace(attend, "output", 3)
    for name in (*WRAPPERS, "APPLY_MODEL", "DIFFUSION_MODEL"):
        patched.add_wrapper_with_key(getattr(WrappersMP, name), "trace", wrapper(name))
    for name in CALLBACKS:
        patched.add_callback(getattr(CallbacksMP, name), lambda *args, name=name: calls.append(name))
    return patched, calls, options, names


def _with_other_nodes(model: Any) -> Any:
    """Settings of the host's own nodes on a model, each with an effect."""
    changed = model.clone()
    changed.set_model_attn2_patch(lambda q, k, v, extra_options: (q * 0.9, k, v * (1 + 0.1 * extra_options["n_heads"])))
    changed.set_model_unet_function_wrapper(
        lambda apply, args: apply(args["input"], args["timestep"], **args["c"]) * len(args["cond_or_uncond"])
    )
    changed.set_model_sampler_cfg_function(
        lambda args: args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"]) / 2, True
    )
    changed.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 0.5 + args["uncond_denoised"])
    sampling = copy.deepcopy(model.get_model_object("model_sampling"))
    sampling.sigmas *= 0.5
    changed.add_object_patch("model_sampling", sampling)
    return changed


@torch.inference_mode()
def _three_at_once(model: Any, positive: list[Any], negative: list[Any]) -> torch.Tensor:
    """As DualCFG and PerpNeg evaluate the model; the result holds the order of the batch as well."""
    orders: list[list[int]] = []

    class Guider(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            conds = [self.conds[name] for name in ("negative", "middle", "positive")]
            outputs = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)
            return sum(output * weight for output, weight in zip(outputs, (0.5, 0.7, -0.2), strict=True))

    listening = model.clone()
    listening.add_wrapper(
        WrappersMP.APPLY_MODEL,
        lambda executor, *args, **kwargs: (orders.append(args[5]["cond_or_uncond"]), executor(*args, **kwargs))[1],
    )
    guider = Guider(listening)
    guider.inner_set_conds({"positive": positive, "middle": tiny.conditioning(3), "negative": negative})
    noise = tiny.noise(0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 2)
    sampler = comfy.samplers.ksampler("euler")
    latent = guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True)
    return torch.cat([latent.flatten(), torch.tensor(orders, dtype=torch.float32).flatten()])


def _management(model: Any) -> list[Any]:
    """Loading, unloading, interruption and progress, in one sequence of events."""
    events: list[Any] = []
    first = model.clone()
    for name in ("ON_LOAD", "ON_DETACH", "ON_CLONE"):
        first.add_callback_with_key(getattr(CallbacksMP, name), "trace", lambda *args, name=name: events.append(name))
    second = first.clone()

    def loaded() -> list[str]:
        patchers = {"first": first, "second": second}
        return [name for entry in host.current_loaded_models for name, p in patchers.items() if entry.model is p]

    for step in (
        lambda: host.load_models_gpu([first]),
        lambda: host.load_models_gpu([second]),
        lambda: host.free_memory(1, first.load_device),
        host.unload_all_models,
    ):
        step()
        events.append(loaded())
    host.interrupt_current_processing()
    for _ in range(2):
        try:
            host.throw_exception_if_processing_interrupted()
        except host.InterruptProcessingException:
            events.append("interrupted")
    hook = comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(lambda *args, **kwargs: events.append(list(args)))
    comfy.utils.ProgressBar(3).update(2)
    comfy.utils.set_progress_bar_global_hook(hook)
    return [*events]  # a copy: a real patcher detaches itself once more when it dies


def _progress() -> list[Any]:
    """The calls of a progress handler during two prompts."""
    events: list[Any] = []

    class Handler(progress.ProgressHandler):
        def set_registry(self, registry: Any) -> None:
            events.append(["registry", registry.dynprompt])

        def start_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
            events.append(["start", node_id, prompt_id])

        def finish_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
            events.append(["finish", node_id, prompt_id])

        def reset(self) -> None:
            events.append("reset")

    progress.reset_progress_state("first", "its graph")
    progress.add_progress_handler(Handler("ours"))
    progress.get_progress_state().start_progress("1")
    progress.get_progress_state().finish_progress("1")
    progress.get_progress_state().unregister_handler("nobody's")
    progress.get_progress_state().unregister_handler("ours")
    progress.get_progress_state().start_progress("2")
    progress.add_progress_handler(Handler("ours"))
    progress.reset_progress_state("second", "another graph")
    progress.get_progress_state().start_progress("3")
    return events


def _files() -> list[Any]:
    """The names that the host gives to saved files, and where it refuses."""
    names: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        for prefix in ("run", "run", "run_2", "deep/er/run", "./run", "../run"):
            try:
                where, name, number, subfolder, _ = folder_paths.get_save_image_path(prefix, folder)
            except Exception:
                names.append("refused")
            else:
                Path(where, f"{name}_{number:05}_.html").touch()
                names.append([os.path.relpath(where, folder), name, number, subfolder])
    return names


def _controlled(positive: list[Any], negative: list[Any]) -> tuple[list[Any], list[Any]]:
    """Two ControlNets in a chain, with ranges, a batch of hints of odd size, and tokens of their own; a mask on one."""
    generator = torch.Generator().manual_seed(5)
    hints = torch.rand(2, 3, 100, 130, generator=generator)
    tokens = torch.randn(2, 1, 16, tiny.TOKEN_WIDTH, generator=generator)
    controlnet = tiny.tiny_controlnet()
    late = controlnet.copy().set_cond_hint(hints[:1], 0.3, (0.2, 1.0))
    control = controlnet.copy().set_cond_hint(hints, 0.7, (0.0, 0.6)).set_previous_controlnet(late)
    added = [{"control": control, "control_apply_to_uncond": False, "cross_attn_controlnet": row} for row in tokens]
    added[0] |= {"mask": torch.rand(1, 40, 50, generator=generator), "set_area_to_bounds": False}
    return tuple(
        [[text, {**cond, **extra}] for text, cond in c] for c, extra in zip((positive, negative), added, strict=True)
    )


if __name__ == "__main__":
    torch.save(trace(), sys.argv[1])
