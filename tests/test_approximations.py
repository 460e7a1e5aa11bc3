"""Approximations: off unless asked for, and each leaves out what it says and nothing else; by counting."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

from examples.tiny_adapter import write_tiny_adapter
from examples.tiny_sdxl import LAYER_CHANNELS, TOKEN_WIDTH, write_tiny_identitynet, write_tiny_sdxl
from fast_instantid import Adapter, Cache, FaceAnalyzer, cli, miniature
from fast_instantid.errors import BackendError, FastInstantIDError, NoFaceError
from fast_instantid.faces import find_pack
from fast_instantid.faces.onnx.network import TorchNetwork, load_network
from fast_instantid.pipelines import Approximations, InstantID, Sampling, Subject, generate
from fast_instantid.pipelines.cross_attention import CrossAttention
from fast_instantid.placement import has_onednn

KEYPOINTS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
STEPS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_sdxl(folder / "base")
    for seed, name in enumerate(("ControlNetModel", "other")):
        write_tiny_identitynet(folder / name, seed=seed)
    write_tiny_adapter(folder / "ip-adapter.bin", channels=LAYER_CHANNELS, token_width=TOKEN_WIDTH)
    return folder


@pytest.fixture(scope="module")
def pipe(folder):
    net = ControlNetModel.from_pretrained(folder / "ControlNetModel")
    pipe = StableDiffusionXLControlNetPipeline.from_pretrained(folder / "base", controlnet=net)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def identity(folder):
    embedding = torch.randn(1, 512, generator=torch.Generator().manual_seed(5))
    return Adapter.load(folder / "ip-adapter.bin", "cpu", torch.float32).identity(embedding)


def sample(pipe, steps=STEPS, **more) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    options = {"image": KEYPOINTS, "num_inference_steps": steps, "output_type": "latent"} | more
    return pipe("a man", generator=generator, **options).images


@contextmanager
def counting(pipe, net=None):
    """What runs: at which steps the IdentityNet, and for each step the layers with an identity branch."""
    seen = {"net": [], "layers": []}
    attends = CrossAttention._entries

    def entries(layer, query, faces):
        seen["layers"][-1] += 1
        return attends(layer, query, faces)

    handles = [pipe.unet.register_forward_pre_hook(lambda *_: seen["layers"].append(0), prepend=True)]
    if net is not None:
        block = net.controlnet_mid_block  # which runs if, and only if, all of it does
        handles.append(block.register_forward_hook(lambda *_: seen["net"].append(len(seen["layers"]))))
    patch = pytest.MonkeyPatch()
    patch.setattr(CrossAttention, "_entries", entries)
    try:
        yield seen
    finally:
        patch.undo()
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(
    ("options", "net", "layers"),
    [
        ({}, [0, 1, 2, 3, 4], [70] * 5),
        ({"layers": ["down_blocks", "up_blocks"]}, [0, 1, 2, 3, 4], [60] * 5),
        ({"layers": ["up_blocks.0", "mid_block"]}, [0, 1, 2, 3, 4], [40] * 5),
        ({"identity_range": (0.2, 0.8)}, [0, 1, 2, 3, 4], [0, 70, 70, 70, 0]),
        ({"identity_net_range": (0.2, 0.6)}, [1, 2], [70] * 5),
        ({"identity_net_every": 2}, [0, 2, 4], [70] * 5),
        ({"identity_net_every": 3}, [0, 3], [70] * 5),
        ({"identity_net_every": 2, "identity_net_range": (0.2, 1)}, [1, 3], [70] * 5),
    ],
    ids=str,
)
def test_each_leaves_out_what_it_says(pipe, identity, options, net, layers):
    with InstantID(pipe).attached(identity, approximations=Approximations(**options)):
        for _ in range(2):  # the second run begins anew
            with counting(pipe, pipe.controlnet) as seen:
                latents = sample(pipe)
            assert seen == {"net": net, "layers": layers}
            assert torch.isfinite(latents).all()


def test_the_default_is_the_exact_picture_to_the_bit(pipe, identity):
    with InstantID(pipe).attached(identity):
        usual = sample(pipe)
    # What is none, said in every way: even the code that counts steps changes nothing.
    names = ["down_blocks", "mid_block", "up_blocks"]
    for none in (Approximations(), Approximations(names, (0, 1), (0, 1), 1), Approximations(identity_net_every=1)):
        with InstantID(pipe).attached(identity, approximations=none):
            assert torch.equal(sample(pipe), usual)
    assert Sampling().approximations == Approximations()
    with InstantID(pipe).attached(identity, approximations=Approximations(identity_net_every=2)):
        assert not torch.equal(sample(pipe), usual)


def test_an_identity_range_is_attaching_and_detaching_between_two_steps(pipe, identity):
    with InstantID(pipe).attached(identity, approximations=Approximations(identity_range=(0, 0.6))):
        ranged = sample(pipe)
    here = InstantID(pipe)
    here.attach(identity)

    def stop(pipe, step, timestep, tensors):
        if step == 2:
            here.attach(Subject(identity, weight=0.0))
        return tensors

    by_hand = sample(pipe, callback_on_step_end=stop)
    here.detach()
    assert torch.equal(ranged, by_hand)


def test_a_range_of_the_identitynet_is_that_of_diffusers(pipe, identity):
    with InstantID(pipe).attached(identity, approximations=Approximations(identity_net_range=(0.2, 0.6))):
        ranged = sample(pipe)
    with InstantID(pipe).attached(identity):
        theirs = sample(pipe, control_guidance_start=0.2, control_guidance_end=0.6)
    assert torch.equal(ranged, theirs)


@pytest.mark.parametrize("first", [True, False])
def test_beside_another_controlnet_only_the_identitynet_is_sparse(folder, pipe, identity, first):
    nets = [pipe.controlnet, ControlNetModel.from_pretrained(folder / "other")]
    both = StableDiffusionXLControlNetPipeline(**{**pipe.components, "controlnet": nets if first else nets[::-1]})
    both.set_progress_bar_config(disable=True)
    runs = []
    handle = nets[1].controlnet_mid_block.register_forward_hook(lambda *_: runs.append(1))
    every = Approximations(identity_net_every=2, identity_net_range=(0.0, 0.8))
    with InstantID(both, 0 if first else 1).attached(identity, approximations=every), counting(both, nets[0]) as seen:
        latents = sample(both, image=[KEYPOINTS] * 2, controlnet_conditioning_scale=[0.8, 0.5])
    handle.remove()
    assert seen["net"] == [0, 2]
    assert len(runs) == STEPS

    # What is said again is what was said, though diffusers writes what the other says into it.
    again = nets[0].forward
    said = []

    def remember(*args, **kwargs):
        if len(seen["layers"]) % 2 == 0:
            down, mid = again(*args, **kwargs)
            said[:] = [down, mid.clone()]
        if len(seen["layers"]) >= 4:
            return [torch.zeros_like(one) for one in said[0]], torch.zeros_like(said[1])
        return said[0], said[1].clone()

    nets[0].forward = remember
    try:
        with InstantID(both, 0 if first else 1).attached(identity), counting(both) as seen:
            expected = sample(both, image=[KEYPOINTS] * 2, controlnet_conditioning_scale=[0.8, 0.5])
    finally:
        del nets[0].forward
    assert torch.equal(latents, expected)


def test_steps_are_counted_where_a_run_begins_late_or_its_scheduler_has_no_counter(pipe, identity):
    late = StableDiffusionXLControlNetImg2ImgPipeline(**pipe.components)
    late.set_progress_bar_config(disable=True)
    late.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    half = Approximations(identity_range=(0.5, 1), identity_net_every=2)
    with InstantID(late).attached(identity, approximations=half), counting(late, late.controlnet) as seen:
        sample(late, steps=8, strength=0.5, control_image=KEYPOINTS)
    assert seen == {"net": [0, 2], "layers": [0, 0, 70, 70]}


def test_a_run_that_was_interrupted_does_not_count(pipe, identity):
    def interrupt(pipe, step, timestep, tensors):
        if step == 0:
            raise KeyboardInterrupt
        return tensors

    with InstantID(pipe).attached(identity, approximations=Approximations(identity_net_every=2)):
        with pytest.raises(KeyboardInterrupt):
            sample(pipe, callback_on_step_end=interrupt)
        with counting(pipe, pipe.controlnet) as seen:
            sample(pipe)
    assert seen["net"] == [0, 2, 4]


def test_detaching_leaves_the_network_as_it_was_and_holds_nothing(pipe, identity):
    net, instantid = pipe.controlnet, InstantID(pipe)
    before = dict(vars(net)), len(net._forward_pre_hooks), len(pipe.unet._forward_hooks)
    for _ in range(2):  # replaced by another, and detached
        instantid.attach(identity, approximations=Approximations(identity_net_every=2))
        assert "forward" in vars(net)
    instantid.detach()
    assert (dict(vars(net)), len(net._forward_pre_hooks), len(pipe.unet._forward_hooks)) == before


def test_without_a_controlnet_the_identity_has_its_range(pipe, identity):
    parts = {name: part for name, part in pipe.components.items() if name != "controlnet"}
    alone = StableDiffusionXLPipeline(**parts)
    alone.set_progress_bar_config(disable=True)
    part = Approximations(identity_range=(0, 0.4))
    with InstantID(alone).attached(identity, approximations=part), counting(alone) as seen:
        alone("a man", num_inference_steps=STEPS, height=64, width=64, output_type="latent")
    assert seen["layers"] == [70, 70, 0, 0, 0]


def test_generate_passes_them_on(pipe, identity):
    sampling = Sampling(num_inference_steps=3, approximations=Approximations(["mid_block"], identity_net_every=3))
    with counting(pipe, pipe.controlnet) as seen:
        generate(pipe, identity, KEYPOINTS, "a man", sampling)
    assert seen == {"net": [0], "layers": [10] * 3}


@pytest.mark.parametrize(
    "options",
    [
        {"layers": []},
        {"layers": "up_blocks"},
        {"identity_range": (0.5, 0.5)},
        {"identity_range": (0, 1.5)},
        {"identity_range": (0.2,)},
        {"identity_range": 0.8},
        {"identity_net_range": (float("nan"), 1)},
        {"identity_net_range": (0, 0.5, 1)},
        {"identity_net_every": 0},
        {"identity_net_every": 1.5},
        {"identity_net_every": True},
    ],
    ids=str,
)
def test_what_cannot_be_left_out_is_refused(options):
    with pytest.raises(FastInstantIDError, match="expected"):
        Approximations(**options)


def test_a_module_without_layers_and_a_compiled_pipeline_are_refused(pipe, identity):
    instantid = InstantID(pipe)
    with pytest.raises(BackendError, match=r"is in 'up_blocks.2': .*'mid_block', 'up_blocks.0', 'up_blocks.1'"):
        instantid.attach(identity, approximations=Approximations(["down_blocks", "up_blocks.2"]))
    net = pipe.controlnet
    pipe.controlnet = torch.compile(net)
    try:
        with pytest.raises(BackendError, match="not compiled"):
            InstantID(pipe).attach(identity, approximations=Approximations(identity_net_every=2))
    finally:
        pipe.controlnet = net
    assert not any("Identity" in type(processor).__name__ for processor in pipe.unet.attn_processors.values())


@pytest.mark.usefixtures("loaded_once")
def test_the_shell_has_them(tmp_path, capsys):
    drawing, base = str(miniature.files().portraits[0]), ["--base", "miniature", "--device", "cpu"]

    def drawn(*options: str) -> bytes | None:
        output = tmp_path / "out.png"
        arguments = ["--photo", drawing, "--prompt", "flat portrait", "--steps", "2", "--output", str(output)]
        return output.read_bytes() if cli.main(["generate", *base, *arguments, *options]) == 0 else None

    usual = drawn()
    assert usual == drawn("--identity-range", "0", "1", "--identity-net-every", "1", "--face-dtype", "float32")
    ways = ["--layers up_blocks.0", "--identity-range 0 0.5", "--identity-net-range 0 0.5", "--identity-net-every 2"]
    ways += ["--face-dtype bfloat16", "--face-sizes 320 640"]
    assert len({usual, *(drawn(*way.split()) for way in ways)} - {None}) == 1 + len(ways)
    capsys.readouterr()
    assert drawn("--identity-range", "0.8", "0.2") is None
    assert "identity range (0.8, 0.2): expected start and end" in capsys.readouterr().err
    assert drawn("--face-sizes", "333") is None
    assert "detection sizes [333]: expected multiples of 32" in capsys.readouterr().err


# --- faces -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def sides(monkeypatch) -> list[int]:
    """The width of what each run of a network sees."""
    seen: list[int] = []
    run = TorchNetwork.run

    def counted(self, images, *options):
        seen.append(images.shape[2])
        return run(self, images, *options)

    monkeypatch.setattr(TorchNetwork, "run", counted)
    return seen


def test_sizes_are_tried_in_turn_and_remembered_apart(pack, sides, astronaut):
    cache = Cache()
    small = FaceAnalyzer.load(pack, device="cpu", sizes=[320, 640], cache=cache)
    usual = FaceAnalyzer.load(pack, device="cpu", cache=cache)
    coarse, fine = small.detect(astronaut)[0], usual.detect(astronaut)[0]
    assert sides == [320, 640], "what was found at 320 is not what is asked for at 640"
    assert coarse[0].det_score != fine[0].det_score
    sides.clear()
    black = np.zeros_like(astronaut)
    assert small.detect([astronaut, black])[1] == []
    assert sides == [320, 640], "320 and 640 for the black one alone"
    with pytest.raises(NoFaceError, match="at 640 down to 320 pixels"):
        small.embed(black)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_dtype_computes_and_is_remembered_apart(pack, sides, astronaut, dtype):
    cache = Cache()
    exact = FaceAnalyzer.load(pack, device="cpu", cache=cache)
    rough = FaceAnalyzer.load(pack, device="cpu", dtype=dtype, cache=cache)
    one, other = rough.embed(astronaut)[0], exact.embed(astronaut)[0]
    assert sides == [640, 112, 640, 112], "neither was served what is the other's"
    assert one.dtype == np.float32
    assert not np.array_equal(one, other)
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.98
    assert np.array_equal(
        exact.embed(astronaut)[0], FaceAnalyzer.load(pack, device="cpu", cache=Cache()).embed(astronaut)[0]
    )
    assert rough.backend == f"torch (cpu, {dtype})"


def test_result_ids_name_the_dtype_and_the_layout_of_weights(pack):
    graph = find_pack(pack).recognizer
    prints = {dtype: load_network(graph, "torch", "cpu", dtype).result_id() for dtype in ("float32", "bfloat16")}
    assert prints["float32"] == load_network(graph, "torch", "cpu").result_id()
    for dtype, suffix in (("float32", ""), ("bfloat16", "/bfloat16")):
        packed = "/onednn" if has_onednn(getattr(torch, dtype)) else ""
        assert prints[dtype] == f"{graph.fingerprint}/torch/cpu{packed}{suffix}"
    assert load_network(graph, "torch", "cpu", "float16").result_id() == f"{graph.fingerprint}/torch/cpu/float16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype 'int8' is not supported: choose one of float32, float16, bfloat16"),
        ({"dtype": "bfloat16", "backend": "onnxruntime"}, "computes in the dtype of the file: bfloat16 needs"),
        ({"sizes": []}, r"detection sizes \[\]: expected multiples of 32"),
        ({"sizes": [300]}, r"\[300\]: expected multiples of 32 up to 4096, such as \[320, 640\]"),
        ({"sizes": [320, -640]}, "expected multiples of 32"),
        ({"sizes": [320.0]}, "expected multiples of 32"),
    ],
    ids=str,
)
def test_dtypes_and_sizes_that_cannot_be_are_refused(pack, options, message):
    with pytest.raises(BackendError, match=message):
        FaceAnalyzer.load(pack, **{"device": "cpu"} | options)
