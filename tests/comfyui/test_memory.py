"""Results stay cached until the host unloads its models, and the host moves all that is on the GPU."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import comfy.model_management as host
import comfy.utils
import pytest
import torch

from tests.comfyui import tiny
from tests.comfyui.test_composition import patches_of


@pytest.fixture(scope="session")
def part(our_pack: ModuleType):
    """``part("faces.onnx.network")``: a module of the package as it lies in ``custom_nodes``."""
    return lambda name: importlib.import_module(f"{our_pack.__name__}.fast_instantid.{name}")


@pytest.fixture
def work(part, monkeypatch) -> Iterator[Counter[str]]:
    """How often networks ran and identities were made."""
    counted: Counter[str] = Counter()

    def count(owner: type, method: str, name: str) -> None:
        original = getattr(owner, method)

        def counting(*args: Any) -> Any:
            counted[name] += 1
            return original(*args)

        monkeypatch.setattr(owner, method, counting)

    count(part("faces.onnx.network").TorchNetwork, "run", "networks")
    count(part("identity").Adapter, "project", "identities")
    part("comfyui.models").release()
    yield counted
    part("comfyui.models").release()


@pytest.fixture
def run(ours, face_pack, adapter, controlnet, portraits, positive, negative):
    """``run(**inputs)``: executes a graph with its loaders, and returns the outputs of its Apply node."""

    def run(**inputs: Any) -> tuple[Any, Any, Any]:
        (instantid,) = tiny.call(ours["InstantIDModelLoader"], instantid_file="tiny-adapter.bin")
        (insightface,) = tiny.call(ours["InstantIDFaceAnalysis"], provider="CPU")
        inputs = {
            "instantid": instantid,
            "insightface": insightface,
            "control_net": controlnet,
            "image": portraits[:1],
            "model": inputs.pop("model", None) or tiny.tiny_model(),
            "positive": positive,
            "negative": negative,
            "weight": 0.8,
            "start_at": 0.0,
            "end_at": 1.0,
        } | inputs
        return tiny.call(ours["ApplyInstantID"], **inputs)

    return run


def test_an_edit_of_anything_but_the_picture_does_no_face_work(run, work, portraits, controlnet):
    run()
    first = dict(work)
    assert first["networks"] >= 2
    assert first["identities"] == 1
    for edit in (
        {"weight": 0.3},
        {"start_at": 0.2, "end_at": 0.7},
        {"positive": tiny.conditioning(7), "negative": tiny.conditioning(8)},
        {"model": tiny.tiny_model(seed=3)},
        {"model": tiny.tiny_model().clone()},
        {"mask": torch.ones(64, 64)},
        {"layers": "paper"},
        {"control_net": tiny.tiny_controlnet(seed=5)},
        {"image": portraits[:1].clone()},
        {},
    ):
        run(**edit)
        assert work == first, edit


def test_a_picture_that_was_seen_in_another_node_is_known(ours, run, work, portraits):
    (insightface,) = tiny.call(ours["InstantIDFaceAnalysis"], provider="CPU")
    tiny.call(ours["FaceKeypointsPreprocessor"], faceanalysis=insightface, image=portraits)
    drawn = work["networks"]
    assert drawn == len(portraits), "keypoints need no recogniser"
    run(image=portraits)
    assert work["networks"] == drawn + len(portraits), "and the embeddings no second detection"


def test_of_six_pictures_only_the_new_one_is_work(run, work, portraits):
    six = torch.cat([portraits, portraits * 0.8])
    run(image=six)
    before = work["networks"]
    changed = six.clone()
    changed[4] = changed[4] * 0.99
    run(image=changed)
    assert work["networks"] == before + 2


def test_pictures_edited_in_place_are_new(run, work, portraits):
    image = portraits[:1].clone()
    run(image=image)
    before = work["networks"]
    image[0, 100, 100, 0] = 1 - image[0, 100, 100, 0]
    run(image=image)
    assert work["networks"] == before + 2


def test_unloading_all_models_releases_what_was_computed(run, work, part):
    first, *_ = run()
    stats = part("cache").shared_cache().stats
    assert stats.entries > 0
    host.unload_all_models()
    assert part("cache").shared_cache().stats.entries == 0
    before = work["networks"]
    second, *_ = run()
    assert work["networks"] == before + 2
    (key, *_), (again, *_) = (
        [kwargs["face"].key for kwargs in patches_of(model)[("input", 4, 0)].kwargs] for model in (first, second)
    )
    assert torch.equal(key, again)


def test_face_networks_are_models_of_the_host(part, face_pack, portraits):
    """On the CPU there is nowhere to move them; that they are asked for and let go is the same."""
    pack = part("faces.pack").look_for_pack(face_pack)
    managed = part("comfyui.memory").ManagedNetwork(pack.recognizer, torch.device("cpu"))
    plain = part("faces.onnx.network").TorchNetwork(pack.recognizer, torch.device("cpu"))
    loaded = len(host.current_loaded_models)
    crops = (portraits[:2, :112, :112] * 255).to(torch.uint8)
    assert (managed.run(crops, 127.5, 1 / 127.5)[0] == plain.run(crops, 127.5, 1 / 127.5)[0]).all()
    mine = [model for model in host.current_loaded_models if model.model is managed._patcher]
    assert len(mine) == 1
    managed.run(crops, 127.5, 1 / 127.5)
    assert len(host.current_loaded_models) == loaded + 1
    host.unload_all_models()
    assert not [model for model in host.current_loaded_models if model.model is managed._patcher]


def test_face_networks_run_where_their_weights_are(part, face_pack, portraits):
    """With --novram the host leaves them in main memory."""
    pack = part("faces.pack").look_for_pack(face_pack)
    managed = part("comfyui.memory").ManagedNetwork(pack.recognizer, torch.device("cpu"))
    assert not managed.module.training  # loaded
    managed.device = torch.device("cuda", 0)  # which is not there: what is sent to it raises
    crops = (portraits[:1, :112, :112] * 255).to(torch.uint8)
    assert managed.run(crops, 127.5, 1 / 127.5)[0].shape == (1, 512)


def test_a_model_of_another_family_is_refused_before_any_work(run, work, model):
    model.model.model_config.unet_config["context_dim"] = 768
    with pytest.raises(Exception, match="SDXL models only"):
        run(model=model)
    assert not work


def test_the_host_is_asked_for_room_when_an_identity_is_made(run, work, adapter, monkeypatch):
    asked: list[int] = []
    free_memory = host.free_memory

    def asking(memory_required: int, device: torch.device, *args: Any, **kwargs: Any) -> Any:
        asked.append(memory_required)
        return free_memory(memory_required, device, *args, **kwargs)

    monkeypatch.setattr(host, "free_memory", asking)
    run()
    assert asked
    assert max(asked) >= sum(tensor.numel() * 4 for tensor in adapter.weights.image_proj.values())
    before = len(asked)
    run(weight=0.2)
    assert len(asked) == before


def test_cancel_stops_the_analysis_and_keeps_what_was_found(ours, run, work, portraits):
    many = torch.cat([portraits * factor for factor in (1.0, 0.97, 0.93)])
    pictures = len(many)
    (insightface,) = tiny.call(ours["InstantIDFaceAnalysis"], provider="CPU")
    seen: list[int] = []

    def after_some(value: int, total: int, *_: Any, **__: Any) -> None:
        seen.append(value)
        if value < total:
            host.interrupt_current_processing()

    comfy.utils.set_progress_bar_global_hook(after_some)
    try:
        with pytest.raises(host.InterruptProcessingException):
            tiny.call(ours["FaceKeypointsPreprocessor"], faceanalysis=insightface, image=many)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert 0 < seen[-1] < pictures
    assert work["networks"] == seen[-1]
    tiny.call(ours["FaceKeypointsPreprocessor"], faceanalysis=insightface, image=many)
    assert work["networks"] == pictures


def test_global_random_state_and_the_terminal_are_left_alone(run, model, capfd):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(model=model)  # the noise in an identity is seeded by its face
    assert torch.equal(torch.rand(3), expected)
    captured = capfd.readouterr()
    assert not captured.out
