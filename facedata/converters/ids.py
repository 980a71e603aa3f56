"""Keeping or leaving out the people of a list: names of classes or folders, or labels, one a line."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.columns import LARGEST_LABEL, whole_lines
from facedata.converters.class_names import folder_number
from facedata.converters.selection import all_labels
from facedata.dataset import Source
from facedata.errors import EmptyDatasetError, OptionError
from facedata.text import counted, listed

__all__ = ["IdOptions", "IdSet", "read_ids"]

_LONGEST_ID = 1 << 12
_log = logging.getLogger(__name__)


class IdSet(NamedTuple):
    """The ids of a list, each once, in the order of the file."""

    path: str
    ids: dict[str, None]
    blank: int
    repeated: int

    def __str__(self) -> str:
        skipped = f" ({self.blank:,} blank and {self.repeated:,} repeated lines)" if self.blank + self.repeated else ""
        return f"{counted(len(self.ids), 'id')}{skipped}"


def read_ids(path: str) -> IdSet:
    """Read a list of ids: the text before the first tab of each line; blank lines and repeated ids are skipped.

    Raises
    ------
    InputError
        If the file cannot be read.
    EmptyDatasetError
        If it has no ids.
    """
    ids: dict[str, None] = {}
    blank = repeated = 0
    for lines in whole_lines(path, _LONGEST_ID):
        for line in lines.block.decode("utf-8-sig", "surrogateescape").splitlines():
            text = line.partition("\t")[0].strip()
            blank += not text
            repeated += text in ids
            if text:
                ids[text] = None
    if not ids:
        raise EmptyDatasetError(f"{path}: has no ids; expected the name or the label of a person on each line")
    return IdSet(path, ids, blank, repeated)


@dataclass(frozen=True)
class IdOptions:
    """The lists of people to keep, of people to leave out, and of keys of samples to leave out; see `read_ids`."""

    keep: str | None = None
    drop: str | None = None
    drop_keys: str | None = None

    def options(self) -> dict[str, str]:
        """Digests of both lists, for a plan."""
        return {name: _digest(read_ids(path)) for name, path in self._lists()}

    def _lists(self) -> list[tuple[str, str]]:
        lists = (("keep ids", self.keep), ("drop ids", self.drop), ("drop keys", self.drop_keys))
        return [(name, path) for name, path in lists if path is not None]

    def apply(self, sources: Sequence[Source], names: Sequence[str] = ()) -> list[Source]:
        """The samples of each source whose people are wanted.

        An id is the name of a class, or of a folder in the paths of the images. Only if the list has no such name, its
        ids are labels: ``7``, or ``id_7``. With `names` of the sources, ``NAME:ID`` is an id of that source alone.

        Raises
        ------
        EmptyDatasetError
            If none of the ids occurs, or no sample is left.
        OptionError
            If the ids can only be labels, and there are several sources, each with its own.
        """
        chosen = list(sources)
        prefixes = [f"{name}:" for name in names] if len(names) > 1 else []
        for name, path in self._lists():
            wanted = read_ids(path)
            _log.info("%s: %s", path, wanted)
            find = _find_keys if name == "drop keys" else _find
            own = [[each for each in wanted.ids if each.startswith(prefix)] for prefix in prefixes]
            shared = (
                {each: None for each in wanted.ids if not each.startswith(tuple(prefixes))} if prefixes else wanted.ids
            )
            found = [find(source, shared) for source in chosen]
            if shared and find is _find and not any(matched for matched, _ in found):
                if len(chosen) > 1:
                    raise OptionError(
                        f"{path}: {listed(list(shared))}: no name of a class or folder of these datasets, and labels "
                        f"would mean another person in each: write them as {prefixes[0]}LABEL"
                        if prefixes
                        else f"{path}: has no name of a class or folder of these datasets; give one dataset at a time"
                    )
                found = [_find_labels(chosen[0], shared)]
            for number, prefix in enumerate(prefixes):
                ids = {each.removeprefix(prefix): None for each in own[number]}
                matched, mask = find(chosen[number], ids)
                if ids and not matched and find is _find:
                    matched, mask = _find_labels(chosen[number], ids)
                found[number] = found[number][0] | {prefix + each for each in matched}, found[number][1] | mask
            known = set().union(*(matched for matched, _ in found))
            if not known:
                raise EmptyDatasetError(
                    f"{path}: none of its lines, as {listed(list(wanted.ids))}, is "
                    + ("a key of an image" if find is _find_keys else "a class, a folder or a label")
                )
            if unknown := [each for each in wanted.ids if each not in known]:
                _log.warning("%s: %s not found: %s", path, counted(len(unknown), "id"), listed(unknown))
            for number, (_, mask) in enumerate(found):
                source = chosen[number]
                if len(chosen) > 1 and not mask.any() and not (source.class_names() or source.keys_are_paths):
                    place = names[number] if names else next(iter(source.places()), "a dataset")
                    _log.warning("%s: has no names of classes; %s applies to it only as '%s:LABEL'", place, path, place)
                keep = mask if name == "keep ids" else ~mask
                chosen[number] = source if keep.all() else source.take(np.flatnonzero(keep))
        if not any(map(len, chosen)):
            raise EmptyDatasetError(f"{self._lists()[-1][1]}: no image is left")
        return chosen


def _digest(ids: IdSet) -> str:
    joined = "\n".join(sorted(ids.ids)).encode(errors="surrogateescape")
    return hashlib.blake2b(joined, digest_size=16).hexdigest()


def _find(source: Source, ids: dict[str, None]) -> tuple[set[str], NDArray[np.bool_]]:
    """The ids that are names of classes or folders of a source, and which of its samples have one."""
    labels_of: dict[str, list[int]] = {}
    for label, name in (source.class_names() or {}).items():
        if name in ids:
            labels_of.setdefault(name, []).append(label)
    if labels_of:
        labels = np.array([label for found in labels_of.values() for label in found])
        return set(labels_of), np.isin(all_labels(source), labels)
    if not source.keys_are_paths:
        return set(), np.zeros(len(source), bool)
    marks = _Folders(ids)
    folders = (key.rpartition("/")[0] for key in source.keys())  # noqa: SIM118, not a mapping
    mask = np.fromiter(map(marks.__getitem__, folders), bool, len(source))
    return marks.matched, mask


class _Folders(dict[str, bool]):
    """Whether a folder of the paths has one of the ids among its parts; each folder is looked at once."""

    def __init__(self, ids: dict[str, None]) -> None:
        super().__init__()
        self._ids, self.matched = ids, set[str]()

    def __missing__(self, folder: str) -> bool:
        names = [part for part in folder.split("/") if part in self._ids]
        self.matched.update(names)
        self[folder] = bool(names)
        return self[folder]


def _find_keys(source: Source, ids: dict[str, None]) -> tuple[set[str], NDArray[np.bool_]]:
    """The ids that are keys of a source, and which of its samples have one."""
    mask, matched = np.zeros(len(source), bool), set[str]()
    for place, key in enumerate(source.keys()):
        if key in ids:
            mask[place] = True
            matched.add(key)
    return matched, mask


def _find_labels(source: Source, ids: dict[str, None]) -> tuple[set[str], NDArray[np.bool_]]:
    """The ids that are labels of a source, and which of its samples have one."""
    labels = all_labels(source)
    numbers = {text: folder_number(text) for text in ids}
    wanted = np.array([number for number in numbers.values() if 0 <= number <= LARGEST_LABEL], np.int32)
    mask = np.isin(labels, wanted)
    there = set(np.unique(labels[mask]).tolist())
    return {text for text, number in numbers.items() if number in there}, mask
