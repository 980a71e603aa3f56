"""Which entry of a landmark file belongs to which image: as the keys are, or without some folders or extensions."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple, Protocol
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from facedata.align.landmark_files.keys import EXACT, KeyForm, plain_key, without_extension, without_folders
from facedata.align.landmark_files.table import EntryTable
from facedata.errors import FormatError

__all__ = ["Entries", "Matches", "build_table", "choose_form", "match_keys"]

_HEAD = 1 << 14
_BLOCK = 1 << 16
_ENOUGH = 1000
_MOST_FOLDERS = 16
_NEARLY_NONE = 100  # one image in a hundred
_log = logging.getLogger(__name__)


class Entries(Protocol):
    """The entries of a landmark file or folder."""

    @property
    def path(self) -> str:
        """Of the file or folder."""
        ...

    def blocks(self) -> Iterator[tuple[Sequence[bytes], NDArray[np.int64]]]:
        """Plain keys and references of all entries, in order, block by block."""
        ...

    def key_at(self, reference: int) -> str:
        """The key of an entry as the file has it."""
        ...


class Matches(NamedTuple):
    """The entries of each image; see `MatchedLandmarks` for the shapes."""

    first: NDArray[np.int64]
    checks: NDArray[np.uint32]
    again: NDArray[np.int64]
    further: NDArray[np.int64]


def build_table(entries: Entries, form: KeyForm = EXACT) -> EntryTable:
    """Read all keys."""
    table = EntryTable()
    for keys, references in entries.blocks():
        table.add(keys if form == EXACT else list(map(form.of_file, keys)), references)
    return table.seal()


def match_keys(table: EntryTable, form: KeyForm, keys: Iterable[bytes], count: int) -> Matches:
    """Look up every image of a source.

    Parameters
    ----------
    table : EntryTable
        Of keys in this form.
    form : KeyForm
    keys : iterable of bytes
        Plain.
    count : int
        How many there are.
    """
    first, checks = np.full(count, -1, np.int64), np.zeros(count, np.uint32)
    again, further = [], []
    keys, done = iter(keys), 0
    while block := list(islice(keys, _BLOCK)):
        if form != EXACT:
            block = list(map(form.of_source, block))
        found = table.find(block)
        part = slice(done, done + len(block))
        first[part] = found.first
        checks[part] = np.fromiter(map(crc32, block), np.uint32, len(block))
        again.append(found.again + done)
        further.append(found.further)
        done += len(block)
    if done != count:
        raise ValueError(f"{count} keys were announced and {done} came")
    return Matches(first, checks, _joined(again), _joined(further))


def _joined(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def choose_form(entries: Entries, exact: EntryTable, keys: Iterable[bytes]) -> tuple[KeyForm, Iterator[bytes]]:
    """In which form the keys of a source fit those of the file.

    As they are, where that fits but a few of the first images; else in the form in which most of them fit.

    Parameters
    ----------
    entries : Entries
    exact : EntryTable
        Of the keys as they are.
    keys : iterable of bytes
        Of the source, plain.

    Returns
    -------
    KeyForm
    iterator of bytes
        All the keys, from the first.

    Raises
    ------
    FormatError
        Where two forms fit as well.
    """
    keys = iter(keys)
    head = list(islice(keys, _HEAD))
    hits = int(np.count_nonzero(exact.find(head).first >= 0))
    fits = hits * _NEARLY_NONE >= min(len(head), len(exact))
    return EXACT if fits and hits else _best_form(entries, head), chain(head, keys)


def _best_form(entries: Entries, head: Sequence[bytes]) -> KeyForm:
    counts = _count_hits(entries, _forms_of_source(head))
    ranked = sorted(counts, key=lambda form: (-counts[form], form))
    if not ranked:
        return EXACT
    best = ranked[0]
    for other in ranked[1:]:
        if other[:2] != best[:2] and 2 * counts[other] > counts[best]:
            raise FormatError(
                f"{entries.path}: its keys fit those of the images without {best}, and as well without {other}; which "
                "is meant cannot be told: write the keys of the images into the file"
            )
    if best[:2] != EXACT[:2]:
        _log.info("%s: matched without %s", entries.path, best)
    return best


def _forms_of_source(head: Sequence[bytes]) -> dict[tuple[int, bool], set[bytes]]:
    """The source's keys without so many folders, and with or without the extension."""
    forms: dict[tuple[int, bool], set[bytes]] = {}
    for key in head:
        for folders in range(min(key.count(b"/"), _MOST_FOLDERS) + 1):
            shorter = without_folders(key, folders)
            forms.setdefault((folders, False), set()).add(shorter)
            forms.setdefault((folders, True), set()).add(without_extension(shorter))
    return forms


def _count_hits(entries: Entries, forms: dict[tuple[int, bool], set[bytes]]) -> Counter[KeyForm]:
    """How many of the file's keys fit in each form; of a thousand that fit in any."""
    counts: Counter[KeyForm] = Counter()
    hits = 0
    for keys, _ in entries.blocks():
        for key in keys:
            fitting = _fitting_forms(key, forms)
            counts.update(fitting)
            hits += bool(fitting)
            if hits == _ENOUGH:
                return counts
    return counts


def _fitting_forms(key: bytes, forms: dict[tuple[int, bool], set[bytes]]) -> list[KeyForm]:
    fitting = []
    stem = without_extension(key)
    for (folders, stems), known in forms.items():
        if (stem if stems else key) in known and not (stems and KeyForm(0, folders) in fitting):
            fitting.append(KeyForm(0, folders, stems))
    for folders in range(1, min(key.count(b"/"), _MOST_FOLDERS) + 1):
        if without_folders(key, folders) in forms.get((0, False), ()):
            fitting.append(KeyForm(folders))
        elif without_folders(stem, folders) in forms.get((0, True), ()):
            fitting.append(KeyForm(folders, 0, True))
    return fitting


def refuse_merged_entries(entries: Entries, form: KeyForm, exact: int, table: EntryTable) -> None:
    """Raise `FormatError` where different keys of the file are the same in this form.

    Parameters
    ----------
    entries : Entries
    form : KeyForm
    exact : int
        How many different keys there are as they are.
    table : EntryTable
        Of the keys in this form.
    """
    if table.keys() == exact:
        return
    for one, other in table.repeated().tolist():
        keys = entries.key_at(one), entries.key_at(other)
        if plain_key(keys[0]) != plain_key(keys[1]):
            raise FormatError(
                f"{entries.path}: fits the images only without {form}, and then '{keys[0]}' and '{keys[1]}' are the "
                "same; write the keys of the images into the file, or take the lines of these images alone"
            )


def refuse_shared_entries(entries: Entries, form: KeyForm, matches: Matches, backslashes: bool) -> None:
    """Raise `FormatError` where several images have the same entry, because their keys are the same in this form.

    Parameters
    ----------
    entries : Entries
    form : KeyForm
    matches : Matches
    backslashes : bool
        Whether backslashes in the images' keys were taken for slashes.
    """
    if not form.source_folders and not form.stems and not backslashes:
        return
    used = matches.first[matches.first >= 0]
    used.sort()
    shared = np.flatnonzero(used[1:] == used[:-1])
    if len(shared):
        how = "with slashes for backslashes" if form == EXACT else f"without {form}"
        raise FormatError(
            f"{entries.path}: fits the images only {how}, and then '{entries.key_at(int(used[shared[0]]))}' "
            "belongs to several images; write the keys of the images into the file"
        )
