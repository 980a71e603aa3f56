"""YuNet, through OpenCV's ``FaceDetectorYN``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.align.detectors.fitting import fit_image
from facedata.align.detectors.registry import DetectorFamily
from facedata.align.faces import Face
from facedata.errors import ModelError
from facedata.images import import_opencv

__all__ = ["YuNet", "load_yunet"]

_OVERLAP, _MOST_FACES = 0.3, 5000  # OpenCV's defaults
_OUTPUTS = [f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in (8, 16, 32)]


class YuNet:
    """A detector of OpenCV.

    Images are put into the top left corner of a black square, which always has the size that the model was checked
    with: OpenCV reads the outputs of the network without checking their sizes.

    Parameters
    ----------
    detector : cv2.FaceDetectorYN
    size : int
    """

    def __init__(self, detector: Any, size: int) -> None:
        self.size = size
        self._detector = detector

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        """Find the faces in an image; see `Detector`."""
        fitted = fit_image(image, self.size, square=True)
        _, rows = self._detector.detect(fitted.image)
        if rows is None:
            return []
        numbers = np.asarray(rows, np.float64)
        corners = np.stack([numbers[:, :2], numbers[:, :2] + numbers[:, 2:4]], axis=1)
        boxes = fitted.to_original(corners).reshape(-1, 4)
        # OpenCV's right eye is the face's own, which lies on the image's left: the order is the one of `Detector`
        landmarks = fitted.to_original(numbers[:, 4:14].reshape(-1, 5, 2))
        return [Face(*face) for face in zip(landmarks, boxes, numbers[:, 14].tolist(), strict=True)]


def load_yunet(model: bytes, name: str, family: DetectorFamily, size: int, floor: float) -> YuNet:
    """Open a model, check its outputs, and make a detector of it.

    Parameters
    ----------
    model : bytes
        The contents of an ONNX file.
    name : str
        The name of the file, for messages.
    family : DetectorFamily
    size : int
    floor : float
        The lowest score to return.

    Raises
    ------
    ModelError
        If it is not a model of YuNet.
    """
    cv2 = import_opencv()
    data = np.frombuffer(model, np.uint8)
    try:
        network = cv2.dnn.readNetFromONNX(data)
        missing = [output for output in _OUTPUTS if output not in network.getUnconnectedOutLayersNames()]
        if missing:
            raise ModelError(
                f"{name}: is not a model of YuNet: expected the outputs {_OUTPUTS[0]} to {_OUTPUTS[-1]}, "
                f"found none called {', '.join(missing)}"
            )
        network.setInput(np.zeros((1, 3, size, size), np.float32))
        outputs = network.forward(_OUTPUTS)
        family.check_outputs([output.shape for output in outputs], name, size)
        if any(output.dtype != np.float32 for output in outputs):
            raise ModelError(f"{name}: expected outputs of 32-bit floats, found {outputs[0].dtype}")
        detector = cv2.FaceDetectorYN.create(
            "onnx", data, np.empty(0, np.uint8), (size, size), floor, _OVERLAP, _MOST_FACES
        )
    except cv2.error as error:
        reason = getattr(error, "err", None) or str(error)  # the whole message names the sources of OpenCV
        raise ModelError(
            f"{name}: expected an ONNX model of YuNet with one input, the image; OpenCV does not accept this file: "
            f"{reason}"
        ) from error
    return YuNet(detector, size)
