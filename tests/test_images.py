"""Pictures in: every form that is one gives its pixels, everything else an error that names it."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from fast_instantid.errors import ImageError
from fast_instantid.faces import sdxl_size
from fast_instantid.faces.align import TEMPLATE, align
from fast_instantid.images import MAX_SIDE, Photo, load_image, mask_of, photos, read_photo
from tests.adversity import needs_posix, unprivileged

# What Pillow says about damaged files besides raising.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


@pytest.fixture
def pixels() -> np.ndarray:
    """``(20, 30, 3)`` uint8: small, not square, and no two corners alike."""
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def rgb(image) -> np.ndarray:
    (photo,) = photos(image)
    assert photo.rgb.dtype == np.uint8
    assert photo.rgb.flags.c_contiguous
    assert (photo.height, photo.width) == photo.rgb.shape[:2]
    assert photo.size == (photo.width, photo.height)
    return photo.rgb


# Forms


def test_every_form_of_a_picture_gives_the_same_pixels(pixels, tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    tensor = torch.from_numpy(pixels).float() / 255 + 1e-4  # so that truncation returns the value it came from
    alpha = np.full((20, 30, 1), 7, np.uint8)
    forms = {
        "path": path,
        "str": str(path),
        "PIL": Image.fromarray(pixels),
        "opened": Image.open(path),
        "RGBA": Image.fromarray(np.concatenate([pixels, alpha], axis=2)),
        "array": pixels,
        "array with alpha": np.concatenate([pixels, alpha], axis=2),
        "16-bit array": pixels.astype(np.uint16) * 257,
        "big-endian array": (pixels.astype(np.uint16) * 257).astype(">u2"),
        "reversed view": np.ascontiguousarray(pixels[::-1, :, ::-1])[::-1, :, ::-1],
        "tensor": tensor,
        "tensor of a batch": tensor[None],
        "tensor with alpha": torch.cat([tensor, tensor[..., :1]], dim=2),
        "channels-first storage": tensor.movedim(2, 0).contiguous().movedim(0, 2),
        "float64": tensor.double(),
        "with a gradient": tensor.clone().requires_grad_(),
        "Photo": Photo(pixels),
    }
    for name, form in forms.items():
        np.testing.assert_array_equal(rgb(form), pixels, err_msg=name)
    np.testing.assert_array_equal(np.array(load_image(path)), pixels)


def test_many_pictures_keep_their_order_and_sizes(pixels, tmp_path):
    path = tmp_path / "file.png"
    Image.fromarray(pixels).save(path)
    batch = torch.rand(3, 8, 9, 3)
    made = photos([path, batch, pixels[:5], Photo(pixels, "mine")])
    assert [photo.size for photo in made] == [(30, 20), (9, 8), (9, 8), (9, 8), (30, 5), (30, 20)]
    assert [photo.name for photo in made] == [
        str(path), "image 1[0]", "image 1[1]", "image 1[2]", "image 2", "mine",
    ]  # fmt: skip
    for photo, tensor in zip(made[1:4], batch, strict=True):
        np.testing.assert_array_equal(photo.rgb, rgb(tensor))
    assert [photo.name for photo in photos(path for path in [path, path])] == [str(path)] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_tensors_become_8_bit_as_in_the_reference(dtype):
    values = torch.cat(
        [torch.linspace(-0.5, 1.5, 4000), torch.arange(256) / 255, torch.tensor([torch.inf, -torch.inf])]
    )
    tensor = values[: 3 * (len(values) // 3)].reshape(1, -1, 3).to(dtype)
    expected = tensor.mul(255).clamp(0, 255).byte().numpy()  # cubiq/ComfyUI_InstantID, utils.py, tensor_to_image
    np.testing.assert_array_equal(rgb(tensor), expected)
    assert expected.min() == 0
    assert expected.max() == 255


def test_tensors_are_not_changed():
    tensor = torch.rand(4, 4, 3) * 3 - 1
    before = tensor.clone()
    rgb(tensor)
    assert torch.equal(tensor, before)


def test_a_tensor_made_in_inference_mode_is_a_picture():
    with torch.inference_mode():
        tensor = torch.full((4, 5, 3), 0.5)
    assert (rgb(tensor) == 127).all()


# Keys


def test_a_key_stands_for_the_pixels_and_nothing_else(pixels):
    key = Photo(pixels).key
    assert Photo(pixels.copy(), "another name").key == key
    assert Photo(np.ascontiguousarray(pixels[:, ::-1])[:, ::-1]).key == key
    changed = pixels.copy()
    changed[7, 7, 1] ^= 1
    assert Photo(changed).key != key
    assert Photo(pixels.reshape(30, 20, 3)).key != key
    assert Photo(torch.from_numpy(pixels) / 255).key != key


def test_a_cached_face_never_needs_the_8_bit_pixels(pixels):
    photo = Photo(torch.rand(4, 4, 3))
    assert photo.key == photo.key
    assert "rgb" not in vars(photo)


# Files


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_pictures_of_any_mode_are_rgb_as_pillow_makes_them(mode, pixels):
    image = Image.fromarray(pixels)
    image = image.convert("L").convert(mode) if mode in ("LA", "PA") else image.convert(mode)
    if mode == "PA":
        image.putpalette([value for i in range(256) for value in (i, 0, 255 - i)])
    np.testing.assert_array_equal(rgb(image), np.array(image.convert("RGB")))


@pytest.mark.parametrize("transparency", [3, bytes([0, 255, 128, 0])])
def test_a_palette_with_transparency_gives_its_colours_without_a_warning(transparency, tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8), "P")
    colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]]
    image.putpalette(np.ravel(colours).tolist())
    image.save(tmp_path / "p.png", transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(rgb(tmp_path / "p.png").reshape(4, 3), colours)


def test_a_grayscale_array_is_repeated(pixels):
    gray = pixels[..., 0]
    expected = np.stack([gray] * 3, axis=2)
    np.testing.assert_array_equal(rgb(gray), expected)
    np.testing.assert_array_equal(rgb(gray[..., None]), expected)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_files_are_scaled_not_clipped(suffix, tmp_path):
    values = np.array([[0, 255, 256, 32768], [65280, 65535, 4095, 1000]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep{suffix}")
    expected = np.repeat((values // 256).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(rgb(tmp_path / f"deep{suffix}"), expected)
    # As older versions of Pillow open such files.
    np.testing.assert_array_equal(rgb(Image.fromarray(values.astype(np.int32))), expected)
    np.testing.assert_array_equal(rgb(values), expected)


def test_a_cmyk_jpeg_has_its_colours(tmp_path):
    colours = np.repeat(np.array([[[200, 30, 30], [30, 200, 30]], [[30, 30, 200], [240, 240, 240]]], np.uint8), 16, 0)
    colours = np.repeat(colours, 16, axis=1)
    Image.fromarray(colours).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    assert Image.open(tmp_path / "print.jpg").mode == "CMYK"
    assert np.abs(rgb(tmp_path / "print.jpg").astype(int) - colours).max() < 12


WITH_EXIF = {
    ".png": {},
    ".webp": {"lossless": True},
    ".tif": {},
    ".tiff": {"compression": "tiff_lzw"},  # decoded by a library of its own
    ".jpg": {"quality": 100, "subsampling": 0},
    ".mpo": {"quality": 100, "subsampling": 0, "save_all": True, "append_images": [Image.new("RGB", (5, 5))]},
}
if ".avif" in Image.registered_extensions():
    WITH_EXIF[".avif"] = {"quality": 100, "subsampling": "4:4:4"}
"""Format -> how to keep the pixels of a picture in it."""


def save_turned(pixels, orientation: int, path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=exif, **WITH_EXIF[path.suffix])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured_once(orientation, pixels, tmp_path):
    # EXIF 2.32, tag 0x0112: where the stored picture's first row and first column lie in the upright one.
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, 1),
        7: pixels.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(pixels, -1),
    }[orientation]
    for suffix, options in WITH_EXIF.items():
        path = tmp_path / f"rotated{suffix}"
        save_turned(stored, orientation, path)
        if suffix != ".avif":  # which keeps it in a place of its own
            assert Image.open(path).getexif()[ExifTags.Base.Orientation] == orientation
        photo = rgb(path)
        assert np.abs(photo.astype(int) - pixels).max() <= (16 if "quality" in options else 0), suffix
        loaded, tagged = Image.open(path), Image.open(path)
        loaded.load()
        tagged.getexif()
        forms = {
            "str": str(path),
            "opened": Image.open(path),
            "loaded": loaded,
            "opened from memory": Image.open(io.BytesIO(path.read_bytes())),
            "tag was read": tagged,
            "copy": Image.open(path).copy(),
            "converted": Image.open(path).convert("RGBA"),
            "upright": ImageOps.exif_transpose(Image.open(path)),
            "upright in-place": ImageOps.exif_transpose(made := Image.open(path), in_place=True) or made,
            "ours": load_image(path),
        }
        for name, form in forms.items():
            np.testing.assert_array_equal(rgb(form), photo, err_msg=f"{suffix} {name}")
        np.testing.assert_array_equal(np.array(load_image(path)), photo)
        assert sdxl_size(Image.open(path)) == sdxl_size((30, 20))
        mask = mask_of(Image.open(path), "region")
        np.testing.assert_array_equal(mask, np.asarray(Image.fromarray(photo).convert("L"), np.float32) / 255)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_an_uncompressed_tiff_is_what_a_compressed_one_is(mode, orientation, pixels, tmp_path):
    """Pillow maps its pixels to memory, with width and height in the wrong order where the orientation swaps them."""
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257 if mode == "I;16" else pixels)
    image = image if mode == "I;16" else image.convert(mode)
    path, exif = tmp_path / "raw.tif", Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(tmp_path / "compressed.tif", exif=exif, compression="tiff_lzw")
    image.save(path, exif=exif)
    expected = rgb(Image.open(io.BytesIO((tmp_path / "compressed.tif").read_bytes())))
    opened = Image.open(path)
    for form in (path, str(path), opened, load_image(path)):
        np.testing.assert_array_equal(rgb(form), expected)
    assert opened.filename == str(path)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_changes_nothing(orientation, pixels, tmp_path):
    for suffix in (".png", ".webp", ".tif"):
        save_turned(pixels, orientation, tmp_path / f"odd{suffix}")
        np.testing.assert_array_equal(rgb(tmp_path / f"odd{suffix}"), pixels)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_an_orientation_in_xmp_counts_too(suffix, pixels, tmp_path):
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    path = tmp_path / f"edited{suffix}"
    options = {"tiffinfo": {700: xmp.encode()}} if suffix == ".tif" else {"pnginfo": PngImagePlugin.PngInfo()}
    if suffix == ".png":
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp)
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(path, **options)
    expected = np.array(ImageOps.exif_transpose(Image.open(path)))
    np.testing.assert_array_equal(rgb(path), expected)
    np.testing.assert_array_equal(rgb(Image.open(path)), expected)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0", b"Exif\0\0MM\0*\xff\xff\xff\xff"])
def test_damaged_exif_does_not_cost_the_picture(exif, pixels, tmp_path):
    for suffix in ("jpg", "png", "webp"):
        Image.fromarray(pixels).save(path := tmp_path / f"photo.{suffix}", exif=exif)
        np.testing.assert_array_equal(rgb(path), np.array(Image.open(path)))


@pytest.mark.parametrize("kind", [5, 10, 11, 12])
def test_a_badly_written_tag_does_not_cost_the_rotation(kind, pixels, tmp_path):
    orientation = struct.pack(">HHIHH", ExifTags.Base.Orientation, 3, 1, 6, 0)
    software = struct.pack(">HHII", ExifTags.Base.Software, kind, 1, 38)  # text, said to be a number
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + orientation + software + struct.pack(">I", 0) + b"camera\0"
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif)
    assert rgb(tmp_path / "photo.jpg").shape == (30, 20, 3)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_of_an_animation_the_first_frame_counts(suffix, tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"moving{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == ".webp" else {}))
    assert Image.open(path).n_frames == 3
    assert (rgb(path) == [255, 0, 0]).all()


@pytest.mark.parametrize("size", [(1, 1), (20_000, 50), (50, 20_000)])
def test_extreme_shapes_are_pictures(size, tmp_path):
    Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "odd.png")
    assert rgb(tmp_path / "odd.png").shape == (size[1], size[0], 3)
    assert rgb(torch.zeros(size[1], size[0], 3)).shape == (size[1], size[0], 3)


# Refusals


def refusal(image) -> str:
    with pytest.raises(ImageError) as caught:
        rgb(image)
    return str(caught.value)


def encoded(image: np.ndarray, format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.png", b"", "not a picture that Pillow can read; save it as JPEG"),
        ("words.jpg", b"these are words, not a picture" * 99, "not a picture that Pillow can read; save it as JPEG"),
        ("phone.heic", b"\0\0\0\x18ftypheic" + bytes(500), "HEIC photos need converting"),
    ],
)
def test_a_file_that_is_no_picture_is_named(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path / name)
    assert message.startswith(f"{tmp_path / name}: ")
    assert said in message


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF"])
@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_a_truncated_file_is_named(format, keep, astronaut, tmp_path):
    data = encoded(astronaut[:128, :128], format)
    path = tmp_path / "cut"
    path.write_bytes(data[: int(keep * len(data))])
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert "damaged or truncated" in message or "not a picture" in message
    if format in ("JPEG", "PNG"):  # which Pillow decodes only when asked for pixels
        assert "image: damaged or truncated picture" in refusal(Image.open(path))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damaged_files_raise_nothing_else(format, pixels, tmp_path):
    random = np.random.default_rng(0)
    data = encoded(pixels, format)
    path = tmp_path / "damaged"
    refused = 0
    for _ in range(60):
        damaged = bytearray(data[: random.integers(1, len(data))] if random.random() < 0.3 else data)
        for _ in range(random.integers(1, 20)):
            damaged[random.integers(len(damaged))] = random.integers(256)
        path.write_bytes(damaged)
        try:
            assert rgb(path).ndim == 3
        except ImageError:
            refused += 1
    assert refused


def test_a_decompression_bomb_is_refused(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(path)
    assert path.stat().st_size < 1 << 20
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert "scale the picture down" in message


def test_a_folder_and_a_missing_file_are_named(tmp_path):
    assert refusal(tmp_path) == f"{tmp_path}: this is a folder, not a picture"
    assert refusal(tmp_path / "none.png") == f"{tmp_path / 'none.png'}: no such file"
    assert "cannot be read" in refusal(tmp_path / ("x" * 5000))


@needs_posix
def test_a_picture_that_may_not_be_read_is_named(pixels, tmp_path):
    secret, locked = Path("secret.png"), Path("locked/picture.png")
    for path in (secret, locked):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / path)
    rgb(tmp_path / secret)
    (tmp_path / secret).chmod(0)
    (tmp_path / locked).parent.chmod(0o600)
    with unprivileged(tmp_path):
        for path in (secret, locked):
            assert refusal(path) == f"{path}: cannot be read (Permission denied); check its permissions"


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((4, 4, 3), np.float32), "expected a uint8 or uint16 array (H, W), (H, W, 3) or (H, W, 4)"),
        (np.zeros((4, 4, 3), np.float16), "floats in 0..1 go in as torch.from_numpy(array)"),
        (np.full((4, 4, 3), 255.0), "got float64 of shape (4, 4, 3)"),
        (np.zeros((4, 4, 3), np.uint32), "got uint32"),
        (np.float32(0.5), "got float32"),
        (np.zeros((4, 4, 3), bool), "got bool"),
        (np.zeros((4, 4, 3), object), "got object"),
        (np.zeros((4, 4, 2), np.uint8), "shape (4, 4, 2)"),
        (np.zeros((2, 4, 4, 3), np.uint8), "shape (2, 4, 4, 3)"),
        (np.zeros(4, np.uint8), "shape (4,)"),
        (np.zeros((0, 4, 3), np.uint8), "empty picture of 4 x 0 pixels"),
        (np.zeros((4, 0), np.uint8), "empty picture"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), "expected a float tensor [B, H, W, 3] in 0..1, got torch.uint8"),
        (torch.zeros(4, 4, 3, dtype=torch.float8_e4m3fn), "got torch.float8_e4m3fn"),
        (torch.zeros(1, 3, 8, 8), "of shape [1, 3, 8, 8]"),
        (torch.zeros(1, 8, 8), "of shape [1, 8, 8]"),
        (torch.zeros(8, 8), "of shape [8, 8]"),
        (torch.zeros(0, 8, 8, 3), "empty tensor of shape [0, 8, 8, 3]"),
        (torch.zeros(1, 0, 8, 3), "empty picture of 8 x 0 pixels"),
        (torch.full((4, 4, 3), torch.nan), "holds NaN"),
        (torch.tensor([[[0.1, 0.2, torch.nan]]], dtype=torch.bfloat16), "holds NaN"),
        (Image.new("RGB", (0, 5)), "empty picture of 0 x 5 pixels"),
        (Image.new("F", (4, 4)), "32-bit floats"),
        (b"\x89PNG", "expected a path, PIL image, array or tensor, got bytes; PIL's Image.open reads"),
        (io.BytesIO(b"\x89PNG\n\n"), "image: expected a path, PIL image, array or tensor, got BytesIO"),
        (None, "got NoneType"),
        (3, "got int"),
        ([], "no images given"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_what_is_no_picture_is_refused(image, said):
    assert said in refusal(image)


def test_the_bad_one_of_many_is_named(pixels):
    with pytest.raises(ImageError, match=r"^image 2: expected a uint8 or uint16 array"):
        photos([pixels, pixels, pixels.astype(float)])
    nan = torch.zeros(3, 4, 4, 3)
    nan[1, 2, 2] = torch.nan
    with pytest.raises(ImageError, match=r"^image\[1\]: the picture holds NaN"):
        [photo.rgb for photo in photos(nan)]


@pytest.mark.parametrize("error", [MemoryError(), OSError("out of memory error when reading image file")], ids=repr)
def test_running_out_of_memory_is_not_a_damaged_picture(error, tmp_path, monkeypatch, pixels):
    """Pillow's decoders say so with a number, of which it makes an OSError."""
    Image.fromarray(pixels).save(tmp_path / "large.png")

    def full(*args):
        raise error

    monkeypatch.setattr(Image.Image, "load", full)
    assert refusal(tmp_path / "large.png") == (
        f"{tmp_path / 'large.png'}: memory does not hold the picture; scale it down first"
    )


