"""What is the same at every step of a run is computed once, no number is another, and nothing is held afterwards."""

from __future__ import annotations

import gc
import weakref
from collections import Counter

import pytest
import torch
from diffusers import StableDiffusionXLControlNetPipeline
from peft import LoraConfig
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from examples.tiny_sdxl import LAYER_CHANNELS, TOKEN_WIDTH
from fast_instantid.pipelines import InstantID, drawing
from fast_instantid.pipelines.attachment import innermost
from fast_instantid.recorder import Recorder
from fast_instantid.reuse import Reuse
from tests.tiny_pipelines import KEYPOINTS, assert_unchanged, load_tiny_ip_adapter, make, picture, sample, state_of

pytest_plugins = ["tests.tiny_pipelines"]

TEXT_TOKENS = 77
HINT_CONVOLUTIONS = 8
NET_LAYERS = 2 * 2 + 2 * 10 + 10
"""Cross-attention layers of the IdentityNet: those of the UNet's way down, and of its middle."""


class Counts(TorchDispatchMode):
    """Convolutions, and products of the text's and the identity's tokens with a layer's weights."""

    def __init__(self):
        super().__init__()
        self.of = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name == "convolution":
            self.of["convolutions"] += 1
        elif name in ("mm", "addmm"):
            self._count(len(args[-2]), args[-2].shape[1], args[-1].shape[1])
        elif name == "linear":  # in inference mode it arrives whole
            width = args[0].shape[-1]
            self._count(args[0].numel() // width, width, len(args[1]))
        return func(*args, **(kwargs or {}))

    def _count(self, rows, width, channels):
        if width == TOKEN_WIDTH and rows % TEXT_TOKENS == 0:
            self.of["text"] += 1
        elif width == TOKEN_WIDTH and channels in LAYER_CHANNELS and rows in (16, 32):
            self.of["tokens"] += 1


def per_step(pipe, **arguments):
    """What a further step costs."""
    counts = []
    for steps in (2, 3):
        with Counts() as counted:
            sample(pipe, steps=steps, **arguments)
        counts.append(counted.of)
    return {name: counts[1][name] - counts[0][name] for name in ("convolutions", "text", "tokens")}


def results(instantid):
    """Bytes that are held now."""
    return sum(reuse.nbytes for reuse in innermost(instantid).reuse if reuse is not None)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_run_is_the_same_to_the_bit(any_pipe, identity, guidance):
    pipe, arguments = any_pipe
    arguments = arguments | {"guidance_scale": guidance, "num_images_per_prompt": 2, "steps": 3}
    with InstantID(pipe, reuse=False).attached(identity):
        wanted = sample(pipe, **arguments)
    with InstantID(pipe).attached(identity) as instantid:
        assert torch.equal(sample(pipe, **arguments), wanted)
        assert torch.equal(sample(pipe, **arguments), wanted)
        assert results(instantid) == 0


@pytest.mark.all_layers
def test_a_further_step_computes_none_of_it(pipe, identity):
    with InstantID(pipe, reuse=False).attached(identity):
        without = per_step(pipe)
    with InstantID(pipe).attached(identity):
        reused = per_step(pipe)
    assert without["convolutions"] - reused["convolutions"] == HINT_CONVOLUTIONS
    assert without["text"] == 2 * 70
    assert without["tokens"] >= 2 * NET_LAYERS
    assert without["tokens"] - reused["tokens"] == 2 * NET_LAYERS
    assert reused["text"] == 0


@pytest.mark.all_layers
def test_what_it_holds_in_a_run_and_nothing_after_it(pipe, identity):
    held, kept = [], []
    instantid = InstantID(pipe)

    def look(*_):
        held.append(tuple(reuse.nbytes for reuse in innermost(instantid).reuse))
        kept.extend(weakref.ref(value) for reuse in innermost(instantid).reuse for value, _ in reuse._results.values())
        return {}

    with instantid.attached(identity):
        sample(pipe, callback_on_step_end=look)
        gc.collect()
        assert results(instantid) == 0
        assert kept
        assert not [ref for ref in kept if ref() is not None]
    images, float32, key_and_value = 2, 4, 2
    text = images * TEXT_TOKENS * key_and_value * sum(LAYER_CHANNELS) * float32
    net_channels = 4 * 16 + 20 * 32 + 10 * 32
    tokens = images * 16 * key_and_value * net_channels * float32
    hint = images * pipe.controlnet.config.block_out_channels[0] * 16 * 16 * float32
    assert held == [(text, tokens + hint)] * 2


def test_an_exception_ends_a_run_too(pipe, identity):
    def interrupt(*_):
        raise KeyboardInterrupt

    with InstantID(pipe).attached(identity) as instantid:
        with pytest.raises(KeyboardInterrupt) as caught:
            sample(pipe, callback_on_step_end=interrupt)
        del caught  # it holds the frames of the pipeline
        gc.collect()
        assert results(instantid) == 0


def test_every_run_follows_its_inputs(own_pipe, identity, someone_else):
    """Each of these runs against one that reuses nothing, in one attachment."""
    reused, computed = InstantID(own_pipe), InstantID(own_pipe, reuse=False)
    generator = torch.Generator().manual_seed(3)
    prompts = {
        "prompt_embeds": torch.randn(1, TEXT_TOKENS, TOKEN_WIDTH, generator=generator),
        "pooled_prompt_embeds": torch.randn(1, TOKEN_WIDTH, generator=generator),
        "negative_prompt_embeds": torch.randn(1, TEXT_TOKENS, TOKEN_WIDTH, generator=generator),
        "negative_pooled_prompt_embeds": torch.randn(1, TOKEN_WIDTH, generator=generator),
    }

    def run(**arguments):
        call = {
            "image": KEYPOINTS,
            "num_inference_steps": 2,
            "generator": torch.Generator().manual_seed(0),
            "output_type": "latent",
        }
        return own_pipe(**call | prompts | arguments).images

    def write_to_prompt():
        prompts["prompt_embeds"].mul_(0.5)

    def write_to_weights():
        with torch.no_grad():
            own_pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.weight.mul_(2)
            own_pipe.controlnet.controlnet_cond_embedding.conv_in.weight.mul_(2)

    def write_to_weights_unseen():  # as peft does it
        own_pipe.unet.mid_block.attentions[0].transformer_blocks[1].attn2.to_v.weight.data += 0.5

    edits = {
        "nothing": ({}, None),
        "a new keypoint picture": ({"image": picture(7)}, None),
        "no guidance": ({"guidance_scale": 1.0}, None),
        "two pictures": ({"num_images_per_prompt": 2}, None),
        "the prompt written to": ({}, write_to_prompt),
        "weights written to": ({}, write_to_weights),
        "weights written to through .data": ({}, write_to_weights_unseen),
        "another size": ({"height": 192, "width": 128}, None),
    }
    seen = []
    reused.attach(identity)
    for name, (arguments, edit) in edits.items():
        if edit:
            edit()
        ours = run(**arguments)
        seen.append((name, arguments, ours))
        with computed.attached(identity):
            assert torch.equal(ours, run(**arguments)), name
        reused.attach(identity)
    for (name, _, picture_), (_, _, before) in zip(seen[4:7], seen[3:6], strict=True):
        assert picture_.shape != before.shape or not torch.equal(picture_, before), f"{name}: nothing changed"
    reused.detach()


@pytest.mark.parametrize("through_data", [False, True])
def test_weights_that_change_between_two_steps(own_pipe, identity, through_data):
    """Writes that torch counts are noticed. Others are not, which is what ``reuse=False`` is for."""
    weight = own_pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.weight
    before = weight.detach().clone()

    def change(*_):
        with torch.no_grad():
            if through_data:
                weight.data += 1
            else:
                weight.add_(1)
        return {}

    pictures = []
    for reuse in (True, False):
        with torch.no_grad():
            weight.copy_(before)
        with InstantID(own_pipe, reuse=reuse).attached(identity):
            pictures.append(sample(own_pipe, steps=3, callback_on_step_end=change))
    assert torch.equal(*pictures) is not through_data


def test_a_prompt_that_a_callback_exchanges(pipe, identity):
    """Such as diffusers' recipe to end guidance early."""

    def end_guidance(pipe, step, timestep, tensors):
        if step == 0:
            pipe._guidance_scale = 1.0
            return {name: tensor[-1:] for name, tensor in tensors.items()}
        return tensors

    names = ["prompt_embeds", "add_text_embeds", "add_time_ids", "image"]
    pictures = []
    for reuse in (True, False):
        with InstantID(pipe, reuse=reuse).attached(identity):
            pictures.append(
                sample(pipe, steps=3, callback_on_step_end=end_guidance, callback_on_step_end_tensor_inputs=names)
            )
    assert torch.equal(*pictures)


@pytest.mark.parametrize("beside", ["a LoRA", "an IP-Adapter", "a hook", "inference mode", "autocast"])
def test_where_others_act_it_steps_back(own_pipe, identity, beside):
    arguments, context = {}, torch.no_grad
    if beside == "a LoRA":
        own_pipe.unet.add_adapter(LoraConfig(r=4, target_modules=["attn2.to_k", "attn2.to_v"], init_lora_weights=False))
    elif beside == "an IP-Adapter":
        arguments = load_tiny_ip_adapter(own_pipe.unet)
    elif beside == "a hook":
        for name, module in own_pipe.unet.named_modules():
            if name.endswith(("attn2.to_k", "attn2.to_v")):
                module.register_forward_hook(lambda module, args, output: output * 1.5)
    elif beside == "inference mode":
        context = torch.inference_mode
    else:
        context = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    pictures, costs = [], []
    for reuse in (True, False):
        with InstantID(own_pipe, reuse=reuse).attached(identity), context():
            pictures.append(sample(own_pipe, **arguments))
            costs.append(per_step(own_pipe, **arguments)["text"])
    assert torch.equal(*pictures)
    assert costs[0] == costs[1] > 0


def test_gradients_flow_as_without(own_pipe, identity):
    sample(own_pipe)  # the pipeline now knows that it uses guidance
    own_pipe.unet.enable_gradient_checkpointing()
    own_pipe.unet.train()
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(2, TEXT_TOKENS, TOKEN_WIDTH, generator=generator).requires_grad_()
    call = {
        "sample": torch.randn(2, 4, 16, 16, generator=generator),
        "timestep": 500,
        "encoder_hidden_states": text,
        "added_cond_kwargs": {"text_embeds": torch.zeros(2, TOKEN_WIDTH), "time_ids": torch.zeros(2, 6)},
    }
    gradients = []
    for reuse in (True, False):
        with InstantID(own_pipe, reuse=reuse).attached(identity):
            for _ in range(2):
                text.grad = None
                own_pipe.unet(**call).sample.sum().backward()
        gradients.append(text.grad)
    assert torch.equal(*gradients)
    assert gradients[0].abs().max() > 0


@torch.no_grad()
def test_a_compiled_unet_has_one_graph_and_no_breaks_whoever_records(shallow_pipe, shallow_identity):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with InstantID(shallow_pipe).attached(shallow_identity) as instantid:
        wanted = sample(shallow_pipe)
        shallow_pipe.unet.compile(backend=backend, fullgraph=True)
        assert torch.equal(sample(shallow_pipe, steps=3), sample(shallow_pipe, steps=3))
        with Recorder() as recorder:
            assert (sample(shallow_pipe) - wanted).abs().max() <= 1e-4
        assert results(instantid) == 0
    torch._dynamo.reset()
    assert len(graphs) == 1
    assert "identity branch" not in {span.name for span in recorder.spans}, "which would be of the tracing"
    assert {"IdentityNet", "UNet"} <= {span.name for span in recorder.spans if span.parent < 0}


class Runs:
    """How often a ControlNet really runs."""

    def __init__(self, net):
        self.count = 0
        self._hook = net.conv_in.register_forward_hook(self._add)

    def _add(self, *_):
        self.count += 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._hook.remove()


@pytest.mark.parametrize("guess_mode", [False, True])
@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        ({"scale": 0.0}, 0),
        ({"control_guidance_start": 0.3, "control_guidance_end": 0.8}, 1),
        ({"control_guidance_end": 0.5}, 2),
        ({}, 4),
    ],
    ids=["strength 0", "a range", "an end", "always"],
)
def test_the_identitynet_runs_only_where_it_says_something(pipe, identity, arguments, runs, guess_mode, monkeypatch):
    arguments = arguments | {"steps": 4, "guess_mode": guess_mode}
    with InstantID(pipe).attached(identity):
        with Runs(pipe.controlnet) as counted:
            ours = sample(pipe, **arguments)
        monkeypatch.setattr(drawing, "has_zero_scale", lambda *_: False)
        with Runs(pipe.controlnet) as always:
            wanted = sample(pipe, **arguments)
    assert counted.count == runs
    assert always.count == 4
    assert torch.equal(ours, wanted)


