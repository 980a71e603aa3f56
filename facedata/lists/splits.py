"""Class splits for metric learning: folders and lists of train and test classes, as UDML-SS reads them.

The folder of a set has ``train.txt`` and ``test.txt``, whose lines are ``train/CLASS/FILE label`` with labels from 0 in
each, and the images, as links or copies.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from facedata.converters.image_files import ImageFileSource
from facedata.dataset import Output, Publish, open_dataset
from facedata.errors import FormatError, InputNotFoundError, MissingExtraError, OptionError, OutputExistsError
from facedata.files import atomic_writer, open_regular, output_errors, read_small, remove_stale_temporaries
from facedata.jobs.job import JobOptions, JobSummary, run_job
from facedata.jobs.journal import ShardResult
from facedata.jobs.output import check_output, refuse_overlap
from facedata.jobs.plan import Plan
from facedata.text import counted, listed

__all__ = ["PRESETS", "Entry", "Split", "SplitJob", "plan_split", "preset_split", "split_by_classes"]

_LARGEST = 1 << 28
_PER_SHARD = 4096
_PARTS = ("train", "test")
_MISSING = 100


class Entry(NamedTuple):
    """An image of a split: its class and the path of its file."""

    kind: str
    path: str


class Split(NamedTuple):
    """The images of the train classes and of the test classes, in the order of their classes."""

    train: list[Entry]
    test: list[Entry]

    def counts(self) -> tuple[int, int, int, int]:
        """Images and classes of each part: of train, then of test."""
        train, test = ((len(part), len({entry.kind for entry in part})) for part in self)
        return (*train, *test)


class Preset(NamedTuple):
    """A published set: how its files are read, the folder that UDML-SS needs, and what `Split.counts` must be."""

    read: Callable[[str], Split]
    folder: str
    counts: tuple[int, int, int, int]


def _rows(path: str, columns: int) -> list[list[str]]:
    rows = [line.split(None, columns - 1) for line in read_small(path, _LARGEST).decode("utf-8-sig").splitlines()]
    for number, row in enumerate(rows, 1):
        if row and len(row) != columns:
            raise FormatError(
                f"{path}: line {number}: expected {columns} columns, found {len(row)}: {' '.join(row)[:60]!r}"
            )
    return [row for row in rows if row]


def _find(root: str, names: Sequence[str], inside: Sequence[str] = ()) -> str | None:
    """The folder that has all these files: the root, or one of the folders `inside`."""
    folders = [root, *(os.path.join(root, name) for name in inside)]
    return next((f for f in folders if all(os.path.exists(os.path.join(f, name)) for name in names)), None)


def _half(entries: Sequence[tuple[int, Entry]], classes: int) -> Split:
    """The classes up to that number for training, the others for the test."""
    ordered = sorted(entries, key=lambda item: item[0])
    return Split([e for n, e in ordered if n <= classes], [e for n, e in ordered if n > classes])


def _read_cub(root: str) -> Split:
    folder = _find(root, ["images.txt", "image_class_labels.txt"], ["CUB_200_2011"])
    if folder is None:
        older = _find(root, ["lists"]) or _find(root, ["annotations-mat"])
        trap = (
            ": this looks like the CUB of 2010, which has 6,033 images; the split needs CUB_200_2011" if older else ""
        )
        raise InputNotFoundError(f"{root}: expected images.txt and image_class_labels.txt of CUB_200_2011{trap}")
    labels = {number: int(label) for number, label in _rows(os.path.join(folder, "image_class_labels.txt"), 2)}
    entries = []
    for number, path in _rows(os.path.join(folder, "images.txt"), 2):
        if number not in labels:
            raise FormatError(f"{folder}/image_class_labels.txt: has no label of image {number}, {path}")
        entries.append((labels[number], Entry(path.partition("/")[0], os.path.join(folder, "images", path))))
    return _half(entries, 100)


def _load_mat(path: str) -> dict[str, Any]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingExtraError(f"{path}: reading a .mat", "lists", str(error)) from error
    read_small(path, _LARGEST)  # bounded, and readable
    try:
        found: dict[str, Any] = loadmat(path, squeeze_me=True)
    except Exception as error:  # whatever a damaged file does to the parser
        raise FormatError(f"{path}: is damaged: {error}") from error
    return found


def _read_cars(root: str) -> Split:
    """Cars196: one file of annotations, or the later devkit with the folders cars_train and cars_test."""
    single = _find(root, ["cars_annos.mat"])
    devkit = _find(root, ["cars_train_annos.mat", "cars_meta.mat"], ["devkit", "car_devkit/devkit"])
    entries: list[tuple[int, Entry]] = []
    try:
        if single is not None:
            annotations = _load_mat(os.path.join(single, "cars_annos.mat"))
            names = [_clean(str(name)) for name in annotations["class_names"]]
            for each in annotations["annotations"]:
                kind = int(each["class"])
                path = os.path.join(single, str(each["relative_im_path"]))
                entries.append((kind, Entry(names[kind - 1], path)))
        elif devkit is not None:
            names = [_clean(str(name)) for name in _load_mat(os.path.join(devkit, "cars_meta.mat"))["class_names"]]
            labelled = next((_find(f, ["cars_test_annos_withlabels.mat"]) for f in (root, devkit)), None)
            if labelled is None and _find(devkit, ["cars_test_annos_withlabels.mat"]) is None:
                raise InputNotFoundError(
                    f"{root}: has no cars_test_annos_withlabels.mat, and without it half of the images have no class; "
                    "fetch it, or cars_annos.mat, from the page of the set"
                )
            files = (
                ("cars_train", os.path.join(devkit, "cars_train_annos.mat")),
                ("cars_test", os.path.join(labelled or devkit, "cars_test_annos_withlabels.mat")),
            )
            for folder, path in files:
                for each in _load_mat(path)["annotations"]:
                    kind = int(each["class"])
                    entries.append((kind, Entry(names[kind - 1], os.path.join(root, folder, str(each["fname"])))))
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise FormatError(f"{root}: its annotations are not those of Cars196: {error!r}") from error
    if not entries:
        raise InputNotFoundError(
            f"{root}: expected cars_annos.mat and car_ims/ of Cars196, or its devkit/ with cars_train/ and cars_test/"
        )
    if not any(os.path.isfile(entry.path) for _, entry in entries[:_MISSING]):
        raise InputNotFoundError(
            f"{entries[0][1].path}: is not there: this is the devkit of Cars196 without its images; unpack "
            f"car_ims.tgz, or cars_train.tgz and cars_test.tgz, in {root}"
        )
    return _half(entries, 98)


def _read_products(root: str) -> Split:
    folder = _find(root, ["Ebay_train.txt", "Ebay_test.txt"], ["Stanford_Online_Products"])
    if folder is None:
        raise InputNotFoundError(f"{root}: expected Ebay_train.txt and Ebay_test.txt of Stanford Online Products")
    parts = []
    for part in _PARTS:
        name = os.path.join(folder, f"Ebay_{part}.txt")
        rows = _rows(name, 4)
        if not rows or rows[0][0] != "image_id":
            raise FormatError(f"{name}: expected the header 'image_id class_id super_class_id path'")
        parts.append([Entry(f"{int(kind):05d}", os.path.join(folder, path)) for _, kind, _, path in rows[1:]])
    return Split(*parts)


PRESETS = {
    "cub": Preset(_read_cub, "CUB_200_2011", (5864, 100, 5924, 100)),
    "cars": Preset(_read_cars, "Cars196", (8054, 98, 8131, 98)),
    "products": Preset(_read_products, "Products", (59551, 11318, 60502, 11316)),
}
"""The published sets, with the counts of their splits."""


def preset_split(name: str, root: str) -> tuple[Split, str, str]:
    """The split of a published set, the name of its folder, and how its counts differ from the published ones.

    Raises
    ------
    InputError
        If files of the set are missing, or it is another set that is easily mistaken for it.
    """
    preset = PRESETS[name]
    split = preset.read(root)
    words = ("train images", "train classes", "test images", "test classes")
    differ = [
        f"{found:,} {what} where the published set has {expected:,}"
        for what, found, expected in zip(words, split.counts(), preset.counts, strict=True)
        if found != expected
    ]
    return split, preset.folder, "; ".join(differ)


def split_by_classes(spec: str, share: float, seed: int | None = None) -> Split:
    """Split a dataset of image files: the first classes are for training, or, with a seed, random ones.

    Parameters
    ----------
    share : float
        The share of the classes, above 0 and below 1; or so many, if 1 or more.

    Raises
    ------
    OptionError
        If the dataset has no labels or no image files, or no class would be left for one of the parts.
    """
    source = open_dataset(spec)
    if not isinstance(source, ImageFileSource) or not source.labelled:
        raise OptionError(f"{spec}: expected class folders of image files; unpack the dataset into a folder first")
    names, labels = source.class_names() or {}, source.labels()
    there = np.unique(labels[labels >= 0])
    count = round(len(there) * share) if share < 1 else int(share)
    if not 0 < count < len(there):
        raise OptionError(
            f"{spec}: of its {counted(len(there), 'class', 'classes')}, {count} would be for training; "
            "expected one or more in each part: change --train-classes"
        )
    if seed is not None:
        np.random.RandomState(seed).shuffle(there)
    chosen = set(there[:count].tolist())
    parts: dict[bool, list[tuple[int, Entry]]] = {True: [], False: []}
    for key, label in zip(source.keys(), labels.tolist(), strict=True):
        if label >= 0:
            entry = Entry(_clean(names.get(label, str(label))), os.path.join(os.path.abspath(source.root), key))
            parts[label in chosen].append((label, entry))
    return Split(*([entry for _, entry in sorted(part, key=lambda item: item[0])] for part in parts.values()))


def _clean(name: str) -> str:
    """A name without blanks and slashes, which the readers of the lists cannot take."""
    return re.sub(r"\s+", "_", name.strip()).replace("/", "-").lstrip(".") or "_"


@dataclass(frozen=True)
class _SplitOutput(Output):
    """The folder of a split; `lists` are the lines of each part."""

    root: str
    lists: Mapping[str, list[str]] = field(default_factory=dict)

    def owns(self, name: str) -> bool:
        return name in (*_PARTS, *(f"{part}.txt" for part in _PARTS))

    def final_files(self) -> list[str]:
        return [os.path.join(self.root, f"{part}.txt") for part in _PARTS]

    def count_images(self) -> int:
        return sum(os.path.lexists(os.path.join(self.root, path)) for path in self._paths())

    def missing_images(self, samples: int) -> Iterator[tuple[int, str]]:
        paths = (os.path.join(self.root, path) for path in self._paths())
        return ((number, path) for number, path in enumerate(paths) if not os.path.lexists(path))

    def _paths(self) -> Iterator[str]:
        return (line.rpartition(" ")[0] for lines in self.lists.values() for line in lines)

    def finish(self, shards: int, publish: Publish) -> Mapping[str, Any]:
        for part, lines in self.lists.items():
            path = os.path.join(self.root, f"{part}.txt")
            with output_errors(path), atomic_writer(path, rename=publish) as file:
                file.write("\n".join([*lines, ""]).encode(errors="surrogateescape"))
        return {}


@dataclass(frozen=True)
class _PlaceShard:
    """The task of one shard: places the files, by their paths below the root, as links or copies."""

    root: str
    files: Sequence[tuple[str, str]]
    first: int
    copy: bool

    def __call__(self) -> ShardResult:
        begin, failures, digest, size, entered = time.monotonic(), [], 0, 0, ""
        for number, (target, source) in enumerate(self.files, self.first):
            path = os.path.join(self.root, target)
            if not os.path.isfile(source):
                failures.append({"set": self.root, "key": target, "index": number, "reason": f"{source}: no such file"})
                continue
            with output_errors(path):
                if (folder := os.path.dirname(path)) != entered:
                    os.makedirs(folder, exist_ok=True)
                    remove_stale_temporaries(folder)
                    entered = folder
                if self.copy:
                    with (
                        open(open_regular(source), "rb") as original,
                        atomic_writer(path, sync=False, replace=False) as copy,
                    ):
                        shutil.copyfileobj(original, copy)
                elif not os.path.islink(path) or os.readlink(path) != source:
                    if os.path.lexists(path):
                        raise OutputExistsError(f"{path}: appeared while this job was running; move it away")
                    os.symlink(source, path)
            size += os.path.getsize(source)
            digest = crc32(os.fsencode(f"{target}\n"), digest)
        seconds = time.monotonic() - begin
        return ShardResult(len(self.files) - len(failures), size, f"{digest:08x}", None, tuple(failures), seconds)


@dataclass(frozen=True)
class SplitJob:
    """A planned split; run it with `run`."""

    plan: Plan
    output: Output
    files: Sequence[tuple[str, str]]
    copy: bool

    def run(self, job: JobOptions) -> JobSummary:
        """Place the images, then write the lists; resumes where an earlier run stopped."""

        def make_task(shard: int) -> _PlaceShard:
            first, end = self.plan.bounds(shard)
            return _PlaceShard(self.output.root, self.files[first:end], first, self.copy)

        return run_job(self.plan, make_task, self.output, job)

    def check(self, *, overwrite: bool) -> None:
        """Raise if the output may not be written; for a dry run."""
        check_output(self.plan, self.output, overwrite=overwrite)


def plan_split(split: Split, root: str, folder: str, *, copy: bool, command_line: str) -> SplitJob:
    """Plan to write a split of the images below `root` into a folder; writes nothing.

    Raises
    ------
    FormatError
        If two images would have one name.
    OutputError
        If the folder lies in the input.
    """
    refuse_overlap([root], folder)
    files: dict[str, str] = {}
    lists: dict[str, list[str]] = {}
    for part, entries in zip(_PARTS, split, strict=True):
        numbers: dict[str, int] = {}
        lines = lists[part] = []
        for kind, path in entries:
            target = f"{part}/{kind}/{_clean(os.path.basename(path))}"
            if target in files:
                raise FormatError(f"{path} and {files[target]} would both be {target}; rename one of them")
            files[target] = os.path.abspath(path)
            lines.append(f"{target} {numbers.setdefault(kind, len(numbers))}")
    twice = {entry.kind for entry in split.train} & {entry.kind for entry in split.test}
    if twice:
        raise FormatError(f"{root}: {listed(sorted(twice))}: classes of this name are in both parts")
    digest = crc32("\n".join(f"{target}\0{path}" for target, path in files.items()).encode(errors="surrogateescape"))
    plan = Plan(
        "split-classes",
        {"files": f"{digest:08x}"},
        {"copy": copy},
        len(files),
        max(1, -(-len(files) // _PER_SHARD)),
        {"command_line": command_line, "named_files": []},
    )
    return SplitJob(plan, _SplitOutput(folder, lists), list(files.items()), copy)
