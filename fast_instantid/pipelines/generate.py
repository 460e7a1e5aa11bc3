"""From files on disk to pictures: what a shell or a service needs around a pipeline. Nothing here uses the network."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    ControlNetModel,  # pyright: ignore[reportPrivateImportUsage]  # diffusers exports lazily
    StableDiffusionXLControlNetPipeline,  # pyright: ignore[reportPrivateImportUsage]
)
from PIL import Image

from ..errors import FastInstantIDError, ModelFileError
from ..identity import Identity
from ..placement import Placement
from ..recorder import stage
from .approximations import EXACT, Approximations
from .attach import InstantID
from .subject import DEFAULT_WEIGHT, MAX_WEIGHT, Subject

Progress = Callable[[int, int], None]
"""Called with the number of steps done and of all steps."""

_ADAPTER_NAMES = ("ip-adapter.safetensors", "ip-adapter.bin")
_DOWNLOAD_HINT = "'fast-instantid download' gets it"


@dataclass(frozen=True)
class InstantIDFiles:
    """InstantID's published weights, as https://huggingface.co/InstantX/InstantID lays them out."""

    controlnet: Path
    """The folder ``ControlNetModel``: the IdentityNet."""
    adapter: Path
    """``ip-adapter.bin`` or ``ip-adapter.safetensors``, for ``Adapter.load``."""

    @classmethod
    def find(cls, source: str | os.PathLike[str]) -> InstantIDFiles:
        """Look into a folder, or into the hub's local cache for an id like ``InstantX/InstantID``.

        Raises:
            ModelFileError: there is no such folder or cached repository, or a part of it is missing.
        """
        folder = _local_folder(source, "InstantID")
        controlnet = folder / "ControlNetModel"
        if not (controlnet / "config.json").is_file():
            raise ModelFileError(
                f"{controlnet}: no config.json; expected InstantID's ControlNet there; {_DOWNLOAD_HINT}"
            )
        for name in _ADAPTER_NAMES:
            if (folder / name).is_file():
                return cls(controlnet, folder / name)
        raise ModelFileError(f"{folder}: has none of {', '.join(_ADAPTER_NAMES)}; {_DOWNLOAD_HINT}")


@dataclass(frozen=True)
class Sampling:
    """How a picture is sampled.

    Args:
        weight: of the identity branch in the attention, 0..5. Subjects carry their own.
        controlnet_strength: of the IdentityNet.
        guidance: classifier-free guidance scale; 1 or less turns it off.
        seed: of the first picture, 0 to 2^63; picture i of a run starts from ``seed + i``, on every device alike.
        approximations: what to leave out, for another picture; nothing by default.

    Raises:
        FastInstantIDError: a value that no picture can be sampled with.
    """

    negative_prompt: str = ""
    weight: float = DEFAULT_WEIGHT
    controlnet_strength: float = 0.8
    steps: int = 30
    guidance: float = 5.0
    seed: int = 0
    num_images: int = 1
    approximations: Approximations = EXACT

    def __post_init__(self) -> None:
        allowed = {
            "weight": (0, MAX_WEIGHT),
            "controlnet_strength": (0, 10),
            "steps": (1, 1000),
            "guidance": (0, 100),
            "seed": (0, 2**63 - 1000),
            "num_images": (1, 1000),
        }
        for name, (low, high) in allowed.items():
            if not low <= (value := getattr(self, name)) <= high:  # also refuses NaN
                raise FastInstantIDError(f"{name.replace('_', ' ')} {value}: expected {low} to {high}")


