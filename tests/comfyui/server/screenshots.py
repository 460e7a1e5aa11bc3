"""Draw the pictures of the example workflows again, after one of them was changed.

In an environment that has ComfyUI's requirements and playwright, with Chromium on the path::

    COMFYUI_PATH=… IPADAPTER_PATH=… python -m tests.comfyui.server.screenshots
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tests.comfyui.server.frontend import FrontEnd, find_chromium
from tests.comfyui.server.host import ROOT
from tests.comfyui.server.installation import install


def main() -> None:
    chromium = find_chromium()
    if chromium is None:
        raise SystemExit("no Chromium on the path: put its file name into the variable CHROMIUM")
    comfyui, ipadapter = Path(os.environ["COMFYUI_PATH"]).resolve(), os.environ["IPADAPTER_PATH"]
    with (
        tempfile.TemporaryDirectory() as folder,
        install(comfyui, Path(folder) / "base", ipadapter) as server,
        FrontEnd(server.url, chromium) as front_end,
    ):
        for workflow in sorted((ROOT / "example_workflows").glob("*.json")):
            # The models of the others are random here.
            run = workflow.stem == "instantid_miniature"
            front_end.picture(workflow, workflow.with_suffix(".jpg"), run=run)


if __name__ == "__main__":
    main()
