"""Photo → Face → embedding."""

from .analyzer import FaceAnalyzer
from .detector import DETECTION_SIZES
from .face import Face, largest
from .keypoints import cover_keypoints, draw_keypoints
from .pack import find_pack

__all__ = ["DETECTION_SIZES", "Face", "FaceAnalyzer", "cover_keypoints", "draw_keypoints", "find_pack", "largest"]
