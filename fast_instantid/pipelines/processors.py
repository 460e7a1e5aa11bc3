"""Methods of a pipeline's processors that are replaced during a call: for the crop, and for pictures of NaN."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import NotFiniteError
from ..faces import draw_keypoints
from ..faces.keypoints import drawn_points
from ..reuse import ReplacedForward, replaced
from .drawing import Crop, Drawing


@contextmanager
def seen_crop(drawing: Drawing) -> Generator[None]:
    """Tell the drawing which part of the picture an inpainting pipeline draws (``padding_mask_crop``).

    Keypoints are drawn anew for that part: dots and lines that grow with it are none that the IdentityNet knows.
    """
    drawing.begin_run(None)

    def get_crop_region(measure: Any, mask_image: Any, *args: Any, **kwargs: Any) -> Any:
        box = measure(mask_image, *args, **kwargs)
        width, height = mask_image.size
        crop: Crop = (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
        drawing.begin_run(crop)
        return box

    def preprocess(prepare: Any, image: Any, *args: Any, crops_coords: Any = None, **options: Any) -> Any:
        pictures = image if isinstance(image, list) else [image]
        if crops_coords is not None and all(drawn_points(picture) for picture in pictures):
            left, top, right, bottom = crops_coords
            size = options["width"], options["height"]
            scale = np.array(size) / (right - left, bottom - top)
            moved = [[(points - (left, top)) * scale for points in drawn_points(picture)] for picture in pictures]
            image, crops_coords = [Image.fromarray(draw_keypoints(size, *points)) for points in moved], None
        return prepare(image, *args, crops_coords=crops_coords, **options)

    with (
        _replaced(drawing.pipe, "mask_processor", "get_crop_region", get_crop_region),
        _replaced(drawing.pipe, "control_image_processor", "preprocess", preprocess),
    ):
        yield


def checked_pictures(pipe: Any) -> AbstractContextManager[None]:
    """Refuse NaN and infinity with a NotFiniteError where a PIL picture would hide them; a tensor shows them."""
    return _replaced(pipe, "image_processor", "postprocess", _checked_postprocess)


def _replaced(pipe: Any, part: str, method: str, replacement: Callable[..., Any]) -> AbstractContextManager[None]:
    """Replace a method of a part of the pipeline, if it has that; called as ``replacement(before, ...)``."""
    owner: Any = getattr(pipe, part, None)
    return replaced([ReplacedForward(owner, replacement, method)] if hasattr(owner, method) else [])


def _checked_postprocess(before: Any, image: Any, output_type: str = "pil", *args: Any, **kwargs: Any) -> Any:
    if output_type == "pil" and isinstance(image, Tensor):
        finite = image.isfinite().flatten(1).all(1).tolist()  # waits for the GPU, as the conversion to PIL does next
        if not all(finite):
            which = ", ".join(str(i + 1) for i, is_finite in enumerate(finite) if not is_finite)
            raise NotFiniteError(
                f"picture {which} of {len(finite)} holds NaN or infinity, and would be black. In float16 the VAE or "
                "the UNet overflows: use dtype bfloat16 or float32, or a VAE made for float16 (sdxl-vae-fp16-fix). "
                "Else a scale, a LoRA or guidance_scale is too strong, or a file of weights is damaged"
            )
    return before(image, output_type, *args, **kwargs)
