"""LMDB files page by page, as bytes: nothing is mapped, so that a damaged file cannot end the process.

LMDB trusts its file: one that was cut, or in which a size is wrong, ends the process that maps it by a signal. Names
and offsets here are those of LMDB 0.9. Pages 0 and 1 are meta pages, written in turn; the one of the later transaction
counts.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple

from facedata.errors import FormatError, input_error

__all__ = ["DamagedPageError", "Meta", "Node", "Pages", "begins_like_lmdb", "read_meta"]

PAGE_HEADER = 16
_MAGIC = 0xBEEFC0DE
_FORMAT = 1
_HEADER = struct.Struct("<QHHHH")  # number, pad, flags, lower, upper
_META = struct.Struct("<IIQQIHHQQQQQIHHQQQQQQQ")
_NEWER_HEADER = 24  # of a page of LMDB 1.0
_NEWER_MARK = struct.Struct("<II")
_NODE = struct.Struct("<HHHH")
_NUMBER = struct.Struct("<Q")
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE = 0x01, 0x02, 0x04, 0x08
_NONE = (1 << 64) - 1
_SMALLEST_PAGE, _LARGEST_PAGE = 1 << 8, 1 << 16
_MOST_UNWRITTEN = 1 << 14
_DEEPEST = 32  # as LMDB's own cursors


class DamagedPageError(Exception):
    """A page is not what it has to be; whoever reads it knows the file and the record."""


class Meta(NamedTuple):
    """What the meta page of the latest transaction says.

    Attributes
    ----------
    page_size : int
        Bytes.
    map_size : int
        Bytes that the file may grow to before the map has to be made larger.
    last_page : int
        The number of the last page in use.
    transaction : int
        The number of the transaction; 0 where there was none yet.
    records : int
    root, free_root : int
        The root pages of the records and of the list of free pages; -1 where there are none.
    flags : int
        Of the tree of the records.
    used_pages : int
        Those of the records and the two meta pages; the others are free, or tell which are.
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


class Node(NamedTuple):
    """One entry of a page.

    Attributes
    ----------
    low, high, flags : int
        Of a leaf page: the lower and upper 16 bits of the size of the value in bytes, and what kind it is. Of a branch
        page: the number of the page below, 16 bits each.
    key_size : int
    place : int
        Where the key begins in the page.
    """

    low: int
    high: int
    flags: int
    key_size: int
    place: int

    @property
    def size(self) -> int:
        """Bytes of the value."""
        return self.low | self.high << 16

    @property
    def child(self) -> int:
        """The number of the page below."""
        return self.low | self.high << 16 | self.flags << 32

    @property
    def is_on_overflow_pages(self) -> bool:
        """Whether the value lies on pages of its own, and only the number of the first one here."""
        return bool(self.flags & 0x01)

    @property
    def is_plain(self) -> bool:
        """Whether it is a value, and not a database inside the database or several values."""
        return not self.flags & 0x06


def begins_like_lmdb(path: str) -> bool:
    """Whether `path` is a regular file with the mark of LMDB."""
    try:
        descriptor = open_regular(path)
    except (OSError, FormatError):
        return False
    try:
        mark = struct.pack("<I", _MAGIC)
        return mark in (os.pread(descriptor, 4, PAGE_HEADER), os.pread(descriptor, 4, _NEWER_HEADER))
    except OSError:
        return False
    finally:
        os.close(descriptor)


