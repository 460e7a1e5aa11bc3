"""The attention patch, which ComfyUI calls in place of the text attention of one cross-attention layer.

Other packs rely on its interface (cubiq/ComfyUI_IPAdapter_plus, CrossAttentionPatch.py): ``patch(q, k, v,
extra_options)``, ``add(callback, **kwargs)``, and the lists ``callback`` and ``kwargs``. This package never changes a
patch that is in a model, and copies patches shallowly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy.ldm.modules.attention import attention_pytorch, optimized_attention
from torch import Tensor

from ..attention import IdentityEntry, identity_attention
from ..fused import fused_attention, is_available
from ..identity.layout import COND, UNCOND, LayerFace, Layout

ALWAYS = {"sigma_start": 999999999.9, "sigma_end": 0.0}
"""Results of the host's ``percent_to_sigma`` for 0 and 1."""

ROLES = "fast_instantid_roles"
"""Key in ``transformer_options``, set by :mod:`.sampling`: COND or UNCOND for each conditioning, in the guider's order.
The last one applies to all further conditionings."""

Callback = Callable[..., Tensor]
ExtraOptions = Mapping[str, Any]


class AttentionPatch:
    """The sum of the text attention and of callbacks, in their order.

    Args:
        base: the text attention, as a patch of another pack; None for the host's attention.
    """

    def __init__(self, base: Callable[..., Tensor] | None = None) -> None:
        self.base = base
        self.callback: list[Callback] = []
        self.kwargs: list[dict[str, Any]] = []

    def add(self, callback: Callback, **kwargs: Any) -> None:
        """Add ``callback(out, q, k, v, extra_options, **kwargs)`` to the attention for noise levels between
        ``sigma_end`` and ``sigma_start``. Other packs call this on the copy in their own clone of a model.
        """
        self.callback.append(callback)
        self.kwargs.append(kwargs)

    def at(self, sigma: float, one_graph: bool, with_identity: bool = True) -> AttentionPatch | None:
        """Return a patch with the callbacks that are active at this noise level, without ranges; None for none.

        Args:
            with_identity: False leaves out all faces.
            one_graph: keep inactive faces at weight 0, so that all noise levels share a compiled graph.
        """
        active = AttentionPatch(self.base)
        for callback, kwargs in zip(self.callback, self.kwargs, strict=True):
            if acts_at(kwargs, sigma) and (with_identity or callback is not add_identity):
                active.add(callback, **{**kwargs, **ALWAYS})
            elif one_graph and callback is add_identity:
                active.add(callback, **{**kwargs, **ALWAYS, "face": kwargs["face"].at_zero})
        return active if active.base or active.callback else None

    def to(self, target: torch.device | torch.dtype) -> AttentionPatch:
        """Return a patch with everything of other packs on a device. Faces follow their queries by themselves.

        ComfyUI calls this when it loads a model, and for each GPU that it splits one over.
        """
        moved = copied(self)
        if move := getattr(self.base, "to", None):
            moved.base = move(target)
        if not isinstance(target, torch.device) or target.type == "cpu":  # what other packs have on a GPU stays there
            return moved
        for callback, kwargs in zip(moved.callback, moved.kwargs, strict=True):
            tensors = {name: value for name, value in kwargs.items() if isinstance(value, Tensor)}
            if callback is add_identity or any(tensor.device == target for tensor in tensors.values()):
                continue
            kwargs.update((name, tensor.to(target)) for name, tensor in tensors.items())
            for value in kwargs.values():
                if hasattr(value, "create_multigpu_clone"):  # IPAdapter_plus looks it up by the query's device
                    value.create_multigpu_clone(target)
        return moved

    def __getattr__(self, name: str) -> Any:
        # The host asks patches for these, and must reach the one below.
        if name in ("models", "cleanup"):
            return getattr(self.base, name)
        raise AttributeError(f"an attention patch has no {name}")

    def __deepcopy__(self, memo: dict[int, Any]) -> AttentionPatch:
        # ComfyUI before 0.14 deep-copies the options of a model with every clone().
        return copied(self)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: ExtraOptions) -> Tensor:
        """``(B, N, C), (B, T, C), (B, T, C) -> (B, N, C)``"""
        if (  # one face alone, and torch's text attention
            is_available(q.device)
            and self.base is None
            and self.callback == [add_identity]
            and always_acts(self.kwargs[0])
            and optimized_attention is attention_pytorch  # not SageAttention, xFormers, ...
            and extra_options.get("optimized_attention_override") is None
            and extra_options.get("attn_precision") is None
        ):
            fused = fused_attention(q, k, v, [_entry(self.kwargs[0]["face"], q, extra_options)])
            if fused is not None:
                return fused
        if self.base is None:
            out = optimized_attention(
                q,
                k,
                v,
                extra_options["n_heads"],
                attn_precision=extra_options.get("attn_precision"),
                transformer_options=extra_options,  # may hold an optimized_attention_override
            )
        else:
            out = self.base(q, k, v, extra_options)
        for callback, kwargs in zip(self.callback, self.kwargs, strict=True):
            # ``at`` has removed the ranges, unless a sampler bypasses the host's guiders. Only then, this synchronises
            # with the GPU in every layer.
            if not (always_acts(kwargs) or acts_at(kwargs, float(extra_options["sigmas"][0]))):
                continue
            if callback is add_identity:  # the sum in one operation
                out = identity_attention(q, [_entry(kwargs["face"], q, extra_options)], onto=out)
            else:
                out = out + callback(out, q, k, v, extra_options, **kwargs)
        return out if out.dtype == q.dtype else out.to(q.dtype)


