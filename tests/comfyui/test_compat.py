"""Other packs build on the reference's Python names. Ours lies in its folder, and they do not notice."""

from __future__ import annotations

import gc
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
from fast_instantid.identity.resampler import Resampler
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


# Nodes that other packs derive from ours, with the arguments that the reference's methods have


class _ByReference:
    """The reference's signature, for a class before it in the order of base classes."""

    def apply_instantid(
        self, instantid, insightface, control_net, image, model, positive, negative, start_at, end_at, weight=0.8,
        ip_weight=None, cn_strength=None, noise=0.35, image_kps=None, mask=None, combine_embeds="average", choice="",
    ):  # fmt: skip
        arguments = {name: value for name, value in locals().items() if name not in ("self", "choice", "__class__")}
        return super().apply_instantid(**arguments)


STYLES = ("inherited", "super", "by name", "static", "any argument, for a method of theirs")


def derived(style: str, nodes: dict[str, type], node_id: str) -> type:
    """A node as packs write one: other inputs than ours, by one of the ways to come to them."""
    base, choice = nodes[node_id], {"choice": (["left", "right"], {"default": "left"})}

    class Derived(*([] if style == "any argument" else [_ByReference]), base):
        if style == "super":

            @classmethod
            def INPUT_TYPES(cls):
                inputs = super().INPUT_TYPES()
                inputs["required"] |= choice
                return inputs

        elif style == "by name":

            @classmethod
            def INPUT_TYPES(s):
                inputs = nodes[node_id].INPUT_TYPES()
                return {**inputs, "required": {**inputs["required"], **choice}}

        elif style == "static":
            INPUT_TYPES = staticmethod(lambda: {**base.INPUT_TYPES(), "hidden": {}})

        elif style in ("any argument", "any argument, for a method of theirs"):
            FUNCTION = "apply"

            def apply(self, **more):
                return self.apply_instantid(**more)

    if style == "grandchild":
        return type("Grandchild", (derived("by name", nodes, node_id),), {})
    return Derived


@pytest.mark.parametrize("node_id", ["ApplyInstantID", "ApplyInstantIDAdvanced"])
@pytest.mark.parametrize("style", [*STYLES, "grandchild", "any argument"])
def test_a_derived_node_runs_with_all_its_inputs(registered, inputs, style: str, node_id: str):
    """The front end sends each widget that ``INPUT_TYPES`` names."""
    node = derived(style, registered, node_id)
    types = node.INPUT_TYPES()
    sockets = types["required"] | types["optional"]
    for ours in ("layers", "person", "no_face"):
        assert (ours in sockets) == (style == "any argument"), "only for a method that takes it"
        assert ours in registered[node_id].INPUT_TYPES()["optional"], "ours keeps it"
    widgets = {name: spec[1]["default"] for name, spec in sockets.items() if "default" in dict(*spec[1:])}
    result = tiny.call(node, **{name: {**widgets, **inputs}[name] for name in sockets if name in {**widgets, **inputs}})
    plain = tiny.call(registered["ApplyInstantID"], **inputs, cn_strength=0.8, ip_weight=0.8)
    torch.testing.assert_close(tokens(result), tokens(plain))


@pytest.mark.parametrize("style", ["its inputs", "super", "any argument"])
def test_a_derived_analysis_gets_the_inputs_that_it_takes(IID: ModuleType, style: str):
    class Chosen(IID.InstantIDFaceAnalysis):
        def load_insight_face(self, provider):
            return (provider,)

    class Super(Chosen):
        @classmethod
        def INPUT_TYPES(cls):
            return super().INPUT_TYPES()

    class AnyArgument(IID.InstantIDFaceAnalysis):
        def load_insight_face(self, **more):
            return (more["provider"],)

    node = {"its inputs": Chosen, "super": Super, "any argument": AnyArgument}[style]
    sections = node.INPUT_TYPES()
    widgets = {name: spec[1].get("default", "CPU") for section in sections.values() for name, spec in section.items()}
    assert ("det_size" in widgets) == (style == "any argument")
    assert tiny.call(node, **widgets) == ("CPU",)
    assert {"det_threshold", "det_size"} <= set(IID.InstantIDFaceAnalysis.INPUT_TYPES()["optional"])


def test_a_derived_loader_is_judged_by_its_own_rules(IID: ModuleType, comfyui: Installation):
    """Ours would ask for files that it does not read."""

    class FromElsewhere(IID.InstantIDModelLoader):
        INPUT_TYPES = staticmethod(lambda: {"required": {"instantid_file": (["mine.bin"],), "speed": ("FLOAT",)}})

        def load_model(self, instantid_file, speed):
            return (instantid_file,)

    class Analysis(IID.InstantIDFaceAnalysis):
        INPUT_TYPES = staticmethod(lambda: {"required": {"device": (["mine"],)}})

        def load_insight_face(self, device):
            return (device,)

    assert FromElsewhere.VALIDATE_INPUTS(instantid_file="mine.bin") is True
    assert isinstance(FromElsewhere.IS_CHANGED(instantid_file="mine.bin", speed=1.0), str)
    assert Analysis.VALIDATE_INPUTS() is True

    class Same(IID.InstantIDModelLoader):
        pass

    assert "ip-adapter.bin" in Same.VALIDATE_INPUTS("ip-adapter.bin"), "there is none"
    (comfyui.models / "instantid").mkdir(parents=True, exist_ok=True)
    file = tiny.adapter_file(comfyui.models / "instantid")
    assert Same.IS_CHANGED(file.name, speed=1.0) == IID.InstantIDModelLoader.IS_CHANGED(file.name)


