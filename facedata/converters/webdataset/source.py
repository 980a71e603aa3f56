"""Which tars a name stands for, and `WebDatasetSource`: their samples in order."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import chain, groupby, pairwise, product
from math import prod
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from facedata.converters.class_names import are_splits, class_labels, read_class_names_in, refuse_mixed_splits
from facedata.converters.webdataset.samples import (
    NO_LABEL,
    REPEATED,
    Row,
    Scan,
    TarReader,
    read_key,
    read_sample,
    scan_tars,
)
from facedata.dataset import Sample, Source
from facedata.errors import EmptyDatasetError, FormatError, InputError, InputNotFoundError, SampleError, input_error
from facedata.files import combined_identity, file_identity, opened_regular
from facedata.tar_format import BLOCK
from facedata.text import counted, listed, natural_sort

__all__ = [
    "COMPRESSED",
    "NumberedNames",
    "WebDatasetSource",
    "find_tars",
    "open_source",
    "parse_numbered",
    "recognises",
]

COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")

_NUMBERED = re.compile(r"((?:[^%]|%%)*)%(?:0(\d\d?))?d((?:[^%]|%%)*)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")
_MOST_NAMES = 1 << 20
_BLOCK = 1 << 16
_MOST_OPEN = 64  # tars at once, for reading in any order
_MAGIC = slice(257, 262)

_log = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True)
class NumberedNames:
    """File names with a number, as given by ``%06d`` in a pattern, which `str` returns."""

    before: str
    width: int
    after: str

    def name(self, number: int) -> str:
        """The file name with that number."""
        return f"{self.before}{number:0{self.width}d}{self.after}"

    def number(self, name: str) -> int | None:
        """The number in a file name; None if it is named differently."""
        digits = name[len(self.before) : len(name) - len(self.after)]
        if digits.isascii() and digits.isdigit() and name == self.name(int(digits)):
            return int(digits)
        return None

    def __str__(self) -> str:
        number = f"%0{self.width}d" if self.width else "%d"
        return f"{self.before.replace('%', '%%')}{number}{self.after.replace('%', '%%')}"


def parse_numbered(name: str) -> NumberedNames | None:
    """The file names of a pattern with one number; None if it is not such a pattern."""
    match = _NUMBERED.fullmatch(name)
    if match is None:
        return None
    return NumberedNames(match[1].replace("%%", "%"), int(match[2] or 0), match[3].replace("%%", "%"))


def find_tars(spec: str) -> list[str]:
    """The paths of the tars that `spec` names, in order.

    Parameters
    ----------
    spec : str
        A file; a folder, for each ``*.tar`` in it; a pattern with one number (``glint-%06d.tar``), for all files with
        such names, in the order of the numbers; ranges or lists in braces (``glint-{000000..000123}.tar``), for exactly
        these; or a glob.

    Raises
    ------
    InputError
        If nothing has such a name.
    """
    if os.path.lexists(spec):
        return _in_folder(spec) if os.path.isdir(spec) else [spec]
    if (names := _expand_braces(spec)) is not None:
        for name in names:
            if not os.path.lexists(name):
                raise InputNotFoundError(f"{name}: no such file; {spec} names {len(names)} tars, and all must exist")
        return names
    folder, base = os.path.split(spec)
    if (numbered := parse_numbered(base)) is not None:
        numbers = sorted(number for name in _list(folder) if (number := numbered.number(name)) is not None)
        gap = next((before + 1 for before, number in pairwise(numbers) if number > before + 1), None)
        if gap is not None:
            _log.warning("%s: there is no %s; continuing without it", folder or ".", numbered.name(gap))
        found = [os.path.join(folder, numbered.name(number)) for number in numbers]
    else:
        found = natural_sort(glob.glob(spec)) if glob.has_magic(spec) else []
    if not found:
        raise InputNotFoundError(f"{spec}: no such file or folder")
    return found


def _in_folder(folder: str) -> list[str]:
    names = [name for name in _list(folder) if not name.startswith(".")]
    tars = natural_sort(name for name in names if name.endswith(".tar"))
    if not tars:
        compressed = [name for name in names if name.endswith(COMPRESSED)]
        hint = f"; {compressed[0]} is compressed: decompress it to a plain .tar first" if compressed else ""
        raise EmptyDatasetError(f"{folder}: there is no .tar in this folder{hint}")
    return [os.path.join(folder, name) for name in tars]


def _list(folder: str) -> Sequence[str]:
    try:
        return os.listdir(folder or ".")
    except OSError as error:
        raise input_error(error, folder) from error


def _expand_braces(spec: str) -> list[str] | None:
    """Every name that braces stand for, the last pair changing first; None without ranges or lists."""
    literals, insides = _BRACES.split(spec)[::2], _BRACES.findall(spec)
    choices = [_choices(inside) for inside in insides]
    if not any(choices):
        return None
    if prod(len(choice or "1") for choice in choices) > _MOST_NAMES:
        raise FormatError(f"{spec}: stands for more than {_MOST_NAMES} names")
    options = [choice or [f"{{{inside}}}"] for choice, inside in zip(choices, insides, strict=True)]
    chosen = product(*options)
    return ["".join(chain.from_iterable(zip(literals, (*pieces, ""), strict=True))) for pieces in chosen]


def _choices(inside: str) -> list[str] | None:
    """What a pair of braces stands for; None if it is neither a range nor a list."""
    match = _RANGE.fullmatch(inside)
    if match is None:
        return inside.split(",") if "," in inside else None
    first, last = match.groups()
    step = 1 if int(first) <= int(last) else -1
    numbers = range(int(first), int(last) + step, step)
    if len(numbers) > _MOST_NAMES:
        raise FormatError(f"{{{inside}}}: stands for more than {_MOST_NAMES} names")
    padded = any(text.startswith("0") and len(text) > 1 for text in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return [f"{number:0{width}d}" for number in numbers]


@dataclass(frozen=True)
class WebDatasetSource(Source):
    """The samples of some tars, in order.

    Attributes
    ----------
    paths, starts : tuple of str, ndarray of shape (T,), int64
        The tars that hold these samples, and where each begins if all tars of the dataset followed each other.
    table : ndarray of shape (N,), `facedata.converters.webdataset.samples.ROW`
        The place and label of each sample.
    tars_identity, classes : mapping, int
        Of the whole dataset: number, bytes and digest of its tars; its largest label plus 1.
    folder : str
        That of the first tar, where a file may hold the names of the classes.
    labelled : bool
        Whether a sample of the whole dataset has a label, if only a wrong one.
    names : mapping, optional
        The names of the labels if these are from the folders in the tars; not sent to workers.
    """

    paths: tuple[str, ...]
    starts: NDArray[np.int64]
    table: NDArray[np.void]
    tars_identity: Mapping[str, Any]
    classes: int
    folder: str
    labelled: bool = True
    names: Mapping[int, str] | None = field(default=None, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "names": None}

    def __len__(self) -> int:
        return len(self.table)

    def sliced(self, part: slice) -> WebDatasetSource:
        """The samples of a slice."""
        return self.take(part)

    def take(self, positions: NDArray[np.int64] | slice) -> WebDatasetSource:
        """The samples at `positions`, with only the tars that hold them."""
        table = self.table[positions]
        used = np.unique(self._tars_of(table["place"]))
        return replace(self, table=table, starts=self.starts[used], paths=tuple(self.paths[tar] for tar in used))

    def _tars_of(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        tars: NDArray[np.int64] = np.searchsorted(self.starts, places, side="right") - 1
        return tars

    def read(self) -> Iterator[Sample | SampleError]:
        """Every sample in order, or the error in its place.

        Raises
        ------
        InputError
            If a tar cannot be opened.
        """
        return self._each(read_sample)

    def fetch(self, position: int) -> Sample | SampleError:
        """The sample at `position`, or the error in its place; some tars stay open."""
        place, *numbers = self.table[position].item()
        tar = int(self.starts.searchsorted(place, "right")) - 1
        opened = self._opened(self.paths[tar])
        return read_sample(TarReader(opened.path, opened), Row(tar, place - self.starts.item(tar), *numbers))

    @cached_property
    def _opened(self) -> Callable[[str], TarReader]:
        return lru_cache(_MOST_OPEN)(TarReader)

    def keys(self) -> Iterator[str]:
        """The ``key`` in each sample's ``.json``, or else the path of its image without the extension."""
        return self._each(read_key)

    def _each(self, read: Callable[[TarReader, Row], _T]) -> Iterator[_T]:
        for begin in range(0, len(self), _BLOCK):
            table = self.table[begin : begin + _BLOCK]
            tars = self._tars_of(table["place"])
            offsets = table["place"] - self.starts[tars]
            columns = (tars, offsets, *(table[name] for name in ("size", "label", "extra", "heading")))
            rows = map(Row._make, zip(*(column.tolist() for column in columns), strict=True))
            for tar, in_tar in groupby(rows, attrgetter("tar")):
                with TarReader(self.paths[tar]) as reader:
                    yield from (read(reader, row) for row in in_tar)

    def label_blocks(self) -> Iterator[NDArray[np.int64]]:
        """The labels in blocks; -1 for a sample without a valid one."""
        for begin in range(0, len(self), _BLOCK):
            yield np.maximum(self.table["label"][begin : begin + _BLOCK].astype(np.int64), -1)

    def sizes(self) -> NDArray[np.int32]:
        """The bytes of each image."""
        sizes: NDArray[np.int32] = self.table["size"]
        return sizes

    def identity(self) -> Mapping[str, Any]:
        """The number of tars, their bytes, and a digest of samples of each."""
        return {"tars": dict(self.tars_identity)}

    def locate(self, position: int) -> tuple[str, int | None]:
        """The tar, and the offset of the image in it."""
        place = self.table["place"][position]
        tar = int(self._tars_of(place))
        return self.paths[tar], int(place - self.starts[tar])

    def places(self) -> Mapping[str, bool]:
        """The tars."""
        return dict.fromkeys(self.paths, True)

    def class_names(self) -> Mapping[int, str] | None:
        """The names of the folders in the tars, or those in a ``classes.txt`` that facedata wrote beside the first."""
        return read_class_names_in(self.folder) if self.names is None else self.names

    def declared_classes(self) -> int:
        """The largest label plus 1: only the samples say how many classes there are."""
        return self.classes


