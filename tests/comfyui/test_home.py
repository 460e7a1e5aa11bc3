"""At home in ComfyUI: translations, search, advanced inputs, the pack's setting, replaced nodes, and the registry."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import folder_paths
import pytest

from fast_instantid import __version__
from fast_instantid.cache import FOLDER
from tests.comfyui import node_schema, tiny
from tests.comfyui.conftest import ROOT
from tests.comfyui.installation import installed, queue
from tests.comfyui.node_schema import LOCALES, inputs_of, outputs_of, read

LANGUAGES = ("zh", "ja")
ADVANCED = {"layers", "noise", "no_face", "det_threshold", "det_size", "enhance_non_face_region"}
ADVANCED |= {"identity_net_every", "blocks"}
ADVANCED |= {f"{part}_{end}" for part in ("identity", "identity_net") for end in ("start", "end")}
SETTING = "FastInstantID.KeepFaces"
LETTERS = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")
ROW = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)


# Texts


def test_the_english_texts_are_those_of_the_nodes(our_pack: ModuleType) -> None:
    english = node_schema.english(our_pack)
    assert read(LOCALES / "en" / "nodeDefs.json") == english, "python -m tests.comfyui.node_schema writes it anew"
    for id, node in our_pack.NODE_CLASS_MAPPINGS.items():
        assert list(english[id]["outputs"]) == [str(i) for i, _ in enumerate(outputs_of(node))]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_translated(our_pack: ModuleType, language: str) -> None:
    translated = read(LOCALES / language / "nodeDefs.json")
    assert set(translated) == set(our_pack.NODE_CLASS_MAPPINGS)
    names = [texts["display_name"] for texts in translated.values()]
    assert len({*names}) == len(names)
    for id, node in our_pack.NODE_CLASS_MAPPINGS.items():
        texts = translated[id]
        assert list(texts["inputs"]) == list(inputs_of(node))
        assert [*texts["outputs"]] == [str(i) for i, _ in enumerate(outputs_of(node))]
        said = [texts["display_name"], texts["description"]]
        said += [text["tooltip"] for slot in ("inputs", "outputs") for text in texts[slot].values()]
        said = [text for text in said if text.strip("。") not in ("IdentityNet",)]
        assert [text for text in said if not LETTERS.search(text)] == []
        assert [text for text in said if re.search("[{}@|]", text)] == [], "vue-i18n reads these"
        assert all(text["name"].strip() for text in texts["inputs"].values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_a_help_page_in_each_language(our_pack: ModuleType, language: str) -> None:
    texts = read(LOCALES / language / "nodeDefs.json")
    for id, node in our_pack.NODE_CLASS_MAPPINGS.items():
        page = (ROOT / our_pack.WEB_DIRECTORY / "docs" / id / f"{language}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {texts[id]['display_name']}\n")
        assert ROW.findall(page) == [*inputs_of(node), *(name for name, _ in outputs_of(node))]


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_the_setting_is_named_in_each_language(language: str) -> None:
    script = (ROOT / "web" / "js" / "settings.js").read_text()
    texts = read(LOCALES / language / "main.json")
    said = texts["settings"][SETTING.replace(".", "_")]
    category = ast.literal_eval(re.search(r"category: (\[.*\])", script)[1])
    assert set(texts["settingsCategories"]) == set(category)
    assert f'id: "{SETTING}"' in script
    if language == "en":
        tooltip = re.search(r'tooltip:\s*(".*"),', script, re.DOTALL)[1]
        tooltip = ast.literal_eval(f"({tooltip.replace('+', '')})")
        assert said == {"name": category[-1], "tooltip": tooltip}
    else:
        assert LETTERS.search(said["name"])
        assert LETTERS.search(said["tooltip"])


# Search and advanced inputs


def test_nodes_are_found_by_other_words(our_pack: ModuleType) -> None:
    for node in our_pack.NODE_CLASS_MAPPINGS.values():
        words = node.SEARCH_ALIASES
        assert len(words) > 1
        assert all(isinstance(word, str) and word == word.lower() for word in words)


def test_what_few_change_is_advanced(our_pack: ModuleType) -> None:
    for id, node in our_pack.NODE_CLASS_MAPPINGS.items():
        inputs = inputs_of(node)
        few = ADVANCED - ({"no_face"} if id == "InstantIDPerson" else set())
        assert {name for name, (_, options, _) in inputs.items() if options.get("advanced")} == few & set(inputs)


# The setting


@pytest.fixture
def user(our_pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``user(True)`` stores the setting as the page does; ``user.folder`` is the user's folder in ComfyUI."""
    monkeypatch.delenv("FAST_INSTANTID_CACHE", raising=False)
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    file = tmp_path / "default" / "comfy.settings.json"

    def store(value: Any) -> None:
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"Comfy.Locale": "en", SETTING: value}))

    store.folder, store.file = tmp_path, file
    yield store
    package = f"{our_pack.__name__}.fast_instantid"
    sys.modules[f"{package}.cache"].shared_cache().keep_in(None)
    sys.modules[f"{package}.comfyui.models"].release()


