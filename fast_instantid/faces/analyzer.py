"""Photo → faces → embeddings, each paid for once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..cache import Cache, shared_cache
from ..errors import NoFaceError
from ..images import ImageInput, photos
from .cached import CachedNetworks, DetectorLike, RecognizerLike
from .detector import Detector
from .face import Face, faces_of, largest
from .insightface import (
    AnalyzedFace,
    DetectorView,
    InsightFaceDetector,
    InsightFaceRecognizer,
    most_central,
    photo_of_bgr,
)
from .onnx.network import load_network
from .pack import find_pack
from .recognizer import Recognizer


class FaceAnalyzer:
    """Finds faces and describes them; results are cached by content.

    It also has the shape of insightface's ``FaceAnalysis`` (``get``, ``det_model``), so it can be handed to code that
    was written for that.

    Args:
        detector, recognizer: the two networks; :meth:`load` and :meth:`wrap` make them.
        cache: where results are kept; by default the one shared by the whole process.
    """

    def __init__(self, detector: DetectorLike, recognizer: RecognizerLike, cache: Cache | None = None) -> None:
        self._networks = CachedNetworks(detector, recognizer, shared_cache() if cache is None else cache)
        self.det_model = DetectorView(self._networks)

    @classmethod
    def load(
        cls,
        pack: str | os.PathLike[str],
        backend: str = "torch",
        device: str | torch.device | None = None,
        *,
        dtype: str | torch.dtype = torch.float32,
        sizes: Sequence[int] | None = None,
        cache: Cache | None = None,
    ) -> FaceAnalyzer:
        """An analyzer on the networks of an insightface model pack.

        Args:
            pack: the folder of the pack, or one above it; see :func:`find_pack`.
            backend: "torch" (any device), or "onnxruntime" (an optional extra).
            device: "cpu", "cuda", "cuda:1", "mps", ...; with onnxruntime also "tensorrt", "coreml", "directml",
                "openvino", ... By default the best one that torch sees, and the CPU with onnxruntime.
            dtype: of both networks, with torch. "bfloat16" and "float16" give another embedding, and so another
                picture; docs/approximations.md says by how much.
            sizes: sides of the squares to search in, in turn until a face is found: 640, then 576 ... 192 by default.
                ``[320, 640]`` looks at a quarter of the pixels first; keypoints move, and of a group the small faces
                may be missed.

        Raises:
            ModelFileError: a network is missing, damaged, or not what it should be.
            BackendError: the backend, device or provider is not there, or cannot compute in ``dtype`` or at ``sizes``.
        """
        found = find_pack(pack)
        detector = Detector(load_network(found.detector, backend, device, dtype), found.detector, sizes=sizes)
        recognizer = Recognizer(load_network(found.recognizer, backend, device, dtype), found.recognizer)
        return cls(detector, recognizer, cache)

    @classmethod
    def wrap(cls, analysis: Any, cache: Cache | None = None) -> FaceAnalyzer:
        """An analyzer on an insightface ``FaceAnalysis`` that the caller already has; ours is returned as it is."""
        if isinstance(analysis, cls):
            return analysis
        return cls(InsightFaceDetector(analysis), InsightFaceRecognizer(analysis), cache)

    @property
    def backend(self) -> str:
        """What really runs, such as ``"torch (cuda:0)"`` or ``"onnxruntime (CPUExecutionProvider)"``."""
        network = getattr(self._networks.detector, "network", None)
        return "insightface" if network is None else network.backend

    def __repr__(self) -> str:
        return f"FaceAnalyzer({self.backend})"

    def detect(self, images: ImageInput) -> list[list[Face]]:
        """The faces of each picture, by falling score.

        Args:
            images: one picture or many, of any sizes; see :data:`ImageInput`. A tensor counts as B pictures.

        Returns:
            a list for each picture, empty where no face was found at any size that was tried: 640, then 576 ... 192, or
            the ``sizes`` of :meth:`load`.
        """
        return [faces_of(detections) for detections in self._networks.detect_at_all_sizes(photos(images))]

    def embed(
        self,
        images: ImageInput,
        faces: Face | Mapping[str, Any] | Sequence[Face | Mapping[str, Any]] | None = None,
        *,
        choose: Callable[[Sequence[Face]], Face] = largest,
    ) -> np.ndarray:
        """The embedding of one face of each picture.

        Args:
            images: N pictures; see :data:`ImageInput`.
            faces: the N faces meant, ours or insightface's; by default each picture is searched and ``choose`` picks
                one.
            choose: picks one of several faces; by default the largest.

        Returns:
            ``(N, 512)`` float32, not normalised.

        Raises:
            NoFaceError: a picture without a face; the message says which.
            ValueError: the number of faces differs from the number of pictures.
        """
        pictures = photos(images)
        if faces is None:
            found = [faces_of(detections) for detections in self._networks.detect_at_all_sizes(pictures)]
            empty = [photo.name for photo, candidates in zip(pictures, found, strict=True) if not candidates]
            if empty:
                sides = sorted({size[0] for size in self._networks.detector.sizes})
                raise NoFaceError(
                    f"no face found in {', '.join(empty)} (searched at {sides[-1]} down to {sides[0]} pixels): "
                    f"use a picture that shows the face upright and unobstructed"
                )
            chosen = [choose(candidates) for candidates in found]
        else:
            # insightface's faces are dictionaries, with their items as attributes.
            chosen: list[Any] = [faces] if isinstance(faces, (Face, Mapping)) else list(faces)
            if len(chosen) != len(pictures):
                raise ValueError(f"{len(pictures)} pictures but {len(chosen)} faces: give one face for each picture")
        return self._networks.embed(pictures, [face.kps for face in chosen])

    def get(self, image: np.ndarray, max_num: int = 0) -> list[AnalyzedFace]:
        """insightface's interface: the faces of one picture at the one size ``det_model.input_size``.

        Args:
            image: ``(H, W, 3)`` uint8 in **BGR** order.
            max_num: keep only so many, the large and central ones; 0 keeps all.

        Returns:
            faces whose ``embedding`` is computed when first asked for.

        Raises:
            ImageError: an array that is not such a picture.
        """
        photo = photo_of_bgr(image)
        networks = self._networks
        found = most_central(networks.detect([photo], self.det_model.input_size)[0], photo.size, max_num)
        return [
            AnalyzedFace(face.bbox, face.kps, face.det_score, lambda kps: networks.embed([photo], [kps])[0])
            for face in faces_of(found)
        ]
