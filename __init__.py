"""ComfyUI's door: it loads this file when the repository lies in ``custom_nodes``, under whatever name."""

import os
import sys

# Other packs may import this one by the name of its folder, before or after ComfyUI loads it under a name of its own.
# Both get the same modules: two copies would not share what they compute, nor what is replaced in them.
_here = f"fast_instantid@{os.path.realpath(os.path.dirname(__file__))}"
if _here in sys.modules:
    NODE_CLASS_MAPPINGS = sys.modules[_here].NODE_CLASS_MAPPINGS
    NODE_DISPLAY_NAME_MAPPINGS = sys.modules[_here].NODE_DISPLAY_NAME_MAPPINGS
else:
    from .fast_instantid.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    sys.modules[_here] = sys.modules[__name__]

WEB_DIRECTORY = "./web"

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
