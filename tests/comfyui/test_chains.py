"""Nodes in a chain: running a later one again, or another one beside it, changes no picture of ours."""

# ruff: noqa: F811  # fixtures of other modules

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import nn

from tests.comfyui import tiny
from tests.comfyui.test_composition import ACTS, apply, cloning, patches_of, sample  # noqa: F401  # fixtures
from tests.comfyui.test_parity import Pack, adapter_name, loaded, packs, style  # noqa: F401  # fixtures
from tests.comfyui.tiny import distance

WEIGHTS = (0.8, 0.5, 0.8)
"""Of three runs of a node that a user edits."""
OURS = [("ours", "ours"), ("ours", "IPAdapter"), ("IPAdapter", "ours"), ("ours", "reference"), ("reference", "ours")]
THEIRS = [("reference", "reference"), ("reference", "IPAdapter"), ("IPAdapter", "IPAdapter")]

Node = Callable[[Any, float], Any]


# The packs themselves


@pytest.fixture
def nodes(packs: list[Pack], style: Any) -> dict[str, Node]:
    """``nodes["ours"](model, weight)``: the model that the node returns."""

    def apply_node(pack: Pack) -> Node:
        return lambda model, weight: pack.run("ApplyInstantIDAdvanced", model=model, ip_weight=weight)[0]

    return {"ours": apply_node(packs[0]), "reference": apply_node(packs[1]), "IPAdapter": style}


def entries(model: Any) -> int:
    """How many faces and styles are added in one layer."""
    patch, count = patches_of(model)["input", 4, 0], 0
    while patch is not None:
        count += len(patch.callback)
        patch = getattr(patch, "base", None)
    return count


def clones_share(model: Any) -> bool:
    """Whether clones have the same patches, and not copies: since ComfyUI 0.14."""
    probe = model.clone()
    probe.model_options["transformer_options"]["probe"] = SimpleNamespace()
    options = probe.clone().model_options["transformer_options"]
    return options["probe"] is probe.model_options["transformer_options"]["probe"]


@pytest.mark.parametrize(("first", "second"), OURS)
def test_with_ours_in_a_chain_every_run_is_the_first(nodes, model, positive, negative, first, second):
    upstream = nodes[first](model, 0.8)
    once, count = sample(upstream, positive, negative), entries(upstream)
    runs = [nodes[second](upstream, weight) for weight in WEIGHTS]
    pictures = [sample(run, positive, negative) for run in runs]
    assert [entries(run) for run in runs] == [count + 1] * len(runs)
    assert torch.equal(pictures[2], pictures[0])
    assert distance(pictures[1], pictures[0]) > ACTS
    assert entries(upstream) == count
    assert torch.equal(sample(upstream, positive, negative), once)


@pytest.mark.parametrize(("first", "second"), THEIRS)
def test_without_ours_each_run_adds_another_face(nodes, model, positive, negative, first, second):
    """Where clones share patches. Elsewhere nothing decays."""
    upstream = nodes[first](model, 0.8)
    runs, counts = [], []
    for weight in WEIGHTS:
        run = nodes[second](upstream, weight)
        runs.append(sample(run, positive, negative))
        counts.append(entries(run))
    assert [entries(upstream), *counts] == ([4, 2, 3, 4] if clones_share(model) else [1, 2, 2, 2])
    assert torch.equal(runs[2], runs[0]) != clones_share(model)


def test_another_node_beside_ours_leaves_our_picture(nodes, model, positive, negative):
    upstream = nodes["IPAdapter"](model, 0.8)
    ours = nodes["ours"](upstream, 0.8)
    picture = sample(ours, positive, negative)
    beside = nodes["IPAdapter"](upstream, 0.5)
    assert entries(beside) == 2
    assert entries(ours) == 2
    assert torch.equal(sample(ours, positive, negative), picture)


# Patches of every kind


class Adds:
    """As the patches of IPAdapter_plus and of the reference."""

    def __init__(self) -> None:
        self.callback: list[Any] = [halved]
        self.kwargs: list[dict[str, Any]] = [{"strength": 0.5}]
        self.on_devices: dict[str, list[Any]] = {}

    def add(self, callback: Any, **kwargs: Any) -> None:
        self.callback.append(callback)
        self.kwargs.append(kwargs)

    def __call__(self, q, k, v, extra_options):
        out = optimized_attention(q, k, v, extra_options["n_heads"])
        for callback, kwargs in zip(self.callback, self.kwargs, strict=True):
            out = out + callback(out, **kwargs)
        return out


def halved(out: torch.Tensor, strength: float) -> torch.Tensor:
    return -strength * out


class Slotted(Adds):
    __slots__ = ("callback", "kwargs")


class Module(Adds, nn.Module):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        Adds.__init__(self)

    def forward(self, *inputs: Any) -> torch.Tensor:
        return Adds.__call__(self, *inputs)

    __call__ = nn.Module.__call__


