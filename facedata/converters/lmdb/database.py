"""Reading LMDB files page by page, as bytes: nothing is mapped, so a corrupt file cannot end the process.

LMDB itself trusts its file: if the file is truncated or a size in it is wrong, the process that maps it dies from a
signal. Names and offsets here are those of LMDB 0.9. Pages 0 and 1 are meta pages, written in turn; the one with the
later transaction counts.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from facedata.errors import FormatError, InputError, is_transient
from facedata.files import open_regular, opened_regular, read_exactly
from facedata.images import LARGEST_IMAGE

__all__ = ["DatabaseReader", "Meta", "Record", "begins_like_lmdb", "leaf_pages", "read_meta"]

_PAGE_HEADER = 16
_MAGIC = 0xBEEFC0DE
_FORMAT = 1
_HEADER = struct.Struct("<Q2xHH")  # number, flags, lower
_META = struct.Struct("<IIQQIHHQQQQQIHHQQQQQQQ")
_NEWER_HEADER = 24  # of a page of LMDB 1.0
_NEWER_MARK = struct.Struct("<II")
_NODE = struct.Struct("<HHHH")
_NUMBER = struct.Struct("<Q")
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE = 0x01, 0x02, 0x04, 0x08
_ON_OVERFLOW_PAGES, _NOT_PLAIN = 0x01, 0x06
_NONE = (1 << 64) - 1
_SMALLEST_PAGE, _LARGEST_PAGE = 1 << 8, 1 << 16
_MOST_UNWRITTEN = 1 << 14
_DEEPEST = 32  # as LMDB's own cursors
_LARGEST_VALUE = LARGEST_IMAGE + (1 << 16)
_CACHED_BRANCHES, _CACHED_LEAVES = 1 << 25, 1 << 24  # bytes
_SMALL = 1 << 16  # bytes that are quicker copied than looked at through a memoryview
_NODE_BYTES = 100  # of memory for a node whose key was read


class _CorruptPageError(Exception):
    """A page is corrupt; the caller knows the file and the record."""


class Meta(NamedTuple):
    """The meta page of the latest transaction.

    Attributes
    ----------
    page_size, map_size : int
        In bytes; the file may grow to the second before the map has to be enlarged.
    last_page, transaction, records : int
        The number of the last page in use, of the transaction (0 if there was none yet), and of the records.
    root, free_root, flags : int
        The root pages of the records and of the list of free pages (-1 if there is none); the flags of the first.
    used_pages : int
        Pages of the records and the two meta pages; the others are free, or list the free ones.
    """

    page_size: int
    map_size: int
    last_page: int
    transaction: int
    records: int
    root: int
    free_root: int
    flags: int
    used_pages: int


class Record(NamedTuple):
    """A record; its key or value is None if it cannot be read for the reason `problem`, which may be `transient`."""

    key: bytes | None
    value: bytes | memoryview | None
    size: int = 0
    problem: str = ""
    transient: bool = False


class _Node(NamedTuple):
    """An entry of a page: where its key begins and ends; `number` is the size of its value, or the page below."""

    begin: int
    end: int
    flags: int
    number: int


class _Page(NamedTuple):
    """A page of a tree, where its nodes begin, and if they were read, their keys and the pages below a branch page."""

    data: bytes
    nodes: tuple[int, ...]
    is_leaf: bool
    keys: Sequence[bytes] = ()
    below: Sequence[int] = ()

    def key_at(self, node: int) -> bytes:
        """The key of a node, which follows its head of 8 bytes, of which the last two are the key's size."""
        data = self.data
        if node + _NODE.size > len(data):
            raise _CorruptPageError
        return data[node + 8 : node + 8 + data[node + 6] + (data[node + 7] << 8)]

    @property
    def memory(self) -> int:
        """The bytes of memory that it takes if it is parsed."""
        return len(self.data) + _NODE_BYTES * len(self.nodes)

    def parsed(self) -> _Page:
        """The page with all keys."""
        below = [] if self.is_leaf else [_node_at(self.data, node, branch=True).number for node in self.nodes]
        keys, room = list[bytes](), len(self.data)
        for key in map(self.key_at, self.nodes):
            keys.append(key)
            if (room := room - len(key)) < 0:  # nodes that overlap, to take memory
                raise _CorruptPageError
        return self._replace(keys=keys, below=below)


