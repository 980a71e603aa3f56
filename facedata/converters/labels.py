"""Labels that the user gives for the samples of a source, in the place of those that it has."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.columns import LARGEST_LABEL, UNLABELLED, LabelLines, read_labels
from facedata.dataset import Sample, Source, WrappedSource
from facedata.errors import FormatError, SampleError
from facedata.files import file_identity, opened_regular
from facedata.identify import explained
from facedata.images import stem_of_key
from facedata.text import counted, listed, shared_folder

__all__ = ["constant_labels", "labels_from"]

_BLOCK = 1 << 16
_HEAD = 1 << 12
_INTEGER = re.compile(rb"\s*(-?\d+)?\s*")
_NPY = b"\x93NUMPY"
_log = logging.getLogger(__name__)


class _AssignedSource(WrappedSource):
    """A source whose samples have the labels of an array, shape (N,), int32; `facts` identify the file."""

    def __init__(
        self,
        source: Source,
        labels: NDArray[np.int32],
        facts: Mapping[str, Any],
        names: Mapping[int, str] | None = None,
        path: str | None = None,
    ) -> None:
        super().__init__(source)
        self._labels, self._facts, self._names, self._path = labels, facts, names, path

    @property
    def labelled(self) -> bool:  # type: ignore[override]
        return bool((self._labels >= 0).any())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_names": None}  # a worker does not need them

    def sliced(self, part: slice) -> _AssignedSource:
        return _AssignedSource(self._source[part], self._labels[part], self._facts, self._names, self._path)

    def take(self, positions: NDArray[np.int64]) -> _AssignedSource:
        labels = self._labels[positions]
        return _AssignedSource(self._source.take(positions), labels, self._facts, self._names, self._path)

    def read(self) -> Iterator[Sample | SampleError]:
        for item, label in zip(self._source.read(), self._labels.tolist(), strict=True):
            yield item if isinstance(item, SampleError) else item._replace(label=label)

    def identity(self) -> Mapping[str, Any]:
        return {**self._source.identity(), "labels from": self._facts}

    def places(self) -> Mapping[str, bool]:
        return {**self._source.places(), **({} if self._path is None else {self._path: True})}

    def label_blocks(self) -> Iterator[NDArray[np.int64]]:
        for begin in range(0, len(self), _BLOCK):
            yield self._labels[begin : begin + _BLOCK].astype(np.int64)

    def class_names(self) -> Mapping[int, str] | None:
        return self._names

    def declared_classes(self) -> int | None:
        return int(self._labels.max(initial=-1)) + 1


def constant_labels(source: Source, label: int) -> Source:
    """The source with the same label for all samples; -1 for none."""
    return _AssignedSource(source, np.broadcast_to(np.int32(label), len(source)), {"all": label})


def labels_from(source: Source, path: str) -> Source:
    """The source with the labels in a file: by key if the file names the samples, else in their order.

    Parameters
    ----------
    path : str
        A ``.meta``, one integer a line; a ``.npy`` of integers, shape (N,); or a list of any kind that facedata reads.

    Raises
    ------
    FormatError
        If the file is none of these, has not as many labels as the source has samples, or names none of them.
    InputError
        If it cannot be read.
    """
    with explained(path, "labels", "labels"):
        return _labels_from(source, path)


def _labels_from(source: Source, path: str) -> Source:
    names, how = None, "in their order"
    with opened_regular(path) as descriptor:
        head = os.read(descriptor, _HEAD)
    if head.startswith(_NPY):
        labels = _array_labels(path)
    elif all(_INTEGER.fullmatch(line) for line in head.split(b"\n")[:2]):
        labels = np.concatenate([np.empty(0, np.int64), *read_labels(path)])
    else:
        from facedata.converters.list_files import read_list

        folders = [place for place in source.places() if os.path.isdir(place)]
        lines, _ = read_list(path, folders[0] if len(folders) == 1 else None, images=False)
        if not lines.classes:
            raise FormatError(
                f"{path}: has no labels; expected one for each sample, in their order or beside their keys"
            )
        labels, names, how = _by_key(source, lines, path), lines.names, "by key"
    if len(labels) != len(source):
        raise FormatError(
            f"{path}: has {counted(len(labels), 'label')}, but the dataset has {counted(len(source), 'sample')}; "
            "without keys, labels are taken in order. If they belong to rows of features, put the key of each row "
            f"before its label: paste -d ' ' NAME.keys.txt {path} > labels.txt"
        )
    labels = np.asarray(labels, np.int64)  # only now, for an array in a file may be larger than the memory
    if int(labels.max(initial=0)) > LARGEST_LABEL or int(labels.min(initial=0)) < UNLABELLED:
        wrong = next(label for label in labels.tolist() if not UNLABELLED <= label <= LARGEST_LABEL)
        raise FormatError(f"{path}: expected labels from 0 to {LARGEST_LABEL}, or -1 for none, found {wrong}")
    known = np.unique(labels[labels >= 0])
    _log.info("%s: %s for the samples, %s", path, counted(len(known), "different label"), how)
    gaps = 0 if not len(known) else int(known[-1]) + 1 - len(known)
    if gaps:
        shown = counted(gaps, "label")
        _log.warning("%s: %s below %d without a sample; --relabel closes the gaps", path, shown, known[-1])
    return _AssignedSource(source, labels.astype(np.int32), file_identity(path), names, path)


def _array_labels(path: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: expected integers of shape (N,); it cannot be read as such: {error}") from error
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise FormatError(
            f"{path}: is an array of {array.dtype} of shape {array.shape}; expected integers of shape (N,)"
        )
    return array


def _by_key(source: Source, lines: LabelLines, path: str) -> NDArray[np.int64]:
    """The label of each sample, by its key; -1 for those that the file does not name."""
    best = None
    for of_line, of_sample in _ways_to_match(source, lines):
        hashes = _hashes(map(of_line, lines.texts()), len(lines))
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        keys = _hashes(map(of_sample, source.keys()), len(source))
        places = np.minimum(np.searchsorted(hashes, keys), len(hashes) - 1)
        found = hashes[places] == keys
        if best is None or found.sum() > best[0].sum():
            best = found, places, order, hashes
        if found.all():
            break
    assert best is not None
    found, places, order, hashes = best
    if not found.any():
        examples = listed([next(iter(source.keys()), "")]), listed([next(lines.texts())])
        raise FormatError(
            f"{path}: names none of the samples: their keys are like {examples[0]}, the file has {examples[1]}"
        )
    numbers = lines.labels[order]
    differ = (hashes[1:] == hashes[:-1]) & (numbers[1:] != numbers[:-1])
    if differ.any():
        key = next(lines.take(order[1:][differ][:1]).texts())
        raise FormatError(f"{path}: gives the sample {key} two different labels")
    if not found.all():
        missing = [key for key, there in zip(source.keys(), found.tolist(), strict=True) if not there]
        _log.warning("%s: has no label for %s: %s", path, counted(len(missing), "sample"), listed(missing))
    return np.where(found, numbers[places], UNLABELLED).astype(np.int64)


_ChangeKey = Callable[[str], str]


def _ways_to_match(source: Source, lines: LabelLines) -> Iterator[tuple[_ChangeKey, _ChangeKey]]:
    """How the keys in the file, and those of the samples, are changed before they are compared."""
    yield str, str
    yield stem_of_key, stem_of_key
    before = len(shared_folder(lines.texts()))
    yield lambda key: stem_of_key(key[before:]), stem_of_key
    first = len(shared_folder(source.keys()))
    yield stem_of_key, lambda key: stem_of_key(key[first:])


def _hashes(keys: Iterable[str], count: int) -> NDArray[np.int64]:
    return np.fromiter(map(hash, keys), np.int64, count)
