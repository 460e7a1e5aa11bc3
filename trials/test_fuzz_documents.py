"""Damaged pictures, profiles, recordings and configurations."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fast_instantid import load_image
from fast_instantid.observe.doctor import Places
from fast_instantid.observe.profile import Profile
from fast_instantid.observe.samples import COLUMNS, read_csv
from fast_instantid.observe.verdict import judge
from fast_instantid.recorder import Recorder, stage
from trials.bounded import only_our_errors, run_forked
from trials.conftest import Trial
from trials.mutations import damaged

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "ICO", "JPEG2000", "PCX", "DDS", "SGI")
VALUES = (0, -1, 1, 2**31, 2**63, 10**400, 1.5, -0.0, 1e308, math.nan, math.inf, "", "x" * 10**5, "\0", "\ud800")


def encoded(format: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)
    written, text = io.BytesIO(), PngImagePlugin.PngInfo()
    text.add_text("parameters", "a" * 500, zip=True)
    try:
        Image.fromarray(pixels).save(written, format, **({"pnginfo": text} if format == "PNG" else {}))
    except (KeyError, OSError, ValueError):  # a Pillow that was built without it
        return b""
    return written.getvalue()


def test_damaged_pictures_load_or_are_refused(trials, tmp_path):
    wholes = list(filter(None, map(encoded, FORMATS)))
    path = tmp_path / "photo"

    def trial(source: Trial) -> None:
        path.write_bytes(damaged(source.choice(wholes), source))
        with only_our_errors():
            load_image(path)

    run_forked(trials, trial, 200)


def changed(document: Any, source: Trial, depth: int = 0) -> Any:
    """The same document with one value, name or branch exchanged."""
    nested: Any = []
    for _ in range(source.choice((1, 50, 900))):
        nested = [nested]
    if depth > 6 or source.random() < 0.15 or not isinstance(document, (dict, list)) or not document:
        return source.choice((*VALUES, None, True, [], {}, nested, [document] * 3))
    if isinstance(document, list):
        at = source.randrange(len(document))
        new = changed(document[at], source, depth + 1)
        return [*document[:at], *source.choice(([new], [], [new, new])), *document[at + 1 :]]
    name = source.choice([*document])
    if source.random() < 0.1:
        return {key: value for key, value in document.items() if key != name}
    return {**document, name: changed(document[name], source, depth + 1)}


def test_damaged_profiles_are_shown_or_refused(trials, tmp_path):
    with Recorder() as recorder, stage("outer", nbytes=7):
        for i in range(5):
            with stage(f"inner {i}", hits=1, node="x"):
                pass
    path = tmp_path / "run.json"
    Profile.of(recorder, "a run").save(path)
    whole, document = path.read_bytes(), json.loads(path.read_bytes())

    def trial(source: Trial) -> None:
        if source.random() < 0.4:
            path.write_bytes(damaged(whole, source))
        else:
            path.write_text(json.dumps(changed(document, source)), "utf-8", "surrogatepass")
        with only_our_errors():
            Profile.load(path).tree().encode(errors="replace")

    run_forked(trials, trial, 200)


def test_damaged_recordings_are_judged_or_refused(trials, tmp_path):
    path = tmp_path / "watch.csv"
    rows = [f"0,a GPU,{i / 10},{8e9 + i},9e9,{i % 2},{i * 1e8},0,1.6e10" for i in range(60)]
    whole = "\n".join([",".join(COLUMNS), *rows, ""])

    def trial(source: Trial) -> None:
        if source.random() < 0.5:
            path.write_bytes(damaged(whole.encode(), source))
        else:
            cells = [line.split(",") for line in whole.splitlines()]
            for _ in range(source.choice((1, 3))):
                source.choice(cells)[source.randrange(len(COLUMNS))] = str(source.choice(VALUES[:13]))
            path.write_text("\n".join(map(",".join, cells)) + "\n")
        with only_our_errors():
            judge(read_csv(path))

    run_forked(trials, trial, 200)


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "ControlNetModel/config.json", "paths.yaml"])
def test_the_doctor_survives_damaged_configurations(trials, tmp_path, name):
    from fast_instantid.observe.doctor.base_files import base
    from fast_instantid.observe.doctor.instantid_files import identitynet

    documents: dict[str, Any] = {
        "model_index.json": {"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "UNet"], "vae": [1, 2]},
        "unet/config.json": {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 2048},
        "ControlNetModel/config.json": {"_class_name": "ControlNetModel", "cross_attention_dim": 2048},
        "paths.yaml": {"a": {"base_path": "x", "checkpoints": "models/checkpoints", "is_default": True}},
    }
    for file, document in documents.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(json.dumps(document))
    (tmp_path / "ControlNetModel" / "diffusion_pytorch_model.safetensors").write_bytes(b"x")
    (tmp_path / "ComfyUI" / "custom_nodes").mkdir(parents=True)
    places = Places("diffusers", tmp_path, (), (), (tmp_path,), (tmp_path,))
    path = tmp_path / "ComfyUI" / "extra_model_paths.yaml" if name == "paths.yaml" else tmp_path / name

    def trial(source: Trial) -> None:
        if source.random() < 0.5:
            path.write_bytes(damaged(json.dumps(documents[name]).encode(), source))
        else:
            path.write_text(json.dumps(changed(documents[name], source)), "utf-8", "surrogatepass")
        if name == "paths.yaml":
            Places.of_comfyui(tmp_path / "ComfyUI", None)
        else:
            [*base(places), *identitynet(places)]

    run_forked(trials, trial, 200)
