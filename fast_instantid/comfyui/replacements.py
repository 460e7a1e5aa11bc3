"""Nodes of abandoned packs that ComfyUI offers to replace when a workflow or a prompt has them."""

from __future__ import annotations

import sys
from typing import Any

_PROVIDER = {"new_id": "provider", "set_value": "auto"}
_REPLACEMENTS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    # ZHO-ZHO-ZHO/ComfyUI-InstantID. Its other nodes have no counterpart: they pass on pipelines of diffusers.
    "InsightFaceLoader": ("InstantIDFaceAnalysis", [_PROVIDER]),
    # upseem/comfyui_sunxAI_facetools, whose InstantID nodes have our ids. Without a face, these two skip the VAE.
    "VAEDecodeNew": ("VAEDecode", [{"new_id": name, "old_id": name} for name in ("samples", "vae")]),
    "VAEEncodeNew": ("VAEEncode", [{"new_id": name, "old_id": name} for name in ("pixels", "vae")]),
}
"""Old id -> new id and inputs. A value that an old prompt may lack is set, because the host does not check for it."""


def register_replacements() -> None:
    """Register the replacements with ComfyUI. Versions before 0.14 have no register (app/node_replace_manager.py)."""
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    manager = getattr(getattr(server, "instance", None), "node_replace_manager", None)
    if manager is None:
        return
    from comfy_api.latest import io  # pyright: ignore[reportMissingImports]  # not in the oldest hosts

    for old, (new, inputs) in _REPLACEMENTS.items():
        outputs = [{"new_idx": 0, "old_idx": 0}]
        manager.register(io.NodeReplace(new, old, input_mapping=inputs, output_mapping=outputs))
