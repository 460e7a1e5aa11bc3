"""The node pack for ComfyUI."""

from __future__ import annotations

from .clashes import warn_of_clashes
from .memory import when_unloading
from .models import register_folders, release
from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

register_folders()
when_unloading(release)
warn_of_clashes()