def open_source(spec: str, *, labels: str | None = None) -> WebDatasetSource:
    """Open the tars that `spec` names, see `find_tars`, and walk through them once.

    Parameters
    ----------
    labels : str, optional
        ``"folders"``: the folders in the tars are the classes, whatever else says so; ``"none"``: no sample has a
        label. Without it, the folders are the classes if no sample has a label of its own.

    Raises
    ------
    InputError
        If there are none, or one cannot be read.
    EmptyDatasetError
        If there is no image in them.
    FormatError
        If one is corrupt, or holds something other than regular files and folders, or labels apart from their images;
        or if the tars or the folders in them are parts of a dataset, as train and test.
    """
    paths = find_tars(spec)
    if os.path.isdir(spec):
        refuse_mixed_splits("webdataset", spec, paths)
    scan = scan_tars(paths, labels=labels is None)
    table, names = scan.table, None
    unlabelled = int(np.count_nonzero(table["label"] == NO_LABEL))
    if labels == "none":
        _set_labels(table, NO_LABEL)
    elif labels == "folders" or unlabelled == len(table):
        names = _label_by_folders(scan, paths[0], force=labels == "folders")
    identities = [file_identity(path) for path in paths]
    identity = {
        "number": len(paths),
        "size": sum(identity["size"] for identity in identities),
        "digest": combined_identity((str(identity["size"]), identity["digest"]) for identity in identities),
    }
    classes = int(table["label"].max(initial=-1)) + 1
    labelled = bool((table["label"] != NO_LABEL).any())
    folder = os.path.dirname(paths[0])
    source = WebDatasetSource(tuple(paths), scan.starts, table, identity, classes, folder, labelled, names)
    if labels is None and 0 < unlabelled < len(table):
        first = int(np.argmax(table["label"] == NO_LABEL))
        _log.warning(
            "%s: %s of %s have no label, neither in a .cls nor in a .json, and stay unlabelled; the first is %s",
            source.locate(first)[0],
            f"{unlabelled:,}",
            counted(len(table), "sample"),
            next(source[first : first + 1].keys()),
        )
    return source


