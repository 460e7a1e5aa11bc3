"""ComfyUI's web front end in headless Chromium."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, Route, sync_playwright

# What the user would see: nodes without a class are red, and their inputs lead nowhere.
_DESCRIBE = """async (workflow) => {
    await window.app.loadGraphData(workflow);
    await new Promise((done) => setTimeout(done, 300));
    const graph = window.app.graph;
    const nodes = graph.nodes.map((node) => ({
        id: String(node.id),
        type: node.type,
        known: node.type in LiteGraph.registered_node_types,
        errors: Boolean(node.has_errors),
        linked: (node.inputs ?? []).filter((input) => input.link != null).map((input) => input.name),
        dangling: (node.inputs ?? []).filter((input) => input.link != null && !graph.links.get(input.link)
            ).map((input) => input.name),
        widgets: Object.fromEntries((node.widgets ?? []).map((widget) => [widget.name, widget.value])),
        bounds: [...node.getBounding()],
    }));
    const dialogs = [...document.querySelectorAll('.p-dialog, .p-toast-message')].map((dialog) => dialog.innerText);
    const { output } = await window.app.graphToPrompt();
    return { nodes, dialogs, prompt: output };
}"""

_SELECT = """(type) => {
    app.canvas.deselectAll();
    app.canvas.selectNode(app.graph.nodes.find((node) => node.type === type));
}"""

_BOUNDS = """() => {
    const boxes = [...app.graph.nodes, ...app.graph.groups].map((item) => item.getBounding?.() ?? item.boundingRect);
    const [left, top] = [0, 1].map((side) => Math.min(...boxes.map((box) => box[side])) - 20);
    const [right, bottom] = [0, 1].map((side) => Math.max(...boxes.map((box) => box[side] + box[side + 2])) + 20);
    return [left, top, right - left, bottom - top];
}"""

_SHOW = """([bounds, width]) => {
    const canvas = app.canvas;
    canvas.deselectAll?.();
    canvas.ds.scale = width / bounds[2];
    canvas.ds.offset[0] = -bounds[0];
    canvas.ds.offset[1] = -bounds[1];
    canvas.resize?.();
    canvas.setDirty(true, true);
}"""

_RUN = "() => app.queuePrompt(0)"

_HAS_RUN = """() => app.graph.nodes.filter((node) => ['PreviewImage', 'SaveImage'].includes(node.type)
    ).every((node) => node.imgs?.length)"""

_ONLY_THE_GRAPH = "#graph-canvas-container > div:not(:has(.dom-widget)), .p-toast { display: none !important; }"


def find_chromium() -> str | None:
    """The browser: ``CHROMIUM`` in the environment, or the first known name on the path."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


class FrontEnd:
    """The page of a server, with nothing else on the network. A context manager."""

    def __init__(self, url: str, chromium: str, width: int = 1600, height: int = 900) -> None:
        self.url, self.chromium, self.size = url, chromium, {"width": width, "height": height}

    def __enter__(self) -> FrontEnd:
        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(
            executable_path=self.chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        self.page: Page = self._browser.new_page(viewport=self.size)
        self._problems: list[str] = []
        self.page.on("pageerror", lambda error: self._problems.append(str(error)))
        self.page.route("**/*", self._stay_here)
        self.page.goto(self.url)
        self.page.wait_for_function("window.app?.graph && window.app.extensionManager?.workflow", timeout=120_000)
        self.page.wait_for_timeout(1500)  # the default workflow arrives after the app
        return self

    def __exit__(self, *_: object) -> None:
        self._browser.close()
        self._playwright.stop()

    def _stay_here(self, route: Route) -> None:
        if route.request.url.startswith((self.url, "data:", "blob:")):
            route.continue_()
        else:
            route.abort()

    def open(self, workflow: Path) -> dict[str, Any]:
        """Open a workflow as by dropping it on the page.

        Returns:
            ``nodes`` (what the page knows of each), ``dialogs`` (the text of the open ones), ``problems`` (errors of
            the page's scripts since then) and ``prompt``, which is what the page would post for the Run button.
        """
        self._problems.clear()  # the front end 1.27 has one of its own when it starts
        page = self.page.evaluate(_DESCRIBE, json.loads(workflow.read_text()))
        return page | {"problems": list(self._problems)}

    def help_page(self, node_type: str) -> str:
        """The text that the info button of a node shows. Of an open workflow, the first node of the type."""
        self.page.evaluate(_SELECT, node_type)
        self.page.click('[data-testid="info-button"]')
        title = self.page.locator(".node-help-content h1").first
        title.wait_for()
        return self.page.locator(".node-help-content").first.inner_text()

    def picture(self, workflow: Path, target: Path, width: int = 1600, run: bool = False) -> None:
        """Save a picture of a workflow's graph, and of nothing else on the page, ``width`` pixels wide.

        Args:
            target: a ``.jpg``.
            run: first, so that what was drawn is in it.
        """
        self.open(workflow)
        if run:
            self.page.evaluate(_RUN)
            self.page.wait_for_function(_HAS_RUN, timeout=180_000)
        bounds = self.page.evaluate(_BOUNDS)
        height = math.ceil(width * bounds[3] / bounds[2])
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.add_style_tag(content=_ONLY_THE_GRAPH)
        self.page.evaluate(_SHOW, [bounds, width])
        self.page.wait_for_timeout(700)  # pictures in nodes, text widgets
        self.page.screenshot(path=target, type="jpeg", quality=80)
