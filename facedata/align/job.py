"""The job of ``facedata align``: from specs and options to a planned conversion with aligned faces."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING

import numpy as np

from facedata.align.aligner import Aligner, AlignOptions, ShardAligner, aligned_key
from facedata.align.faces import five_points
from facedata.align.outputs import AlignedOutput, ExpectedSource, FoundLandmarks, aligned_output
from facedata.align.similarity import fits_mirrored
from facedata.align.templates import TEMPLATES, Template, load_template
from facedata.contact_sheet import PreviewFace, sheet_extension, write_preview
from facedata.converters.convert import Conversion, ConversionOptions, plan_dataset, run_conversion
from facedata.dataset import Sample, Sink, Source, peek, target_spec
from facedata.errors import OptionError
from facedata.images import image_size, opencv_in_one_thread, stem_of_key
from facedata.jobs.job import JobOptions, JobSummary
from facedata.jobs.output import refuse_overlap
from facedata.jobs.signals import stop_on_signals

if TYPE_CHECKING:
    from facedata.align.landmark_files import LandmarkFile, MatchedLandmarks

__all__ = ["AlignOptions", "align_dataset", "plan_alignment", "run_alignment"]

_FIRST_LANDMARKS = 64  # whose order of points is examined
_SHOWN, _TRIED = 24, 96  # faces in a preview, and images that are decoded for it
_FURTHER_FACE = re.compile(r"(.+)-face[1-9]\d*", re.DOTALL)
_SHARD_SAMPLES = 2048  # in a file that is written as one shard, if faces have to be detected

_log = logging.getLogger(__name__)


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
    options, job : optional

    Raises
    ------
    InputError
        If the dataset, a landmark file, a template or a model cannot be read or used.
    OutputError
        If the output cannot be written or is another job's.
    OptionError
        If the options contradict each other, or nothing says where the faces are.
    InterruptedJobError
        After SIGINT or SIGTERM; the same call resumes.
    """
    return run_alignment(plan_alignment(source, target, options), job)


def run_alignment(planned: Conversion, job: JobOptions | None = None) -> JobSummary:
    """Run what was planned, or resume it; then draw the preview, unless its file exists since an earlier run."""
    with opencv_in_one_thread():
        summary = run_conversion(planned, job)
        assert isinstance(planned.sink, AlignedOutput)
        assert isinstance(planned.change, Aligner)
        preview = planned.sink.preview
        if preview is None or not summary.finished:
            return summary
        if os.path.exists(preview):
            _log.info("%s: exists already, not drawn again", preview)
        elif not _draw_preview(planned.source, planned.change, preview):
            return summary
        return replace(summary, facts={**summary.facts, "preview": preview})


def plan_alignment(source: str, target: str, options: AlignOptions | None = None) -> Conversion:
    """Open everything and plan the job; writes nothing, but may fetch the model of a detector."""
    options = options or AlignOptions()
    template = load_template(options.template, options.size)
    if options.preview is not None:
        sheet_extension(options.preview)
    conversion = ConversionOptions(
        labels=options.labels,
        limit=options.limit,
        writing=options.writing,
        change=partial(_make_aligner, options=options, template=template),
        command="align",
        command_line=options.command_line,
    )
    return plan_dataset([source], target_spec(target), conversion)


def _make_aligner(source: Source, sink: Sink, options: AlignOptions, template: Template) -> tuple[Aligner, Sink]:
    """The change of the samples on their way, and the sink with everything that is written beside it."""
    listed, matched = _match_landmarks(source, options, template)
    _check_first_images(source, matched, options)
    sink = sink.prefer(
        source_names=source.keys_are_paths,
        shard_samples=None if options.detector is None else _SHARD_SAMPLES,
        landmarks=options.keep_landmarks,
    )
    if options.faces == "all" and sink.named_by_key:
        _check_face_names(source[: options.limit])
    detector = None
    if options.detector is not None:
        from facedata.align.detectors import prepare_detector

        with stop_on_signals() as stop:
            detector = prepare_detector(options.detector, stop)
    min_score = options.min_score
    if min_score is None:
        min_score = 0.0 if detector is None else detector.min_score
    found = None if options.write_landmarks is None else FoundLandmarks(options.write_landmarks, sink.root)
    landmark_file = None if listed is None else listed.identity()
    aligner = Aligner(options, template, min_score, matched, landmark_file, detector, found)
    output = aligned_output(
        sink,
        expected=partial(_expected, aligner=aligner),
        found=found,
        unused=None if listed is None or matched is None else partial(listed.unused, matched),
        preview=options.preview,
    )
    own_template = None if options.template in TEMPLATES else options.template
    model = None if options.detector is None else options.detector.model
    inputs = [name for name in (options.landmarks, own_template, model) if name is not None]
    refuse_overlap(inputs, sink.root, output.named_files())
    return aligner, output


