"""The job behind ``facedata extract-features``: from a spec and options to a feature set."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar
from zlib import crc32

import numpy as np

from facedata.columns import UNLABELLED
from facedata.converters.convert import LabelOptions, failure_line, open_inputs, read_without
from facedata.dataset import Sample, Source, peek
from facedata.errors import (
    EmptyDatasetError,
    FormatError,
    OptionError,
    OutputMismatchError,
    RefusedSampleError,
    SampleError,
)
from facedata.features.extraction.model import EmbeddingModel, ModelOptions, Preprocessing, prepare_model
from facedata.features.extraction.output import FAIL, FeatureOutput
from facedata.features.feature_set import FeatureSet, Floats, bad_rows
from facedata.files import StrPath, output_errors
from facedata.images import image_size, opencv_in_one_thread
from facedata.jobs.engine import report_progress
from facedata.jobs.job import JobOptions, JobSummary, run_job
from facedata.jobs.journal import Journal, ShardResult
from facedata.jobs.machine import available_cpus
from facedata.jobs.output import check_output, make_folders, refuse_overlap
from facedata.jobs.plan import InputTimes, Plan
from facedata.jobs.signals import stop_on_signals

__all__ = ["Extraction", "ExtractionOptions", "check_extraction", "plan_extraction", "run_extraction"]

_LEAST_SHARDS = 64  # of a small dataset, so that many workers have something to do
_MOST_SHARDS = 1 << 16  # of a large one: each has a file with labels and keys until the job is finished
_MOST_SAMPLES = 1024
_MOST_SAMPLES_ON_CUDA = 4096
_SAMPLES_TIMES_BYTES = 1 << 33  # larger models are slower: a shard takes some seconds to some ten on a core
_CUDA_WORKERS = 4  # each with a session on the same device, and a thread that decodes

Item = TypeVar("Item")


@dataclass(frozen=True)
class ExtractionOptions:
    """How features are extracted."""

    model: ModelOptions
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    flip: bool = False
    """Add the embedding of the mirror image."""
    normalize: bool = False
    """Scale each row to length 1."""
    on_error: str = FAIL
    """If images fail: ``"fail"`` publishes nothing, ``"skip"`` leaves out their rows, ``"nan"`` writes rows of NaN."""
    unlabeled: bool = False
    """Write -1 for each label."""
    labels_npy: bool = False
    """Write ``labels/NAME.npy`` too."""
    limit: int | None = None
    """Use only the first so many images."""
    labels: LabelOptions = field(default_factory=LabelOptions)
    """Where the labels come from."""
    opening: Mapping[str, Any] = field(default_factory=dict)
    """Options of the source's format."""
    command_line: str = "the same command"
    """The command that resumes the job, for messages."""


@dataclass(frozen=True)
class Extraction:
    """A planned extraction: run it with `run_extraction`, or only look at its plan."""

    plan: Plan
    source: Source
    model: EmbeddingModel
    options: ExtractionOptions
    output: FeatureOutput


