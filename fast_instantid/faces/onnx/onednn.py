"""Convolutions on a CPU with weights in oneDNN's blocked layout.

torch's own layer reorders its weights at every call. Here a network with a fixed input size reorders them once, and a
following ReLU is fused. The operators, and the rule that needs a fixed size, are those of torch's compiler
(torch/_inductor/fx_passes/mkldnn_fusion.py). They are not public: without them
(:func:`fast_instantid.placement.has_onednn`), the layers stay torch's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .builder import Conv2d

_OPERATORS: Any = torch.ops.mkldnn
_REORDER: Any = getattr(getattr(torch._C, "_nn", None), "mkldnn_reorder_conv2d_weight", None)  # pyright: ignore[reportPrivateUsage]


def use_onednn(module: fx.GraphModule, fixed_size: bool) -> fx.GraphModule:
    """Replace the convolutions of a network, in-place, and fuse the ReLUs that follow them."""
    for node in [*module.graph.nodes]:
        conv = module.get_submodule(node.target) if node.op == "call_module" else None
        if type(conv) is Conv2d:
            readers = [*node.users]
            with_relu = len(readers) == 1 and readers[0].target is F.relu
            if with_relu:
                readers[0].replace_all_uses_with(node)
                module.graph.erase_node(readers[0])
            module.add_module(node.target, OneDNNConv2d(conv, with_relu, fixed_size))
    module.recompile()
    return module


class OneDNNConv2d(nn.Module):
    """A convolution, and a ReLU if asked for, in inference on a CPU.

    oneDNN selects the kernel for the size of the input, and each kernel needs its own layout of the weights. With a
    fixed size, the first call reorders the weights into that layout. Otherwise they stay channels-last and are
    reordered at every call: from a layout made for another size, that can take ten times as long as the convolution.
    The result is the same to the bit for any layout.
    """

    def __init__(self, conv: Conv2d, with_relu: bool, fixed_size: bool) -> None:
        super().__init__()
        self.bias = conv.bias
        self._sizes = [*conv.padding], [*conv.stride], [*conv.dilation], conv.groups  # pyright: ignore[reportGeneralTypeIssues]
        self._then = "relu" if with_relu else "none"
        self._fixed_size = fixed_size
        self._scaled = conv.scaled
        # Not a parameter: a blocked layout is opaque, so it must not be moved or read.
        weight = conv.weight.detach()
        self._weight = weight if fixed_size else weight.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        # Both are read once and in this order: another thread may replace them.
        scaled, weight = self._scaled, self._weight
        if self._fixed_size and weight.layout == torch.strided:
            # Made here and freed at once, so that all layers use the same pages of memory.
            dense = weight if scaled is None else torch.from_numpy(scaled.array())
            weight = self._weight = _REORDER(dense.to_mkldnn(), *self._sizes, x.shape)
            self._scaled = None
        return _OPERATORS._convolution_pointwise(x, weight, self.bias, *self._sizes, self._then, [], "")
