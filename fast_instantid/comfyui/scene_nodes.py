"""Nodes for scenes: poses without a photograph, and several persons in one picture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeAlias

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..errors import FastInstantIDError
from ..faces import FaceAnalyzer
from ..identity import Combine
from ..images import photos
from ..people import AnyPose, Person, Pose, Scene, Subject, scene_of
from ..people.subject import box_mask, within
from . import scene_sockets
from .apply import Conditioning, Layers, apply_to_conditioning, apply_to_model, tokens_of
from .faces import draw_frames
from .people import People, identity_of, size_of

Poses: TypeAlias = tuple[AnyPose, ...]
"""POSE: a pose for each person of a picture, or for each frame of a track."""


class PoseNode:
    """A node of poses and their keypoint picture."""

    RETURN_TYPES: tuple[str, ...] = ("POSE", "IMAGE")
    RETURN_NAMES: tuple[str, ...] = ("pose", "image_kps")
    FUNCTION = "pose"
    CATEGORY = "InstantID/people"


class InstantIDPose(PoseNode):
    """Places a face and turns it, without a photograph. Chain several for several persons."""

    SEARCH_ALIASES = ("head angle", "face direction", "yaw pitch roll", "keypoints", "face position")
    INPUT_TYPES = staticmethod(scene_sockets.pose)

    def pose(
        self,
        latent: dict[str, Any],
        angle: str,
        x: float,
        y: float,
        size: float,
        yaw: float,
        pitch: float,
        roll: float,
        before: Poses = (),
        jitter: float = 0.0,
        jitter_seed: int = 0,
    ) -> tuple[Poses, Tensor]:
        named = Pose.of(angle)
        pose = Pose(x, y, size, *_added(named, yaw, pitch, roll))
        poses = (*before, pose.jittered(jitter_seed, jitter) if jitter else pose)
        return poses, draw_poses(latent, poses)


class ApplyInstantIDScene:
    """Puts several persons into one picture: one IdentityNet for all, and a region for each."""

    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING", "IMAGE")
    RETURN_NAMES = ("MODEL", "positive", "negative", "image_kps")
    FUNCTION = "apply"
    CATEGORY = "InstantID/people"
    SEARCH_ALIASES = ("two people", "several people", "multiple faces", "group picture", "regions")
    INPUT_TYPES = staticmethod(scene_sockets.apply_scene)

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
        pairing = _numbers(face_numbers) or pairing
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


def draw_poses(latent: dict[str, Any], poses: Poses) -> Tensor:
    """Return the keypoint picture with all poses, in the size of the pictures that a LATENT becomes."""
    size = size_of(latent)
    return draw_frames(size, [[pose.keypoints(size) for pose in poses]])


def _added(named: Pose, yaw: float, pitch: float, roll: float) -> tuple[float, float, float]:
    low, high = -90.0, 90.0
    return min(max(named.yaw + yaw, low), high), min(max(named.pitch + pitch, low), high), named.roll + roll


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise FastInstantIDError(f"face_numbers {text[:80]!r}: expected whole numbers, such as 2, 0") from None


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
