"""The folders in which each kind of model file is looked for."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors import first_line
from ...sources import MODELS, models_folder

ROOT = Path(__file__).resolve().parents[3]
_KINDS_OF_PACK = ("insightface", "instantid")  # which ComfyUI knows by this pack alone


@dataclass(frozen=True)
class Places:
    """What to examine. Folders that do not exist are reported as missing."""

    host: Literal["diffusers", "comfyui"]  # the program that draws, which decides how the files are laid out
    models: Path  # where missing files belong
    faces: tuple[Path, ...]  # folders of face packs, in search order; the first pack is used
    adapters: tuple[Path, ...]
    """diffusers: the folder with ``ip-adapter.bin`` and ``ControlNetModel``. ComfyUI: its folders ``instantid``."""
    identitynets: tuple[Path, ...]
    """diffusers: the folder with ``ControlNetModel``. ComfyUI: its folders ``controlnet``."""
    bases: tuple[Path, ...]  # diffusers: a folder or a single checkpoint. ComfyUI: its folders ``checkpoints``
    custom_nodes: tuple[Path, ...] = ()  # ComfyUI's folders of node packs
    backend: str = "torch"  # the backend of the face networks: "torch" or "onnxruntime"
    device: str | None = None  # the device of the face networks: cpu, cuda, cuda:1, ...; None for the best one
    notes: tuple[str, ...] = ()  # problems with ``extra_model_paths.yaml``
    dynamic_vram: str = ""  # of ComfyUI: "on", "off", or when it is on; empty for a ComfyUI without it

    @classmethod
    def of_shell(cls, models: Path | None = None) -> Places:
        """Return the places where the commands look; by default in ``$FAST_INSTANTID_MODELS``."""
        models = models_folder() if models is None else models
        instantid = (models / "instantid",)
        return cls("diffusers", models, (models / "antelopev2",), instantid, instantid, (models / "base",))

    @classmethod
    def of_comfyui(cls, comfyui: Path, models: Path | None = None) -> Places:
        """Return the places where the nodes of a ComfyUI look, by its folders and its ``extra_model_paths.yaml``.

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
            faces=(models / "insightface", *reversed(ours["insightface"])),  # the order of the node Face Analysis
            adapters=(*ours["instantid"], models / "instantid"),  # the pack adds its own folder last
            identitynets=tuple(folders["controlnet"]),
            bases=tuple(folders["checkpoints"]),
            custom_nodes=tuple(folders["custom_nodes"]),
            notes=tuple(notes),
            dynamic_vram=_dynamic_vram(comfyui / "comfy" / "cli_args.py"),
        )

    def how_to_fetch(self, model: str, folder: Path) -> str:
        """Say how to get a model of :data:`~fast_instantid.download.MODELS` into ``folder``."""
        if self.host == "comfyui":
            files = " and ".join(MODELS[model].files)
            return f"put {files} of huggingface.co/{MODELS[model].repository} into {folder}"
        if folder.name == model:
            return download(folder.parent, model)
        return f"{download(self.models, model)}, and name {self.models / model} in place of {folder}"


def comfyui_around() -> Path | None:
    """Return the ComfyUI in whose ``custom_nodes`` this package is cloned, if it is."""
    is_clone = ROOT.parent.name == "custom_nodes" and (ROOT / "__init__.py").is_file()
    return ROOT.parent.parent if is_clone else None


def _dynamic_vram(options: Path) -> str:
    """Return when the ComfyUI with these start options uses dynamic VRAM; empty if it never does."""
    has_it = options.is_file() and "--disable-dynamic-vram" in options.read_text(encoding="utf-8", errors="replace")
    return "on by default, on NVIDIA and new AMD GPUs" if has_it else ""


def _add_extra_model_paths(file: Path, folders: dict[str, list[Path]]) -> list[str]:
    """Add the folders that the file names, as ComfyUI's ``load_extra_path_config`` does; return the problems."""
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
                known = folders.setdefault(kind, [])
                for line in filter(None, lines.split("\n")):
                    path = Path(os.path.normpath(file.absolute().parent / base / line))
                    if path in known and first:
                        known.remove(path)
                    if path not in known:
                        known.insert(0 if first else len(known), path)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        notes.append(f"{file} could not be read: {first_line(error)}")
    return notes


def download(folder: Path, *models: str) -> str:
    """Return the command that fetches all models, or the named ones, into a folder."""
    to = [] if folder == models_folder() else ["--to", quoted(folder)]
    return " ".join(["fast-instantid download", *models, *to])


def pip(*arguments: str) -> str:
    """Return a pip command for the Python that runs this; the shell's ``pip`` may belong to another."""
    return " ".join([quoted(sys.executable), "-m pip", *arguments])


def quoted(path: Path | str) -> str:
    """Quote a path with spaces for a shell."""
    return f'"{path}"' if " " in str(path) else str(path)
