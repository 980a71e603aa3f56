"""YuNet, through OpenCV's ``FaceDetectorYN``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.align.detectors.families import Family
from facedata.align.detectors.fitting import fit
from facedata.align.detectors.onnx_shapes import input_names
from facedata.align.detectors.uniface_detectors import check_outputs
from facedata.align.faces import Face
from facedata.errors import ModelError
from facedata.images import import_opencv

__all__ = ["YuNet", "check_yunet", "load_yunet"]

_OVERLAP, _MOST_FACES = 0.3, 5000  # OpenCV's defaults
_KINDS = ("cls", "obj", "bbox", "kps")
_OUTPUTS = [f"{kind}_{stride}" for kind in _KINDS for stride in (8, 16, 32)]


class YuNet:
    """A detector of OpenCV.

    Images are put into the top left corner of a black square, which always has the size that the model was checked
    with: OpenCV reads what the network gives without looking how much that is.

    Parameters
    ----------
    detector : cv2.FaceDetectorYN
    size : int
    """

    def __init__(self, detector: Any, size: int) -> None:
        self._detector, self._size = detector, size

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        """Faces in an image; see `Detector`.

        OpenCV's order is that of the face's own right and left: its right eye is the one on the image's left.
        """
        fitted = fit(image, self._size, square=True)
        _, rows = self._detector.detect(fitted.image)
        if rows is None:
            return []
        numbers = np.asarray(rows, np.float64)
        corners = np.stack([numbers[:, :2], numbers[:, :2] + numbers[:, 2:4]], axis=1)
        boxes, landmarks = fitted.back(corners).reshape(-1, 4), fitted.back(numbers[:, 4:14].reshape(-1, 5, 2))
        return [Face(*found) for found in zip(landmarks, boxes, numbers[:, 14].tolist(), strict=True)]


def load_yunet(model: bytes, name: str, size: int, floor: float) -> YuNet:
    """A detector from the bytes of its model.

    Raises
    ------
    ModelError
        Where OpenCV does not take them.
    """
    cv2 = import_opencv()
    none = np.empty(0, np.uint8)
    try:
        detector = cv2.FaceDetectorYN.create(
            "onnx", np.frombuffer(model, np.uint8), none, (size, size), floor, _OVERLAP, _MOST_FACES
        )
    except cv2.error as error:
        raise _refused(name, error) from error
    return YuNet(detector, size)


def check_yunet(model: bytes, name: str, family: Family, size: int) -> None:
    """Run the network once, and look at what it gives.

    Raises
    ------
    ModelError
        Where its inputs or outputs are not those of YuNet.
    """
    cv2 = import_opencv()
    _check_inputs(model, name)
    try:
        network = cv2.dnn.readNetFromONNX(np.frombuffer(model, np.uint8))
        missing = [output for output in _OUTPUTS if output not in network.getUnconnectedOutLayersNames()]
        if missing:
            raise ModelError(
                f"{name}: expected the outputs {_OUTPUTS[0]} to {_OUTPUTS[-1]} of YuNet; it lacks {', '.join(missing)}"
            )
        network.setInput(np.zeros((1, 3, size, size), np.float32))
        outputs = network.forward(_OUTPUTS)
    except cv2.error as error:
        raise _refused(name, error) from error
    check_outputs([output.shape for output in outputs], name, family, size)
    if any(output.dtype != np.float32 for output in outputs):
        raise ModelError(f"{name}: expected outputs of 32-bit floats, found {outputs[0].dtype}")


def _check_inputs(model: bytes, name: str) -> None:
    try:
        names = input_names(model)
    except ValueError as error:
        raise ModelError(f"{name}: expected an ONNX model, found something else: {error}") from error
    if len(names) != 1:
        raise ModelError(f"{name}: expected one input, the image; found {len(names)}: {', '.join(names) or 'none'}")


def _refused(name: str, error: Exception) -> ModelError:
    reason = getattr(error, "err", None) or str(error)  # the whole of it names the sources of OpenCV
    return ModelError(f"{name}: expected an ONNX model of YuNet, found what OpenCV does not take: {reason}")
