"""What several test modules share: real pictures, face networks, and insightface as the oracle."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

# Tiny networks gain nothing from a second thread, and processes that share the cores lose much to it. Read when torch
# is loaded, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads that wait for each other by spinning make a busy machine ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import cv2
import numpy as np
import onnxruntime
import pytest
import skimage.data
import torch
from insightface.data import get_image

from examples.tiny_faces import write_iresnet, write_scrfd, write_skin_detector

pytest.register_assert_rewrite("tests.tiny_pipelines")

ROOT = Path(__file__).resolve().parent.parent
# Real SCRFD detectors, which may not be redistributed. Without them the tests run on the detectors made here.
SHARED_MODELS = Path(os.environ.get("FAST_INSTANTID_TEST_MODELS", ROOT.parent / "shared" / "models")).resolve()
REAL_DETECTORS = ("scrfd_2.5g_bnkps", "scrfd_2.5g_batched", "scrfd_500m_bnkps", "scrfd_500m_batched")
MADE_DETECTORS = {
    "made_skin": lambda path: write_skin_detector(path),
    "made_skin_batched": lambda path: write_skin_detector(path, batched=True),
    "made_scrfd": lambda path: write_scrfd(path),
    "made_scrfd_batched": lambda path: write_scrfd(path, batched=True),
}


def available_detectors() -> list[str]:
    return [name for name in REAL_DETECTORS if (SHARED_MODELS / f"{name}.onnx").is_file()] + list(MADE_DETECTORS)


def pytest_collection() -> None:
    gc.disable()  # modules that are imported make a million objects, and all stay


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_report_header() -> str:
    real = [name for name in available_detectors() if name in REAL_DETECTORS]
    return f"face detectors: {', '.join(real) or 'no real ones'} ({SHARED_MODELS}), and {len(MADE_DETECTORS)} made here"


_start_session = onnxruntime.InferenceSession.__init__


def _start_in_one_thread(session: Any, source: Any, sess_options: Any = None, *more: Any, **options: Any) -> None:
    """Start insightface's sessions in one thread too: theirs spin while they wait."""
    sess_options = sess_options or onnxruntime.SessionOptions()
    sess_options.intra_op_num_threads = sess_options.intra_op_num_threads or 1
    _start_session(session, source, sess_options, *more, **options)


onnxruntime.InferenceSession.__init__ = _start_in_one_thread


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def _plain_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the prefix that the node pack gives to messages of its whole process once a test has loaded it."""
    monkeypatch.setattr(logging.getLogger("fast_instantid"), "filters", [])


@pytest.fixture(scope="session")
def detector_file(tmp_path_factory: pytest.TempPathFactory):
    """Name of a detector -> its ONNX file."""
    folder = tmp_path_factory.mktemp("detectors")

    def file(name: str) -> Path:
        if name not in MADE_DETECTORS:
            return SHARED_MODELS / f"{name}.onnx"
        path = folder / f"{name}.onnx"
        return path if path.exists() else MADE_DETECTORS[name](path)

    return file


@pytest.fixture(params=available_detectors())
def any_detector(request: pytest.FixtureRequest, detector_file) -> Path:
    """Each detector in turn."""
    return detector_file(request.param)


@pytest.fixture(scope="session")
def best_detector(detector_file) -> Path:
    """A detector that finds the faces of real photographs: a real one, or the made one that looks for skin."""
    return detector_file(next(iter(available_detectors())))


@pytest.fixture(scope="session")
def recognizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_iresnet(tmp_path_factory.mktemp("recognizer") / "glintr100.onnx")


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory, best_detector: Path, recognizer_file: Path) -> Path:
    """A pack folder with a detector and a small random recogniser, under antelopev2's names."""
    folder = tmp_path_factory.mktemp("models") / "antelopev2"
    folder.mkdir()
    (folder / "scrfd_10g_bnkps.onnx").symlink_to(best_detector)
    (folder / "glintr100.onnx").symlink_to(recognizer_file)
    return folder


@pytest.fixture(scope="session")
def _loaded() -> Callable[..., Any]:
    from fast_instantid.pipelines import load_pipeline

    loaded = cache(load_pipeline)

    def load(*arguments: Any) -> Any:
        sources = [Path(source).resolve() if source and Path(source).exists() else source for source in arguments[:2]]
        return loaded(*sources, *arguments[2:])

    return load


@pytest.fixture
def loaded_once(_loaded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands share their pipelines, which each leaves as it was."""
    monkeypatch.setattr("fast_instantid.pipelines.load_pipeline", _loaded)


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """``(512, 512, 3)`` uint8 RGB: one face. Public domain (NASA)."""
    return skimage.data.astronaut()


@pytest.fixture(scope="session")
def group() -> np.ndarray:
    """``(886, 1280, 3)`` uint8 RGB: insightface's sample picture, six faces."""
    return np.ascontiguousarray(get_image("t1")[..., ::-1])


@pytest.fixture(scope="session")
def pictures(astronaut: np.ndarray, group: np.ndarray) -> dict[str, np.ndarray]:
    """Both pictures as they are, rotated, cropped to a close-up, and scaled to 200 and 4000 pixels."""

    def scaled(image: np.ndarray, width: int) -> np.ndarray:
        return cv2.resize(image, (width, round(width * image.shape[0] / image.shape[1])))

    return {
        "astronaut": astronaut,
        "group": group,
        "astronaut rotated": np.ascontiguousarray(np.rot90(astronaut)),
        "group rotated": np.ascontiguousarray(np.rot90(group)),
        "astronaut tilted": _tilted(astronaut, 25),
        "close-up": np.ascontiguousarray(astronaut[40:190, 160:290]),
        "astronaut at 200": scaled(astronaut, 200),
        "group at 200": scaled(group, 200),
        "astronaut at 4000": scaled(astronaut, 4000),
        "group at 4000": scaled(group, 4000),
    }


def _tilted(image: np.ndarray, degrees: float) -> np.ndarray:
    height, width = image.shape[:2]
    return cv2.warpAffine(image, cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0), (width, height))