@pytest.fixture
def look(our_pack: ModuleType, adapter: Any, face_pack: Path, model: Any, portrait: Any) -> Callable[[], Any]:
    """Look at a face and make its identity, as after a restart; returns the counts of the cache."""
    package = f"{our_pack.__name__}.fast_instantid"
    nodes = our_pack.NODE_CLASS_MAPPINGS
    (analysis,) = tiny.call(nodes["InstantIDFaceAnalysis"], provider="CPU")
    cache = sys.modules[f"{package}.cache"].shared_cache()

    def look() -> Any:
        cache.clear()
        before = cache.stats.disk_hits, cache.stats.misses
        common = {"weight": 0.8, "start_at": 0.0, "end_at": 1.0, "noise": 0.0}
        tiny.call(
            nodes["InstantIDAttentionPatch"],
            instantid=adapter,
            insightface=analysis,
            image=portrait,
            model=model,
            **common,
        )
        return cache.stats.disk_hits - before[0], cache.stats.misses - before[1]

    return look


def test_faces_are_kept_while_the_setting_is_on(user: Any, look: Callable[[], Any]) -> None:
    kept = user.folder / FOLDER
    hits, misses = look()
    assert (hits, misses > 0) == (0, True)
    assert not kept.exists(), "off by default"
    user(True)
    assert look() == (0, misses)
    assert look() == (misses, 0), "after a restart nothing runs: no detector, no recogniser, no adapter"
    assert kept.stat().st_mode & 0o077 == 0
    assert len([*kept.iterdir()]) == misses
    assert all(file.stat().st_mode & 0o077 == 0 for file in kept.iterdir())
    user(False)
    assert look() == (0, misses)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"FastInstantID.KeepFaces": "yes"}', "\xff"])
def test_a_settings_file_that_is_no_such_file_turns_nothing_on(user: Any, look: Callable[[], Any], text: str) -> None:
    user(False)
    user.file.write_bytes(text.encode("latin-1"))
    assert look()[0] == 0
    assert not (user.folder / FOLDER).exists()


def test_a_half_written_settings_file_turns_nothing_off(user: Any, look: Callable[[], Any]) -> None:
    user(True)
    _, misses = look()
    user.file.write_text('{"FastInst')
    assert look() == (misses, 0)


