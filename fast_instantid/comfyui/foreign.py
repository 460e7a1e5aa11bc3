"""INSTANTID objects of other packs, made into our adapter."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from ..cache import shared_cache
from ..errors import ModelFileError
from ..identity import Adapter
from ..identity.checkpoint import adapter_weights
from ..placement import Placement
from ..weights import FileVersion
from .memory import ManagedAdapter

_adapters: WeakKeyDictionary[Any, ManagedAdapter] = WeakKeyDictionary()
_numbers = itertools.count()


def adapter_of(instantid: Any) -> Adapter:
    """Return our adapter with the weights of an ``INSTANTID``, uncopied; an adapter of ours unchanged.

    Other packs have the class of the reference: ``image_proj_model``, and ``ip_layers.to_kvs`` with layers
    ``1_to_k_ip``, ``1_to_v_ip``, ``3_to_k_ip``...

    Raises:
        ModelFileError: an object without these weights; the message names the module that made it.
    """
    if isinstance(instantid, Adapter):
        return instantid
    maker = f"{type(instantid).__module__}.{type(instantid).__qualname__}"
    try:
        if instantid not in _adapters:
            layers = instantid.ip_layers.to_kvs
            parameters = instantid.image_proj_model.named_parameters()
            tensors = {f"image_proj.{name}": tensor for name, tensor in parameters}
            tensors |= {f"ip_adapter.{name.replace('_', '.', 1)}.weight": layers[name].weight for name in layers}
            # No file stands behind it: a number that is never used again stands for the content.
            version = FileVersion(maker, 0, next(_numbers), 0, 0, 0)
            weights = adapter_weights(Path(maker), tensors, version)
            _adapters[instantid] = ManagedAdapter(weights, Placement.resolve("cpu"), shared_cache())
        return _adapters[instantid]
    except (AttributeError, KeyError, TypeError, ModelFileError) as error:
        raise ModelFileError(
            f"this INSTANTID was made by {maker}, which is not InstantID's adapter ({error}). Connect Load InstantID "
            "Model. If that is another pack's node, the log of ComfyUI's start says so and what to do"
        ) from error
