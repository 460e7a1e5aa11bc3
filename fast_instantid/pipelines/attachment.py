"""The people attached to pipelines. A person travels with the call, in any number of threads and tasks.

While people are attached to a pipeline, its class is a subclass made for it alone (torch.nn.utils.parametrize does the
same to modules). The subclass's ``__call__`` finds the innermost attachment of the calling thread or task; the networks
ask for it when they run. A pipeline of diffusers cannot serve two calls at once, and pipelines of one UNet often share
a scheduler. So calls of attached pipelines that share a UNet wait for each other.
"""

from __future__ import annotations

import functools
import inspect
import threading
import warnings
import weakref
from collections.abc import Collection, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from ..errors import BackendError, FastInstantIDError
from ..locks import fork_safe_lock
from ..recorder import stage_of
from .drawing import Drawing
from .halves import IdentityNetHalf, UNetHalf, entry_point
from .processors import checked_pictures, seen_crop


class _Own:
    """A marker of one attachment. The context that attached and its copies hold it, so it lives as long as they do."""

    def __init__(self, drawing: Drawing) -> None:
        self.drawing = weakref.ref(drawing)


_own: ContextVar[tuple[_Own, ...]] = ContextVar("fast_instantid_own", default=())
"""Attachments of this thread or task, innermost last, with those that another context detached."""
_running: ContextVar[Drawing | None] = ContextVar("fast_instantid_running", default=None)
"""The people of the pipeline call that runs in this thread or task."""

_lock = fork_safe_lock()  # guards what is attached to what
_halves: weakref.WeakKeyDictionary[nn.Module, weakref.ref[UNetHalf | IdentityNetHalf]] = weakref.WeakKeyDictionary()
_turns: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()  # a lock for each UNet

_INSTANTX = {
    "image_embeds": "give the person to attached(), or call instantid(prompt, person)",
    "ip_adapter_scale": "give scale= to attached(), or set instantid.scale",
}


class Attachments:
    """The attachments of one pipeline. The pipeline's class holds them, so they are freed with the pipeline."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = weakref.ref(pipe)
        self.drawings: list[Drawing] = []
        self.ended: weakref.WeakKeyDictionary[_Own, Drawing] = weakref.WeakKeyDictionary()
        """Attachments that one context detached and others still hold: calls of those are refused."""
        self._hooks: list[RemovableHandle] = []

    @classmethod
    def of(cls, pipe: Any) -> Attachments | None:
        """Return the attachments of a pipeline; None without any, as in a copy of an attached pipeline."""
        found: Attachments | None = vars(type(pipe)).get("_fast_instantid")
        return found if found is not None and found._pipe() is pipe else None

    def for_this_call(self) -> Drawing | None:
        """Return the innermost attachment of this thread or task, or else the only one for all threads.

        Raises:
            BackendError: others are attached, and this context attached nothing; or its own people were detached by
                another context.
        """
        if own := _own_of(self._pipe()):
            _refuse_if_ended(own[-1])
            return own[-1]
        with _lock:
            self.unwrap_if_unused()
            lasting = [drawing for drawing in self.drawings if drawing.block is None and drawing.is_for_all]
            if not self.drawings:
                return None
            # The cells of a notebook are tasks, each over at its end. A later one attaches on top of an earlier one.
            over = all(drawing.own() is None for drawing in lasting)
            if len(lasting) == 1 or (over and len({drawing.thread for drawing in lasting}) == 1):
                return lasting[-1]
        raise BackendError(
            f"{type(self._pipe()).__name__} draws other people in another thread or task, and no person is attached in "
            "this one: attach where the pipeline is called, or call instantid(prompt, person)"
        )

    def add_hooks(self, networks: Collection[Any]) -> None:
        """Record calls of the pipeline's other parts as stages."""
        if not self._hooks:
            for part, name in _parts(self._pipe()).items():
                if part not in networks:
                    self._hooks += stage_of(part, name)

    def unwrap_if_unused(self) -> None:
        """Restore the pipeline's class if nothing is attached and no context has to be refused."""
        pipe = self._pipe()
        if pipe is not None and not self.drawings and not self.ended and Attachments.of(pipe) is self:
            for hook in self._hooks:
                hook.remove()
            pipe.__class__ = type(pipe).__base__