# INSTANTID objects of other packs, and ours in theirs


class TheirInstantID(torch.nn.Module):
    """The parts of the reference's object, under its names."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        weights = torch.load(file, weights_only=True)
        self.image_proj_model = Resampler.from_state_dict(weights["image_proj"])
        self.ip_layers = torch.nn.Module()
        self.ip_layers.to_kvs = torch.nn.ModuleDict()
        for name, weight in weights["ip_adapter"].items():
            layer = torch.nn.Linear(*weight.shape[::-1], bias=False)
            layer.weight.data = weight
            self.ip_layers.to_kvs[name.removesuffix(".weight").replace(".", "_")] = layer


def test_an_instantid_of_another_pack_draws_the_same(registered, inputs, comfyui: Installation):
    plain = tiny.call(registered["ApplyInstantID"], **inputs)
    for seed in (1, 0):  # one after the other, at what may be the same address
        with torch.inference_mode():
            theirs = TheirInstantID(tiny.adapter_file(comfyui.models / "instantid", seed=seed))
        result = tiny.call(registered["ApplyInstantID"], **{**inputs, "instantid": theirs})
        assert torch.equal(tokens(result), tokens(plain)) == (seed == 0)
        del theirs
        gc.collect()
    assert torch.equal(tiny.sample(*result, steps=1), tiny.sample(*plain, steps=1))
    patch = {name: inputs[name] for name in ("insightface", "image", "model", "weight", "start_at", "end_at")}
    theirs = TheirInstantID(tiny.adapter_file(comfyui.models / "instantid"))
    theirs.to(torch.device("cpu"), dtype=torch.bfloat16)  # in place, as their nodes do
    _, embeds = tiny.call(registered["InstantIDAttentionPatch"], **patch, instantid=theirs)
    torch.testing.assert_close(embeds["cond"], tokens(plain), rtol=0.1, atol=0.1)


def test_an_instantid_of_another_pack_draws_while_faces_are_kept_on_disk(registered, inputs, comfyui, tmp_path):
    """No file stands behind it, and the keys of the disk hold a file's content."""
    package = registered["ApplyInstantID"].__module__.rpartition(".comfyui")[0]
    cache = sys.modules[f"{package}.cache"].shared_cache()
    plain = tiny.call(registered["ApplyInstantID"], **inputs)
    theirs = TheirInstantID(tiny.adapter_file(comfyui.models / "instantid"))
    cache.keep_in(tmp_path)
    try:
        result = tiny.call(registered["ApplyInstantID"], **{**inputs, "instantid": theirs})
    finally:
        cache.keep_in(None)
    assert torch.equal(tokens(result), tokens(plain))


@pytest.mark.parametrize("given", ["an object", "a dictionary", "None", "an IP-Adapter", "half of one"])
def test_another_instantid_is_refused_by_its_maker(registered, inputs, comfyui: Installation, given: str):
    theirs = TheirInstantID(tiny.adapter_file(comfyui.models / "instantid"))
    if given == "an IP-Adapter":
        theirs.image_proj_model.proj_in = torch.nn.Linear(1280, 64)
    if given == "half of one":
        del theirs.ip_layers.to_kvs["3_to_k_ip"]
    others = {"an object": registered["ApplyInstantID"](), "a dictionary": {}, "None": None}
    with pytest.raises(Exception, match=r"this INSTANTID was made by (\S+)") as caught:
        tiny.call(registered["ApplyInstantID"], **{**inputs, "instantid": others.get(given, theirs)})
    assert type(others.get(given, theirs)).__module__ in str(caught.value)
    assert ("IP-Adapter" in str(caught.value)) == (given == "an IP-Adapter")


def test_attention_of_other_packs_reads_our_adapter(registered, inputs):
    """``ip_layers.to_kvs`` of the reference: their nodes project the tokens with it at each step."""
    instantid = inputs["instantid"]
    instantid.to(torch.device("cpu"), dtype=torch.float16)  # in place there, and the result is dropped
    embedding = torch.ones(1, 1, 512)
    cond, uncond = instantid.get_image_embeds(embedding, torch.zeros_like(embedding))
    expected = instantid.identity(embedding.reshape(1, 512)).bank
    layers = instantid.ip_layers.to_kvs
    assert len(layers) == 2 * len(expected.keys) == 140
    for i in (0, 50, 69):
        for part, values in (("k", expected.keys), ("v", expected.values)):
            projected = layers[f"{2 * i + 1}_to_{part}_ip"](torch.cat([uncond, cond]))
            torch.testing.assert_close(projected, values[i])
    assert layers["1_to_k_ip"](cond.half()).dtype == torch.float16