def open_regular(path: str) -> int:
    """Open for reading; a pipe would make us wait for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FormatError(f"{path}: is not a regular file")
    return descriptor


def read_meta(path: str) -> Meta:
    """The meta page of the latest transaction, checked against itself and the length of the file.

    Raises
    ------
    FormatError
        Where the file is not a database of LMDB 0.9, or is shorter than it says.
    InputError
        Where it cannot be read.
    """
    try:
        descriptor = open_regular(path)
        try:
            first = _read_meta_page(descriptor, 0, path)
            second = _read_meta_page(descriptor, first.page_size, path)
            meta = second if second.transaction > first.transaction else first
            _check_length(descriptor, path, meta)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise input_error(error, path) from error
    return meta


def _read_meta_page(descriptor: int, offset: int, path: str) -> Meta:
    data = os.pread(descriptor, PAGE_HEADER + _META.size, offset)
    place = f"{path}: byte {offset}"
    if len(data) < PAGE_HEADER + _META.size:
        raise FormatError(f"{place}: the file ends inside the head of an LMDB database; copy it again from its origin")
    magic, version, _, map_size, page_size, *trees, last_page, transaction = _META.unpack_from(data, PAGE_HEADER)
    if (magic, version) != (_MAGIC, _FORMAT) and _NEWER_MARK.unpack_from(data, _NEWER_HEADER)[0] == _MAGIC:
        version = _NEWER_MARK.unpack_from(data, _NEWER_HEADER)[1]
    elif magic != _MAGIC or not _HEADER.unpack_from(data)[2] & _META_PAGE:
        raise FormatError(f"{place}: not an LMDB database (its mark is missing)")
    if version != _FORMAT:
        raise FormatError(
            f"{place}: an LMDB database of data format {version}; facedata reads {_FORMAT}, that of LMDB 0.9, as the "
            "loaders of FFC and LFS do"
        )
    if page_size & (page_size - 1) or not _SMALLEST_PAGE <= page_size <= _LARGEST_PAGE:
        raise FormatError(f"{place}: a page size of {page_size} bytes; the file is damaged")
    free_root, flags, records, root = trees[6], trees[8], trees[13], trees[14]
    for number in (free_root, root):
        if number != _NONE and not 2 <= number <= last_page:
            raise FormatError(f"{place}: page {number} is said to be a root, but {last_page} is the last; damaged")
    root, free_root = (-1 if number == _NONE else number for number in (root, free_root))
    used_pages = 2 + sum(trees[10:13])
    return Meta(page_size, map_size, last_page, transaction, records, root, free_root, flags, used_pages)


def _check_length(descriptor: int, path: str, meta: Meta) -> None:
    """LMDB need not write free pages at the end, so a file may lack those, and no others."""
    size = os.fstat(descriptor).st_size
    pages = Pages(descriptor, meta.page_size)
    missing = meta.last_page + 1 - pages.count
    if missing <= 0:
        return
    if missing <= _MOST_UNWRITTEN:
        free = {number for number in _free_pages(pages, meta) if pages.count <= number <= meta.last_page}
        if len(free) == missing:
            return
    raise FormatError(
        f"{path}: has {size:,} bytes, but its head says {(meta.last_page + 1) * meta.page_size:,}: the file is "
        "truncated; copy it again from its origin"
    )


class Pages:
    """The pages of an open file; a `DamagedPageError` tells where one is not sound.

    Parameters
    ----------
    descriptor : int
    page_size : int
    """

    def __init__(self, descriptor: int, page_size: int) -> None:
        self._descriptor, self._size = descriptor, page_size
        self.count = os.fstat(descriptor).st_size // page_size

    def read(self, number: int) -> tuple[bytes, tuple[int, ...], bool]:
        """A page of a tree, the places of its nodes, and whether it is a leaf page."""
        if not 2 <= number < self.count:
            raise DamagedPageError
        page = os.pread(self._descriptor, self._size, number * self._size)
        if len(page) < self._size:
            raise DamagedPageError
        own_number, _, flags, lower, _ = _HEADER.unpack_from(page)
        count = (lower - PAGE_HEADER) // 2
        if own_number != number or flags not in (_LEAF, _BRANCH) or not 0 <= count <= self._size // 2 - PAGE_HEADER:
            raise DamagedPageError
        return page, struct.unpack_from(f"<{count}H", page, PAGE_HEADER), flags == _LEAF

    def leaves(self, root: int) -> Iterator[tuple[int, bytes, tuple[int, ...]]]:
        """The leaf pages of a tree in the order of the keys: number, bytes, places of the nodes."""
        waiting = [(root, 0)] if root >= 0 else []
        visited = 0
        while waiting:
            number, depth = waiting.pop()
            visited += 1
            if depth > _DEEPEST or visited > self.count:
                raise DamagedPageError
            page, places, is_leaf = self.read(number)
            if is_leaf:
                yield number, page, places
            else:
                waiting += [(node_at(page, place).child, depth + 1) for place in reversed(places)]

    def overflow(self, page: bytes, node: Node) -> memoryview:
        """A value that lies on pages of its own."""
        begin, size = node.place + node.key_size, node.size
        if begin + _NUMBER.size > len(page):
            raise DamagedPageError
        (number,) = _NUMBER.unpack_from(page, begin)
        if not 2 <= number < self.count or size > (self.count - number) * self._size - PAGE_HEADER:
            raise DamagedPageError
        data = os.pread(self._descriptor, PAGE_HEADER + size, number * self._size)
        if len(data) < PAGE_HEADER + size or _HEADER.unpack_from(data)[::2][:2] != (number, _OVERFLOW):
            raise DamagedPageError
        return memoryview(data)[PAGE_HEADER:]


def node_at(page: bytes, place: int) -> Node:
    """The entry at `place` of a page."""
    if place + _NODE.size > len(page):
        raise DamagedPageError
    low, high, flags, key_size = _NODE.unpack_from(page, place)
    if place + _NODE.size + key_size > len(page):
        raise DamagedPageError
    return Node(low, high, flags, key_size, place + _NODE.size)


def _free_pages(pages: Pages, meta: Meta) -> Iterator[int]:
    """The numbers of the free pages, from their own tree, as far as it is sound."""
    try:
        for _, page, places in pages.leaves(meta.free_root):
            for place in places:
                node = node_at(page, place)
                data = pages.overflow(page, node) if node.is_on_overflow_pages else page[node.place + node.key_size :]
                yield from _numbers(data[: min(node.size, _MOST_UNWRITTEN * _NUMBER.size)])
    except DamagedPageError:
        return


def _numbers(data: bytes | memoryview) -> tuple[int, ...]:
    """The numbers in one list of free pages: their count stands first."""
    if len(data) < _NUMBER.size:
        return ()
    count = min(_NUMBER.unpack_from(data)[0], len(data) // _NUMBER.size - 1)
    return struct.unpack_from(f"<{count}Q", data, _NUMBER.size)
