"""Which entry of a landmark file belongs to which image: by equal keys, or without some folders or file extensions."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any
from unicodedata import is_normalized
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from facedata.align.faces import Face
from facedata.align.landmark_files.file import EntryStore
from facedata.align.landmark_files.keys import (
    EXACT,
    KeyForm,
    KeyTable,
    bytes_of_key,
    plain_key,
    plain_keys,
    ranges,
    text_of_key,
    without_extension,
    without_folders,
)
from facedata.align.landmark_files.lines import LineError
from facedata.errors import EmptyDatasetError, FaceError, FormatError

__all__ = ["LandmarkFile", "MatchedLandmarks", "in_pixels"]

Integers = NDArray[np.int64]

_FIRST_IMAGES = 1 << 14  # whose keys are compared with those of the file in every form
_KEYS_TOGETHER = 1 << 16
_ENOUGH_ENTRIES = 1000  # that fit in any form
_MOST_FOLDERS = 16
_FEW = 100  # one image in a hundred
_log = logging.getLogger(__name__)


# The form in which the keys of a file and of images are equal


def _choose_form(store: EntryStore, exact: KeyTable, head: Sequence[bytes]) -> KeyForm:
    """The form in which most of the first images have entries; `EXACT` if at least some have, unchanged."""
    hits = int(np.count_nonzero(exact.find(head)[0] >= 0))
    if hits and hits * _FEW >= min(len(head), len(exact)):
        return EXACT
    counts = _count_hits(store, head)
    ranked = sorted(counts, key=lambda form: (-counts[form], form))
    if not ranked:
        return EXACT
    best = ranked[0]
    for other in ranked[1:]:
        if other[:2] != best[:2] and 2 * counts[other] > counts[best]:
            raise FormatError(
                f"{store.path}: ambiguous: its keys match those of the images without {best}, and "
                f"also without {other}; write the keys of the images into the file"
            )
    if best[:2] != EXACT[:2]:
        _log.info("%s: matched without %s", store.path, best)
    return best


def _count_hits(store: EntryStore, head: Sequence[bytes]) -> Counter[KeyForm]:
    """How many entries have one of these images in each form, among the first thousand that have one in any."""
    known: dict[tuple[int, bool], set[bytes]] = {(0, False): set(), (0, True): set()}
    for key in head:
        for folders in range(min(key.count(b"/"), _MOST_FOLDERS) + 1):
            shorter = without_folders(key, folders)
            known.setdefault((folders, False), set()).add(shorter)
            known.setdefault((folders, True), set()).add(without_extension(shorter))
    counts: Counter[KeyForm] = Counter()
    hits = 0
    for key in chain.from_iterable(keys for keys, _ in store.blocks()):
        stem = without_extension(key)
        fitting = []
        for (folders, stems), images in known.items():
            if (stem if stems else key) in images and not (stems and KeyForm(0, folders) in fitting):
                fitting.append(KeyForm(0, folders, stems))
        for folders in range(1, min(key.count(b"/"), _MOST_FOLDERS) + 1):
            if without_folders(key, folders) in known[0, False]:
                fitting.append(KeyForm(folders))
            elif without_folders(stem, folders) in known[0, True]:
                fitting.append(KeyForm(folders, 0, True))
        counts.update(fitting)
        hits += bool(fitting)
        if hits == _ENOUGH_ENTRIES:
            break
    return counts


class LandmarkFile:
    """The landmarks of many images, found by the keys of the images; 16 bytes an entry."""

    def __init__(self, store: EntryStore) -> None:
        self._store, self._table = store, KeyTable(store.blocks())
        if not len(self._table):
            raise EmptyDatasetError(f"{store.path}: has no landmarks")

    def __len__(self) -> int:
        """The number of entries, that is of faces: an image may have several."""
        return len(self._table)

    @property
    def format(self) -> str:
        """What such a file is called."""
        return self._store.dialect.name

    @property
    def numbered(self) -> bool:
        """Whether its entries identify images by their position in the dataset."""
        return self._store.dialect.numbered

    def identity(self) -> dict[str, Any]:
        """What distinguishes this input from another, as JSON values; independent of where it is."""
        return {"format": self.format, **self._store.identity()}

    def match(self, keys: Iterable[str], count: int) -> MatchedLandmarks:
        """Find the landmarks of every image of a dataset.

        Keys match as they are; or, if nearly none does, without some leading folders of the file's paths or of the
        images' paths, or without the extensions of image files. The first 16,384 images decide which of these.

        `keys` are those of all `count` images, in order, iterated once. Raises a `FormatError` if no key matches, or
        two match the same; or if the file has an entry for each position, and more or fewer than there are images.
        """
        if self._table.form != EXACT:
            self._table = KeyTable(self._store.blocks())
        return self._match_positions(keys, count) if self.numbered else self._match_keys(keys, count)

    def _match_keys(self, keys: Iterable[str], count: int) -> MatchedLandmarks:
        keys = iter(keys)
        head = list(islice(keys, _FIRST_IMAGES))
        form = _choose_form(self._store, self._table, list(map(plain_key, head)))
        if form != EXACT:
            different = self._table.different_keys()
            del self._table  # two tables at once would take twice the memory
            self._table = KeyTable(self._store.blocks(), form)
            if self._table.different_keys() != different:
                self._refuse_merged_entries(form)
        matched, backslashes = self._look_up(chain(head, keys), count)
        if head and matched.missing == count:
            image, (entry,) = text_of_key(plain_key(head[0])), self._store.names([int(self._table.references.min())])
            accents = ""
            if is_normalized("NFC", image) != is_normalized("NFC", entry):
                accents = "; their accents are encoded differently, as Unicode's NFC and NFD"
            raise FormatError(
                f"{self._store.path}: has none of the images. The first image is '{image}', the first entry "
                f"'{entry}'; these must be equal, except for leading folders and the file extension{accents}"
            )
        if form.source_folders or form.stems or backslashes:
            used = np.sort(matched.first[matched.first >= 0])
            shared = np.flatnonzero(used[1:] == used[:-1])
            if len(shared):
                how = "after replacing backslashes with slashes" if form == EXACT else f"without {form}"
                (entry,) = self._store.names([int(used[shared[0]])])
                raise FormatError(
                    f"{self._store.path}: ambiguous: it matches the images only {how}, and then '{entry}' matches "
                    "several images; write the keys of the images into the file"
                )
        return matched

    def _refuse_merged_entries(self, form: KeyForm) -> None:
        """Refuse a file of which different keys are equal in a form."""
        for pair in self._table.neighbours():
            first, second = self._store.names(pair)
            if plain_key(first) != plain_key(second):
                raise FormatError(
                    f"{self._store.path}: ambiguous: it matches the images only without {form}, and then '{first}' and "
                    f"'{second}' are the same; write the keys of the images into the file, or keep the lines of these "
                    "images only"
                )

    def _match_positions(self, keys: Iterable[str], count: int) -> MatchedLandmarks:
        path, keyed = self._store.path, self._store.dialect.keyed
        if not keyed and len(self) != count:
            raise FormatError(
                f"{path}: has {len(self):,} lines without image names, but the dataset has {count:,} images; does it "
                "belong to another dataset?"
            )
        named = next((key for key in keys if not (key.isascii() and key.isdigit())), None)
        if named is not None:
            advice = (
                "use the record set that it was written for, or write the keys into its first column"
                if keyed
                else "use the record set, or a folder with a landmark file for each image, or a CSV with the keys"
            )
            raise FormatError(
                f"{path}: identifies images by their position in a record set, but this dataset identifies them by "
                f"name, such as '{named}'; {advice}"
            )
        matched, _ = self._look_up(map(str, range(count)), count)
        beyond = len(self) - (count - matched.missing) - len(matched.further)
        if beyond:
            raise FormatError(
                f"{path}: {beyond:,} of its {len(self):,} entries have a position of {count:,} or more, but the "
                f"dataset has {count:,} images; it belongs to another dataset, or to one of which this is a part"
            )
        return matched

    def _look_up(self, keys: Iterable[str], count: int) -> tuple[MatchedLandmarks, bool]:
        """Look up every image, and find out whether a key of an image contains a backslash."""
        form = self._table.form
        first, checks = np.full(count, -1, np.int64), np.zeros(count, np.uint32)
        again, further = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        keys, done, backslashes = iter(keys), 0, False
        while block := list(islice(keys, _KEYS_TOGETHER)):
            backslashes = backslashes or any("\\" in key for key in block)
            comparable: Sequence[bytes] = plain_keys(list(map(bytes_of_key, block)))
            if form != EXACT:
                comparable = list(map(form.of_source, comparable))
            end = done + len(block)
            first[done:end], more, references = self._table.find(comparable)
            checks[done:end] = np.fromiter(map(crc32, comparable), np.uint32, len(block))
            again.append(more + done)
            further.append(references)
            done = end
        entries = first, checks, np.concatenate(again), np.concatenate(further)
        return MatchedLandmarks(self._store, form, *entries), backslashes

    def unused(self, matched: MatchedLandmarks) -> Iterator[str]:
        """The keys of the entries that belong to no image, in the order of the file; `matched` must be whole."""
        used = np.sort(np.concatenate([[-1], matched.first[matched.first >= 0], matched.further]))
        references = np.sort(self._table.references)
        places = np.minimum(np.searchsorted(used, references), len(used) - 1)
        return self._store.names(references[used[places] != references].tolist())


@dataclass(frozen=True)
class MatchedLandmarks:
    """The landmarks of the images of a dataset, in its order; 12 bytes an image, and 16 for each further face.

    Attributes
    ----------
    form : KeyForm
        In which the keys match.
    first : ndarray of shape (N,), int64
        The reference of each image's first entry; -1 if it has none.
    checks : ndarray of shape (N,), uint32
        The checksum of each image's key: two keys may have the same hash.
    again, further : ndarray of shape (M,), int64
        Images with several entries, ascending, and the references of the second, the third, ...
    """

    store: EntryStore
    form: KeyForm
    first: Integers
    checks: NDArray[np.uint32]
    again: Integers
    further: Integers

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, part: slice) -> MatchedLandmarks:
        return self.take(np.arange(*part.indices(len(self))))

    def take(self, positions: Integers) -> MatchedLandmarks:
        """The landmarks of the images at `positions`, in that order."""
        low = np.searchsorted(self.again, positions)
        counts = np.searchsorted(self.again, positions, side="right") - low
        again = np.repeat(np.arange(len(positions)), counts)
        entries = np.concatenate([self.first[positions], self.further[ranges(low, counts)]])
        store, entries = self.store.part(entries)
        first, further = entries[: len(positions)], entries[len(positions) :]
        return replace(self, store=store, first=first, checks=self.checks[positions], again=again, further=further)

    @property
    def missing(self) -> int:
        """How many of the images have no entry."""
        return int(np.count_nonzero(self.first < 0))

    @property
    def relative(self) -> bool:
        """Whether coordinates are fractions of the image's width and height; see `in_pixels`."""
        return self.store.dialect.relative

    def read(self) -> Iterator[list[Face] | FaceError]:
        """Read the faces of each image, in the order of the file; an empty list if it has none.

        If one of the entries of an image is wrong, the error takes the place of its faces. Raises an `InputError` if
        the file cannot be read any more, and a `FormatError` if it was changed.
        """
        keyed = self.store.dialect.keyed
        with self.store.opened() as read_entry:
            further = zip(self.again.tolist(), self.further.tolist(), strict=True)
            image, reference = next(further, (-1, -1))
            for position, (first, check) in enumerate(zip(self.first.tolist(), self.checks.tolist(), strict=True)):
                references = [first] if first >= 0 else []
                while image == position:
                    references.append(reference)
                    image, reference = next(further, (-1, -1))
                faces: list[Face] = []
                try:
                    for place in references:
                        key, read_face = read_entry(place)
                        if keyed and (key is None or crc32(self.form.of_file(plain_key(key))) != check):
                            continue  # another key with the same hash
                        if (face := read_face()) is not None:
                            faces.append(face)
                    yield faces
                except LineError as error:
                    yield FaceError("bad landmarks", f"{self.store.place(place)}: {error}")


def in_pixels(face: Face, width: int, height: int) -> Face:
    """Convert a face whose coordinates are fractions of its image's width and height to pixels.

    A fraction f is the pixel coordinate f * width, as CVLFace draws and aligns with it.
    """
    size = np.array([width, height], np.float64)
    box = None if face.box is None else face.box * np.tile(size, 2)
    return face._replace(landmarks=face.landmarks * size, box=box)
