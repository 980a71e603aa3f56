"""Keys of images and of landmarks: normalised for comparison, and found by their hashes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.images import IMAGE_EXTENSIONS

__all__ = [
    "EXACT",
    "KeyForm",
    "KeyTable",
    "bytes_of_key",
    "hash_keys",
    "plain_key",
    "plain_keys",
    "ranges",
    "text_of_key",
    "without_extension",
    "without_folders",
]

Integers = NDArray[np.int64]

_EXTENSIONS = frozenset(extension.encode() for extension in IMAGE_EXTENSIONS)


def bytes_of_key(key: str) -> bytes:
    """A key as bytes, whatever characters it has; `text_of_key` is the inverse."""
    try:
        return key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that no file name gives, from JSON's \ud800
        return key.encode("utf-8", "surrogatepass")


def plain_key(key: bytes | str) -> bytes:
    """A key without ``./`` or ``/`` at its start, with single slashes between folders; case is kept."""
    if isinstance(key, str):
        key = bytes_of_key(key)
    if b"\\" in key:
        key = key.replace(b"\\", b"/")
    while b"//" in key:
        key = key.replace(b"//", b"/")
    while key.startswith((b"./", b"/")):
        key = key[key.index(b"/") + 1 :]
    return key


def plain_keys(keys: Sequence[bytes]) -> Sequence[bytes]:
    """Every key as `plain_key` gives it; nearly always all are plain, which is found out quickly."""
    joined = b"\n".join([b"", *keys])
    return list(map(plain_key, keys)) if any(part in joined for part in (b"\\", b"//", b"\n/", b"\n./")) else keys


def text_of_key(key: bytes) -> str:
    """A key as text; bytes that are not UTF-8 become surrogates, as in file names."""
    return key.decode("utf-8", "surrogateescape")


def without_extension(key: bytes) -> bytes:
    """A key without the extension of an image file; see `facedata.images.stem_of_key`, which has fewer extensions."""
    stem, _, extension = key.rpartition(b".")
    return stem if stem and extension.lower() in _EXTENSIONS else key


def without_folders(key: bytes, count: int) -> bytes:
    """A key without its first `count` folders; if it has fewer, a key that equals no other."""
    parts = key.split(b"/", count)
    return parts[count] if len(parts) > count else b"\0" + key


class KeyForm(NamedTuple):
    """What is removed from plain keys before they are compared.

    `file_folders` leading folders of the keys in the landmark file, `source_folders` of the keys of the images, and
    with `stems` the file extensions of both.
    """

    file_folders: int = 0
    source_folders: int = 0
    stems: bool = False

    def of_file(self, key: bytes) -> bytes:
        """A key of the landmark file in this form."""
        return _shortened(key, self.file_folders, self.stems)

    def of_source(self, key: bytes) -> bytes:
        """The key of an image in this form."""
        return _shortened(key, self.source_folders, self.stems)

    def __str__(self) -> str:
        removed = []
        for count, whose in ((self.file_folders, "its"), (self.source_folders, "the images'")):
            if count:
                removed.append(f"the first {'folder' if count == 1 else f'{count} folders'} of {whose} paths")
        return " and ".join(removed + ["the file extensions"] * self.stems) or "any change"


def _shortened(key: bytes, folders: int, stem: bool) -> bytes:
    key = without_folders(key, folders) if folders else key
    return without_extension(key) if stem else key


EXACT = KeyForm()


def hash_keys(keys: Sequence[bytes]) -> Integers:
    """Hashes of keys, shape (N,); equal only within one process."""
    return np.fromiter(map(hash, keys), np.int64, len(keys))


def ranges(starts: Integers, counts: Integers) -> Integers:
    """The numbers from each start on, as many as its count, joined."""
    before = np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(starts, counts) + np.arange(len(before)) - before


class KeyTable:
    """The references of entries by the hashes of their keys: two arrays of int64, 16 bytes an entry.

    Made from the plain keys and references of all entries, block by block; `form` is that of the keys that are hashed.
    """

    def __init__(self, entries: Iterable[tuple[Sequence[bytes], Integers]], form: KeyForm = EXACT) -> None:
        hashes, references = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for keys, block in entries:
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
        """Find the entries with K keys.

        Returns the reference of the first entry of each key, shape (K,), -1 if there is none; and for each of M further
        entries, in order, the number of its key and its reference, each of shape (M,).
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
        return first, np.repeat(several, counts), self.references[ranges(low[several] + 1, counts)]

    def different_keys(self) -> int:
        """How many different keys there are."""
        return int(np.count_nonzero(self._hashes[1:] != self._hashes[:-1])) + min(len(self), 1)

    def neighbours(self) -> Iterator[list[int]]:
        """The references of each two entries with the same hash."""
        places = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        return iter(np.stack([self.references[places], self.references[places + 1]], axis=1).tolist())
