"""ComfyUI's door: it loads this file when the repository lies in ``custom_nodes``, under whatever name."""

import sys
from types import ModuleType

# Other packs may import this one by the name of its folder, before or after ComfyUI loads it under a name of its own.
# Both get the same modules: two copies would not share what they compute, nor what is replaced in them.
_loaded = [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
_first = next((module for module in _loaded if vars(module).get("_FAST_INSTANTID") == __file__), None)
if _first is None:
    from .fast_instantid.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    _FAST_INSTANTID = __file__
else:
    NODE_CLASS_MAPPINGS = _first.NODE_CLASS_MAPPINGS
    NODE_DISPLAY_NAME_MAPPINGS = _first.NODE_DISPLAY_NAME_MAPPINGS

WEB_DIRECTORY = "./web"

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