def begins_like_lmdb(path: str) -> bool:
    """Whether `path` is a regular file with the mark of LMDB."""
    try:
        with opened_regular(path) as descriptor:
            mark = struct.pack("<I", _MAGIC)
            return mark in (os.pread(descriptor, 4, _PAGE_HEADER), os.pread(descriptor, 4, _NEWER_HEADER))
    except InputError:
        return False


def read_meta(path: str) -> Meta:
    """Read the meta page of the latest transaction and check it against itself and the length of the file.

    Raises
    ------
    FormatError
        If the file is not a database of LMDB 0.9, or is shorter than its meta page says.
    InputError
        If it cannot be read.
    """
    with opened_regular(path) as descriptor:
        first = _read_meta_page(descriptor, 0, path)
        second = _read_meta_page(descriptor, first.page_size, path)
        meta = second if second.transaction > first.transaction else first
        for number in (meta.free_root, meta.root):  # not of the other: LMDB spoils it if a commit fails
            if number != -1 and not 2 <= number <= meta.last_page:
                raise FormatError(
                    f"{path}: its root is page {number}, but page {meta.last_page} is the last; the file is corrupt"
                )
        pages = _Pages(descriptor, meta.page_size)
        missing = meta.last_page + 1 - pages.count
        if missing > 0:  # LMDB need not write free pages at the end, so a file may lack those, and no others
            free = set(pages.free_pages(meta.free_root)) if missing <= _MOST_UNWRITTEN else set()
            if not free.issuperset(range(pages.count, meta.last_page + 1)):
                raise FormatError(
                    f"{path}: has {os.fstat(descriptor).st_size:,} bytes, but its meta page says "
                    f"{(meta.last_page + 1) * meta.page_size:,}: the file is truncated; copy it again from its origin"
                )
    return meta


def _read_meta_page(descriptor: int, offset: int, path: str) -> Meta:
    data = read_exactly(descriptor, _PAGE_HEADER + _META.size, offset)
    place = f"{path}: byte {offset}"
    if len(data) < _PAGE_HEADER + _META.size:
        raise FormatError(f"{place}: the file ends inside the head of an LMDB database; copy it again from its origin")
    magic, version, _, map_size, page_size, *trees, last_page, transaction = _META.unpack_from(data, _PAGE_HEADER)
    if (magic, version) != (_MAGIC, _FORMAT) and _NEWER_MARK.unpack_from(data, _NEWER_HEADER)[0] == _MAGIC:
        version = _NEWER_MARK.unpack_from(data, _NEWER_HEADER)[1]
    elif magic != _MAGIC or not _HEADER.unpack_from(data)[1] & _META_PAGE:
        raise FormatError(f"{place}: not an LMDB database (its mark is missing)")
    if version != _FORMAT:
        raise FormatError(
            f"{place}: an LMDB database of data format {version}; facedata reads {_FORMAT}, that of LMDB 0.9, as the "
            "loaders of FFC and LFS do"
        )
    if page_size & (page_size - 1) or not _SMALLEST_PAGE <= page_size <= _LARGEST_PAGE:
        raise FormatError(f"{place}: its page size is {page_size} bytes; the file is corrupt")
    free_root, flags, records, root = trees[6], trees[8], trees[13], trees[14]
    root, free_root = (-1 if number == _NONE else number for number in (root, free_root))
    used_pages = 2 + sum(trees[10:13])
    return Meta(page_size, map_size, last_page, transaction, records, root, free_root, flags, used_pages)


