"""InstantID on a pipeline of diffusers: attached and detached, never copied.

The method has two halves (Wang et al. 2024, "InstantID: Zero-shot Identity-Preserving Generation in Seconds", 3.3 and
3.4). Decoupled cross-attention becomes attention processors of the UNet; an IdentityNet, a plain ControlNet that reads
identity tokens in place of the prompt, becomes a forward pre-hook. So every SDXL pipeline of diffusers works, with or
without ControlNets.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers.models.attention_processor import Attention
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch.utils.hooks import RemovableHandle

from ..errors import BackendError, ModelFileError
from ..identity import Identity
from ..recorder import stage_of
from ..reuse import ReplacedForward, Reuse, at_every_step
from .approximations import EXACT, Approximations, SparseIdentityNet, Steps
from .identity_net import keep_hint, skip_when_silent
from .layout import COND, UNCOND, LaidOutBank, LaidOutTokens, Layout
from .processors import TextAttnProcessor, identity_processor, is_plain
from .subject import Subject, as_subjects

_attached_to: WeakKeyDictionary[torch.nn.Module, InstantID] = WeakKeyDictionary()
"""UNets and IdentityNets, and who is attached to them now: two at once would draw a person twice."""


class InstantID:
    """InstantID for one SDXL pipeline. Constructing it changes nothing; ``attach`` and ``detach`` are exact inverses.

        instantid = InstantID(pipe)
        with instantid.attached(identity, weight=0.8):
            image = pipe(prompt, image=keypoints, controlnet_conditioning_scale=0.8).images[0]

    IP-Adapters, xFormers and the like are to be loaded before attaching; LoRAs at any time. Of pipelines that share a
    UNet, use the one given here while attached: its guidance says how a batch is ordered.

    Args:
        pipe: any SDXL pipeline. Without a ControlNet, only the attention half acts.
        identity_net: which of several ControlNets is the IdentityNet; the others go on seeing the prompt.
        reuse: compute once per run what is the same at every step, with no number changed: the keys and values of the
            prompt, those of the IdentityNet, and its convolutions over the keypoint picture. Weights that a callback
            changes between two steps are noticed unless it writes to them through ``weight.data``: give False there.

    Raises:
        BackendError: a pipeline without a UNet, or without that ControlNet.
    """

    def __init__(self, pipe: DiffusionPipeline, identity_net: int = 0, reuse: bool = True) -> None:
        self._pipe: Any = pipe
        self._unet = _unet(pipe)
        self._identity_net = _identity_net(pipe, identity_net)
        self._replaced: list[tuple[Attention, Any, Any]] = []  # (layer, our processor, the one before)
        self._hooks: list[RemovableHandle] = []
        self._forwards: list[ReplacedForward] = []
        # Of the UNet and of the IdentityNet
        self._kept, self._kept_by_net = (Reuse(), Reuse()) if reuse else (None, None)

    def attach(
        self,
        who: Identity | Subject | Sequence[Identity | Subject],
        weight: float | None = None,
        approximations: Approximations = EXACT,
    ) -> None:
        """Make the pipeline draw these people, in place of those attached before, by this object or another.

        Cheap: nothing is projected, so a new weight or region is a new ``attach``. With all weights 0 the attention of
        the UNet stays untouched.

        Args:
            who: one identity, or Subjects with weights and regions of their own; the IdentityNet then sees the tokens
                of all of them.
            weight: of bare identities, 0..5; 0.8 by default.
            approximations: what to leave out, for another picture; nothing by default.

        Raises:
            ModelFileError: an identity that was made for another kind of model than this pipeline's.
            BackendError: approximations that this pipeline cannot do.
            FastInstantIDError: a weight out of range or beside Subjects, or nobody given.
        """
        subjects = as_subjects(who, weight)
        named_layers = _cross_attention_layers(self._unet)
        layers = list(named_layers.values())
        for subject in subjects:
            _check_fit(subject.identity, layers, self._identity_net, type(self._pipe).__name__)
        selected = approximations.selected(list(named_layers))
        if approximations.depend_on_steps:
            _refuse_compiled(self._pipe)
        for model in self._models():
            _attached_to.get(model, self).detach()
            _attached_to[model] = self

        steps = Steps(self._pipe)
        if active := [subject for subject in subjects if subject.weight != 0]:
            bank, kept = LaidOutBank(active), self._kept
            for i in selected:
                self._replace(layers[i], identity_processor(layers[i], bank, i, kept or at_every_step))

            def prepare_bank(unet: Any, args: Any, kwargs: Any) -> None:
                bank.lay_out(self._layout(unet, args, kwargs))
                bank.is_on = steps.are_in(approximations.identity_range)
                if kept is not None:
                    prompt = args[2] if len(args) > 2 else kwargs.get("encoder_hidden_states")
                    kept.begin(prompt, self._timesteps())

            self._hooks.append(self._unet.register_forward_pre_hook(prepare_bank, with_kwargs=True))

        if self._identity_net is not None:
            tokens, kept_by_net = LaidOutTokens(subjects), self._kept_by_net
            self._forwards.append(skip_when_silent(self._identity_net))
            if kept_by_net is not None:
                self._forwards.append(keep_hint(self._identity_net, kept_by_net))
                for layer in filter(is_plain, _cross_attention_layers(self._identity_net).values()):
                    self._replace(layer, TextAttnProcessor(kept_by_net))

            def replace_prompt(net: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
                laid_out = tokens.lay_out(self._layout(net, args, kwargs))
                if kept_by_net is not None:
                    kept_by_net.begin(kwargs.get("controlnet_cond"), laid_out, self._timesteps())
                return args, kwargs | {"encoder_hidden_states": laid_out}

            self._hooks.append(self._identity_net.register_forward_pre_hook(replace_prompt, with_kwargs=True))

        if approximations.depend_on_steps:
            self._hooks.append(self._unet.register_forward_hook(lambda *_: steps.end()))
        if approximations.is_sparse and self._identity_net is not None:
            self._forwards.append(SparseIdentityNet(self._identity_net, steps, approximations))

        for model, name in _parts(self._pipe, self._identity_net).items():
            self._hooks += stage_of(model, name)

    def detach(self) -> None:
        """Leave the pipeline as it was before ``attach``. Processors that someone else has set since then stay."""
        for hook in self._hooks:
            hook.remove()
        for layer, ours, before in self._replaced:
            if layer.processor is ours:
                layer.set_processor(before)
        for forward in reversed(self._forwards):
            forward.restore()
        for kept in (self._kept, self._kept_by_net):
            if kept is not None:
                kept.clear()
        self._hooks.clear()
        self._replaced.clear()
        self._forwards.clear()
        for model in self._models():
            if _attached_to.get(model) is self:
                del _attached_to[model]

    def _replace(self, layer: Attention, ours: Any) -> None:
        self._replaced.append((layer, ours, layer.processor))
        layer.set_processor(ours)

    def _timesteps(self) -> torch.Tensor | None:
        """A tensor that the scheduler makes anew for each run."""
        return getattr(getattr(self._pipe, "scheduler", None), "timesteps", None)

    def _models(self) -> list[torch.nn.Module]:
        return [model for model in (self._unet, self._identity_net) if model is not None]

    @contextmanager
    def attached(
        self,
        who: Identity | Subject | Sequence[Identity | Subject],
        weight: float | None = None,
        approximations: Approximations = EXACT,
    ) -> Generator[InstantID]:
        """``attach``, and ``detach`` at the end, whatever happens in between."""
        self.attach(who, weight, approximations)
        try:
            yield self
        finally:
            self.detach()

    def _layout(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Layout:
        """Read off a call of the UNet or the IdentityNet.

        The sample says the device: under offloading the model itself is elsewhere until its forward begins.
        """
        sample: torch.Tensor = args[0] if args else kwargs["sample"]
        # In guess mode diffusers shows ControlNets the cond half of the batch only.
        rows = (COND,) if kwargs.get("guess_mode") else self._rows()
        batch, _, height, width = sample.shape
        if batch % len(rows):
            raise BackendError(
                f"{type(self._pipe).__name__} works in {len(rows)} chunks, but a batch of {batch} came: "
                f"attach to the pipeline that runs"
            )
        return Layout(rows, batch, (height, width), sample.device, model.dtype)

    def _rows(self) -> tuple[int, ...]:
        """How diffusers stacks a batch: [uncond, cond] under guidance, a perturbed cond behind them under PAG."""
        guided = getattr(self._pipe, "do_classifier_free_guidance", None)
        if guided is None:
            raise BackendError(
                f"{type(self._pipe).__name__} does not say whether it uses guidance: it is not the pipeline that runs, "
                f"or not one of diffusers' SDXL pipelines"
            )
        if not guided:
            return (COND,)
        if getattr(self._pipe, "do_perturbed_attention_guidance", False):
            return UNCOND, COND, COND
        return UNCOND, COND


def _unet(pipe: Any) -> Any:
    unet = getattr(pipe, "unet", None)
    if unet is None:
        raise BackendError(f"{type(pipe).__name__} has no UNet: InstantID is for SDXL pipelines")
    return getattr(unet, "_orig_mod", unet)  # as torch.compile wraps it


def _identity_net(pipe: Any, index: int) -> Any:
    controlnet = getattr(pipe, "controlnet", None)
    if controlnet is None:
        return None
    nets = getattr(controlnet, "nets", [controlnet])
    if not 0 <= index < len(nets):
        raise BackendError(f"ControlNet {index} was to be the IdentityNet, but {type(pipe).__name__} has {len(nets)}")
    return getattr(nets[index], "_orig_mod", nets[index])


def _parts(pipe: Any, identity_net: Any) -> dict[torch.nn.Module, str]:
    """The networks of a pipeline as a recording shows them, each with its name."""
    controlnet, vae = getattr(pipe, "controlnet", None), getattr(pipe, "vae", None)
    parts = {pipe.unet: "UNet"}
    for net in getattr(controlnet, "nets", [controlnet]):
        parts[net] = "IdentityNet" if getattr(net, "_orig_mod", net) is identity_net else "ControlNet"
    # Pipelines call encode and decode of the VAE, which no hook sees.
    parts |= {getattr(vae, "encoder", None): "VAE encode", getattr(vae, "decoder", None): "VAE decode"}
    parts |= {getattr(pipe, f"text_encoder{n}", None): f"text encoder{n}".replace("_", " ") for n in ("", "_2")}
    return {model: name for model, name in parts.items() if isinstance(model, torch.nn.Module)}


def _cross_attention_layers(unet: Any) -> dict[str, Attention]:
    """By name, in checkpoint order, which is the order of ``attn_processors``: down, up, middle."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]
    return {name: unet.get_submodule(name) for name in names}


