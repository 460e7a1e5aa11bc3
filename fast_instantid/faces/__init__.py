"""From photo to Face to embedding."""

from .analyzer import FaceAnalyzer
from .detector import DETECTION_SIZES
from .face import Face, largest
from .keypoints import draw_keypoints, keypoint_picture, sdxl_size
from .pack import find_pack

__all__ = [
    "DETECTION_SIZES",
    "Face",
    "FaceAnalyzer",
    "draw_keypoints",
    "find_pack",
    "keypoint_picture",
    "largest",
    "sdxl_size",
]