def leaf_pages(path: str, meta: Meta) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the leaf pages of the records, in the order of the keys; no value is read.

    Returns
    -------
    numbers : ndarray of shape (L,), int64
        The number of each page.
    ends : ndarray of shape (L,), int64
        The number of records up to the end of each page.

    Raises
    ------
    FormatError
        If the tree of the keys is corrupt.
    """
    numbers, counts = [], []
    with opened_regular(path) as descriptor:
        try:
            for number, page in _Pages(descriptor, meta.page_size).leaves(meta.root):
                numbers.append(number)
                counts.append(len(page.nodes))
        except _CorruptPageError:
            raise FormatError(
                f"{path}: a page of the tree of keys is corrupt; copy the file again from its origin"
            ) from None
    if sum(counts) != meta.records:
        raise FormatError(f"{path}: declares {meta.records} records, but has {sum(counts)}; the database is corrupt")
    return np.array(numbers, np.int64), np.array(counts, np.int64).cumsum()


class DatabaseReader:
    """Reads the records of the data file `path`, by key or by page."""

    def __init__(self, path: str) -> None:
        self._root = read_meta(path)
        self._descriptor = open_regular(path)
        self._close = finalize(self, os.close, self._descriptor)
        self._pages = _Pages(self._descriptor, self._root.page_size)
        self._branches, self._leaves = _Cache(_CACHED_BRANCHES), _Cache(_CACHED_LEAVES)
        self._last = _Page(b"", (), is_leaf=True)

    def __enter__(self) -> DatabaseReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def find(self, key: bytes, *, value: bool = True) -> Record:
        """The record with a key; without its value if only the size is wanted."""
        try:
            leaf = self._last
            if not leaf.keys or not leaf.keys[0] <= key <= leaf.keys[-1]:
                leaf = self._last = self._find_leaf(key)
            place = bisect_left(leaf.keys, key) if leaf.keys else bisect_left(leaf.nodes, key, key=leaf.key_at)
            if place == len(leaf.nodes) or (leaf.keys[place] if leaf.keys else leaf.key_at(leaf.nodes[place])) != key:
                return Record(key, None, problem="the key-label file names it, but the database has no such key")
            return self._record(leaf, key, leaf.nodes[place], value=value)
        except _CorruptPageError:
            return Record(key, None, problem="the pages that lead to it are corrupt")
        except OSError as error:
            return _unread(key, error)

    def at(self, number: int, place: int, *, value: bool = True) -> Record:
        """The record at `place` of a leaf page; as `find`."""
        try:
            leaf = self._leaves.get(number) or self._keep(number, self._pages.read(number))
            if leaf.is_leaf and place < len(leaf.nodes):
                node = leaf.nodes[place]
                return self._record(leaf, leaf.key_at(node), node, value=value)
        except _CorruptPageError:
            pass
        except OSError as error:
            return _unread(None, error)
        return Record(None, None, problem=f"page {number} is corrupt")

    def _record(self, leaf: _Page, key: bytes, place: int, *, value: bool) -> Record:
        try:
            node = _node_at(leaf.data, place)
            if node.flags & _NOT_PLAIN:
                return Record(key, None, problem="is a database inside the database; expected an image")
            if node.number > _LARGEST_VALUE:
                return Record(key, None, problem=f"has {node.number:,} bytes, more than any image of a face")
            return Record(key, self._pages.value(leaf.data, node) if value else None, node.number)
        except _CorruptPageError:
            return Record(key, None, problem="its value lies outside of the file, or its page is corrupt")
        except OSError as error:
            return _unread(key, error)

    def _find_leaf(self, key: bytes) -> _Page:
        number = self._root.root
        for _ in range(_DEEPEST):
            page = self._branches.get(number) or self._leaves.get(number)
            if page is None:
                page = self._keep(number, self._pages.read(number))
            elif not page.keys:  # the first visit needs few of the keys, and may be the only one
                page = self._keep(number, page.parsed())
            if page.is_leaf:
                return page
            # the first key of a branch page stands for everything before the second
            if page.keys:
                number = page.below[max(bisect_right(page.keys, key, 1) - 1, 0)]
            elif page.nodes:
                place = max(bisect_right(page.nodes, key, 1, key=page.key_at) - 1, 0)
                number = _node_at(page.data, page.nodes[place], branch=True).number
            else:
                break
        raise _CorruptPageError

    def _keep(self, number: int, page: _Page) -> _Page:
        (self._leaves if page.is_leaf else self._branches).keep(number, page)
        return page


class _Cache(dict[int, _Page]):
    """Pages by their numbers: those that were read last, in `room` bytes."""

    def __init__(self, room: int) -> None:
        self._room = room

    def keep(self, number: int, page: _Page) -> None:
        """Add a page, or put a parsed page in the place of the same one."""
        if number not in self:
            self._room -= page.memory
            while self._room < 0 and self:
                self._room += self.pop(next(iter(self))).memory
        self[number] = page


class _Pages:
    """The pages of an open file, each checked when it is read."""

    def __init__(self, descriptor: int, page_size: int) -> None:
        self._descriptor, self._size = descriptor, page_size
        self.count = os.fstat(descriptor).st_size // page_size

    def read(self, number: int) -> _Page:
        """Read a page of a tree, without the keys of its nodes."""
        if not 2 <= number < self.count:
            raise _CorruptPageError
        data = read_exactly(self._descriptor, self._size, number * self._size)
        if len(data) < self._size:
            raise _CorruptPageError
        own_number, flags, lower = _HEADER.unpack_from(data)
        count = (lower - _PAGE_HEADER) // 2
        if own_number != number or flags not in (_LEAF, _BRANCH) or not 0 <= count <= self._size // 2 - _PAGE_HEADER:
            raise _CorruptPageError
        nodes = struct.unpack_from(f"<{count}H", data, _PAGE_HEADER)
        return _Page(data, nodes, flags == _LEAF)

    def leaves(self, root: int) -> Iterator[tuple[int, _Page]]:
        """The leaf pages of a tree, with their numbers, in the order of the keys."""
        waiting = [(root, 0)] if root >= 0 else []
        visited = 0
        while waiting:
            number, depth = waiting.pop()
            visited += 1
            if depth > _DEEPEST or visited > self.count:
                raise _CorruptPageError
            page = self.read(number)
            if page.is_leaf:
                yield number, page
            else:
                waiting += [(_node_at(page.data, node, branch=True).number, depth + 1) for node in reversed(page.nodes)]

    def value(self, data: bytes, node: _Node) -> bytes | memoryview:
        """The value of a node: in its page, or on overflow pages of its own."""
        begin, size = node.end, node.number
        if not node.flags & _ON_OVERFLOW_PAGES:
            if begin + size > len(data):
                raise _CorruptPageError
            return data[begin : begin + size]
        if begin + _NUMBER.size > len(data):
            raise _CorruptPageError
        (number,) = _NUMBER.unpack_from(data, begin)
        if not 2 <= number < self.count or size > (self.count - number) * self._size - _PAGE_HEADER:
            raise _CorruptPageError
        pages = read_exactly(self._descriptor, _PAGE_HEADER + size, number * self._size)
        if len(pages) < _PAGE_HEADER + size or _HEADER.unpack_from(pages)[:2] != (number, _OVERFLOW):
            raise _CorruptPageError
        return pages[_PAGE_HEADER:] if size < _SMALL else memoryview(pages)[_PAGE_HEADER:]

    def free_pages(self, root: int) -> Iterator[int]:
        """The numbers of the free pages, from their own tree, up to the first corrupt page."""
        try:
            for _, page in self.leaves(root):
                for place in page.nodes:
                    node = _node_at(page.data, place)
                    # a list may be cut off at the end of its page
                    outside = node.flags & _ON_OVERFLOW_PAGES
                    most = _MOST_UNWRITTEN * _NUMBER.size if outside else len(page.data) - node.end
                    numbers = self.value(page.data, node._replace(number=min(node.number, most)))
                    if len(numbers) >= _NUMBER.size:  # their count stands first
                        count = min(_NUMBER.unpack_from(numbers)[0], len(numbers) // _NUMBER.size - 1)
                        yield from struct.unpack_from(f"<{count}Q", numbers, _NUMBER.size)
        except _CorruptPageError:
            return


def _unread(key: bytes | None, error: OSError) -> Record:
    return Record(key, None, problem=f"cannot be read: {error.strerror}", transient=is_transient(error))


def _node_at(data: bytes, place: int, *, branch: bool = False) -> _Node:
    if place + _NODE.size > len(data):
        raise _CorruptPageError
    low, high, flags, key_size = _NODE.unpack_from(data, place)
    begin = place + _NODE.size
    if begin + key_size > len(data):
        raise _CorruptPageError
    # in a branch page, which has no flags, the number is 16 bits longer
    return _Node(begin, begin + key_size, 0 if branch else flags, low | high << 16 | (flags << 32 if branch else 0))
