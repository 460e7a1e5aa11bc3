"""Nodes for small faces: cut a face out upright at the model's resolution, and put it back without a seam."""

from __future__ import annotations

from typing import Any, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from ..errors import FastInstantIDError
from ..faces import Face, FaceAnalyzer
from ..images import Photo
from ..people import Crop, Order, ordered
from ..people.choice import chosen
from ..people.crop import PADDING
from ..people.likeness import paired
from ..people.person import check_same_recognizer
from ..people.search import no_face
from .faces import draw_frames, searched
from .people import People
from .sockets import FACE_ANALYSIS, INDEX, choice, decimal, entry, inputs

Crops: TypeAlias = "tuple[tuple[int, Crop], ...]"
"""Crops, each with the number of its picture in the batch."""


class InstantIDCropFace:
    """Cuts out a face and its surroundings, upright, at the resolution of the model, for Paste Face."""

    RETURN_TYPES = ("IMAGE", "MASK", "IMAGE", "FACE_CROP")
    RETURN_NAMES = ("image", "mask", "image_kps", "crop")
    FUNCTION = "crop"
    CATEGORY = "InstantID/people"
    SEARCH_ALIASES = ("face detailer", "small faces", "inpaint face", "adetailer", "face restore", "upscale face")
    INPUT_TYPES = inputs(
        image=entry("IMAGE", "The picture with small faces."),
        faceanalysis=FACE_ANALYSIS,
        choose=choice(
            [*get_args(Order), "index", "like", "all"],
            "The face to cut out. index: number index from the left. like: the most like each person. all: each face.",
        ),
        padding=decimal(PADDING, 1.0, 10.0, "Side of the crop, in heights of the face.", step=0.1),
        side=entry(
            "INT",
            "Width and height of the crop in pixels: what the model draws best.",
            default=1024,
            min=64,
            max=4096,
            step=8,
        ),
        optional={
            "index": INDEX,
            "like": entry("PERSON", "The persons for choose: like. A batch cuts out one face for each."),
        },
    )

    def crop(
        self,
        image: Tensor,
        faceanalysis: Any,
        choose: Any,
        padding: float,
        side: int,
        index: int = 0,
        like: People | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Crops]:
        analyzer, pictures, found = searched(faceanalysis, image)
        if empty := [photo.name for photo, faces in zip(pictures, found, strict=True) if not faces]:
            raise no_face(analyzer, empty)
        crops: list[tuple[int, Crop]] = []
        drawn: list[list[np.ndarray]] = []
        for number, (photo, faces) in enumerate(zip(pictures, found, strict=True)):
            for face in _chosen(analyzer, photo, faces, index if choose == "index" else choose, like):
                crop = Crop.of(face, photo.size, side, padding)
                crops.append((number, crop))
                drawn.append([crop.keypoints(face)])
        cut = [crop.cut(image[number, ..., :3]) for number, crop in crops]
        masks = torch.stack([crop.mask for _, crop in crops])
        return torch.stack(cut), masks, draw_frames((side, side), drawn), tuple(crops)


class InstantIDPasteFace:
    """Blends what was drawn of Crop Face into the picture, without a seam. All else stays as it is."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "paste"
    CATEGORY = "InstantID/people"
    SEARCH_ALIASES = ("composite", "uncrop", "blend face", "stitch")
    INPUT_TYPES = inputs(
        image=entry("IMAGE", "The picture that was cropped, or the same one upscaled."),
        drawn=entry("IMAGE", "The crop, drawn anew."),
        crop=entry("FACE_CROP", "From InstantID Crop Face."),
        optional={"mask": entry("MASK", "Which part of drawn is seen. Without it: the mask of Crop Face.")},
    )

    def paste(self, image: Tensor, drawn: Tensor, crop: Crops, mask: Tensor | None = None) -> tuple[Tensor]:
        masks: list[Any] = [None] if mask is None else [*mask.reshape(-1, *mask.shape[-2:])]
        masks = masks * len(crop) if len(masks) == 1 else masks
        if not len(drawn) == len(masks) == len(crop) or max(number for number, _ in crop) >= len(image):
            raise FastInstantIDError(
                f"{len(drawn)} drawn pictures and {len(masks)} masks for {len(crop)} crops of {len(image)} pictures: "
                "give one for each crop, and the pictures that they were cut from"
            )
        pasted = [*image[..., :3]]
        for (number, one), new, share in zip(crop, drawn[..., :3], masks, strict=True):
            pasted[number] = one.paste(pasted[number], new, share)
        return (torch.stack(pasted),)


def _chosen(analyzer: FaceAnalyzer, photo: Photo, faces: list[Face], choose: Any, like: People | None) -> list[Face]:
    """The faces of a picture to cut: one, all of them, or one for each person of ``like``."""
    if choose == "all":
        return ordered(faces, "left to right")
    if choose != "like":
        return [chosen(analyzer, photo, faces, choose)]
    people = [person for person in like or () if person is not None]
    if not people or len(people) > len(faces):
        raise FastInstantIDError(
            f"{photo.name}: {len(people)} persons in like for {len(faces)} faces: connect at most as "
            "many, and at least one"
        )
    check_same_recognizer(people, analyzer.networks.recognizer_fingerprint)
    rows = analyzer.networks.embed([photo] * len(faces), faces)
    return [faces[face] for _, face in sorted(paired(people, rows))]
