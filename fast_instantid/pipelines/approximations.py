"""Optional approximations, which change the picture; docs/approximations.md gives the cost in likeness.

Nothing else in this package changes the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch

from ..errors import BackendError, FastInstantIDError

_ALWAYS = (0.0, 1.0)


@dataclass(frozen=True)
class Approximations:
    """Parts of the computation to skip; none by default.

    A range is a part of the steps of a run, as diffusers' ``control_guidance_start`` and ``control_guidance_end``: step
    i of n is in it if ``start <= i / n`` and ``(i + 1) / n <= end``.

    Args:
        layers: names of UNet modules whose cross-attention layers get the identity branch. ``["down_blocks",
            "up_blocks"]`` are the 60 layers of ComfyUI's Apply nodes, ``["up_blocks.0"]`` has 30; None is all 70.
        identity_range: steps with an identity branch.
        identity_net_range: steps with an IdentityNet.
        identity_net_every: run the IdentityNet in every n-th step, and use its last output in the others.

    Raises:
        FastInstantIDError: no layers, a range outside of 0..1, or an invalid number of steps.
    """

    layers: Sequence[str] | None = None
    identity_range: tuple[float, float] = _ALWAYS
    identity_net_range: tuple[float, float] = _ALWAYS
    identity_net_every: int = 1

    def __post_init__(self) -> None:
        layers: object = self.layers  # untyped code may pass anything
        if layers is not None and (isinstance(layers, str) or not self.layers):
            raise FastInstantIDError(f"layers {layers!r}: expected names of modules, such as ['up_blocks'], or None")
        for name in ("identity_range", "identity_net_range"):
            value: Any = getattr(self, name)
            is_pair = isinstance(value, (tuple, list)) and len(value) == 2
            is_pair = is_pair and all(isinstance(number, Real) for number in value)
            if not is_pair or not 0 <= value[0] < value[1] <= 1:  # also refuses NaN
                raise FastInstantIDError(
                    f"{name.replace('_', ' ')} {value!r}: expected start and end, 0 <= start < end <= 1"
                )
        every: object = self.identity_net_every
        if not isinstance(every, Integral) or isinstance(every, bool) or not 1 <= every <= 1000:
            raise FastInstantIDError(f"identity net every {every!r} steps: expected 1 to 1000")

    @property
    def vary_by_step(self) -> bool:
        """Whether the computation differs between steps."""
        return self.is_sparse or tuple(self.identity_range) != _ALWAYS

    @property
    def is_sparse(self) -> bool:
        """Whether the IdentityNet skips steps."""
        return self.identity_net_every > 1 or tuple(self.identity_net_range) != _ALWAYS

    def selected(self, names: Sequence[str]) -> list[int]:
        """Return the indices of the layers with the identity branch; ``names`` are those of all layers.

        Raises:
            BackendError: a name in ``layers`` has no cross-attention; lists the modules that have.
        """
        if self.layers is None:
            return list(range(len(names)))
        chosen: set[int] = set()
        for wanted in self.layers:
            inside = [i for i, name in enumerate(names) if f"{name}.".startswith(f"{wanted}.")]
            chosen.update(inside)
            if not inside:
                blocks = sorted({".".join(name.split(".")[: 1 if name.startswith("mid") else 2]) for name in names})
                raise BackendError(f"no cross-attention layer is in {wanted!r}: those of this UNet are in {blocks}")
        return sorted(chosen)


EXACT = Approximations()
FAST = Approximations(layers=("down_blocks", "up_blocks"), identity_net_every=4)
"""The set that costs less than 0.01 of likeness on the miniature; docs/approximations.md says what it saves."""


class Steps:
    """Counter of a run's steps. New timesteps of the scheduler start a run, a call of the UNet ends a step."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._timesteps: Any = None  # a strong reference: no other tensor can have its address
        self._step = 0
        self.run = 0
        """Number of runs so far."""

    def now(self) -> int:
        """Return the index of the current step, from 0."""
        timesteps = getattr(getattr(self._pipe, "scheduler", None), "timesteps", None)
        if timesteps is not self._timesteps:
            self._timesteps, self._step, self.run = timesteps, 0, self.run + 1
        return self._step

    def end(self) -> None:
        """Count a call of the UNet."""
        self._step = self.now() + 1

    def in_range(self, part: tuple[float, float]) -> bool:
        """Whether the current step is in a range of :class:`Approximations`."""
        if tuple(part) == _ALWAYS:
            return True
        step, total = self.now(), getattr(self._pipe, "num_timesteps", None)
        if not total:
            raise BackendError(f"{type(self._pipe).__name__} has no num_timesteps: use no range with it")
        return part[0] <= step / total and (step + 1) / total <= part[1]


class HeldResiduals:
    """The IdentityNet's last output, reused as :class:`Approximations` say.

    It takes 107 MB at 1024 x 1024 with guidance, in half precision.
    """

    def __init__(self, steps: Steps, approximations: Approximations) -> None:
        self._steps = steps
        self._every = approximations.identity_net_every
        self._last: tuple[int, tuple[Any, ...], Any] | None = None  # step, kind of call, output

    def clear(self) -> None:
        """Drop the output."""
        self._last = None

    def __call__(self, run: Callable[[], tuple[Any, torch.Tensor]], kwargs: Mapping[str, Any]) -> Any:
        """Return the output of ``run()`` or the last one. ``kwargs`` are the IdentityNet's arguments in ``run``."""
        if self._every == 1:
            return run()
        step, sample = self._steps.now(), kwargs["sample"]
        # Pipelines may change the strength within a run, and the output includes it.
        options = [kwargs.get(name) for name in ("conditioning_scale", "guess_mode")]
        call = self._steps.run, sample.shape, sample.device, sample.dtype, options
        if self._last is None or self._last[1] != call or not 0 < step - self._last[0] < self._every:
            self._last = step, call, run()
        down, mid = self._last[2]
        return down, mid.clone()  # pipelines with several ControlNets write into it
