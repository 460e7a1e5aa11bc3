"""Where each kind of model file is looked for, and what is asked of the face networks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ...download import models_folder

_ROOT = Path(__file__).resolve().parents[3]


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

    @classmethod
    def of_shell(cls, models: Path | None = None) -> Places:
        """Where the commands of ``fast-instantid`` look; by default in ``$FAST_INSTANTID_MODELS``."""
        models = models_folder() if models is None else models
        instantid = (models / "instantid",)
        return cls("diffusers", models, (models / "antelopev2",), instantid, instantid, (models / "base",))

    @classmethod
    def of_comfyui(cls, comfyui: Path, models: Path | None = None) -> Places:
        """Where the nodes look in a ComfyUI at ``comfyui``, as far as its folders and ``extra_model_paths.yaml`` say.

        Args:
            comfyui: the folder that holds ``custom_nodes``.
            models: in place of its own ``models``.
        """
        models = comfyui / "models" if models is None else models
        extra, notes = _extra_model_paths(comfyui / "extra_model_paths.yaml")

        def folders(name: str) -> tuple[Path, ...]:
            return (models / name, *extra.get(name, ()))

        return cls(
            "comfyui",
            models,
            faces=folders("insightface"),
            adapters=tuple(reversed(folders("instantid"))),  # the pack puts its own last
            identitynets=folders("controlnet"),
            bases=folders("checkpoints"),
            custom_nodes=(comfyui / "custom_nodes", *extra.get("custom_nodes", ())),
            notes=notes,
        )

    def asking(self, backend: str, device: str | None) -> Places:
        """The same places, with face networks asked to run elsewhere."""
        return replace(self, backend=backend, device=device)


def comfyui_around() -> Path | None:
    """The ComfyUI in whose ``custom_nodes`` this package lies as a clone, if it does."""
    around = _ROOT.parent.parent
    return around if _ROOT.parent.name == "custom_nodes" and (_ROOT / "__init__.py").is_file() else None


def _extra_model_paths(file: Path) -> tuple[dict[str, tuple[Path, ...]], tuple[str, ...]]:
    """Kinds of models and their further folders; and what kept this from being read."""
    if not file.is_file():
        return {}, ()
    try:
        import yaml
    except ImportError:
        return {}, (f"{file} was not read: that needs PyYAML, which ComfyUI's own Python has",)
    try:
        sections = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        found: dict[str, tuple[Path, ...]] = {}
        for section in sections.values():
            # As ComfyUI's load_extra_path_config reads it: a path on each line, below base_path if there is one.
            section = dict(section or {})
            base = file.parent / Path(section.pop("base_path", None) or "").expanduser()
            section.pop("is_default", None)
            for kind, lines in section.items():
                found[kind] = (*found.get(kind, ()), *(base / line for line in lines.splitlines() if line))
        return found, ()
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        return {}, (f"{file} could not be read: {str(error).splitlines()[0]}",)
