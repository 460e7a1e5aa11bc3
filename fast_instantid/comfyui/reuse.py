"""What a ControlNet makes of its picture, computed once per run (docs/adr/0013-once-per-run.md: and why no more).

The host keeps the picture at the size of the latent, as one tensor of its own for a run (comfy/controlnet.py,
``ControlNet.cond_hint``), and the network runs eight convolutions over it at every step.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.cldm.cldm
import comfy.ops
from torch import Tensor, nn

from ..reuse import MAX_BYTES, ReplacedForward, Reuse

SWITCH = "FAST_INSTANTID_REUSE"
"""Environment variable, read at the begin of each run: ``0`` computes everything at every step."""

_LAYERS = comfy.ops.disable_weight_init.Conv2d, comfy.ops.manual_cast.Conv2d


def is_wanted() -> bool:
    """What the user's environment says."""
    return os.environ.get(SWITCH, "") != "0"


class Hints:
    """The pictures of one run. People who are combined have one each, of one network."""

    def __init__(self) -> None:
        self._of: list[tuple[nn.Module, Reuse]] = []

    @property
    def nbytes(self) -> int:
        """Held now."""
        return sum(reuse.nbytes for _, reuse in self._of)

    def clear(self) -> None:
        """Hold nothing."""
        for _, reuse in self._of:
            reuse.clear()
        self._of.clear()

    @contextmanager
    def kept(
        self, networks: Iterable[nn.Module], conds: Sequence[Sequence[Mapping[str, Any]] | None]
    ) -> Generator[None]:
        """In the block, which is one evaluation, these networks take from the step before what they made of their
        pictures. Not so where hooks change weights between steps."""
        has_hooks = any(entry.get("hooks") is not None for cond in conds for entry in cond or ())
        blocks = [] if has_hooks else [block for network in networks if (block := _hint_block(network)) is not None]
        replaced = [ReplacedForward(block, partial(self._once, block)) for block in blocks]
        try:
            yield
        finally:
            for forward in reversed(replaced):
                forward.restore()

    def _once(self, block: nn.Module, forward: Any, hint: Tensor, *embedding_and_context: Any) -> Tensor:
        # Convolutions have no use for the other arguments, which are new at every step.
        def compute(hint: Tensor) -> Tensor:
            return forward(hint, *embedding_and_context)

        self._of = [(of, reuse) for of, reuse in self._of if reuse.nbytes]  # the others' pictures are gone
        for of, reuse in self._of:
            if of is block and reuse.is_of_run(hint):
                return reuse(block, hint, compute)
        reuse = Reuse(max(MAX_BYTES - self.nbytes, 0), inference=True, layers=_LAYERS)
        reuse.begin(hint)
        self._of.append((block, reuse))
        return reuse(block, hint, compute)


def _hint_block(network: nn.Module) -> nn.Module | None:
    """The convolutions; None for networks that are not the host's own, or compiled, or have weights patched on the
    fly."""
    block = getattr(network, "input_hint_block", None)
    if type(network) is not comfy.cldm.cldm.ControlNet or not isinstance(block, nn.Sequential):
        return None
    for module in (network, *block.modules()):
        if getattr(module, "_compiled_call_impl", None) is not None or getattr(module, "weight_function", None):
            return None
    return block
