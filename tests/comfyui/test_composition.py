"""Beside other nodes: whatever they patch, clone, guide or cast, a face acts as it should, and only where it should."""

from __future__ import annotations

import copy
import functools
import re
import types
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_patcher
import comfy.utils
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention

from tests.comfyui import tiny
from tests.comfyui.tiny import conditioning, distance, tiny_model

ACTS = 1e-3  # of the largest latent: what counts as another picture
SAME = 1e-5  # of the largest latent: float32, summed in another order
STEPS = 2
sample = functools.partial(tiny.sample, steps=STEPS)


@pytest.fixture
def apply(ours, adapter, faces, controlnet, portrait, positive, negative):
    """``apply(model)``: model, positive and negative, as the advanced node returns them."""
    common = {
        "instantid": adapter,
        "insightface": faces,
        "control_net": controlnet,
        "image": portrait,
        "positive": positive,
        "negative": negative,
        "ip_weight": 0.8,
        "cn_strength": 0.8,
        "start_at": 0.0,
        "end_at": 1.0,
        "noise": 0.35,
        "combine_embeds": "average",
    }

    def apply(model: Any, **inputs: Any) -> tuple[Any, Any, Any]:
        return tiny.call(ours["ApplyInstantIDAdvanced"], **(common | {"model": model} | inputs))

    return apply


