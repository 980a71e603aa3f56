"""Photos of drawn people with exactly known landmarks, for the tests of alignment; and landmark files that are read."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from support import file_of

from facedata.align.faces import Face
from facedata.align.landmark_files import open_landmarks
from facedata.errors import FaceError
from facedata.images import import_opencv
from facedata.synthetic.faces import draw_face, identity_from_seed

cv2: Any = import_opencv()
SIZE = (180, 200)  # height and width of a photo
ARCFACE = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])


@dataclass(frozen=True)
class Photo:
    """An encoded image and where its face is."""

    key: str
    data: bytes
    landmarks: NDArray[np.float64]


def similarity(degrees: float, scale: float, middle: tuple[float, float]) -> NDArray[np.float64]:
    """The matrix that turns and scales the canonical frame, and puts its middle at `middle`."""
    turn = np.deg2rad(degrees)
    linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.column_stack([linear, np.asarray(middle) - linear @ (55.5, 55.5)])


def draw_photo(key: str, person: int = 0, degrees: float = 0.0, scale: float = 1.2, extension: str = ".jpg") -> Photo:
    """A photo of a person; JPEG of high quality, or PNG."""
    height, width = SIZE
    matrix = similarity(degrees, scale, (width / 2, height / 2))
    face = draw_face(identity_from_seed(3, person), matrix=matrix, canvas=SIZE)
    options = [cv2.IMWRITE_JPEG_QUALITY, 98] if extension == ".jpg" else []
    return Photo(key, cv2.imencode(extension, face.image, options)[1].tobytes(), face.landmarks5.astype(np.float64))


def draw_photos(people: int = 3, images: int = 4) -> list[Photo]:
    """Some photos of each of some people, turned and scaled, in the order that a folder is read in."""
    return [
        draw_photo(f"person_{person}/p{person}_{image}.jpg", person, 15.0 * image - 20.0, 0.9 + 0.15 * image)
        for person in range(people)
        for image in range(images)
    ]


def write_photos(folder: Path, photos: list[Photo]) -> Path:
    """Write them into class folders."""
    for photo in photos:
        path = folder / photo.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo.data)
    return folder


def write_csv(path: Path, photos: list[Photo]) -> Path:
    """Our own landmark file."""
    header = "key," + ",".join(f"x{n},y{n}" for n in range(1, 6))
    lines = [",".join([photo.key, *(repr(float(x)) for x in photo.landmarks.ravel())]) for photo in photos]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def insightface_template(size: int) -> NDArray[np.float64]:
    """Where InsightFace puts the five points."""
    ratio, shift = (size / 112, 0.0) if size % 112 == 0 else (size / 128, 8.0 * size / 128)
    return ARCFACE * ratio + (shift, 0.0)


def norm_crop(photo: Photo, size: int = 112) -> NDArray[np.uint8]:
    """What InsightFace's norm_crop gives: scikit-image's transform to the template, and warpAffine."""
    from skimage.transform import SimilarityTransform

    transform: Any = SimilarityTransform.from_estimate(photo.landmarks, insightface_template(size))
    image = cv2.imdecode(np.frombuffer(photo.data, np.uint8), cv2.IMREAD_COLOR)
    crop: NDArray[np.uint8] = cv2.warpAffine(image, transform.params[:2], (size, size), borderValue=0.0)
    return crop


def decoded(data: bytes) -> NDArray[np.int16]:
    """The pixels of an encoded image, signed so that they can be subtracted."""
    pixels: NDArray[np.int16] = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).astype(np.int16)
    return pixels


def read_landmarks(data: str | bytes, keys: Sequence[str], name: str = "points") -> list[list[Face] | FaceError]:
    """The faces of each image in a landmark file with this content, as a worker reads them."""
    with file_of(data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape"), name) as path:
        matched = open_landmarks(path).match(keys, len(keys))
        return list(pickle.loads(pickle.dumps(matched)).read())  # noqa: S301


def only_faces(found: Iterable[list[Face] | FaceError]) -> list[Face]:
    """The only face of each image."""
    faces = []
    for image in found:
        assert isinstance(image, list)
        (face,) = image
        faces.append(face)
    return faces
