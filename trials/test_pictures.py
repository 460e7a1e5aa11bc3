"""Pictures of any format, mode, orientation and damage."""

from __future__ import annotations

import contextlib
import io
from random import Random

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from fast_instantid.errors import ImageError
from fast_instantid.images import load_image, photos

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

FORMATS = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I;16B"],
    "JPEG": ["L", "RGB", "CMYK"],
    "WEBP": ["RGB", "RGBA"],
    **({"AVIF": ["RGB", "RGBA"]} if ".avif" in Image.registered_extensions() else {}),
    "GIF": ["L", "P"],
    "BMP": ["1", "L", "P", "RGB"],
}


def any_picture(random: Random) -> tuple[bytes, Image.Image]:
    """A file, and the picture in it as Pillow turns it upright."""
    kind = random.choice([*FORMATS])
    mode = random.choice(FORMATS[kind])
    size = random.randint(1, 80), random.randint(1, 80)
    values = np.frombuffer(random.randbytes(size[0] * size[1] * 4), np.uint8).reshape(size[1], size[0], 4)
    deep = mode.startswith("I;16")
    image = Image.fromarray(values.view(np.uint16)[..., 0] if deep else values).convert("RGBA" if not deep else mode)
    if not deep:
        image = image.convert("RGB").convert("L").convert(mode) if mode == "LA" else image.convert("RGB").convert(mode)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = random.randint(1, 8)
    buffer = io.BytesIO()
    options = {"compression": random.choice(["raw", "tiff_lzw", "tiff_adobe_deflate"])} if kind == "TIFF" else {}
    image.save(buffer, kind, **({} if kind in ("GIF", "BMP") else {"exif": exif}), **options)
    return buffer.getvalue(), ImageOps.exif_transpose(Image.open(buffer))


def test_a_picture_is_read_as_pillow_shows_it(trials, tmp_path):
    for random in trials:
        data, shown = any_picture(random)
        (tmp_path / "picture").write_bytes(data)
        deep = shown.mode.startswith("I")
        expected = np.asarray(shown) >> 8 if deep else np.asarray(shown.convert("RGBA" if shown.mode == "P" else "RGB"))
        expected = np.broadcast_to(expected[..., None], (*expected.shape, 3)) if deep else expected[..., :3]
        path, copied = tmp_path / "picture", Image.open(io.BytesIO(data)).copy()
        for form in (path, Image.open(path), copied, shown, load_image(path)):
            np.testing.assert_array_equal(photos(form)[0].rgb, expected)


def test_a_damaged_picture_is_a_picture_or_an_error(trials, tmp_path):
    for random in trials:
        data = bytearray(any_picture(random)[0])
        if random.random() < 0.3:
            del data[random.randrange(len(data)) :]
        for _ in range(min(random.randint(1, 20), len(data))):
            data[random.randrange(len(data))] = random.randrange(256)
        (tmp_path / "damaged").write_bytes(data)
        with contextlib.suppress(ImageError):
            assert photos(tmp_path / "damaged")[0].rgb.ndim == 3
