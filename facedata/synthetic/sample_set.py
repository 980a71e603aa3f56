"""A small record set of drawn faces, with their landmarks: the work of ``facedata make-sample``."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.converters.convert import Conversion, plan_conversion, run_conversion
from facedata.converters.rec.sink import RecSink
from facedata.dataset import Publish, Sample, Source
from facedata.errors import OptionError
from facedata.files import atomic_writer, output_errors
from facedata.images import import_opencv, opencv_in_one_thread
from facedata.jobs.job import JobOptions, JobSummary
from facedata.jobs.journal import SUMMARY, Journal
from facedata.synthetic.faces import Identity, View, draw_face, face_landmarks, identity_from_seed, view_from_seed

__all__ = ["DrawnFaces", "SampleOptions", "make_sample", "plan_sample"]

_LANDMARKS = "landmarks.jsonl"
_JPEG_QUALITY = 95
_PREVIEW_ROWS, _PREVIEW_COLUMNS = 8, 8
_SMALLEST, _LARGEST = 16, 1024
_SHARD = 256  # images: a second of drawing
_MOST_RECORDS = 1 << 24  # the dialect counts images and identities in float32
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleOptions:
    """What to draw.

    Attributes
    ----------
    identities, images : int
        How many people, and how many images of each.
    size : int
        Side of the square images, in pixels, 16 to 1024.
    seed : int
        The same seed gives the same files, with the same versions of NumPy and OpenCV.
    """

    identities: int = 36
    images: int = 8
    size: int = 112
    seed: int = 0

    def __post_init__(self) -> None:
        if not _SMALLEST <= self.size <= _LARGEST:
            raise OptionError(f"size {self.size}: expected {_SMALLEST} to {_LARGEST} pixels")
        if self.identities < 1 or self.images < 1 or self.seed < 0:
            raise OptionError("identities and images are counted from 1, seeds from 0")
        if self.identities * (self.images + 1) >= _MOST_RECORDS:
            raise OptionError(
                f"{self.identities:,} identities with {self.images:,} images each are more than the "
                f"{_MOST_RECORDS:,} records that a record set of the InsightFace dialect can count"
            )

    def person(self, position: int) -> tuple[Identity, View]:
        """Who is drawn at a position of the dataset, and how."""
        label, image = divmod(position, self.images)
        return identity_from_seed(self.seed, label), view_from_seed(self.seed, label, image)

    def draw(self, position: int) -> NDArray[np.uint8]:
        """The image at a position of the dataset, BGR."""
        return draw_face(*self.person(position), self.size).image


class DrawnFaces(Source):
    """Draws the faces at some positions, by default all, when they are read; labels ascend."""

    def __init__(self, options: SampleOptions, positions: NDArray[np.int64] | None = None) -> None:
        self._options = options
        self._positions = np.arange(options.identities * options.images) if positions is None else positions

    def __len__(self) -> int:
        return len(self._positions)

    def take(self, positions: NDArray[np.int64]) -> DrawnFaces:
        """The faces at `positions`."""
        return DrawnFaces(self._options, self._positions[positions])

    def read(self) -> Iterator[Sample]:
        """Draw and encode every face."""
        cv2 = import_opencv()
        with opencv_in_one_thread():
            for position in self._positions.tolist():
                _, encoded = cv2.imencode(
                    ".jpg", self._options.draw(position), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
                )
                yield Sample(str(position), position // self._options.images, encoded.tobytes())

    def label_blocks(self) -> Iterator[NDArray[np.int64]]:
        """The labels, without drawing."""
        yield self._positions // self._options.images

    def size(self) -> int:
        """About a byte for two pixels."""
        return len(self) * self._options.size**2 // 2

    def identity(self) -> Mapping[str, Any]:
        """The options that decide what is drawn."""
        return {"drawn faces": asdict(self._options)}

    def places(self) -> Mapping[str, bool]:
        """Nothing is read."""
        return {}

    def locate(self, position: int) -> tuple[str, None]:
        """No file."""
        return "drawn faces", None


@dataclass(frozen=True)
class _SampleSink(RecSink):
    """A record set, with the landmarks and perhaps a contact sheet beside it."""

    sample: SampleOptions = SampleOptions()
    preview: str | None = None

    def owns(self, name: str) -> bool:
        return name == _LANDMARKS or super().owns(name)

    def named_files(self) -> Sequence[str]:
        return [] if self.preview is None else [self.preview]

    def final_files(self) -> Iterable[str]:
        return [*super().final_files(), os.path.join(self.root, _LANDMARKS)]

    def finish(self, shards: int, publish: Publish) -> Mapping[str, Any]:
        path = os.path.join(self.root, _LANDMARKS)
        with output_errors(path), atomic_writer(path, rename=publish) as file:
            for position in range(self.sample.identities * self.sample.images):
                line: dict[str, Any] = {"key": str(position + 1), "label": position // self.sample.images}
                for points in face_landmarks(*self.sample.person(position), self.sample.size):
                    line[f"landmarks{len(points)}"] = [[round(x, 3), round(y, 3)] for x, y in points.tolist()]
                file.write(json.dumps(line).encode() + b"\n")
        return super().finish(shards, publish)


def make_sample(
    folder: str | os.PathLike[str],
    options: SampleOptions | None = None,
    *,
    preview: str | os.PathLike[str] | None = None,
    job: JobOptions | None = None,
    command_line: str = "the same command",
) -> JobSummary:
    """Draw a small dataset and write it as a record set of the InsightFace dialect.

    Beside ``train.rec``, ``train.idx`` and ``property``, the folder gets ``landmarks.jsonl``: for each image an object
    with its record ``key``, its ``label``, and ``landmarks5`` and ``landmarks68``, lists of [x, y] in pixels, where the
    centre of the top left pixel is (0, 0).

    Parameters
    ----------
    preview : path, optional
        Also write a contact sheet of the first identities there (``.png`` or ``.jpg``), unless it exists since an
        earlier run.
    command_line : str
        The command as the user typed it, for messages that say how to resume.

    Raises
    ------
    OutputError
        If the folder or the preview exists and is not of this job, or cannot be written.
    OptionError
        If the name of the preview has another ending.
    InterruptedJobError
        After SIGINT or SIGTERM; the same call resumes.
    """
    conversion = plan_sample(folder, options, preview=preview, command_line=command_line)
    if _has_lost_files(conversion):
        _log.info("%s: some of its files are gone; drawing it again", os.fspath(folder))
        job = replace(job or JobOptions(), overwrite=True)
    with opencv_in_one_thread():  # in the process that forks the workers too
        summary = run_conversion(conversion, job)
    if preview is not None and summary.finished and not os.path.exists(preview):
        from facedata.contact_sheet import write_contact_sheet

        sample = options or SampleOptions()
        starts = range(0, sample.images * min(sample.identities, _PREVIEW_ROWS), sample.images)
        rows = [
            [sample.draw(start + column) for column in range(min(sample.images, _PREVIEW_COLUMNS))] for start in starts
        ]
        write_contact_sheet(preview, rows, labels=[f"id_{row}" for row in range(len(rows))])
    return summary


def _has_lost_files(conversion: Conversion) -> bool:
    """Whether files of the finished set are gone, and no other file has come since to where it writes."""
    journal, files = Journal(conversion.sink.root), list(conversion.sink.files(conversion.plan.shards))
    plan = journal.read_plan()
    if plan is None or plan.fingerprint != conversion.plan.fingerprint or journal.read_summary() is None:
        return False
    finished = os.stat(journal.folder / SUMMARY).st_ctime_ns  # written last; no program sets this time
    found = [os.lstat(path).st_ctime_ns for path in files if os.path.lexists(path)]
    return len(found) < len(files) and max(found, default=0) <= finished


def plan_sample(
    folder: str | os.PathLike[str],
    options: SampleOptions | None = None,
    *,
    preview: str | os.PathLike[str] | None = None,
    command_line: str = "the same command",
) -> Conversion:
    """Plan what `make_sample` does, with the same parameters; writes nothing."""
    options = options or SampleOptions()
    if preview is not None:
        from facedata.contact_sheet import sheet_extension

        preview = os.fspath(preview)
        sheet_extension(preview)
    source = DrawnFaces(options)
    return plan_conversion(
        "make-sample",
        source,
        _SampleSink(os.fspath(folder), sample=options, preview=preview),
        ends=(*range(_SHARD, len(source), _SHARD), len(source)),
        facts={"command_line": command_line},
    )
