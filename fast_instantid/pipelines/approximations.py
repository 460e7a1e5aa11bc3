"""Less work for another picture, off unless asked for. docs/approximations.md says what each costs in likeness.

Everything else in this package leaves the picture as it is. What is in here does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import BackendError, FastInstantIDError

_ALWAYS = (0.0, 1.0)


@dataclass(frozen=True)
class Approximations:
    """What to leave out. The defaults leave out nothing.

    A range is a part of the steps of a run, as diffusers' ``control_guidance_start`` and ``control_guidance_end``: step
    i of n is in it if ``start <= i / n`` and ``(i + 1) / n <= end``.

    Args:
        layers: cross-attention layers of the UNet that get the identity branch, by the names of modules that they are
            in: ``["down_blocks", "up_blocks"]`` are the 60 that the Apply nodes of ComfyUI act on, ``["up_blocks.0"]``
            has 30; None is all 70.
        identity_range: steps with an identity branch.
        identity_net_range: steps with an IdentityNet, which does not run in the others.
        identity_net_every: run the IdentityNet in each such step only, and use what it said again in the steps between.

    Raises:
        FastInstantIDError: no layers, a range that is none in 0..1, or a number of steps that is none.
    """

    layers: Sequence[str] | None = None
    identity_range: tuple[float, float] = _ALWAYS
    identity_net_range: tuple[float, float] = _ALWAYS
    identity_net_every: int = 1

    def __post_init__(self) -> None:
        layers: object = self.layers  # whatever somebody gave
        if layers is not None and (isinstance(layers, str) or not self.layers):
            raise FastInstantIDError(f"layers {layers!r}: expected names of modules, such as ['up_blocks'], or None")
        for name in ("identity_range", "identity_net_range"):
            value: Any = getattr(self, name)
            numbers = [number for number in value if isinstance(number, (int, float))] if _is_sequence(value) else []
            if len(numbers) != 2 or len(value) != 2 or not 0 <= numbers[0] < numbers[1] <= 1:  # also refuses NaN
                raise FastInstantIDError(
                    f"{name.replace('_', ' ')} {value!r}: expected start and end, 0 <= start < end <= 1"
                )
        every: object = self.identity_net_every
        if not isinstance(every, int) or isinstance(every, bool) or not 1 <= every <= 1000:
            raise FastInstantIDError(f"identity net every {every!r} steps: expected 1 to 1000")

    @property
    def depend_on_steps(self) -> bool:
        """Whether steps differ in what they compute."""
        return self.is_sparse or tuple(self.identity_range) != _ALWAYS

    @property
    def is_sparse(self) -> bool:
        """Whether the IdentityNet does not run in every step."""
        return self.identity_net_every > 1 or tuple(self.identity_net_range) != _ALWAYS

    def selected(self, names: Sequence[str]) -> list[int]:
        """Indices of the layers that get the identity branch, of the names of all.

        Raises:
            BackendError: ``layers`` has the name of no module with cross-attention; says which there are.
        """
        if self.layers is None:
            return list(range(len(names)))
        for wanted in self.layers:
            if not any(_is_in(name, wanted) for name in names):
                blocks = sorted({".".join(name.split(".")[: 1 if name.startswith("mid") else 2]) for name in names})
                raise BackendError(f"no cross-attention layer is in {wanted!r}: those of this UNet are in {blocks}")
        return [i for i, name in enumerate(names) if any(_is_in(name, wanted) for wanted in self.layers)]


def _is_sequence(value: object) -> bool:
    return isinstance(value, (tuple, list))


def _is_in(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


EXACT = Approximations()


class Steps:
    """Which step of a run comes now. A run begins where the scheduler has new timesteps, which it makes for each, and a
    step ends with a call of the UNet."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._timesteps: Any = None  # held, so that no other can have its place in memory
        self._step = 0
        self.run = 0
        """Counts the runs."""

    def now(self) -> int:
        """From 0."""
        timesteps = getattr(getattr(self._pipe, "scheduler", None), "timesteps", None)
        if timesteps is not self._timesteps:
            self._timesteps, self._step, self.run = timesteps, 0, self.run + 1
        return self._step

    def end(self) -> None:
        """Count a call of the UNet."""
        self._step = self.now() + 1

    def are_in(self, part: tuple[float, float]) -> bool:
        """Whether this step is in a range of :class:`Approximations`."""
        if tuple(part) == _ALWAYS:
            return True
        step, all_steps = self.now(), getattr(self._pipe, "num_timesteps", None)
        if not all_steps:
            raise BackendError(
                f"{type(self._pipe).__name__} does not say how many steps it takes: use no range with it"
            )
        return part[0] <= step / all_steps and (step + 1) / all_steps <= part[1]


class HeldResiduals:
    """The IdentityNet's output, used again for some steps where :class:`Approximations` say so.

    Holds the last output: at 1024 x 1024 with guidance and in half precision, 107 MB.
    """

    def __init__(self, steps: Steps, approximations: Approximations) -> None:
        self._steps = steps
        self._every = approximations.identity_net_every
        self._last: tuple[int, tuple[Any, ...], Any] | None = None  # step, kind of call, output

    def clear(self) -> None:
        """Hold nothing."""
        self._last = None

    def __call__(self, run: Callable[[], tuple[Any, torch.Tensor]], kwargs: Mapping[str, Any]) -> Any:
        """The output of ``run()``, now or from before. ``kwargs`` are those of the call that ``run`` makes."""
        if self._every == 1:
            return run()
        step, sample = self._steps.now(), kwargs["sample"]
        # Pipelines may change the strength within a run, and it is a part of the output.
        options = [kwargs.get(name) for name in ("conditioning_scale", "guess_mode")]
        call = self._steps.run, sample.shape, sample.device, sample.dtype, options
        if self._last is None or self._last[1] != call or not 0 < step - self._last[0] < self._every:
            self._last = step, call, run()
        down, mid = self._last[2]
        return down, mid.clone()  # pipelines with several ControlNets write into it