@pytest.mark.parametrize("name", ["a.eps", "a.png"])
def test_a_program_is_not_run_for_its_picture(name, tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, whatever the file's name, and waits as long as it draws."""
    (path := tmp_path / name).write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    said = "EPS is a program that draws; save its picture as JPEG, PNG or WebP"
    assert refusal(path) == f"{path}: {said}"
    assert refusal(Image.open(path)) == f"image: {said}"
    with pytest.raises(ImageError, match=said):
        read_photo(path.open("rb"), "photo")
    with pytest.raises(ImageError, match=said):
        mask_of(Image.open(path), "mask")


@pytest.mark.parametrize("size", [(MAX_SIDE + 1, 1), (1, MAX_SIDE + 1)])
def test_a_side_too_long_for_insightface_is_refused_before_decoding(size, tmp_path):
    said = f"{size[0]} x {size[1]} pixels, but no side may exceed 32766; scale the picture down first"
    Image.new("RGB", size).save(tmp_path / "long.png")
    assert said in refusal(tmp_path / "long.png")
    (tmp_path / "long.png").write_bytes((tmp_path / "long.png").read_bytes()[:60])
    assert said in refusal(tmp_path / "long.png")
    for form in (Image.new("RGB", size), np.zeros((size[1], size[0], 3), np.uint8), torch.zeros(size[1], size[0], 3)):
        assert said in refusal(form)
    longest = np.zeros((min(size[1], MAX_SIDE), min(size[0], MAX_SIDE), 3), np.uint8)
    align([rgb(longest)], [TEMPLATE])


@needs_posix
def test_what_never_ends_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        assert refusal(path) == f"{path}: this is a pipe or a device, not a picture"


@pytest.mark.parametrize("mode", ["I;16", "RGBA"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_memory_is_bounded_by_the_pixels(mode, orientation, tmp_path):
    """Beside Pillow's own picture: 3 bytes per pixel for the result, and those of a strip. Was 24 for 16 bits."""
    path, pixels = tmp_path / "small.png", 2000 * 2000
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new(mode, (2000, 2000)).save(path, exif=exif)
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    try:
        photos(path)
        assert tracemalloc.get_traced_memory()[1] < 3 * pixels + (6 << 20)
    finally:
        tracemalloc.stop()


# Masks


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "HSV", "YCbCr", "LAB", "LA", "RGBA", "I;16", "I", "F"])
def test_a_mask_is_1_where_it_is_white(mode, tmp_path):
    values = np.zeros((4, 6), np.uint8)
    values[:, 3:] = 255
    image = {
        "I;16": lambda: Image.fromarray(values.astype(np.uint16) * 257),
        "I": lambda: Image.fromarray(values.astype(np.int32) * 257),
        "F": lambda: Image.fromarray(values.astype(np.float32) / 255),
        "LAB": lambda: Image.merge("LAB", [Image.fromarray(values), *[Image.new("L", (6, 4), 128)] * 2]),
    }.get(mode, lambda: Image.fromarray(values).convert("RGB").convert(mode))()
    assert image.mode == mode
    mask = mask_of(image, "region")
    assert mask.dtype == np.float32
    np.testing.assert_array_equal(mask, values / 255)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_a_mask_keeps_the_values_of_its_depth(dtype):
    values = np.linspace(0, 1, 24).reshape(4, 6)
    white = {np.uint8: 255, np.uint16: 65535, np.int32: 65535, np.float32: 1}[dtype]
    stored = (values * white).astype(dtype)
    np.testing.assert_allclose(mask_of(Image.fromarray(stored), "region"), stored / white, rtol=1e-6)


@pytest.mark.parametrize("colour", [0, 255])
@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA", "P"])
def test_the_transparency_of_a_mask_is_the_mask(mode, colour):
    alpha = np.array([[0, 255, 128], [255, 0, 64]], np.uint8)
    if mode == "P":
        image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3), "P")
        image.putpalette([colour] * 18)
        image.info["transparency"] = alpha.tobytes()
    else:
        image = Image.merge("LA", [Image.new("L", (3, 2), colour), Image.fromarray(alpha)]).convert(mode)
        if mode == "PA":
            image.putalpha(Image.fromarray(alpha))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(mask_of(image, "region"), alpha / np.float32(255))


def test_an_unclear_mask_is_refused(tmp_path):
    ramp = Image.linear_gradient("L")
    (tmp_path / "cut.png").write_bytes(encoded(np.array(ramp), "PNG")[:200])
    refused = [
        (Image.merge("LA", [ramp, ramp]), "both the transparency and the brightness of this mask vary"),
        (Image.fromarray(np.eye(4, dtype=np.uint8)), "255 counts as 1, but the largest value is 1: scale the values"),
        (ramp.convert("I"), "65535 counts as 1, but the largest value is 255"),
        (Image.new("L", (0, 4)), "empty picture of 0 x 4 pixels"),
        (Image.new("L", (MAX_SIDE + 1, 1)), "no side may exceed"),
        (Image.open(tmp_path / "cut.png"), "damaged or truncated"),
    ]
    for image, said in refused:
        with pytest.raises(ImageError, match=r"^region: ") as caught:
            mask_of(image, "region")
        assert said in str(caught.value)