def attach(drawing: Drawing) -> None:
    """Make the pipeline draw these people in this thread or task and, outside of a block, in all others."""
    with _lock:
        try:
            attachments = Attachments.of(drawing.pipe) or _wrap(drawing.pipe)
            attachments.drawings.append(drawing)
            attachments.add_hooks(drawing.owner.networks())
            _inject(drawing)
            own = _Own(drawing)
            drawing.own = weakref.ref(own)
            _own.set((*_own.get(), own))
            del own  # the traceback of an interrupt that comes while the lock is released would keep it
        except BaseException:  # also an interrupt between two lines
            _detach(drawing, interrupted=True)
            raise


def detach(drawing: Drawing) -> None:
    """Undo :func:`attach`. The last call leaves pipeline and networks as they were. Idempotent.

    Other contexts that hold the attachment as their own are refused until they attach or detach themselves.
    """
    try:
        _detach(drawing)
    except BaseException:
        _detach(drawing, interrupted=True)
        raise


def _detach(drawing: Drawing, interrupted: bool = False) -> None:
    """Detach, or complete it. After an interrupt, the traceback holds the marker as another context would."""
    _own.set(tuple(own for own in _own.get() if own.drawing() not in (None, drawing)))
    with _lock:
        drawing.end_run()
        drawing.ended_by = drawing.ended_by or threading.get_ident()
        attachments = Attachments.of(drawing.pipe)
        if attachments is None:
            return
        if drawing in attachments.drawings:
            _eject(drawing)
            if not interrupted and (own := drawing.own()) is not None:
                attachments.ended[own] = drawing
                del own
            attachments.drawings.remove(drawing)
        if interrupted:
            for own in [own for own, ended in attachments.ended.items() if ended is drawing]:
                del attachments.ended[own]
        attachments.unwrap_if_unused()


def end_block(owner: Any, block: object) -> None:
    """Detach what an InstantID has attached for a block. Idempotent."""
    for drawing in attached_for(owner, block):
        detach(drawing)


def end_ownerless(owner: Any) -> None:
    """Detach the people that an InstantID attached for all in threads and tasks that have ended."""
    with _lock:
        for drawing in attached_for(owner):
            if drawing.own() is None:
                detach(drawing)


def end_for_all(owner: Any) -> None:
    """End what an InstantID attached for all. Threads and tasks keep what they attached themselves."""
    end_ownerless(owner)
    for drawing in attached_for(owner):
        drawing.is_for_all = False


def innermost(owner: Any) -> Drawing | None:
    """Return the last attachment of an InstantID in this thread or task. Another context may have ended it."""
    return next((drawing for drawing in reversed(_own_of(owner.pipe)) if drawing.owner is owner), None)


def attached_now(owner: Any) -> Drawing:
    """Return the attachment that an InstantID draws in this thread or task: its own, or else the one for all.

    Raises:
        FastInstantIDError: there is none, or not only one for all, or another context detached it.
    """
    own, lasting = innermost(owner), [drawing for drawing in attached_for(owner) if drawing.is_for_all]
    if own is None and len(lasting) != 1:
        raise FastInstantIDError("no person is attached in this thread or task: set scale after attach()")
    drawing = own or lasting[0]
    _refuse_if_ended(drawing)
    return drawing


def attached_for(owner: Any, block: object = None) -> list[Drawing]:
    """Return an InstantID's attachments of all threads: those of one block, or those without a block."""
    attachments = Attachments.of(owner.pipe)
    drawings = [] if attachments is None else attachments.drawings
    return [drawing for drawing in drawings if drawing.owner is owner and drawing.block is block]


def current(model: nn.Module) -> Drawing | None:
    """Return the people for a call of this UNet or IdentityNet. Outside of a pipeline's call, those that this thread or
    task attached."""
    own = [drawing for own in _own.get() if (drawing := own.drawing()) is not None]
    running = _running.get()
    if running is None:
        return next((drawing for drawing in reversed(own) if drawing.has(model)), None)
    # A callback may have attached or detached since the call began.
    drawing = next((drawing for drawing in reversed(own) if drawing.pipe is running.pipe), running)
    return drawing if drawing.has(model) else None


