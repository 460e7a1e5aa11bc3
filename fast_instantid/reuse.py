"""Reuse of module calls that give the same result at every step of a run (docs/adr/0013-once-per-run.md).

A cache hit needs the same input tensor object and the same weights, none of them written to since; content, address
and name do not count. Results are dropped with the run, at the latest when an input tensor dies.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .placement import autocasts, numeric_settings

MAX_BYTES = 256 * 2**20
"""Bound for the results of one network; further results are computed at every step. Keys and values of SDXL's text take
51 MB in half precision, for one picture with guidance and 77 tokens."""


class Reuse:
    """Cached results of one network's modules for inputs that are constant during a run.

    Args:
        max_bytes: bound for all results together.
        inference: reuse results of inference-mode tensors too. torch does not version these, so enable it only if the
            host never writes to them in-place.
        layers: layer classes of the host that compute the same as torch's.
    """

    def __init__(
        self, max_bytes: int = MAX_BYTES, *, inference: bool = False, layers: tuple[type[nn.Module], ...] = ()
    ) -> None:
        self._max_bytes = max_bytes
        self._inference = inference
        self._layers = (nn.Linear, nn.Conv2d, nn.SiLU, nn.Sequential, nn.ModuleList, *layers)
        self._run: list[_Unchanged] = []
        self._results: dict[nn.Module, tuple[Tensor, list[_Unchanged]]] = {}
        """Results, each with marks of the input, of itself and of the weights."""
        self._settings: list[str] = []
        self.nbytes = 0
        """Bytes of all cached results."""

    def begin(self, *tensors: Tensor | None) -> None:
        """Declare the constant inputs of the next evaluation; other or written ones, or other settings of
        torch, start a new run.

        Nothing is cached if one of them is None.
        """
        if torch.compiler.is_compiling():
            return
        before, self._settings = self._settings, numeric_settings()
        if _are_still(self._run, tensors) and before == self._settings:
            return
        self.clear()
        if all(map(self._is_traceable, tensors)):
            self_ref = weakref.ref(self)

            def clear(_: Any) -> None:
                if (reuse := self_ref()) is not None:
                    reuse.clear()

            self._run = [_Unchanged(tensor, clear) for tensor in tensors if tensor is not None]

    def clear(self) -> None:
        """Drop all results and end the run."""
        self._run.clear()
        self._results.clear()
        self.nbytes = 0

    def __call__(self, module: nn.Module, input: Tensor, forward: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return ``module(input)``, from the cache if possible.

        Only inputs of the run are cached, and only where the result depends on nothing but them and the module's
        weights. That excludes compilation, gradients and autocast, and modules with a LoRA, hooks, offloading or
        quantisation.

        Args:
            forward: the module's original forward, if a call of this replaced it. It must depend on ``input`` alone.
        """
        compute = forward or module
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or not self.is_of_run(input):
            return compute(input)
        cacheable = self._is_plain(module, forward) and not autocasts(input.device.type)
        if module in self._results:
            value, marks = self._results[module]
            if cacheable and _are_still(marks, (input, value, *module.parameters())):
                return value
            del self._results[module]
            self.nbytes -= value.nbytes
        value = compute(input)
        made_of = value, *module.parameters()
        fits = self.nbytes + value.nbytes <= self._max_bytes
        if cacheable and fits and all(map(self._is_traceable, made_of)):
            self._results[module] = value, [*map(_Unchanged, (input, *made_of))]
            self.nbytes += value.nbytes
        return value

    def is_of_run(self, input: Tensor) -> bool:
        """Whether ``input`` is one of the tensors of :meth:`begin`, without a write since."""
        return any(tensor.is_still(input) for tensor in self._run)

    def _is_traceable(self, tensor: Tensor | None) -> bool:
        """Whether torch counts the writes to a tensor; not in inference mode, nor for all subclasses."""
        if tensor is None or type(tensor) not in (Tensor, nn.Parameter):
            return False
        return self._inference or not tensor.is_inference()

    def _is_plain(self, module: nn.Module, forward: object) -> bool:
        """Whether a call depends on the module's class and weights alone.

        A layer with a LoRA or quantised weights has another class, an offloaded one its own ``forward``.
        """
        for part in module.modules():
            if vars(part)["_forward_hooks"] or vars(part)["_forward_pre_hooks"]:
                return False
            has_original = part is module and forward is not None
            if not has_original and (type(part) not in self._layers or "forward" in vars(part)):
                return False
        return True


class ReplacedForward:
    """A replacement of a module's ``forward``, from :meth:`replace` until :meth:`restore`.

    Deep copies of the module run the original. Store it before the replacement, so that an interrupt can be undone.

    Args:
        module: the module to change.
        replacement: called as ``replacement(before, *args, **kwargs)``; ``before`` is the original ``forward``.
        attribute: the attribute to replace. ``Module.compile`` sets ``_compiled_call_impl``, which torch then calls in
            place of ``forward``.
    """

    def __init__(self, module: nn.Module, replacement: Callable[..., Any], attribute: str = "forward") -> None:
        self._module, self._replacement, self._attribute = module, replacement, attribute
        self._own = vars(module).get(attribute)  # set by offloading; else the class has it
        self._before: Callable[..., Any] = getattr(module, attribute)
        self._is_active = False

    def replace(self) -> None:
        """Replace the attribute."""
        self._is_active = True
        setattr(self._module, self._attribute, self._call)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        if self._is_active:
            return self._replacement(self._before, *args, **kwargs)
        return self._before(*args, **kwargs)

    def restore(self) -> None:
        """Undo the replacement. Idempotent. A wrapper put around it since stays, and then calls the original."""
        self._is_active = False
        if vars(self._module).get(self._attribute) != self._call:
            return
        if self._own is None:
            delattr(self._module, self._attribute)
        else:
            setattr(self._module, self._attribute, self._own)

    def __deepcopy__(self, memo: dict[int, Any]) -> ReplacedForward:
        copied = memo[id(self)] = object.__new__(type(self))
        copied._module, copied._own = copy.deepcopy((self._module, self._own), memo)
        copied._before, copied._attribute = copy.deepcopy(self._before, memo), self._attribute
        copied._is_active, copied._replacement = False, None
        return copied


@contextmanager
def replaced(forwards: Iterable[ReplacedForward]) -> Generator[None]:
    """Replace for a block of code, and restore after it in reverse."""
    forwards = [*forwards]
    try:
        for forward in forwards:
            forward.replace()
        yield
    finally:
        for forward in reversed(forwards):
            forward.restore()


class _Unchanged:
    """A weak reference to a tensor that notices writes to it, but for those through ``tensor.data``."""

    __slots__ = ("_ref", "_state")

    def __init__(self, tensor: Tensor, at_end: Callable[[Any], None] | None = None) -> None:
        self._ref = weakref.ref(tensor, at_end)
        self._state = _state(tensor)

    def is_still(self, tensor: Tensor | None) -> bool:
        return tensor is not None and self._ref() is tensor and self._state == _state(tensor)


def _are_still(marks: Sequence[_Unchanged], tensors: Sequence[Tensor | None]) -> bool:
    return len(marks) == len(tensors) and all(map(_Unchanged.is_still, marks, tensors))


def _state(tensor: Tensor) -> tuple[Any, ...]:
    version = None if tensor.is_inference() else tensor._version
    return version, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device
