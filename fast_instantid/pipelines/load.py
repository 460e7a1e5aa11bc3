"""Loading of pipelines and of InstantID from local files, without network access."""

from __future__ import annotations

import importlib
import json
import os
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from ..errors import FastInstantIDError, ModelFileError, first_line
from ..identity import find_adapter, find_identity_net
from ..kinds import NAMES_OF_WIDTHS, SDXL_WIDTH, kind_of, text_width, why_not_sdxl
from ..placement import Placement
from ..recorder import stage
from ..sources import DOWNLOAD_HINT, local_path, tokenizer_folder
from ..weights import StateDict, network_files, path_problem, read_tensors

_NAMES = (
    "DDIM DDPM DEISMultistep DPMSolverMultistep DPMSolverSinglestep DPMSolverSDE EulerAncestralDiscrete EulerDiscrete "
    "HeunDiscrete KDPM2AncestralDiscrete KDPM2Discrete LCM LMSDiscrete SASolver TCD UniPCMultistep"
)
SCHEDULERS = [f"{name}Scheduler" for name in _NAMES.split()]
"""diffusers' schedulers that sample with SDXL."""
_CONFIGURATIONS = Path(__file__).parent / "sdxl"  # of the published SDXL and InstantID
_KINDS = {
    "AutoencoderKL": "a VAE",
    "CLIPTextModel": "a CLIP model",
    "CLIPTextModelWithProjection": "a CLIP model",
    "ControlNetModel": "a ControlNet",
    "UNet2DConditionModel": "a UNet",
}
# What transformers calls a dtype.
_DTYPE = "dtype" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (4, 56) else "torch_dtype"


@contextmanager
def _quiet() -> Generator[None]:
    """Hide progress bars of loading, and warnings of transformers. The host's settings are restored at the end."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars

    libraries = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    level, hub_is_quiet = transformers_logging.get_verbosity(), are_progress_bars_disabled()
    for library in libraries:
        library.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            # New versions of diffusers want it to be called dtype, which old ones do not know.
            warnings.filterwarnings("ignore", "`torch_dtype` is deprecated")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        for library in libraries:
            library.enable_progress_bar()
        if hub_is_quiet:
            disable_progress_bars()  # transformers' switch is the hub's too


with _quiet():  # transformers warns that torchvision is not installed; it is not needed
    from diffusers import (
        ControlNetModel,  # pyright: ignore[reportPrivateImportUsage]  # diffusers exports lazily
        StableDiffusionXLControlNetImg2ImgPipeline,  # pyright: ignore[reportPrivateImportUsage]
        StableDiffusionXLControlNetInpaintPipeline,  # pyright: ignore[reportPrivateImportUsage]
        StableDiffusionXLControlNetPipeline,  # pyright: ignore[reportPrivateImportUsage]
        StableDiffusionXLImg2ImgPipeline,  # pyright: ignore[reportPrivateImportUsage]
        StableDiffusionXLInpaintPipeline,  # pyright: ignore[reportPrivateImportUsage]
        StableDiffusionXLPipeline,  # pyright: ignore[reportPrivateImportUsage]
    )


@dataclass(frozen=True)
class InstantIDFiles:
    """InstantID's published weights, as https://huggingface.co/InstantX/InstantID lays them out."""

    controlnet: Path
    """The folder ``ControlNetModel``, or one file of weights: the IdentityNet."""
    adapter: Path
    """``ip-adapter.bin`` or ``ip-adapter.safetensors``, for ``Adapter.load``."""

    @classmethod
    def find(cls, source: str | os.PathLike[str], dtype: torch.dtype | None = None) -> InstantIDFiles:
        """Find the files in a folder, or in the folder of a name or hub id.

        Args:
            source: as :func:`~fast_instantid.sources.local_path` takes it.
            dtype: in which identities are computed: an adapter that was converted to it is preferred.

        Raises:
            ModelFileError: there is no such folder or cached repository, or a part of it is missing.
        """
        folder = local_path(source, "InstantID")
        return cls(find_identity_net(folder), find_adapter(folder, dtype))


