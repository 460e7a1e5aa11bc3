"""Where each kind of model file is looked for, and what is asked of the face networks."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ...download import MODELS, models_folder

_ROOT = Path(__file__).resolve().parents[3]
_KINDS_OF_PACK = ("insightface", "instantid")  # which ComfyUI knows of by this pack alone


@dataclass(frozen=True)
class Places:
    """What an examination looks at. Folders that are not there are looked for all the same, and said to be missing."""

    host: Literal["diffusers", "comfyui"]
    """Who draws the pictures, and so how the files lie."""
    models: Path
    """Where files that are missing should be put."""
    faces: tuple[Path, ...]
    """Folders of face packs, in the order in which they are looked into; the first pack is used."""
    adapters: tuple[Path, ...]
    """diffusers: the folder with ``ip-adapter.bin`` and ``ControlNetModel``. ComfyUI: its folders ``instantid``."""
    identitynets: tuple[Path, ...]
    """diffusers: the folder with ``ControlNetModel``. ComfyUI: its folders ``controlnet``."""
    bases: tuple[Path, ...]
    """diffusers: a folder or a single checkpoint. ComfyUI: its folders ``checkpoints``."""
    custom_nodes: tuple[Path, ...] = ()
    """ComfyUI's folders of node packs."""
    backend: str = "torch"
    """What shall run the face networks: "torch" or "onnxruntime"."""
    device: str | None = None
    """What they shall run on: cpu, cuda, cuda:1, ...; None is the best one there is."""
    notes: tuple[str, ...] = ()
    """What kept some folders from being looked into."""
    named: tuple[tuple[str, Path], ...] = ()
    """Where somebody said where to look: the option or environment variable, and what it names."""

    @classmethod
    def of_shell(cls, models: Path | None = None) -> Places:
        """Where the commands of ``fast-instantid`` look; by default in ``$FAST_INSTANTID_MODELS``."""
        variable = "FAST_INSTANTID_MODELS"
        named = ((variable, models_folder()),) if models is None and os.environ.get(variable) else ()
        models = models_folder() if models is None else models
        instantid = (models / "instantid",)
        bases = (models / "base",)
        return cls("diffusers", models, (models / "antelopev2",), instantid, instantid, bases, named=named)

    @classmethod
    def of_comfyui(cls, comfyui: Path, models: Path | None = None) -> Places:
        """Where the nodes look in a ComfyUI at ``comfyui``, as far as its folders and ``extra_model_paths.yaml`` say.

        Args:
            comfyui: the folder that holds ``custom_nodes``.
            models: in place of its own ``models``.
        """
        models = comfyui / "models" if models is None else models
        folders = {kind: [models / kind] for kind in ("controlnet", "checkpoints")}
        folders["custom_nodes"] = [comfyui / "custom_nodes"]
        notes = _add_extra_model_paths(comfyui / "extra_model_paths.yaml", folders)
        ours = {kind: [path for path in folders.get(kind, ()) if path != models / kind] for kind in _KINDS_OF_PACK}
        return cls(
            "comfyui",
            models,
            faces=(models / "insightface", *reversed(ours["insightface"])),  # as the node Face Analysis looks
            adapters=(*ours["instantid"], models / "instantid"),  # the pack puts its own last
            identitynets=tuple(folders["controlnet"]),
            bases=tuple(folders["checkpoints"]),
            custom_nodes=tuple(folders["custom_nodes"]),
            notes=tuple(notes),
        )

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """All in which model files are looked for."""
        return (*self.faces, *self.adapters, *self.identitynets, *self.bases)

    def asking(self, backend: str, device: str | None) -> Places:
        """The same places, with face networks asked to run elsewhere."""
        return replace(self, backend=backend, device=device)

    def how_to_replace(self, files: Sequence[Path], again: str) -> str:
        """How to delete files and get them again; a download leaves alone what has the name of what it fetches."""
        if self.host == "comfyui" or os.name == "nt":
            return f"delete {', '.join(map(str, files))}, then: {again}"
        return f"rm {' '.join(map(quoted, files))} && {again}"

    def how_to_fetch(self, model: str, folder: Path) -> str:
        """How to get a model of :data:`~fast_instantid.download.MODELS` for use in ``folder``."""
        if self.host == "comfyui":
            files = " and ".join(MODELS[model].files)
            return f"put {files} of huggingface.co/{MODELS[model].repository} into {folder}"
        if folder.name == model:
            return download(folder.parent, model)
        return f"{download(self.models, model)}, and name {self.models / model} in place of {folder}"


def comfyui_around() -> Path | None:
    """The ComfyUI in whose ``custom_nodes`` this package lies as a clone, if it does."""
    return None if clone_around() is None else _ROOT.parent.parent


def clone_around() -> Path | None:
    """The clone in ComfyUI's ``custom_nodes`` that this package is a part of, if it is."""
    return _ROOT if _ROOT.parent.name == "custom_nodes" and (_ROOT / "__init__.py").is_file() else None


def _add_extra_model_paths(file: Path, folders: dict[str, list[Path]]) -> list[str]:
    """Add the folders that ComfyUI's file names, where its ``load_extra_path_config`` does; returns what went wrong."""
    if not os.path.isfile(file):
        return []
    try:
        import yaml
    except ImportError:
        return [f"{file} was not read: that needs PyYAML, which ComfyUI's own Python has"]
    notes: list[str] = []
    try:
        sections: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        for name, content in sections.items():
            section = dict(content or {})
            base = os.path.expandvars(os.path.expanduser(section.pop("base_path", None) or ""))
            first = bool(section.pop("is_default", False))
            for kind, lines in section.items():
                if not isinstance(lines, str):
                    notes.append(f"{file} names no folder for {kind} in {name}: ComfyUI does not start with that")
                    continue
                for line in filter(None, lines.split("\n")):
                    path = Path(os.path.normpath(file.absolute().parent / base / line))
                    _add(path, folders.setdefault(kind, []), first)
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        notes.append(f"{file} could not be read: {str(error).splitlines()[0]}")
    return notes


def _add(path: Path, known: list[Path], first: bool) -> None:
    if path in known and first:
        known.remove(path)
    if path not in known:
        known.insert(0 if first else len(known), path)


def download(folder: Path, *models: str) -> str:
    """The command that fetches all models, or the named ones, into a folder."""
    to = [] if folder == models_folder() else ["--to", quoted(folder)]
    return " ".join(["fast-instantid download", *models, *to])


def pip(*arguments: str) -> str:
    """A command for the Python that runs this: the ``pip`` of a shell often belongs to another one."""
    return " ".join([quoted(sys.executable), "-m pip", *arguments])


def quoted(path: Path | str) -> str:
    """As a shell takes it."""
    return f'"{path}"' if " " in str(path) else str(path)
