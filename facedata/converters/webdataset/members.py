"""Walking through the members of a tar, from header to header."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import NamedTuple, Self

from facedata.errors import FormatError, InputError, input_error
from facedata.files import open_regular, read_exactly
from facedata.tar_format import BLOCK, END, FILE, FOLDER, SPARSE, Heading, padded, read_heading

__all__ = ["Member", "TarReader", "walk_members"]

_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    SPARSE: "a sparse file",
}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

_SMALL_WINDOW, _LARGE_WINDOW = 1 << 15, 1 << 21

_log = logging.getLogger(__name__)


class Member(NamedTuple):
    """A regular file in an archive: its path, where its first header and its data begin, the bytes of its data."""

    name: bytes
    start: int
    offset: int
    size: int


class TarReader:
    """An open tar file that reads bytes anywhere in it, and ahead if they are wanted in order.

    Raises
    ------
    InputError
        If it cannot be opened or is not a regular file.
    """

    def __init__(self, path: str) -> None:
        self.path, self._descriptor = path, open_regular(path)
        self.size = os.fstat(self._descriptor).st_size
        self._base, self._window, self._ahead = 0, b"", _SMALL_WINDOW

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def take(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`.

        Raises
        ------
        FormatError
            If the file ends before.
        InputError
            If it cannot be read.
        """
        begin = offset - self._base
        if begin >= 0 and begin + length <= len(self._window):
            return self._window[begin : begin + length]
        if offset + length > self.size:
            raise FormatError(f"byte {offset}: the file ends at byte {self.size}: it is truncated")
        # the less of the last window was skipped, the more is read
        in_order = 0 <= begin <= len(self._window) + _SMALL_WINDOW
        self._ahead = min(2 * self._ahead, _LARGE_WINDOW) if in_order else _SMALL_WINDOW
        try:
            window = read_exactly(self._descriptor, max(length, self._ahead), offset)
        except OSError:  # the bad spot may lie after the bytes that are wanted
            try:
                window = read_exactly(self._descriptor, length, offset)
            except OSError as error:
                raise input_error(error, self.path) from error
        if len(window) < length:
            raise InputError(f"{self.path}: became shorter while it was being read")
        self._base, self._window = offset, window
        return window[:length]


def walk_members(reader: TarReader) -> Iterator[Member]:
    """The regular files of an archive, in order; folders are skipped.

    An archive that ends after a whole member, without the blocks of zeros, is read with a warning, as by tar.

    Raises
    ------
    FormatError
        If a header is corrupt, the file is truncated, or a member is not a regular file or a folder, or its path leads
        out of its folder.
    """
    at, size = 0, reader.size
    if size == 0:
        raise FormatError(f"{reader.path}: is empty (0 bytes); even an empty archive has an end marker")
    while at < size:
        try:
            heading = read_heading(reader.take, at)
        except FormatError as error:
            raise FormatError(f"{reader.path}: {error}{_advice(reader, at)}") from None
        name, kind, length, offset = heading
        if kind == END:
            rest = reader.take(at, min(size - at, _SMALL_WINDOW))
            if more := rest.lstrip(b"\0"):
                _log.warning(
                    "%s: the archive ends at byte %d; the data from byte %d on is not read, as by tar itself; if "
                    "archives were joined with cat, keep them as separate files",
                    reader.path,
                    at,
                    (at + len(rest) - len(more)) // BLOCK * BLOCK,
                )
            return
        if kind not in FILE or name[:1] == b"/" or b".." in name:
            _check_member(reader.path, heading, at)
        end = offset + padded(length)
        if end > size:
            raise FormatError(
                f"{reader.path}: byte {at}: the member {_shown(name)} has {length} bytes, but the file ends "
                f"{size - offset} bytes after its header: it is truncated; fetch it again"
            )
        if kind != FOLDER and name[-1:] != b"/":  # before POSIX only the slash marked a folder
            yield Member(name, at, offset, length)
        at = end
    _log.warning("%s: ends without the blocks of zeros that end an archive: members may be missing", reader.path)


def _advice(reader: TarReader, at: int) -> str:
    """What to do about a file that has no header at byte `at`."""
    if at:
        return "; fetch it again"
    begin = reader.take(0, min(8, reader.size))
    method = next((method for magic, method in _COMPRESSED.items() if begin.startswith(magic)), None)
    if method is None:
        return "; this is not a tar"
    return f"; it is compressed ({method}), but samples are read at random places: decompress it to a plain .tar first"


def _check_member(path: str, heading: Heading, at: int) -> None:
    """Refuse links, devices and so on, and paths that lead out of the folder."""
    place = f"{path}: byte {at}: the member {_shown(heading.name)}"
    if heading.kind not in (*FILE, FOLDER):
        what = _KINDS.get(heading.kind, f"of the type {heading.kind!r}")
        raise FormatError(
            f"{place} is {what}; only regular files are read: write the tar again with the files themselves "
            "(tar --dereference --hard-dereference)"
        )
    if heading.name.startswith(b"/") or b".." in heading.name.split(b"/"):
        raise FormatError(f"{place} leads out of its folder; write the tar again with relative paths without '..'")


def _shown(name: bytes) -> str:
    return repr(os.fsdecode(name[:200]))
