"""The miniature in ComfyUI: each of its networks beside its twin in diffusers, and the pictures that come out."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fast_instantid import miniature
from fast_instantid.images import load_image
from tests.comfyui import tiny

SIDE = miniature.SIZE[0]
TOLERANCE = 1e-4
"""Tolerance between two fp32 computations in another order."""
PROMPTS = (
    "",
    "flat portrait, starry blue background, red jacket",
    "words of which none was trained on, so many of them that no more than a part of them can have room",
)


@pytest.fixture(scope="module")
def node(ours: dict[str, type]) -> type:
    return ours["InstantIDMiniature"]


@pytest.fixture(scope="module")
def loaded(real_host: Path, node: type) -> SimpleNamespace:
    """The node's outputs by name."""
    outputs = tiny.call(node, portrait=people(node)[0])
    return SimpleNamespace(**dict(zip(node.RETURN_NAMES, outputs, strict=True)))


@pytest.fixture(scope="module")
def pipe(real_host: Path) -> Any:
    """The same files in diffusers."""
    pytest.importorskip("diffusers", reason="needs diffusers, which runs the twins: pip install diffusers")
    from fast_instantid.pipelines import load_pipeline

    files = miniature.files()
    return load_pipeline(files.base, files.instantid, "cpu", "float32")


@pytest.fixture(scope="module")
def step() -> dict[str, torch.Tensor]:
    """Inputs of a UNet and a ControlNet: two latents at different noise, and texts."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"latent": (2, 4, 16, 16), "text": (2, 24, 64), "pooled": (2, 32)}
    random = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**random, "time": torch.tensor([999.0, 249.0]), "hint": torch.rand(2, 3, SIDE, SIDE, generator=generator)}


def people(node: type) -> list[str]:
    """The names that the node offers."""
    return node.INPUT_TYPES()["required"]["portrait"][0]


def difference(ours: torch.Tensor, twin: torch.Tensor) -> float:
    """The largest, in units of the largest value of the twin, which says something."""
    assert ours.shape == twin.shape
    assert twin.std() > 0
    return tiny.distance(ours, twin)


def adm(loaded: SimpleNamespace, pooled: torch.Tensor) -> torch.Tensor:
    """Pooled text and the sizes of a picture, as the host gives them to SDXL."""
    return loaded.MODEL.model.encode_adm(pooled_output=pooled, width=SIDE, height=SIDE)


def added(pooled: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same for diffusers."""
    sizes = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]], dtype=torch.float32)
    return {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}


# The node


def test_it_offers_every_portrait_and_gives_the_one_that_was_chosen(real_host: Path, node: type) -> None:
    files, names = miniature.files().portraits, people(node)
    loader = node()
    (*models, first), (*again, last) = (loader.load(name) for name in (names[0], names[-1]))
    for file, portrait in ((files[0], first), (files[-1], last)):
        assert np.array_equal(portrait[0].mul(255).round().byte().numpy(), np.asarray(load_image(file)))
    assert len(files) == len(names)
    assert all(a is b for a, b in zip(models, again, strict=True)), "another portrait is no reason to load anything"


def test_a_portrait_that_is_not_there_is_refused(node: type) -> None:
    names = people(node)
    assert node.VALIDATE_INPUTS(portrait=names[0]) is True
    assert node.VALIDATE_INPUTS(portrait=None) is True  # a link
    assert node.VALIDATE_INPUTS(portrait="Mona Lisa") == (
        f"there is no portrait 'Mona Lisa': choose one of {', '.join(names)}"
    )


def test_without_its_files_it_says_what_to_do(
    our_pack: ModuleType, node: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[f"{our_pack.__name__}.fast_instantid.miniature"], "_WEIGHTS", tmp_path)
    assert people(node) == []
    said = node.VALIDATE_INPUTS(portrait="anybody")
    assert str(tmp_path) in said
    assert "is not complete" in said


# Twins


def test_the_unet(loaded: SimpleNamespace, pipe: Any, step: dict[str, torch.Tensor]) -> None:
    with torch.inference_mode():
        pooled = step["pooled"]
        twin = pipe.unet(step["latent"], step["time"], step["text"], added_cond_kwargs=added(pooled)).sample
        ours = loaded.MODEL.model.diffusion_model(
            step["latent"], step["time"], context=step["text"], y=adm(loaded, pooled)
        )
    assert difference(ours, twin) < TOLERANCE