def _own_of(pipe: Any) -> list[Drawing]:
    """Return the attachments of this thread or task to a pipeline, innermost last."""
    drawings = (own.drawing() for own in _own.get())
    return [drawing for drawing in drawings if drawing is not None and drawing.pipe is pipe]


def _refuse_if_ended(drawing: Drawing) -> None:
    if drawing.ended_by is not None:
        raise BackendError(
            "the people attached in this thread or task were detached in another one: attach them again, or call "
            "detach() here too for pictures without them"
        )


def _wrap(pipe: Any) -> Attachments:
    base = type(pipe)

    @functools.wraps(base.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        attachments = Attachments.of(self)
        drawing = None if attachments is None else attachments.for_this_call()
        if drawing is None:
            return base.__call__(self, *args, **kwargs)
        for name, instead in _INSTANTX.items():
            if kwargs.get(name) is not None:
                caller = inspect.currentframe().f_back.f_globals["__name__"]  # pyright: ignore[reportOptionalMemberAccess]
                level = 2 + caller.startswith(f"{__package__}.")  # the facade's caller
                warnings.warn(f"{name}= of InstantX's pipeline has no effect here: {instead}", stacklevel=level)
        with turn_of(self), _run(drawing):
            return base.__call__(self, *args, **kwargs)

    attachments = Attachments(pipe)
    members = {"__call__": call, "__module__": base.__module__, "__qualname__": base.__qualname__}
    pipe.__class__ = type(base.__name__, (base,), {**members, "_fast_instantid": attachments})
    return attachments


@contextmanager
def _run(drawing: Drawing) -> Generator[None]:
    """Wrap one call of the pipeline. A ModelFileError if the people do not fit networks that were exchanged since."""
    with _lock:
        _refuse_if_ended(drawing)
        before = [(half.model, half.entry) for half in drawing.halves]
        now = [(getattr(entry, "_orig_mod", entry), entry_point(entry)) for entry in drawing.owner.networks()]
        if before != now:  # exchanged or compiled since
            drawing.owner.check(drawing.identities)
            _eject(drawing)
            _inject(drawing)
    outside = _running.get()
    try:
        _running.set(drawing)
        with seen_crop(drawing), checked_pictures(drawing.pipe):
            yield
        if drawing.ended_by not in (None, threading.get_ident()):  # a callback of this call may do so
            _refuse_if_ended(drawing)
    finally:
        try:
            drawing.end_run()
        finally:
            _running.set(outside)


def turn_of(pipe: Any) -> Any:
    """Return the lock of the calls that run a pipeline's UNet."""
    with _lock:
        return _turns.setdefault(getattr(pipe.unet, "_orig_mod", pipe.unet), fork_safe_lock())


def _inject(drawing: Drawing) -> None:
    for kind, entry in zip((UNetHalf, IdentityNetHalf), drawing.owner.networks(), strict=False):
        model = getattr(entry, "_orig_mod", entry)
        half = _halves[model]() if model in _halves else None
        if half is None:
            half = kind(model, current)
            _halves[model] = weakref.ref(half)
        drawing.halves.append(half)
        half.use(drawing, entry_point(entry))


def _eject(drawing: Drawing) -> None:
    for half in drawing.halves:
        half.release(drawing)
    drawing.halves.clear()


def _parts(pipe: Any) -> dict[nn.Module, str]:
    """Return the other networks of a pipeline, with their names in a recording."""
    controlnet, vae = getattr(pipe, "controlnet", None), getattr(pipe, "vae", None)
    # Pipelines call encode and decode of the VAE, which no hook sees.
    parts = {getattr(vae, "encoder", None): "VAE encode", getattr(vae, "decoder", None): "VAE decode"}
    parts |= {getattr(pipe, f"text_encoder{n}", None): f"text encoder{n}".replace("_", " ") for n in ("", "_2")}
    parts |= dict.fromkeys(getattr(controlnet, "nets", [controlnet]), "ControlNet")
    return {model: name for model, name in parts.items() if isinstance(model, nn.Module)}
