"""The job behind ``facedata align``: from specs and options to a planned conversion with aligned faces."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from facedata.align.aligner import Aligner, ShardAligner, aligned_key, check_face_names
from facedata.align.decoding import MAX_PIXELS
from facedata.align.encoding import Encoding
from facedata.align.expected import ExpectedSource
from facedata.align.faces import FACE_RULES, five_points, upper_rows
from facedata.align.found import FoundLandmarks
from facedata.align.output import Extras, with_extras
from facedata.align.similarity import fits_mirrored
from facedata.align.templates import TEMPLATES, load_template
from facedata.converters.conversion import Conversion, ConversionOptions, plan_dataset, run_conversion
from facedata.dataset import Sample, Sink, Source, target_spec
from facedata.errors import FaceError, OptionError
from facedata.images import image_size, opencv_in_one_thread
from facedata.inspection.contact_sheet import sheet_extension
from facedata.jobs.job import JobOptions, JobSummary
from facedata.jobs.output import refuse_overlap
from facedata.jobs.signals import stop_on_signals

if TYPE_CHECKING:
    from facedata.align.detectors import DetectorOptions, PreparedDetector
    from facedata.align.landmark_files import LandmarkFile, MatchedLandmarks
    from facedata.align.preview import PreviewFace

__all__ = ["AlignOptions", "align_dataset", "plan_alignment", "run_alignment"]

FULL, UPPER = "full", "upper"
_PEEKS = 8
_FIRST_LANDMARKS = 64
_SHOWN, _TRIED = 24, 96
_SHARD_SAMPLES = 2048  # of a file that a shard is, where each face has to be found first

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AlignOptions:
    """How faces are found, cut out and written.

    Attributes
    ----------
    landmarks : str, optional
        A landmark file, or a folder of them.
    detector : DetectorOptions, optional
        Finds the faces in images that the file does not know; without a file, in all.
    template : str
        ``"arcface"``, ``"facexzoo-5pose"``, or a file.
    size : int
        Side of the crop in pixels.
    crop : str
        ``"full"``, or ``"upper"``: the first 60 of 112 rows.
    faces : str
        Which of several: ``"largest"``, ``"central"``, ``"all"``, ``"one"``.
    min_size : float
        The least side of the square in the image that the crop covers, in pixels.
    min_score : float, optional
        The least score of a face; by default that of the detector, and none for faces from a file.
    max_pixels : int
        Larger images are refused.
    encoding : Encoding
    assume_aligned : bool
        Copy images that have the size of the output and no landmarks, byte for byte.
    keep_landmarks : bool
        Let the landmarks, moved into the crop, travel with each sample.
    write_landmarks : str, optional
        Write the landmarks of all faces to this file.
    preview : str, optional
        Draw some faces on this contact sheet.
    limit : int, optional
        Only the first so many images.
    writing : mapping
        Keywords for the ``create_sink`` of the target's format.
    command_line : str
        The command as the user typed it, for messages that say how to go on.
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
    writing: Mapping[str, Any] = field(default_factory=dict)
    command_line: str = "the same command"

    def __post_init__(self) -> None:
        for option, value, known in (("crop", self.crop, (FULL, UPPER)), ("faces", self.faces, FACE_RULES)):
            if value not in known:
                raise OptionError(f"--{option} {value}: there are {', '.join(known)}")


def align_dataset(
    source: str, target: str, options: AlignOptions | None = None, job: JobOptions | None = None
) -> JobSummary:
    """Write the faces of a dataset, aligned, as another dataset.

    Parameters
    ----------
    source : str
        A spec.
    target : str
        ``format:path``, or a folder.
    options : AlignOptions, optional
    job : JobOptions, optional

    Raises
    ------
    InputError
        Where the dataset, a landmark file, a template or a model cannot be read or used.
    OutputError
        Where the output cannot be written or is another job's.
    OptionError
        Where the options contradict each other, or no face can be known.
    InterruptedJobError
        After SIGINT or SIGTERM; the same call goes on.
    """
    return run_alignment(plan_alignment(source, target, options), job)