def test_weights_may_be_stored_smaller_than_they_are_computed_in(
    loaded: SimpleNamespace, node: type, pipe: Any, step: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU with ``--fp16-unet``, the dtype of the files; otherwise the host decides by its hardware."""
    from comfy.cli_args import args

    monkeypatch.setattr(args, "fp16_unet", True)
    model, _, _, net, *_ = tiny.call(node, portrait=people(node)[0])
    unet = model.model.diffusion_model
    assert {parameter.dtype for parameter in [*unet.parameters(), *net.control_model.parameters()]} == {torch.float16}
    assert model.model.manual_cast_dtype == net.manual_cast_dtype == torch.float32
    with torch.inference_mode():
        pooled = step["pooled"]
        twin = pipe.unet(step["latent"], step["time"], step["text"], added_cond_kwargs=added(pooled)).sample
        ours = unet(step["latent"], step["time"], context=step["text"], y=adm(loaded, pooled))
    assert difference(ours, twin) < TOLERANCE


def test_the_identitynet(loaded: SimpleNamespace, pipe: Any, step: dict[str, torch.Tensor]) -> None:
    with torch.inference_mode():
        pooled = step["pooled"]
        down, middle = pipe.controlnet(
            step["latent"], step["time"], step["text"], step["hint"], added_cond_kwargs=added(pooled), return_dict=False
        )
        ours = loaded.CONTROL_NET.control_model(
            step["latent"], step["hint"], step["time"], step["text"], y=adm(loaded, pooled)
        )
    assert len(ours["output"]) == len(down) == 9
    for mine, twin in zip([*ours["output"], *ours["middle"]], [*down, middle], strict=True):
        assert difference(mine, twin) < TOLERANCE


def test_the_vae(loaded: SimpleNamespace, pipe: Any) -> None:
    pixels = loaded.portrait.movedim(-1, 1)
    with torch.inference_mode():
        twin = pipe.vae.encode(pixels * 2 - 1).latent_dist.mode()
        assert difference(loaded.VAE.encode(loaded.portrait), twin) < TOLERANCE
        picture = (pipe.vae.decode(twin).sample / 2 + 0.5).clamp(0, 1)
        assert difference(loaded.VAE.decode(twin).movedim(-1, 1), picture) < TOLERANCE


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_text_encoders(loaded: SimpleNamespace, pipe: Any, prompt: str) -> None:
    with torch.inference_mode():
        text, _, pooled, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
        ours, our_pooled = loaded.CLIP.encode_from_tokens(loaded.CLIP.tokenize(prompt), return_pooled=True)
    length = text.shape[1]  # ComfyUI goes on where diffusers cuts off
    assert difference(ours[:, :length], text) < TOLERANCE
    assert difference(our_pooled, pooled) < TOLERANCE


# Pictures


def test_a_picture_equals_that_of_diffusers(ours: dict[str, type], loaded: SimpleNamespace, pipe: Any) -> None:
    """From the portrait to the latent, with the same noise: faces, identity, prompt, guidance and every step."""
    from diffusers import DDIMScheduler

    from fast_instantid import Adapter, FaceAnalyzer
    from fast_instantid.faces import keypoint_picture, largest
    from fast_instantid.pipelines import InstantID

    steps, prompt, files = 4, PROMPTS[1], miniature.files()
    encode = loaded.CLIP.encode_from_tokens_scheduled
    model, positive, negative = tiny.call(
        ours["ApplyInstantIDAdvanced"],
        instantid=loaded.INSTANTID,
        insightface=loaded.FACEANALYSIS,
        control_net=loaded.CONTROL_NET,
        image=loaded.portrait,
        model=loaded.MODEL,
        positive=encode(loaded.CLIP.tokenize(prompt)),
        negative=encode(loaded.CLIP.tokenize("")),
        ip_weight=0.8,
        cn_strength=0.8,
        start_at=0.0,
        end_at=1.0,
        noise=0.0,
        layers="paper",
    )
    guidance = miniature.GUIDANCE
    latent = tiny.sample(model, positive, negative, steps=steps, cfg=guidance, sampler="ddim", scheduler="simple")

    photo = load_image(files.portraits[0])
    analyzer = FaceAnalyzer.load(files.pack, device="cpu")
    face = largest(analyzer.detect(photo)[0])
    identity = Adapter.load(files.instantid / "ip-adapter.safetensors", "cpu").identity(analyzer.embed(photo, face))
    # ComfyUI's last step goes to no noise at all.
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=True)
    with InstantID(pipe).attached(identity, weight=0.8):
        twin = pipe(
            prompt,
            negative_prompt="",
            image=keypoint_picture(face, photo, miniature.SIZE),
            controlnet_conditioning_scale=0.8,
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=tiny.noise(seed=0),
            output_type="latent",
        ).images
    assert difference(latent * pipe.vae.config.scaling_factor, twin) < TOLERANCE