def load_pipeline(
    base: str | os.PathLike[str],
    instantid: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    config: str | os.PathLike[str] | None = None,
) -> Any:
    """Load an SDXL pipeline of diffusers with InstantID's IdentityNet, ready for :class:`InstantID`.

    Args:
        base: a folder in diffusers' layout, a single ``.safetensors`` checkpoint, or the name or hub id of a folder
            that was downloaded.
        instantid: a folder with ``ControlNetModel/`` and ``ip-adapter.bin``, or such a name or id. The ControlNet may
            also be one file beside the adapter, and need no ``config.json``. None loads a pipeline without it.
        device: of all networks; the best one present by default.
        dtype: of all networks, fp16 on CUDA and fp32 elsewhere by default. Files of the variant ``fp16`` are preferred
            for float16, and taken where there are no others, for each network by itself. Any may be in shards.
        config: for a single checkpoint, a folder in diffusers' layout with its configurations and tokenizers. SDXL's
            by default, with the tokenizer that :func:`~fast_instantid.sources.tokenizer_folder` finds.

    Returns:
        a StableDiffusionXLControlNetPipeline, or without ``instantid`` a StableDiffusionXLPipeline.

    Raises:
        ModelFileError: files that are missing, or are not of SDXL; says where it looked.
        BackendError: the device is not present.
    """
    with stage("load pipeline"):
        placement = Placement.resolve(device, dtype)
        kind, parts = StableDiffusionXLPipeline, dict[str, Any]()
        if instantid is not None:
            net = InstantIDFiles.find(instantid).controlnet
            parts["controlnet"] = _network(ControlNetModel, net, placement.dtype, "InstantID's ControlNet")
            kind = StableDiffusionXLControlNetPipeline
        path = local_path(base, "an SDXL model")
        if path.is_file():
            folder = None if config is None else local_path(config, "SDXL's configurations")
            pipe = _checkpoint(kind, path, folder, parts, placement.dtype)
        else:
            pipe = _folder(kind, path, parts, placement.dtype)
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(placement.device)


def with_additions(
    pipe: Any, scheduler: str = "", loras: Sequence[tuple[str, float]] = (), controlnets: Sequence[str] = ()
) -> Any:
    """A pipeline of the same networks with another scheduler, LoRAs, and ControlNets after the IdentityNet.

    The networks of the given pipeline get the LoRAs too.

    Args:
        scheduler: one of :data:`SCHEDULERS`; it gets the configuration of the pipeline's own.
        loras: local ``.safetensors`` files, each with its scale.
        controlnets: folders or files of ControlNets for SDXL.

    Raises:
        FastInstantIDError: an unknown scheduler, or one that needs a package that is missing.
        ModelFileError: files that are missing or of another kind.
    """
    if scheduler and scheduler not in SCHEDULERS:
        raise FastInstantIDError(f"unknown scheduler {scheduler!r}: choose one of {', '.join(SCHEDULERS)}")
    for number, (source, _) in enumerate(loras):
        load_lora(pipe, local_path(source, "a LoRA"), f"lora_{number}")
    if loras:
        pipe.set_adapters([f"lora_{number}" for number in range(len(loras))], [scale for _, scale in loras])
    parts: dict[str, Any] = {}
    if scheduler:
        try:
            kind = getattr(importlib.import_module("diffusers"), scheduler)
            parts["scheduler"] = kind.from_config(pipe.scheduler.config)
        except (ImportError, AttributeError) as error:
            raise FastInstantIDError(f"{scheduler}: {first_line(error)}") from error
    paths = [local_path(source, "a ControlNet") for source in controlnets]
    nets = [_network(ControlNetModel, path, pipe.dtype, "a ControlNet").to(pipe.device) for path in paths]
    if nets:
        parts["controlnet"] = [pipe.controlnet, *nets]
    return _another(type(pipe), pipe, **parts) if parts else pipe


def load_lora(pipe: Any, path: Path, name: str) -> None:
    """Load a LoRA's file into the networks of a pipeline as the adapter ``name``.

    Raises:
        ModelFileError: it is not a LoRA for these networks.
    """
    with _loading(path, "a LoRA"):
        pipe.load_lora_weights(os.fspath(path), adapter_name=name, local_files_only=True)
    if name not in {each for names in pipe.get_list_adapters().values() for each in names}:
        raise ModelFileError(f"{path}: none of its tensors belong to a layer of this model; expected a LoRA for it")


def image_to_image(pipe: Any) -> Any:
    """A pipeline of the same networks that changes a picture."""
    kinds = StableDiffusionXLImg2ImgPipeline, StableDiffusionXLControlNetImg2ImgPipeline
    return _another(kinds["controlnet" in pipe.components], pipe)


def inpainting(pipe: Any) -> Any:
    """A pipeline of the same networks that changes a part of a picture."""
    kinds = StableDiffusionXLInpaintPipeline, StableDiffusionXLControlNetInpaintPipeline
    return _another(kinds["controlnet" in pipe.components], pipe)


def _another(kind: Any, pipe: Any, **parts: Any) -> Any:
    zeros = pipe.config.force_zeros_for_empty_prompt
    made = kind(**{**pipe.components, **parts}, force_zeros_for_empty_prompt=zeros)
    made.set_progress_bar_config(disable=True)
    return made


