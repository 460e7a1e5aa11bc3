"""Photo → Face → embedding."""

from .analyzer import DETECTION_SIZES, FaceAnalyzer
from .face import Face, largest
from .keypoints import cover_keypoints, draw_keypoints
from .pack import find_pack

__all__ = ["DETECTION_SIZES", "Face", "FaceAnalyzer", "cover_keypoints", "draw_keypoints", "find_pack", "largest"]