def _refuse_compiled(pipe: Any) -> None:
    controlnet = getattr(pipe, "controlnet", None)
    for model in (pipe.unet, *getattr(controlnet, "nets", [controlnet])):
        if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
            raise BackendError(
                "ranges of steps and an IdentityNet at some steps do not go with torch.compile, which would compile "
                "anew at every step: use them with a pipeline that is not compiled"
            )


def _check_fit(identity: Identity, layers: list[Attention], identity_net: Any, pipeline: str) -> None:
    has = [key.shape[-1] for key in identity.bank.keys]
    wanted = [layer.inner_dim for layer in layers]
    if has != wanted:
        raise ModelFileError(
            f"this identity has {_describe(has)}, the UNet of {pipeline} has {_describe(wanted)}: InstantID's adapter "
            f"fits SDXL base models, not SD 1.5, SD 2 or the SDXL refiner"
        )
    width = identity.tokens.shape[-1]
    if identity_net is not None and identity_net.config.cross_attention_dim != width:
        raise ModelFileError(
            f"this identity has tokens of width {width}, the IdentityNet of {pipeline} reads "
            f"{identity_net.config.cross_attention_dim}: it is not InstantID's ControlNetModel"
        )


def _describe(channels: list[int]) -> str:
    return f"{len(channels)} cross-attention layers of {' and '.join(map(str, sorted(set(channels))))} channels"
