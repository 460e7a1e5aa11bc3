"""The pack's settings. ComfyUI's front end shows and stores them (web/js/settings.js)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import folder_paths

from ..cache import shared_cache

KEEP_FACES = "FastInstantID.KeepFaces"
"""Off by default. It is read for ComfyUI's default user: with ``--multi-user`` all would share one user's choice."""


def follow_settings() -> None:
    """Keep faces and identities in ComfyUI's user folder while the setting is on.

    ``$FAST_INSTANTID_CACHE`` takes precedence.
    """
    if os.environ.get("FAST_INSTANTID_CACHE"):
        return
    folder, cache = folder_paths.get_user_directory(), shared_cache()
    try:
        keep = json.loads(Path(folder, "default", "comfy.settings.json").read_text()).get(KEEP_FACES) is True
    except FileNotFoundError:
        keep = False
    except (OSError, ValueError, AttributeError):  # the host is writing it
        return
    if keep != cache.persistent:
        cache.keep_in(folder if keep else None)
