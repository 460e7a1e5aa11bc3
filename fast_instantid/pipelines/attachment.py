"""Which call of which pipeline draws whom. The person travels with the call, in any number of threads and tasks.

While people are attached to a pipeline, its class is a subclass made for it alone (torch.nn.utils.parametrize does the
same to modules). The subclass's ``__call__`` finds the innermost attachment of the calling thread or task; the networks
ask for it when they run. A pipeline of diffusers cannot serve two calls at once, and pipelines of one UNet often share
a scheduler. So calls of attached pipelines that share a UNet wait for each other.
"""

from __future__ import annotations

import functools
import threading
import warnings
import weakref
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import BackendError, NotFiniteError
from ..recorder import stage_of
from ..reuse import ReplacedForward
from .drawing import Crop, Drawing
from .halves import IdentityNetHalf, UNetHalf, entry_point

_own: ContextVar[tuple[weakref.ref[Drawing], ...]] = ContextVar("fast_instantid_own", default=())
"""What this thread or task attached, innermost last."""
_running: ContextVar[Drawing | None] = ContextVar("fast_instantid_running", default=None)
"""For whom the pipeline call draws that is under way in this thread or task."""

_lock = threading.RLock()  # guards what is attached to what
_halves: weakref.WeakKeyDictionary[nn.Module, weakref.ref[UNetHalf | IdentityNetHalf]] = weakref.WeakKeyDictionary()
_turns: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()  # a lock for each UNet

_INSTANTX = {
    "image_embeds": "give the person to attached(), or call instantid(prompt, person)",
    "ip_adapter_scale": "give scale= to attached(), or set instantid.scale",
}


class Attachments:
    """All that is attached to one pipeline. The pipeline's class holds it, so it goes with the pipeline."""

    def __init__(self, pipe: Any, networks: Collection[Any]) -> None:
        self._pipe = weakref.ref(pipe)
        self.drawings: list[Drawing] = []
        others = {part: name for part, name in _parts(pipe).items() if part not in networks}
        self._hooks: list[RemovableHandle] = [hook for part, name in others.items() for hook in stage_of(part, name)]

    @classmethod
    def of(cls, pipe: Any) -> Attachments | None:
        """Those of a pipeline; None where nothing is attached. A copy of an attached pipeline has none."""
        found: Attachments | None = vars(type(pipe)).get("_fast_instantid")
        return found if found is not None and found._pipe() is pipe else None

    def for_this_call(self) -> Drawing | None:
        """The innermost attachment of this thread or task, or else the one that was made for all.

        Raises:
            BackendError: others are attached, and nobody said for whom this call is.
        """
        own = [drawing for ref in _own.get() if (drawing := ref()) is not None and drawing in self.drawings]
        if own:
            return own[-1]
        with _lock:
            lasting = [drawing for drawing in self.drawings if drawing.block is None]
            if 1 in (len({drawing.thread for drawing in lasting}), len({drawing.owner for drawing in lasting})):
                return lasting[-1]
            if not self.drawings:  # detached a moment ago
                return None
        raise BackendError(
            f"{type(self._pipe()).__name__} draws other people in another thread, and nobody is attached in this one: "
            "attach in the thread that calls the pipeline, or call instantid(prompt, person)"
        )

    def remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()


def attach(drawing: Drawing) -> None:
    """Have the pipeline draw these people, for this thread or task and, where it is for no block, for all others."""
    pipe = drawing.pipe
    with _lock:
        attachments = Attachments.of(pipe) or _wrap(pipe, drawing.owner.networks())
        attachments.drawings.append(drawing)
        try:
            _inject(drawing)
        except BaseException:
            detach(drawing)
            raise
    _own.set((*_alive(), weakref.ref(drawing)))


def detach(drawing: Drawing) -> None:
    """Undo :func:`attach`. The last one leaves pipeline and networks as they were. Idempotent."""
    with _lock:
        drawing.end_run()
        attachments = Attachments.of(drawing.pipe)
        if attachments is not None and drawing in attachments.drawings:
            attachments.drawings.remove(drawing)
            _eject(drawing)
            if not attachments.drawings:
                attachments.remove_hooks()
                drawing.pipe.__class__ = type(drawing.pipe).__base__
        drawing.is_over = True
    _own.set(_alive())


def innermost(owner: Any) -> Drawing | None:
    """What an InstantID attached last in this thread or task."""
    own = [drawing for ref in _alive() if (drawing := ref()) is not None and drawing.owner is owner]
    return own[-1] if own else None


def attached_for(owner: Any, block: object = None) -> list[Drawing]:
    """What an InstantID attached, in any thread, for a block of code or, without one, until it is detached."""
    attachments = Attachments.of(owner.pipe)
    drawings = [] if attachments is None else attachments.drawings
    return [drawing for drawing in drawings if drawing.owner is owner and drawing.block is block]


def current(model: nn.Module) -> Drawing | None:
    """For whom a call of this UNet or IdentityNet draws. Calls outside of a pipeline draw what their thread or task
    attached."""
    own = [drawing for ref in _alive() if (drawing := ref()) is not None]
    running = _running.get()
    if running is None:
        return next((drawing for drawing in reversed(own) if drawing.has(model)), None)
    # A callback may have attached or detached since the call began.
    own = [drawing for drawing in own if drawing.pipe is running.pipe] or [running]
    return own[-1] if own[-1].has(model) and not own[-1].is_over else None