def _folder(kind: Any, path: Path, parts: dict[str, Any], dtype: torch.dtype) -> Any:
    for part in ("model_index.json", "unet/config.json", "text_encoder_2/config.json"):  # the last: SDXL alone
        if not (path / part).is_file():
            raise ModelFileError(f"{path}: has no {part}; expected an SDXL base model in diffusers' layout there")
    with _loading(path, "an SDXL model"):
        index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
        named = {name: value for name, value in index.items() if isinstance(value, list)}
        known = {name: value for name, value in named.items() if value[0] in ("diffusers", "transformers")}
        for name, (library, network) in known.items():  # one by one, because diffusers takes one variant for all
            if issubclass(network := getattr(importlib.import_module(library), network), torch.nn.Module):
                parts[name] = _network(network, path / name, dtype, f"SDXL's {name}")
        return kind.from_pretrained(path, **parts, torch_dtype=dtype, local_files_only=True)


def _network(network: Any, path: Path, dtype: torch.dtype, what: str) -> Any:
    """Load one network from its folder, or from one file of weights, which is of SDXL's shape."""
    variant, files = network_files(path, dtype == torch.float16) if path.is_dir() else (None, [path])
    if not files:
        raise ModelFileError(f"{path}: its weights are missing; expected {what} there; {DOWNLOAD_HINT}")
    tensors: StateDict = {}
    for file in files:
        tensors |= read_tensors(file)  # names a file that holds something else
    this = kind_of(tensors)
    if (is_for := NAMES_OF_WIDTHS.get(text_width(tensors) or SDXL_WIDTH, "SDXL")) != "SDXL":
        this = f"a network for {is_for}"
    if not this.startswith(_KINDS.get(network.__name__, "")):
        raise ModelFileError(f"{files[0]}: this is {this}; expected {what}")
    with _loading(files[0], what):
        if (path / "config.json").is_file():
            name = _DTYPE if issubclass(network, transformers.PreTrainedModel) else "torch_dtype"
            options: dict[str, Any] = {name: dtype, "variant": variant, "local_files_only": True}
            options["output_loading_info"] = True
            loaded: Any = network.from_pretrained(path, **options)
            model, missing = loaded[0], list(loaded[1]["missing_keys"])
        elif network is ControlNetModel:
            options = {"config": os.fspath(_CONFIGURATIONS / "controlnet"), "local_files_only": True}
            model = network.from_single_file(os.fspath(files[0]), torch_dtype=dtype, **options)
            model.register_to_config(_name_or_path=os.fspath(path))  # by which InstantID tells its ControlNet
            missing = _unfilled(model)
        else:
            raise ModelFileError(f"{path}: has no config.json; expected {what} there; {DOWNLOAD_HINT}")
    if missing:
        raise ModelFileError(f"{files[0]}: this is not {what}, which has {missing[0]} and more than this file")
    return model


def _checkpoint(kind: Any, path: Path, config: Path | None, parts: dict[str, Any], dtype: torch.dtype) -> Any:
    """Load SDXL from one file in the original layout, which holds neither configurations nor tokenizers."""
    tensors = read_tensors(path)
    with _loading(path, "an SDXL checkpoint"):
        unet = json.loads(((config or _CONFIGURATIONS) / "unet" / "config.json").read_text(encoding="utf-8"))
        if problem := why_not_sdxl(tensors, unet["cross_attention_dim"]):
            raise ModelFileError(f"{path}: {problem}")
        if config is None:
            config, vocabulary = _CONFIGURATIONS, tokenizer_folder(path)
            for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
                parts[name] = transformers.CLIPTokenizer.from_pretrained(
                    vocabulary, pad_token=pad, model_max_length=77, local_files_only=True
                )
        pipe = kind.from_single_file(
            os.fspath(path), config=os.fspath(config), **parts, torch_dtype=dtype, local_files_only=True
        )
    for name, model in pipe.components.items():
        if isinstance(model, torch.nn.Module) and (missing := _unfilled(model)):
            raise ModelFileError(f"{path}: its {name} lacks {len(missing)} tensors, {missing[0]} first; get it again")
    if "v_pred" in tensors:  # these two names say how a checkpoint was trained
        new = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": "ztsnr" in tensors}
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **new)
    return pipe


def _unfilled(model: torch.nn.Module) -> list[str]:
    """Parameters that a file did not have."""
    return [name for name, parameter in model.named_parameters() if parameter.is_meta]


@contextmanager
def _loading(path: Path, what: str) -> Generator[None]:
    try:
        with _quiet():
            yield
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:  # all seen from diffusers
        reason = first_line(error)
        if "meta tensor" in reason:  # torch's word for what no file gave
            reason = "it lacks some of its tensors"
        problem = path_problem(path) or f"diffusers cannot load this as {what} ({reason})"
        raise ModelFileError(f"{path}: {problem}") from error
