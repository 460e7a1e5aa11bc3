"""Beside features that ComfyUI has added since 0.8, and nodes that skip steps. Older hosts skip what they have not."""

# ruff: noqa: F811  # fixtures of other modules

from __future__ import annotations

import importlib
import inspect
import re
import threading
from collections.abc import Callable
from typing import Any

import comfy.model_management as host
import numpy as np
import pytest
import torch
from PIL import Image

from tests.comfyui import tiny
from tests.comfyui.test_composition import ACTS, SAME, apply, patches_of  # noqa: F401  # a fixture
from tests.comfyui.test_memory import part  # noqa: F401  # a fixture
from tests.comfyui.test_parity import style  # noqa: F401  # a fixture
from tests.comfyui.tiny import distance, sample

SECOND = torch.device("cpu", 0)
"""The CPU under another name, for the host another device."""


def module_of_host(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        pytest.skip(f"needs a ComfyUI that has {name}")


# Several GPUs


@pytest.fixture
def split(real_host, monkeypatch) -> Callable[[Any], Any]:
    """``split(model)``: after the node MultiGPU CFG Split, on a machine with two devices."""
    multigpu = module_of_host("comfy.multigpu")
    monkeypatch.setattr(host, "get_all_torch_devices", lambda **_: [torch.device("cpu"), SECOND])
    return lambda model: multigpu.create_multigpu_deepclones(model, 2)


@pytest.fixture
def model() -> Any:
    model = tiny.tiny_model()
    model.cached_patcher_init = (lambda disable_dynamic=False: tiny.tiny_model(), ())  # as the host's loaders leave it
    return model


@pytest.mark.parametrize(
    "inputs",
    [{}, {"mask": torch.linspace(0, 1, 32).repeat(1, 32, 1)}, {"start_at": 0.2, "end_at": 0.8}],
    ids=["everywhere", "masked", "in a range"],
)
def test_a_face_acts_on_each_of_two_gpus(apply, model, split, inputs):
    """Cond and uncond are evaluated at the same time, in threads, by copies of the model and of the ControlNet."""
    patched, *conditionings = apply(model, **inputs)
    together = sample(patched, *conditionings)
    threads: set[str] = set()
    divided = split(patched)
    divided.add_wrapper(
        "apply_model", lambda run, *a, **k: (threads.add(threading.current_thread().name), run(*a, **k))[1]
    )
    assert distance(sample(divided, *conditionings), together) <= SAME
    assert len(threads) == 2
    assert distance(together, sample(model, *conditionings)) > ACTS
    control = conditionings[0][0][1]["control"]
    assert control.multigpu_clones[SECOND].control_model is not control.control_model
    assert torch.equal(sample(patched, *conditionings), together)


@pytest.mark.parametrize("order", ["before", "after"])
def test_ipadapter_and_a_face_on_two_gpus(apply, model, split, style, order):
    def chain(model: Any) -> Any:
        return style(apply(model)[0]) if order == "after" else apply(style(model))[0]

    _, *conditionings = apply(model)
    both = sample(chain(model), *conditionings)
    assert distance(sample(split(chain(model)), *conditionings), both) <= SAME


@pytest.mark.parametrize("order", ["before", "after"])
def test_what_other_packs_add_follows_to_another_gpu(apply, model, style, order, monkeypatch):
    """To tensors without data, in place of a second GPU."""
    monkeypatch.setattr(host, "get_free_memory", lambda *_, **__: (1 << 40, 1 << 40))
    chain = style(apply(model)[0]) if order == "after" else apply(style(model))[0]
    patch, elsewhere = patches_of(chain)["input", 4, 0], torch.device("meta")
    q, text = torch.empty(2, 256, 64, device=elsewhere), torch.empty(2, 77, 64, device=elsewhere)
    options = {"n_heads": 4, "cond_or_uncond": [1, 0], "original_shape": [2, 4, 32, 32], "sigmas": torch.ones(1)}
    options |= {"block": ("input", 4), "transformer_index": 0}
    there = patch.to(elsewhere)
    assert there(q, text, text, options).device == elsewhere
    assert there.to(torch.float16)(q, text, text, options).dtype == torch.float32
    present = [value for kwargs in patch.kwargs for value in kwargs.values() if isinstance(value, torch.Tensor)]
    assert all(tensor.device.type == "cpu" for tensor in present), "the model's own patch stays"


def test_a_model_with_weights_of_its_own_has_the_face_too(real_host, apply, model):
    """As TorchCompileModel makes one of a model with dynamic VRAM."""
    patched, *conditionings = apply(model)
    try:
        own = patched.clone(force_deepcopy=True)
    except TypeError:
        pytest.skip("needs a ComfyUI whose clones can have weights of their own")
    assert own.model is not patched.model
    assert torch.equal(sample(own, *conditionings), sample(patched, *conditionings))


# Attention of the user's choice


def test_the_attention_backend_may_be_chosen_before_or_after(apply, model, host_nodes):
    from comfy_extras import nodes_model_advanced

    if not hasattr(nodes_model_advanced, "ModelAttentionBackend"):
        pytest.skip("needs a ComfyUI with the node ModelAttentionBackend")

    def chosen(model: Any) -> Any:
        (model,) = host_nodes(
            "nodes_model_advanced", "ModelAttentionBackend", model=model, attention="pytorch attention"
        )
        return model

    patched, *conditionings = apply(model)
    picture = sample(patched, *conditionings)
    for either in (apply(chosen(model))[0], chosen(patched)):
        assert "optimized_attention_override" in either.model_options["transformer_options"]
        assert distance(sample(either, *conditionings), picture) <= SAME


# Skipped steps


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("node", ["EasyCacheNode", "LazyCacheNode"])
def test_a_face_acts_where_steps_are_skipped(apply, model, host_nodes, node, order, caplog):
    patched, *conditionings = apply(model, start_at=0.1, end_at=0.9)
    steps = {"steps": 8}

    def cached(model: Any, threshold: float) -> Any:
        inputs = {"reuse_threshold": threshold, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}
        return host_nodes("nodes_easycache", node, model=model, **inputs)[0]

    def picture(threshold: float) -> torch.Tensor:
        if order == "after":
            return sample(cached(patched, threshold), *conditionings, **steps)
        return sample(apply(cached(model, threshold), start_at=0.1, end_at=0.9)[0], *conditionings, **steps)

    assert torch.equal(picture(0.0), sample(patched, *conditionings, **steps))
    with caplog.at_level("INFO"):
        quick = picture(1.0)
    assert int(re.findall(r"skipped (\d)/8 steps", caplog.text)[-1]) >= 2
    assert torch.isfinite(quick).all()
    assert distance(quick, sample(cached(model, 1.0), *conditionings, **steps)) > ACTS
    assert torch.equal(picture(1.0), quick), "nothing is left of the run before"


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("node", ["EasyCacheNode", "LazyCacheNode"])
@pytest.mark.parametrize("approximated", [False, True])
def test_caches_of_a_run_draw_the_same_where_steps_are_skipped(
    apply, ours, model, controlnet, host_nodes, node, order, approximated, monkeypatch
):
    """The hint block once per run or at every step, and the IdentityNet's outputs held over steps that are skipped."""

    def cached(model: Any) -> Any:
        inputs = {"reuse_threshold": 1.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}
        return host_nodes("nodes_easycache", node, model=model, **inputs)[0]

    patched, *conditionings = apply(cached(model) if order == "before" else model)
    if approximated:
        every = {"preset": "custom", "identity_net_every": 2}
        (patched,) = tiny.call(ours["InstantIDApproximations"], model=patched, **every)
    patched = cached(patched) if order == "after" else patched
    pictures: list[torch.Tensor] = []
    runs: list[tuple[int, int]] = []
    for switch in ("1", "0"):
        monkeypatch.setenv("FAST_INSTANTID_REUSE", switch)
        seen: list[Any] = []
        networks = (model.model.diffusion_model.time_embed, controlnet.control_model.time_embed)
        hooks = [
            network.register_forward_hook(lambda network, *_, seen=seen: seen.append(network)) for network in networks
        ]
        pictures.append(sample(patched, *conditionings, steps=8))
        for hook in hooks:
            hook.remove()
        runs.append((seen.count(networks[0]), seen.count(networks[1])))
    assert torch.equal(*pictures)
    assert runs[0] == runs[1]
    unet, identity_net = runs[0]
    assert unet <= 6
    # The host runs ControlNets before the UNet that EasyCache skips. LazyCache skips both.
    steps = unet if node == "LazyCacheNode" else 8
    assert identity_net == (-(-steps // 2) if approximated else steps)


# Tensors between nodes in float16


def test_pictures_in_float16_are_the_same_photos(apply, ours, model, faces, portrait):
    """As with --fp16-intermediates: k / 255 is rounded to float16, and times 255 it is k again."""
    mask = torch.ones(1, 32, 32)
    mask[..., :16] = 0
    expected = apply(model, image_kps=portrait, mask=mask)
    half = apply(model, image=portrait.half(), image_kps=portrait.half(), mask=mask.half())
    for ((_, given),), ((_, wanted),) in zip(half[1:], expected[1:], strict=True):
        assert torch.equal(given["cross_attn_controlnet"], wanted["cross_attn_controlnet"])
        assert torch.equal(given["control"].cond_hint_original, wanted["control"].cond_hint_original)
    assert distance(sample(*half), sample(*expected)) <= SAME
    drawn = [
        tiny.call(ours["FaceKeypointsPreprocessor"], faceanalysis=faces, image=image)[0]
        for image in (portrait, portrait.half())
    ]
    assert torch.equal(*drawn)


def test_a_keypoint_picture_in_float16_is_taken(apply, model, portrait):
    """One without a photographed face is the control image itself, and the tokens beside it have its dtype."""
    drawn = torch.zeros_like(portrait)
    drawn[:, 100:200, 100:200] = 0.5
    half, full = (sample(*apply(model, image_kps=image)) for image in (drawn.half(), drawn))
    assert distance(half, full) < 0.1
    assert torch.isfinite(half).all()


# Photos decoded by the host


@pytest.fixture
def loaded(real_host, astronaut, tmp_path, monkeypatch) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """``loaded("a.png", **saving)``: levels of the photo as the host's LoadImage gives it, and as Pillow does."""
    import folder_paths
    import nodes

    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))

    def loaded(name: str, **saving: Any) -> tuple[torch.Tensor, torch.Tensor]:
        Image.fromarray(astronaut).save(tmp_path / name, **saving)
        image, _ = nodes.LoadImage().load_image(name)
        return image[0] * 255, torch.from_numpy(np.array(Image.open(tmp_path / name).convert("RGB"))).float()

    return loaded


def test_a_png_is_the_same_in_every_host(loaded):
    theirs, ours = loaded("photo.png")
    assert torch.equal(theirs.round(), ours)
    assert (theirs - ours).abs().max() < 1e-4


@pytest.mark.parametrize(("subsampling", "largest", "mean"), [(2, 40, 1.5), (0, 4, 1.0)], ids=["4:2:0", "4:4:4"])
def test_a_jpeg_is_a_little_different_where_another_library_decodes_it(loaded, subsampling, largest, mean):
    """Since ComfyUI 0.21, by the bounds that docs/fidelity.md gives."""
    theirs, ours = loaded("photo.jpg", quality=90, subsampling=subsampling)
    difference = (theirs - ours).abs()
    if "VideoFromFile" in inspect.getsource(importlib.import_module("nodes").LoadImage.load_image):
        assert 0.1 < difference.max() <= largest
        assert difference.mean() <= mean
    else:
        assert difference.max() < 1e-4


# Dynamic VRAM


@pytest.mark.parametrize(("enabled", "said"), [(True, "--disable-dynamic-vram"), (False, "dynamic VRAM is off")])
def test_the_doctor_node_says_whether_vram_is_dynamic(real_host, ours, monkeypatch, enabled, said):
    memory = module_of_host("comfy.memory_management")
    monkeypatch.setattr(memory, "aimdo_enabled", enabled)
    assert said in " ".join(tiny.call(ours["InstantIDDoctor"])["result"][0].split())


def test_face_networks_are_given_to_the_class_of_dynamic_vram(real_host, part, face_pack, portraits, monkeypatch):
    """For the CPU that makes an ordinary patcher: loading on a GPU is not tested here."""
    patchers = module_of_host("comfy.model_patcher")
    if not hasattr(patchers, "ModelPatcherDynamic"):
        pytest.skip("needs a ComfyUI with dynamic VRAM")
    network = part("comfyui.memory").ManagedNetwork
    recognizer = part("faces.pack").look_for_pack(face_pack).recognizer
    crops = (portraits[:1, :112, :112] * 255).to(torch.uint8)
    expected = network(recognizer, torch.device("cpu")).run(crops, 127.5, 1 / 127.5)[0]
    made: list[Any] = []
    new = patchers.ModelPatcherDynamic.__new__
    monkeypatch.setattr(patchers.ModelPatcherDynamic, "__new__", lambda *a, **k: made.append(new(*a, **k)) or made[-1])
    monkeypatch.setattr(patchers, "CoreModelPatcher", patchers.ModelPatcherDynamic)
    assert (network(recognizer, torch.device("cpu")).run(crops, 127.5, 1 / 127.5)[0] == expected).all()
    assert [type(patcher) for patcher in made] == [patchers.ModelPatcher]