@pytest.fixture(params=["all", "dictionaries and lists"])
def cloning(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The part of a model's options that a clone copies: all before ComfyUI 0.14, and since then its containers."""
    copies = copy.deepcopy if request.param == "all" else copy_containers
    if hasattr(comfy.model_patcher, "copy"):
        module = types.SimpleNamespace(copy=copy.copy, deepcopy=copies)
        monkeypatch.setattr(comfy.model_patcher, "copy", module)
    else:
        monkeypatch.setattr(comfy.utils, "deepcopy_list_dict", copies)
    return request.param


def copy_containers(value: Any) -> Any:
    if type(value) is dict:
        return {key: copy_containers(item) for key, item in value.items()}
    if type(value) is list:
        return [copy_containers(item) for item in value]
    return value


def patches_of(model: Any) -> dict[Any, Any]:
    return model.model_options["transformer_options"]["patches_replace"]["attn2"]


# Clones


def reachable(*roots: Any) -> Iterator[Any]:
    """Everything that can be got at from ``roots``: items, attributes, slots, closures, arguments of partials."""
    seen: dict[int, Any] = {}  # holds what it has seen, so that no address is used twice
    pending = list(roots)
    while pending:
        value = pending.pop()
        if id(value) in seen or isinstance(value, (type, types.ModuleType, str, int, float)):
            continue
        seen[id(value)] = value
        yield value
        if isinstance(value, dict):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            pending += value
        elif isinstance(value, types.FunctionType):
            pending += [cell.cell_contents for cell in value.__closure__ or ()]
            pending += [value.__defaults__, value.__kwdefaults__]
        elif isinstance(value, types.MethodType):
            pending += [value.__self__, value.__func__]
        elif isinstance(value, functools.partial):
            pending += [value.func, value.args, value.keywords]
        pending.append(getattr(value, "__dict__", None))
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        pending += [getattr(value, name, None) for name in slots if isinstance(name, str)]


def bytes_held(*models: Any) -> int:
    """Of the memory of all tensors that the models' options hold, each memory counted once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in reachable([model.model_options for model in models])
        if isinstance(tensor, torch.Tensor)
    }
    return sum(storages.values())


@pytest.mark.usefixtures("cloning")
def test_clones_hold_no_tensor_of_their_own(apply, model):
    patched, positive, negative = apply(model, mask=torch.ones(1, 32, 32))
    sample(patched, positive, negative)  # what is kept for the run is kept with the patch
    held = bytes_held(patched)
    keys_and_values = 2 * 2 * 16 * 4 * sum(tiny.LAYER_CHANNELS[:60])  # cond and uncond, 16 tokens, float32
    assert held >= keys_and_values
    clones = [patched]
    for _ in range(3):
        clones.append(clones[-1].clone())
    assert bytes_held(clones[-1]) == held
    assert bytes_held(*clones) == held


@pytest.mark.usefixtures("cloning")
def test_what_is_applied_to_stays_as_it_was(apply, model, portraits, positive, negative):
    before = sample(model, positive, negative)
    options = copy_containers(model.model_options)
    first, *firsts = apply(model)
    assert model.model_options == options
    assert torch.equal(sample(model, positive, negative), before)
    once, given = sample(first, *firsts), [[dict(options) for _, options in c] for c in firsts]
    again = []
    for _ in range(3):
        second, *seconds = apply(first, image=portraits[1:2], positive=firsts[0], negative=firsts[1])
        again.append(sample(second, *seconds))
        assert torch.equal(sample(first, *firsts), once)
    assert [[dict(options) for _, options in c] for c in firsts] == given
    assert distance(again[0], once) > ACTS
    assert torch.equal(again[0], again[1])
    assert torch.equal(again[1], again[2])


@pytest.mark.usefixtures("cloning")
@pytest.mark.parametrize("derive", ["clone", "second face"])
def test_what_others_add_later_stays_downstream(apply, model, portraits, derive):
    """As IPAdapter_plus does: clone, and call ``add`` of the patches it finds."""
    first, positive, negative = apply(model)
    once = sample(first, positive, negative)
    later = first.clone() if derive == "clone" else apply(first, image=portraits[1:2])[0]
    middle = sample(later, positive, negative)
    last = later.clone()
    calls = 0

    def callback(out, q, k, v, extra_options, **kwargs):
        nonlocal calls
        calls += 1
        assert kwargs["strength"] == 0.5
        return kwargs["strength"] * out

    for patch in patches_of(last).values():
        patch.add(callback, strength=0.5, sigma_start=999999999.9, sigma_end=0.0)
    assert distance(sample(last, positive, negative), middle) > ACTS
    assert calls == STEPS * 60  # layers
    assert torch.equal(sample(later, positive, negative), middle)
    assert torch.equal(sample(first, positive, negative), once)
    assert calls == STEPS * 60


def test_what_others_add_ends_with_its_range(apply, model):
    patched, positive, negative = apply(model)
    sigmas = set()

    def callback(out, q, k, v, extra_options, **kwargs):
        sigmas.add(float(extra_options["sigmas"][0]))
        return torch.zeros_like(out)

    once = sample(patched, positive, negative, steps=3)
    start, end = (model.get_model_object("model_sampling").percent_to_sigma(percent) for percent in (0.2, 0.8))
    later = patched.clone()
    for patch in patches_of(later).values():
        patch.add(callback, sigma_start=start, sigma_end=end)
    assert torch.equal(sample(later, positive, negative, steps=3), once)
    assert len(sigmas) == 1  # of three steps
    assert end <= sigmas.pop() <= start


# Other patches and attentions


@pytest.mark.parametrize("key", [("input", 4, 1), ("input", 4)], ids=["of one layer", "of a block"])
def test_patches_of_others_stay_below_ours(apply, model, key):
    """A plain function, which has no ``add``: a face is added to what it returns."""
    calls = Counter()

    def halved(q, k, v, extra_options):
        calls[extra_options["block_index"]] += 1
        return 0.5 * optimized_attention(q, k, v, extra_options["n_heads"])

    other = model.clone()
    other.set_model_attn2_replace(halved, *key)
    patched, positive, negative = apply(other)
    without = sample(other, positive, negative)
    expected, calls_without = sample(apply(model)[0], positive, negative), calls.copy()
    calls.clear()
    both = sample(patched, positive, negative)
    assert calls == calls_without
    assert distance(both, without) > ACTS
    assert distance(both, expected) > 1e-4


def test_override_of_the_attention_is_called_for_patched_layers_too(apply, model, positive, negative):
    tokens = positive[0][0].shape[1]

    def text_attentions(patched: Any, scale: float = 1.0) -> tuple[torch.Tensor, Counter]:
        calls: Counter = Counter()

        def override(func, *args, **kwargs):
            out = func(*args, **kwargs)
            if args[1].shape[1] != tokens:  # only text has so many
                return out
            options = kwargs["transformer_options"]
            calls[(*options["block"], options["block_index"])] += 1
            return scale * out

        patched = patched.clone()
        patched.model_options["transformer_options"]["optimized_attention_override"] = override
        return sample(patched, positive, negative), calls

    patched, *_ = apply(model)
    plain, expected = text_attentions(model)
    assert len(expected) == 70
    picture, calls = text_attentions(patched)
    assert calls == expected
    assert torch.equal(picture, sample(patched, positive, negative))
    assert distance(picture, plain) > ACTS
    assert distance(text_attentions(patched, scale=0.5)[0], picture) > ACTS


def test_without_weight_nothing_is_patched(apply, model):
    patched, *_ = apply(model, ip_weight=0.0)
    assert patched is not model
    assert patched.model_options == model.model_options


def test_models_of_another_family_are_refused(apply, model):
    for width in (768, None):  # SD 1.5; a model without cross-attention to text
        model.model.model_config.unet_config["context_dim"] = width
        with pytest.raises(Exception, match="SDXL models only"):
            apply(model)


# Types


def rounded(dtype: torch.dtype) -> Any:
    """The tiny model in float32, with the weights it has in ``dtype``."""
    model = tiny_model()
    for parameter in model.model.diffusion_model.parameters():
        parameter.data = parameter.to(dtype).float()
    return model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_stored_small_and_computed_in_float32(apply, dtype):
    """A face is then computed in float32 too: nothing is lost but what the weights have lost."""
    stored, *conditionings = apply(tiny_model(dtype, compute_dtype=torch.float32))
    expected = sample(apply(rounded(dtype))[0], *conditionings)
    assert distance(sample(stored, *conditionings), expected) <= SAME


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["everywhere", "masked"])
def test_computed_small(apply, dtype, masked):
    """A random UNet makes much of rounding: but one evaluation comes close to float32's."""
    mask = {"mask": torch.linspace(0, 1, 32).repeat(1, 32, 1)} if masked else {}
    patched, *conditionings = apply(model := tiny_model(dtype), **mask)
    expected = sample(apply(rounded(dtype), **mask)[0], *conditionings, steps=1)
    picture = sample(patched, *conditionings, steps=1)
    without = sample(model, *conditionings, steps=1)
    assert distance(picture, expected) < 0.25 * distance(picture, without)


@pytest.mark.usefixtures("real_host")  # the stand-in makes no layers in float8
def test_float8_weights_computed_in_bfloat16(apply):
    model = tiny_model(torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    patched, *conditionings = apply(model)
    expected = sample(apply(rounded(torch.float8_e4m3fn))[0], *conditionings, steps=1)
    picture = sample(patched, *conditionings, steps=1)
    assert distance(picture, expected) < 0.25 * distance(picture, sample(model, *conditionings, steps=1))


# The host's own nodes


def with_lora(model: Any) -> Any:
    """A LoRA on the text keys of each patched layer, as the host's loader adds it."""
    model = model.clone()
    patches = {}
    generator = torch.Generator().manual_seed(5)
    for name, weight in model.model.state_dict().items():
        if name.startswith("diffusion_model.") and name.endswith("attn2.to_k.weight"):
            up = torch.randn(len(weight), 2, generator=generator)
            down = torch.randn(2, weight.shape[1], generator=generator) / weight.shape[1] ** 0.5
            patches[name] = ("diff", (up @ down,))
    assert len(model.add_patches(patches, 0.5)) == 70
    return model


@pytest.fixture
def change(host_nodes) -> Callable[[str, Any], Any]:
    """``change(name, model)``: the model after another node."""
    nodes: dict[str, tuple[str, str, dict[str, Any]]] = {
        "FreeU": ("nodes_freelunch", "FreeU_V2", {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}),
        "RescaleCFG": ("nodes_model_advanced", "RescaleCFG", {"multiplier": 0.7}),
        "ModelSamplingDiscrete": ("nodes_model_advanced", "ModelSamplingDiscrete", {"sampling": "lcm", "zsnr": False}),
        "ModelComputeDtype": ("nodes_model_advanced", "ModelComputeDtype", {"dtype": "bf16"}),
        "SAG": ("nodes_sag", "SelfAttentionGuidance", {"scale": 0.5, "blur_sigma": 2.0}),
        "PAG": ("nodes_pag", "PerturbedAttentionGuidance", {"scale": 3.0}),
    }

    def change(name: str, model: Any) -> Any:
        if name == "LoRA":
            return with_lora(model)
        module, node, inputs = nodes[name]
        return host_nodes(module, node, model=model, **inputs)[0]

    return change


@pytest.mark.parametrize(
    "name", ["LoRA", "FreeU", "RescaleCFG", "ModelSamplingDiscrete", "ModelComputeDtype", "SAG", "PAG"]
)
def test_order_of_other_nodes_does_not_matter(apply, model, change, name):
    patched, *conditionings = apply(model)
    # RescaleCFG and the like act on the picture alone: before or after a face, they change the same picture.
    before, after = apply(change(name, model))[0], change(name, patched)
    pictures = [sample(either, *conditionings) for either in (before, after)]
    assert torch.isfinite(pictures[0]).all()
    if name == "ModelComputeDtype":  # keys and values projected in bfloat16, or in float32 and rounded
        assert distance(*pictures) < 0.25 * distance(pictures[0], sample(change(name, model), *conditionings))
    else:
        assert distance(*pictures) <= SAME
    assert distance(pictures[0], sample(patched, *conditionings)) > 1e-4
    assert distance(pictures[0], sample(change(name, model), *conditionings)) > ACTS


@pytest.fixture
def guided(host_nodes):
    """``guided(node, **inputs)``: what the host's SamplerCustomAdvanced draws with a guider, like ``sample``."""

    def guided(module: str, node: str, **inputs: Any) -> torch.Tensor:
        (guider,) = host_nodes(module, node, **inputs)
        (sigmas,) = host_nodes(
            "nodes_custom_sampler",
            "BasicScheduler",
            model=inputs["model"],
            scheduler="normal",
            steps=STEPS,
            denoise=1.0,
        )
        (sampler,) = host_nodes("nodes_custom_sampler", "KSamplerSelect", sampler_name="euler")
        start = tiny.noise(0)
        with torch.inference_mode():
            return guider.sample(start, torch.zeros_like(start), sampler, sigmas, disable_pbar=True, seed=0)

    return guided


@pytest.mark.parametrize(
    ("style", "second", "cfg_conds", "cfg_cond2_negative"),
    [
        ("regular", "positive", 2.0, 4.5),
        ("regular", "negative", 4.5, 2.0),
        ("nested", "positive", 2.0, 4.5),
        ("nested", "negative", 4.5, 1.0),
    ],
)
def test_dual_guidance(apply, model, guided, style, second, cfg_conds, cfg_cond2_negative):
    """With two of its three conditionings alike it is plain guidance by 4.5, if each is taken for what it is."""
    patched, positive, negative = apply(model)
    picture = guided(
        "nodes_custom_sampler",
        "DualCFGGuider",
        model=patched,
        cond1=positive,
        cond2=positive if second == "positive" else negative,
        negative=negative,
        cfg_conds=cfg_conds,
        cfg_cond2_negative=cfg_cond2_negative,
        style=style,
    )
    assert distance(picture, sample(patched, positive, negative)) <= 10 * SAME  # batches of three, and other sums


@pytest.mark.parametrize("marked", [False, True], ids=["attention alone", "plain prompt first"])
def test_dual_guidance_where_prompts_did_not_all_go_through_our_nodes(
    ours, apply, adapter, faces, model, portrait, positive, negative, guided, marked
):
    """A conditioning with the face is found by any of its prompts, or else by the guider's name for it."""
    if marked:
        patched, with_face, without = apply(model)
        with_face = positive + with_face
    else:
        inputs = {"weight": 0.8, "start_at": 0.0, "end_at": 1.0, "noise": 0.35, "image": portrait, "model": model}
        patched, _ = tiny.call(ours["InstantIDAttentionPatch"], instantid=adapter, insightface=faces, **inputs)
        with_face, without = positive, negative
    conds = {"cond1": with_face, "cond2": with_face, "negative": without, "style": "regular"}
    picture = guided(
        "nodes_custom_sampler", "DualCFGGuider", model=patched, **conds, cfg_conds=2.0, cfg_cond2_negative=4.5
    )
    assert distance(picture, sample(patched, with_face, without)) <= 10 * SAME


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_perpendicular_negative(apply, model, guided, positive, negative, scale):
    patched, *applied = apply(model)

    def picture(model: Any, empty: Any) -> torch.Tensor:
        conds = {"positive": applied[0], "negative": applied[1], "empty_conditioning": empty}
        return guided("nodes_perpneg", "PerpNegGuider", model=model, **conds, cfg=4.5, neg_scale=scale)

    if scale == 0:  # only the empty conditioning is guided away from
        assert distance(picture(patched, applied[1]), sample(patched, *applied)) <= 10 * SAME
    plain_empty = picture(patched, conditioning(seed=9))
    assert torch.isfinite(plain_empty).all()
    assert distance(plain_empty, picture(model, conditioning(seed=9))) > ACTS


def test_controlnet_applied_after_ours(apply, model, controlnet, portraits):
    """Another net on top of ours adds to it, and leaves our conditioning as it was."""
    patched, *conditionings = apply(model)
    once = sample(patched, *conditionings)
    other = controlnet.copy().set_cond_hint(portraits[1:2].movedim(-1, 1), 0.7)
    other.set_previous_controlnet(conditionings[0][0][1]["control"])
    chained = [[[text, options | {"control": other}] for text, options in c] for c in conditionings]
    both = sample(patched, *chained)
    assert distance(both, once) > ACTS
    alone = [[[text, options | {"control": other.copy()}] for text, options in c] for c in conditionings]
    assert distance(both, sample(patched, *alone)) > ACTS
    assert torch.equal(sample(patched, *conditionings), once)


# Pictures and masks as other nodes make them


def hint_of(conditioning: Any) -> torch.Tensor:
    return conditioning[0][1]["control"].cond_hint_original


def with_alpha(images: torch.Tensor) -> torch.Tensor:
    return torch.cat([images, torch.rand_like(images[..., :1])], dim=-1)


def test_a_fourth_channel_changes_nothing(apply, ours, model, faces, controlnet, portrait, positive, negative):
    """Not that of a photo with or without a face, nor that of a keypoint picture. The sampler wants three channels."""
    blank = torch.full_like(portrait[:, :64, :64], 0.5)
    without_face_first = torch.cat([torch.zeros_like(portrait), portrait])
    for inputs in ({"image": portrait}, {"image": without_face_first}, {"image_kps": portrait}, {"image_kps": blank}):
        _, plain, _ = apply(model, **inputs)
        _, cond, uncond = apply(model, **{name: with_alpha(images) for name, images in inputs.items()})
        assert torch.equal(hint_of(cond), hint_of(plain)), inputs.keys()
        assert hint_of(uncond) is hint_of(cond)
    (drawn,) = tiny.call(ours["FaceKeypointsPreprocessor"], faceanalysis=faces, image=with_alpha(blank))
    assert torch.equal(drawn, torch.zeros_like(blank))
    embeds = {name: torch.zeros(1, 16, tiny.TOKEN_WIDTH) for name in ("cond", "uncond")}
    options = {"control_net": controlnet, "strength": 1.0, "start_at": 0.0, "end_at": 1.0}
    for keypoints in (with_alpha(blank), blank[0]):
        inputs = {"face_embeds": embeds, "image_kps": keypoints, "positive": positive, "negative": negative}
        cond, _ = tiny.call(ours["ApplyInstantIDControlNet"], **options, **inputs)
        assert torch.equal(hint_of(cond), blank.movedim(-1, 1))
    assert torch.isfinite(sample(model, cond, negative, steps=1)).all()


def test_a_mask_of_whole_numbers_is_a_mask(apply, model):
    half = torch.zeros(1, 32, 32)
    half[..., :16] = 1
    expected = sample(*apply(model, mask=half), steps=1)
    assert torch.equal(sample(*apply(model, mask=half.bool()), steps=1), expected)
    for dtype in (torch.uint8, torch.int64, torch.float16, torch.float64):
        _, cond, _ = apply(model, mask=half.to(dtype))
        assert torch.equal(cond[0][1]["mask"].float(), half)
        assert cond[0][1]["mask"].is_floating_point()


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"mask": torch.full((1, 8, 8), torch.nan)}, "a mask of values in 0..1, got nan to nan"),
        ({"mask": torch.full((1, 8, 8), torch.inf)}, "got inf to inf"),
        ({"mask": torch.full((1, 8, 8), 255, dtype=torch.uint8)}, "got 255 to 255"),
        ({"mask": torch.zeros(1, 0, 8)}, "expected a mask (H, W) or (M, H, W), got one of shape [1, 0, 8]"),
        ({"mask": torch.ones(8)}, "got one of shape [8]"),
        ({"mask": torch.full((8, 8), torch.nan), "ip_weight": 0.0}, "got nan to nan"),
        ({"image_kps": torch.full((1, 64, 64, 3), torch.nan)}, "holds NaN"),
        ({"image_kps": torch.zeros(1, 64, 64, 1)}, "expected a float tensor [B, H, W, 3]"),
        ({"image": torch.zeros(1, 8, 32_767, 3)}, "no side may exceed 32766"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_what_cannot_be_sampled_is_refused_by_the_node(apply, model, inputs, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        apply(model, **inputs)


def test_a_keypoint_picture_of_nan_is_refused(ours, controlnet, positive, negative):
    embeds = {name: torch.zeros(1, 16, tiny.TOKEN_WIDTH) for name in ("cond", "uncond")}
    inputs = {"face_embeds": embeds, "control_net": controlnet, "positive": positive, "negative": negative}
    nan = torch.full((1, 64, 64, 3), torch.nan)
    with pytest.raises(ValueError, match="keypoint picture holds NaN"):
        tiny.call(ours["ApplyInstantIDControlNet"], image_kps=nan, strength=1.0, start_at=0.0, end_at=1.0, **inputs)


def test_a_mask_beyond_0_to_1_acts_as_in_the_reference(apply, model):
    """Sums and differences of masks leave 0..1: twice the mask is twice the strength."""
    mask = torch.linspace(-1, 2, 32).repeat(1, 32, 1)
    patched, cond, _ = apply(model, mask=mask)
    assert torch.equal(cond[0][1]["mask"], mask)
    assert torch.equal(patches_of(patched)["input", 4, 0].kwargs[0]["face"].strength.mask, mask)


@pytest.mark.parametrize("name", ["ip_weight", "cn_strength", "start_at", "end_at", "noise", "mask", "image_kps"])
def test_nan_is_refused_by_the_node(apply, model, name):
    value: Any = float("nan")
    if name in ("mask", "image_kps"):
        value = torch.ones(1, 64, 64, 3)[..., 0 if name == "mask" else slice(None)].clone()
        value[0, 5, 5] = torch.nan
    with pytest.raises(Exception, match=r"(?i)nan"):
        apply(model, **{name: value})


def test_a_latent_of_nan_is_an_error_of_the_sampler_and_no_black_picture(apply, model, positive):
    [[text, options]] = positive
    patched = apply(model, positive=[[text * torch.nan, options]])
    with pytest.raises(Exception, match=r"the UNet made NaN or infinity.*--bf16-unet"):
        sample(*patched)
