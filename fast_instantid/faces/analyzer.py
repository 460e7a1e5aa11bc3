"""Photo → faces → embeddings, each computed once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch

from ..cache import Cache, shared_cache
from ..errors import ModelFileError, NoFaceError
from ..images import ImageInput, Photo, photos
from ..placement import Placement
from ..sources import local_path
from .attributes import attribute_networks, say_missing
from .cached import CachedNetworks
from .detector import Detector
from .face import Face, faces_of, is_face, largest, listed
from .foreign import AnalysisByGet, InsightFaceDetector, InsightFaceRecognizer, has_own_get
from .insightface import AnalyzedFace, DetectorView, RecognizerView, photo_of_bgr
from .onnx.network import TorchNetwork, load_network
from .pack import find_pack
from .recognizer import Recognizer

FaceInput: TypeAlias = Face | Mapping[str, Any] | np.ndarray | torch.Tensor
"""A face of ours, of insightface's, or its keypoints ``(5, 2)``."""


class FaceAnalyzer:
    """Detects and recognises faces; results are cached by content.

    It also has insightface's interface (``prepare``, ``get``, ``models``, ``det_model``), for code that was written for
    a ``FaceAnalysis``.

    Args:
        detector, recognizer: the two networks; :meth:`load` and :meth:`wrap` make them.
        cache: keeps the results; by default the one shared by the whole process.
    """

    networks: CachedNetworks | AnalysisByGet
    """Detection and recognition below this interface; both take Photos."""
    det_model: Any

    def __init__(self, detector: Detector, recognizer: Recognizer, cache: Cache | None = None) -> None:
        networks = CachedNetworks(detector, recognizer, shared_cache() if cache is None else cache)
        self.networks = networks
        self.det_model = DetectorView(networks)
        self._folder = recognizer.graph.path.parent

    @classmethod
    def load(
        cls,
        pack: str | os.PathLike[str],
        backend: str = "torch",
        device: str | torch.device | None = None,
        *,
        dtype: str | torch.dtype = torch.float32,
        sizes: Sequence[int] | None = None,
        threshold: float = 0.5,
        cache: Cache | None = None,
    ) -> FaceAnalyzer:
        """Load the networks of an insightface model pack.

        Args:
            pack: the folder of the pack, or one above it; see :func:`find_pack`.
            backend: "torch" (any device), or "onnxruntime" (an optional extra).
            device: "cpu", "cuda", "cuda:1", "mps", ...; with onnxruntime also "tensorrt", "coreml", "directml",
                "openvino", ... By default the best one that torch sees, and the CPU with onnxruntime.
            dtype: of both networks, with torch. "bfloat16" and "float16" give another embedding, and so another
                picture; docs/approximations.md says by how much.
            sizes: sides of the squares to search in, in turn until a face is found: 640, then 576 ... 192 by default.
                ``[320, 640]`` searches a quarter of the pixels first: keypoints move, and small faces of a group may be
                missed.
            threshold: score from which a face counts, above 0 and below 1. A lower one finds more, false ones too.

        Raises:
            ModelFileError: a network is missing, damaged or of another kind.
            BackendError: the backend, device or provider is missing, or cannot compute in ``dtype``, at ``sizes`` or
                with ``threshold``.
        """
        cache = shared_cache() if cache is None else cache
        found = find_pack(local_path(pack, "a face model pack"), cache)
        detector = Detector(load_network(found.detector, backend, device, dtype), found.detector, threshold, sizes)
        recognizer = Recognizer(load_network(found.recognizer, backend, device, dtype), found.recognizer)
        return cls(detector, recognizer, cache)

    @classmethod
    def wrap(cls, analysis: Any, cache: Cache | None = None) -> FaceAnalyzer:
        """Return an analyzer that uses a loaded face analysis.

        insightface's ``FaceAnalysis`` lends its detector and recogniser. An object with a ``get`` of its own, such as a
        subclass that chooses the face, is asked through that ``get``; those results are not cached. A FaceAnalyzer is
        returned unchanged.

        Raises:
            BackendError: the object is no face analysis.
        """
        if has_own_get(analysis):
            return _WrappedAnalyzer(analysis, AnalysisByGet(analysis))
        if isinstance(analysis, FaceAnalyzer):
            return analysis
        networks = InsightFaceDetector(analysis), InsightFaceRecognizer(analysis)
        return _WrappedAnalyzer(analysis, CachedNetworks(*networks, shared_cache() if cache is None else cache))

    @cached_property
    def models(self) -> dict[str, Any]:
        """insightface's ``models`` by task: ``detection``, ``recognition``, and what else the pack's folder has."""
        recognition = RecognizerView(self.networks)  # pyright: ignore[reportArgumentType]
        return {"detection": self.det_model, "recognition": recognition, **attribute_networks(self._folder)}

    @property
    def backend(self) -> str:
        """Backend and device in use, such as ``"torch (cuda:0)"`` or ``"onnxruntime (CPUExecutionProvider)"``."""
        return self.networks.backend

    def to(self, device: str | torch.device) -> FaceAnalyzer:
        """Move the networks, in-place, and return the analyzer. Those of onnxruntime or another library do not move.

        Raises:
            BackendError: the device is not available.
        """
        place = Placement.resolve(device).device
        for part in (getattr(self.networks, name, None) for name in ("detector", "recognizer")):
            if isinstance(part, (Detector, Recognizer)) and isinstance(part.network, TorchNetwork):
                part.network = part.network.to(place)
        return self

    def __repr__(self) -> str:
        return f"FaceAnalyzer({self.backend})"

    def detect(self, images: ImageInput) -> list[list[Face]]:
        """Detect the faces of each picture, by falling score.

        Args:
            images: one picture or many, of any sizes; see :data:`ImageInput`. A tensor counts as B pictures.

        Returns:
            a list for each picture; it is empty where no face was found at any size (640, then 576 ... 192, or the
            ``sizes`` of :meth:`load`).
        """
        return self.networks.find(photos(images))

    def embed(
        self,
        images: ImageInput,
        faces: FaceInput | Sequence[FaceInput] | Sequence[Sequence[FaceInput]] | None = None,
        *,
        choose: Callable[[Sequence[Face]], Face] = largest,
    ) -> np.ndarray:
        """Embed one face of each picture.

        Args:
            images: N pictures; see :data:`ImageInput`.
            faces: one face for each picture, or a list of them, as :meth:`detect` returns; by default each picture is
                searched.
            choose: picks one face of a list; by default the largest.

        Returns:
            ``(N, 512)`` float32, not normalised.

        Raises:
            NoFaceError: pictures without a face, by name.
            ValueError: the number of faces differs from the number of pictures, or a face has no keypoints.
        """
        pictures = photos(images)
        found: list[Any] = self.networks.find(pictures) if faces is None else listed(faces)
        if len(found) != len(pictures):
            raise ValueError(f"{len(pictures)} pictures but {len(found)} faces: give one face for each picture")
        pairs = zip(pictures, found, strict=True)
        empty = [photo.name for photo, given in pairs if isinstance(given, (list, tuple)) and not given]
        if empty:
            sides = sorted({size[0] for size in self.networks.sizes})
            searched = f" (searched at {sides[-1]} down to {sides[0]} pixels)" if sides else ""
            raise NoFaceError(
                f"no face found in {', '.join(empty)}{searched}: "
                f"use a picture that shows the face upright and unobstructed"
            )
        chosen = [given if is_face(given) or not isinstance(given, Sequence) else choose(given) for given in found]
        return self.networks.embed(pictures, chosen)

    def prepare(self, ctx_id: int = 0, det_thresh: float = 0.5, det_size: tuple[int, int] | None = None) -> None:
        """Set size and threshold of :meth:`get` and ``det_model``, as in insightface; :meth:`detect` keeps its own.

        Args:
            ctx_id: ignored; the device was chosen at loading.
            det_thresh: score from which a candidate counts, 0..1.
            det_size: ``(width, height)``; ``(640, 640)`` by default.

        Raises:
            ValueError: ``det_size`` is not one pair.
        """
        self.det_model.prepare(ctx_id, input_size=(0, 0) if det_size is None else det_size, det_thresh=det_thresh)

    def get(self, img: np.ndarray, max_num: int = 0, det_metric: str = "default") -> list[Any]:
        """The faces of one picture at the single size ``det_model.input_size``, as in insightface.

        Args:
            img: ``(H, W, 3)`` uint8 in **BGR** order.
            max_num: keep only so many; 0 keeps all.
            det_metric: keep the large and central ones ("default") or the largest ("max").

        Returns:
            faces with insightface's items, which are attributes too. ``embedding`` is computed on first use, and so
            are ``gender``, ``age``, ``landmark_2d_106`` and ``landmark_3d_68``, if the pack's folder has networks for
            them; else they are None, as ``pose`` is.

        Raises:
            ImageError: the array is no such picture.
        """
        photo = photo_of_bgr(img)
        return [
            AnalyzedFace(
                {"bbox": face.bbox.copy(), "kps": face.kps.copy(), "det_score": face.det_score},
                lambda task, face=face: self._items(task, photo, face),
            )
            for face in faces_of(self.det_model.detections(photo, None, max_num, det_metric))
        ]

    def _items(self, task: str, photo: Photo, face: Face) -> Mapping[str, Any]:
        """insightface's items of one task for one face; none where no network can compute them."""
        if task == "recognition":
            return {"embedding": self.networks.embed([photo], [face])[0]}
        items = {"bbox": face.bbox}
        try:
            self.models[task].get(np.ascontiguousarray(photo.rgb[..., ::-1]), items)
        except (KeyError, ModelFileError) as error:
            say_missing(task, self._folder, str(error))
        return items


class _WrappedAnalyzer(FaceAnalyzer):
    """An analyzer that uses another library's face analysis, and passes its insightface interface through."""

    def __init__(self, analysis: Any, networks: CachedNetworks | AnalysisByGet) -> None:
        self.networks = networks
        self._analysis = analysis
        self.det_model = getattr(analysis, "det_model", None)
        self.models = getattr(analysis, "models", {})

    def prepare(self, *args: Any, **kwargs: Any) -> None:
        self._analysis.prepare(*args, **kwargs)

    def get(self, *args: Any, **kwargs: Any) -> list[Any]:
        return self._analysis.get(*args, **kwargs)