def run_alignment(planned: Conversion, job: JobOptions | None = None) -> JobSummary:
    """Run what was planned, or go on with it."""
    with opencv_in_one_thread():
        return run_conversion(planned, job)


def plan_alignment(source: str, target: str, options: AlignOptions | None = None) -> Conversion:
    """Open everything and plan the job; writes nothing, but may fetch the model of a detector."""
    options = options or AlignOptions()
    conversion = ConversionOptions(
        limit=options.limit,
        writing=options.writing,
        change=_ChangeMaker(options),
        command="align",
        command_line=options.command_line,
    )
    return plan_dataset([source], target_spec(target), conversion)


class _ChangeMaker:
    """Makes the aligner, once source and sink are known; options that are wrong in themselves are refused at once."""

    def __init__(self, options: AlignOptions) -> None:
        self._options = options
        self._template = load_template(options.template, options.size)
        self._rows = options.size if options.crop == FULL else upper_rows(options.size)
        if options.preview is not None:
            sheet_extension(options.preview)

    def __call__(self, source: Source, sink: Sink) -> tuple[Aligner, Sink]:
        options = self._options
        listed, matched = self._landmarks_of(source)
        self._check_source(source, matched)
        sink = sink.prefer(
            source_names=source.keys_are_paths,
            shard_samples=None if options.detector is None else _SHARD_SAMPLES,
            landmarks=options.keep_landmarks,
        )
        if options.faces == "all" and sink.named_by_key:
            check_face_names(source[: options.limit])
        found = None if options.write_landmarks is None else FoundLandmarks(options.write_landmarks, sink.root)
        detector = self._prepare_detector()
        aligner = Aligner(
            template=self._template,
            encoding=options.encoding,
            rows=self._rows,
            faces=options.faces,
            min_size=options.min_size,
            min_score=self._least_score(detector),
            max_pixels=options.max_pixels,
            assume_aligned=options.assume_aligned,
            keep_landmarks=options.keep_landmarks,
            landmarks=matched,
            landmark_file=None if listed is None else listed.identity(),
            detector=detector,
            found=found,
        )
        preview = _Preview(source[: options.limit], aligner.part(0, options.limit or len(source)))
        extras = Extras(
            expected=partial(_expected, aligner=aligner),
            found=found,
            unused=None if listed is None or matched is None else partial(listed.unused, matched),
            preview=options.preview,
            draw=preview.draw,
        )
        output = with_extras(sink, extras)
        template = None if options.template in TEMPLATES else options.template
        model = None if options.detector is None else options.detector.model
        inputs = [name for name in (options.landmarks, template, model) if name is not None]
        refuse_overlap(inputs, sink.root, output.named_files())
        return aligner, output

    def _landmarks_of(self, source: Source) -> tuple[LandmarkFile, MatchedLandmarks] | tuple[None, None]:
        if self._options.landmarks is None:
            return None, None
        from facedata.align.landmark_files import open_landmarks

        file = open_landmarks(self._options.landmarks)
        matched = file.match(source.keys(), len(source))
        if matched.missing and self._options.detector is None:
            _log.warning(
                "%s: has no landmarks for %d of %d images", self._options.landmarks, matched.missing, len(source)
            )
        if file.numbered:
            self._check_order(source)
        self._warn_of_order(matched)
        return file, matched

    def _check_order(self, source: Source) -> None:
        """Positions are of no use where the images were grouped by label on their way."""
        numbers = (int(key) for key in source.keys())  # noqa: SIM118, no mapping
        if any(after <= before for before, after in pairwise(numbers)):
            raise OptionError(
                f"{self._options.landmarks}: tells the images by their positions, and this target wants another "
                "order: align into a folder first, or write with --style plain"
            )

    def _warn_of_order(self, matched: MatchedLandmarks) -> None:
        """Landmarks whose left and right are the person's, not the image's, would turn every face."""
        faces = (face for found in matched[:_FIRST_LANDMARKS].read() if isinstance(found, list) for face in found)
        points = []
        for face in faces:
            try:
                points.append(five_points(face.landmarks))
            except FaceError:
                continue
        if points and fits_mirrored(np.stack(points), self._template.points).mean() > 0.5:
            _log.warning(
                "%s: the points fit the mirror image of a face better: is the eye on the image's left the first?",
                self._options.landmarks,
            )

    def _check_source(self, source: Source, matched: MatchedLandmarks | None) -> None:
        """Refuse a source of which a look at a few images shows that nothing can come of it."""
        options = self._options
        if options.assume_aligned or not len(source):
            return
        places = np.unique(np.linspace(0, len(source) - 1, _PEEKS).astype(np.int64)).tolist()
        unknown = [place for place in places if matched is None or not next(iter(matched[place : place + 1].read()))]
        samples = [item for place in unknown for item in source[place : place + 1].read() if isinstance(item, Sample)]
        if len(samples) < len(places) or any(sample.landmarks is not None for sample in samples):
            return
        sizes = {(image_size(sample.image) or (0, 0))[:2] for sample in samples}
        if sizes in ({(options.size, options.size)}, {(self._rows, options.size)}):
            ((height, width),) = sizes
            way_out = (
                "--assume-aligned copies them as they are"
                if height == self._rows
                else "--crop upper is taken from the photos that these were cut out of"
            )
            raise OptionError(
                f"the images are {width} x {height} already and have no landmarks: to align faces twice hurts "
                f"recognition. {way_out}"
            )
        if options.detector is None and matched is None:
            raise OptionError(
                "nothing says where the faces are, for the images bring no landmarks: --landmarks FILE, or --detector"
            )

    def _prepare_detector(self) -> PreparedDetector | None:
        if self._options.detector is None:
            return None
        from facedata.align.detectors import prepare_detector

        with stop_on_signals() as stop:
            return prepare_detector(self._options.detector, stop)

    def _least_score(self, detector: PreparedDetector | None) -> float:
        if self._options.min_score is not None:
            return self._options.min_score
        return 0.0 if detector is None else detector.min_score


