"""Checks of InstantID's files: the adapter (``ip-adapter.bin``) and the IdentityNet, which is a ControlNet."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ...errors import ModelFileError
from ...identity.checkpoint import find_adapter, find_identity_net, read_adapter
from ...kinds import NAMES_OF_WIDTHS, SDXL_WIDTH, kind_of, text_width
from ...sources import MODELS
from ...weights import network_files, read_tensors
from ..report import Finding
from .headers import WEIGHTS, files_below, read_json
from .places import Places, quoted

_LAYERS = 70  # cross-attention layers of SDXL's UNet
_ADAPTER_NAMES = ("ip-adapter.safetensors", "ip-adapter.bin")
_NAMES = ("instantid", "instant_id", "instant-id", "identitynet")
_PLACES = "The IdentityNet places the face by the keypoints."
_TRAP = "The nodes offer this file, and fail with it."
_MOVE = "move it to the folder for files of its kind, or delete it"
_HUB = f"huggingface.co/{MODELS['instantid'].repository}"


def adapter(places: Places) -> Iterator[Finding]:
    """Check the adapter. Yields nothing if there is no file."""
    folder = (places.adapters or (places.models,))[-1]
    candidates, has_usual_name = [*files_below(places.adapters, WEIGHTS)], True
    if places.host == "diffusers":
        try:
            candidates = [find_adapter(folder)]
        except ModelFileError:
            candidates, has_usual_name = [path for path in candidates if path.parent == folder], False
    is_good, wrong = False, list[str]()
    for path in candidates:
        try:
            weights = read_adapter(path)
        except ModelFileError as error:
            wrong.append(str(error))
            continue
        is_good, layers, width = True, len(weights.layers), weights.token_width
        if not has_usual_name:
            text = f"{path} is InstantID's adapter under another name"
            new = "ip-adapter.safetensors" if path.suffix == ".safetensors" else "ip-adapter.bin"
            yield Finding("broken", text, "The commands do not find it by this name.", f"rename it to {new}")
        elif (layers, width) == (_LAYERS, SDXL_WIDTH):
            yield Finding("ok", f"adapter: {path}")
        else:
            text = f"{path} is an InstantID adapter for {layers} layers and tokens of width {width}"
            why = f"SDXL has {_LAYERS} layers and tokens of width {SDXL_WIDTH}."
            yield Finding("warning", text, why, f"get ip-adapter.bin of {_HUB}")
    elsewhere = None if is_good else _adapter_elsewhere(places)
    if elsewhere is not None:
        yield _misplaced("InstantID's adapter", elsewhere, folder)
    for text in wrong:
        if is_good or elsewhere:
            yield Finding("note", text, _TRAP, _MOVE)
        else:
            yield Finding("broken", text, "There is no other adapter.", f"put ip-adapter.bin of {_HUB} into {folder}")


def _adapter_elsewhere(places: Places) -> Path | None:
    """Find the adapter in a folder where people put it, and where it is not looked for."""
    if places.host == "diffusers":
        folders = (places.models, *(folder / "ControlNetModel" for folder in places.adapters))
        paths = [folder / name for folder in folders for name in _ADAPTER_NAMES]
    else:
        found = files_below((places.models / "ipadapter", *places.identitynets), WEIGHTS)
        names = (*_ADAPTER_NAMES, *_NAMES)
        paths = [path for path in found if any(name in f"{path.parent.name}/{path.name}".lower() for name in names)]
    for path in paths:
        with suppress(ModelFileError):
            weights = read_adapter(path)
            if (len(weights.layers), weights.token_width) == (_LAYERS, SDXL_WIDTH):
                return path
    return None


def _misplaced(what: str, file: Path, to: Path) -> Finding:
    do = f"move {quoted(file)} into {quoted(to)}{'' if os.path.isdir(to) else ', a new folder'}"
    return Finding("broken", f"{what} is in the wrong folder: {file}", f"It is looked for in {to}.", do)


def identitynet(places: Places) -> Iterator[Finding]:
    """Check the IdentityNet. Yields nothing if there is no file."""
    if places.host == "diffusers":
        for parent in places.identitynets:
            with suppress(ModelFileError):  # there is none
                net, again = find_identity_net(parent), places.how_to_fetch("instantid", parent)
                yield _controlnet_folder(net, again) if net.is_dir() else _controlnet(net, again)
        return
    files = list(files_below(places.identitynets, WEIGHTS))
    named = [path for path in files if any(name in "/".join(path.parts[-3:]).lower() for name in _NAMES)]
    again = f"get diffusion_pytorch_model.safetensors (ControlNetModel) of {_HUB}"
    findings = [_controlnet(path, again) for path in named]
    is_good = any(finding.level == "ok" for finding in findings)
    below = files_below(places.adapters, WEIGHTS)
    elsewhere = None if is_good else next((path for path in below if _controlnet(path, again).level == "ok"), None)
    if elsewhere is not None:
        yield _misplaced("the IdentityNet", elsewhere, places.identitynets[0] / "instantid")
    for finding in findings:
        is_trap = finding.level != "ok" and (is_good or elsewhere)
        yield Finding("note", finding.found, _TRAP, _MOVE) if is_trap else finding
    possible = [path for path in files if not named and not elsewhere and _controlnet(path, again).level == "ok"]
    if possible:
        yield Finding(
            "note",
            f"no ControlNet is called InstantID; these may be InstantID's: {', '.join(map(str, possible[:3]))}",
            "All ControlNets for SDXL have the same shapes. One that is not InstantID's does not place the face.",
            f"put InstantID's into controlnet/instantid/; if you have none: {_HUB}, ControlNetModel",
        )


def _controlnet_folder(folder: Path, again: str) -> Finding:
    config = {"_class_name": "ControlNetModel"}  # without a file of its own, InstantID's is used
    try:
        _, files = network_files(folder)
        if not files:
            return Finding("broken", f"{folder}: its weights are missing", _PLACES, again)
        config = read_json(folder / "config.json") if (folder / "config.json").exists() else config
    except ModelFileError as error:
        return Finding("broken", str(error), _PLACES, again)
    except (OSError, ValueError) as error:
        text = f"{folder / 'config.json'} is not a configuration ({error})"
        return Finding("broken", text, _PLACES, f"delete it, then: {again}")
    again = f"delete it, then: {again}"
    if (kind := config.get("_class_name")) != "ControlNetModel":
        return Finding("broken", f"{folder} holds a {kind}, not a ControlNetModel", _PLACES, again)
    width = config.get("cross_attention_dim")
    return _controlnet(files[0], again, width if isinstance(width, int) else None, files[1:])


def _controlnet(path: Path, again: str, width: int | None = None, shards: Sequence[Path] = ()) -> Finding:
    try:
        tensors = read_tensors(path)
        for shard in shards:
            tensors |= read_tensors(shard)
    except ModelFileError as error:
        return Finding("broken", str(error), _PLACES, again)
    if "controlnet_cond_embedding.conv_in.weight" not in tensors:
        return Finding("broken", f"{path}: this is {kind_of(tensors)}; expected InstantID's ControlNet", _PLACES, again)
    width = text_width(tensors) or width
    if width != SDXL_WIDTH:
        base = NAMES_OF_WIDTHS.get(width or 0, f"a model with tokens of width {width}")
        return Finding("broken", f"{path}: a ControlNet for {base}", "InstantID's is for SDXL.", again)
    return Finding("ok", f"IdentityNet: {path} (a ControlNet for SDXL; a file does not tell whether it is InstantID's)")
