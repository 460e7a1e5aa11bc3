"""The node InstantID Approximations: less work for another picture (docs/approximations.md).

Its choices are kept in ``transformer_options``. :mod:`.sampling` reads them before the layers of an evaluation run.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..errors import FastInstantIDError
from ..reuse import ReplacedForward
from . import sockets
from .observe.networks import identity_nets_of

KEY = "fast_instantid_approximations"
"""Key of a :class:`Less` in ``transformer_options``."""

Sigmas = tuple[float, float]
"""Noise levels between which a part acts: from the first down to the second."""


@dataclass(frozen=True)
class Less:
    """The parts of an evaluation that are left out.

    Args:
        blocks: the host's names of the blocks with an identity branch: "input", "middle", "output".
        identity, identity_net: noise levels at which the identity branch and the IdentityNet act; None for all.
        every: run the IdentityNet in each n-th step, and use its last output in the others.
    """

    blocks: frozenset[str]
    identity: Sigmas | None
    identity_net: Sigmas | None
    every: int

    def sees(self, layer: Sequence[Any], sigma: float) -> bool:
        """Whether a layer has the identity branch at a noise level."""
        return layer[0] in self.blocks and _within(sigma, self.identity)


def _within(sigma: float, part: Sigmas | None) -> bool:
    return part is None or part[1] <= sigma <= part[0]


@dataclass
class HeldControl:
    """The IdentityNets' last outputs during one run."""

    step: int = -1
    sigma: float = -1.0
    outputs: list[tuple[int, tuple[Any, ...], dict[str, list[Tensor]]]] = field(default_factory=list)
    """The step, the kind of call, and the output."""

    @contextmanager
    def active(self, less: Less, conds: Sequence[Sequence[Mapping[str, Any]] | None], sigma: float) -> Generator[None]:
        """Replace the IdentityNets of these conditionings for one evaluation. Other ControlNets stay as they are."""
        if sigma != self.sigma:
            self.step, self.sigma = self.step + 1, sigma
        acting = [entry for cond in conds for entry in cond or () if _acts(entry, sigma)]
        calls: list[int] = []
        replaced = [
            ReplacedForward(net, partial(self._call, net, less, acting, calls)) for net in identity_nets_of(conds)
        ]
        try:
            for forward in replaced:
                forward.replace()
            yield
        finally:
            for forward in reversed(replaced):
                forward.restore()

    def _call(
        self, net: nn.Module, less: Less, acting: list[Any], calls: list[int], forward: Any, *args: Any, **kwargs: Any
    ) -> dict[str, list[Tensor]]:
        if not _within(self.sigma, less.identity_net):
            return {"middle": [], "output": []}
        if less.every == 1:
            return forward(*args, **kwargs)
        # The host holds one hint for each ControlNet, and may evaluate the conditionings in several calls.
        calls.append(0)
        x, hint, context = (kwargs[name] for name in ("x", "hint", "context"))
        kind = (net, hint, *acting), (len(calls), x.shape, x.device, x.dtype, context.shape)
        for i, (step, held, output) in enumerate(self.outputs):
            if held[1] == kind[1] and len(held[0]) == len(kind[0]) and all(map(_is, held[0], kind[0])):
                if 0 < self.step - step < less.every:
                    return _copied(output)
                del self.outputs[i]
                break
        output = forward(*args, **kwargs)
        self.outputs.append((self.step, kind, output))
        return _copied(output)


def _is(one: Any, other: Any) -> bool:
    return one is other


def _acts(entry: Mapping[str, Any], sigma: float) -> bool:
    start, end = entry.get("timestep_start"), entry.get("timestep_end")
    return (start is None or sigma <= start) and (end is None or sigma >= end)


def _copied(output: Mapping[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """The host multiplies the output by the strength in-place."""
    return {name: [tensor.clone() for tensor in tensors] for name, tensors in output.items()}


class InstantIDApproximations:
    """Leaves out work of InstantID in a model."""

    DESCRIPTION = (
        "Less work for another picture. fast costs little likeness; custom takes the inputs below. Without this node "
        "nothing is left out."
    )
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "approximate"
    CATEGORY = "InstantID"
    SEARCH_ALIASES = ("faster", "speed", "skip steps", "less work", "cache")
    INPUT_TYPES = staticmethod(sockets.approximations)

    def approximate(
        self,
        model: ModelPatcher,
        preset: str,
        identity_net_every: int = 1,
        identity_net_start: float = 0.0,
        identity_net_end: float = 1.0,
        identity_start: float = 0.0,
        identity_end: float = 1.0,
        blocks: str = "all",
    ) -> tuple[ModelPatcher]:
        from .sampling import wrap

        if preset not in sockets.PRESETS or blocks not in sockets.BLOCKS:
            choices = ", ".join((*sockets.PRESETS, *sockets.BLOCKS))
            raise FastInstantIDError(f"preset {preset!r} with blocks {blocks!r}: choose from {choices}")
        if preset == "off":
            return (model,)
        sampling = model.get_model_object("model_sampling")

        def noise(name: str, start: float, end: float) -> Sigmas | None:
            if not 0 <= start < end <= 1:
                raise FastInstantIDError(f"{name} from {start:g} to {end:g}: expected 0 <= start < end <= 1")
            levels = float(sampling.percent_to_sigma(start)), float(sampling.percent_to_sigma(end))
            return None if (start, end) == (0, 1) else levels

        if preset == "fast":
            less = Less(frozenset(sockets.BLOCKS["input and output"]), None, None, sockets.FAST_EVERY)
        else:
            less = Less(
                frozenset(sockets.BLOCKS[blocks]),
                noise("identity", identity_start, identity_end),
                noise("identity_net", identity_net_start, identity_net_end),
                identity_net_every,
            )
        clone = model.clone()
        clone.model_options["transformer_options"][KEY] = less
        wrap(clone)
        return (clone,)
