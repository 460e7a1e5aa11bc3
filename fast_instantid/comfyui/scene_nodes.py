"""Nodes that put persons into pictures: one in each picture of a batch, or several in one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..errors import FastInstantIDError
from ..faces import FaceAnalyzer
from ..identity import Combine
from ..identity.layout import mask_batch
from ..images import photos
from ..people import Person, Scene, Subject, scene_of
from ..people.scene import Pairing
from ..people.subject import box_mask, within
from .apply import Conditioning, Layers, apply_to_conditioning, apply_to_model, checked_keypoints, tokens_of
from .faces import draw_frames
from .people import People, face_masks, identity_of, keypoints_of, size_of
from .pose_nodes import Poses
from .sockets import (
    LAYER_CHOICE,
    MASK,
    NETWORKS,
    NON_FACE,
    PERSON,
    PROMPTED_MODEL,
    STRENGTHS,
    choice,
    entry,
    inputs,
    numbers,
)


class ApplyInstantIDPerson:
    """Puts a person into the model (likeness) and the conditioning (pose). A batch draws one picture each."""

    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("MODEL", "positive", "negative")
    FUNCTION = "apply"
    CATEGORY = "InstantID/people"
    SEARCH_ALIASES = ("face id", "same person", "consistent face", "apply face")
    INPUT_TYPES = inputs(
        person=PERSON,
        **PROMPTED_MODEL,
        **STRENGTHS,
        optional={
            **NETWORKS,
            "image_kps": entry("IMAGE", "The keypoint picture. Without it: the pose of the person's first photograph."),
            "latent": entry("LATENT", "Gives the keypoint picture its size. Without it: the photograph's size."),
            "mask": MASK,
            "layers": LAYER_CHOICE,
            "enhance_non_face_region": NON_FACE,
        },
    )

    def apply(
        self,
        person: People,
        model: ModelPatcher,
        positive: Conditioning,
        negative: Conditioning,
        ip_weight: float,
        cn_strength: float,
        start_at: float,
        end_at: float,
        noise: float,
        combine_embeds: Combine,
        control_net: Any = None,
        instantid: Any = None,
        image_kps: Tensor | None = None,
        latent: dict[str, Any] | None = None,
        mask: Tensor | None = None,
        layers: Layers = "reference",
        enhance_non_face_region: bool = False,
    ) -> tuple[ModelPatcher, Conditioning, Conditioning]:
        size = None
        if latent is not None:
            person, size = person[: len(latent["samples"])], size_of(latent)
        identity = identity_of(person, instantid, model, combine_embeds, noise)
        if identity is None:
            return model, positive, negative
        keypoints = keypoints_of(person, size) if image_kps is None else checked_keypoints(image_kps)
        seen, faces = mask, None
        if enhance_non_face_region:
            if image_kps is not None:
                raise FastInstantIDError(
                    "image_kps does not say where the face is: use Apply InstantID Scene and a pose"
                )
            faces = face_masks(person, size)
            seen = within(None if mask is None else mask_batch(mask), faces)
        patched = apply_to_model(model, identity, ip_weight, start_at, end_at, seen, layers)
        positive, negative = apply_to_conditioning(
            positive, negative, control_net, tokens_of(identity), keypoints, cn_strength, start_at, end_at, mask, faces
        )
        return patched, positive, negative


class ApplyInstantIDScene:
    """Puts several persons into one picture: one IdentityNet for all, and a region for each."""

    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING", "IMAGE")
    RETURN_NAMES = ("MODEL", "positive", "negative", "image_kps")
    FUNCTION = "apply"
    CATEGORY = "InstantID/people"
    SEARCH_ALIASES = ("two people", "several people", "multiple faces", "group picture", "regions")
    INPUT_TYPES = inputs(
        person=entry("PERSON", "A batch of persons, from Join People or InstantID Person."),
        latent=entry("LATENT", "The picture to draw. It gives the keypoint picture its size."),
        **PROMPTED_MODEL,
        **STRENGTHS,
        pairing=choice(
            get_args(Pairing), "Which face of pose_image a person gets: from left to right, or the most alike."
        ),
        optional={
            **NETWORKS,
            "pose": entry("POSE", "A pose for each person. Without it: beside each other."),
            "pose_image": entry("IMAGE", "A picture with a face for each person, in place of pose."),
            "faceanalysis": entry("FACEANALYSIS", "From InstantID Face Analysis, for pose_image."),
            "regions": entry("MASK", "A mask for each person. Without it: the area nearest to each face."),
            "layers": LAYER_CHOICE,
            "enhance_non_face_region": NON_FACE,
            "face_numbers": entry(
                "STRING",
                "Numbers of the persons' faces in pose_image, 0 at the left, such as 2, 0. Empty: pairing.",
                default="",
            ),
        },
    )

    def apply(
        self,
        person: People,
        latent: dict[str, Any],
        model: ModelPatcher,
        positive: Conditioning,
        negative: Conditioning,
        ip_weight: float,
        cn_strength: float,
        start_at: float,
        end_at: float,
        noise: float,
        combine_embeds: Combine,
        pairing: Any,
        control_net: Any = None,
        instantid: Any = None,
        pose: Poses | None = None,
        pose_image: Tensor | None = None,
        faceanalysis: Any = None,
        regions: Tensor | None = None,
        layers: Layers = "reference",
        enhance_non_face_region: bool = False,
        face_numbers: str = "",
    ) -> tuple[ModelPatcher, Conditioning, Conditioning, Tensor]:
        people = [one for one in person if one is not None]
        if len(people) < len(person) or not people:
            raise FastInstantIDError("a scene of nobody, or with a person that was not found: see InstantID Person")
        pairing = numbers(face_numbers, int, "face_numbers", "whole numbers, such as 2, 0") or pairing
        scene = _scene(people, size_of(latent), pose, pose_image, faceanalysis, pairing)
        masks, faces = _masks(scene, regions), None
        if enhance_non_face_region:
            boxes = [box_mask(one.face_box) for one in scene.subjects if one.face_box is not None]
            masks = [within(mask, box) for mask, box in zip(masks, boxes, strict=True)]
            faces = torch.cat(boxes).amax(dim=0, keepdim=True)
        tokens: list[tuple[Tensor, Tensor]] = []
        for one, mask in zip(people, masks, strict=True):
            identity = identity_of((one,), instantid, model, combine_embeds, noise)
            assert identity is not None, "each of them is somebody"
            model = apply_to_model(model, identity, ip_weight, start_at, end_at, mask, layers)
            tokens.append(tokens_of(identity))
        # Several references of one person by concat are rows of their own: the IdentityNet reads all as one text.
        cond, uncond = (
            torch.cat([half.flatten(0, 1) for half in halves])[None] for halves in zip(*tokens, strict=True)
        )
        keypoints = draw_frames(scene.size, [scene.keypoints])
        positive, negative = apply_to_conditioning(
            positive, negative, control_net, (cond, uncond), keypoints, cn_strength, start_at, end_at, inside=faces
        )
        return model, positive, negative, keypoints


def _scene(
    people: list[Person],
    size: tuple[int, int],
    poses: Poses | None,
    pose_image: Tensor | None,
    faceanalysis: Any,
    pairing: Any,
) -> Scene:
    """Return the scene: with the poses that are given, those of a picture's faces, or beside each other."""
    if poses is not None:
        if len(poses) != len(people):
            raise FastInstantIDError(f"{len(poses)} poses for {len(people)} persons: give one InstantID Pose for each")
        return Scene(size, [Subject(one, pose=pose) for one, pose in zip(people, poses, strict=True)])
    if pose_image is None:
        return Scene(size, people)
    if faceanalysis is None:
        raise FastInstantIDError(
            "pose_image without faceanalysis: connect InstantID Face Analysis, which finds its faces"
        )
    return scene_of(FaceAnalyzer.wrap(faceanalysis), photos(pose_image)[0], people, size, pairing)


def _masks(scene: Scene, regions: Tensor | None) -> list[Tensor | None]:
    """Return a mask for each person: those given, or of the area nearest to each face."""
    count = len(scene.subjects)
    if regions is not None:
        regions = regions.reshape(-1, *regions.shape[-2:])
        if len(regions) != count:
            raise FastInstantIDError(f"{len(regions)} masks in regions for {count} persons: give one for each")
        scene = replace(
            scene, people=[replace(one, region=mask) for one, mask in zip(scene.people, regions, strict=True)]
        )
    return [one.mask for one in scene.subjects]
