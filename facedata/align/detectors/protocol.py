"""What a detector is asked, and what it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from facedata.align.faces import Face

__all__ = ["Detector", "DetectorOptions", "Device"]

Device = Literal["cpu", "cuda"]


class Detector(Protocol):
    """Finds faces; for one thread."""

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        """The faces in an image, best score first.

        Faces that the detector is not sure of are among them, down to half of the lowest score that was asked for:
        that tells an image without a face from one whose face is doubtful.

        Parameters
        ----------
        image : ndarray of shape (H, W, 3), uint8
            BGR.

        Returns
        -------
        list of Face
            With 5 landmarks each: the eye on the image's left, the eye on its right, the nose tip, the mouth corner on
            its left, the one on its right, as they lie when the face is upright; a face that is turned keeps the
            order. All finite, in pixels of the image; they may lie outside of it.
        """
        ...


@dataclass(frozen=True)
class DetectorOptions:
    """Which detector, and how it looks.

    Attributes
    ----------
    name : str
        A key of `DETECTORS`.
    model : str, optional
        An ONNX file of one's own, in place of the detector's published one.
    model_checksum : str, optional
        SHA-256 of the model file, 64 hexadecimal digits.
    device : {'cpu', 'cuda'}
    size : int, optional
        The longer side, in pixels, that images have when the network sees them; the detector's own where it is None.
    min_score : float, optional
        From 0.05 to 1; the detector's own where it is None.
    """

    name: str
    model: str | None = None
    model_checksum: str | None = None
    device: Device = "cpu"
    size: int | None = None
    min_score: float | None = None
