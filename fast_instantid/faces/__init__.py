"""From photo to Face to embedding."""

from .analyzer import FaceAnalyzer as FaceAnalyzer
from .face import Face as Face, largest as largest
from .keypoints import draw_keypoints as draw_keypoints, keypoint_picture as keypoint_picture, sdxl_size as sdxl_size
from .pack import find_pack as find_pack
