"""Other packs build on the reference's Python names. Ours lies in its folder, and they do not notice."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.nodes.host import load_pack
from tests.comfyui import tiny
from tests.comfyui.installation import Installation, installed

FOLDER = "ComfyUI_InstantID"  # the name by which others import it
IMPORTS = (f"custom_nodes.{FOLDER}.InstantID", f"{FOLDER}.InstantID")


@pytest.fixture
def comfyui(tmp_path: Path) -> Iterator[Installation]:
    with installed(tmp_path / "ComfyUI") as installation:
        installation.install(FOLDER)
        sys.path.insert(0, str(installation.custom_nodes))  # as packs do that import it by its bare name
        yield installation


@pytest.fixture
def registered(comfyui: Installation) -> dict[str, type]:
    """The nodes that the host knows by id."""
    return load_pack(comfyui.custom_nodes / FOLDER).NODE_CLASS_MAPPINGS


@pytest.fixture
def IID(registered) -> ModuleType:
    return importlib.import_module(IMPORTS[0])


@pytest.fixture
def inputs(registered, comfyui: Installation, faces, controlnet, model, portraits, positive, negative) -> dict:
    """The arguments of ApplyInstantID: two pictures of one person."""
    file = tiny.adapter_file(comfyui.models / "instantid")
    (instantid,) = tiny.call(registered["InstantIDModelLoader"], instantid_file=file.name)
    connected = {"instantid": instantid, "insightface": faces, "control_net": controlnet, "model": model}
    connected |= {"image": portraits[:2], "positive": positive, "negative": negative}
    return {**connected, "weight": 0.8, "start_at": 0.0, "end_at": 1.0, "noise": 0.0}


@pytest.mark.parametrize("name", IMPORTS)
@pytest.mark.parametrize("order", ["the host first", "the import first"])
def test_others_import_the_classes_that_the_host_registered(comfyui: Installation, name: str, order: str):
    if order == "the host first":
        pack, module = load_pack(comfyui.custom_nodes / FOLDER), importlib.import_module(name)
    else:
        module, pack = importlib.import_module(name), load_pack(comfyui.custom_nodes / FOLDER)
    for id, node in pack.NODE_CLASS_MAPPINGS.items():
        assert getattr(module, id) is node, id
    assert module.NODE_CLASS_MAPPINGS == pack.NODE_CLASS_MAPPINGS


def test_both_ways_to_import_it_give_one_module(registered):
    first, second = (importlib.import_module(name) for name in IMPORTS)
    assert first is second


def test_the_functions_are_the_references(IID: ModuleType, faces, portraits: torch.Tensor):
    embeddings = IID.extractFeatures(faces, portraits[:2])
    assert (embeddings.shape, embeddings.dtype) == ((2, 1, 512), torch.float32)
    pictures = IID.extractFeatures(faces, portraits[:2], extract_kps=True)
    assert (pictures.shape, pictures.dtype) == (portraits[:2].shape, torch.float32)
    assert 0 < pictures.max() <= 1
    assert IID.extractFeatures(faces, torch.zeros(1, 64, 64, 3)) is None
    bgr = IID.tensor_to_image(portraits[:1])
    assert np.array_equal(bgr[0][..., ::-1], portraits[0].mul(255).byte().numpy())
    transparent = torch.cat([portraits[:1], torch.ones(1, 512, 512, 1)], dim=-1)
    assert np.array_equal(IID.tensor_to_image(transparent), bgr)
    drawn = IID.draw_kps(bgr[0], [(100, 100), (160, 100), (130, 130), (105, 160), (155, 160)])
    assert isinstance(drawn, Image.Image)
    assert drawn.size == (512, 512)
    assert np.asarray(drawn)[100, 100].tolist() == [255, 0, 0]


def test_the_functions_agree_with_the_reference(IID: ModuleType, reference_pack, faces, portraits: torch.Tensor):
    theirs = importlib.import_module(f"{reference_pack.__name__}.InstantID")
    for extract_kps in (False, True):
        expected = theirs.extractFeatures(faces, portraits, extract_kps=extract_kps)
        torch.testing.assert_close(IID.extractFeatures(faces, portraits, extract_kps=extract_kps), expected)
    keypoints = [(100, 100), (160.5, 90), (130, 130), (105, 160), (155, 165.2)]
    colors = [(9, 0, 0), (0, 8, 0), (0, 0, 7), (6, 6, 0), (5, 0, 5)]
    frame = np.zeros((200, 300, 3), np.uint8)
    expected = np.asarray(theirs.draw_kps(frame, keypoints, colors))
    assert np.array_equal(np.asarray(IID.draw_kps(frame, keypoints, colors)), expected)


def hashing_node(IID: ModuleType, change: Callable[[torch.Tensor], torch.Tensor | None]) -> type:
    """A node as ComfyUI_FaceHash has one: it replaces the extractor while the inherited method runs."""

    class HashedApplyInstantID(IID.ApplyInstantID):
        FUNCTION = "apply"
        asked: tuple[bool, ...] = ()

        def apply(self, **inputs: Any) -> tuple[Any, ...]:
            original = IID.extractFeatures

            def replacement(insightface, image, extract_kps=False):
                type(self).asked += (extract_kps,)
                features = original(insightface, image, extract_kps=extract_kps)
                return features if extract_kps else change(features)

            IID.extractFeatures = replacement
            try:
                return super().apply_instantid(**inputs)
            finally:
                IID.extractFeatures = original

    return HashedApplyInstantID


def tokens(result: tuple[Any, ...]) -> torch.Tensor:
    """The identity tokens that the ControlNet gets."""
    return result[1][0][1]["cross_attn_controlnet"]


def test_a_replaced_extractor_takes_effect(IID: ModuleType, registered, inputs):
    plain = tiny.call(registered["ApplyInstantID"], **inputs)
    node = hashing_node(IID, lambda features: features.flip(-1))
    flipped = tiny.call(node, **inputs)
    assert node.asked == (False, True), "once for the embeddings, once for the keypoints"
    assert not torch.allclose(tokens(flipped), tokens(plain))
    control, expected = (result[1][0][1]["control"].cond_hint_original for result in (flipped, plain))
    assert torch.equal(control, expected)
    latents = [tiny.sample(*result, steps=1) for result in (plain, flipped)]
    assert not torch.allclose(*latents), "the attention patch did not see it"
    again = tiny.call(registered["ApplyInstantID"], **inputs)
    assert torch.equal(tokens(again), tokens(plain))


def test_a_replaced_extractor_may_drop_the_dimension_in_the_middle(IID: ModuleType, registered, inputs):
    """Theirs is ``(N, 1, 512)``, and they never minded ``(N, 512)``."""
    plain = tiny.call(registered["ApplyInstantID"], **inputs)
    for shape in ((2, 1, 512), (2, 512)):
        node = hashing_node(IID, lambda features, shape=shape: features.clone().reshape(shape))
        assert torch.equal(tokens(tiny.call(node, **inputs)), tokens(plain)), shape


def test_a_replaced_extractor_that_finds_nothing_is_no_face(IID: ModuleType, inputs):
    with pytest.raises(ValueError, match=r"[Nn]o face"):
        tiny.call(hashing_node(IID, lambda features: None), **inputs)


def test_a_foreign_analysis_without_a_cache_looks_at_each_photo_once(registered, inputs):
    """Also one whose ``get`` chooses the face, and whose results nothing identifies."""
    faces = inputs["insightface"]

    class Chooses:
        asked = 0

        def get(self, img):
            type(self).asked += 1
            return faces.get(img)[:1]

    plain = tiny.call(registered["ApplyInstantID"], **inputs)
    result = tiny.call(registered["ApplyInstantID"], **{**inputs, "insightface": Chooses()})
    assert Chooses.asked == len(inputs["image"]) == 2
    torch.testing.assert_close(tokens(result), tokens(plain))
    control, expected = (found[1][0][1]["control"].cond_hint_original for found in (result, plain))
    assert torch.equal(control, expected)


def test_the_advanced_node_is_called_by_the_references_names(IID: ModuleType, inputs):
    """By position too, in the reference's order."""
    order = ("instantid", "insightface", "control_net", "image", "model", "positive", "negative", "start_at", "end_at")
    by_position = [inputs[name] for name in order]
    node = IID.ApplyInstantIDAdvanced()
    with torch.inference_mode():
        first = node.apply_instantid(*by_position, 0.8, noise=0.0)
        second = node.apply_instantid(
            *by_position, ip_weight=0.8, cn_strength=0.8, noise=0.0, image_kps=None, mask=None, combine_embeds="average"
        )
    assert torch.equal(tiny.sample(*first, steps=1), tiny.sample(*second, steps=1))


def test_others_project_embeddings_with_the_loaded_adapter(IID: ModuleType, registered, inputs):
    """Packs that choose faces themselves do, before they call the inherited method."""
    embedding = IID.extractFeatures(inputs["insightface"], inputs["image"][:1])
    instantid = inputs["instantid"]
    instantid.to(torch.device("cpu"), dtype=torch.float32)
    cond, uncond = instantid.get_image_embeds(embedding, torch.zeros_like(embedding))
    assert cond.shape == uncond.shape == (1, 16, tiny.TOKEN_WIDTH)
    result = tiny.call(registered["ApplyInstantID"], **{**inputs, "image": inputs["image"][:1]})
    torch.testing.assert_close(cond.cpu(), tokens(result))
