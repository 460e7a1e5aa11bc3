"""The stages that the package's own code tells a recorder: all that cost time are there, under their parents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from examples.tiny_adapter import write_tiny_adapter
from examples.tiny_sdxl import LAYER_CHANNELS, TOKEN_WIDTH, write_tiny_identitynet, write_tiny_sdxl
from fast_instantid import Adapter, Cache, FaceAnalyzer
from fast_instantid.attention import IdentityEntry, identity_attention
from fast_instantid.faces import draw_keypoints, largest
from fast_instantid.images import photos
from fast_instantid.pipelines import InstantID, Sampling, generate, load_pipeline
from fast_instantid.recorder import Recorder, Span

STEPS, LAYERS = 2, 70


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("downloads")
    base, instantid = write_tiny_sdxl(folder / "sdxl"), folder / "InstantID"
    write_tiny_identitynet(instantid / "ControlNetModel")
    write_tiny_adapter(instantid / "ip-adapter.bin", channels=LAYER_CHANNELS, token_width=TOKEN_WIDTH)
    return base, instantid


@pytest.fixture(scope="module")
def photo_file(tmp_path_factory, astronaut):
    path = tmp_path_factory.mktemp("photos") / "astronaut.png"
    Image.fromarray(astronaut).save(path)
    return path


def path_of(recorder: Recorder, span: Span) -> str:
    names = [span.name]
    while span.parent >= 0:
        span = recorder.spans[span.parent]
        names.append(span.name)
    return " > ".join(reversed(names))


def calls(recorder: Recorder) -> dict[str, int]:
    paths = [path_of(recorder, span) for span in recorder.spans]
    return {path: paths.count(path) for path in paths}


def fact(recorder: Recorder, name: str, fact: str) -> list[float]:
    return [span.facts.get(fact, 0) for span in recorder.spans if span.name == name]


def test_a_photo_becomes_an_identity_in_these_stages(folders, photo_file, pack):
    with Recorder() as recorder:
        cache = Cache()
        analyzer = FaceAnalyzer.load(pack, device="cpu", cache=cache)
        adapter = Adapter.load(folders[1] / "ip-adapter.bin", "cpu", cache=cache)
        adapter.identity(analyzer.embed(photo_file))
    seen = calls(recorder)
    expected = {
        "find networks": 1,
        "detect > load network": 1,
        "recognise > load network": 1,
        "load adapter": 1,
        "decode": 1,
        "detect": 1,
        "detect > hash": 1,
        "detect > network": 1,
        "recognise": 1,
        "recognise > align": 1,
        "recognise > network": 1,
        "identity": 1,
        "identity > resample": 1,
        "identity > project": 1,
    }
    assert expected.items() <= seen.items(), seen
    assert "fingerprint" not in " ".join(seen), "no model file is hashed for results that end with the process"
    assert fact(recorder, "decode", "nbytes") == [photo_file.stat().st_size]
    assert fact(recorder, "hash", "nbytes") == [512 * 512 * 3]
    layers = sum(2 * channels * TOKEN_WIDTH for channels in LAYER_CHANNELS)
    assert fact(recorder, "project", "nbytes") in ([2 * layers], [4 * layers])  # fp16 or fp32
    assert fact(recorder, "detect", "misses") == fact(recorder, "recognise", "misses") == [1]


def test_what_was_paid_for_shows_as_a_hit_and_costs_no_network(folders, photo_file, pack):
    cache = Cache()
    analyzer = FaceAnalyzer.load(pack, device="cpu", cache=cache)
    adapter = Adapter.load(folders[1] / "ip-adapter.bin", "cpu", cache=cache)
    adapter.identity(analyzer.embed(photo_file))
    with Recorder() as recorder:
        adapter.identity(analyzer.embed(photo_file))
    assert calls(recorder) == {"decode": 1, "detect": 1, "detect > hash": 1, "recognise": 1, "identity": 1}
    for name in ("detect", "recognise", "identity"):
        assert (fact(recorder, name, "hits"), fact(recorder, name, "misses")) == ([1], [0])


def test_a_picture_is_sampled_in_these_stages_and_is_the_same_picture(folders, pack, astronaut):
    analyzer = FaceAnalyzer.load(pack, device="cpu", cache=Cache())
    identity = Adapter.load(folders[1] / "ip-adapter.bin", "cpu").identity(analyzer.embed(astronaut))
    face = largest(analyzer.detect(astronaut)[0])
    keypoints = Image.fromarray(draw_keypoints((64, 64), face.kps / 8))
    pipe = load_pipeline(*folders, "cpu", torch.float32)
    parts = (pipe.unet, pipe.controlnet, pipe.vae.decoder, pipe.text_encoder)
    hooks_before = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts]
    plain = generate(pipe, identity, keypoints, "a man", Sampling(num_inference_steps=STEPS))[0]
    with Recorder() as recorder:
        recorded = generate(pipe, identity, keypoints, "a man", Sampling(num_inference_steps=STEPS))[0]
    seen = calls(recorder)
    expected = {
        "sampling": 1,
        "sampling > text encoder": 2,
        "sampling > text encoder 2": 2,
        "sampling > IdentityNet": STEPS,
        "sampling > UNet": STEPS,
        "sampling > UNet > identity branch": STEPS * LAYERS,
        "sampling > VAE decode": 1,
    }
    assert seen == expected
    assert np.array_equal(np.asarray(plain), np.asarray(recorded))
    assert [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts] == hooks_before


def test_a_pipeline_of_ones_own_is_recorded_whenever_it_was_attached(folders):
    identity = Adapter.load(folders[1] / "ip-adapter.bin", "cpu").identity(torch.randn(512))
    pipe = load_pipeline(*folders, "cpu", torch.float32)
    keypoints = Image.new("RGB", (64, 64))
    with InstantID(pipe).attached(identity), Recorder() as recorder:
        pipe("a man", image=keypoints, num_inference_steps=1)
    assert {"UNet", "UNet > identity branch", "IdentityNet", "VAE decode"} <= calls(recorder).keys()


def test_an_identity_net_that_a_pipeline_has_twice_is_one_stage_per_call(folders):
    identity = Adapter.load(folders[1] / "ip-adapter.bin", "cpu").identity(torch.randn(512))
    pipe = load_pipeline(*folders, "cpu", torch.float32)
    pipe = type(pipe)(**{**pipe.components, "controlnet": [pipe.controlnet, pipe.controlnet]})
    with InstantID(pipe).attached(identity), Recorder() as recorder:
        pipe("a man", image=[Image.new("RGB", (64, 64))] * 2, num_inference_steps=1)
    assert calls(recorder)["IdentityNet"] == 2
    assert not any("IdentityNet > " in path for path in calls(recorder))


def test_a_tensor_is_converted_once_however_often_it_is_read(pack, astronaut):
    analyzer = FaceAnalyzer.load(pack, device="cpu", cache=Cache())
    tensor = torch.from_numpy(astronaut).float().div(255)
    with Recorder() as recorder:
        analyzer.embed(photos(tensor))
    assert calls(recorder)["detect > convert"] == 1
    assert not any(path.startswith("recognise") and path.endswith("convert") for path in calls(recorder))


def test_a_compiled_branch_is_one_graph_whoever_records():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(identity_attention, backend=backend, fullgraph=True)
    query, entry = torch.randn(2, 4, 8), IdentityEntry.split(torch.randn(2, 16, 8), torch.randn(2, 16, 8), 2)
    plain = compiled(query, [entry])
    with Recorder() as recorder:
        assert torch.equal(compiled(query, [entry]), plain)
    assert len(graphs) == 1
    assert not recorder.spans