def _expected(source: Source, aligner: Aligner) -> ExpectedSource:
    extension = aligner.encoding.extension
    size = int(aligner.rows * aligner.template.size * aligner.encoding.expected_bytes_per_pixel) + 1
    rename = partial(aligned_key, extension=extension)
    return ExpectedSource(source, rename, size, with_landmarks=aligner.keep_landmarks)


@dataclass(frozen=True)
class _Preview:
    """Draws some of the faces, spread over the whole source."""

    source: Source
    aligner: Aligner

    def draw(self, path: str) -> bool:
        """Write the contact sheet to `path`; whether there was a face to show."""
        from facedata.align.preview import write_preview

        faces = islice(self._faces(), _SHOWN)
        first = next(faces, None)
        if first is None:
            _log.warning("%s: not drawn, for none of the images looked at has a face that could be aligned", path)
            return False
        write_preview(path, chain([first], faces), overwrite=True)
        return True

    def _faces(self) -> Iterator[PreviewFace]:
        """Those of some images first, then of others between them."""
        from facedata.align.preview import PreviewFace

        for place in self._places():
            aligner = replace(self.aligner.part(place, place + 1), found=None)
            for item in self.source[place : place + 1].read():
                looked = ShardAligner(aligner).look(item)
                if looked is None:
                    continue
                image, faces = looked
                for one in faces[:1]:
                    label = os.path.basename(item.key)
                    template = self.aligner.template.points[one.pose]
                    yield PreviewFace(image, one.face.landmarks, one.face.box, one.crop, label, template)

    def _places(self) -> list[int]:
        last = len(self.source) - 1
        first = np.linspace(0, last, _SHOWN).astype(int).tolist()
        others = np.linspace(0, last, _TRIED).astype(int).tolist()
        return list(dict.fromkeys([*first, *others]))