def _alive() -> tuple[weakref.ref[Drawing], ...]:
    return tuple(ref for ref in _own.get() if (drawing := ref()) is not None and not drawing.is_over)


def _wrap(pipe: Any, networks: Collection[Any]) -> Attachments:
    base = type(pipe)

    @functools.wraps(base.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        attachments = Attachments.of(self)
        drawing = None if attachments is None else attachments.for_this_call()
        if drawing is None:
            return base.__call__(self, *args, **kwargs)
        for name, instead in _INSTANTX.items():
            if kwargs.get(name) is not None:
                warnings.warn(f"{name}= of InstantX's pipeline has no effect here: {instead}", stacklevel=2)
        with _turn_of(self), _run(drawing):
            return base.__call__(self, *args, **kwargs)

    attachments = Attachments(pipe, networks)
    members = {"__call__": call, "__module__": base.__module__, "__qualname__": base.__qualname__}
    pipe.__class__ = type(base.__name__, (base,), {**members, "_fast_instantid": attachments})
    return attachments


@contextmanager
def _run(drawing: Drawing) -> Generator[None]:
    """One call of the drawing's pipeline.

    Raises:
        ModelFileError: the people do not fit networks that were exchanged since.
    """
    with _lock:
        if not drawing.is_over:
            before = [(half.model, half.entry) for half in drawing.halves]
            now = [(getattr(entry, "_orig_mod", entry), entry_point(entry)) for entry in drawing.owner.networks()]
            if before != now:  # exchanged or compiled since
                drawing.owner.check(drawing.identities)
                _eject(drawing)
                _inject(drawing)
    token = _running.set(drawing)
    try:
        with _seen_crop(drawing), _replaced(drawing.pipe, "image_processor", "postprocess", _checked_postprocess):
            yield
    finally:
        _running.reset(token)
        drawing.end_run()


@contextmanager
def _seen_crop(drawing: Drawing) -> Generator[None]:
    """Tell the drawing which part of the picture an inpainting pipeline draws (``padding_mask_crop``)."""
    drawing.begin_run(None)

    def get_crop_region(measure: Any, mask_image: Any, *args: Any, **kwargs: Any) -> Any:
        box = measure(mask_image, *args, **kwargs)
        width, height = mask_image.size
        crop: Crop = (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
        drawing.begin_run(crop)
        return box

    with _replaced(drawing.pipe, "mask_processor", "get_crop_region", get_crop_region):
        yield


@contextmanager
def _replaced(pipe: Any, part: str, method: str, replacement: Callable[..., Any]) -> Generator[None]:
    """Replace a method of a part of the pipeline, if it has that; called as ``replacement(before, ...)``."""
    owner: Any = getattr(pipe, part, None)
    replaced = ReplacedForward(owner, replacement, method) if hasattr(owner, method) else None
    try:
        yield
    finally:
        if replaced is not None:
            replaced.restore()


def _checked_postprocess(before: Any, image: Any, output_type: str = "pil", *args: Any, **kwargs: Any) -> Any:
    """Refuse NaN and infinity with a NotFiniteError where a PIL picture would hide them; a tensor shows them."""
    if output_type == "pil" and isinstance(image, Tensor):
        finite = image.isfinite().flatten(1).all(1).tolist()  # waits for the GPU, as the conversion to PIL does next
        if not all(finite):
            which = ", ".join(str(i + 1) for i, is_finite in enumerate(finite) if not is_finite)
            raise NotFiniteError(
                f"picture {which} of {len(finite)} holds NaN or infinity, and would be black. In float16 the VAE or "
                "the UNet overflows: use dtype bfloat16 or float32, or a VAE made for float16 (sdxl-vae-fp16-fix). "
                "Else a scale, a LoRA or guidance_scale is too strong, or a file of weights is damaged"
            )
    return before(image, output_type, *args, **kwargs)


def _turn_of(pipe: Any) -> Any:
    with _lock:
        return _turns.setdefault(getattr(pipe.unet, "_orig_mod", pipe.unet), threading.RLock())


def _inject(drawing: Drawing) -> None:
    for kind, entry in zip((UNetHalf, IdentityNetHalf), drawing.owner.networks(), strict=False):
        model = getattr(entry, "_orig_mod", entry)
        half = _halves[model]() if model in _halves else None
        if half is None:
            half = kind(model, current)
            _halves[model] = weakref.ref(half)
        half.use(drawing, entry_point(entry))
        drawing.halves.append(half)


def _eject(drawing: Drawing) -> None:
    for half in drawing.halves:
        half.release(drawing)
    drawing.halves.clear()


def _parts(pipe: Any) -> dict[nn.Module, str]:
    """The other networks of a pipeline as a recording shows them, each with its name."""
    controlnet, vae = getattr(pipe, "controlnet", None), getattr(pipe, "vae", None)
    # Pipelines call encode and decode of the VAE, which no hook sees.
    parts = {getattr(vae, "encoder", None): "VAE encode", getattr(vae, "decoder", None): "VAE decode"}
    parts |= {getattr(pipe, f"text_encoder{n}", None): f"text encoder{n}".replace("_", " ") for n in ("", "_2")}
    parts |= dict.fromkeys(getattr(controlnet, "nets", [controlnet]), "ControlNet")
    return {model: name for model, name in parts.items() if isinstance(model, nn.Module)}
