"""The node pack for ComfyUI."""

from __future__ import annotations

import logging

from .clashes import warn_of_clashes
from .memory import when_unloading
from .models import register_folders, release
from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]


def _say_who_speaks(record: logging.LogRecord) -> bool:
    """ComfyUI's log shows messages without the names of their loggers."""
    if not str(record.msg).startswith("[Fast InstantID] "):
        record.msg = f"[Fast InstantID] {record.msg}"
    return True


logging.getLogger("fast_instantid").addFilter(_say_who_speaks)
register_folders()
when_unloading(release)
warn_of_clashes()