def _match_landmarks(
    source: Source, options: AlignOptions, template: Template
) -> tuple[LandmarkFile, MatchedLandmarks] | tuple[None, None]:
    """Open the landmark file and find the landmarks of every image; warn of what looks wrong."""
    if options.landmarks is None:
        return None, None
    from facedata.align.landmark_files import open_landmarks

    file = open_landmarks(options.landmarks)
    matched = file.match(source.keys(), len(source))
    if matched.missing and options.detector is None:
        _log.warning("%s: has no landmarks for %d of %d images", options.landmarks, matched.missing, len(source))
    if file.numbered:  # positions are useless if the images have been grouped by label
        numbers = (int(key) for key in source.keys())  # noqa: SIM118, not a mapping
        if any(after <= before for before, after in pairwise(numbers)):
            raise OptionError(
                f"{options.landmarks}: identifies the images by their positions, but this output needs another order: "
                "align into a folder first, or write with --style plain"
            )
    # If left and right are the person's, not the image's, every face would be turned upside down.
    faces = chain.from_iterable(faces for faces in matched[:_FIRST_LANDMARKS].read() if isinstance(faces, list))
    points = [five_points(face.landmarks) for face in faces]
    if points and fits_mirrored(np.stack(points), template.points).mean() > 0.5:
        _log.warning(
            "%s: the points fit the mirror image of a face better: is the first the eye on the image's left?",
            options.landmarks,
        )
    return file, matched


def _check_first_images(source: Source, matched: MatchedLandmarks | None, options: AlignOptions) -> None:
    """Refuse a source if a few images show that none can be aligned; otherwise images fail one by one."""
    if options.assume_aligned:
        return
    unknown = source
    if matched is not None:
        if matched.missing < 0.9 * len(matched):
            return
        unknown = source.take(np.flatnonzero(matched.first < 0))
    items = peek(unknown)
    samples = [item for item in items if isinstance(item, Sample) and item.landmarks is None]
    if not samples or len(samples) < len(items):
        return
    sizes = {(image_size(sample.image) or (0, 0))[:2] for sample in samples}
    if sizes in ({(options.size, options.size)}, {(options.rows, options.size)}):
        ((height, width),) = sizes
        way_out = "--assume-aligned copies them as they are"
        if height != options.rows:
            way_out = "--crop upper needs the photos from which they were cut"
        raise OptionError(
            f"the images look aligned already ({width} x {height}, no landmarks), and aligning twice degrades "
            f"recognition. {way_out}"
        )
    if options.detector is None and matched is None:
        raise OptionError(
            "nothing says where the faces are: the images have no landmarks of their own. Give --landmarks FILE or "
            "--detector"
        )


def _check_face_names(source: Source) -> None:
    """Refuse a source in which an image has the name that a further face of another image would get."""
    further: dict[str, str] = {}  # the keys that look like those of further faces, by the image of such a face
    for key in source.keys():  # noqa: SIM118, not a mapping
        if "-face" in key and (match := _FURTHER_FACE.fullmatch(stem_of_key(key))):
            further[match[1]] = key
    for image in map(stem_of_key, source.keys()) if further else ():
        if image in further:
            raise OptionError(
                f"--faces all: a further face in the image {image} may get the name of the image {further[image]}, and "
                "one of the two would be lost; choose another --faces, or an option of the output that numbers the "
                "images: --layout glint360k, --keys generated"
            )


def _expected(source: Source, aligner: Aligner) -> ExpectedSource:
    options = aligner.options
    size = int(options.rows * options.size * options.encoding.expected_bytes_per_pixel) + 1
    rename = partial(aligned_key, extension=options.encoding.format)
    return ExpectedSource(source, rename, size, with_landmarks=options.keep_landmarks)


def _draw_preview(source: Source, aligner: Aligner, path: str) -> bool:
    """Draw the first faces of images from all over the source; return whether there was one to draw."""
    last = len(source) - 1
    places = dict.fromkeys(chain(*(np.linspace(0, last, count).astype(int).tolist() for count in (_SHOWN, _TRIED))))

    def faces() -> Iterator[PreviewFace]:
        for place in places:
            shard = ShardAligner(aligner.part(place, place + 1))
            for item in source[place : place + 1].read():
                if (looked := shard.look(item)) is not None:
                    image, (face, _, _, pose, _), crop = looked
                    points = aligner.template.points[pose]
                    yield PreviewFace(image, face.landmarks, face.box, crop, os.path.basename(item.key), points)

    shown = islice(faces(), _SHOWN)
    first = next(shown, None)
    if first is None:
        _log.warning("%s: not drawn, since no face could be aligned in the images examined for it", path)
        return False
    write_preview(path, chain([first], shown), overwrite=True)
    return True
