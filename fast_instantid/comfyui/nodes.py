"""The seven nodes of cubiq/ComfyUI_InstantID, and all nodes by id.

Ids, sockets, defaults and Python names are the reference's: its workflows load, and packs can call its functions.
ComfyUI runs a node again when anything before it in the graph has changed. Faces and identities are therefore cached by
content, in :class:`FaceAnalyzer` and :class:`Adapter`.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..errors import NoFaceError
from ..identity import EMBEDDING_DIM, Combine, Identity
from . import sockets
from .apply import (
    Conditioning,
    Layers,
    apply_to_conditioning,
    apply_to_model,
    check_family,
    checked_keypoints,
    compute_dtype,
    tokens_of,
)
from .approximations import InstantIDApproximations
from .derived import Derivable
from .detail_nodes import InstantIDCropFace, InstantIDPasteFace
from .faces import Found, draw_kps, extract_features, find_faces, tensor_to_image
from .foreign import adapter_of
from .loaders import InstantIDFaceAnalysis, InstantIDModelLoader
from .miniature import InstantIDMiniature
from .observe.nodes import InstantIDDoctor, InstantIDProfile
from .people import People, identity_of, keypoints_of
from .people_nodes import (
    InstantIDJoinPeople,
    InstantIDLikeness,
    InstantIDLoadPerson,
    InstantIDPerson,
    InstantIDPrompts,
    InstantIDSavePerson,
)
from .pose_editor import InstantIDPoseEditor
from .pose_nodes import InstantIDLoadPose, InstantIDPose, InstantIDPoseFromImage, InstantIDPoseTrack, InstantIDSavePose
from .scene_nodes import ApplyInstantIDPerson, ApplyInstantIDScene

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "draw_kps", "extractFeatures", "tensor_to_image"]

logger = logging.getLogger("fast_instantid")

extractFeatures = extract_features
"""The nodes look this name up at every call, because other packs replace it."""
FaceEmbeds = dict[str, Tensor]
"""``cond`` and ``uncond``: tokens for the IdentityNet, ``(M, 16, 2048)`` each."""


class FaceKeypointsPreprocessor:
    """Draws the keypoints of the largest face, for the InstantID ControlNet."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "preprocess_image"
    CATEGORY = "InstantID"
    SEARCH_ALIASES = ("face pose", "face landmarks", "kps")
    INPUT_TYPES = sockets.KEYPOINTS_PREPROCESSOR

    def preprocess_image(self, faceanalysis: Any, image: Tensor) -> tuple[Tensor]:
        keypoints = extractFeatures(faceanalysis, image, extract_kps=True)
        if keypoints is None:
            logger.warning("no face found: the keypoint picture is black")
            keypoints = torch.zeros_like(image[..., :3])
        return (keypoints,)


class ApplyInstantID(Derivable):
    """Puts the person of a picture into the model (likeness) and the conditioning (pose)."""

    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("MODEL", "positive", "negative")
    FUNCTION = "apply_instantid"
    CATEGORY = "InstantID"
    SEARCH_ALIASES = ("face id", "same person", "consistent face", "likeness", "identity", "face swap")

    INPUT_TYPES: Any = sockets.APPLY

    def apply_instantid(
        self,
        instantid: Any,
        insightface: Any,
        control_net: Any,
        image: Tensor,
        model: ModelPatcher,
        positive: Conditioning,
        negative: Conditioning,
        start_at: float,
        end_at: float,
        weight: float = 0.8,
        ip_weight: float | None = None,
        cn_strength: float | None = None,
        noise: float = 0.35,
        image_kps: Tensor | None = None,
        mask: Tensor | None = None,
        combine_embeds: Combine = "average",
        layers: Layers = "reference",
        person: People | None = None,
        no_face: str = "error",
    ) -> tuple[ModelPatcher, Conditioning, Conditioning]:
        found: Any = None
        try:
            if person is None:
                identity, found = _identity(instantid, insightface, image, model, combine_embeds, noise)
            else:
                identity = identity_of(person, instantid, model, combine_embeds, noise)
        except NoFaceError:
            if no_face != "none":
                raise
            identity = None
        if identity is None:
            logger.warning("no face found: the picture is drawn without a person")
            return model, positive, negative
        if person is not None and image_kps is None:
            keypoints = keypoints_of(person)
        else:
            keypoints = extractFeatures(insightface, found[:1] if image_kps is None else image_kps, extract_kps=True)
        if keypoints is None:
            if image_kps is None:
                logger.warning("no face found in the first picture of image: the pose is left to the prompt")
                keypoints = torch.zeros_like(image)
            else:
                logger.warning(
                    "no face found in image_kps: used as a keypoint picture. If it is a photo, choose another"
                )
                keypoints = checked_keypoints(image_kps)
        ip_weight = weight if ip_weight is None else ip_weight
        cn_strength = weight if cn_strength is None else cn_strength
        patched = apply_to_model(model, identity, ip_weight, start_at, end_at, mask, layers)
        positive, negative = apply_to_conditioning(
            positive, negative, control_net, tokens_of(identity), keypoints, cn_strength, start_at, end_at, mask
        )
        return patched, positive, negative


class ApplyInstantIDAdvanced(ApplyInstantID):
    """Apply InstantID with separate weights for likeness and pose, noise, and several pictures."""

    INPUT_TYPES = sockets.APPLY_ADVANCED


