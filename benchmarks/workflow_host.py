"""A real ComfyUI in this process, and a node pack loaded into it as its user has it.

Run as a program it measures one cold start and prints it as JSON. For that it imports nothing of ours, and no package
that a ComfyUI which has just started has not imported.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DEPTHS = {("input", 4): 2, ("input", 5): 2, ("input", 7): 10, ("input", 8): 10}
_DEPTHS |= {("output", block): depth for block, depth in enumerate((10, 10, 10, 2, 2, 2))} | {("middle", 0): 10}
LAYERS = {(*block, i): 640 if depth == 2 else 1280 for block, depth in _DEPTHS.items() for i in range(depth)}
"""SDXL's 70 cross-attention layers as its UNet calls them, in the adapter's order, and the channels of each."""
TOKEN_WIDTH = 2048
ADAPTER = "ip-adapter.bin"
"""The published one, among a user's models."""
_HEAD_CHANNELS = 64
_QUERIES, _TEXT_TOKENS = 64, 77
TINY_SDXL: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10,
    "context_dim": TOKEN_WIDTH,
    "num_classes": "sequential",
    "adm_in_channels": 64 + 6 * 256,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "use_temporal_attention": False,
    "use_checkpoint": False,
    "legacy": False,
}
"""Its own channels don't matter: it is patched and never evaluated."""


class Host:
    """ComfyUI on the CPU, with a model, a ControlNet, two prompts, and what its UNet hands to attention patches.

    Args:
        comfyui: its checkout.
        base: the folder that has ``models`` in it.
    """

    def __init__(self, comfyui: Path, base: Path) -> None:
        sys.path.insert(0, str(comfyui))
        from comfy.cli_args import args

        args.cpu, args.base_directory = True, str(base)
        import comfy.cldm.cldm
        import comfy.controlnet
        import comfy.model_patcher
        import comfy.supported_models
        import comfyui_version
        import nodes  # noqa: F401  # with all that it imports: a running ComfyUI has that too

        cpu = torch.device("cpu")
        self.version: str = comfyui_version.__version__
        depths = {"out_channels": 4, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10]}
        config = comfy.supported_models.SDXL({**TINY_SDXL, **depths})
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, device=cpu)
        self.model = comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
        network = comfy.cldm.cldm.ControlNet(
            **TINY_SDXL, num_head_channels=8, hint_channels=3, dtype=torch.float32, device=cpu
        )
        self.control_net = comfy.controlnet.ControlNet(network, load_device=cpu)
        self.prompt = [[torch.randn(1, _TEXT_TOKENS, TOKEN_WIDTH), {"pooled_output": torch.randn(1, 64)}]]
        sigma = self.model.get_model_object("model_sampling").percent_to_sigma(0.5)
        common = {"cond_or_uncond": [1, 0], "sigmas": torch.tensor([sigma]), "original_shape": [2, 4, 128, 128]}
        common |= {"dim_head": _HEAD_CHANNELS, "attn_precision": None}
        inputs = {
            width: [torch.randn(2, tokens, width) for tokens in (_QUERIES, _TEXT_TOKENS, _TEXT_TOKENS)]
            for width in (640, 1280)
        }
        transformers = sorted(_DEPTHS)  # input, middle, output: as the UNet counts them
        self._calls = {
            layer: (
                *inputs[width],
                common
                | {"n_heads": width // _HEAD_CHANNELS, "block": layer[:2], "block_index": layer[2]}
                | {"transformer_index": transformers.index(layer[:2])},
            )
            for layer, width in LAYERS.items()
        }

    @torch.inference_mode()
    def evaluate(self, model: Any, batch: int = 1) -> dict[tuple[Any, ...], Tensor]:
        """What the patched layers of ``model`` return in one evaluation of ``batch`` pictures: ``(2 * batch, 64, C)``
        of each layer that the UNet asks for (the reference also patches ten that it does not)."""
        patches = model.model_options["transformer_options"]["patches_replace"]["attn2"]
        calls = self._calls
        if batch > 1:
            calls = {
                layer: (*(tensor.repeat_interleave(batch, 0) for tensor in inputs), options)
                for layer, (*inputs, options) in calls.items()
            }
        return {layer: patches[layer](*call) for layer, call in calls.items() if layer in patches}

    @torch.inference_mode()
    def evaluate_unpatched(self) -> dict[tuple[Any, ...], Tensor]:
        """What ComfyUI's text attention alone returns in the 60 layers that both packs' Apply InstantID patches: all
        but those of the middle block."""
        from comfy.ldm.modules.attention import optimized_attention

        return {
            layer: optimized_attention(q, k, v, options["n_heads"], attn_precision=None, transformer_options=options)
            for layer, (q, k, v, options) in self._calls.items()
            if layer[0] != "middle"
        }


class Side:
    """A node pack, loaded as ComfyUI loads custom nodes, and the outputs of its two loader nodes."""

    def __init__(self, host: Host, folder: Path, adapter: str = ADAPTER) -> None:
        self.host = host
        self.seconds: dict[str, float] = {}
        with self._timed("import of the pack"):
            pack = load_pack(folder)
        self._nodes = pack.NODE_CLASS_MAPPINGS
        module = sys.modules.get(f"{pack.__name__}.fast_instantid.recorder")
        self.recorder = None if module is None else module.Recorder
        """Of this copy of our pack; None for another pack."""
        with self._timed("Load InstantID Model"):
            (self.instantid,) = self._call("InstantIDModelLoader", instantid_file=adapter)
        with self._timed("InstantID Face Analysis"):
            (self.faces,) = self._call("InstantIDFaceAnalysis", provider="CPU")

    def apply(self, image: Tensor, weight: float = 0.8, start_at: float = 0.0, end_at: float = 1.0) -> Any:
        """The model that Apply InstantID returns for ``(B, H, W, 3)``."""
        host = self.host
        with self._timed("Apply InstantID"):
            model, _, _ = self._call(
                "ApplyInstantID",
                instantid=self.instantid,
                insightface=self.faces,
                control_net=host.control_net,
                image=image,
                model=host.model,
                positive=host.prompt,
                negative=host.prompt,
                weight=weight,
                start_at=start_at,
                end_at=end_at,
            )
        return model

    @torch.inference_mode()
    def _call(self, node_id: str, **inputs: Any) -> tuple[Any, ...]:
        node = self._nodes[node_id]
        return getattr(node(), node.FUNCTION)(**inputs)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[what] = time.perf_counter() - start


def load_pack(folder: Path) -> Any:
    """Import a folder of ``custom_nodes`` as ComfyUI does (nodes.py, ``load_custom_node``): its path is its name."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """``python -m benchmarks.workflow_host COMFYUI BASE PACK IMAGE ADAPTER``: seconds of one cold start, by part."""
    comfyui, base, pack, image = map(Path, sys.argv[1:5])
    host, picture = Host(comfyui, base), torch.load(image)
    side = Side(host, pack, sys.argv[5])
    model = side.apply(picture)
    host.evaluate(model)
    start = time.perf_counter()
    host.evaluate(model)
    print(json.dumps({"nodes": side.seconds, "evaluation": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
