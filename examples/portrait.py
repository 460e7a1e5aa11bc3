"""The main job on a real portrait; make demo runs this.

One photograph becomes a face, an identity and a picture, twice, so that the second run shows what is remembered.
Without arguments it runs on networks that are made on the spot: the real architectures in the real file formats, but
tiny and untrained. The picture they draw is noise; give it real models to get a portrait.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else it speaks of torchvision, which nothing here needs

import diffusers
import numpy as np
import skimage.data
import transformers
from PIL import Image

from fast_instantid import Adapter, FaceAnalyzer, FastInstantIDError
from fast_instantid.faces import keypoint_picture, largest
from fast_instantid.images import load_image
from fast_instantid.pipelines.generate import InstantIDFiles, Sampling, generate, load_pipeline
from fast_instantid.placement import Placement

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from examples.tiny_adapter import write_tiny_adapter
from examples.tiny_faces import write_tiny_pack
from examples.tiny_sdxl import LAYER_CHANNELS, TOKEN_WIDTH, write_tiny_identitynet, write_tiny_sdxl

PROMPT = "film noir portrait, dramatic light"


def main() -> None:
    options = _options()
    width, height = options.size
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    placement = Placement.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    photo = np.array(load_image(options.photo)) if options.photo else skimage.data.astronaut()

    with tempfile.TemporaryDirectory() as scratch:
        if options.pack is None:
            print(
                "No models given: making tiny, untrained ones in the real formats. They know no faces and draw noise;"
            )
            print("the detector looks for skin colour. Real ones: examples/portrait.py --help\n")
            options.pack, options.base, options.instantid = _make_models(Path(scratch))
        clock = _Clock()
        with clock("open networks"):
            analyzer = FaceAnalyzer.load(options.pack, device=placement.device)
            adapter = Adapter.load(InstantIDFiles.find(options.instantid).adapter, placement.device, placement.dtype)
            pipe = load_pipeline(options.base, options.instantid, placement.device, placement.dtype)
        for run in ("first run", "second run"):
            with clock("find the face", run):
                face = largest(analyzer.detect(photo)[0])
            with clock("recognise it", run):
                embedding = analyzer.embed(photo, face)
            with clock("draw keypoints", run):
                keypoints = Image.fromarray(keypoint_picture(face.kps, photo.shape[:2], (height, width)))
            with clock("make the identity", run):
                identity = adapter.identity(embedding)
            with clock(f"sample {options.steps} steps", run):
                picture = generate(pipe, identity, keypoints, options.prompt, Sampling(steps=options.steps))[0]

    keypoints.save(options.output / "keypoints.png")
    picture.save(options.output / "portrait.png")
    _side_by_side(Image.fromarray(photo), keypoints, picture).save(options.output / "demo.png")
    print(f"{analyzer.backend}; face at {face.bbox.round().astype(int).tolist()}; {identity}\n")
    clock.print()
    print(f"\nwritten to {options.output}: keypoints.png, portrait.png, demo.png (photo, keypoints, picture)")


def _make_models(folder: Path) -> tuple[Path, Path, Path]:
    instantid = folder / "instantid"
    write_tiny_identitynet(instantid / "ControlNetModel")
    write_tiny_adapter(instantid / "ip-adapter.bin", channels=LAYER_CHANNELS, token_width=TOKEN_WIDTH)
    return write_tiny_pack(folder / "antelopev2"), write_tiny_sdxl(folder / "base"), instantid


class _Clock:
    """Seconds of each stage in each run, printed as a table."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = {}

    @contextmanager
    def __call__(self, stage: str, run: str = "first run") -> Generator[None]:
        start = time.perf_counter()
        yield
        self.seconds.setdefault(stage, {})[run] = time.perf_counter() - start

    def print(self) -> None:
        print(f"{'where the time went':24}{'first run':>12}{'second run':>12}")
        for stage, runs in self.seconds.items():
            print(f"{stage:24}" + "".join(f"{1000 * seconds:9.1f} ms" for seconds in runs.values()))


def _side_by_side(*pictures: Image.Image) -> Image.Image:
    height = 384
    scaled = [picture.resize((round(picture.width * height / picture.height), height)) for picture in pictures]
    sheet = Image.new("RGB", (sum(picture.width for picture in scaled), height))
    for i, picture in enumerate(scaled):
        sheet.paste(picture, (sum(before.width for before in scaled[:i]), 0))
    return sheet


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, help="a portrait; scikit-image's public-domain astronaut by default")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--pack", type=Path, help="antelopev2; give --base and --instantid with it")
    parser.add_argument("--base", help="SDXL, diffusers folder")
    parser.add_argument("--instantid", help="folder with ControlNetModel and ip-adapter.bin")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    options = parser.parse_args()
    if len({options.pack is None, options.base is None, options.instantid is None}) != 1:
        parser.error("--pack, --base and --instantid belong together: give all three or none")
    return options


if __name__ == "__main__":
    try:
        main()
    except FastInstantIDError as error:
        sys.exit(f"error: {error}")
