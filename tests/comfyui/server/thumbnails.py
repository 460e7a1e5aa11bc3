"""Draw the thumbnails of the example workflows again, after one of them or the miniature was changed.

Each shows what its graph draws with the shipped miniature in place of SDXL, and says so. Where the miniature lacks a
part (a depth ControlNet, an IP-Adapter), it shows the graph. In an environment that has ComfyUI's requirements and
playwright, with Chromium on the path::

    COMFYUI_PATH=… IPADAPTER_PATH=… python -m tests.comfyui.server.thumbnails
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageSequence

from fast_instantid import miniature
from tests.comfyui.server.frontend import FrontEnd, find_chromium
from tests.comfyui.server.host import ROOT, ComfyServer
from tests.comfyui.server.installation import install

EXAMPLES = ROOT / "example_workflows"
SIDE, INSET, CAPTION = 512, 112, 28
GRAPHS = {
    "instantid_depth": ["Identity", "Depth"],
    "instantid_ipadapter": ["Style", "Styling"],
    "instantid_keep_person": ["Keep a person"],
}
"""Examples that are shown by groups of their graph."""
_DARK, _LIGHT = "#14171f", "#d6d9e0"
_OUTPUTS = {
    "CheckpointLoaderSimple": 0,
    "ControlNetLoader": 3,
    "InstantIDModelLoader": 4,
    "InstantIDFaceAnalysis": 5,
    "LoadImage": 6,
}
_BESIDE = ("TorchCompileModel", "ControlNetApplyAdvanced")
_SAMPLER = {"steps": miniature.STEPS, "cfg": miniature.GUIDANCE, "sampler_name": "ddim", "scheduler": "simple"}

Prompt = dict[str, dict[str, Any]]


def main() -> None:
    chromium = find_chromium()
    if chromium is None:
        raise SystemExit("no Chromium on the path: put its file name into the variable CHROMIUM")
    comfyui, ipadapter = Path(os.environ["COMFYUI_PATH"]).resolve(), os.environ["IPADAPTER_PATH"]
    with tempfile.TemporaryDirectory() as folder, install(comfyui, Path(folder) / "base", ipadapter) as server:
        for name, thumbnail in results(server):
            thumbnail.save(EXAMPLES / f"{name}.jpg", quality=88)
        with FrontEnd(server.url, chromium) as front_end:
            for name, groups in GRAPHS.items():
                front_end.picture(EXAMPLES / f"{name}.json", EXAMPLES / f"{name}.jpg", groups, SIDE)


def results(server: ComfyServer) -> Iterator[tuple[str, Image.Image]]:
    """Names and thumbnails of the examples that the miniature can draw."""
    photos = server.base / "input"
    for i, portrait in enumerate(miniature.files().portraits):
        Image.open(portrait).convert("RGB").save(photos / f"{i}.png")

    def draw(example: str, files: Sequence[str], *texts: str, size: tuple[int, int] = miniature.SIZE) -> Image.Image:
        prompt = json.loads((EXAMPLES / "api" / f"{example}.json").read_text())
        paths = server.run(with_miniature(prompt, files, texts, size))
        opened = [Image.open(path) for path in paths if "output" in path.parts]
        pictures = [frame.convert("RGB") for picture in opened for frame in ImageSequence.all_frames(picture)]
        columns, (width, height) = min(len(pictures), 4), pictures[0].size
        joined = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height))
        for i, picture in enumerate(pictures):
            joined.paste(picture, (i % columns * width, i // columns * height))
        return joined

    def thumbnail(example: str, files: Sequence[str], *texts: str, **options: Any) -> tuple[str, Image.Image]:
        drawn = draw(example, files, *texts, **options)
        return example, framed(drawn, [Image.open(photos / file) for file in files])

    night = "soft portrait, starry purple background, orange jumper"
    yield thumbnail("instantid_miniature", ["0.png"], "flat portrait, starry blue background, red jacket")
    yield thumbnail("instantid_basic", ["1.png"], night)
    yield thumbnail("instantid_posed", ["4.png", "2.png"], night)
    sunny = [f"flat portrait, sunny yellow background, {clothes}" for clothes in ("green shirt", "blue jacket")]
    yield thumbnail("instantid_two_people", ["4.png", "5.png"], *sunny, size=(256, 192))
    same = [f"same {style}.png" for style in ("flat", "soft", "outlined")]
    for file in same:
        style = file.split()[-1].removesuffix(".png")
        draw("instantid_basic", ["0.png"], f"{style} portrait, plain white background, black shirt").save(photos / file)
    hills = "outlined portrait, hilly green background, red shirt"
    yield thumbnail("instantid_many_references", [*same, *same, "2.png"], hills)
    yield thumbnail("instantid_people", ["0.png", "3.png"], size=miniature.SIZE)
    yield thumbnail("instantid_load_person", ["1.png", "4.png"], hills)
    yield thumbnail("instantid_scene", ["0.png", "3.png"], hills, size=(256, 128))
    yield thumbnail("instantid_animation", ["0.png"], "flat portrait, hilly green background, red jacket")
    yield "instantid_small_face", before_and_after(server, "instantid_small_face")
    yield thumbnail("instantid_few_steps", ["0.png"], "soft portrait, plain teal background, white jumper")
    yield "instantid_profile", report(server, draw("instantid_profile", ["1.png"], night))


def before_and_after(server: ComfyServer, example: str) -> Image.Image:
    """The middle of what an example without photographs of its own previews first, beside that of what it draws."""
    paths = server.run(json.loads((EXAMPLES / "api" / f"{example}.json").read_text()))
    pictures = [Image.open(path).convert("RGB") for path in sorted(paths, key=lambda path: "output" in path.parts)]
    width, height = pictures[-1].size
    sheet = Image.new("RGB", (width, height))
    for place, picture in enumerate((pictures[0], pictures[-1])):
        sheet.paste(picture.crop((width // 4, 0, width * 3 // 4, height)), (place * width // 2, 0))
    return framed(sheet, [])


def with_miniature(prompt: Prompt, files: Sequence[str], texts: Sequence[str], size: tuple[int, int]) -> Prompt:
    """The same graph with the miniature's models, at its size, and without what acts beside InstantID.

    Args:
        files: of the input folder, one for each photo of the graph.
        texts: the first prompts; the others are empty.
    """
    left_out = {
        id: [node["inputs"].get("model") or node["inputs"].get("positive"), node["inputs"].get("negative")]
        for id, node in prompt.items()
        if node["class_type"] in _BESIDE
    }
    loaders = {id: _OUTPUTS[node["class_type"]] for id, node in prompt.items() if node["class_type"] in _OUTPUTS}
    remaining, photos = iter(texts), iter(files)
    result: Prompt = {"models": {"class_type": "InstantIDMiniature", "inputs": {"portrait": "person 1"}}}
    for id, node in prompt.items():
        inputs = dict(node["inputs"])
        for name, value in inputs.items():
            while isinstance(value, list) and value[0] in left_out:
                value = left_out[value[0]][value[1]]
            if isinstance(value, list) and loaders.get(value[0], 6) != 6:
                value = ["models", loaders[value[0]] + value[1]]
            inputs[name] = value
        kind = node["class_type"]
        if kind == "LoadImage":
            inputs["image"] = next(photos, files[-1])
        elif kind == "CLIPTextEncode":
            inputs["text"] = next(remaining, "")
        elif kind == "KSampler" and inputs["cfg"] != 1:  # few steps stay few
            inputs |= _SAMPLER
        elif kind == "EmptyLatentImage":
            inputs |= {"width": size[0], "height": size[1]}
        elif kind == "ImageScale":
            inputs |= {"width": size[0] // 2, "height": size[1]}
        elif kind == "ImagePadForOutpaint":
            inputs |= {side: min(inputs[side], size[0] // 2) for side in ("left", "right")}
        elif "layers" in inputs:
            inputs["layers"] = "paper"
        if id not in left_out and loaders.get(id, 6) == 6:
            result[id] = {**node, "inputs": inputs}
    return result


def framed(picture: Image.Image, photos: Sequence[Image.Image]) -> Image.Image:
    """A picture with the photos that it was drawn from, and who drew it."""
    canvas = Image.new("RGB", (SIDE, SIDE), _DARK)
    scale = SIDE / max(picture.size)
    large = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.LANCZOS)
    canvas.paste(large, (0, 0))
    for i, photo in enumerate(dict.fromkeys(photo.filename for photo in photos)):
        inset = Image.open(photo).convert("RGB").resize((INSET - 6, INSET - 6), Image.Resampling.LANCZOS)
        corner = (8 + i * (INSET + 8), SIDE - CAPTION - INSET - 8)
        canvas.paste("white", (*corner, corner[0] + INSET, corner[1] + INSET))
        canvas.paste(inset, (corner[0] + 3, corner[1] + 3))
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, SIDE - CAPTION, SIDE, SIDE), fill=_DARK)
    middle = SIDE // 2, SIDE - CAPTION // 2
    draw.text(middle, "drawn by the shipped miniature", _LIGHT, ImageFont.load_default(15), "mm")
    return canvas


def report(server: ComfyServer, picture: Image.Image) -> Image.Image:
    """What InstantID Profile said of the last prompt, beside its picture."""
    (history,) = server.get_json("/history?max_items=1").values()
    (text,) = (output["text"][0] for output in history["outputs"].values() if "trace" in output)
    canvas = Image.new("RGB", (SIDE, SIDE), _DARK)
    # The font has no other letters.
    lines = "\n".join(
        re.sub("[^ -~]", "", line.replace("\N{MICRO SIGN}", "u"))[:74] for line in text.splitlines()[2:-1]
    )
    ImageDraw.Draw(canvas).multiline_text((10, 10), lines, _LIGHT, ImageFont.load_default(12))
    canvas.paste(picture, (SIDE - picture.width - 8, SIDE - picture.height - 8))
    return canvas


if __name__ == "__main__":
    main()