def load_pipeline(
    base: str | os.PathLike[str],
    instantid: str | os.PathLike[str],
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> StableDiffusionXLControlNetPipeline:
    """An SDXL pipeline with InstantID's IdentityNet, ready for :class:`InstantID`.

    Args:
        base: a folder in diffusers' layout, a single ``.safetensors`` checkpoint, or a hub id in the local cache.
        instantid: a folder with ``ControlNetModel/`` and ``ip-adapter.bin``, or a hub id in the local cache.
        device: where it runs; the best one there is by default.
        dtype: of all networks, fp16 on CUDA and fp32 elsewhere by default. Files of the variant ``fp16`` are preferred
            for float16, and taken where there are no others.

    Raises:
        ModelFileError: files that are missing, or are not of SDXL; says where it looked.
        BackendError: a device that is not there.
    """
    with stage("load pipeline"):
        return _load_pipeline(base, instantid, Placement.resolve(device, dtype))


def _load_pipeline(
    base: str | os.PathLike[str], instantid: str | os.PathLike[str], placement: Placement
) -> StableDiffusionXLControlNetPipeline:
    options: dict[str, Any] = {"torch_dtype": placement.dtype, "local_files_only": True}
    controlnet = InstantIDFiles.find(instantid).controlnet
    with _loading(controlnet, "InstantID's ControlNet"):
        net = ControlNetModel.from_pretrained(controlnet, **options)
    if os.path.isfile(base):
        # diffusers takes the configurations and tokenizers that such a file lacks from the hub's cache.
        with _loading(base, "an SDXL checkpoint"):
            pipe = StableDiffusionXLControlNetPipeline.from_single_file(os.fspath(base), controlnet=net, **options)
    else:
        folder = _sdxl_folder(base)
        options["variant"] = _variant(folder, placement.dtype)
        with _loading(folder, "an SDXL model"):
            pipe = StableDiffusionXLControlNetPipeline.from_pretrained(folder, controlnet=net, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(placement.device)


def generate(
    pipe: StableDiffusionXLControlNetPipeline,
    who: Identity | Sequence[Subject],
    keypoints: Image.Image,
    prompt: str | Sequence[str],
    sampling: Sampling = Sampling(),
    progress: Progress | None = None,
) -> list[Image.Image]:
    """Draw people. The pipeline is left as it was.

    Args:
        pipe: from :func:`load_pipeline`.
        who: one identity, or Subjects with weights and regions of their own.
        keypoints: where faces go; the pictures get its size, rounded down to multiples of 8 px.
        prompt: what to draw; several prompts are drawn at once, each from the same seeds.
        sampling: how.
        progress: called after each step.

    Returns:
        ``sampling.num_images`` RGB pictures for each prompt.

    Raises:
        FastInstantIDError: no prompt.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise FastInstantIDError("no prompt given: expected at least one")

    def report(pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if progress is not None:
            progress(step + 1, pipe.num_timesteps)
        return tensors

    # Seeded on the CPU: other devices draw other numbers from the same seed.
    seeds = range(sampling.seed, sampling.seed + sampling.num_images)
    weight = sampling.weight if isinstance(who, Identity) else None
    with stage("sampling"), InstantID(pipe).attached(who, weight, sampling.approximations):
        output: Any = pipe(
            prompt=prompts,
            negative_prompt=sampling.negative_prompt,
            image=keypoints,
            controlnet_conditioning_scale=float(sampling.controlnet_strength),
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            num_images_per_prompt=sampling.num_images,
            generator=[torch.Generator().manual_seed(seed) for _ in prompts for seed in seeds],
            callback_on_step_end=report,  # pyright: ignore[reportArgumentType]  # annotated wrongly in diffusers
        )
    return output.images


@contextmanager
def _loading(path: str | os.PathLike[str], what: str) -> Generator[None]:
    try:
        with warnings.catch_warnings():
            # New versions of diffusers want it to be called dtype, which old ones do not know.
            warnings.filterwarnings("ignore", "`torch_dtype` is deprecated")
            yield
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:  # all seen from diffusers
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelFileError(f"{path}: diffusers cannot load this as {what} ({reason})") from error


def _local_folder(source: str | os.PathLike[str], what: str) -> Path:
    """A folder as it is; a hub id as its snapshot in the local cache."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(os.fspath(source), local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise ModelFileError(
            f"{source}: neither a folder nor a repository in the hub's cache ({constants.HF_HUB_CACHE}); "
            f"expected {what} there; {_DOWNLOAD_HINT}"
        ) from error


def _sdxl_folder(base: str | os.PathLike[str]) -> Path:
    folder = _local_folder(base, "an SDXL model")
    for part in ("model_index.json", "unet/config.json", "text_encoder_2/config.json"):  # the last is SDXL's alone
        if not (folder / part).is_file():
            raise ModelFileError(f"{folder}: has no {part}; expected an SDXL base model in diffusers' layout there")
    return folder


def _variant(folder: Path, dtype: torch.dtype) -> str | None:
    """``fp16`` if there are such weights and they are what is wanted, or all there is."""
    weights = [path.name for path in (folder / "unet").glob("diffusion_pytorch_model*.safetensors")]
    half = [name for name in weights if ".fp16." in name]
    return "fp16" if half and (dtype == torch.float16 or len(half) == len(weights)) else None
