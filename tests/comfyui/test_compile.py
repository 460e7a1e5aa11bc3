"""A compiled model follows every edit of a face, and is compiled again only where its structure changed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.comfyui import tiny
from tests.comfyui.test_composition import ACTS, SAME

pytestmark = pytest.mark.slow

_SHALLOW = {"transformer_depth": [0, 0, 1, 1, 1, 1], "transformer_depth_middle": 1}


def without_transformer_options(guards: list[Any]) -> list[bool]:
    """As TorchCompileModel of 0.8.0 filters them (comfy_extras/nodes_torch_compile.py)."""
    return ["transformer_options" not in guard.name for guard in guards]


@pytest.fixture(params=[None, {"guard_filter_fn": without_transformer_options}], ids=["guarded", "filtered"])
def compiled(real_host, request, monkeypatch) -> Iterator[Callable[[Any], Any]]:
    """The host's own compilation, by a backend that captures graphs and runs them as they are."""
    from comfy.ldm.modules import attention
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    # What GPUs use. The one for CPUs asks the system for free memory, which breaks every graph.
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def compiled(model: Any) -> Any:
        clone = model.clone()
        set_torch_compile_wrapper(model=clone, backend="eager", options=request.param)
        return clone

    yield compiled
    torch._dynamo.reset()


@pytest.fixture
def model(monkeypatch) -> Any:
    """SDXL's blocks with one layer each, which compile in a tenth of the time."""
    monkeypatch.setattr(
        tiny, "_UNET", {**tiny._UNET, **_SHALLOW, "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1]}
    )
    return tiny.tiny_model()


@pytest.fixture
def patch(ours, adapter, faces, portraits, monkeypatch, compiled):
    import sys

    from comfy.ldm.modules.attention import attention_pytorch

    package = ours["ApplyInstantID"].__module__.rpartition(".")[0]
    monkeypatch.setattr(sys.modules[f"{package}.patch"], "optimized_attention", attention_pytorch)

    def patch(model: Any, face: int = 0, **inputs: Any) -> Any:
        inputs = {"weight": 0.8, "start_at": 0.0, "end_at": 1.0, "noise": 0.35} | inputs
        node = ours["InstantIDAttentionPatch"]
        images = portraits[face : face + 1]
        return tiny.call(node, instantid=adapter, insightface=faces, image=images, model=model, **inputs)[0]

    return patch


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_every_edit_takes_effect_and_few_compile_again(compiled, patch, model, positive, negative):
    seen: list[torch.Tensor] = []

    def check(what: str, edited: Any, new_graphs: int, *, is_new: bool = True, **options: Any) -> None:
        expected = tiny.sample(edited, positive, negative, **options)
        before = graphs()
        result = tiny.sample(compiled(edited), positive, negative, **options)
        assert tiny.distance(result, expected) <= SAME, f"{what}: the compiled model gives another picture"
        assert graphs() - before == new_graphs, f"{what}: {graphs() - before} new graphs"
        if is_new:
            assert all(tiny.distance(result, other) > ACTS / 10 for other in seen), f"{what}: nothing changed"
            seen.append(result)

    half = torch.zeros(1, 64, 64)
    half[..., :32] = 1
    check("a face", patch(model), 1)
    check("a weight", patch(model, weight=0.3), 0)
    check("another face", patch(model, face=1), 0)
    check("more noise", patch(model, noise=1.0), 0)
    check("a mask", patch(model, mask=half), 1)
    check("another mask", patch(model, mask=1 - half, weight=0.5), 0)
    check("a range: with the face, and without", patch(model, start_at=0.3, end_at=0.8, weight=0.9), 0)
    check("another range", patch(model, start_at=0.0, end_at=0.5, weight=0.9), 0)
    check("a range and a mask", patch(model, mask=half, start_at=0.0, end_at=0.5, weight=2.0), 0)
    check("a second face", patch(patch(model), face=1), 1)
    check("no guidance: one chunk", patch(model), 1, cfg=1.0)
    check("no InstantID", model, 1)
    check("the first face again", patch(model), 0, is_new=False)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert not torch._dynamo.utils.counters["recompile_limit"]


def test_recording_a_run_changes_no_graph(compiled, patch, model, positive, negative, our_pack):
    """Neither at its begin, nor at its end, nor from step to step; and of a compiled UNet only the whole is seen."""
    recorder = importlib.import_module(f"{our_pack.__name__}.fast_instantid.recorder")
    edited = compiled(patch(model))
    plain = tiny.sample(edited, positive, negative)
    before = graphs()
    with recorder.Recorder() as recorded:
        assert torch.equal(tiny.sample(edited, positive, negative), plain)
    assert torch.equal(tiny.sample(edited, positive, negative), plain)
    assert graphs() == before
    assert not torch._dynamo.utils.counters["graph_break"]
    assert {span.name for span in recorded.spans} == {"UNet"}


def test_compiling_while_recording_gives_the_same_graph(compiled, patch, model, positive, negative, our_pack):
    recorder = importlib.import_module(f"{our_pack.__name__}.fast_instantid.recorder")
    edited = compiled(patch(model))
    with recorder.Recorder():
        tiny.sample(edited, positive, negative)
    before = graphs()
    tiny.sample(edited, positive, negative)
    assert graphs() == before == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_beside_code_of_others_the_picture_is_right_and_other_models_stay_so(
    compiled, patch, model, positive, negative, caplog
):
    """Such as IPAdapter, which reads the noise level in every layer, or an attention that cannot be traced."""

    def untraceable(func: Any, *args: Any, **kwargs: Any) -> Any:
        torch._dynamo.graph_break()
        return func(*args, **kwargs)

    plain = tiny.sample(model, positive, negative)
    for face, weight in ((0, 0.8), (1, 0.8), (1, 0.3)):
        patched = patch(model, face=face, weight=weight)
        patched.model_options["transformer_options"]["optimized_attention_override"] = untraceable
        expected = tiny.sample(patched, positive, negative)
        assert tiny.distance(tiny.sample(compiled(patched), positive, negative), expected) <= SAME
    assert tiny.distance(tiny.sample(compiled(model), positive, negative), plain) <= SAME
    assert len([record for record in caplog.records if "runs uncompiled" in record.getMessage()]) <= 1


def test_chunks_that_are_evaluated_apart_are_not_taken_for_each_other(
    compiled, patch, model, positive, negative, monkeypatch
):
    """With little memory the host evaluates uncond and cond one after the other, at equal shapes."""
    patched = patch(model)
    together = tiny.sample(patched, positive, negative)
    monkeypatch.setattr(type(model.model), "memory_required", lambda *_, **__: 1e30)
    assert tiny.distance(tiny.sample(compiled(patched), positive, negative), together) <= SAME
    assert graphs() == 2
