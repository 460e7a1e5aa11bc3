"""ComfyUI's web front end in headless Chromium."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

_SHOW = """([titles, side]) => {
    const [left, top, width, height] = titles.map((name) => app.graph.groups.find((group) => group.title === name)
        ).map((group) => [...group.pos, ...group.size]).reduce((a, b) => {
            const [x, y] = [Math.min(a[0], b[0]), Math.min(a[1], b[1])];
            return [x, y, Math.max(a[0] + a[2], b[0] + b[2]) - x, Math.max(a[1] + a[3], b[1] + b[3]) - y];
        });
    const canvas = app.canvas;
    canvas.deselectAll?.();
    canvas.ds.scale = side / (Math.max(width, height) + 40);
    canvas.ds.offset[0] = side / canvas.ds.scale / 2 - left - width / 2;
    canvas.ds.offset[1] = side / canvas.ds.scale / 2 - top - height / 2;
    canvas.resize?.();
    canvas.setDirty(true, true);
}"""

_HAS_RUN = """() => app.graph.nodes.filter((node) => ['PreviewImage', 'SaveImage'].includes(node.type)
    ).every((node) => node.imgs?.length || app.nodeOutputs[node.id]?.images?.length)"""

_SET_NODES_2 = "(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"

_BOXES = """() => {
    const { scale, offset } = app.canvas.ds;
    const canvas = app.canvas.canvas.getBoundingClientRect();
    return Object.fromEntries([...document.querySelectorAll('[data-node-id]')].map((element) => {
        const { left, top, width, height } = element.getBoundingClientRect();
        const corner = [(left - canvas.left) / scale - offset[0], (top - canvas.top) / scale - offset[1]];
        return [element.dataset.nodeId, [...corner, width / scale, height / scale]];
    }));
}"""

_ONLY_THE_GRAPH = (
    "#graph-canvas-container > div:not(:has(.dom-widget)):not([data-testid='transform-pane']), .p-toast"
    " { display: none !important; }"
)


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

    @property
    def version(self) -> tuple[int, ...]:
        """The front end's version."""
        return tuple(map(int, self.page.evaluate("window.__COMFYUI_FRONTEND_VERSION__").split(".")))

    @contextmanager
    def nodes_2(self) -> Iterator[None]:
        """Nodes 2.0, which are elements of the page in place of a drawing."""
        self.page.evaluate(_SET_NODES_2, True)
        try:
            yield
        finally:
            self.page.evaluate(_SET_NODES_2, False)

    def boxes(self, workflow: Path) -> dict[str, list[float]]:
        """Open a workflow in Nodes 2.0 and measure its nodes: x, y, width and height on the graph, by id."""
        self.open(workflow)
        self.page.wait_for_timeout(700)  # pictures in nodes
        return self.page.evaluate(_BOXES)

    def run(self, workflow: Path) -> None:
        """Open a workflow, press Run, and wait for its pictures."""
        self.open(workflow)
        self.page.get_by_role("button", name="Run", exact=True).first.click()
        self.page.wait_for_function(_HAS_RUN, timeout=180_000)

    def picture(self, workflow: Path, target: Path, groups: Sequence[str], side: int) -> None:
        """Save a square picture of some groups of a workflow in Nodes 2.0, and of nothing else on the page.

        Args:
            target: a ``.jpg``.
            groups: their titles.
            side: of the picture, in pixels.
        """
        with self.nodes_2():
            self.open(workflow)
            self.page.set_viewport_size({"width": side, "height": side})
            self.page.add_style_tag(content=_ONLY_THE_GRAPH)
            self.page.evaluate(_SHOW, [groups, side])
            self.page.wait_for_timeout(1500)  # pictures in nodes, text widgets
            self.page.screenshot(path=target, type="jpeg", quality=85)
