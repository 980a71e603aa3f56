"""What a file is, by its first bytes: an archive, and of which kind, or something else."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from facedata.errors import InputError, InputNotFoundError, input_error

__all__ = ["Kind", "as_it_is", "describe", "kind_of", "open_regular", "read_head"]

Kind = Literal["tar", "tar.gz", "zip"]

_HEAD = 1 << 16
_BLOCK = 512
GZIP = b"\x1f\x8b\x08"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08PK\x03\x04", b"PK00PK\x03\x04")  # the last two: split by zip itself
_WEB_PAGE = (b"<!doctype html", b"<html", b"<head", b"<?xml")

_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"\xfd7zXZ\x00", "is an xz archive; unpack it with: xz -dc FILE | tar -x"),
    (b"BZh", "is a bzip2 archive; unpack it with: bzip2 -dc FILE | tar -x"),
    (b"\x28\xb5\x2f\xfd", "is a zstd archive; unpack it with: zstd -dc FILE | tar -x"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive; unpack it with: 7z x FILE"),
    (b"Rar!\x1a\x07", "is a RAR archive; unpack it with: unrar x FILE"),
    (b"\x0a\x23\xd7\xce", "is a record file, unpacked already; see 'facedata unpack-rec'"),
)


def open_regular(path: str | os.PathLike[str]) -> int:
    """A descriptor of a regular file, to read; a FIFO or a device is refused and does not hang.

    Raises
    ------
    InputError
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise input_error(error, path) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{os.fspath(path)}: is not a regular file; give the files of an archive")
    return descriptor


def read_head(path: Path) -> bytes:
    """The first bytes of a file, at most 64 KiB."""
    descriptor = open_regular(path)
    try:
        return os.read(descriptor, _HEAD)
    except OSError as error:
        raise input_error(error, path) from error
    finally:
        os.close(descriptor)


def as_it_is(name: str) -> str:
    """A name out of an archive as it can be shown: in quotes, with nothing that a terminal would obey."""
    return repr(name) if name.isprintable() else ascii(name)


def kind_of(head: bytes) -> Kind | None:
    """The kind of the archive that begins with `head`, or None."""
    if head.startswith(_ZIP):
        return "zip"
    if head.startswith(GZIP):
        return "tar.gz" if _gzip_may_hold_tar(head) else None
    return "tar" if begins_tar(head) else None


def begins_tar(block: bytes) -> bool:
    """Whether a tar archive begins so: with a header whose checksum is right, or with the zeros of an empty one."""
    if len(block) < _BLOCK:
        return False
    try:
        told = int(block[148:156].strip(b"\0 ") or b"0", 8)
    except ValueError:
        return False
    header = block[:_BLOCK]
    return not any(header) or sum(header[:148]) + 8 * ord(" ") + sum(header[156:]) == told


def _gzip_may_hold_tar(head: bytes) -> bool:
    """Whether a tar archive begins in the gzip data; too little data to say so might hold one."""
    content, rest = b"", head
    while len(content) < _BLOCK and rest.startswith(GZIP):
        inflater = zlib.decompressobj(wbits=31)
        try:
            content += inflater.decompress(rest, _BLOCK)
        except zlib.error:
            return False
        rest = inflater.unused_data
        if not inflater.eof and len(content) < _BLOCK:
            return len(head) < _HEAD
    return begins_tar(content)


def is_web_page(head: bytes) -> bool:
    """Whether a browser would show it: what a server sends instead of a file."""
    return head[:4096].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_WEB_PAGE)


def is_other(head: bytes) -> bool:
    """Whether it is something else that is known."""
    return any(head.startswith(magic) for magic, _ in _OTHERS)


def describe(path: Path, head: bytes) -> str:
    """What the file is, and what to do, where it is not an archive that is read here."""
    return f"{path}: {_words(head).replace('FILE', str(path))}"


def _words(head: bytes) -> str:
    if not head:
        return "is empty (0 bytes); fetch it again"
    if is_web_page(head):
        return (
            "is a web page, not an archive: the server gave a page (a quota, a login, a preview) instead of the file; "
            "open it in a browser to see what it says, and fetch the file again"
        )
    for magic, words in _OTHERS:
        if head.startswith(magic):
            return words
    if head.startswith(GZIP):
        return "is gzip, but what is in it does not begin as a tar archive does; if it is one file, use: gunzip FILE"
    return "is neither tar nor gzip nor zip, and is not the first part of one; check its checksum, or fetch it again"


def check_regular(path: Path, status: Callable[[Path], os.stat_result] = os.stat) -> os.stat_result:
    """The status of a regular file.

    Raises
    ------
    InputError
    """
    try:
        found = status(path)
    except OSError as error:
        raise input_error(error, path) from error
    if stat.S_ISDIR(found.st_mode):
        raise InputNotFoundError(f"{path}: is a folder; give the files of an archive")
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: is not a regular file; give the files of an archive")
    return found
