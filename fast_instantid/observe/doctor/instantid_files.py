"""InstantID's own files: the adapter (``ip-adapter.bin``) and the IdentityNet, which is a ControlNet."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...download import MODELS
from ...errors import ModelFileError
from .headers import NAMES_OF_WIDTHS, SDXL_WIDTH, WEIGHTS, files_below, is_controlnet, shapes_of, text_width
from .places import Places, quoted
from .report import Finding

_LAYERS = 70  # cross-attention layers of SDXL's UNet
_ADAPTER_NAMES = ("ip-adapter.safetensors", "ip-adapter.bin")  # in the order in which they are taken
_USUAL_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")  # in diffusers' order
_NAMES = ("instantid", "instant_id", "instant-id", "identitynet")
_PLACES = "It should be the IdentityNet, which puts the face where the keypoints are."
_TRAP = "The nodes offer it, and it does not work when it is chosen."
_HUB = f"huggingface.co/{MODELS['instantid'].repository}"


def adapter(places: Places) -> Iterator[Finding]:
    """Nothing where there is nothing."""
    from ...identity.checkpoint import look_at_adapter

    candidates = _adapters_of_shell(places) if places.host == "diffusers" else [*files_below(places.adapters, WEIGHTS)]
    good: list[Path] = []
    wrong: list[str] = []
    for path in candidates:
        try:
            layers, width = look_at_adapter(path)
        except ModelFileError as error:
            wrong.append(str(error))
            continue
        good.append(path)
        if places.host == "diffusers" and path.name not in _ADAPTER_NAMES:
            yield Finding(
                "broken",
                f"{path} is InstantID's adapter under another name",
                f"Here it is looked for as {' or '.join(_ADAPTER_NAMES)}.",
                f"rename it to {_ADAPTER_NAMES[-1] if path.suffix != '.safetensors' else _ADAPTER_NAMES[0]}",
            )
            continue
        if (layers, width) == (_LAYERS, SDXL_WIDTH):
            yield Finding("ok", f"adapter: {path}")
        else:
            yield Finding(
                "warning",
                f"{path} is an InstantID adapter for {layers} layers and tokens of width {width}; "
                f"SDXL has {_LAYERS} and {SDXL_WIDTH}",
                "It does not fit SDXL.",
                f"get ip-adapter.bin of {_HUB}, unless your base model is a special one",
            )
    elsewhere = None if good else _adapter_elsewhere(places)
    if elsewhere is not None:
        to = (places.adapters or (places.models,))[-1]
        yield _misplaced("InstantID's adapter", [elsewhere], to)
    for text in wrong:
        # Beside one that is right, a wrong one is a trap only for who chooses it in the node.
        yield Finding(
            "note" if good or elsewhere else "broken",
            text,
            _TRAP if good or elsewhere else "There is no other adapter.",
            "move it to where files of its kind belong, or delete it"
            if good or elsewhere
            else f"put ip-adapter.bin of {_HUB} into {(places.adapters or (places.models,))[-1]}",
        )


def _adapters_of_shell(places: Places) -> list[Path]:
    """The one that is taken, or what lies in its place."""
    for folder in places.adapters:
        for name in _ADAPTER_NAMES:
            if os.path.isfile(folder / name):
                return [folder / name]
    return [path for path in files_below(places.adapters, WEIGHTS) if path.parent in places.adapters]


def _adapter_elsewhere(places: Places) -> Path | None:
    """One where people put it, and where nothing looks for it."""
    from ...identity.checkpoint import look_at_adapter

    if places.host == "diffusers":
        folders = (places.models, *(folder / "ControlNetModel" for folder in places.adapters))
        paths = [folder / name for folder in folders for name in _ADAPTER_NAMES]
    else:
        found = files_below((places.models / "ipadapter", *places.identitynets), WEIGHTS)
        names = (*_ADAPTER_NAMES, *_NAMES)
        paths = [path for path in found if any(name in f"{path.parent.name}/{path.name}".lower() for name in names)]
    for path in paths:
        with suppress(ModelFileError):
            if look_at_adapter(path) == (_LAYERS, SDXL_WIDTH):
                return path
    return None


def _misplaced(what: str, files: list[Path], to: Path) -> Finding:
    return Finding(
        "broken",
        f"{what} lies where it is not looked for: {files[0]}",
        f"It is looked for in {to}.",
        f"move {' and '.join(map(quoted, files))} into {quoted(to)}{'' if os.path.isdir(to) else ', a new folder'}",
    )


def identitynet(places: Places) -> Iterator[Finding]:
    """Nothing where there is nothing."""
    if places.host == "diffusers":
        for folder in places.identitynets:
            above = [folder / name for name in (*_USUAL_WEIGHTS, "config.json") if os.path.isfile(folder / name)]
            if not os.path.isdir(folder / "ControlNetModel") and above and above[0].name in _USUAL_WEIGHTS:
                yield _misplaced("the IdentityNet", above, folder / "ControlNetModel")
                return
            if os.path.isdir(folder / "ControlNetModel"):
                yield from _controlnet_folder(folder / "ControlNetModel", places.how_to_fetch("instantid", folder))
                return
        return
    yield from _among_controlnets(places)


def _controlnet_folder(folder: Path, again: str) -> Iterator[Finding]:
    weights = [folder / name for name in _USUAL_WEIGHTS if os.path.isfile(folder / name)]
    has_config = os.path.isfile(folder / "config.json")
    if not has_config or not weights:
        yield Finding("broken", f"{folder}: {'its weights' if has_config else 'config.json'} missing", _PLACES, again)
        return
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, width = config.get("_class_name"), config.get("cross_attention_dim")
    except (OSError, ValueError, AttributeError) as error:
        yield Finding(
            "broken", f"{folder / 'config.json'} is no configuration ({error})", _PLACES, f"delete it, then: {again}"
        )
        return
    if kind != "ControlNetModel":
        yield Finding(
            "broken",
            f"{folder} holds a {kind}, and no ControlNetModel",
            _PLACES,
            f"delete it, then: {again}",
        )
        return
    yield _controlnet(weights[0], "delete it, then: " + again, width)


def _among_controlnets(places: Places) -> Iterator[Finding]:
    files = list(files_below(places.identitynets, WEIGHTS))
    named = [path for path in files if any(name in _name_below(path, places) for name in _NAMES)]
    findings = [
        _controlnet(path, f"get diffusion_pytorch_model.safetensors (ControlNetModel) of {_HUB}") for path in named
    ]
    good = [finding for finding in findings if finding.level == "ok"]
    if not good:
        below = files_below(places.adapters, WEIGHTS)
        elsewhere = next((path for path in below if _is_sdxl_controlnet(path)), None)
        if elsewhere is not None:
            good = [_misplaced("the IdentityNet", [elsewhere], places.identitynets[0] / "instantid")]
            yield good[0]
            named = named or [elsewhere]
    for finding in findings:
        if finding.level == "ok" or not good:
            yield finding
        else:  # beside one that is right, a wrong one is a trap only for who chooses it in the node
            yield Finding("note", finding.found, _TRAP, "move it to where files of its kind belong, or delete it")
    if named:
        return
    possible = [path for path in files if path.suffix == ".safetensors" and _is_sdxl_controlnet(path)]
    if possible:
        names = ", ".join(str(path) for path in possible[:3]) + (" ..." if len(possible) > 3 else "")
        yield Finding(
            "note",
            f"no ControlNet is called InstantID; {len(possible)} may be InstantID's: {names}",
            "All ControlNets for SDXL have the same shape, so a file does not say whose it is. Another one does not "
            "place the face.",
            f"call InstantID's by its name, such as controlnet/instantid/; if you have none: {_HUB}, ControlNetModel",
        )


def _controlnet(path: Path, again: str, width: int | None = None) -> Finding:
    from ...weights import read_tensors

    try:
        tensors = read_tensors(path)
    except ModelFileError as error:
        return Finding("broken", str(error), _PLACES, again)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    width = text_width(shapes) or width
    if not is_controlnet(shapes):
        return Finding(
            "broken",
            f"{path}: this is {_kind_of(path, tensors)}; expected InstantID's ControlNet",
            "It is called as the IdentityNet, and cannot place a face.",
            again,
        )
    if width != SDXL_WIDTH:
        base = NAMES_OF_WIDTHS.get(width or 0, f"a model with tokens of width {width}")
        return Finding("broken", f"{path}: a ControlNet for {base}", "InstantID's is for SDXL.", again)
    return Finding("ok", f"IdentityNet: {path} (a ControlNet for SDXL; a file does not say whether it is InstantID's)")


def _kind_of(path: Path, tensors: Any) -> str:
    from ...identity.checkpoint import kind_of, look_at_adapter

    try:
        look_at_adapter(path)
    except ModelFileError:
        return kind_of(tensors)
    return "InstantID's adapter"


def _is_sdxl_controlnet(path: Path) -> bool:
    try:
        shapes = shapes_of(path)
    except ModelFileError:
        return False
    return is_controlnet(shapes) and text_width(shapes) == SDXL_WIDTH


def _name_below(path: Path, places: Places) -> str:
    """The part of a path that its owner chose."""
    for folder in places.identitynets:
        if path.is_relative_to(folder):
            return str(path.relative_to(folder)).lower()
    return path.name.lower()
