"""Face detectors behind one small protocol: an image in, boxes, scores and five landmarks each out."""

from facedata.align.detectors.families import DETECTORS
from facedata.align.detectors.loading import PreparedDetector
from facedata.align.detectors.models import Fetching, model_folder
from facedata.align.detectors.preparing import prepare_detector
from facedata.align.detectors.protocol import Detector, DetectorOptions, Device

__all__ = [
    "DETECTORS",
    "Detector",
    "DetectorOptions",
    "Device",
    "Fetching",
    "PreparedDetector",
    "model_folder",
    "prepare_detector",
]
