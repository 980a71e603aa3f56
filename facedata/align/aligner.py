"""`Aligner`: the change from a sample to the aligned faces in it, made in a worker."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.align.decoding import decode_image
from facedata.align.faces import Face, check_inside, choose_faces, crop_face, five_points
from facedata.align.found import FoundLandmarks, FoundWriter
from facedata.align.landmark_files import in_pixels
from facedata.align.similarity import apply_transforms, crop_sides, defect_error, similarity_transforms
from facedata.converters.convert import ChangeItems, Refused
from facedata.converters.folder.paths import stem_of_key
from facedata.dataset import Sample, Source
from facedata.errors import FaceError, OptionError, SampleError
from facedata.images import image_extension, image_size, import_opencv, opencv_in_one_thread

if TYPE_CHECKING:
    from facedata.align.detectors import Detector, PreparedDetector
    from facedata.align.encoding import Encoding
    from facedata.align.landmark_files import MatchedLandmarks
    from facedata.align.templates import Template

__all__ = ["AlignedFace", "Aligner", "ShardAligner", "aligned_key", "check_face_names"]

_TOGETHER = 256  # samples whose transforms are computed at once
_BYTES_TOGETHER = 1 << 24
_PER_SHARD, _DETECTED_PER_SHARD = 512, 128
_FURTHER_FACE = re.compile(r"(.+)-face[1-9]\d*", re.DOTALL)

Image = NDArray[np.uint8]
Made = Sample | SampleError | Refused


def aligned_key(key: str, extension: str, face: int = 0) -> str:
    """The key of an aligned face: that of its image, with the new file extension where it had one."""
    stem = stem_of_key(key)
    number = f"-face{face + 1}" if face else ""
    return f"{stem}{number}.{extension}" if stem != key else f"{key}{number}"


def check_face_names(source: Source) -> None:
    """Refuse a source in which an image is called as the second face in another one would be; goes over the keys.

    Raises
    ------
    OptionError
    """
    numbered = _hashes(name for _, name in _numbered(source))
    if not len(numbered):
        return
    stems = _hashes(map(stem_of_key, source.keys()))
    both = set(np.intersect1d(numbered, stems).tolist())
    images = {stem for stem in map(stem_of_key, source.keys()) if hash(stem) in both} if both else set()
    for key, name in _numbered(source) if images else ():
        if name in images:
            raise OptionError(
                f"--faces all: a further face in the image {name} may be called as the image {key} is, and one would "
                "be lost; choose another --faces, or names that count: --layout glint360k of a folder, --keys "
                "generated of an LMDB"
            )


def _numbered(source: Source) -> Iterator[tuple[str, str]]:
    """The keys that look like those of further faces, and of which images these would be."""
    for key in source.keys():  # noqa: SIM118, no mapping
        if "-face" in key and (match := _FURTHER_FACE.fullmatch(stem_of_key(key))):
            yield key, match[1]


def _hashes(names: Iterable[str]) -> NDArray[np.int64]:
    return np.fromiter(map(hash, names), np.int64)


class AlignedFace(NamedTuple):
    """A face that was cut out.

    Attributes
    ----------
    face : Face
        As it was found in the image.
    landmarks : ndarray of shape (5, 2), float64
        In the image, x then y.
    matrix : ndarray of shape (2, 3), float64
        From image to crop.
    pose : int
        Which of the template's poses fits best.
    crop : ndarray of shape (rows, size, 3), uint8
        BGR.
    """

    face: Face
    landmarks: NDArray[np.float64]
    matrix: NDArray[np.float64]
    pose: int
    crop: Image


class _Candidate(NamedTuple):
    """A face with its transform, or with what is wrong with it."""

    face: Face
    landmarks: NDArray[np.float64]
    matrix: NDArray[np.float64]
    pose: int
    error: FaceError | None


def _reduced(faces: Sequence[Face]) -> tuple[NDArray[np.float64], list[FaceError | None]]:
    """Five points of each face, and what is wrong with those of which there are none."""
    errors: list[FaceError | None] = [None] * len(faces)
    if len({face.landmarks.shape for face in faces}) == 1:  # nearly always; one by one takes ten times as long
        with suppress(FaceError):
            return five_points(np.stack([face.landmarks for face in faces])), errors
    landmarks = np.full((len(faces), 5, 2), np.nan)
    for place, face in enumerate(faces):
        try:
            landmarks[place] = five_points(face.landmarks)
        except FaceError as error:
            errors[place] = error
    return landmarks, errors


@dataclass(frozen=True)
class Aligner:
    """The `Change` that aligns.

    Attributes
    ----------
    template : Template
        At the size of the output.
    encoding : Encoding
    rows : int
        Of each crop: all, or the upper ones alone.
    faces : str
        Which of several: ``"largest"``, ``"central"``, ``"all"``, ``"one"``.
    min_size : float
        Faces whose crop covers a smaller square of the image, in pixels, are left out.
    min_score : float
        Faces that are known with a lower score are left out.
    max_pixels : int
        Larger images are not decoded.
    assume_aligned : bool
        Copy images that have the size of the output and no landmarks.
    keep_landmarks : bool
        Give the landmarks, moved into the crop, to the sink.
    landmarks : MatchedLandmarks, optional
        Of the samples, from a file.
    landmark_file : mapping, optional
        What tells that file from another.
    detector : PreparedDetector, optional
        For images without landmarks in the file.
    found : FoundLandmarks, optional
        Where the landmarks of all faces are written down.
    """

    template: Template
    encoding: Encoding
    rows: int
    faces: str
    min_size: float
    min_score: float
    max_pixels: int
    assume_aligned: bool = False
    keep_landmarks: bool = False
    landmarks: MatchedLandmarks | None = None
    landmark_file: Mapping[str, Any] | None = None
    detector: PreparedDetector | None = None
    found: FoundLandmarks | None = None

    @property
    def samples_per_shard(self) -> int:
        """Part of a second without a detector, which takes up to a tenth of a second for an image alone."""
        return _PER_SHARD if self.detector is None else _DETECTED_PER_SHARD

    def identity(self) -> dict[str, Any]:
        """All that decides the pixels and the bytes, OpenCV's version included, as JSON values."""
        return {
            "template": self.template.identity(),
            "rows": self.rows,
            "interpolation": "bilinear, black border",
            "encoding": self.encoding.identity(),
            "OpenCV": import_opencv().__version__,
            "faces": self.faces,
            "min size": self.min_size,
            "min score": self.min_score,
            "max pixels": self.max_pixels,
            "assume aligned": self.assume_aligned,
            "keep landmarks": self.keep_landmarks,
            "landmarks": self.landmark_file,
            "detector": None if self.detector is None else self.detector.identity(),
        }

    def part(self, first: int, end: int) -> Aligner:
        """With the landmarks of a few samples alone."""
        return self if self.landmarks is None else replace(self, landmarks=self.landmarks[first:end])

    @contextmanager
    def open_shard(self, shard: int) -> Iterator[ChangeItems]:
        """What aligns the samples of a shard."""
        with opencv_in_one_thread():  # there is a worker for each core
            if self.found is None:
                yield ShardAligner(self).align
                return
            with self.found.open_shard(shard) as found:
                yield ShardAligner(self, found).align