class Delegating(Adds):
    """Everything is looked up, which a copy without attributes must survive."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    inner = SimpleNamespace()


IN_A_LAYER = ("attn2", ("input", 4, 0))
PATCHES = [
    (Adds, *IN_A_LAYER),
    (Adds, "attn2", ("input", 4)),  # of a whole block, which then is below ours in each layer
    (Adds, "attn2", ("middle", 0, 3)),  # in no layer of ours
    (Adds, "attn1", ("input", 4, 0)),
    (Slotted, *IN_A_LAYER),
    (Module, *IN_A_LAYER),
    (Delegating, *IN_A_LAYER),
]


def patched_with(model: Any, patch: Any, kind: str, key: tuple[Any, ...]) -> Any:
    other = model.clone()
    other.set_model_patch_replace(patch, kind, *key)
    return other


def add_to(model: Any) -> None:
    """As nodes of other packs do with each patch that they find."""
    for patches in model.model_options["transformer_options"]["patches_replace"].values():
        for patch in set(patches.values()):
            if hasattr(patch, "add"):
                patch.add(lambda out, *_, strength=0.0, **__: strength * out, strength=0.7)
                patch.kwargs[0]["strength"] = 0.9
                getattr(patch, "on_devices", {})["a GPU"] = []


@pytest.mark.parametrize("cloning", ["dictionaries and lists"], indirect=True)
@pytest.mark.parametrize(
    ("patch_class", "kind", "key"), PATCHES, ids=lambda value: getattr(value, "__name__", str(value))
)
@pytest.mark.usefixtures("cloning")
def test_what_is_added_upstream_of_ours_or_downstream_stays_there(apply, model, patch_class, kind, key):
    upstream = patched_with(model, patch_class(), kind, key)
    ours, *conditionings = apply(upstream)

    def picture(model: Any) -> torch.Tensor:
        return sample(model, *conditionings, steps=1)

    drawn, without = picture(ours), picture(upstream)
    assert distance(drawn, without) > ACTS
    assert distance(drawn, picture(apply(model)[0])) > 1e-4, "the patch below ours acts"

    add_to(upstream.clone())
    assert distance(picture(upstream), without) > 1e-4, "the other branch did change the patch"
    assert torch.equal(picture(ours), drawn)

    downstream = ours.clone()
    add_to(downstream)
    assert distance(picture(downstream), drawn) > 1e-4
    assert torch.equal(picture(ours), drawn)
    present = ours.model_options["transformer_options"]["patches_replace"][kind][key]
    assert (getattr(present, "base", None) or present).on_devices == {}


@pytest.mark.usefixtures("cloning")
def test_a_patch_in_several_layers_stays_one(apply, model):
    """As before: what is added to it in one layer acts in the others too."""
    patch, other = Adds(), model.clone()
    for i in range(3):
        other.set_model_attn2_replace(patch, "middle", 0, i)
    patches = patches_of(apply(other)[0])
    copies = {id(patches["middle", 0, i]) for i in range(3)}
    assert len(copies) == 1
    assert patches["middle", 0, 0] is not patch


class NoCopies(Adds):
    def __copy__(self) -> Any:
        raise TypeError("there is only one of this")

    def __deepcopy__(self, memo: Any) -> Any:
        return self


class ItsOwnState:
    """Of another interface: the pack that made it may look into this very object later."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, q, k, v, extra_options):
        self.seen.append(len(q))
        return optimized_attention(q, k, v, extra_options["n_heads"])

    def __deepcopy__(self, memo: Any) -> Any:
        return self


def a_function(q, k, v, extra_options):
    return optimized_attention(q, k, v, extra_options["n_heads"])


a_function.callback, a_function.kwargs = [], []


@pytest.mark.parametrize("patch", [ItsOwnState(), a_function], ids=["its own state", "a function"])
def test_what_nobody_adds_to_is_not_copied(apply, model, patch):
    for key in (("middle", 0, 0), ("input", 4, 0)):
        present = patches_of(apply(patched_with(model, patch, "attn2", key))[0])[key]
        assert (present if key[0] == "middle" else present.base) is patch


def test_a_patch_that_forbids_copies_is_used_as_it_is(apply, model):
    patch = NoCopies()
    patched, *conditionings = apply(patched_with(model, patch, "attn2", ("input", 4, 0)))
    assert patches_of(patched)["input", 4, 0].base is patch
    assert torch.isfinite(sample(patched, *conditionings, steps=1)).all()


def test_the_host_reaches_the_patch_below_ours(apply, model):
    """It asks patches for their models, moves them, and tells them of the end of a run."""
    asked: list[Any] = []

    class Asked(Adds):
        def models(self) -> list[Any]:
            return [small]

        def to(self, target: Any) -> Any:
            asked.append(target)
            return self

        def cleanup(self) -> None:
            asked.append("cleanup")

    small = tiny.tiny_model(seed=9)
    patched, *_ = apply(patched_with(model, Asked(), "attn2", ("input", 4, 0)))
    assert patched.model_patches_models() == [small]
    patched.model_patches_to(torch.device("cpu"))
    patched.model_patches_to(torch.float32)
    assert asked == [torch.device("cpu"), torch.float32]
    patch = patches_of(patched)["input", 4, 0]
    patch.cleanup()
    assert asked[-1] == "cleanup"
    for name in ("models", "cleanup", "anything"):
        assert not hasattr(patches_of(patched)["input", 5, 0], name)
