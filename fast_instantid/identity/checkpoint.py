"""The adapter file, ``ip-adapter.bin``: a resampler and one pair of projections per cross-attention layer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cache import content_key
from ..errors import ModelFileError
from ..files import special_file
from ..recorder import stage
from ..sources import DOWNLOAD_HINT
from ..weights import StateDict, file_version, read_tensors
from .embeddings import EMBEDDING_DIM
from .resampler import Resampler


@dataclass(frozen=True, eq=False)
class AdapterWeights:
    """The checked content of an adapter file. The tensors are memory-mapped and read only when used."""

    path: Path
    image_proj: StateDict
    """The state dict of the :class:`Resampler`."""
    layers: tuple[tuple[Tensor, Tensor], ...]
    """``to_k_ip.weight, to_v_ip.weight`` of each layer, ``(C, width)``, in checkpoint order. SDXL has 24 layers down,
    36 up and 10 in the middle."""
    version: str
    """:func:`file_version` of the file when it was opened; it may have been replaced since."""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all tensors. It reads them all, so prefer ``version`` within one process."""
        with stage("fingerprint", nbytes=self.nbytes):
            names = sorted(self.image_proj)
            return content_key(names, [self.image_proj[name] for name in names], self.layers)

    @property
    def token_width(self) -> int:
        """Width of the identity tokens and of the UNet's text: 2048 for SDXL."""
        return self.layers[0][0].shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors: 1.69 GB as published."""
        return sum(tensor.nbytes for tensor in (*self.image_proj.values(), *chain.from_iterable(self.layers)))


_NAMES = (
    "ip-adapter.safetensors",
    "ip-adapter.bin",
    "ip_adapter.bin",
    "instantid-ip-adapter.bin",
    "ip-adapter_instant_id_sdxl.bin",
)
CONVERTED_SUFFIX = {torch.float16: ".fp16.safetensors", torch.bfloat16: ".bf16.safetensors"}
"""What ``fast-instantid convert`` puts in place of the adapter's own suffix."""


def converted_names(dtype: Any) -> list[str]:
    """Names of converted adapters that :func:`find_adapter` prefers in this dtype."""
    return (
        [str(Path(name).with_suffix(CONVERTED_SUFFIX[dtype])) for name in _NAMES] if dtype in CONVERTED_SUFFIX else []
    )


def find_adapter(folder: Path, dtype: torch.dtype | None = None) -> Path:
    """Find the adapter in a folder under its usual names.

    Args:
        folder: the folder to search; a file is returned as it is.
        dtype: of the identities to compute. An adapter that ``fast-instantid convert`` wrote in this dtype is
            preferred; one in another dtype comes last.

    Raises:
        ModelFileError: the folder has none; lists the searched names.
    """
    if folder.is_file():
        return folder
    names = dict.fromkeys([*converted_names(dtype), *_NAMES, *chain(*map(converted_names, CONVERTED_SUFFIX))])
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ModelFileError(f"{folder}: has none of {', '.join(_NAMES)}; {DOWNLOAD_HINT}")


def read_adapter(path: str | PathLike[str]) -> AdapterWeights:
    """Open an InstantID adapter, as a torch pickle or a safetensors file, with nested or dotted keys.

    Raises:
        ModelFileError: the file is missing, damaged, or of another kind, which the message names.
    """
    with stage("load adapter"):
        try:
            tensors = read_tensors(path)
        except ModelFileError as error:
            if _is_onnx(path):
                raise _another_kind(path, "an ONNX network, as in the face packs") from error
            raise
        # IP-Adapter Plus has the same keys, but its input is never 512 wide.
        reads_faces = _shape(tensors, "image_proj.proj_in.weight")[1:] == (EMBEDDING_DIM,)
        if not reads_faces or not {"image_proj.latents", "ip_adapter.1.to_k_ip.weight"} <= tensors.keys():
            raise _another_kind(path, kind_of(tensors))
        prefix = "image_proj."
        image_proj = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        try:
            resampler = Resampler.from_state_dict(image_proj)
            layers = _layers(tensors, token_width=resampler.proj_out.out_features)
        except ModelFileError as error:
            raise ModelFileError(f"{path}: a damaged InstantID adapter ({error}); download it again") from error
        return AdapterWeights(Path(path), image_proj, layers, file_version(path))