class InstantIDAttentionPatch(Derivable):
    """Puts the person of a picture into the model only; its FACE_EMBEDS go to InstantID Apply ControlNet."""

    RETURN_TYPES = ("MODEL", "FACE_EMBEDS")
    FUNCTION = "patch_attention"
    CATEGORY = "InstantID"
    SEARCH_ALIASES = ("face id", "same person", "likeness")
    INPUT_TYPES = sockets.ATTENTION_PATCH

    def patch_attention(
        self,
        instantid: Any,
        insightface: Any,
        image: Tensor,
        model: ModelPatcher,
        weight: float,
        start_at: float,
        end_at: float,
        noise: float = 0.0,
        mask: Tensor | None = None,
        person: People | None = None,
    ) -> tuple[ModelPatcher, FaceEmbeds]:
        if person is None:
            identity, _ = _identity(instantid, insightface, image, model, "average", noise)
        elif (identity := identity_of(person, instantid, model, "average", noise)) is None:
            raise NoFaceError("no person was found: see the report of InstantID Person")
        cond, uncond = tokens_of(identity)
        patched = apply_to_model(model, identity, weight, start_at, end_at, mask) if weight else model
        return patched, {"cond": cond, "uncond": uncond}


class ApplyInstantIDControlNet:
    """Steers the pose of a face with the InstantID ControlNet; the face comes from InstantID Patch Attention."""

    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")
    FUNCTION = "apply_controlnet"
    CATEGORY = "InstantID"
    SEARCH_ALIASES = ("face pose", "identitynet")
    INPUT_TYPES = sockets.APPLY_CONTROL_NET

    def apply_controlnet(
        self,
        face_embeds: FaceEmbeds,
        control_net: Any,
        image_kps: Tensor,
        positive: Conditioning,
        negative: Conditioning,
        strength: float,
        start_at: float,
        end_at: float,
        mask: Tensor | None = None,
    ) -> tuple[Conditioning, Conditioning]:
        if strength == 0:
            return positive, negative
        tokens = face_embeds["cond"], face_embeds["uncond"]
        keypoints = checked_keypoints(image_kps)
        return apply_to_conditioning(
            positive, negative, control_net, tokens, keypoints, strength, start_at, end_at, mask
        )


def _identity(
    instantid: Any, insightface: Any, image: Tensor, model: ModelPatcher, combine: Combine, noise: float
) -> tuple[Identity, Tensor | list[Found]]:
    """Return the identity, and the detected faces as input of the next ``extractFeatures``.

    A pack that replaced ``extractFeatures`` gets the pictures instead of the faces.
    """
    adapter = adapter_of(instantid)
    check_family(model, adapter.token_width)
    start = time.perf_counter()
    found = find_faces(insightface, image) if extractFeatures is extract_features else image
    embeddings = extractFeatures(insightface, found)
    if embeddings is None:
        raise NoFaceError(
            "Reference Image: No face detected. Use a picture that shows the face upright, uncovered and not too small"
        )
    # Packs that replace extractFeatures return (N, 512) as well.
    rows = embeddings.reshape(-1, EMBEDDING_DIM)
    identity = adapter.to(model.load_device, compute_dtype(model)).identity(rows, combine=combine, noise=noise)
    logger.info("face ready in %.3f s", time.perf_counter() - start)
    return identity, found


_NODES: dict[str, Any] = {
    "Load InstantID Model": InstantIDModelLoader,
    "InstantID Face Analysis": InstantIDFaceAnalysis,
    "Apply InstantID": ApplyInstantID,
    "Apply InstantID Advanced": ApplyInstantIDAdvanced,
    "Face Keypoints Preprocessor": FaceKeypointsPreprocessor,
    "InstantID Patch Attention": InstantIDAttentionPatch,
    "InstantID Apply ControlNet": ApplyInstantIDControlNet,
    "InstantID Person": InstantIDPerson,
    "InstantID Load Person": InstantIDLoadPerson,
    "InstantID Save Person": InstantIDSavePerson,
    "InstantID Join People": InstantIDJoinPeople,
    "Apply InstantID Person": ApplyInstantIDPerson,
    "InstantID Pose": InstantIDPose,
    "Apply InstantID Scene": ApplyInstantIDScene,
    "InstantID Pose From Image": InstantIDPoseFromImage,
    "InstantID Load Pose": InstantIDLoadPose,
    "InstantID Save Pose": InstantIDSavePose,
    "InstantID Pose Track": InstantIDPoseTrack,
    "InstantID Crop Face": InstantIDCropFace,
    "InstantID Paste Face": InstantIDPasteFace,
    "InstantID Likeness": InstantIDLikeness,
    "InstantID Prompts": InstantIDPrompts,
    "InstantID Doctor": InstantIDDoctor,
    "InstantID Profile": InstantIDProfile,
    "InstantID Miniature": InstantIDMiniature,
    "InstantID Pose Editor": InstantIDPoseEditor,
    "InstantID Approximations": InstantIDApproximations,
}
for _node in _NODES.values():  # the page shows what a docstring says; python -OO removes those
    _node.DESCRIPTION = vars(_node).get("DESCRIPTION") or " ".join((_node.__doc__ or "").split())
NODE_CLASS_MAPPINGS = {node.__name__: node for node in _NODES.values()}
NODE_DISPLAY_NAME_MAPPINGS = {node.__name__: title for title, node in _NODES.items()}
