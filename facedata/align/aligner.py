"""`Aligner`: from a sample to the aligned faces in it, made in a worker.

The way of a face: landmarks (of a file, of the sample or of a detector), transform, decoded image, crop, encoded crop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.align.codec import MAX_PIXELS, Encoding, decode_image
from facedata.align.faces import FACE_RULES, Face, check_inside, choose_faces, crop_face, five_points, upper_rows
from facedata.align.landmark_files import in_pixels
from facedata.align.similarity import apply_transforms, defect_error, similarity_transforms
from facedata.converters.convert import ChangeItems, LabelOptions, Refused
from facedata.dataset import Sample
from facedata.errors import FaceError, OptionError, SampleError
from facedata.images import (
    image_extension,
    image_size,
    opencv_identity,
    opencv_in_one_thread,
    stem_of_key,
)

if TYPE_CHECKING:
    from facedata.align.detectors import Detector, DetectorOptions, PreparedDetector
    from facedata.align.landmark_files import MatchedLandmarks
    from facedata.align.outputs import FoundLandmarks
    from facedata.align.templates import Template

__all__ = ["AlignOptions", "Aligner", "FoundFace", "ShardAligner", "aligned_key"]

_TOGETHER = 256  # samples whose transforms are computed at once
_BYTES_TOGETHER = 1 << 24
_PER_SHARD, _DETECTED_PER_SHARD = 512, 128

FULL, UPPER = "full", "upper"
Image = NDArray[np.uint8]
Item = Sample | SampleError


def aligned_key(key: str, extension: str, face: int = 0) -> str:
    """The key of an aligned face: that of its image, with the new file extension if it had one."""
    stem = stem_of_key(key)
    number = f"-face{face + 1}" if face else ""
    return f"{stem}{number}.{extension}" if stem != key else f"{key}{number}"


class FoundFace(NamedTuple):
    """A face as it was found, with its transform or with what is wrong with it.

    Attributes
    ----------
    landmarks, matrix : ndarrays of shape (5, 2) and (2, 3), float64
        The five points in the image, x then y, and the transform from image to crop.
    pose : int
        The pose of the template that fits best.
    """

    face: Face
    landmarks: NDArray[np.float64]
    matrix: NDArray[np.float64]
    pose: int
    error: FaceError | None


@dataclass(frozen=True)
class AlignOptions:
    """How faces are found, cut out and written.

    Attributes
    ----------
    landmarks : str, optional
        A landmark file, or a folder of them.
    detector : DetectorOptions, optional
        Finds the faces in images without landmarks in the file; without a file, in all.
    template, size
        As in `load_template`: where the points of a face go, and the side of the crop in pixels.
    crop : str
        ``"full"``, or ``"upper"``: the first 60 of 112 rows.
    faces : str
        Which of several, as in `choose_faces`: ``"largest"``, ``"central"``, ``"all"``, ``"one"``.
    min_size : float
        The smallest side of the square in the image that the crop covers, in pixels.
    min_score : float, optional
        The lowest score of a face; by default that of the detector, and none for faces from a file.
    max_pixels : int
        Larger images are refused.
    assume_aligned : bool
        Copy images that have the size of the output and no landmarks, byte for byte.
    keep_landmarks : bool
        Keep the landmarks, moved into the crop, with each sample.
    write_landmarks, preview : str, optional
        Files for the landmarks of all faces, and for a contact sheet of some of them.
    limit : int, optional
        Only the first so many images.
    labels : LabelOptions
        Where the labels of the images come from.
    writing : mapping
        Options for the ``create_sink`` of the target's format.
    command_line : str
        The command as the user typed it, for messages that say how to resume.
    """

    landmarks: str | None = None
    detector: DetectorOptions | None = None
    template: str = "arcface"
    size: int = 112
    crop: str = FULL
    faces: str = "central"
    min_size: float = 0.0
    min_score: float | None = None
    max_pixels: int = MAX_PIXELS
    encoding: Encoding = field(default_factory=Encoding)
    assume_aligned: bool = False
    keep_landmarks: bool = False
    write_landmarks: str | None = None
    preview: str | None = None
    limit: int | None = None
    labels: LabelOptions = field(default_factory=LabelOptions)
    writing: Mapping[str, Any] = field(default_factory=dict)
    command_line: str = "the same command"

    def __post_init__(self) -> None:
        for option, value, known in (("crop", self.crop, (FULL, UPPER)), ("faces", self.faces, FACE_RULES)):
            if value not in known:
                raise OptionError(f"--{option} {value}: expected one of {', '.join(known)}")

    @property
    def rows(self) -> int:
        """The rows of each crop that are written."""
        return self.size if self.crop == FULL else upper_rows(self.size)


@dataclass(frozen=True)
class Aligner:
    """The `Change` that aligns faces.

    `min_score` is that of the options, or the detector's. `landmarks` are those of the samples, from a file, and
    `landmark_file` is what distinguishes that file from another. `found` writes the landmarks of all faces to a file.
    """

    options: AlignOptions
    template: Template
    min_score: float
    landmarks: MatchedLandmarks | None = None
    landmark_file: Mapping[str, Any] | None = None
    detector: PreparedDetector | None = None
    found: FoundLandmarks | None = None

    @property
    def samples_per_shard(self) -> int:
        """A fraction of a second without a detector, which takes up to a tenth of a second for each image."""
        return _PER_SHARD if self.detector is None else _DETECTED_PER_SHARD

    def identity(self) -> dict[str, Any]:
        """All that decides the pixels and the bytes, OpenCV and the processor included, as JSON values."""
        options = self.options
        return {
            "template": self.template.identity(),
            "rows": options.rows,
            "interpolation": "bilinear, black border",
            "encoding": options.encoding.identity(),
            **opencv_identity(),
            "faces": options.faces,
            "min size": options.min_size,
            "min score": self.min_score,
            "max pixels": options.max_pixels,
            "assume aligned": options.assume_aligned,
            "keep landmarks": options.keep_landmarks,
            "landmarks": self.landmark_file,
            "detector": None if self.detector is None else self.detector.identity(),
        }

    def files(self) -> Sequence[str]:
        """The landmark file, if there is one."""
        return () if self.options.landmarks is None else (self.options.landmarks,)

    def part(self, first: int, end: int) -> Aligner:
        """The aligner with the landmarks of only these samples."""
        return self if self.landmarks is None else replace(self, landmarks=self.landmarks[first:end])

    @contextmanager
    def open_shard(self, shard: int) -> Iterator[ChangeItems]:
        """What aligns the samples of a shard."""
        landmarks = nullcontext() if self.found is None else self.found.open_shard(shard)
        with opencv_in_one_thread(), landmarks as write:  # there is a worker for each core
            yield ShardAligner(self, write).align


class ShardAligner:
    """Aligns the samples that an `Aligner` has the landmarks of, in one process.

    `write_found` is called with the key of each image and the faces in it.
    """

    def __init__(self, aligner: Aligner, write_found: Callable[[str, Sequence[Face]], None] | None = None) -> None:
        self._aligner, self._write_found = aligner, write_found
        self._detector: Detector | None = None

    def align(self, items: Iterable[Item]) -> Iterator[Sequence[Item | Refused]]:
        """The aligned faces of each sample, or the reason why there are none."""
        for item, known in self._with_known_faces(items):
            if isinstance(item, SampleError):
                yield (item,)
            elif isinstance(known, FaceError):
                yield (Refused(item.key, known),)
            else:
                yield self._align_sample(item, known)

    def look(self, item: Item) -> tuple[Image, FoundFace, Image] | None:
        """The image, its first face and the crop, for a preview; None if there is none."""
        for sample, known in self._with_known_faces([item]):
            if isinstance(sample, Sample) and not isinstance(known, FaceError):
                with suppress(FaceError):
                    image, (first, *_) = self._choose(sample, known)
                    return image, first, self._cut(image, first)
        return None

    def _with_known_faces(self, items: Iterable[Item]) -> Iterator[tuple[Item, list[FoundFace] | FaceError]]:
        """Each sample with the faces that are known in it; the transforms of some hundred are computed at once."""
        landmarks = self._aligner.landmarks
        own = landmarks is None and self._aligner.detector is None  # the landmarks that the samples bring are used
        listed: Iterator[list[Face] | FaceError] = repeat([]) if landmarks is None else landmarks.read()
        items = iter(items)
        while True:
            batch: list[tuple[Item, list[Face] | FaceError]] = []
            size = 0
            for item, faces in zip(items, listed, strict=False):
                if own and isinstance(item, Sample) and item.landmarks is not None:
                    faces = [Face(item.landmarks.astype(np.float64))]
                batch.append((item, faces))
                size += len(item.image) if isinstance(item, Sample) else 0
                if len(batch) == _TOGETHER or size > _BYTES_TOGETHER:
                    break
            if not batch:
                return
            flat = [face for _, faces in batch if not isinstance(faces, FaceError) for face in faces]
            candidates = iter(self._transform(flat))
            for item, faces in batch:
                yield item, faces if isinstance(faces, FaceError) else list(islice(candidates, len(faces)))

    def _transform(self, faces: Sequence[Face]) -> list[FoundFace]:
        """Each face with its transform."""
        if not faces:
            return []
        try:  # nearly always all have one layout; face by face takes ten times as long
            landmarks = five_points(np.stack([face.landmarks for face in faces]))
        except ValueError:
            landmarks = np.stack([five_points(face.landmarks) for face in faces])
        transforms = similarity_transforms(landmarks, self._aligner.template.points)
        errors: list[FaceError | None] = [None] * len(faces)
        for place in np.flatnonzero(transforms.defects).tolist():
            errors[place] = defect_error(transforms.defects[place], landmarks[place])
        return list(map(FoundFace, faces, landmarks, transforms.matrices, transforms.poses.tolist(), errors))

    def _align_sample(self, sample: Sample, known: list[FoundFace]) -> Sequence[Item | Refused]:
        options = self._aligner.options
        rows, wide = options.rows, options.size
        size = None if known else image_size(sample.image)
        if size is not None and size[:2] in ((rows, wide), (wide, wide)):  # the output, or what it would be a part of
            whole = size[0] == rows
            if whole and options.assume_aligned:
                return (sample._replace(key=aligned_key(sample.key, image_extension(sample.image) or "bin")),)
            way_out = "--assume-aligned copies it" if whole else "--crop upper needs the photo"
            detail = (
                f"it is {wide} x {size[0]} pixels and has no landmarks; aligning twice degrades recognition: {way_out}"
            )
            return (Refused(sample.key, FaceError("aligned already", detail)),)
        try:
            image, chosen = self._choose(sample, known)
        except FaceError as error:
            return (Refused(sample.key, error),)
        made: list[Item | Refused] = []
        for number, candidate in enumerate(chosen):
            key = aligned_key(sample.key, options.encoding.format, number)
            try:
                crop = self._cut(image, candidate)
            except FaceError as error:
                made.append(Refused(key if number else sample.key, error))
                continue
            landmarks = None
            if options.keep_landmarks:
                landmarks = apply_transforms(candidate.matrix[None], candidate.landmarks[None])[0].astype(np.float32)
            made.append(Sample(key, sample.label, options.encoding.encode(crop), landmarks, sample.values))
        return made

    def _choose(self, sample: Sample, known: list[FoundFace]) -> tuple[Image, list[FoundFace]]:
        """The decoded image, and those of its faces that are wanted, at least one."""
        aligner = self._aligner
        if not known and aligner.detector is None:
            raise FaceError("no landmarks", "its face is not known; --detector finds it")
        image = decode_image(sample.image, aligner.options.max_pixels)
        if known and aligner.landmarks is not None and aligner.landmarks.relative:
            height, width = image.shape[:2]  # as it is displayed, unlike in its header
            known = self._transform([in_pixels(candidate.face, width, height) for candidate in known])
        if not known:
            assert aligner.detector is not None
            self._detector = self._detector or aligner.detector.load()
            known = self._transform(self._detector.detect(image))
        lowest = aligner.min_score
        candidates = [found for found in known if found.face.score is None or found.face.score >= lowest]
        if known and not candidates:
            best = max(found.face.score or 0.0 for found in known)
            raise FaceError("low score", f"the best face has {best:.3f}; --min-score {lowest:g}")
        if self._write_found is not None:
            self._write_found(sample.key, [found.face._replace(landmarks=found.landmarks) for found in candidates])
        rule = aligner.options.faces
        if rule in ("largest", "central"):  # an impossible face must not be preferred to a possible one
            candidates = [found for found in candidates if found.error is None] or candidates
        chosen = set(map(id, choose_faces([found.face for found in candidates], rule, image.shape[:2])))
        return image, [found for found in candidates if id(found.face) in chosen]

    def _cut(self, image: Image, candidate: FoundFace) -> Image:
        if candidate.error is not None:
            raise candidate.error
        options = self._aligner.options
        check_inside(candidate.landmarks, *image.shape[:2])
        if options.min_size > 0.0:
            side = options.size / math.hypot(candidate.matrix[0, 0], candidate.matrix[1, 0])
            if side < options.min_size:
                detail = f"the crop covers {side:.1f} x {side:.1f} pixels of the image; --min-size {options.min_size:g}"
                raise FaceError("too small", detail)
        return crop_face(image, candidate.matrix, options.size, options.rows)
