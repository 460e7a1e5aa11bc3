"""INSTANTID objects of other packs."""

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

_adapters: WeakKeyDictionary[Any, Adapter] = WeakKeyDictionary()
_numbers = itertools.count()


def adapter_of(instantid: Any) -> Adapter:
    """Return our adapter with the weights of an ``INSTANTID``, uncopied; an adapter of ours unchanged.

    Other packs have the reference's: ``image_proj_model``, and ``ip_layers.to_kvs`` with layers ``1_to_k_ip``...

    Raises:
        ModelFileError: an object without these weights; the message names the class that made it.
    """
    if isinstance(instantid, Adapter):
        return instantid
    maker = f"{type(instantid).__module__}.{type(instantid).__qualname__}"
    try:
        if instantid not in _adapters:
            layers = instantid.ip_layers.to_kvs
            tensors = {f"image_proj.{name}": tensor for name, tensor in instantid.image_proj_model.named_parameters()}
            tensors |= {f"ip_adapter.{name.replace('_', '.', 1)}.weight": layers[name].weight for name in layers}
            # No file stands behind it: a number that is never used again stands for the content.
            weights = adapter_weights(Path(maker), tensors, FileVersion(maker, 0, next(_numbers), 0, 0, 0))
            _adapters[instantid] = ManagedAdapter(weights, Placement.resolve("cpu"), shared_cache())
        return _adapters[instantid]
    except (AttributeError, KeyError, TypeError, ModelFileError) as error:
        raise ModelFileError(
            f"this INSTANTID was made by {maker}, and is not InstantID's adapter ({error}). Connect Load InstantID "
            "Model; if that is another pack's node, ComfyUI's log says so, after its start"
        ) from error