def _set_labels(table: NDArray[np.void], labels: NDArray[np.int32] | int) -> None:
    """Give the samples these labels, except those that have a member twice."""
    table["label"] = np.where(table["label"] == REPEATED, REPEATED, labels)


def _label_by_folders(scan: Scan, path: str, *, force: bool) -> Mapping[int, str] | None:
    """Write the labels of the folders into the table, and return their names; None if there are no class folders.

    The class of an image is its first folder below those that all images are in. Unless by `force`, splits are refused.
    """
    parts = [[part for part in folder.split("/") if part not in ("", ".")] for folder in scan.folders]
    levels = enumerate(zip(*parts, strict=False))
    shared = next((depth for depth, names in levels if len(set(names)) > 1), min(map(len, parts)))
    shared -= force and len(parts) == 1 and shared > 0
    class_of = ["".join(folder[shared : shared + 1]) for folder in parts]
    classes = natural_sort({name for name in class_of if name})
    count = counted(len(scan.table), "image")
    if not classes:
        _log.info("%s: %s, without labels and class folders: unlabelled", path, count)
        return None
    if not force and are_splits(classes):
        raise FormatError(
            f"{path}: the folders {listed(classes, 9)} in it are not classes, but parts of a dataset; unpack it "
            "(facedata extract) and name the parts that you want, or take each as a class with --labels folders"
        )
    numbers = dict(zip(classes, class_labels(classes, path).tolist(), strict=True))
    labels = np.array([numbers.get(name, NO_LABEL) for name in class_of], np.int32)[scan.folder_of]
    _set_labels(scan.table, labels)
    _log.info("%s: %s, labels from %s: %s", path, count, counted(len(classes), "folder"), listed(classes))
    if loose := int(np.count_nonzero(labels == NO_LABEL)):
        _log.warning("%s: %s outside of the class folders: unlabelled", path, counted(loose, "image"))
    return {label: name for name, label in numbers.items()}


def recognises(spec: str) -> bool:
    """Whether `spec` names tars, or a folder with a tar in it."""
    if spec.endswith((".tar", *COMPRESSED)) and os.path.isfile(spec):
        return True  # opening it reports what is wrong
    try:
        with opened_regular(find_tars(spec)[0]) as descriptor:
            return os.pread(descriptor, BLOCK, 0)[_MAGIC] == b"ustar"
    except InputError:
        return False
