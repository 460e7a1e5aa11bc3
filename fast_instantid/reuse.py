"""Module calls that give the same result at every step of a run, made once: see docs/adr/0013-once-per-run.md.

A result is found again only by the very tensor it was made of, unchanged, and the very weights, unchanged; never by
content, address or name. It is dropped with the run, at the latest when that tensor is.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MAX_BYTES = 256 * 2**20
"""Of the results of one network. The keys and values of SDXL's text take 51 MB in half precision, for one picture with
guidance and 77 tokens; what does not fit is computed at every step, as without."""

_PLAIN = (nn.Linear, nn.Conv2d, nn.SiLU, nn.Sequential, nn.ModuleList)


class Reuse:
    """What the modules of one network made of tensors that last for a run.

    Args:
        max_bytes: of all results together.
        inference: take tensors of inference mode too, of which torch counts no writes: where the host writes to none.
        layers: kinds of layers of the host's that compute what torch's own do.
    """

    def __init__(
        self, max_bytes: int = MAX_BYTES, *, inference: bool = False, layers: tuple[type[nn.Module], ...] = ()
    ) -> None:
        self._max_bytes = max_bytes
        self._inference = inference
        self._layers = (*_PLAIN, *layers)
        self._run: list[_Unchanged] = []
        self._kept: dict[nn.Module, _Result] = {}
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        """Of the results that are held now."""
        return self._bytes

    def begin(self, *tensors: Tensor | None) -> None:
        """Say what the coming evaluation of the network is given. A run lasts while these tensors are the same, and
        nobody has written to them; what was kept for others is dropped. With a None among them nothing is kept.
        """
        if torch.compiler.is_compiling():
            return
        if len(tensors) == len(self._run) and all(map(_Unchanged.is_still, self._run, tensors)):
            return
        self.clear()
        if all(map(self._is_traceable, tensors)):
            forget = _clear_weakly(self)
            self._run = [_Unchanged(tensor, forget) for tensor in tensors if tensor is not None]

    def clear(self) -> None:
        """Hold nothing."""
        self._run.clear()
        self._kept.clear()
        self._bytes = 0

    def __call__(self, module: nn.Module, input: Tensor, forward: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """``module(input)``, kept if ``input`` is one of the run's tensors, and nothing but it and the module's own
        weights can have a part in the result: not while torch compiles, records gradients or autocasts, nor for modules
        that a LoRA, hooks, offloading or quantisation act on.

        Args:
            forward: the module's own, where it was replaced by a call of this. The caller vouches for it that it reads
                nothing but ``input``.
        """
        compute = forward or module
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or not self.is_of_run(input):
            return compute(input)
        kept = self._kept.get(module)
        may_keep = self._is_plain(module, forward) and not _autocasts(input)
        if kept is not None and may_keep and kept.holds(module, input):
            return kept.value
        self._drop(module)
        value = compute(input)
        if may_keep and self._is_traceable(value):
            self._keep(module, input, value)
        return value

    def is_of_run(self, input: Tensor) -> bool:
        """Whether it is one of the tensors of ``begin``, and nobody has written to it."""
        return any(tensor.is_still(input) for tensor in self._run)

    def _is_traceable(self, tensor: Tensor | None) -> bool:
        """Whether torch counts what is written to it. It does not in inference mode, nor for all subclasses."""
        if tensor is None or type(tensor) not in (Tensor, nn.Parameter):
            return False
        return self._inference or not tensor.is_inference()

    def _is_plain(self, module: nn.Module, forward: object) -> bool:
        """Whether a call of it is what its class says, made of its weights as they are. A layer with a LoRA or
        quantised weights is of another class, an offloaded one has a ``forward`` of its own."""
        for part in module.modules():
            if vars(part)["_forward_hooks"] or vars(part)["_forward_pre_hooks"]:
                return False
            is_vouched_for = part is module and forward is not None
            if not is_vouched_for and (type(part) not in self._layers or "forward" in vars(part)):
                return False
        return True

    def _keep(self, module: nn.Module, input: Tensor, value: Tensor) -> None:
        fits = self._bytes + value.nbytes <= self._max_bytes
        if fits and all(map(self._is_traceable, module.parameters())):
            self._kept[module] = _Result(module, input, value)
            self._bytes += value.nbytes

    def _drop(self, module: nn.Module) -> None:
        dropped = self._kept.pop(module, None)
        self._bytes -= 0 if dropped is None else dropped.value.nbytes


class ReplacedForward:
    """A module whose calls go through a function of ours, until :meth:`restore`.

    A deep copy of the module runs what was there before.

    Args:
        module: whose calls.
        replacement: called as ``replacement(before, *args, **kwargs)``; ``before`` is the ``forward`` that was there.
        attribute: of the module; ``_compiled_call_impl`` is what ``Module.compile`` sets and calls in place of
            ``forward``.
    """

    def __init__(self, module: nn.Module, replacement: Callable[..., Any], attribute: str = "forward") -> None:
        self._module, self._replacement, self._attribute = module, replacement, attribute
        self._own = vars(module).get(attribute)  # offloading puts one there; else it is the class's
        self._before: Callable[..., Any] = getattr(module, attribute)
        self._is_on = True
        setattr(module, attribute, self._call)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        if self._is_on:
            return self._replacement(self._before, *args, **kwargs)
        return self._before(*args, **kwargs)

    def restore(self) -> None:
        """Undo the replacement. Where another wrapper was put around it since, that one stays and calls ``before``."""
        self._is_on = False
        if vars(self._module).get(self._attribute) == self._call:
            delattr(self._module, self._attribute)
            if self._own is not None:
                setattr(self._module, self._attribute, self._own)

    def __deepcopy__(self, memo: dict[int, Any]) -> ReplacedForward:
        copied = memo[id(self)] = object.__new__(type(self))
        copied._module, copied._own = copy.deepcopy((self._module, self._own), memo)
        copied._before, copied._attribute = copy.deepcopy(self._before, memo), self._attribute
        copied._is_on, copied._replacement = False, None
        return copied


class _Unchanged:
    """A tensor, and whether it is still what it was: the same object, to which nobody has written since.

    torch counts writes, but not those through ``tensor.data``.
    """

    __slots__ = ("_ref", "_state")

    def __init__(self, tensor: Tensor, at_end: Callable[[Any], None] | None = None) -> None:
        self._ref = weakref.ref(tensor, at_end)
        self._state = _state(tensor)

    def is_still(self, tensor: Tensor | None) -> bool:
        return tensor is not None and self._ref() is tensor and self._state == _state(tensor)


class _Result:
    __slots__ = ("_input", "_unwritten", "_weights", "value")

    def __init__(self, module: nn.Module, input: Tensor, value: Tensor) -> None:
        self.value = value
        self._input, self._unwritten = _Unchanged(input), _Unchanged(value)
        self._weights = [_Unchanged(weight) for weight in module.parameters()]

    def holds(self, module: nn.Module, input: Tensor) -> bool:
        weights = list(module.parameters())
        return (
            self._input.is_still(input)
            and self._unwritten.is_still(self.value)
            and len(weights) == len(self._weights)
            and all(map(_Unchanged.is_still, self._weights, weights))
        )


def _state(tensor: Tensor) -> tuple[Any, ...]:
    version = None if tensor.is_inference() else tensor._version
    return version, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _autocasts(tensor: Tensor) -> bool:
    try:
        return torch.is_autocast_enabled(tensor.device.type)
    except TypeError:  # torch before 2.4
        return torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled()


def _clear_weakly(reuse: Reuse) -> Callable[[Any], None]:
    """``clear``, for when a tensor dies; it does not keep alive what it would clear."""
    ref = weakref.ref(reuse)

    def clear(_: Any) -> None:
        if (alive := ref()) is not None:
            alive.clear()

    return clear
