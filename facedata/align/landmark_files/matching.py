"""Which entry of a landmark file belongs to which image: by equal keys, or without some folders or file extensions."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, NamedTuple
from unicodedata import is_normalized
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from facedata.align.faces import Face
from facedata.align.landmark_files.dialects import LineError
from facedata.align.landmark_files.file import EntryStore, ReadEntry, plain_key, text_of_key
from facedata.errors import EmptyDatasetError, FaceError, FormatError
from facedata.images import IMAGE_EXTENSIONS

__all__ = ["LandmarkFile", "MatchedLandmarks", "UnusedEntries", "hash_keys", "in_pixels"]

Integers = NDArray[np.int64]

_EXTENSIONS = frozenset(extension.encode() for extension in IMAGE_EXTENSIONS | {"gif", "pgm", "ppm", "tif", "tiff"})
_FIRST_IMAGES = 1 << 14  # whose keys are compared with those of the file in every form
_KEYS_TOGETHER = 1 << 16
_ENOUGH_ENTRIES = 1000  # that fit in any form
_MOST_FOLDERS = 16
_FEW = 100  # one image in a hundred
_log = logging.getLogger(__name__)


# The forms of keys


def _without_extension(key: bytes) -> bytes:
    """A key without the extension of an image file; any other ending stays."""
    stem, _, extension = key.rpartition(b".")
    return stem if stem and extension.lower() in _EXTENSIONS else key


def _without_folders(key: bytes, count: int) -> bytes:
    """A key without its first `count` folders; if it has fewer, a key that equals no other."""
    parts = key.split(b"/", count)
    return parts[count] if len(parts) > count else b"\0" + key


class KeyForm(NamedTuple):
    """What is removed from plain keys before they are compared.

    Attributes
    ----------
    file_folders, source_folders : int
        Leading folders of the keys in the landmark file, and of the keys of the images.
    stems : bool
        The file extensions of both.
    """

    file_folders: int = 0
    source_folders: int = 0
    stems: bool = False

    def of_file(self, key: bytes) -> bytes:
        """A key of the landmark file in this form."""
        key = _without_folders(key, self.file_folders) if self.file_folders else key
        return _without_extension(key) if self.stems else key

    def of_source(self, key: bytes) -> bytes:
        """The key of an image in this form."""
        key = _without_folders(key, self.source_folders) if self.source_folders else key
        return _without_extension(key) if self.stems else key

    def __str__(self) -> str:
        removed = []
        for count, whose in ((self.file_folders, "its"), (self.source_folders, "the images'")):
            if count:
                removed.append(f"the first {'folder' if count == 1 else f'{count} folders'} of {whose} paths")
        return " and ".join(removed + ["the file extensions"] * self.stems) or "any change"


EXACT = KeyForm()


# The table of keys


def hash_keys(keys: Sequence[bytes]) -> Integers:
    """Hashes of keys, shape (N,); equal only within one process."""
    return np.fromiter(map(hash, keys), np.int64, len(keys))


def _ranges(starts: Integers, counts: Integers) -> Integers:
    """The numbers from each start on, as many as its count, joined."""
    before = np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(starts, counts) + np.arange(len(before)) - before


class _KeyTable:
    """The references of entries by the hashes of their keys: two arrays of int64, 16 bytes an entry.

    Parameters
    ----------
    store : EntryStore
    form : KeyForm
        Of the keys whose hashes are kept.
    """

    def __init__(self, store: EntryStore, form: KeyForm = EXACT) -> None:
        hashes, references = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for keys, block in store.blocks():
            hashes.append(hash_keys(keys if form == EXACT else list(map(form.of_file, keys))))
            references.append(block)
        self.form = form
        self._hashes, self.references = np.concatenate(hashes), np.concatenate(references)
        order = np.argsort(self._hashes, kind="stable")  # entries with one key stay in the order of the file
        self._hashes = self._hashes[order]
        self.references = self.references[order]

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, keys: Sequence[bytes]) -> tuple[Integers, Integers, Integers]:
        """Find the entries with some keys.

        Returns
        -------
        first : ndarray of shape (K,)
            The reference of the first entry of each key; -1 if there is none.
        again, further : ndarrays of shape (M,)
            For each further entry, in order, the number of its key, and its reference.
        """
        hashes = hash_keys(keys)
        order = np.argsort(hashes)  # keys that are looked up one after the other are near each other in memory
        low, high = np.empty((2, len(keys)), np.int64)
        low[order] = np.searchsorted(self._hashes, hashes[order])
        high[order] = np.searchsorted(self._hashes, hashes[order], side="right")
        first = np.full(len(keys), -1, np.int64)
        first[high > low] = self.references[low[high > low]]
        several = np.flatnonzero(high > low + 1)
        counts = high[several] - low[several] - 1
        return first, np.repeat(several, counts), self.references[_ranges(low[several] + 1, counts)]

    def different_keys(self) -> int:
        """How many different keys there are."""
        return int(np.count_nonzero(self._hashes[1:] != self._hashes[:-1])) + min(len(self), 1)

    def neighbours(self) -> Iterator[list[int]]:
        """The references of each two entries with the same hash."""
        places = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        return iter(np.stack([self.references[places], self.references[places + 1]], axis=1).tolist())


# The form in which the keys of a file and of images are equal


def _choose_form(store: EntryStore, exact: _KeyTable, head: Sequence[bytes]) -> KeyForm:
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
            shorter = _without_folders(key, folders)
            known.setdefault((folders, False), set()).add(shorter)
            known.setdefault((folders, True), set()).add(_without_extension(shorter))
    counts: Counter[KeyForm] = Counter()
    hits = 0
    for key in chain.from_iterable(keys for keys, _ in store.blocks()):
        stem = _without_extension(key)
        fitting = []
        for (folders, stems), images in known.items():
            if (stem if stems else key) in images and not (stems and KeyForm(0, folders) in fitting):
                fitting.append(KeyForm(0, folders, stems))
        for folders in range(1, min(key.count(b"/"), _MOST_FOLDERS) + 1):
            if _without_folders(key, folders) in known[0, False]:
                fitting.append(KeyForm(folders))
            elif _without_folders(stem, folders) in known[0, True]:
                fitting.append(KeyForm(folders, 0, True))
        counts.update(fitting)
        hits += bool(fitting)
        if hits == _ENOUGH_ENTRIES:
            break
    return counts


class LandmarkFile:
    """The landmarks of many images, found by the keys of the images; 16 bytes an entry.

    Parameters
    ----------
    store : EntryStore

    Raises
    ------
    EmptyDatasetError
        If there is no entry.
    FormatError
        If an entry does not name an image.
    """

    def __init__(self, store: EntryStore) -> None:
        self._store, self._table = store, _KeyTable(store)
        if not len(self._table):
            raise EmptyDatasetError(f"{store.path}: has no landmarks")

    def __len__(self) -> int:
        """The number of entries, that is of faces: an image may have several."""
        return len(self._table)

    @property
    def format(self) -> str:
        """What such a file is called."""
        return self._store.format

    @property
    def numbered(self) -> bool:
        """Whether its entries identify images by their position in the dataset."""
        return self._store.numbered

    def identity(self) -> dict[str, Any]:
        """What distinguishes this input from another, as JSON values; independent of where it is."""
        return {"format": self.format, **self._store.identity()}

    def match(self, keys: Iterable[str], count: int) -> MatchedLandmarks:
        """Find the landmarks of every image of a dataset.

        Keys match as they are; or, if nearly none does, without some leading folders of the file's paths or of the
        images' paths, or without the extensions of image files. The first 16,384 images decide which of these.

        Parameters
        ----------
        keys : iterable of str
            Of all images, in order; iterated once.
        count : int
            How many images there are.

        Raises
        ------
        FormatError
            If no key matches, or two match the same; or if the file has an entry for each position, and more or fewer
            than there are images.
        """
        if self._table.form != EXACT:
            self._table = _KeyTable(self._store)
        return self._match_positions(keys, count) if self._store.numbered else self._match_keys(keys, count)

    def _match_keys(self, keys: Iterable[str], count: int) -> MatchedLandmarks:
        keys = iter(keys)
        head = list(islice(keys, _FIRST_IMAGES))
        form = _choose_form(self._store, self._table, list(map(plain_key, head)))
        if form != EXACT:
            different = self._table.different_keys()
            del self._table  # two tables at once would take twice the memory
            self._table = _KeyTable(self._store, form)
            if self._table.different_keys() != different:
                self._refuse_merged_entries()
        matched, backslashes = self._look_up(chain(head, keys), count)
        if head and matched.missing == count:
            image, entry = text_of_key(plain_key(head[0])), self._name(int(self._table.references.min()))
            different_form = is_normalized("NFC", image) != is_normalized("NFC", entry)
            accents = "; their accents are encoded differently, as Unicode's NFC and NFD" if different_form else ""
            raise FormatError(
                f"{self._store.path}: has none of the images. The first image is '{image}', the first entry "
                f"'{entry}'; these must be equal, except for leading folders and the file extension{accents}"
            )
        if form.source_folders or form.stems or backslashes:
            used = np.sort(matched.first[matched.first >= 0])
            shared = np.flatnonzero(used[1:] == used[:-1])
            if len(shared):
                how = "after replacing backslashes with slashes" if form == EXACT else f"without {form}"
                raise FormatError(
                    f"{self._store.path}: ambiguous: it matches the images only {how}, and then "
                    f"'{self._name(int(used[shared[0]]))}' matches several images; write the keys of the images into "
                    "the file"
                )
        return matched

    def _refuse_merged_entries(self) -> None:
        """Refuse a file of which different keys are equal in the form of the table."""
        for pair in self._table.neighbours():
            first, second = map(self._name, pair)
            if plain_key(first) != plain_key(second):
                raise FormatError(
                    f"{self._store.path}: ambiguous: it matches the images only without {self._table.form}, and then "
                    f"'{first}' and '{second}' are the same; write the keys of the images into the file, or keep the "
                    "lines of these images only"
                )

    def _name(self, reference: int) -> str:
        return next(self._store.names([reference]))

    def _match_positions(self, keys: Iterable[str], count: int) -> MatchedLandmarks:
        path, keyed = self._store.path, self._store.keyed
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
        form, store = self._table.form, self._store
        first, checks = np.full(count, -1, np.int64), np.zeros(count, np.uint32)
        again, further = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        keys, done, backslashes = iter(keys), 0, False
        while block := list(islice(keys, _KEYS_TOGETHER)):
            backslashes = backslashes or any("\\" in key for key in block)
            comparable = [form.of_source(plain_key(key)) for key in block]
            end = done + len(block)
            first[done:end], more, references = self._table.find(comparable)
            checks[done:end] = np.fromiter(map(crc32, comparable), np.uint32, len(block))
            again.append(more + done)
            further.append(references)
            done = end
        if done != count:
            raise ValueError(f"expected {count} keys, found {done}")
        return MatchedLandmarks(store, form, first, checks, np.concatenate(again), np.concatenate(further)), backslashes

    def unused(self, matched: MatchedLandmarks) -> UnusedEntries:
        """The entries that belong to none of the images.

        Parameters
        ----------
        matched : MatchedLandmarks
            What `match` returned last: whole, not a slice of it.
        """
        used = np.sort(np.concatenate([[-1], matched.first[matched.first >= 0], matched.further]))
        references = np.sort(self._table.references)
        places = np.minimum(np.searchsorted(used, references), len(used) - 1)
        return UnusedEntries(self._store, references[used[places] != references])


class UnusedEntries:
    """Entries that belong to no image: sized, and iterated as their keys, in the order of the file."""

    def __init__(self, store: EntryStore, references: Integers) -> None:
        self._store, self._references = store, references

    def __len__(self) -> int:
        return len(self._references)

    def __iter__(self) -> Iterator[str]:
        return self._store.names(self._references.tolist())


@dataclass(frozen=True)
class MatchedLandmarks:
    """The landmarks of the images of a dataset, in its order; 12 bytes an image, and 16 for each further face.

    Attributes
    ----------
    store : EntryStore
        Reads the entries.
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
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError(f"landmarks are sliced in steps of 1, not {step}")
        stop = max(start, stop)
        low, high = np.searchsorted(self.again, [start, stop]).tolist()
        return self._part(
            self.first[start:stop], self.checks[start:stop], self.again[low:high] - start, self.further[low:high]
        )

    def take(self, positions: Integers) -> MatchedLandmarks:
        """The landmarks of the images at `positions`, in that order."""
        low = np.searchsorted(self.again, positions)
        counts = np.searchsorted(self.again, positions, side="right") - low
        again = np.repeat(np.arange(len(positions)), counts)
        return self._part(self.first[positions], self.checks[positions], again, self.further[_ranges(low, counts)])

    def _part(
        self, first: Integers, checks: NDArray[np.uint32], again: Integers, further: Integers
    ) -> MatchedLandmarks:
        store, references = self.store.part(np.concatenate([first, further]))
        first, further = references[: len(first)], references[len(first) :]
        return replace(self, store=store, first=first, checks=checks, again=again, further=further)

    @property
    def missing(self) -> int:
        """How many of the images have no entry."""
        return int(np.count_nonzero(self.first < 0))

    @property
    def relative(self) -> bool:
        """Whether coordinates are fractions of the image's width and height; see `in_pixels`."""
        return self.store.relative

    def read(self) -> Iterator[list[Face] | FaceError]:
        """Read the faces of each image, in the order of the file; an empty list if it has none.

        If one of the entries of an image is wrong, the error takes the place of its faces.

        Raises
        ------
        InputError
            If the file cannot be read any more.
        FormatError
            If it was changed.
        """
        with self.store.opened() as read_entry:
            further = zip(self.again.tolist(), self.further.tolist(), strict=True)
            image, reference = next(further, (-1, -1))
            for position, (first, check) in enumerate(zip(self.first.tolist(), self.checks.tolist(), strict=True)):
                references = [first] if first >= 0 else []
                while image == position:
                    references.append(reference)
                    image, reference = next(further, (-1, -1))
                yield self._read_faces(read_entry, references, check)

    def _read_faces(self, read_entry: ReadEntry, references: list[int], check: int) -> list[Face] | FaceError:
        faces = []
        for reference in references:
            try:
                key, read_face = read_entry(reference)
                if self.store.keyed and (key is None or crc32(self.form.of_file(plain_key(key))) != check):
                    continue  # another key with the same hash
                face = read_face()
            except LineError as error:
                return FaceError("bad landmarks", f"{self.store.place(reference)}: {error}")
            if face is not None:
                faces.append(face)
        return faces


def in_pixels(face: Face, width: int, height: int) -> Face:
    """Convert a face whose coordinates are fractions of its image's width and height to pixels.

    A fraction f is the pixel coordinate f * width, as CVLFace draws and aligns with it.
    """
    size = np.array([width, height], np.float64)
    box = None if face.box is None else face.box * np.tile(size, 2)
    return face._replace(landmarks=face.landmarks * size, box=box)
