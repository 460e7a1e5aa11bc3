"""InstantID in the real pipelines of diffusers, on tiny random networks of SDXL's shape."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import accelerate
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from examples.tiny_adapter import write_tiny_adapter
from examples.tiny_sdxl import LAYER_CHANNELS, TOKEN_WIDTH
from fast_instantid.errors import BackendError, FastInstantIDError, ImageError, ModelFileError
from fast_instantid.identity import Adapter
from fast_instantid.pipelines import Approximations, InstantID, Sampling, Subject
from fast_instantid.reuse import ReplacedForward
from fast_instantid.weights import read_tensors
from tests.tiny_pipelines import (
    EDGES,
    KEYPOINTS,
    PIPELINES,
    SIZE,
    assert_unchanged,
    load_tiny_ip_adapter,
    make,
    sample,
    state_of,
)

pytest_plugins = ["tests.tiny_pipelines"]

UNCOND, COND = 0, 1


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_attached_changes_the_picture_and_weight_zero_or_detached_does_not(any_pipe, identity, guidance):
    pipe, arguments = any_pipe
    arguments = arguments | {"guidance_scale": guidance}
    plain, without_net = sample(pipe, **arguments), sample(pipe, scale=0.0, **arguments)
    instantid = InstantID(pipe)
    with instantid.attached(identity, weight=0.0):
        assert torch.equal(sample(pipe, scale=0.0, **arguments), without_net)
    with instantid.attached(identity):
        attached, attention_alone = sample(pipe, **arguments), sample(pipe, scale=0.0, **arguments)
    assert torch.equal(sample(pipe, **arguments), plain)
    assert (attached - plain).abs().max() > 1e-2
    assert (attention_alone - without_net).abs().max() > 1e-2


# Not inpainting: there, diffusers' own second picture of a run is another one than alone.
@pytest.mark.parametrize("any_pipe", [kind for kind in PIPELINES if kind != "inpaint"], indirect=True)
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_two_images_per_prompt_equal_one_by_one(any_pipe, identity, guidance):
    pipe, arguments = any_pipe
    with InstantID(pipe).attached(identity):
        together = sample(pipe, num_images_per_prompt=2, guidance_scale=guidance, **arguments)
        singly = [sample(pipe, seed=seed, guidance_scale=guidance, **arguments) for seed in range(2)]
    torch.testing.assert_close(together, torch.cat(singly), rtol=0, atol=2e-4)


class RecomputedProcessor:
    """The identity branch as the published code has it: prompt and tokens in one sequence, projected at every step."""

    def __init__(self, to_key, to_value, tokens, weight, chunks, in_left_half):
        self.to_key, self.to_value, self.tokens, self.weight = to_key, to_value, tokens, weight
        self.chunks = chunks
        self.in_left_half = in_left_half

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        batch = len(hidden_states)
        tokens = stacked_tokens(self.tokens, batch, self.chunks)
        sequence = torch.cat([encoder_hidden_states, tokens], dim=1)
        text, tokens = sequence.split([encoder_hidden_states.shape[1], tokens.shape[1]], dim=1)

        def attend(key, value):
            query, key, value = (
                tensor.view(batch, -1, attn.heads, tensor.shape[-1] // attn.heads).transpose(1, 2)
                for tensor in (attn.to_q(hidden_states), key, value)
            )
            scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
            return (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, -1, attn.inner_dim)

        attended = attend(attn.to_k(text), attn.to_v(text))
        identity = attend(F.linear(tokens, self.to_key), F.linear(tokens, self.to_value))
        return attn.to_out[0](attended + self.weight * self.in_left_half(hidden_states.shape[1]) * identity)


def stacked_tokens(tokens, batch, chunks):
    """Tokens for each image of a batch of ``chunks`` chunks: uncond comes first, all others are cond."""
    rows = [COND] if chunks == 1 else [UNCOND] + [COND] * (chunks - 1)
    return torch.cat([tokens[row : row + 1].repeat(batch // chunks, 1, 1) for row in rows])


def left_half_at_three_to_two(num_tokens):
    """``(num_tokens, 1)``: 1 in the left half of a grid that has three columns for every two rows."""
    columns = round((num_tokens * 1.5) ** 0.5)
    return (torch.arange(num_tokens) % columns < columns // 2).float()[:, None]


@pytest.mark.parametrize(
    ("kind", "guidance", "chunks", "region"),
    [
        ("text to image", 1.0, 1, False),
        ("text to image", 5.0, 2, False),
        ("perturbed attention", 5.0, 3, False),
        ("no ControlNet", 5.0, 2, False),
        ("no ControlNet", 5.0, 2, True),
    ],
)
@pytest.mark.all_layers
@torch.no_grad()
def test_equals_the_published_method_which_projects_at_every_step(
    files, components, nets, identity, kind, guidance, chunks, region
):
    pipeline, num_nets, arguments = PIPELINES[kind]
    pipe = make(pipeline, components, **({"controlnet": nets[0]} if num_nets else {}))
    arguments = arguments | {"steps": 3, "num_images_per_prompt": 2, "guidance_scale": guidance}
    if region:
        arguments |= {"height": 128, "width": 192}
    with InstantID(pipe).attached(Subject(identity, weight=0.7, region=half("left") if region else None)):
        ours = sample(pipe, **arguments)

    weights = read_tensors(files.adapter)
    mask = left_half_at_three_to_two if region else lambda num_tokens: 1.0
    processors = pipe.unet.attn_processors
    theirs = {}
    for i, name in enumerate(name for name in processors if "attn2" in name):
        projections = (weights[f"ip_adapter.{2 * i + 1}.to_{part}_ip.weight"] for part in "kv")
        theirs[name] = RecomputedProcessor(*projections, identity.tokens, 0.7, chunks, mask)

    def see_tokens(net, args, kwargs):
        return args, kwargs | {"encoder_hidden_states": stacked_tokens(identity.tokens, len(args[0]), chunks)}

    hook = nets[0].register_forward_pre_hook(see_tokens, with_kwargs=True)
    try:
        pipe.unet.set_attn_processor(processors | theirs)
        published = sample(pipe, **arguments)
    finally:
        hook.remove()
        pipe.unet.set_attn_processor(processors)
    # These latents reach 13, and guidance multiplies rounding errors by up to nine.
    assert (ours - published).abs().max() <= 1e-5 * published.abs().max()


class Calls:
    """Records what a ControlNet computes with, and what it has for the middle block."""

    def __init__(self, net):
        self.calls = []
        self._forward = ReplacedForward(net, self._record)
        self._forward.replace()

    def _record(self, forward, *args, **kwargs):
        output = forward(*args, **kwargs)
        self.calls.append((args, kwargs, output[1].clone()))  # the first of several ControlNets is added to in place
        return output

    def __enter__(self):
        return self.calls

    def __exit__(self, *_):
        self._forward.restore()


@pytest.mark.parametrize("which", [0, 1])
@torch.no_grad()
def test_of_two_controlnets_the_identitynet_sees_the_tokens_and_the_other_the_prompt(components, nets, identity, which):
    pipe = make(StableDiffusionXLControlNetPipeline, components, controlnet=nets)
    with Calls(nets[which]) as seen, Calls(nets[1 - which]) as seen_by_other:
        sample(pipe, image=[KEYPOINTS, EDGES])
        prompt = seen[0][1]["encoder_hidden_states"]
        seen.clear(), seen_by_other.clear()
        with InstantID(pipe, identity_net=which).attached(identity):
            sample(pipe, image=[KEYPOINTS, EDGES])
    tokens = identity.tokens
    for args, kwargs, middle in seen:
        with_tokens, with_prompt = (
            nets[which](*args, **kwargs | {"encoder_hidden_states": states})[1] for states in (tokens, prompt)
        )
        assert torch.equal(middle, with_tokens)
        assert not torch.equal(middle, with_prompt)
    assert len(seen) == len(seen_by_other) == 2
    assert all(torch.equal(kwargs["encoder_hidden_states"], prompt) for _, kwargs, _ in seen_by_other)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_in_guess_mode_the_identitynet_sees_cond_tokens_only(pipe, nets, identity, guidance):
    with Calls(nets[0]) as seen, InstantID(pipe).attached(identity):
        sample(pipe, guess_mode=True, guidance_scale=guidance)
    for _, kwargs, _ in seen:
        assert torch.equal(kwargs["encoder_hidden_states"], identity.tokens[COND:])


def test_several_people_the_identitynet_sees_all_their_tokens(pipe, nets, identity, someone_else):
    subjects = [Subject(identity, weight=0.0), Subject(someone_else)]
    with Calls(nets[0]) as seen, InstantID(pipe).attached(subjects):
        sample(pipe, guidance_scale=1.0)
    both = torch.cat([identity.tokens, someone_else.tokens], dim=1)[COND:]
    assert torch.equal(seen[0][1]["encoder_hidden_states"], both)


def half(side):
    region = torch.zeros(50, 80)
    region[:, :40] = 1
    return region if side == "left" else 1 - region


def test_two_halves_of_one_person_are_that_person(components, identity):
    pipe = make(StableDiffusionXLPipeline, components)
    size = {"height": 192, "width": 128}
    instantid = InstantID(pipe)
    with instantid.attached(identity):
        whole = sample(pipe, **size)
    with instantid.attached([Subject(identity, region=half("left")), Subject(identity, region=half("right"))]):
        halves = sample(pipe, **size)
    torch.testing.assert_close(halves, whole, rtol=0, atol=1e-4)


def test_regions_say_who_is_where(components, identity, someone_else):
    pipe = make(StableDiffusionXLPipeline, components)
    instantid = InstantID(pipe)

    def both(first, second):
        with instantid.attached([Subject(identity, region=first), Subject(someone_else, region=second)]):
            return sample(pipe, height=SIZE, width=SIZE)

    as_array, as_image = half("left").numpy(), Image.fromarray(255 * half("left").numpy().astype(np.uint8))
    placed = both(half("left"), half("right"))
    assert torch.equal(both(as_array, half("right")), placed)
    assert torch.equal(both(as_image, half("right")), placed)
    assert (both(half("right"), half("left")) - placed).abs().max() > 1e-2
    with instantid.attached(identity):
        alone = sample(pipe, height=SIZE, width=SIZE)
    nowhere = torch.zeros(8, 8)
    assert torch.equal(both(None, nowhere), alone)


def test_detach_is_the_exact_inverse_of_attach(pipe, identity, someone_else):
    before = state_of(pipe)
    instantid = InstantID(pipe)
    assert_unchanged(pipe, before)
    for _ in range(3):
        instantid.attach(identity)
        sample(pipe, steps=1)
        assert state_of(pipe)[3] != before[3]
        instantid.attach(someone_else, weight=0.3)  # takes the place of the first
        sample(pipe, steps=1)
        instantid.detach()
        assert_unchanged(pipe, before)
        instantid.detach()
        assert_unchanged(pipe, before)


def test_attaching_again_replaces(pipe, identity, someone_else):
    instantid = InstantID(pipe)
    with instantid.attached(identity):
        wanted = sample(pipe)
    with instantid.attached(someone_else):
        instantid.attach(identity)
        assert torch.equal(sample(pipe), wanted)


def test_an_exception_detaches(pipe, identity):
    before = state_of(pipe)

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), InstantID(pipe).attached(identity):
        sample(pipe, callback_on_step_end=interrupt)
    assert_unchanged(pipe, before)


def test_two_objects_on_one_pipeline_draw_a_person_once(pipe, identity):
    """A notebook cell that runs again makes a second InstantID; ``generate`` inside ``attached`` does too."""
    before = state_of(pipe)
    with InstantID(pipe).attached(identity):
        once = sample(pipe)
    first, second = InstantID(pipe), InstantID(pipe)
    first.attach(identity)
    second.attach(identity)
    assert torch.equal(sample(pipe), once)
    first.detach()
    assert torch.equal(sample(pipe), once), "what another object attached is not the first one's to detach"
    second.detach()
    assert_unchanged(pipe, before)


def test_processors_that_others_set_meanwhile_stay(own_pipe, identity):
    before = own_pipe.unet.attn_processors
    theirs = AttnProcessor()
    layer = own_pipe.unet.mid_block.attentions[0].transformer_blocks[1].attn2
    with InstantID(own_pipe).attached(identity):
        layer.set_processor(theirs)
    after = own_pipe.unet.attn_processors
    assert layer.processor is theirs
    assert [name for name in after if after[name] is not before[name]] == [
        "mid_block.attentions.0.transformer_blocks.1.attn2.processor"
    ]


def test_a_refused_identity_leaves_the_one_attached(pipe, identity, someone_else):
    with InstantID(pipe).attached(identity) as instantid:
        wanted = sample(pipe)
        with pytest.raises(FastInstantIDError):
            instantid.attach(someone_else, weight=-1.0)
        assert torch.equal(sample(pipe), wanted)


def test_beside_a_custom_processor(own_pipe, identity):
    instantid = InstantID(own_pipe)
    with instantid.attached(identity):
        wanted = sample(own_pipe)
    own_pipe.unet.set_attn_processor(AttnProcessor())
    before = state_of(own_pipe)
    with instantid.attached(identity):
        torch.testing.assert_close(sample(own_pipe), wanted, rtol=0, atol=1e-5)
    assert_unchanged(own_pipe, before)


def test_beside_an_ip_adapter(own_pipe, identity):
    instantid = InstantID(own_pipe)
    with instantid.attached(identity):
        without = sample(own_pipe)
    arguments = load_tiny_ip_adapter(own_pipe.unet)
    before = state_of(own_pipe)
    ip_adapter_alone = sample(own_pipe, **arguments)
    with instantid.attached(identity):
        both = sample(own_pipe, **arguments)
        nowhere = {"ip_adapter_masks": [torch.zeros(1, 1, SIZE, SIZE)]}
        masked_away = sample(own_pipe, cross_attention_kwargs=nowhere, **arguments)
    assert_unchanged(own_pipe, before)
    assert torch.equal(sample(own_pipe, **arguments), ip_adapter_alone)
    assert (both - ip_adapter_alone).abs().max() > 1e-2
    assert (both - without).abs().max() > 1e-2
    torch.testing.assert_close(masked_away, without, rtol=0, atol=1e-5)


@pytest.mark.parametrize("processor", ["plain", "custom"])
def test_a_lora_loaded_after_attaching_equals_one_fused_before(own_pipe, identity, processor):
    def add_lora():
        own_pipe.unet.add_adapter(
            LoraConfig(r=4, target_modules=["attn2.to_q", "attn2.to_k", "attn2.to_out.0"], init_lora_weights=False)
        )

    if processor == "custom":
        own_pipe.unet.set_attn_processor(AttnProcessor())
    instantid = InstantID(own_pipe)
    with instantid.attached(identity):
        without = sample(own_pipe)
        torch.manual_seed(0)
        add_lora()
        beside = sample(own_pipe)
    own_pipe.unet.fuse_lora()
    own_pipe.unet.unload_lora()
    with instantid.attached(identity):
        fused = sample(own_pipe)
    assert (beside - without).abs().max() > 1e-2
    torch.testing.assert_close(beside, fused, rtol=0, atol=1e-4)


def test_text_attention_is_that_of_diffusers_to_the_bit(components, identity):
    """With values of zero nothing is added; the prompt of the second image is masked in part."""
    unet = components["unet"]
    pipe = make(StableDiffusionXLPipeline, components)
    sample(pipe, height=SIZE, width=SIZE)  # the pipeline now knows that it uses guidance
    silent = identity.__class__(identity.tokens, identity.bank.__class__(
        identity.bank.keys, tuple(torch.zeros_like(value) for value in identity.bank.values)
    ))  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(2, 7)
    mask[1, 4:] = 0
    call = {
        "sample": torch.randn(2, 4, 16, 16, generator=generator),
        "timestep": 500,
        "encoder_hidden_states": torch.randn(2, 7, TOKEN_WIDTH, generator=generator),
        "encoder_attention_mask": mask,
        "added_cond_kwargs": {
            "text_embeds": torch.randn(2, TOKEN_WIDTH, generator=generator),
            "time_ids": torch.randn(2, 6, generator=generator),
        },
    }
    with torch.no_grad():
        plain, unmasked = unet(**call).sample, unet(**call | {"encoder_attention_mask": None}).sample
        with InstantID(pipe).attached(silent):
            assert torch.equal(unet(**call).sample, plain)
    assert not torch.equal(plain, unmasked)


class CountOps(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.all_layers
def test_a_further_step_costs_attention_and_nothing_else(pipe, identity, someone_else):
    def per_step():
        counts = []
        for steps in (1, 2, 3):  # the first run is where tensors are picked and moved
            with CountOps() as ops:
                sample(pipe, steps=steps, num_images_per_prompt=2)
            counts.append(ops.counts)
        return counts[2] - counts[1]

    plain = per_step()
    with InstantID(pipe).attached([Subject(identity), Subject(someone_else, region=half("left"))]):
        added = per_step() - plain
    views = {"view", "_unsafe_view", "transpose", "unsqueeze", "expand", "as_strided", "detach", "alias", "reshape"}
    attentions = {name for name in added if name.startswith("_scaled_dot_product")}
    assert len(attentions) == 1
    assert sum(added[name] for name in attentions) == 2 * 70
    assert added["add"] == added["addcmul"] == 70  # a face everywhere, and one in a region
    assert set(added) - attentions - views <= {"add", "addcmul", "clone"}


def test_models_that_are_elsewhere_until_their_forward(own_pipe, identity):
    """Offloading: parameters are on no device at all between calls."""
    instantid = InstantID(own_pipe)
    with instantid.attached(identity):
        wanted = sample(own_pipe)
    # Not pipe.enable_sequential_cpu_offload: accelerate 1.x cannot offload the text encoders of transformers 5.
    for model in (own_pipe.vae, own_pipe.unet, own_pipe.controlnet):
        accelerate.cpu_offload(model, torch.device("cpu"))
    assert own_pipe.unet.device.type == "meta"
    with instantid.attached(identity):
        assert torch.equal(sample(own_pipe), wanted)


def test_half_precision_models_take_a_full_precision_identity(own_pipe, identity):
    own_pipe.to(torch.bfloat16)
    plain = sample(own_pipe)
    with InstantID(own_pipe).attached(identity):
        attached = sample(own_pipe)
    assert attached.dtype == torch.bfloat16
    assert attached.isfinite().all()
    assert not torch.equal(attached, plain)


@pytest.mark.all_layers
def test_an_identity_for_another_model_is_refused(components, nets, identity, tmp_path):
    def made_by(channels, token_width):
        path = write_tiny_adapter(tmp_path / "other.bin", channels=channels, token_width=token_width)
        return Adapter.load(path, "cpu", torch.float32).identity(torch.ones(1, 512))

    pipe = make(StableDiffusionXLControlNetPipeline, components, controlnet=nets[0])
    before = state_of(pipe)
    with pytest.raises(ModelFileError, match=r"16 cross-attention layers.*StableDiffusionXLControlNet.* 70 cross"):
        InstantID(pipe).attach(made_by([32] * 16, TOKEN_WIDTH))
    with pytest.raises(ModelFileError, match=r"of 16 and 64 channels.*of 16 and 32 channels"):
        InstantID(pipe).attach(made_by([2 * c if c == 32 else c for c in LAYER_CHANNELS], TOKEN_WIDTH))
    with pytest.raises(ModelFileError, match=f"width 48.*reads {TOKEN_WIDTH}"):
        InstantID(pipe).attach(made_by(LAYER_CHANNELS, 48))
    assert_unchanged(pipe, before)

    small = UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TOKEN_WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
        layers_per_block=1,
    )
    with pytest.raises(ModelFileError, match=r"70 cross-attention layers.*4 cross-attention layers.*SD 1.5"):
        InstantID(make(StableDiffusionXLPipeline, components | {"unet": small})).attach(identity)


def test_a_pipeline_without_what_it_takes_is_refused(pipe):
    with pytest.raises(BackendError, match="no UNet"):
        InstantID(SimpleNamespace())
    with pytest.raises(BackendError, match=r"ControlNet 1 .* has 1"):
        InstantID(pipe, identity_net=1)


def test_running_another_pipeline_of_the_same_unet_is_refused(components, identity):
    pipe, another = make(StableDiffusionXLPipeline, components), make(StableDiffusionXLPipeline, components)
    with InstantID(pipe).attached(identity), pytest.raises(BackendError, match="guidance"):
        sample(another, height=SIZE, width=SIZE)


def test_numbers_of_numpy_and_torch_are_numbers(pipe, identity):
    halves = [np.float16(0.5), np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5)]
    for half in [*halves, *([half] for half in halves), np.array([0.5]), torch.tensor([0.5])]:
        with InstantID(pipe).attached(identity, half) as attached:
            assert attached.scale == 0.5
            attached.scale = half
            assert attached.scale == 0.5
    assert [Subject(identity, weight=half).weight for half in halves] == [0.5] * len(halves)
    InstantID(pipe, identity_net=np.int64(0))
    assert Approximations(identity_range=(np.float32(0.5), np.int64(1)), identity_net_every=np.int64(2)).is_sparse
    assert Sampling(scale=np.float32(0.5), seed=np.int64(3), num_inference_steps=np.int32(2)).seed == 3
    options = {"keypoints": KEYPOINTS, "num_inference_steps": 1, "output_type": "latent"}
    pictures = [InstantID(pipe)("a man", identity, seed=seed, **options).images for seed in (3, np.int64(3))]
    assert torch.equal(*pictures)


@pytest.mark.parametrize("weight", [-0.1, 5.1, float("nan")])
def test_weights_out_of_range_are_refused(pipe, identity, weight):
    with pytest.raises(FastInstantIDError, match="out of range: expected 0 to 5"):
        InstantID(pipe).attach(identity, weight)


@pytest.mark.parametrize(
    "region",
    [
        torch.full((4, 4), 1.5),
        torch.full((4, 4), float("nan")),
        np.full((4, 4), np.inf),
        np.full((4, 4), 255, np.uint8),
        np.zeros((4, 4, 3)),
        torch.zeros(0, 4),
        Image.fromarray(np.full((4, 4), np.nan, np.float32)),
        Image.new("F", (4, 4), 255),
        Image.new("I", (4, 4), 70_000),
        Image.new("L", (4, 0)),
    ],
    ids=lambda region: f"{type(region).__name__}",
)
def test_bad_regions_are_refused(identity, region):
    with pytest.raises(ImageError, match="region"):
        Subject(identity, region=region)


def test_every_form_of_a_region_is_one_mask(identity):
    values = np.zeros((4, 6), np.float32)
    values[:, 4:] = 1
    eight_bit = (values * 255).astype(np.uint8)
    read_only = values.copy()
    read_only.flags.writeable = False
    forms = {
        "booleans": values > 0,
        "boolean tensor": torch.from_numpy(values > 0),
        "0 and 1": values.astype(np.uint8),
        "float16": values.astype(np.float16),
        "float64": values.astype(np.float64),
        "bfloat16": torch.from_numpy(values).bfloat16(),
        "big-endian": values.astype(">f4"),
        "reversed view": np.ascontiguousarray(values[::-1, ::-1])[::-1, ::-1],
        "columns first": np.asfortranarray(values),
        "read-only": read_only,
        "PIL": Image.fromarray(eight_bit),
        "16 bits": Image.fromarray(eight_bit.astype(np.uint16) * 257),
        "floats": Image.fromarray(values),
        "transparency": Image.merge("LA", [Image.new("L", (6, 4)), Image.fromarray(eight_bit)]),
    }
    for name, form in forms.items():
        mask = Subject(identity, region=form).mask
        assert mask.dtype == torch.float32, name
        assert torch.equal(mask, torch.from_numpy(values)[None]), name


@pytest.mark.parametrize("who", ["anna.safetensors", [1], None])
def test_what_is_nobody_is_refused(pipe, who):
    with pytest.raises(FastInstantIDError, match="expected a Person, which"):
        InstantID(pipe).attach(who)


def test_a_weight_beside_subjects_is_refused_and_beside_identities_theirs(pipe, identity):
    with pytest.raises(FastInstantIDError, match="weights of their own"):
        InstantID(pipe).attach([Subject(identity)], weight=0.5)
    with InstantID(pipe).attached([identity, identity], weight=0.5):
        both = sample(pipe)
    with InstantID(pipe).attached([Subject(identity, 0.5), Subject(identity, 0.5)]):
        assert torch.equal(sample(pipe), both)


@pytest.mark.parametrize("region", ["mask.png", np.zeros((4, 4), complex), np.full((4, 4), "1")], ids=str)
def test_a_region_is_a_picture_or_a_box(identity, region):
    with pytest.raises(ImageError, match="a region is a picture"):
        Subject(identity, region=region)
    with pytest.raises(
        ImageError, match=r"region \(0, 0, 64, 64\): expected left, top, right and bottom of a box in 0..1"
    ):
        Subject(identity, region=(0, 0, 64, 64))


def test_nobody_is_refused(pipe):
    with pytest.raises(FastInstantIDError, match="no person"):
        InstantID(pipe).attach([])