def plan_extraction(spec: str, root: StrPath, name: str, options: ExtractionOptions) -> Extraction:
    """Plan to write the embeddings of a dataset's images as the feature set `name` in the folder `root`.

    Row i, line i of the labels and line i of the keys belong to the same image, in the order of the source. Opens the
    dataset and tries the model, but writes nothing.

    `spec` is a path, whose format is found from its content, or ``format:path``.

    Raises `InputError` if the dataset or the model cannot be read or used; `OptionError` if the options contradict each
    other, the model or the images; `OutputError` if the set would be written over the input; `InterruptedJobError` if
    SIGINT or SIGTERM ends the trial of the model.
    """
    output = FeatureOutput(FeatureSet(os.fspath(root), name), 0, 0, options.on_error, options.labels_npy)
    ((format_name, _, opened),) = open_inputs([spec], options.opening, labels=options.labels)
    source = options.labels.apply(opened)
    refuse_overlap(source.places(), output.root, output.named_files())
    if options.limit is not None:
        source = source[: options.limit]
    if not len(source):
        raise EmptyDatasetError(f"{spec}: has no image")

    with stop_on_signals() as stop:
        model = prepare_model(options.model, stop)
    refuse_overlap([model.path], output.root, output.named_files())
    if not options.preprocessing.resize:  # refuse a dataset if none of a few of its images has the right size
        items = [item for item in peek(source) if isinstance(item, Sample)]
        sizes = {(image_size(item.image) or (0, 0))[:2] for item in items} - {(0, 0)}
        wanted = (model.input.height, model.input.width)
        if sizes and not sizes & {wanted, wanted[::-1]}:  # EXIF may turn an image
            height, width = min(sizes)
            raise OptionError(
                f"the images do not have the size that {model.path} takes: expected {wanted[1]} x {wanted[0]} pixels, "
                f"found {width} x {height}. Align the faces first (facedata align --size); --resize scales whole images"
            )

    output = replace(output, rows=len(source), dimensions=model.dimensions)
    facts = {
        "sets": [{"set": spec, "format": format_name, "images": len(source)}],
        "model": model.path,
        "command_line": options.command_line,
        "named_files": [os.path.abspath(path) for path in output.named_files()],
    }
    # shards end after whole batches, so that the same images are in a batch whatever the workers
    count, batch = len(source), model.input.batch
    most = _MOST_SAMPLES_ON_CUDA if model.device == "cuda" else min(_MOST_SAMPLES, _SAMPLES_TIMES_BYTES // model.size)
    wanted_samples = max(min(most, -(-count // _LEAST_SHARDS)), -(-count // _MOST_SHARDS))
    step = max(wanted_samples // batch, 1) * batch
    ends = (*range(step, count, step), count)
    deciding = {
        "model": model.identity(),
        "preprocessing": options.preprocessing.identity(),
        "flip": options.flip,
        "normalize": options.normalize,
        "unlabeled": options.unlabeled,
        "limit": options.limit,
        **options.labels.options(),
        "opening": dict(options.opening),
        **({"labels npy": True} if options.labels_npy else {}),
    }
    times = InputTimes.of(source.places())
    plan = Plan("extract-features", source.identity(), deciding, len(source), len(ends), facts, ends, times)
    return Extraction(plan, source, model, options, output)


def run_extraction(extraction: Extraction, job: JobOptions | None = None) -> JobSummary:
    """Run or resume a planned extraction.

    Raises `InputError` if the dataset or the model cannot be read, or images failed and `on_error` is ``"fail"``;
    `OutputError` if the set cannot be written, exists already, or belongs to another job; `InterruptedJobError` after
    SIGINT or SIGTERM; the same call resumes the job.
    """
    plan, output, job = extraction.plan, extraction.output, job or JobOptions()
    if job.workers is None and extraction.model.device == "cuda":
        job = replace(job, workers=min(_CUDA_WORKERS, available_cpus()))
    if not job.overwrite:
        _refuse_other_on_error(plan, output)
    make_folders(*map(os.path.dirname, output.named_files()))

    def make_task(shard: int) -> ExtractShard:
        first, end = plan.bounds(shard)
        return ExtractShard(extraction.source[first:end], extraction.model, extraction.options, output, shard, first)

    with opencv_in_one_thread():
        return run_job(plan, make_task, output, job)


def check_extraction(extraction: Extraction, *, overwrite: bool) -> None:
    """Raise an `OutputError` if the job may not write its output; for a dry run."""
    if not overwrite:
        _refuse_other_on_error(extraction.plan, extraction.output)
    check_output(extraction.plan, _DryOutput(**vars(extraction.output)), overwrite=overwrite)


class _DryOutput(FeatureOutput):
    """An output whose folders may not exist yet, because the job would make them."""

    def named_files(self) -> list[str]:
        return [path for path in super().named_files() if os.path.isdir(os.path.dirname(path))]


def _refuse_other_on_error(plan: Plan, output: FeatureOutput) -> None:
    """`on_error` is not part of the plan, so that it can change until the set is published, but not after that."""
    journal = Journal(output.root)
    try:
        earlier, summary = journal.read_plan(), journal.read_summary()
    except FormatError:  # is handled when the job is run
        return
    if earlier is None or summary is None or earlier.fingerprint != plan.fingerprint or not summary.get("failures"):
        return
    before = summary.get("facts", {}).get("on_error")
    if before not in (None, output.on_error):
        raise OutputMismatchError(
            f"{output.path}: was already written with --on-error {before}, not --on-error {output.on_error}; use "
            "another --name, or --overwrite to start over"
        )


class _Entry(NamedTuple):
    """An image of a batch; `failure` says why it cannot be used."""

    key: str
    label: int
    size: int
    failure: Mapping[str, Any] | None


_NOT_TRIED = _Entry("", UNLABELLED, 0, {})


@dataclass(frozen=True)
class ExtractShard:
    """The task of one shard, sent to the worker that does it."""

    source: Source
    """The shard's part of the source."""
    model: EmbeddingModel
    options: ExtractionOptions
    output: FeatureOutput
    shard: int
    first: int
    """The number of its first image in the job."""
    culprits: Mapping[int, str] = field(default_factory=dict)
    only: range | None = None
    """If only some of its images are tried: their numbers. Batches without any of them are left out."""

    @property
    def samples(self) -> range:
        """The numbers of its images in the job."""
        return range(self.first, self.first + len(self.source))

    def part(self, samples: range, culprits: Mapping[int, str]) -> ExtractShard:
        """The task for these images, without the `culprits` among them; see `DivisibleTask`."""
        return replace(self, only=samples, culprits=culprits)

    def __call__(self) -> ShardResult:
        """Extract and write the rows, labels and keys of the shard."""
        begin = time.monotonic()
        labels: list[int] = []
        keys: list[str] = []
        failed: list[int] = []
        failures: list[Mapping[str, Any]] = []
        size = digest = 0
        with (
            output_errors(self.output.path),
            opencv_in_one_thread(),
            self.output.open_rows() as write_rows,
            closing(_one_ahead(self._batches())) as batches,
        ):
            report_progress(0, len(self.source))
            for images, entries in batches:
                rows, first = self._embed(images), len(labels)
                for row, entry, bad in zip(rows, entries, bad_rows(rows).tolist(), strict=True):
                    failure = entry.failure
                    if failure is None and bad:
                        kind = "NaN" if np.isnan(row).any() else "infinity" if row.any() else "nothing but zeros"
                        reason = f"unusable embedding: the model returned {kind}"
                        failure = self._failure(len(labels), entry.key, reason)
                    if failure is None:
                        size += entry.size
                        digest = crc32(row.tobytes(), crc32(b"%d\n" % entry.label, digest))
                    else:
                        row[:] = np.nan
                        failed.append(len(labels))
                        failures.append(failure)
                    labels.append(entry.label)
                    keys.append(entry.key)
                write_rows(self.first + first, rows)
                report_progress(len(labels), len(self.source))
            self.output.write_lines(self.shard, labels, keys, failed)
        for row in reversed(failed):
            del labels[row]
        extent = (min(labels), max(labels)) if labels else None
        seconds = time.monotonic() - begin
        return ShardResult(len(labels), size, f"{digest:08x}", extent, tuple(failures), seconds)

    def _embed(self, images: Floats) -> Floats:
        """The rows of a batch of prepared images, shape (M, D), in memory of their own."""
        rows = self.model.embed(images)
        if self.options.flip:
            rows = rows + self.model.embed(images, mirrored=True)
        if not self.options.normalize:
            return np.array(rows, "<f4")  # the network's own memory may be read-only
        wide = rows.astype(np.float64)  # whose squares do not overflow
        lengths = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
        unit: Floats = (wide / np.where(lengths > 0.0, lengths, 1.0)).astype("<f4")
        return unit

    def _batches(self) -> Iterator[tuple[Floats, list[_Entry]]]:
        """The prepared images of the shard in batches; zeros in the places of those that are not or cannot be used."""
        shape, count = self.model.input, len(self.source)
        start, stop = (0, count) if self.only is None else (self.only.start - self.first, self.only.stop - self.first)
        items = read_without(self.source[start:stop], self.first + start, self.culprits)
        for begin in range(start // shape.batch * shape.batch, stop, shape.batch):
            images = np.zeros(shape.shape(min(shape.batch, count - begin)), np.float32)
            yield (
                images,
                [
                    self._prepare(place, next(items), into) if start <= place < stop else _NOT_TRIED
                    for place, into in enumerate(images, begin)
                ],
            )

    def _prepare(self, place: int, item: Sample | SampleError, into: Floats) -> _Entry:
        if isinstance(item, SampleError):
            return _Entry(item.key, UNLABELLED, 0, self._failure(place, item.key, item.reason, item))
        shape, preprocessing = self.model.input, self.options.preprocessing
        label, failure = UNLABELLED if self.options.unlabeled else item.label, None
        try:
            image = preprocessing.decode(item.image, shape.height, shape.width)
        except RefusedSampleError as error:
            failure = self._failure(place, item.key, str(error))
        else:
            preprocessing.fill(image, shape.layout, into)
        return _Entry(item.key, label, len(item.image), failure)

    def _failure(self, place: int, key: str, reason: str, error: SampleError | None = None) -> dict[str, Any]:
        if error is None:
            dataset, offset = self.source.locate(place)
            error = SampleError(dataset, key, reason, offset)
        return failure_line(error, self.first + place)


def _one_ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The items, each made by another thread while the caller works on the one before."""
    end: Any = object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item
