"""From photo to Face to embedding."""

from .analyzer import FaceAnalyzer
from .face import Face, largest
from .keypoints import draw_keypoints, keypoint_picture, sdxl_size
from .pack import find_pack

__all__ = ["Face", "FaceAnalyzer", "draw_keypoints", "find_pack", "keypoint_picture", "largest", "sdxl_size"]
