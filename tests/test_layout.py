"""The tree: who may import whom, and that it works as a clone inside ComfyUI, whatever the folder is called."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fresh import fresh_python

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fast_instantid"
HOST = ROOT / "tests" / "comfyui" / "standin"
SOURCES = sorted(PACKAGE.rglob("*.py"))

GROUND = {
    "pickles",
    "locks",
    "errors",
    "files",
    "images",
    "cache",
    "weights",
    "placement",
    "recorder",
    "sources",
    "records",
    "disk_tier",
    "kinds",
}
# Each part may import itself, the ground, and these.
ALLOWED = {
    **{name: set() for name in GROUND},
    "faces": set(),
    "identity": {"attention"},
    "attention": set(),
    "fused": {"attention"},
    "reuse": set(),
    "": {"faces", "identity", "attention", "people", "pipelines", "miniature"},
    "download": set(),
    "people": {"faces", "identity"},
    "comfyui": {"", "faces", "identity", "people", "attention", "fused", "reuse", "observe", "miniature"},
    "pipelines": {"", "faces", "identity", "attention", "fused", "reuse", "people", "miniature"},
    "miniature": set(),
    "demo": {"faces", "identity", "people", "pipelines", "miniature"},
    "observe": {"", "faces", "identity", "miniature"},
    "cli": {
        "",
        "download",
        "faces",
        "identity",
        "attention",
        "people",
        "pipelines",
        "observe",
        "demo",
        "miniature",
        "scale",
    },
    "scale": {"", "faces", "people", "pipelines", "miniature"},
    "__main__": {"cli"},
}
ONLY_IMPORTER = {
    "comfy": "comfyui",
    "comfy_execution": "comfyui",
    "folder_paths": "comfyui",
    "diffusers": "pipelines",
    "triton": "fused",
    "pynvml": "observe",
    "ray": "scale",
    "fastapi": "scale",
    "fastapi_offline": "scale",
    "uvicorn": "scale",
}
NEVER = {"insightface", "torchvision", "training", "examples", "benchmarks", "tests"}


def part_of(path: Path) -> str:
    """``faces`` for ``faces/align.py``, ``cache`` for ``cache.py``, nothing for the package's own ``__init__``."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py").removesuffix("__init__")


def imports_of(path: Path) -> list[tuple[str, int]]:
    """Modules that a file imports, at the top or inside functions: parts of the package as ``.part``."""
    found: list[tuple[str, int]] = []
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name.split(".")[0], node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                found.append(((node.module or "").split(".")[0], node.lineno))
            elif node.level == depth:  # from the root of the package
                names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
                found += [("." + ("" if name == "__version__" else name), node.lineno) for name in names]
            elif node.level > depth:
                found.append(("..", node.lineno))
    return found


def test_imports_go_one_way():
    wrong = []
    for path in SOURCES:
        part = part_of(path)
        for name, line in imports_of(path):
            where = f"{path.relative_to(ROOT)}:{line} imports {name}"
            if name.startswith("."):
                allowed = {part} | ALLOWED[part] | (GROUND if part not in GROUND else GROUND - {part})
                if name[1:] not in allowed:
                    wrong.append(where)
            elif name == "fast_instantid":
                wrong.append(f"{where}: absolute imports break the clone inside ComfyUI")
            elif name in NEVER or ONLY_IMPORTER.get(name, part) != part:
                wrong.append(where)
    assert not wrong, "\n".join(wrong)


def test_the_ground_has_no_cycles():
    graph = {p.stem: {name[1:] for name, _ in imports_of(p) if name[1:] in GROUND} for p in SOURCES if p.stem in GROUND}
    while graph:
        leaves = [name for name, needs in graph.items() if not needs & graph.keys()]
        assert leaves, f"these import each other: {graph}"
        for name in leaves:
            del graph[name]


def test_the_walk_sees_what_it_should():
    """The test above can fail: the imports it knows of are there."""
    seen = {name for path in SOURCES for name, _ in imports_of(path)}
    assert {".cache", ".errors", ".faces", ".identity", "diffusers", "torch"} <= seen


LOADER = """
import importlib.util, os, sys
path, host = sys.argv[1:]
sys.path.insert(0, host)
# As ComfyUI's nodes.load_custom_node does it: the module is called after its path, and the path is not on sys.path.
name = path.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, os.path.join(path, "__init__.py"))
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
assert module.NODE_CLASS_MAPPINGS.keys() == module.NODE_DISPLAY_NAME_MAPPINGS.keys()
assert os.path.isdir(os.path.join(path, module.WEB_DIRECTORY, "docs"))
faces = importlib.import_module(name + ".fast_instantid.faces")
assert faces.__file__.startswith(path), faces.__file__
for module in ("identity", "attention", "fused", "cli", "pipelines"):
    importlib.import_module(f"{name}.fast_instantid.{module}")
assert "fast_instantid" not in sys.modules, "an absolute import found another copy"
assert "fused.kernel" not in " ".join(sys.modules), "which imports triton"
print("loaded")
"""


def test_loads_as_a_custom_node_from_a_folder_with_any_name(tmp_path):
    folder = tmp_path / "custom_nodes" / "Fast-InstantID 1.0 (copy)"
    ignored = shutil.ignore_patterns(".git", ".venv", "tests", "__pycache__", "*.egg-info", ".*_cache")
    shutil.copytree(ROOT, folder, ignore=ignored)
    assert "loaded" in fresh_python(LOADER, str(folder), str(HOST)).stdout


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, fast_instantid; print([m for m in ('torch', 'cv2', 'diffusers', 'PIL') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_miniature_is_found_without_anything_heavy():
    code = "from fast_instantid import miniature; miniature.files(); import sys; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_help_does_not_wait_for_torch():
    code = "import atexit, sys, fast_instantid.cli as cli\natexit.register(lambda: print('torch' in sys.modules))\n"
    printed = subprocess.check_output([sys.executable, "-c", code + "cli.main(['--help'])"], text=True)
    assert printed.endswith("False\n")


def test_public_names_are_there_and_sorted():
    import fast_instantid

    assert list(fast_instantid.__all__) == sorted(fast_instantid.__all__)
    assert set(fast_instantid.__all__) <= set(dir(fast_instantid))
    for name in fast_instantid.__all__:
        assert getattr(__import__("fast_instantid", fromlist=[name]), name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        fast_instantid.Nonsense  # noqa: B018


def test_names_of_the_lazy_imports_are_those_that_type_checkers_see():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    import fast_instantid

    assert {*seen, "__version__"} == set(fast_instantid.__all__)


def test_names_from_pipelines_say_which_extra_they_need():
    code = """
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "diffusers" else find_spec(name, *rest)
from fast_instantid import Identity, Person
from fast_instantid import InstantID
"""
    last = fresh_python(code, check=False).stderr.splitlines()[-1]
    assert last.endswith("fast_instantid.pipelines needs diffusers: pip install 'fast-instantid[diffusers]'")


def test_nothing_is_installed_into_a_comfyui():
    """ComfyUI's manager installs what requirements.txt names; the dependencies are what every ComfyUI has."""
    assert not (ROOT / "requirements.txt").exists()
    project = (ROOT / "pyproject.toml").read_text()
    needs = project.partition("\ndependencies = [")[2].partition("]")[0]
    assert re.findall(r'"([\w-]+)>=', needs) == ["torch", "numpy", "pillow", "safetensors"]
