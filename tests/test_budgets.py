"""How much code there is, and that no modules need each other to be imported."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fast_instantid"
WRITTEN = {".py", ".js", ".css", ".html"}
OBSERVATION = [
    "recorder.py",
    "observe/**/*",
    *(f"cli/{command}*.py" for command in ("doctor", "watch", "profile")),
    "comfyui/observe/**/*",
    "comfyui/clashes.py",
]


def written(folder: Path, *patterns: str) -> set[Path]:
    return {path for pattern in patterns for path in folder.glob(pattern) if path.suffix in WRITTEN}


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


BOUNDS = {
    "cli": 2_570,
    "comfyui": 3_850,
    "faces": 3_150,
    "identity": 1_080,
    "observe": 1_740,
    "people": 1_650,
    "pipelines": 2_640,
    "scale": 2_600,
}


@pytest.mark.parametrize("part", BOUNDS)
def test_a_part_stays_within_its_bound(part):
    """docs/adr/0018-how-large-the-package-may-be.md has the reasons."""
    assert sum(map(lines, written(PACKAGE, f"{part}/**/*"))) <= BOUNDS[part]


def test_the_package_is_at_most_22250_lines():
    assert sum(map(lines, written(PACKAGE, "**/*"))) <= 22_250


def test_observation_is_at_most_2750_lines():
    assert sum(map(lines, written(PACKAGE, *OBSERVATION))) <= 2_750


def test_benchmarks_are_at_most_4900_lines():
    assert sum(map(lines, (ROOT / "benchmarks").rglob("*.py"))) <= 4_900


def test_no_file_of_the_package_is_longer_than_320_lines():
    counts = {str(path.relative_to(ROOT)): lines(path) for path in written(PACKAGE, "**/*")}
    assert {path: count for path, count in counts.items() if count > 320} == {}


def imports_at_the_top(node: ast.AST) -> Iterator[ast.ImportFrom]:
    """Relative imports of a module outside its functions, those under ``TYPE_CHECKING`` among them."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom) and child.level:
            yield child
        elif not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from imports_at_the_top(child)


def import_graph(package: Path) -> dict[str, set[str]]:
    """Modules that each module names in its imports. A package is its ``__init__``."""

    def name(path: Path) -> tuple[str, ...]:
        return path.relative_to(package.parent).with_suffix("").parts

    modules = {name(path)[:-1] if path.stem == "__init__" else name(path): path for path in package.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        needs = graph.setdefault(".".join(module), set())
        for node in imports_at_the_top(ast.parse(path.read_text())):
            base = (*name(path)[: -node.level], *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                needs.add(".".join(full if (full := (*base, alias.name)) in modules else base))
    return graph


def test_no_imports_go_in_circles():
    graph = import_graph(PACKAGE)
    assert "fast_instantid.errors" in graph["fast_instantid.images"], "the graph has the edges that it should"
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the modules of one circle


def test_a_circle_is_found(tmp_path):
    for name, text in {
        "__init__": "",
        "one": "from .two import name",
        "two": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import one",
        "three": "def function():\n    from . import four",
        "four": "from .three import function",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    graph = import_graph(tmp_path)
    top = tmp_path.name
    edges = {
        module.removeprefix(f"{top}."): {need.removeprefix(f"{top}.") for need in graph[module]} for module in graph
    }
    assert edges == {top: set(), "one": {"two"}, "two": {"one"}, "three": set(), "four": {"three"}}
