"""Convolutions on a CPU with weights in oneDNN's blocked layout.

torch's own layer reorders its weights at every call. Here they are reordered once, at loading, and a following ReLU is
fused. The operators are those of torch's compiler (torch/_inductor/fx_passes/mkldnn_fusion.py). They are not public:
without them, the layers stay torch's own.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

_OPERATORS: Any = torch.ops.mkldnn
_REORDER: Any = getattr(getattr(torch._C, "_nn", None), "mkldnn_reorder_conv2d_weight", None)  # pyright: ignore[reportPrivateUsage]


def has_onednn(dtype: torch.dtype) -> bool:
    """Whether this CPU and build of torch have the operators for a dtype; tried on x86 only."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    if _REORDER is None or not hasattr(_OPERATORS, "_convolution_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and _OPERATORS._is_mkldnn_bf16_supported())


def use_onednn(module: fx.GraphModule) -> fx.GraphModule:
    """Replace the convolutions of a network, in-place, and fuse the ReLUs that follow them."""
    for node in [*module.graph.nodes]:
        conv = module.get_submodule(node.target) if node.op == "call_module" else None
        if type(conv) is nn.Conv2d:
            readers = [*node.users]
            with_relu = len(readers) == 1 and readers[0].target is F.relu
            if with_relu:
                readers[0].replace_all_uses_with(node)
                module.graph.erase_node(readers[0])
            module.add_module(node.target, OneDNNConv2d(conv, with_relu))
    module.recompile()
    return module


class OneDNNConv2d(nn.Module):
    """A convolution, and a ReLU if asked for, in inference on a CPU.

    The layout does not depend on the input, so results do not depend on the size of the first picture.
    """

    def __init__(self, conv: nn.Conv2d, with_relu: bool) -> None:
        super().__init__()
        self.bias = conv.bias
        self._sizes = [*conv.padding], [*conv.stride], [*conv.dilation], conv.groups  # pyright: ignore[reportGeneralTypeIssues]
        self._then = "relu" if with_relu else "none"
        # Not a parameter: its layout is opaque, so it must not be moved or read.
        self._weight = _REORDER(conv.weight.detach().to_mkldnn(), *self._sizes)

    def forward(self, x: Tensor) -> Tensor:
        return _OPERATORS._convolution_pointwise(x, self._weight, self.bias, *self._sizes, self._then, [], "")