def copied(patch: Any) -> Any:
    """Return a copy of any pack's patch that shares all tensors and has its own lists and dictionaries.

    A patch without the lists that packs add to is returned as it is: a function, or an object that is its own state.
    """
    if not all(isinstance(getattr(patch, name, None), list) for name in ("callback", "kwargs")):
        return patch
    try:
        new = copy.copy(patch)
        if new is patch:
            return patch
        for name in {*getattr(new, "__dict__", ()), "callback", "kwargs"}:
            if isinstance(value := getattr(new, name), (list, dict)):
                setattr(new, name, copy.copy(value))
        new.kwargs[:] = map(dict, new.kwargs)
    except Exception:  # the patch forbids copies
        return patch
    return new


def always_acts(kwargs: Mapping[str, Any]) -> bool:
    """Whether a callback acts at every noise level; other packs then omit its range or pass None."""
    start, end = kwargs.get("sigma_start"), kwargs.get("sigma_end")
    return (start is None or start == ALWAYS["sigma_start"]) and (end is None or end == ALWAYS["sigma_end"])


def acts_at(kwargs: Mapping[str, Any], sigma: float) -> bool:
    """Whether a callback acts at this noise level."""
    start, end = (bound if kwargs.get(name) is None else kwargs[name] for name, bound in ALWAYS.items())
    return bool(end <= sigma <= start)


def add_identity(
    out: Tensor, q: Tensor, k: Tensor, v: Tensor, extra_options: ExtraOptions, *, face: LayerFace, **_: Any
) -> Tensor:
    """Return the identity branch of one layer, ``(B, N, C)``, as a callback."""
    return identity_attention(q, [_entry(face, q, extra_options)])


def _entry(face: LayerFace, q: Tensor, extra_options: ExtraOptions) -> IdentityEntry:
    height, width = extra_options["original_shape"][-2:]
    layout = Layout(tuple(chunks_of(extra_options)), (height, width), frames_of(extra_options))
    return face.entry(q, extra_options["n_heads"], layout)


def chunks_of(extra_options: ExtraOptions) -> list[int]:
    """Return COND or UNCOND for each chunk of the batch. The host numbers chunks by the guider's order."""
    roles = extra_options.get(ROLES, (COND, UNCOND))
    return [roles[min(index, len(roles) - 1)] for index in extra_options["cond_or_uncond"]]


def frames_of(extra_options: ExtraOptions) -> tuple[int, ...] | None:
    """Return the frames in AnimateDiff's sliding window; None without one."""
    frames = (extra_options.get("ad_params") or {}).get("sub_idxs")
    return None if frames is None else tuple(int(frame) for frame in frames)