class ShardAligner:
    """Aligns samples, in one process.

    Parameters
    ----------
    aligner : Aligner
        Its `landmarks` are those of the samples that will come.
    found : callable, optional
        Told the key of each image, and its faces.
    """

    def __init__(self, aligner: Aligner, found: FoundWriter | None = None) -> None:
        self._aligner, self._found = aligner, found
        self._detector: Detector | None = None

    def align(self, items: Iterable[Sample | SampleError]) -> Iterator[Sequence[Made]]:
        """The aligned faces of each sample, or what says why there are none."""
        for item, known in self._with_known_faces(items):
            if isinstance(item, SampleError):
                yield (item,)
            elif isinstance(known, FaceError):
                yield (Refused(item.key, known),)
            else:
                yield self._align_sample(item, known)

    def look(self, item: Sample | SampleError) -> tuple[Image, list[AlignedFace]] | None:
        """The image and the faces cut out of it, for people to look at; None where there is none."""
        for sample, known in self._with_known_faces([item]):
            if isinstance(sample, Sample) and not isinstance(known, FaceError):
                with suppress(FaceError):
                    image, chosen = self._choose(sample, known)
                    return image, [self._cut(image, candidate) for candidate in chosen]
        return None

    def _with_known_faces(
        self, items: Iterable[Sample | SampleError]
    ) -> Iterator[tuple[Sample | SampleError, list[_Candidate] | FaceError]]:
        """Each sample with the faces that are known in it: the transforms of many are computed at once."""
        for batch in self._batches(items):
            flat = [face for _, faces in batch if not isinstance(faces, FaceError) for face in faces]
            candidates = iter(self._transform(flat))
            for item, faces in batch:
                yield item, faces if isinstance(faces, FaceError) else list(islice(candidates, len(faces)))

    def _batches(
        self, items: Iterable[Sample | SampleError]
    ) -> Iterator[list[tuple[Sample | SampleError, list[Face] | FaceError]]]:
        """Some hundred samples at a time, but never too many bytes."""
        landmarks = self._aligner.landmarks
        listed: Iterable[list[Face] | FaceError] = repeat([]) if landmarks is None else landmarks.read()
        batch: list[tuple[Sample | SampleError, list[Face] | FaceError]] = []
        size = 0
        for item, faces in zip(items, listed, strict=False):
            batch.append((item, faces or self._own_faces(item)))
            size += len(item.image) if isinstance(item, Sample) else 0
            if len(batch) == _TOGETHER or size > _BYTES_TOGETHER:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _own_faces(self, item: Sample | SampleError) -> list[Face]:
        """The landmarks that the sample brings, where nothing else was given to say where the faces are."""
        given = self._aligner.landmarks is not None or self._aligner.detector is not None
        if given or isinstance(item, SampleError) or item.landmarks is None:
            return []
        return [Face(item.landmarks.astype(np.float64))]

    def _transform(self, faces: Sequence[Face]) -> list[_Candidate]:
        """Each face with its transform."""
        if not faces:
            return []
        landmarks, errors = _reduced(faces)
        transforms = similarity_transforms(landmarks, self._aligner.template.points)
        for place in np.flatnonzero(transforms.defects).tolist():
            errors[place] = errors[place] or defect_error(transforms.defects[place], landmarks[place])
        return list(map(_Candidate, faces, landmarks, transforms.matrices, transforms.poses.tolist(), errors))

    def _align_sample(self, sample: Sample, known: list[_Candidate]) -> Sequence[Made]:
        if not known and self._is_aligned(sample.image):
            return (self._as_it_is(sample),)
        try:
            image, chosen = self._choose(sample, known)
        except FaceError as error:
            return (Refused(sample.key, error),)
        return [self._deliver(sample, image, candidate, face) for face, candidate in enumerate(chosen)]

    def _is_aligned(self, image: bytes) -> bool:
        """Whether it has the size of the output, or of the crop that the output is the upper part of."""
        size = image_size(image)
        wide = self._aligner.template.size
        return size is not None and size[:2] in ((self._aligner.rows, wide), (wide, wide))

    def _as_it_is(self, sample: Sample) -> Sample | Refused:
        height, width = (image_size(sample.image) or (0, 0))[:2]
        whole = height == self._aligner.rows
        if whole and self._aligner.assume_aligned:
            return sample._replace(key=aligned_key(sample.key, image_extension(sample.image) or "bin"))
        way_out = "--assume-aligned copies it" if whole else "--crop upper is taken from photos"
        detail = f"it is {width} x {height} pixels and has no landmarks; to align twice hurts: {way_out}"
        return Refused(sample.key, FaceError("aligned already", detail))

    def _choose(self, sample: Sample, known: list[_Candidate]) -> tuple[Image, list[_Candidate]]:
        """The image, and those of its faces that are wanted."""
        if not known and self._aligner.detector is None:
            raise FaceError("no landmarks", "nothing says where its face is; with --detector it is looked for")
        image = decode_image(sample.image, self._aligner.max_pixels)
        if known and self._aligner.landmarks is not None and self._aligner.landmarks.relative:
            height, width = image.shape[:2]  # as it is shown, which its header does not tell
            known = self._transform([in_pixels(one.face, width, height) for one in known])
        candidates = self._sure_enough(known or self._detect(image))
        if self._found is not None:
            self._found.write(sample.key, [one.face._replace(landmarks=one.landmarks) for one in candidates])
        if self._aligner.faces in ("largest", "central"):  # what cannot be a face must not win over one that can
            candidates = [one for one in candidates if one.error is None] or candidates
        chosen = choose_faces([one.face for one in candidates], self._aligner.faces, image.shape[:2])
        wanted = set(map(id, chosen))
        return image, [one for one in candidates if id(one.face) in wanted]

    def _detect(self, image: Image) -> list[_Candidate]:
        if self._detector is None:
            assert self._aligner.detector is not None
            self._detector = self._aligner.detector.load()
        return self._transform(self._detector.detect(image))

    def _sure_enough(self, candidates: list[_Candidate]) -> list[_Candidate]:
        least = self._aligner.min_score
        sure = [one for one in candidates if one.face.score is None or one.face.score >= least]
        if candidates and not sure:
            best = max(one.face.score or 0.0 for one in candidates)
            raise FaceError("low score", f"the best face has {best:.3f}; --min-score {least:g}")
        return sure

    def _deliver(self, sample: Sample, image: Image, candidate: _Candidate, face: int) -> Sample | Refused:
        encoding = self._aligner.encoding
        key = aligned_key(sample.key, encoding.extension, face)
        try:
            aligned = self._cut(image, candidate)
        except FaceError as error:
            return Refused(key if face else sample.key, error)
        landmarks = None
        if self._aligner.keep_landmarks:
            landmarks = apply_transforms(aligned.matrix[None], aligned.landmarks[None])[0].astype(np.float32)
        return Sample(key, sample.label, encoding.encode(aligned.crop), landmarks)

    def _cut(self, image: Image, candidate: _Candidate) -> AlignedFace:
        if candidate.error is not None:
            raise candidate.error
        aligner = self._aligner
        size = aligner.template.size
        check_inside(candidate.landmarks, *image.shape[:2])
        if aligner.min_size > 0.0:
            side = float(crop_sides(candidate.matrix[None], size)[0])
            if side < aligner.min_size:
                detail = f"the crop covers {side:.1f} x {side:.1f} pixels of the image; --min-size {aligner.min_size:g}"
                raise FaceError("too small", detail)
        crop = crop_face(image, candidate.matrix, size, aligner.rows)
        return AlignedFace(candidate.face, candidate.landmarks, candidate.matrix, candidate.pose, crop)
