"""Identity: a face, ready for sampling. Adapter: computes identities from face embeddings."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import chain
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..cache import Cache, Record, content_key, shared_cache
from ..errors import FastInstantIDError, ModelFileError, NotFiniteError
from ..placement import DTYPES, Placement, device_and_dtype, numeric_settings, thread_defaults
from ..recorder import stage
from ..sources import local_path
from ..weights import read_metadata, read_tensors, write_safetensors
from .bank import IdentityBank, project_bank
from .checkpoint import AdapterWeights, find_adapter, open_adapter
from .embeddings import EMBEDDING_DIM, Combine, combine_embeddings, unconditional_embedding

if TYPE_CHECKING:
    from typing_extensions import Self

_FORMAT = "fast-instantid identity"
_VERSION = "2"
_CHECKSUM = "sha256"


@dataclass(frozen=True, slots=True, eq=False)
class Identity:
    """A face, ready for sampling. Immutable.

    Equal identities share their tensors. A write to one is seen by all who hold it; the cache computes it again.
    """

    tokens: Tensor
    """``(2, M * 16, width)``: row 0 is uncond, row 1 cond. The IdentityNet reads them in place of the text."""
    bank: IdentityBank
    """Keys and values for the UNet's cross-attention layers."""
    num_references: int = 1
    """M: the number of photographs that were combined by ``concat``, otherwise 1."""

    @property
    def num_layers(self) -> int:
        """Number of cross-attention layers: 70 for SDXL."""
        return len(self.bank.keys)

    @property
    def nbytes(self) -> int:
        """Bytes of tokens and bank; at SDXL's size and fp16, 10.78 MB per reference."""
        return self.tokens.nbytes + self.bank.nbytes

    def to(
        self, *given: Any, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
    ) -> Identity:
        """The same identity elsewhere, itself where that changes nothing.

        Takes a device, a dtype or both, as ``torch.Tensor.to`` does: ``identity.to("cuda", torch.float16)``.
        """
        device, dtype = device_and_dtype(given, device, dtype)
        dtype = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
        tokens = self.tokens.to(device=device, dtype=dtype)
        bank = self.bank.to(device, dtype)
        unchanged = tokens is self.tokens and bank is self.bank
        return self if unchanged else Identity(tokens, bank, self.num_references)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a safetensors file that :meth:`load` reads without adapter or face models. Only its owner may read it.

        Raises:
            OSError: the file cannot be written; the folder is unchanged.
        """
        record = self.to_record()
        metadata = {"format": _FORMAT, "version": _VERSION, _CHECKSUM: _checksum(record)}
        write_safetensors(path, dict(record), metadata)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Identity:
        """Read an identity that :meth:`save` wrote, on the CPU and in its dtype.

        Files of older versions have no such checksum; all else of them is checked.

        Raises:
            ModelFileError: missing, damaged, not an identity, or of another format version.
        """
        tensors, metadata = read_tensors(path), read_metadata(path)
        if metadata.get("format") != _FORMAT:
            raise ModelFileError(f"{path}: this is not an identity; expected a file written by Identity.save")
        if metadata.get("version") != _VERSION:
            raise ModelFileError(
                f"{path}: an identity of format version {metadata.get('version')}; this package reads {_VERSION}. "
                "Update fast-instantid, or make the identity again"
            )
        with torch.inference_mode(False):
            # Copied out of the mapping: the file may change afterwards.
            record = {name: tensor.clone() for name, tensor in tensors.items()}
        try:
            return cls.checked(record, metadata.get(_CHECKSUM))
        except ValueError as error:
            raise ModelFileError(f"{path}: a damaged identity: {error}; make it again") from error

    def to_record(self) -> Record:
        """Return named tensors for caches and files: ``tokens``, ``(2, M, 16, width)``; ``0.key``, ``0.value``, ..."""
        record = {"tokens": self.tokens.unflatten(1, (self.num_references, -1))}
        for i, (key, value) in enumerate(zip(self.bank.keys, self.bank.values, strict=True)):
            record |= {f"{i}.key": key, f"{i}.value": value}
        return record

    @classmethod
    def from_record(cls, record: Record) -> Identity:
        """Return the identity of a record that :meth:`to_record` made."""
        layers = range((len(record) - 1) // 2)
        keys, values = (tuple(record[f"{i}.{part}"] for i in layers) for part in ("key", "value"))
        tokens = record["tokens"]
        return cls(tokens.flatten(1, 2), IdentityBank(keys, values), num_references=tokens.shape[1])

    @classmethod
    def checked(cls, record: Record, checksum: str | None = None) -> Identity:
        """As :meth:`from_record`, for a record of a file. Raises a ValueError that says what is wrong with it."""
        if problem := _problem(record, checksum):
            raise ValueError(problem)
        return cls.from_record(record)

    def __repr__(self) -> str:
        return (
            f"Identity({self.num_layers} layers, {self.num_references} x {self.tokens.shape[1] // self.num_references} "
            f"tokens, {self.nbytes / 1e6:.2f} MB, {self.tokens.dtype}, {self.tokens.device})"
        )


def _checksum(record: Record) -> str:
    return content_key(*chain.from_iterable(sorted(record.items())), new_hash=hashlib.sha256)


def _problem(record: Record, checksum: str | None) -> str | None:
    """Return why no identity has these tensors; None if one can."""
    tokens = record.get("tokens", torch.empty(0))
    if tokens.ndim != 4 or len(tokens) != 2 or len(record) < 3:
        return f"{len(record)} tensors, and tokens of shape {list(tokens.shape)}"
    for i in range(len(record) // 2):
        key, value = (record.get(f"{i}.{part}", torch.empty(0)) for part in ("key", "value"))
        if key.ndim != 3 or key.shape[:2] != (2, tokens.shape[1] * tokens.shape[2]) or key.shape != value.shape:
            return f"layer {i} has a key and a value of shape {list(key.shape)} and {list(value.shape)}"
    for name, tensor in record.items():
        if not tensor.is_floating_point() or tensor.dtype != tokens.dtype:
            return f"{name} is of {tensor.dtype}"
        if not tensor.isfinite().all():
            return f"{name} holds NaN or infinity"
    return "its checksum does not fit" if checksum not in (None, _checksum(record)) else None


@dataclass(frozen=True, eq=False)
class Adapter:
    """InstantID's adapter, which computes identities from face embeddings.

    It holds the memory-mapped file. Resampler and projections are on the device only during a computation.
    """

    weights: AdapterWeights
    placement: Placement
    cache: Cache

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        cache: Cache | None = None,
    ) -> Self:
        """Open an adapter file; its weights are memory-mapped.

        Args:
            path: ``ip-adapter.bin`` or a safetensors file, a folder with one, or its name or hub id, see
                :func:`~fast_instantid.sources.local_path`.
            device: of the computation and the identities; the best one by default.
            dtype: of the computation and the identities; by default fp16 on CUDA and fp32 elsewhere.
            cache: the shared cache of this process by default.

        Raises:
            ModelFileError: missing, damaged, or another kind of file, which the message names.
            BackendError: the device is not available.
        """
        placement = Placement.resolve(device, dtype)
        file = find_adapter(local_path(path, "InstantID's adapter"), placement.dtype)
        cache = shared_cache() if cache is None else cache
        return cls(open_adapter(file, cache), placement, cache)

    def to(self, *given: Any, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Self:
        """An adapter on the same file and cache that makes identities elsewhere, as :meth:`Identity.to`.

        Raises:
            BackendError: the device is not available.
        """
        device, dtype = device_and_dtype(given, device, dtype)
        here = self.placement
        return replace(self, placement=Placement.resolve(device or here.device, dtype or here.dtype))

    @property
    def token_width(self) -> int:
        """Width of the identity tokens and of the UNet's text: 2048 for SDXL."""
        return self.weights.token_width

    def identity(
        self, embeddings: np.ndarray | Tensor, *, combine: Combine = "average", noise: float = 0.0
    ) -> Identity:
        """Return the identity of one person on the adapter's device, from the cache if possible.

        Args:
            embeddings: ``(512,)``, or ``(N, 512)`` from N photographs of this person.
            combine: how to combine several, see :func:`combine_embeddings`.
            noise: 0..1, amplitude of the unconditional embedding, see :func:`unconditional_embedding`.

        The result does not depend on autocast, the default dtype or the gradient mode of the caller.

        Raises:
            FastInstantIDError: embeddings of another shape or with NaN or infinity, or unknown options.
            ModelFileError: NaN or infinity in the adapter's weights.
            NotFiniteError: ``dtype`` cannot hold the result.
        """
        if not 0 <= noise <= 1:
            raise FastInstantIDError(f"noise {noise} is not usable: expected 0 (none) to 1")
        tensor = embeddings if isinstance(embeddings, Tensor) else torch.from_numpy(np.array(embeddings, np.float32))
        rows = torch.atleast_2d(tensor.detach().to("cpu", torch.float32))
        if rows.ndim != 2 or len(rows) == 0 or rows.shape[1] != EMBEDDING_DIM:
            raise FastInstantIDError(
                f"expected face embeddings of shape ({EMBEDDING_DIM},) or (N, {EMBEDDING_DIM}), "
                f"got {tuple(tensor.shape)}"
            )
        device, dtype = self.placement.device, self.placement.dtype
        with stage("identity"), thread_defaults(device):
            combined = combine_embeddings(rows, combine)
            if not combined.isfinite().all():
                raise FastInstantIDError(
                    "the face embedding holds NaN or infinity: compute it again from the photograph"
                )
            # On disk the key needs the adapter's content, a hash of 1.69 GB; in this process the file's version is
            # enough.
            adapter = self.weights.fingerprint if self.cache.persistent else self.weights.version
            # The combined embedding covers the photographs and ``combine``.
            made_by = [_FORMAT, _VERSION, adapter, str(dtype), device.type, *numeric_settings()]
            key = content_key(*made_by, combined, float(noise))
            return Identity.from_record(self.cache.get(key, lambda: self._record(combined, noise))).to(device)

    def _record(self, combined: Tensor, noise: float) -> Record:
        # Cached on the CPU: ComfyUI manages the GPU's memory and would not know of a cache there.
        record = self.project(combined, noise).to("cpu").to_record()
        bounds = [bound for tensor in record.values() for bound in tensor.float().aminmax()]  # one pass
        if not torch.stack(bounds).isfinite().all():
            self.weights.refuse_non_finite()
            raise NotFiniteError(
                f"{self.weights.path}: {self.placement.dtype} cannot hold the identity of this embedding, which "
                "became infinite: use dtype bfloat16 or float32"
            )
        return record

    def project(self, combined: Tensor, noise: float) -> Identity:
        """Compute an identity from ``(M, 1, 512)`` on the adapter's device, without the cache.

        Raises:
            ModelFileError: the adapter's file was written to since it was loaded.
        """
        device, dtype = self.placement.device, self.placement.dtype
        with stage("resample", nbytes=sum(tensor.nbytes for tensor in self.weights.image_proj.values())):
            self.weights.version.check_mapping()
            pair = torch.cat([unconditional_embedding(combined, noise), combined])  # (2M, 1, 512): one pass for both
            tokens: Tensor = self.weights.resampler(pair.to(device, dtype)).unflatten(0, (2, -1)).flatten(1, 2)
        with stage("project", nbytes=sum(key.nbytes + value.nbytes for key, value in self.weights.layers)):
            bank = project_bank(self.weights.checked_layers(), tokens, device, dtype)
        self.weights.version.check_mapping()
        return Identity(tokens, bank, len(combined))

    def __repr__(self) -> str:
        return f"Adapter({self.weights.path.name!r}, {len(self.weights.layers)} layers, {self.placement.device})"
