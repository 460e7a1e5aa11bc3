"""The node pack for ComfyUI."""

from __future__ import annotations

import logging

from .clashes import watch_for_clashes
from .examples import provide_files
from .memory import call_on_unload
from .models import register_folders, release
from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from .replacements import register_replacements

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]


def _add_prefix(record: logging.LogRecord) -> bool:
    """Name this pack in a message: ComfyUI's log format has no logger names."""
    if not str(record.msg).startswith("[Fast InstantID] "):
        record.msg = f"[Fast InstantID] {record.msg}"
    return True


logging.getLogger("fast_instantid").addFilter(_add_prefix)
register_folders()
call_on_unload(release)
watch_for_clashes(NODE_CLASS_MAPPINGS)
register_replacements()
provide_files()