def _layers(tensors: StateDict, token_width: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """Return the weights under ``ip_adapter.1.to_k_ip.weight``, ``ip_adapter.1.to_v_ip.weight``, ``ip_adapter.3...``"""
    found = {int(match[1]) for name in tensors if (match := re.match(r"ip_adapter\.([0-9]{1,5})\.to_[kv]_ip\.", name))}
    numbers = range(1, 2 * len(found), 2)
    if found != set(numbers):
        raise ModelFileError(f"its layers have the numbers {sorted(found)[:100]}, and not all odd ones from 1 on")
    layers: list[tuple[Tensor, Tensor]] = []
    for number in numbers:
        key, value = (tensors.get(f"ip_adapter.{number}.to_{part}_ip.weight") for part in "kv")
        if key is None or value is None:
            raise ModelFileError(f"layer {number} lacks its key or value weight")
        if key.shape != value.shape or key.ndim != 2 or key.shape[1] != token_width or not key.numel():
            raise ModelFileError(
                f"layer {number} has weights of shape {list(key.shape)} and {list(value.shape)}, "
                f"which do not fit each other or tokens of width {token_width}"
            )
        layers.append((key, value))
    return tuple(layers)


def _another_kind(path: str | PathLike[str], kind: str) -> ModelFileError:
    return ModelFileError(f"{path}: this is {kind}; expected InstantID's adapter (ip-adapter.bin, 1.69 GB)")


def _shape(tensors: StateDict, name: str) -> tuple[int, ...]:
    return tuple(tensors[name].shape) if name in tensors else ()


def _is_onnx(path: str | PathLike[str]) -> bool:
    """Whether a file starts as a ModelProto: its version (field 1, a small number), then producer, domain or graph."""
    try:
        if special_file(path):
            return False
        with open(path, "rb") as file:
            head = file.read(3)
    except OSError:
        return False
    return len(head) == 3 and head[0] == 0x08 and 0 < head[1] < 64 and head[2] in (0x12, 0x1A, 0x22, 0x3A, 0x42)


Predicate = Callable[[StateDict], bool]


def _starts(*prefixes: str) -> Predicate:
    return lambda tensors: any(name.startswith(prefixes) for name in tensors)


def _contains(*parts: str) -> Predicate:
    return lambda tensors: any(part in name for name in tensors for part in parts)


def _base(width: int) -> Predicate:
    """Return a predicate for IP-Adapters of the base model with text of this width."""
    return lambda tensors: _shape(tensors, "ip_adapter.1.to_k_ip.weight")[1:] == (width,)


_SD15, _SDXL = _base(768), _base(2048)
_PLUS = _starts("image_proj.latents")


def _face_id(tensors: StateDict) -> bool:
    """Whether this is an IP-Adapter FaceID: it has a LoRA or Plus FaceID's resampler, or reads face embeddings."""
    with_lora_or_plus = _contains("to_q_lora", "image_proj.perceiver_resampler.")
    return with_lora_or_plus(tensors) or _shape(tensors, "image_proj.proj.0.weight")[1:] == (EMBEDDING_DIM,)


# The first match names the file, so parts of larger models come last.
_KINDS: tuple[tuple[str, Predicate], ...] = (
    ("an IP-Adapter FaceID for SD 1.5", lambda t: _face_id(t) and _SD15(t)),
    ("an IP-Adapter FaceID for SDXL", lambda t: _face_id(t) and _SDXL(t)),
    ("an IP-Adapter Plus for SD 1.5", lambda t: _PLUS(t) and _SD15(t)),
    ("an IP-Adapter Plus for SDXL", lambda t: _PLUS(t) and _SDXL(t)),
    ("an IP-Adapter for SD 1.5", _SD15),
    ("an IP-Adapter for SDXL", _SDXL),
    ("an IP-Adapter of another kind", _contains("to_k_ip.weight")),
    ("a ControlNet, which InstantID's IdentityNet is too", _starts("controlnet_cond_embedding.", "controlnet_down_")),
    ("a ControlNet in ComfyUI's layout", _starts("control_model.", "input_hint_block.", "zero_convs.")),
    ("a LoRA", _contains("lora_up.", "lora_down.", "lora_A.", "lora_B.", ".lora.")),
    ("a whole checkpoint", _starts("model.diffusion_model.", "first_stage_model.")),
    ("a UNet", _starts("input_blocks.", "down_blocks.", "diffusion_model.")),
    ("a VAE", _starts("decoder.", "encoder.down", "quant_conv.")),
    ("a saved identity, which Identity.load reads", _starts("0.key")),
    ("a CLIP model", _contains("text_model.", "vision_model.", "token_embedding.", "class_embedding", "resblocks.")),
)


def kind_of(tensors: StateDict) -> str:
    """Describe a file with these tensors, which is not InstantID's adapter."""
    for kind, is_kind in _KINDS:
        if is_kind(tensors):
            return kind
    return f"an unknown model ({len(tensors)} tensors: {', '.join([*tensors][:3])}, ...)"
