"""A ComfyUI with our pack and tiny models, as the tests and the thumbnails use it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.comfyui.server.host import ComfyServer

SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.UseNewMenu": "Top",
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.LinkMarkers": 0,
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
    "Comfy.NodeBadge.NodeLifeCycleBadgeMode": "None",
    "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.1,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
    "Comfy.Workflow.ShowMissingNodesWarning": True,
    "Comfy.Workflow.ShowMissingModelsWarning": True,
    "Comfy.VersionCompatibility.DisableWarnings": True,
}
"""Of the user: no tour, nothing over the graph, text at every scale, and a word about missing nodes and models, but not
about the host's own packages."""


def install(comfyui: Path, base: Path, ipadapter: str | None) -> ComfyServer:
    """Fill the empty folder ``base``; the server starts when it is entered.

    Args:
        comfyui: a checkout of ComfyUI.
        ipadapter: a checkout of ComfyUI_IPAdapter_plus.
    """
    (base / "input").mkdir(parents=True)
    settings = base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps(SETTINGS))
    return ComfyServer(comfyui, base, [Path(ipadapter)] if ipadapter else [])
