"""The tar format: headers of members, written and read.

A member is a header of 512 bytes and its data, padded with zeros to a multiple of 512; two blocks of zeros end the
archive. Headers are written as ``ustar`` (POSIX.1-1988). Also read are the headers before it (version 7), GNU tar's
long names and large sizes, and the extended headers of POSIX.1-2001 ("pax").
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple
from zlib import adler32

from facedata.errors import FormatError

BLOCK = 512
_RECORD = 20 * BLOCK  # tar writes whole records, so a file's size is a multiple of this
_ZEROS = bytes(BLOCK)

_TEMPLATE = b"".join(
    [
        b"%b",  # name
        b"0000644\0" + b"0000000\0" + b"0000000\0",  # mode, user, group
        b"%011o\0" + b"00000000000\0",  # size, time
        b" " * 8 + b"0" + bytes(100),  # checksum, a regular file, no link
        b"ustar\0" + b"00" + bytes(247),  # no names of owners, no prefix
    ]
)
_CHECKSUM = slice(148, 156)

# name, size, checksum, type, magic and version, prefix of the name
_fields = struct.Struct("100s24x12s12x8sc100x8s80x155s12x")
_POSIX, _GNU, _VERSION_7 = b"ustar\x00", b"ustar ", bytes(6)
_MODULUS = 65521  # Adler-32 keeps the sum of all bytes modulo this, many times faster than sum() adds them

FILE = (b"0", b"\0", b"7")
"""Type flags of a regular file: of POSIX, of version 7, and of a file stored contiguously."""

FOLDER, SPARSE = b"5", b"S"
END = b""
"""Instead of a type flag: the block is zeros, not a header."""

_LONG_NAME, _LONG_LINK, _GLOBAL = b"L", b"K", b"g"
_PAX = (b"x", b"X")
_EXTENSIONS = (_LONG_NAME, _LONG_LINK, _GLOBAL, *_PAX)

_LARGEST_EXTENSION = 1 << 20  # bytes of a long name or of pax records; a path has at most 4096
_LARGEST_HEADING = BLOCK * ((1 << 16) - 1)

Take = Callable[[int, int], bytes]
"""Given an offset and a length, the bytes there; raises `FormatError` if the file ends before."""


def padded(size: int) -> int:
    """`size` rounded up to a multiple of 512."""
    return (size + BLOCK - 1) & -BLOCK


def padding(size: int) -> bytes:
    """The zeros that follow `size` bytes of data."""
    return _ZEROS[: -size % BLOCK]


def member_header(name: bytes, size: int) -> bytes:
    """Make the header of a regular file, without owner and time, so that equal files make equal archives.

    `name` has at most 100 bytes of ASCII; `size`, the bytes of the data, is below 8 GiB.
    """
    header = _TEMPLATE % (name.ljust(100, b"\0"), size)
    total = (adler32(header) & 0xFFFF) - 1  # of ASCII alone it stays below the modulus
    return b"%b%06o\0 %b" % (header[: _CHECKSUM.start], total, header[_CHECKSUM.stop :])


def end_of_archive(size: int) -> bytes:
    """The end of an archive that has `size` bytes so far: two blocks of zeros, then more up to a multiple of 10,240."""
    return bytes(2 * BLOCK + -(size + 2 * BLOCK) % _RECORD)


class Heading(NamedTuple):
    """The headers of a member: `kind` is its type flag, `offset` is where its data begins."""

    name: bytes
    kind: bytes
    size: int
    offset: int


def _number(field: bytes) -> int:
    """Parse a number of a header: octal digits, or big-endian binary after a byte with its high bit set."""
    try:
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        if field[0] & 0x80:
            return int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1
    return int(field.partition(b"\0")[0] or b"0", 8)


def _checksum_fits(header: bytes, field: bytes) -> bool:
    """Whether the bytes of the header, its own checksum counted as spaces, add up to the checksum in `field`."""
    try:
        expected = _number(field)
    except ValueError:
        return False
    if adler32(header) & 0xFFFF == (expected + sum(field) - 255) % _MODULUS:
        return True
    signed: int = sum(struct.unpack("148b8x356b", header))  # as some systems before POSIX added them
    return expected == signed + 8 * ord(" ")


def _read_header(header: bytes, at: int) -> tuple[bytes, bytes, int]:
    """Parse the 512 bytes of a header at byte `at` into name, kind and size; the kind of zeros is `END`."""
    if header[0] == 0 and header == _ZEROS:
        return b"", END, 0
    name, size_field, checksum, kind, magic, prefix = _fields.unpack(header)
    if not _checksum_fits(header, checksum):
        raise FormatError(
            f"byte {at}: expected a member's header, but its checksum is wrong: bytes are damaged or lost"
        )
    family = magic[:6]
    if family not in (_POSIX, _GNU, _VERSION_7):
        raise FormatError(f"byte {at}: the header's magic is {family!r}, expected 'ustar'")
    try:
        size = _number(size_field)
    except ValueError:
        size = -1
    if size < 0:
        raise FormatError(f"byte {at}: the header's size is {size_field!r}, expected octal digits")
    name = name.partition(b"\0")[0]
    if prefix[0] and family == _POSIX:
        name = prefix.partition(b"\0")[0] + b"/" + name
    return name, kind, size


def read_heading(take: Take, start: int) -> Heading:
    """Read all headers of the member that begins at byte `start`: its own, and those that extend it.

    Raises
    ------
    FormatError
        If there is no complete and correct header; the message begins with the byte offset.
    """
    at, name, size, sparse = start, None, None, False
    while True:
        own_name, kind, own_size = _read_header(take(at, BLOCK), at)
        at += BLOCK
        if kind not in _EXTENSIONS:
            break
        if kind == _LONG_NAME:
            name = _extension(take, at, own_size).partition(b"\0")[0]
        elif kind in _PAX:
            records = _pax_records(_extension(take, at, own_size), at)
            name, digits = records.get(b"path") or name, records.get(b"size")
            if digits is not None:
                if not (digits.isdigit() and len(digits) < 20):
                    raise FormatError(f"byte {at}: the extended header's size is {digits[:20]!r}, expected digits")
                size = int(digits)
            sparse = sparse or any(key.startswith(b"GNU.sparse.") for key in records)
        at += padded(own_size)
        if at - start > _LARGEST_HEADING:
            raise FormatError(f"byte {start}: extended headers of more than {_LARGEST_HEADING} bytes")
    if kind == END and at - start > BLOCK:
        raise FormatError(f"byte {start}: an extended header without a member after it")
    kind = SPARSE if sparse else kind
    return Heading(own_name if name is None else name, kind, own_size if size is None else size, at)


def _extension(take: Take, at: int, size: int) -> bytes:
    if size > _LARGEST_EXTENSION:
        raise FormatError(
            f"byte {at - BLOCK}: an extended header of {size} bytes; at most {_LARGEST_EXTENSION} are read"
        )
    return take(at, size)


def _pax_records(data: bytes, at: int) -> dict[bytes, bytes]:
    """Parse the ``length key=value`` lines of an extended header."""
    records, begin = {}, 0
    while begin < len(data):
        digits = data[begin : begin + 8].partition(b" ")[0]
        end = begin + (int(digits) if digits.isdigit() else 0)
        key, equals, value = data[begin + len(digits) + 1 : end].partition(b"=")
        if not equals or end > len(data) or not value.endswith(b"\n"):
            raise FormatError(f"byte {at + begin}: the extended header does not consist of 'length key=value' lines")
        records[key] = value[:-1]
        begin = end
    return records
