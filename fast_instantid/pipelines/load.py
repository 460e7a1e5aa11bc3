"""Loading of pipelines and of InstantID from local files, without network access."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from ..errors import ModelFileError
from ..identity import find_adapter
from ..placement import Placement
from ..recorder import stage
from ..sources import DOWNLOAD_HINT, local_path


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
        StableDiffusionXLControlNetPipeline,  # pyright: ignore[reportPrivateImportUsage]
        StableDiffusionXLPipeline,  # pyright: ignore[reportPrivateImportUsage]
    )


@dataclass(frozen=True)
class InstantIDFiles:
    """InstantID's published weights, as https://huggingface.co/InstantX/InstantID lays them out."""

    controlnet: Path
    """The folder ``ControlNetModel``: the IdentityNet."""
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
        controlnet = folder / "ControlNetModel"
        if not (controlnet / "config.json").is_file():
            raise ModelFileError(
                f"{controlnet}: no config.json; expected InstantID's ControlNet there; {DOWNLOAD_HINT}"
            )
        return cls(controlnet, find_adapter(folder, dtype))


def load_pipeline(
    base: str | os.PathLike[str],
    instantid: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> Any:
    """Load an SDXL pipeline of diffusers with InstantID's IdentityNet, ready for :class:`InstantID`.

    Args:
        base: a folder in diffusers' layout, a single ``.safetensors`` checkpoint, or the name or hub id of a folder
            that was downloaded.
        instantid: a folder with ``ControlNetModel/`` and ``ip-adapter.bin``, or such a name or id. None loads a
            pipeline without an IdentityNet.
        device: of all networks; the best one present by default.
        dtype: of all networks, fp16 on CUDA and fp32 elsewhere by default. Files of the variant ``fp16`` are preferred
            for float16, and taken where there are no others.

    Returns:
        a StableDiffusionXLControlNetPipeline, or without ``instantid`` a StableDiffusionXLPipeline.

    Raises:
        ModelFileError: files that are missing, or are not of SDXL; says where it looked.
        BackendError: the device is not present.
    """
    with stage("load pipeline"):
        placement = Placement.resolve(device, dtype)
        options: dict[str, Any] = {"torch_dtype": placement.dtype, "local_files_only": True}
        kind, parts = StableDiffusionXLPipeline, {}
        if instantid is not None:
            controlnet = InstantIDFiles.find(instantid).controlnet
            with _loading(controlnet, "InstantID's ControlNet"):
                parts = {"controlnet": ControlNetModel.from_pretrained(controlnet, **options)}
            kind = StableDiffusionXLControlNetPipeline
        path = local_path(base, "an SDXL model")
        if path.is_file():
            # diffusers takes the configurations and tokenizers that such a file lacks from the hub's cache.
            with _loading(path, "an SDXL checkpoint"):
                pipe = kind.from_single_file(os.fspath(path), **parts, **options)
        else:
            for part in ("model_index.json", "unet/config.json", "text_encoder_2/config.json"):  # the last: SDXL alone
                if not (path / part).is_file():
                    raise ModelFileError(
                        f"{path}: has no {part}; expected an SDXL base model in diffusers' layout there"
                    )
            options["variant"] = _variant(path, placement.dtype)
            with _loading(path, "an SDXL model"):
                pipe = kind.from_pretrained(path, **parts, **options)
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(placement.device)


@contextmanager
def _loading(path: str | os.PathLike[str], what: str) -> Generator[None]:
    try:
        with _quiet(), warnings.catch_warnings():
            # New versions of diffusers want it to be called dtype, which old ones do not know.
            warnings.filterwarnings("ignore", "`torch_dtype` is deprecated")
            yield
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:  # all seen from diffusers
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelFileError(f"{path}: diffusers cannot load this as {what} ({reason})") from error


def _variant(folder: Path, dtype: torch.dtype) -> str | None:
    """Return ``fp16`` if there are such weights and they are wanted, or the only ones."""
    weights = [path.name for path in (folder / "unet").glob("diffusion_pytorch_model*.safetensors")]
    half = [name for name in weights if ".fp16." in name]
    return "fp16" if half and (dtype == torch.float16 or len(half) == len(weights)) else None
