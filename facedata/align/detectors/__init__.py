"""Face detectors: an image in, boxes, scores and five landmarks for each face out."""

from facedata.align.detectors.prepare import Detector, PreparedDetector, prepare_detector
from facedata.align.detectors.registry import DETECTORS, DetectorOptions

__all__ = ["DETECTORS", "Detector", "DetectorOptions", "PreparedDetector", "prepare_detector"]
