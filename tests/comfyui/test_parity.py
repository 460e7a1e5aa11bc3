"""The reference's pictures, from the reference's workflows: both packs in one process, on one tiny SDXL.

Latents of a random UNet have hundreds for values, of which 1e-5 would be less than the last bit: the bound is 1e-5 of
the largest one.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import folder_paths
import numpy as np
import pytest
import torch

from tests.comfyui import tiny
from tests.comfyui.operations import Counts
from tests.comfyui.tiny import distance

TOLERANCE = 1e-5
ACTS = 1e-3  # of the largest latent: what counts as another picture

Outputs = tuple[Any, Any, Any]  # model, positive, negative


@dataclass(frozen=True)
class Pack:
    """One of the two packs, and the common inputs of all workflows."""

    nodes: dict[str, type]
    common: dict[str, Any]

    def run(self, node_id: str, **inputs: Any) -> tuple[Any, ...]:
        """Return a node's outputs; missing inputs are the common ones or the node's defaults."""
        node = self.nodes[node_id]
        types = node.INPUT_TYPES()
        sockets = types["required"] | types.get("optional", {})
        defaults = {name: spec[1]["default"] for name, spec in sockets.items() if "default" in dict(*spec[1:])}
        given = defaults | self.common | inputs
        return tiny.call(node, **{name: given[name] for name in sockets if name in given})


@pytest.fixture(scope="session")
def adapter_name(reference_pack: ModuleType) -> str:
    """A file with a resampler of the published size, which the reference insists on, and tiny keys and values."""
    folder = Path(folder_paths.models_dir) / "instantid"
    folder.mkdir(exist_ok=True)
    weights = torch.load(tiny.adapter_file(folder))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        resampler = sys.modules[f"{reference_pack.__name__}.resampler"].Resampler(
            dim=1280, depth=4, dim_head=64, heads=20, num_queries=16, embedding_dim=512, output_dim=tiny.TOKEN_WIDTH
        )
    weights["image_proj"] = resampler.state_dict()
    torch.save(weights, folder / "ip-adapter.bin")
    return "ip-adapter.bin"


@pytest.fixture(scope="session")
def loaded(ours, reference, adapter_name) -> list[tuple[dict[str, type], Any]]:
    return [
        (nodes, tiny.call(nodes["InstantIDModelLoader"], instantid_file=adapter_name)[0]) for nodes in (ours, reference)
    ]


@pytest.fixture
def packs(loaded, model, faces, controlnet, portrait, positive, negative) -> list[Pack]:
    """Ours and the reference."""
    common = {
        "insightface": faces,
        "faceanalysis": faces,
        "control_net": controlnet,
        "image": portrait,
        "model": model,
        "positive": positive,
        "negative": negative,
    }
    return [Pack(nodes, common | {"instantid": adapter}) for nodes, adapter in loaded]


@pytest.fixture(scope="session")
def plain(positive, negative) -> Callable[..., torch.Tensor]:
    """The picture without InstantID, for the arguments of ``sample``."""
    return cache(lambda **sampling: tiny.sample(tiny.tiny_model(), positive, negative, **sampling))


@pytest.fixture
def compare(packs: list[Pack], plain):
    """``compare(workflow)``: both packs draw the same picture, and the identity changes it."""

    def compare(workflow: Callable[[Pack], Outputs], *, acts: bool = True, **sampling: Any) -> None:
        outputs = [workflow(pack) for pack in packs]
        ours, theirs = (tiny.sample(*output, **sampling) for output in outputs)
        assert torch.isfinite(theirs).all()
        assert distance(ours, theirs) <= TOLERANCE
        if not acts:
            assert distance(ours, plain(**sampling)) <= TOLERANCE
            return
        _, *conditionings = outputs[0]
        without_patch = tiny.sample(packs[0].common["model"], *conditionings, **sampling)
        assert distance(ours, without_patch) > ACTS
        assert distance(without_patch, plain(**sampling)) > ACTS

    return compare


def apply(**inputs: Any) -> Callable[[Pack], Outputs]:
    """The advanced node, with noise as the simple one has it."""
    return lambda pack: pack.run("ApplyInstantIDAdvanced", **({"noise": 0.35} | inputs))


def test_each_pack_draws_with_the_adapter_that_the_other_loaded(compare, packs):
    loaded = {id(pack): other.common["instantid"] for pack, other in zip(packs, reversed(packs), strict=True)}
    compare(lambda pack: pack.run("ApplyInstantID", instantid=loaded[id(pack)]))


@pytest.mark.parametrize("references", [1, 2, 3])
@pytest.mark.parametrize("way", ["average", "norm average", "concat"])
def test_ways_of_combining(compare, portraits, way, references):
    compare(apply(image=portraits[:references], combine_embeds=way))


def test_concatenated_references_in_a_batch(compare, portraits):
    compare(apply(image=portraits, combine_embeds="concat"), batch=2)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_noise(compare, portraits, noise):
    compare(apply(image=portraits[:2], noise=noise))


@pytest.mark.parametrize("weight", [0.0, 0.8, 3.0])
def test_weight(compare, weight):
    compare(lambda pack: pack.run("ApplyInstantID", weight=weight), acts=weight > 0)


def test_weights_of_attention_and_controlnet(compare):
    compare(apply(ip_weight=0.3, cn_strength=1.4))


def test_strength_0_of_the_controlnet(packs):
    """The reference runs it all the same, and adds nothing."""
    ours, theirs = (tiny.sample(*apply(cn_strength=0.0)(pack)) for pack in packs)
    assert distance(ours, theirs) <= TOLERANCE
    assert distance(ours, tiny.sample(*apply(cn_strength=0.8)(packs[0]))) > ACTS


@pytest.mark.parametrize(("start", "end"), [(0.2, 0.8), (0.0, 0.5), (0.0, 0.0)])
def test_range(compare, start, end):
    """Half of the way is the noise level of the second of three steps: to the bit, and it counts as inside."""
    compare(apply(start_at=start, end_at=end), acts=end > 0)


def test_range_with_two_evaluations_to_a_step(compare):
    compare(apply(start_at=0.2, end_at=0.8), sampler="heun")


@pytest.mark.parametrize(("batch", "cfg"), [(1, 1.0), (2, 4.5), (3, 1.0), (4, 4.5)])
def test_batch_and_guidance(compare, batch, cfg):
    compare(apply(), batch=batch, cfg=cfg)


def stripes(count: int, height: int = 96, width: int = 96) -> torch.Tensor:
    """``(count, height, width)``: masks of soft-edged stripes, each elsewhere."""
    columns = torch.linspace(0, 1, width)
    return torch.stack([(columns - i / count).mul(8).clamp(0, 1) for i in range(count)])[:, None].repeat(1, height, 1)


@pytest.mark.parametrize("size", [(128, 128), (512, 64), (520, 72), (72, 600)], ids=str)
def test_mask(compare, size):
    height, width = size
    compare(apply(mask=1 - stripes(2)[1:]), height=height, width=width)


@pytest.mark.parametrize(("masks", "batch"), [(3, 3), (3, 2)])
def test_batch_of_masks(compare, masks, batch):
    compare(apply(mask=stripes(masks)), batch=batch)


def test_keypoints_of_another_picture(compare, portraits):
    compare(apply(image_kps=portraits[1:2]))


def test_no_face_in_the_keypoint_image(compare, portrait):
    compare(apply(image_kps=torch.full_like(portrait, 0.3)))


def test_no_face_in_the_first_reference(compare, portrait):
    compare(apply(image=torch.cat([torch.full_like(portrait, 0.3), portrait])))


def test_two_people(compare, portraits):
    def workflow(pack: Pack) -> Outputs:
        left, right = stripes(2)[1:].flip(2), stripes(2)[1:]
        model, positive, negative = apply(mask=left)(pack)
        return apply(image=portraits[1:2], mask=right, model=model, positive=positive, negative=negative)(pack)

    compare(workflow)


@pytest.mark.parametrize(("weight", "mask"), [(1.0, None), (-1.0, stripes(2)[1:])], ids=["everywhere", "masked"])
def test_attention_patch_and_controlnet_apart(compare, packs, weight, mask):
    (keypoints,) = packs[1].run("FaceKeypointsPreprocessor")

    def workflow(pack: Pack) -> Outputs:
        region = {} if mask is None else {"mask": mask}
        model, embeds = pack.run("InstantIDAttentionPatch", weight=weight, noise=0.35, end_at=0.9, **region)
        pair = pack.run("ApplyInstantIDControlNet", face_embeds=embeds, image_kps=keypoints, strength=0.7, **region)
        return model, *pair

    compare(workflow)


@pytest.mark.parametrize(
    ("masks", "window"),
    [
        (2, None),
        (5, {"sub_idxs": [1, 3, 4], "full_length": 5}),  # AnimateDiff samples three of five frames
        (2, {"sub_idxs": [0, 1, 4], "full_length": 5}),
        (1, {"sub_idxs": [0, 1, 4], "full_length": 5}),
    ],
    ids=str,
)
def test_other_masks_than_pictures(packs, plain, positive, negative, masks, window):
    """For the attention alone: the host wants a mask for each picture where a conditioning has masks."""
    pictures = []
    for pack in packs:
        model, _ = pack.run("InstantIDAttentionPatch", mask=stripes(masks + 1)[1:])
        if window:
            model.model_options["transformer_options"]["ad_params"] = window
        pictures.append(tiny.sample(model, positive, negative, batch=3))
    assert distance(*pictures) <= TOLERANCE
    assert distance(pictures[0], plain(batch=3)) > ACTS


@pytest.mark.parametrize("where", ["both", "positive", "different"])
def test_conditioning_that_has_a_controlnet(compare, packs, portrait, where):
    common = packs[0].common
    first, second = (
        common["control_net"].copy().set_cond_hint(hint.movedim(-1, 1), 0.6) for hint in (portrait, 1 - portrait)
    )
    controls = {"both": (first, first), "positive": (first, None), "different": (first, second)}[where]
    given = {
        name: [[text, options | ({"control": control} if control else {})] for text, options in common[name]]
        for name, control in zip(("positive", "negative"), controls, strict=True)
    }
    compare(apply(**given))


def test_controlnet_on_top(compare, packs, portraits):
    other = packs[0].common["control_net"].copy().set_cond_hint(portraits[2:].movedim(-1, 1), 0.6)

    def workflow(pack: Pack) -> Outputs:
        model, *conditionings = apply()(pack)
        on_top = other.copy().set_previous_controlnet(conditionings[0][0][1]["control"])
        return model, *([[text, options | {"control": on_top}] for text, options in c] for c in conditionings)

    compare(workflow)


@pytest.mark.parametrize(
    ("module", "node", "inputs"),
    [
        ("nodes_sag", "SelfAttentionGuidance", {"scale": 0.5, "blur_sigma": 2.0}),
        ("nodes_pag", "PerturbedAttentionGuidance", {"scale": 3.0}),
    ],
)
def test_guidance_that_evaluates_one_conditioning_more(compare, host_nodes, module, node, inputs):
    def workflow(pack: Pack) -> Outputs:
        model, *conditionings = apply()(pack)
        return host_nodes(module, node, model=model, **inputs)[0], *conditionings

    compare(workflow)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn], ids=str)
def test_weights_stored_small(packs, dtype):
    """And computed with in float32: in float16 or bfloat16 the reference fails on the CPU."""
    model = tiny.tiny_model(dtype, compute_dtype=torch.float32)
    outputs = [apply(model=model)(pack) for pack in packs]
    pictures = [tiny.sample(*output) for output in outputs]
    assert distance(*pictures) <= TOLERANCE
    assert distance(pictures[0], tiny.sample(model, *outputs[0][1:])) > ACTS


@pytest.fixture(scope="session")
def style(ipadapter_pack: ModuleType) -> Callable[..., Any]:
    """``style(model, weight)``: a clone with a random IPAdapter, patched as IPAdapter_plus does at the end."""
    pack = sys.modules[f"{ipadapter_pack.__name__}.IPAdapterPlus"]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        projection = pack.ImageProjModel(tiny.TOKEN_WIDTH, clip_embeddings_dim=32)
        layers = {
            f"{2 * i + 1}.to_{part}_ip.weight": torch.randn(channels, tiny.TOKEN_WIDTH) / tiny.TOKEN_WIDTH**0.5
            for i, channels in enumerate(tiny.LAYER_CHANNELS)
            for part in "kv"
        }
        embeds = torch.randn(1, 32)
    weights = {"image_proj": projection.state_dict(), "ip_adapter": layers}
    adapter = pack.IPAdapter(
        weights,
        output_cross_attention_dim=tiny.TOKEN_WIDTH,
        cross_attention_dim=tiny.TOKEN_WIDTH,
        clip_embeddings_dim=32,
        is_sdxl=True,
    )
    cond, uncond = adapter.get_image_embeds(embeds, torch.zeros_like(embeds), 0)
    keys = [("input", block, i) for block, depth in ((4, 2), (5, 2), (7, 10), (8, 10)) for i in range(depth)]
    keys += [("output", block, i) for block in range(6) for i in range(10 if block < 3 else 2)]

    def patched(model: Any, weight: float = 0.7) -> Any:
        model = model.clone()
        sampling = model.get_model_object("model_sampling")
        for number, key in enumerate(keys):
            options = {
                "ipadapter": adapter,
                "module_key": str(2 * number + 1),
                "weight": weight,
                "cond": cond,
                "uncond": uncond,
                "sigma_start": sampling.percent_to_sigma(0.0),
                "sigma_end": sampling.percent_to_sigma(0.6),
            }
            pack.set_model_patch_replace(model, options, key)
        return model

    return patched


@pytest.mark.parametrize(
    ("order", "masked"), [("before", False), ("after", False), ("before", True), ("both", True)], ids=str
)
def test_ipadapter(compare, model, style, order, masked):
    def workflow(pack: Pack) -> Outputs:
        start = model if order == "after" else style(model)
        region = {"mask": stripes(2)[1:]} if masked else {}
        patched, positive, negative = apply(model=start, end_at=0.8, **region)(pack)
        return (patched if order == "before" else style(patched)), positive, negative

    compare(workflow)


def test_keypoint_pictures_and_features(our_pack, reference_pack, packs, faces, portraits):
    ours, theirs = (pack.run("FaceKeypointsPreprocessor", image=portraits)[0] for pack in packs)
    assert torch.equal(ours, theirs)
    blank = torch.full_like(portraits[:1], 0.3)
    ours, theirs = (pack.run("FaceKeypointsPreprocessor", image=blank)[0] for pack in packs)
    assert torch.equal(ours, theirs)
    ours = sys.modules[f"{our_pack.__name__}.fast_instantid.comfyui.nodes"]
    theirs = sys.modules[f"{reference_pack.__name__}.InstantID"]
    torch.testing.assert_close(
        ours.extractFeatures(faces, portraits), theirs.extractFeatures(faces, portraits), rtol=1e-5, atol=0
    )
    for kps in (False, True):
        assert ours.extractFeatures(faces, blank, extract_kps=kps) is None
    np.testing.assert_array_equal(ours.tensor_to_image(portraits), theirs.tensor_to_image(portraits))
    picture = theirs.tensor_to_image(portraits)[0]
    kps = faces.get(picture)[0]["kps"]
    np.testing.assert_array_equal(np.array(ours.draw_kps(picture, kps)), np.array(theirs.draw_kps(picture, kps)))


def test_each_with_its_own_face_networks(packs):
    """From the loaders on. Embeddings differ in the sixth digit, and a random UNet makes more of that."""
    pictures = []
    for pack in packs:
        (faces,) = pack.run("InstantIDFaceAnalysis", provider="CPU")
        pictures.append(tiny.sample(*apply(insightface=faces)(pack)))
    assert distance(*pictures) <= 1e-4


def test_each_step_of_the_reference_does_what_ours_does_once(packs, model):
    """The counts of docs/findings.md: what an evaluation of the patched model adds to one without the patch."""
    ours, reference = (_added_by_the_patch(pack, model) for pack in packs)
    names = ("_local_scalar_dense", "linear", "mm", "addmm", "repeat", "cat")
    assert {name: ours[name] for name in names} == dict.fromkeys(names, 0)
    assert reference["_local_scalar_dense"] == 60
    assert reference["linear"] + reference["mm"] + reference["addmm"] == reference["repeat"] == 240
    assert reference["cat"] == 120


def _added_by_the_patch(pack: Pack, model: Any) -> Counter[str]:
    """Operators of one evaluation; those of two runs differ by the work that is done once."""
    patched, positive, negative = apply(end_at=1.0, start_at=0.0)(pack)
    counted: dict[str, Counter[str]] = {}
    for name, sampled in (("plain", model), ("patched", patched)):
        of_steps: list[Counter[str]] = []
        for steps in (1, 2):
            tiny.sample(sampled, positive, negative, steps=steps)
            with Counts() as counts:
                tiny.sample(sampled, positive, negative, steps=steps)
            of_steps.append(counts.calls)
        of_steps[1].subtract(of_steps[0])
        counted[name] = of_steps[1]
    counted["patched"].subtract(counted["plain"])
    return counted["patched"]