@pytest.mark.parametrize("silent", [0, 1])
@pytest.mark.parametrize("size", [(128, 128), (136, 200)])
def test_a_silent_identitynet_beside_another_controlnet(components, nets, identity, silent, size, monkeypatch):
    pipe = make(StableDiffusionXLControlNetPipeline, components, controlnet=nets)
    scale = [0.8, 0.8]
    scale[silent] = 0.0
    arguments = {"image": [KEYPOINTS, picture(3)], "scale": scale, "height": size[0], "width": size[1]}
    with InstantID(pipe, identity_net=silent).attached(identity):
        with Runs(nets[silent]) as counted, Runs(nets[1 - silent]) as other:
            ours = sample(pipe, **arguments)
        monkeypatch.setattr(drawing, "has_zero_scale", lambda *_: False)
        wanted = sample(pipe, **arguments)
    assert (counted.count, other.count) == (0, 2)
    assert torch.equal(ours, wanted)


def test_detaching_below_somebody_elses_wrapper_leaves_the_net_as_it_was(own_pipe, identity):
    net = own_pipe.controlnet
    plain = sample(own_pipe, scale=0.0)
    with InstantID(own_pipe).attached(identity):
        ours = net.forward
        net.forward = lambda *args, **kwargs: ours(*args, **kwargs)
    with Runs(net) as counted:
        assert torch.equal(sample(own_pipe, scale=0.0), plain)
    assert counted.count == 2


