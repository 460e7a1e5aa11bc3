"""Operators counted as torch dispatches them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Counts(TorchDispatchMode):
    """Calls of operators inside of ``with Counts() as counted``, and their results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        """By name of the operator."""
        self.bytes: Counter[str] = Counter()
        """Bytes of the tensors that calls returned, by name of the operator; of views too."""
        self.converted: Counter[torch.dtype] = Counter()
        """Tensors copied into another dtype or to another device, by the dtype that they got."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # in inference mode composite operators arrive whole: what they consist of counts
            result = func.decompose(*args, **kwargs) if func.namespace == "aten" else NotImplemented
        if result is NotImplemented:
            name = func.__name__.split(".")[0]
            result = func(*args, **kwargs)
            self.calls[name] += 1
            if isinstance(result, Tensor):
                self.bytes[name] += result.nbytes
                if name == "_to_copy":
                    self.converted[result.dtype] += 1
        return result
