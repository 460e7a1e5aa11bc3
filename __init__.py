"""ComfyUI's door: it loads this file when the repository lies in ``custom_nodes``, under whatever name."""

from .fast_instantid.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
