"""The recogniser as an ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from examples.onnx_writer import OnnxWriter
from training.networks import EMBEDDING_DIM
from training.recognizer import Block, Recognizer


def write_onnx(model: Recognizer, path: Path) -> None:
    """Write a recogniser in the layout of antelopev2's: ``(N, 3, 112, 112)`` to ``(N, 512)``."""
    net = OnnxWriter(seed=0)
    x = _write(net, model.neck, _write(net, model.body, "images"))
    flat = net.op("Flatten", [x], axis=1)
    x = net.op("Gemm", [flat, *_constants(net, model.linear.weight, model.linear.bias)], transB=1)
    scale, shift = _affine(model.norm)
    _norm(net, x, scale, shift, output="embedding")
    net.save(path, [None, 3, 112, 112], {"embedding": [None, EMBEDDING_DIM]})


def _write(net: OnnxWriter, module: nn.Module, x: str) -> str:
    if isinstance(module, nn.Sequential):
        layers = list(module)
        for i, layer in enumerate(layers):
            following = layers[i + 1] if i + 1 < len(layers) else None
            if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                x = _write(net, fuse_conv_bn_eval(layer, following), x)
            elif not (isinstance(layer, nn.BatchNorm2d) and i and isinstance(layers[i - 1], nn.Conv2d)):
                x = _write(net, layer, x)
        return x
    if isinstance(module, Block):
        shortcut = x if module.shortcut is None else _write(net, module.shortcut, x)
        return net.op("Add", [_write(net, module.branch, x), shortcut])
    if isinstance(module, nn.Conv2d):
        sizes = {name: list(getattr(module, attribute)) for name, attribute in _CONV.items()}
        pads = [int(side) for side in module.padding] * 2
        return net.op("Conv", [x, *_constants(net, module.weight, module.bias)], pads=pads, group=1, **sizes)
    if isinstance(module, nn.PReLU):
        return net.op("PRelu", [x, net.const(module.weight.detach().numpy().reshape(-1, 1, 1))])
    if isinstance(module, nn.BatchNorm2d):
        return _norm(net, x, *_affine(module))
    raise NotImplementedError(f"{type(module).__name__} has no counterpart in the export")


_CONV = {"kernel_shape": "kernel_size", "strides": "stride"}


def _constants(net: OnnxWriter, *values: nn.Parameter | None) -> list[str]:
    return [net.const(np.ascontiguousarray(value.detach().numpy())) for value in values if value is not None]


def _affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[np.ndarray, np.ndarray]:
    """The factor and the offset that a BatchNorm is at inference."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    shift = shift if norm.bias is None else shift + norm.bias.detach()
    return scale.numpy(), shift.numpy()


def _norm(net: OnnxWriter, x: str, scale: np.ndarray, shift: np.ndarray, output: str | None = None) -> str:
    zeros, ones = np.zeros_like(scale), np.ones_like(scale)
    parameters = [net.const(array) for array in (scale, shift, zeros, ones)]
    return net.op("BatchNormalization", [x, *parameters], output=output, epsilon=0.0)
