"""The job behind ``facedata extract-features``: from a spec and options to a feature set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from facedata.dataset import Sample, Source, find_format, open_dataset
from facedata.errors import EmptyDatasetError, OptionError, OutputMismatchError
from facedata.features.extraction.model import EmbeddingModel, prepare_model
from facedata.features.extraction.output import FAIL, FeatureOutput
from facedata.features.extraction.preprocessing import Preprocessing
from facedata.features.extraction.shapes import ModelOptions
from facedata.features.extraction.shard import Extractor, ExtractShard
from facedata.features.feature_set import FeatureSet
from facedata.images import image_size, opencv_in_one_thread
from facedata.jobs.executors import available_cpus
from facedata.jobs.job import JobOptions, JobSummary, run_job
from facedata.jobs.journal import Journal, refuse_unfinished
from facedata.jobs.output import check_output, refuse_overlap
from facedata.jobs.plan import Plan
from facedata.jobs.signals import stop_on_signals

__all__ = [
    "Extraction",
    "ExtractionOptions",
    "check_extraction",
    "extract_features",
    "plan_extraction",
    "run_extraction",
]

_PEEKS = 8
_LEAST_SHARDS = 64  # of a small dataset, so that many workers have something to do
_MOST_SHARDS = 1 << 16  # of a large one: each has a file with labels and keys until the job is finished
_MOST_SAMPLES = 1024
_MOST_SAMPLES_ON_CUDA = 4096
_SAMPLES_TIMES_BYTES = 1 << 33  # larger models are slower: a shard takes some seconds to some ten on a core
_CUDA_WORKERS = 4  # each with a session of its own on the same device, and a thread that decodes


@dataclass(frozen=True)
class ExtractionOptions:
    """How features are extracted.

    Attributes
    ----------
    model : ModelOptions
    preprocessing : Preprocessing
    flip : bool
        Add the embedding of the mirror image.
    normalize : bool
        Give each row the length 1.
    on_error : {'fail', 'skip', 'nan'}
        Images that fail: publish nothing; leave out their rows, labels and keys; or rows of NaN.
    unlabeled : bool
        Write -1 for each label.
    limit : int, optional
        Only the first so many images.
    opening : mapping
        Keywords for the ``open_source`` of the source's format.
    command_line : str
        The command as the user typed it, for messages that say how to go on.
    """

    model: ModelOptions
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    flip: bool = False
    normalize: bool = False
    on_error: str = FAIL
    unlabeled: bool = False
    limit: int | None = None
    opening: Mapping[str, Any] = field(default_factory=dict)
    command_line: str = "the same command"


@dataclass(frozen=True)
class Extraction:
    """A planned extraction: run it with `run_extraction`, or look at its plan alone."""

    plan: Plan
    source: Source
    extractor: Extractor
    output: FeatureOutput


def extract_features(
    spec: str,
    root: str | os.PathLike[str],
    name: str,
    options: ExtractionOptions,
    job: JobOptions | None = None,
) -> JobSummary:
    """Write the embeddings of a dataset's images as the feature set `name` in the folder `root`.

    Row i, line i of the labels and line i of the keys belong to the same image, in the order of the source.

    Parameters
    ----------
    spec : str
        A path, whose format is found from its content, or ``format:path``.
    root : path
    name : str
    options : ExtractionOptions
    job : JobOptions, optional

    Raises
    ------
    InputError
        Where the dataset or the model cannot be read or used, or images failed and `on_error` is ``"fail"``.
    OutputError
        Where the set cannot be written, is there already, or is another job's.
    OptionError
        Where the options contradict each other, the model or the images.
    InterruptedJobError
        After SIGINT or SIGTERM; the same call goes on.
    """
    return run_extraction(plan_extraction(spec, root, name, options), job)


def run_extraction(extraction: Extraction, job: JobOptions | None = None) -> JobSummary:
    """Run what was planned, or go on with it."""
    plan, output, job = extraction.plan, extraction.output, job or JobOptions()
    if job.workers is None and extraction.extractor.model.device == "cuda":
        job = replace(job, workers=min(_CUDA_WORKERS, available_cpus()))
    if not job.overwrite:
        _refuse_other_answer(plan, output)
    output.make_folders()

    def make_task(shard: int) -> ExtractShard:
        first, end = plan.bounds(shard)
        return ExtractShard(extraction.source[first:end], extraction.extractor, output, shard, first)

    with opencv_in_one_thread():
        return run_job(plan, make_task, output, job)


def check_extraction(extraction: Extraction, *, overwrite: bool) -> None:
    """Raise where the job may not write its output; for a dry run."""
    if not overwrite:
        _refuse_other_answer(extraction.plan, extraction.output)
    check_output(extraction.plan, _DryOutput(**vars(extraction.output)), overwrite=overwrite)


class _DryOutput(FeatureOutput):
    """An output whose folders the job would make."""

    def named_files(self) -> list[str]:
        """Those that can be there."""
        return [path for path in super().named_files() if os.path.isdir(os.path.dirname(path))]


def _refuse_other_answer(plan: Plan, output: FeatureOutput) -> None:
    """What to do about failures is no part of the plan; once it is done, it is done."""
    journal = Journal(output.root)
    there, summary = journal.read_plan(), journal.read_summary()
    if there is None or summary is None or there.fingerprint != plan.fingerprint or not summary.get("failures"):
        return
    before = summary.get("facts", {}).get("on_error")
    if before != output.on_error:
        raise OutputMismatchError(
            f"{output.target.features}: is there, with what --on-error {before} makes of the images that failed; "
            f"--on-error {output.on_error} wants it otherwise: choose another --name, or --overwrite to start afresh"
        )


def plan_extraction(spec: str, root: str | os.PathLike[str], name: str, options: ExtractionOptions) -> Extraction:
    """Open the dataset, try the model, and plan the job; writes nothing."""
    target = FeatureSet(os.fspath(root), name)
    output = FeatureOutput(target, 0, 0, options.on_error)
    kind, source = _open(spec, output, options)
    with stop_on_signals() as stop:
        model = prepare_model(options.model, stop)
    refuse_overlap([model.path], output.root, output.named_files())
    extractor = Extractor(model, options.preprocessing, options.flip, options.normalize, options.unlabeled)
    _check_sizes(source, model, options)
    output = replace(output, rows=len(source), dimensions=model.dimensions)
    facts = {
        "sets": [{"set": spec, "format": kind, "images": len(source)}],
        "model": model.path,
        "command_line": options.command_line,
        "named_files": [os.path.abspath(path) for path in output.named_files()],
    }
    ends = _shard_ends(len(source), model)
    deciding = {**extractor.identity(), "limit": options.limit, "opening": dict(options.opening)}
    plan = Plan("extract-features", source.identity(), deciding, len(source), len(ends), facts, ends)
    return Extraction(plan, source, extractor, output)


def _open(spec: str, output: FeatureOutput, options: ExtractionOptions) -> tuple[str, Source]:
    kind, path = find_format(spec)
    before, at, after = path.rpartition("@")
    for part in [path] if not at or os.path.exists(path) else [before, after]:
        refuse_unfinished(part)
    source = open_dataset(f"{kind}:{path}", **options.opening)
    refuse_overlap(source.places(), output.root, output.named_files())
    for folder in {os.path.dirname(place) for place in source.places()}:
        refuse_unfinished(folder or ".")
    if options.limit is not None:
        source = source[: options.limit]
    if not len(source):
        raise EmptyDatasetError(f"{spec}: has no image")
    return kind, source


def _check_sizes(source: Source, model: EmbeddingModel, options: ExtractionOptions) -> None:
    """Refuse a dataset of which a look at a few images shows that nothing can come of it."""
    if options.preprocessing.resize:
        return
    places = np.unique(np.linspace(0, len(source) - 1, _PEEKS).astype(np.int64)).tolist()
    items = [item for place in places for item in source[place : place + 1].read()]
    sizes = {(image_size(item.image) or (0, 0))[:2] for item in items if isinstance(item, Sample)} - {(0, 0)}
    wanted = (model.input.height, model.input.width)
    if sizes and not sizes & {wanted, wanted[::-1]}:  # EXIF may turn an image
        height, width = min(sizes)
        raise OptionError(
            f"the images are of other sizes than {model.path} takes: expected {wanted[1]} x {wanted[0]} pixels, found "
            f"{width} x {height}. Faces have to be aligned first (facedata align --size); --resize scales whole images"
        )


def _shard_ends(count: int, model: EmbeddingModel) -> tuple[int, ...]:
    """Where the shards end: at whole batches, so that the same images are together whoever does them."""
    most = _MOST_SAMPLES_ON_CUDA if model.device == "cuda" else min(_MOST_SAMPLES, _SAMPLES_TIMES_BYTES // model.size)
    wanted = max(min(most, -(-count // _LEAST_SHARDS)), -(-count // _MOST_SHARDS))
    step = max(wanted // model.input.batch, 1) * model.input.batch
    return (*range(step, count, step), count)
