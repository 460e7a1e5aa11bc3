"""Pictures from outside: every accepted form becomes a :class:`Photo`.

A Photo converts lazily. Its content key is hashed from the pixels as they came. The 8-bit RGB array for the face
networks is made on first use. A cached face therefore costs one hash.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError

from .cache import content_key
from .errors import ImageError
from .files import special_file
from .recorder import stage

RGBImage: TypeAlias = np.ndarray
"""``(H, W, 3)`` uint8, RGB, C-contiguous."""

OneImage: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor | Photo"
ImageInput: TypeAlias = "OneImage | Sequence[OneImage]"
"""One image or many: paths, PIL images, ``(H, W[, 1|3|4])`` uint8/uint16 arrays in RGB order, or float tensors
``[H, W, 3]`` / ``[B, H, W, 3]`` in 0..1 (ComfyUI's IMAGE). Sizes may differ within one sequence. A fourth channel is
dropped, as transparency is: the colours beneath it count."""

MAX_SIDE = 32_766
"""Largest width and height in pixels of pictures that insightface aligns (OpenCV, imgwarp.cpp, ``remap``)."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> its inverse. Pillow's ``exif_transpose`` also rewrites other tags, and fails on damaged ones."""
_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
"""Modes that Pillow clips to 255 instead of scaling. Old versions open 16-bit PNGs as "I"."""
_PROGRAMS = ("EPS", "WMF")
"""Pillow's formats, of any file name, that Ghostscript or Windows would run, without an end to the time."""
_STRIP = 1 << 18  # pixels that are converted at once, which bounds the memory for copies
_FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Photo:
    """One picture and the name that error messages give it.

    Args:
        pixels: ``(H, W, 3)``, uint8 RGB array or float tensor in 0..1. It must not be changed afterwards.
        name: a file name, or ``"image 3"``.
    """

    def __init__(self, pixels: np.ndarray | torch.Tensor, name: str = "image") -> None:
        self.pixels = pixels
        self.name = name

    @cached_property
    def key(self) -> str:
        """Content key: equal pixels of equal shape and dtype, and nothing else, give an equal key."""
        with stage("hash", nbytes=self.pixels.nbytes):
            return content_key(self.pixels)

    @cached_property
    def rgb(self) -> RGBImage:
        """``(H, W, 3)`` uint8. Floats are scaled by 255 and truncated, as ComfyUI packs do (cubiq/ComfyUI_InstantID,
        utils.py, ``tensor_to_image``); values outside 0..1 are clamped.

        Raises:
            ImageError: the tensor holds NaN.
        """
        if isinstance(self.pixels, np.ndarray):
            return self.pixels
        with stage("convert", nbytes=self.pixels.nbytes):
            pixels = self.pixels.detach()
            if pixels.amin().isnan():  # one pass, and many times faster than isnan().any()
                raise ImageError(
                    f"{self.name}: the picture holds NaN: look at the step that made it, such as a VAE in fp16"
                )
            eight_bit = pixels.mul(255).clamp_(0, 255).to(torch.uint8)
            return np.ascontiguousarray(eight_bit.cpu().numpy())

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def size(self) -> tuple[int, int]:
        """``(width, height)`` in pixels, as in PIL."""
        return self.width, self.height


def photos(images: ImageInput) -> list[Photo]:
    """One image or many, in any accepted form, as Photos in order.

    Raises:
        ImageError: unreadable, truncated or empty pictures, and arrays of a shape or dtype that is not a picture.
    """
    one = isinstance(images, (str, bytes, os.PathLike, Image.Image, np.ndarray, Photo, torch.Tensor))
    if one or not isinstance(images, Iterable) or hasattr(images, "read"):
        return _expand(images, "image")  # pyright: ignore[reportArgumentType]
    made = [photo for i, image in enumerate(images) for photo in _expand(image, f"image {i}")]
    if not made:
        raise ImageError("no images given: expected at least one")
    return made


def one_photo(image: OneImage) -> Photo:
    """One image, in any accepted form, as a Photo. An ImageError if it cannot be read, or if there are several."""
    pictures = photos(image)
    if len(pictures) > 1:
        raise ImageError(f"{len(pictures)} pictures where one is expected: give one at a time")
    return pictures[0]


def read_photo(file: AbstractContextManager[Any], name: str, formats: tuple[str, ...] | None = None) -> Photo:
    """Read the picture of a file that the block of ``file`` opens, such as a remote one of fsspec.

    ``formats`` are Pillow's names of those that are read; all by default. An ImageError as of :func:`load_image`.
    """
    with _pillow_errors(name), file as stream, stage("decode"), Image.open(stream, formats=formats) as opened:
        return Photo(_rgb_pixels(opened, name), name)


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """A picture file as an upright 8-bit RGB image; of an animation the first frame.

    The EXIF orientation is applied. Transparency is dropped, not blended; 16-bit values keep their upper 8 bits.

    Raises:
        ImageError: the file is missing, unreadable, not a picture, truncated, larger than memory or Pillow's
            decompression-bomb limit, or has a side of more than 32,766 pixels.
    """
    return Image.fromarray(_read(Path(path)))


def upright(image: Image.Image, name: str = "image") -> Image.Image:
    """An image as its EXIF orientation wants it; the image itself where that changes nothing.

    Raises:
        ImageError: the image cannot be decoded.
    """
    with _pillow_errors(name):
        if image.format in _PROGRAMS and getattr(image, "tile", None):  # not decoded yet
            raise ImageError(f"{name}: {image.format} is a program that draws; save its picture as JPEG, PNG or WebP")
        filename = getattr(image, "filename", "")
        vars(image)["filename"] = ""  # by it, Pillow maps uncompressed TIFFs, with width and height exchanged
        try:
            image.load()  # before looking for the tag: Pillow turns TIFFs itself and drops the tag, both while loading
        finally:
            vars(image)["filename"] = filename
        try:
            transpose = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        except Exception:  # damaged EXIF does not cost the picture
            transpose = None
        return image if transpose is None else image.transpose(transpose)


def mask_of(image: Image.Image, name: str) -> np.ndarray:
    """A PIL image as a mask, ``(H, W)`` float32, upright: 1 where it is white, or opaque if it has transparency.

    16 bits count 0..65535, floats as they are, colours by their luminance.

    Raises:
        ImageError: the image cannot be read, its values use 1/255 of their range at most, or both its transparency and
            its brightness vary.
    """
    _check_size(*image.size, name)
    with _pillow_errors(name):
        image = upright(image, name)
        if image.mode == "F":
            return np.array(image)
        white, values = 65535, np.asarray(image)
        if image.mode not in _16_BIT:
            alpha = np.asarray(image.convert("RGBA"))[..., 3] if image.has_transparency_data else np.uint8(255)
            white, values = 255, np.asarray(_rgb(image).convert("L"))
            if alpha.min() < 255:
                if np.unique(values[alpha > 0]).size != 1:
                    raise ImageError(
                        f"{name}: both the transparency and the brightness of this mask vary: give one of them, "
                        "image.getchannel('A') or image.convert('L')"
                    )
                values = alpha
        if 0 < values.max() <= white // 255:
            raise ImageError(
                f"{name}: in a mask of mode {image.mode} {white} counts as 1, but the largest value is {values.max()}: "
                "scale the values, or give an array of them in 0..1"
            )
        return values.astype(np.float32) / white


def _read(path: Path) -> RGBImage:
    with _pillow_errors(str(path)):
        if path.parts[:1] in (("http:",), ("https:",)):
            raise ImageError(f"{path}: a URL, not a file; download the picture, or use diffusers.utils.load_image")
        if special := special_file(path):
            raise ImageError(f"{path}: this is {special}, not a picture")
        with stage("decode", nbytes=path.stat().st_size), path.open("rb") as file, Image.open(file) as opened:
            return _rgb_pixels(opened, str(path))


@contextmanager
def _pillow_errors(name: str) -> Generator[None]:
    """Turn the errors of opening and decoding into an ImageError about ``name``."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name}: not a picture that Pillow can read; save it as JPEG, PNG or WebP (HEIC photos need converting)"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: {error}; scale the picture down first") from error
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file") from error
    except Exception as error:  # decoders share no base class for the errors of damaged files
        if isinstance(error, MemoryError) or "out of memory" in str(error):  # Pillow's decoders say it in an OSError
            raise ImageError(f"{name}: memory does not hold the picture; scale it down first") from error
        if isinstance(error, OSError) and error.errno:  # from the system, not from a decoder
            raise ImageError(f"{name}: cannot be read ({error.strerror}); check its permissions") from error
        raise ImageError(f"{name}: damaged or truncated picture ({error}); get the file again") from error


def _check_size(width: int, height: int, name: str) -> None:
    if not width or not height:
        raise ImageError(f"{name}: empty picture of {width} x {height} pixels")
    if max(width, height) > MAX_SIDE:
        raise ImageError(
            f"{name}: {width} x {height} pixels, but no side may exceed {MAX_SIDE}; scale the picture down first"
        )


def _expand(image: OneImage, name: str) -> list[Photo]:
    if isinstance(image, Photo):
        return [image]
    if isinstance(image, (str, os.PathLike)):
        return [Photo(_read(Path(image)), os.fspath(image))]
    if isinstance(image, Image.Image):
        with _pillow_errors(name):  # an image that was opened and not yet loaded is decoded here
            return [Photo(_rgb_pixels(image, name), name)]
    if isinstance(image, torch.Tensor):
        return _from_tensor(image, name)
    return [Photo(_from_array(image, name), name)]


def _from_tensor(tensor: torch.Tensor, name: str) -> list[Photo]:
    batch = tensor.unsqueeze(0) if tensor.ndim == 3 else tensor
    if batch.ndim != 4 or batch.shape[-1] not in (3, 4) or batch.dtype not in _FLOAT_DTYPES:
        raise ImageError(
            f"{name}: expected a float tensor [B, H, W, 3] in 0..1, got {tensor.dtype} of shape {list(tensor.shape)}"
        )
    if not len(batch):
        raise ImageError(f"{name}: empty tensor of shape {list(tensor.shape)}")
    _check_size(batch.shape[2], batch.shape[1], name)
    batch = batch[..., :3]
    if len(batch) == 1:
        return [Photo(batch[0], name)]
    return [Photo(pixels, f"{name}[{i}]") for i, pixels in enumerate(batch)]


def _from_array(array: np.ndarray, name: str) -> RGBImage:
    if not isinstance(array, np.ndarray):
        raise ImageError(
            f"{name}: expected a path, PIL image, array or tensor, got {type(array).__name__}; PIL's Image.open reads "
            "open files and, in a BytesIO, the bytes of one"
        )
    if array.ndim == 2:
        array = np.asarray(array)[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.dtype.kind != "u" or array.itemsize > 2:
        raise ImageError(
            f"{name}: expected a uint8 or uint16 array (H, W), (H, W, 3) or (H, W, 4) in RGB order, "
            f"got {array.dtype} of shape {array.shape}; floats in 0..1 go in as torch.from_numpy(array)"
        )
    _check_size(array.shape[1], array.shape[0], name)
    if array.itemsize == 2:
        array = (array >> 8).astype(np.uint8)
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(array[..., :3])


def _rgb_pixels(image: Image.Image, name: str) -> RGBImage:
    _check_size(*image.size, name)  # before decoding
    image = upright(image, name)
    if image.mode == "F":  # Pillow would clip these, and their range is unknown
        raise ImageError(f"{name}: pixels are 32-bit floats of unknown range; save the picture with 8 or 16 bits")
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(_STRIP // image.width, 1)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if strip.mode in _16_BIT:
            pixels[top : top + rows] = (np.asarray(strip).clip(0, 65535) >> 8)[..., None]
        else:
            pixels[top : top + rows] = np.asarray(_rgb(strip))
    return pixels


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "P":  # by way of RGBA, or Pillow warns about palettes with transparency
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")