def test_forwards_that_were_there_before_come_back(own_pipe, identity):
    """As offloading puts them there."""
    net, calls = own_pipe.controlnet, []
    own = net.forward

    def offloaded(*args, **kwargs):
        calls.append(1)
        return own(*args, **kwargs)

    net.forward = offloaded
    before = state_of(own_pipe)
    with InstantID(own_pipe).attached(identity):
        sample(own_pipe)
    assert len(calls) == 2
    assert net.forward is offloaded
    assert_unchanged(own_pipe, before)


class TestResults:
    """Of one module, apart from pipelines."""

    @pytest.fixture(autouse=True)
    def _no_grad(self):
        with torch.no_grad():
            yield

    @pytest.fixture
    def linear(self):
        layer = nn.Linear(4, 4)
        return layer

    def test_the_same_result_while_nothing_changes(self, linear):
        reuse, text = Reuse(), torch.ones(2, 4)
        reuse.begin(text)
        first = reuse(linear, text)
        reuse.begin(text)
        assert reuse(linear, text) is first
        assert reuse.nbytes == first.nbytes

    @pytest.mark.parametrize(
        "change",
        [
            lambda layer, text, result: text.add_(1),
            lambda layer, text, result: layer.weight.add_(1),
            lambda layer, text, result: layer.bias.add_(1),
            lambda layer, text, result: setattr(layer, "weight", nn.Parameter(layer.weight + 1)),
            lambda layer, text, result: setattr(layer.weight, "data", layer.weight + 1),
            lambda layer, text, result: layer.double().float() and layer.weight.add_(1),
            lambda layer, text, result: result.add_(1),
        ],
        ids=["input", "weight", "bias", "another weight", "weight.data", "moved", "result"],
    )
    @pytest.mark.parametrize("begins", [True, False])
    def test_a_change_is_noticed(self, linear, change, begins):
        reuse, text = Reuse(), torch.ones(2, 4)
        reuse.begin(text)
        change(linear, text, reuse(linear, text))
        if begins:
            reuse.begin(text)
        assert torch.equal(reuse(linear, text), linear(text))

    def test_equal_inputs_are_not_the_same(self, linear):
        reuse, text = Reuse(), torch.ones(2, 4)
        reuse.begin(text)
        first = reuse(linear, text)
        assert reuse(linear, text.clone()) is not first
        reuse.begin(text.clone())
        assert reuse.nbytes == 0

    def test_results_die_with_what_they_were_made_of(self, linear):
        reuse, text = Reuse(), torch.ones(2, 4)
        reuse.begin(text)
        result = weakref.ref(reuse(linear, text))
        assert result() is not None
        del text
        gc.collect()
        assert result() is None
        assert reuse.nbytes == 0

    def test_more_than_its_bound_is_not_held(self):
        reuse, text = Reuse(max_bytes=64), torch.ones(2, 4)
        layers = [nn.Linear(4, 4) for _ in range(3)]
        reuse.begin(text)
        results = [reuse(layer, text) for layer in layers]
        assert [reuse(layer, text) is result for layer, result in zip(layers, results, strict=True)] == [1, 1, 0]
        assert reuse.nbytes == 64

    def test_without_a_run_nothing_is_held(self, linear):
        reuse, text = Reuse(), torch.ones(2, 4)
        reuse(linear, text)
        reuse.begin(None)
        reuse(linear, text)
        assert reuse.nbytes == 0
