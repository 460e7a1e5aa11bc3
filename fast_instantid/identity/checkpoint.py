"""The adapter file, ``ip-adapter.bin``: a resampler and one pair of projections per cross-attention layer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cache import Cache, content_key
from ..errors import ModelFileError
from ..files import special_file
from ..kinds import is_adapter, kind_of
from ..recorder import stage
from ..sources import DOWNLOAD_HINT
from ..weights import FileVersion, Known, StateDict, existing_file, file_version, of_version, read_tensors
from .resampler import Resampler


@dataclass(frozen=True, eq=False)
class AdapterWeights:
    """The checked content of an adapter file. The tensors of a large file are memory-mapped and read only when used."""

    path: Path
    image_proj: StateDict
    """The state dict of the :class:`Resampler`."""
    layers: tuple[tuple[Tensor, Tensor], ...]
    """``to_k_ip.weight, to_v_ip.weight`` of each layer, ``(C, width)``, in checkpoint order. SDXL has 24 layers down,
    36 up and 10 in the middle."""
    version: FileVersion
    """Of the file when it was opened; it may have been replaced since. Check the mapping around every use."""
    resampler: Resampler
    """Of the tensors in ``image_proj``, which it does not copy."""

    def named_tensors(self) -> StateDict:
        """All tensors under the names of the published file."""
        tensors = {f"image_proj.{name}": tensor for name, tensor in self.image_proj.items()}
        for i, pair in enumerate(self.layers):
            tensors |= {f"ip_adapter.{2 * i + 1}.to_{part}_ip.weight": t for part, t in zip("kv", pair, strict=True)}
        return tensors

    def refuse_non_finite(self) -> None:
        """Read all tensors, and raise a ModelFileError that names the first one with NaN or infinity."""
        for name, tensor in self.named_tensors().items():
            if not tensor.isfinite().all():
                raise ModelFileError(f"{self.path}: {name} holds NaN or infinity; download it again")

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all tensors. It reads them all, so prefer ``version`` within one process."""
        with stage("fingerprint", nbytes=self.nbytes):
            self.version.check_mapping()
            names = sorted(self.image_proj)
            tensors = [content_key(self.image_proj[name]) for name in names]
            layers = [content_key(*layer) for layer in self.checked_layers()]
            self.version.check_mapping()
            return content_key(names, tensors, layers)

    def checked_layers(self) -> Iterator[tuple[Tensor, Tensor]]:
        """:attr:`layers`, each after a check that the file was not written to, which raises a ModelFileError."""
        for layer in self.layers:
            self.version.check_mapping()
            yield layer

    @cached_property
    def token_width(self) -> int:
        """Width of the identity tokens and of the UNet's text: 2048 for SDXL."""
        return self.layers[0][0].shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors: 1.69 GB as published."""
        return sum(tensor.nbytes for tensor in (*self.image_proj.values(), *chain.from_iterable(self.layers)))


ADAPTER_NAMES = (
    "ip-adapter.safetensors",
    "ip-adapter.bin",
    "ip_adapter.bin",
    "instantid-ip-adapter.bin",
    "ip-adapter_instant_id_sdxl.bin",
)
_IDENTITY_NETS = (
    "ControlNetModel",
    "diffusion_pytorch_model.safetensors",
    "instantid-controlnet.safetensors",
    "control_instant_id_sdxl.safetensors",
)
CONVERTED_SUFFIX = {torch.float16: ".fp16.safetensors", torch.bfloat16: ".bf16.safetensors"}
"""What ``fast-instantid convert`` puts in place of the adapter's own suffix."""


def converted_names(dtype: Any) -> list[str]:
    """Names of converted adapters that :func:`find_adapter` prefers in this dtype."""
    suffix = CONVERTED_SUFFIX.get(dtype)
    return [str(Path(name).with_suffix(suffix)) for name in ADAPTER_NAMES] if suffix else []


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
    names = dict.fromkeys([*converted_names(dtype), *ADAPTER_NAMES, *chain(*map(converted_names, CONVERTED_SUFFIX))])
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ModelFileError(f"{folder}: has none of {', '.join(ADAPTER_NAMES)}; {DOWNLOAD_HINT}")


def find_identity_net(folder: Path) -> Path:
    """Find the IdentityNet in a folder under its usual names: its own folder, or one file of weights.

    Raises:
        ModelFileError: the folder has none; lists the searched names.
    """
    for name in _IDENTITY_NETS:
        if (folder / name).exists():
            return folder / name
    raise ModelFileError(f"{folder}: no IdentityNet, none of {', '.join(_IDENTITY_NETS)}; {DOWNLOAD_HINT}")


def read_adapter(path: str | PathLike[str]) -> AdapterWeights:
    """Open an InstantID adapter, as a torch pickle or a safetensors file, with nested or dotted keys.

    Raises:
        ModelFileError: the file is missing, damaged, or of another kind, which the message names.
    """
    with stage("load adapter"):
        version = file_version(existing_file(path, "weights"))
        try:
            tensors = read_tensors(path)
        except ModelFileError as error:
            if _is_onnx(path):
                raise _another_kind(path, "an ONNX network, as in the face packs") from error
            raise
        weights = adapter_weights(Path(path), tensors, version)
        if file_version(path) != version:
            raise ModelFileError(f"{path}: this file changed while it was read; load it again")
        return weights


class _KnownAdapter(Known, AdapterWeights):
    """An adapter that was checked before; its file is opened when its weights are used."""


def open_adapter(path: Path, cache: Cache) -> AdapterWeights:
    """As :func:`read_adapter`. With a disk tier, a file that was read before is not opened yet."""
    if not (cache.persistent and path.is_file()):
        return read_adapter(path)
    read: list[AdapterWeights] = []

    def facts() -> dict[str, Any]:
        read.append(of_version(read_adapter(path), version))
        return {"fingerprint": read[0].fingerprint, "token_width": read[0].token_width}

    version = file_version(path)
    known = cache.facts(version, "adapter", facts)
    return read[0] if read else _KnownAdapter(read_adapter, path, version, **known)


def adapter_weights(path: Path, tensors: StateDict, version: FileVersion) -> AdapterWeights:
    """Check the tensors of an adapter, by the names of the published file. ``path`` stands for them in messages.

    Raises:
        ModelFileError: they are damaged, or of another model, which the message names.
    """
    if not is_adapter(tensors):
        raise _another_kind(path, kind_of(tensors))
    for name, tensor in tensors.items():
        if name.startswith(("image_proj.", "ip_adapter.")) and not tensor.is_floating_point():
            raise ModelFileError(
                f"{path}: {name} is of {tensor.dtype}, and an adapter's weights are floating-point numbers; "
                "download it again"
            )
    prefix = "image_proj."
    image_proj = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    try:
        resampler = Resampler.from_state_dict(image_proj)
        layers = _layers(tensors, token_width=resampler.proj_out.out_features)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: a damaged InstantID adapter ({error}); download it again") from error
    return AdapterWeights(path, image_proj, layers, version, resampler)


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
