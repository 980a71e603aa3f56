"""Reading the records of a database, by key or by place."""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.converters.lmdb.pages import DamagedPageError, Meta, Node, Pages, node_at, open_regular, read_meta
from facedata.errors import FormatError, input_error
from facedata.images import LARGEST_IMAGE

__all__ = ["DatabaseReader", "Record", "check_database", "leaf_pages"]

_LARGEST_VALUE = LARGEST_IMAGE + (1 << 16)
_KEPT_BRANCHES, _KEPT_LEAVES = 4096, 256
_DEEPEST = 32


def check_database(path: str) -> Meta:
    """The head of a database that is to hold images.

    Raises
    ------
    FormatError
        Where it is damaged, empty or of an unusual kind.
    InputError
        Where it cannot be read.
    """
    meta = read_meta(path)
    if meta.records == 0 or meta.root < 0:
        raise FormatError(f"{path}: the database is empty; expected records with images")
    if meta.flags:
        raise FormatError(
            f"{path}: the database is of an unusual kind (flags {meta.flags:#x}: DUPSORT or another order "
            "of the keys), where one image for each key is expected"
        )
    return meta


def leaf_pages(path: str, meta: Meta) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The leaf pages of the records in the order of the keys; no value is read.

    Returns
    -------
    ndarray of shape (L,), int64
        The number of each page.
    ndarray of shape (L,), int64
        How many records there are up to its end.

    Raises
    ------
    FormatError
        Where the tree of the keys is damaged.
    """
    numbers: list[int] = []
    counts: list[int] = []
    with DatabaseReader(path, meta) as reader:
        try:
            for number, _, places in reader.pages.leaves(meta.root):
                numbers.append(number)
                counts.append(len(places))
        except DamagedPageError:
            raise FormatError(
                f"{path}: a page of the tree of keys is damaged; copy the file again from its origin"
            ) from None
    if sum(counts) != meta.records:
        raise FormatError(
            f"{path}: says that it has {meta.records} records, but has {sum(counts)}; the database is damaged"
        )
    return np.array(numbers, np.int64), np.array(counts, np.int64).cumsum()


class Record(NamedTuple):
    """One record.

    Attributes
    ----------
    key : bytes or None
        None where it cannot be told.
    value : bytes-like or None
    size : int
        Of the value, in bytes.
    problem : str
        Why there is no value.
    """

    key: bytes | None
    value: bytes | memoryview | None
    size: int = 0
    problem: str = ""


class _Branch(NamedTuple):
    """A page above the leaf pages: from `keys[i]` on, keys are below `children[i]`."""

    keys: list[bytes]
    children: list[int]


class _Leaf(NamedTuple):
    page: bytes
    places: tuple[int, ...]
    keys: list[bytes]


class DatabaseReader:
    """An open database.

    Parameters
    ----------
    path : str
        The data file.
    meta : Meta, optional
        Its head, where that was read before.

    Raises
    ------
    InputError
        Where it cannot be read.
    """

    def __init__(self, path: str, meta: Meta | None = None) -> None:
        self._meta = read_meta(path) if meta is None else meta
        try:
            self._descriptor = open_regular(path)
        except OSError as error:
            raise input_error(error, path) from error
        self.pages = Pages(self._descriptor, self._meta.page_size)
        self._branches: dict[int, _Branch] = {}
        self._leaves: dict[int, _Leaf] = {}
        self._last = _Leaf(b"", (), [])

    def __enter__(self) -> DatabaseReader:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def find(self, key: bytes, *, value: bool = True) -> Record:
        """The record with a key; without its value, where only its size is wanted."""
        try:
            leaf = self._last
            if not leaf.keys or not leaf.keys[0] <= key <= leaf.keys[-1]:
                leaf = self._last = self._find_leaf(key)
            place = bisect_left(leaf.keys, key)
            if place == len(leaf.keys) or leaf.keys[place] != key:
                return Record(key, None, problem="the key-label file names it, but the database has no such key")
            return self._record(leaf, place, value=value)
        except DamagedPageError:
            return Record(key, None, problem="the pages that lead to it are damaged")

    def at(self, page: int, place: int, *, value: bool = True) -> Record:
        """The record at `place` of a leaf page, in the same way."""
        try:
            leaf = self._leaf(page)
            if place < len(leaf.places):
                return self._record(leaf, place, value=value)
            raise DamagedPageError
        except DamagedPageError:
            return Record(None, None, problem=f"page {page} is damaged")

    def _record(self, leaf: _Leaf, place: int, *, value: bool) -> Record:
        key = leaf.keys[place]
        try:
            node = node_at(leaf.page, leaf.places[place])
            if not node.is_plain:
                return Record(key, None, problem="is a database inside the database, where an image is expected")
            if node.size > _LARGEST_VALUE:
                return Record(key, None, problem=f"has {node.size:,} bytes, more than any image of a face")
            return Record(key, self._value(leaf.page, node) if value else None, node.size)
        except DamagedPageError:
            return Record(key, None, problem="its value lies outside of the file, or its page is damaged")
        except OSError as error:
            return Record(key, None, problem=f"cannot be read: {error.strerror}")

    def _value(self, page: bytes, node: Node) -> bytes | memoryview:
        if node.is_on_overflow_pages:
            return self.pages.overflow(page, node)
        begin = node.place + node.key_size
        if begin + node.size > len(page):
            raise DamagedPageError
        return page[begin : begin + node.size]

    def _find_leaf(self, key: bytes) -> _Leaf:
        number = self._meta.root
        for _ in range(_DEEPEST):
            if (leaf := self._leaves.get(number)) is not None:
                return leaf
            if (branch := self._branches.get(number)) is None:
                page, places, is_leaf = self.pages.read(number)
                if is_leaf:
                    return self._keep_leaf(number, page, places)
                branch = self._keep_branch(number, page, places)
            number = branch.children[max(bisect_right(branch.keys, key) - 1, 0)]
        raise DamagedPageError

    def _leaf(self, number: int) -> _Leaf:
        leaf = self._leaves.get(number)
        if leaf is None:
            page, places, is_leaf = self.pages.read(number)
            if not is_leaf:
                raise DamagedPageError
            leaf = self._keep_leaf(number, page, places)
        return leaf

    def _keep_leaf(self, number: int, page: bytes, places: tuple[int, ...]) -> _Leaf:
        if len(self._leaves) == _KEPT_LEAVES:
            del self._leaves[next(iter(self._leaves))]
        leaf = self._leaves[number] = _Leaf(page, places, _keys(page, places))
        return leaf

    def _keep_branch(self, number: int, page: bytes, places: tuple[int, ...]) -> _Branch:
        if not places:
            raise DamagedPageError
        if len(self._branches) == _KEPT_BRANCHES:
            self._branches.clear()
        children = [node_at(page, place).child for place in places]
        branch = self._branches[number] = _Branch([b"", *_keys(page, places)[1:]], children)
        return branch


def _keys(page: bytes, places: tuple[int, ...]) -> list[bytes]:
    """The key of each node: behind its head of 8 bytes, whose last two are its size."""
    try:
        return [page[place + 8 : place + 8 + page[place + 6] + (page[place + 7] << 8)] for place in places]
    except IndexError:
        raise DamagedPageError from None
