"""The two halves of InstantID in networks of diffusers (Wang et al. 2024, "InstantID: Zero-shot Identity-Preserving
Generation in Seconds", 3.3 and 3.4).

Decoupled cross-attention acts in the UNet. The IdentityNet is a ControlNet that reads identity tokens in place of the
prompt. Each half is injected into one network and ejected again, as exact inverses. At each call it asks ``current``
for the people of this call. A call without people is unchanged. So a network may serve several requests.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.controlnets.controlnet import ControlNetModel, ControlNetOutput
from torch import Tensor, nn

from ..locks import fork_safe_lock
from ..recorder import stage
from ..reuse import ReplacedForward
from .cross_attention import CrossAttention, Evaluation, cross_attention_layers, is_plain
from .drawing import Drawing

Current = Callable[[nn.Module], "Drawing | None"]
"""Returns the people for a call of this network; None without people."""

EntryPoint = tuple[nn.Module, str]
"""Module and attribute through which the calls of a network go, outside of code that torch compiled."""

_NAMES = tuple(inspect.signature(ControlNetModel.forward).parameters)[1:]


def entry_point(network: Any) -> EntryPoint:
    """Return the entry point of a network, or of torch.compile's wrapper around it."""
    return network, "forward" if getattr(network, "_compiled_call_impl", None) is None else "_compiled_call_impl"


class _Half:
    """The replaced forwards of one network; ``layers`` are the cross-attention layers to replace."""

    def __init__(self, model: Any, current: Current, layers: Iterable[Attention]) -> None:
        self.model, self.entry = model, entry_point(model)
        self._current = current
        self._evaluation = Evaluation()
        self._layers = [CrossAttention(layer, i, self._evaluation) for i, layer in enumerate(layers)]
        self._forwards: list[ReplacedForward] = []
        self._users: list[Drawing] = []
        self._turn = fork_safe_lock()  # one call at a time: the layers read what belongs to it

    def use(self, drawing: Drawing, entry: EntryPoint) -> None:
        """Inject at the network's present entry point, until :meth:`release`."""
        self._users.append(drawing)
        if entry != self.entry or len(self._users) == 1:
            self.entry = entry
            self.inject()

    def release(self, drawing: Drawing) -> None:
        """Undo :meth:`use`. The last release leaves the network as it was. Idempotent."""
        if drawing in self._users:
            self._users.remove(drawing)
        if not self._users:
            self.eject()
        elif not self._forwards:  # an interrupt came while another user injected it anew
            self.inject()

    def inject(self) -> None:
        """Replace the forwards of the network and of its layers, in place of a replacement before."""
        with self._turn:
            self.eject()
            try:
                self._forwards = self._replacements()
                for forward in self._forwards:
                    forward.replace()
            except BaseException:
                self.eject()
                raise

    def _replacements(self) -> list[ReplacedForward]:
        of_layers = [ReplacedForward(layer.attn, layer.forward) for layer in self._layers]
        return [*of_layers, ReplacedForward(self.entry[0], self._call, self.entry[1])]

    def eject(self) -> None:
        """Undo :meth:`inject`. Idempotent."""
        with self._turn:
            for forward in reversed(self._forwards):
                forward.restore()
            self._forwards = []

    def _call(self, before: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._turn, stage(self.name):
            drawing = self._current(self.model)
            self._evaluation.clear()
            try:
                return before(*args, **kwargs) if drawing is None else self._draw(drawing, before, args, kwargs)
            finally:
                if not torch.is_grad_enabled():  # gradient checkpointing runs the layers again
                    self._evaluation.clear()

    name: str

    def _draw(self, drawing: Drawing, before: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        raise NotImplementedError


class UNetHalf(_Half):
    """The identity branch in the cross-attention layers of a UNet."""

    name = "UNet"

    def __init__(self, unet: Any, current: Current) -> None:
        super().__init__(unet, current, cross_attention_layers(unet).values())

    def _draw(self, drawing: Drawing, before: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        drawing.begin_unet(self.model, self._evaluation, args, kwargs)
        result = before(*args, **kwargs)
        drawing.steps.end()
        return result


class IdentityNetHalf(_Half):
    """A ControlNet that reads identity tokens, reuses constant results during a run, and does not run at scale 0."""

    name = "IdentityNet"

    def __init__(self, net: Any, current: Current) -> None:
        super().__init__(net, current, filter(is_plain, cross_attention_layers(net).values()))

    def _replacements(self) -> list[ReplacedForward]:
        """The forward of the convolutions over the keypoint picture too."""
        return [ReplacedForward(self.model.controlnet_cond_embedding, self._hint), *super()._replacements()]

    def _draw(self, drawing: Drawing, before: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        kwargs |= dict(zip(_NAMES, args, strict=False))
        return_dict = kwargs.pop("return_dict", True)
        drawing.begin_identity_net(self.model, self._evaluation, kwargs)
        down, mid = drawing.residuals(self.model, before, kwargs)
        return ControlNetOutput(down, mid) if return_dict else (down, mid)

    def _hint(self, before: Callable[..., Tensor], conditioning: Tensor) -> Tensor:
        """Return the output of the convolutions over the full-size keypoint picture, computed once per run."""
        reuse = self._evaluation.reuse
        if reuse is None:
            return before(conditioning)
        return reuse(self.model.controlnet_cond_embedding, conditioning, before)