def test_the_environment_goes_before_the_setting(
    user: Any, look: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is taken when the cache is made."""
    user(True)
    monkeypatch.setenv("FAST_INSTANTID_CACHE", str(user.folder / "elsewhere"))
    look()
    assert not (user.folder / FOLDER).exists()


# What only the doctor finds


def test_the_doctor_finds_what_the_list_of_missing_models_cannot(tmp_path: Path, face_pack: Path) -> None:
    """The front end's list compares the chosen names with those on offer (missingModelScan.ts, ``scanComboWidget``)."""
    with installed(tmp_path / "ComfyUI") as comfyui:
        nodes = comfyui.start().NODE_CLASS_MAPPINGS
        adapter = comfyui.models / "instantid" / "ip-adapter.bin"
        adapter.parent.mkdir(parents=True, exist_ok=True)
        adapter.write_bytes(b"<html>not found</html>")
        offered = nodes["InstantIDModelLoader"].INPUT_TYPES()["required"]["instantid_file"][0]
        assert offered == ["ip-adapter.bin"], "the list of missing models is content"
        kinds = [kind for kind, *_ in inputs_of(nodes["InstantIDFaceAnalysis"]).values()]
        assert not [value for kind in kinds for value in kind if value.endswith(".onnx")], "and asks for no face model"
        ((text,), *_) = [queue(nodes["InstantIDDoctor"])["result"]]
        broken = [line for line in text.splitlines() if "BROKEN" in line]
        assert any("face" in line.lower() for line in broken), text
        assert any("ip-adapter.bin" in line or "adapter" in line.lower() for line in broken), text


# Nodes of abandoned packs


@pytest.fixture
def replacements(real_host: Path, our_pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The host's register, with our entries only."""
    register = pytest.importorskip("app.node_replace_manager", reason="this ComfyUI replaces no nodes")
    manager = register.NodeReplaceManager()
    server = ModuleType("server")
    server.PromptServer = type("PromptServer", (), {"instance": type("", (), {"node_replace_manager": manager})})
    monkeypatch.setitem(sys.modules, "server", server)
    sys.modules[f"{our_pack.__name__}.fast_instantid.comfyui.replacements"].register_replacements()
    return manager


def test_nodes_of_abandoned_packs_become_ours(
    replacements: Any, our_pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nodes

    monkeypatch.setattr(nodes, "NODE_CLASS_MAPPINGS", {**nodes.NODE_CLASS_MAPPINGS, **our_pack.NODE_CLASS_MAPPINGS})
    prompt = {
        "1": {"class_type": "InsightFaceLoader", "inputs": {"provider": "CUDA"}, "_meta": {"title": "faces"}},
        "2": {"class_type": "InsightFaceLoader", "inputs": {}, "_meta": {"title": "faces"}},
        "3": {"class_type": "ApplyInstantID", "inputs": {"insightface": ["1", 0]}, "_meta": {}},
        "4": {"class_type": "VAEDecodeNew", "inputs": {"samples": ["5", 0], "vae": ["6", 2]}, "_meta": {}},
    }
    replacements.apply_replacements(prompt)
    assert [(node["class_type"], node["inputs"]) for node in prompt.values()] == [
        ("InstantIDFaceAnalysis", {"provider": "auto"}),
        ("InstantIDFaceAnalysis", {"provider": "auto"}),
        ("ApplyInstantID", {"insightface": ["1", 0]}),
        ("VAEDecode", {"samples": ["5", 0], "vae": ["6", 2]}),
    ]


def test_every_replacement_names_inputs_of_its_new_node(replacements: Any, our_pack: ModuleType) -> None:
    import nodes

    known = {**nodes.NODE_CLASS_MAPPINGS, **our_pack.NODE_CLASS_MAPPINGS}
    for old, (entry,) in replacements.as_dict().items():
        assert old not in our_pack.NODE_CLASS_MAPPINGS
        new = known[entry["new_node_id"]]
        assert [given["new_id"] for given in entry["input_mapping"]] == list(new.INPUT_TYPES()["required"])


# The registry


def test_the_registry_gets_what_it_asks_for() -> None:
    """Its rules, as comfy-cli 1.23.0 checks them (comfy_cli/registry/config_parser.py)."""
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    described = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, comfy = described["project"], described["tool"]["comfy"]
    assert re.fullmatch("[a-z0-9][a-z0-9._-]{0,99}", project["name"])
    assert "comfyui" not in project["name"]
    assert comfy["PublisherId"]
    assert comfy["DisplayName"]
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    version = re.search('^__version__ = "(.*)"$', (ROOT / comfy["version"]["path"]).read_text(), re.MULTILINE)[1]
    assert version == __version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(-[a-zA-Z0-9]+)?", version)
    assert "web" not in comfy, "the pack names its folder itself; twice would load each script twice"
    ignored = (ROOT / ".comfyignore").read_text().splitlines()
    kept = {"__init__.py", "InstantID.py", "fast_instantid/", "example_workflows/", "locales/", "subgraphs/", "web/"}
    assert not kept & set(ignored)


def test_comfyui_reads_the_description(real_host: Path) -> None:
    parser = pytest.importorskip("comfy_config.config_parser", reason="this ComfyUI reads no description")
    found = parser.extract_node_configuration(str(ROOT))
    assert (found.project.name, found.tool_comfy.display_name) == ("fast-instantid", "Fast InstantID")
    assert found.project.supported_os == ["OS Independent"]
    assert found.project.supported_comfyui_version == ">=0.3.64"
