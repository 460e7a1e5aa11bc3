"""The name by which other packs import the old one: ``custom_nodes.ComfyUI_InstantID.InstantID``.

Cloned into a folder of that name, this module is the very one whose nodes ComfyUI runs, so that functions replaced here
are replaced there.
"""

import sys

from . import NODE_CLASS_MAPPINGS

sys.modules[__name__] = sys.modules[NODE_CLASS_MAPPINGS["ApplyInstantID"].__module__]
