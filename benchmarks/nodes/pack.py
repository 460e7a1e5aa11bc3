"""A node pack in the host, loaded from its user's folder, and its patches of the UNet's layers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.nodes.host import Host, call, import_nodes, load_pack
from benchmarks.nodes.watch import Watch
from benchmarks.sizes import HEAD_CHANNELS, LAYERS, TEXT_TOKENS, WEIGHT

LOADERS = {"import": "import of the pack", "load adapter": "Load InstantID Model"}
LOADERS |= {"load face networks": "InstantID Face Analysis", "apply": "Apply InstantID"}
"""Parts of a start -> the names of rows."""
_OUR_STAGES = {
    "detect": "detect",
    "align": "recognise",
    "recognise": "recognise",
    "resample": "tokens",
    "project": "keys and values",
}
"""Stages of our package -> the names that both sides have here."""
_QUERIES = 64


class Pack:
    """A folder of ``custom_nodes``, and the outputs of its two loader nodes.

    Args:
        adapter: name of its file.
        watch: gets the seconds of the parts ``LOADERS``.
        detailed: also watch the parts inside of nodes. That costs time, so such a session does not count.
    """

    def __init__(self, host: Host, folder: Path, adapter: str, watch: Watch | None = None, detailed: bool = False):
        import_nodes()  # with all that it imports: a running ComfyUI has that too
        self.host, self._watch = host, watch or Watch()
        with self._watch.part("import"):
            pack = load_pack(folder)
        self._nodes = pack.NODE_CLASS_MAPPINGS
        module = sys.modules.get(f"{pack.__name__}.fast_instantid.recorder")
        self.recorder = None if module is None else module.Recorder
        """The version of our pack; None for another pack."""
        with self._watch.part("load adapter"):
            (self.instantid,) = call(self._nodes["InstantIDModelLoader"], instantid_file=adapter)
        with self._watch.part("load face networks"):
            (self.faces,) = call(self._nodes["InstantIDFaceAnalysis"], provider="CPU")
        self._detailed = detailed
        if detailed and self.recorder is None:
            self._watch_reference()

    def apply(self, node: str = "ApplyInstantID", **inputs: Any) -> tuple[Any, Any, Any]:
        """Model, positive and negative of an Apply node."""
        host = self.host
        inputs = {"positive": host.positive, "negative": host.negative, "start_at": 0.0, "end_at": 1.0} | inputs
        inputs |= {"instantid": self.instantid, "insightface": self.faces}
        inputs |= {"model": host.model, "control_net": host.control_net}
        if node == "ApplyInstantID":
            inputs.setdefault("weight", WEIGHT)
        with self._watch.part("apply"):
            if not self._detailed or self.recorder is None:
                return call(self._nodes[node], **inputs)
            with self.recorder() as recorded:
                result = call(self._nodes[node], **inputs)
        inside: list[bool] = []
        for span in recorded.spans:
            is_inner = span.parent >= 0 and inside[span.parent]
            inside.append(is_inner or span.name in _OUR_STAGES)
            if span.name in _OUR_STAGES and not is_inner:
                self._watch.move("apply", _OUR_STAGES[span.name], span.duration / 1e9)
        return result

    def _watch_reference(self) -> None:
        """Watch what its nodes and layers call."""
        watch = self._watch
        watch.around(self.faces.det_model, "detect", "detect")
        for task, network in self.faces.models.items():
            if task != "detection":
                watch.around(network, "get", "recognise" if task == "recognition" else "other face networks")
        watch.around(self.instantid, "get_image_embeds", "tokens")
        for projection in self.instantid.ip_layers.to_kvs.values():
            watch.around(projection, "forward", "keys and values")


class Layers:
    """The calls of attention patches in one evaluation of SDXL's UNet: its widths, 64 queries, 77 text tokens."""

    def __init__(self, host: Host) -> None:
        common = {"cond_or_uncond": [1, 0], "sigmas": torch.tensor([host.sigma], device=host.device)}
        common |= {"attn_precision": None, "original_shape": [2, 4, 128, 128], "dim_head": HEAD_CHANNELS}
        inputs = {
            width: [host.random(2, tokens, width) for tokens in (_QUERIES, TEXT_TOKENS, TEXT_TOKENS)]
            for width in set(LAYERS.values())
        }
        blocks = sorted({layer[:2] for layer in LAYERS})  # input, middle, output: as the UNet counts them
        self._calls = {
            layer: (
                *inputs[width],
                common
                | {"n_heads": width // HEAD_CHANNELS, "block": layer[:2], "block_index": layer[2]}
                | {"transformer_index": blocks.index(layer[:2])},
            )
            for layer, width in LAYERS.items()
        }

    @torch.inference_mode()
    def evaluate(self, model: Any, batch: int = 1) -> dict[tuple[Any, ...], Tensor]:
        """Results ``(2 * batch, 64, C)`` of the patched layers that the UNet asks for, for ``batch`` pictures."""
        patches = model.model_options["transformer_options"]["patches_replace"]["attn2"]
        return {
            layer: patches[layer](*(tensor.repeat_interleave(batch, 0) for tensor in inputs), options)
            if batch > 1
            else patches[layer](*inputs, options)
            for layer, (*inputs, options) in self._calls.items()
            if layer in patches
        }

    @torch.inference_mode()
    def evaluate_unpatched(self) -> dict[tuple[Any, ...], Tensor]:
        """Results of ComfyUI's text attention alone, in the 60 layers that both packs' Apply InstantID patches."""
        from comfy.ldm.modules.attention import optimized_attention

        return {
            layer: optimized_attention(q, k, v, options["n_heads"], attn_precision=None, transformer_options=options)
            for layer, (q, k, v, options) in self._calls.items()
            if layer[0] != "middle"
        }
