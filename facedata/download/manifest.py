"""Lists of checksums as ``md5sum`` and its like write them: read whoever wrote them, written so that they read them."""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from facedata.download.digest import ALGORITHMS, Digest
from facedata.errors import FormatError
from facedata.files import open_regular

__all__ = ["BadLine", "Listed", "ManifestFile", "escaped", "manifest_line", "read_manifest"]

_log = logging.getLogger(__name__)

_LONGEST = 1 << 15  # a path has at most 4,096 bytes, each escaped as two
_MOST_BAD = 20
_MARK = b"\xef\xbb\xbf"
_GNU = re.compile(rb"(\\?)([0-9A-Fa-f]{32,}) (?:[ *](.+)|([^ *].*))", re.DOTALL)
_BSD = re.compile(rb"(\\?)([A-Za-z0-9-]{3,12}) ?\((.+)\) ?= ?([0-9A-Fa-f]{32,})", re.DOTALL)
_ESCAPES = {b"\\\\": b"\\", b"\\n": b"\n", b"\\r": b"\r"}
_OTHER_ALGORITHM = re.compile(
    r"b2sum|b3sum|blake|sha3[^0-9]|sha-?224|sha-?384|sm3|whirlpool|tiger|ripemd", re.IGNORECASE
)


class Listed(NamedTuple):
    """A line of a list: this file has this checksum."""

    name: str
    digest: Digest


class BadLine(NamedTuple):
    """A line that is not understood, and why."""

    number: int
    reason: str


def read_manifest(file: BinaryIO, title: str, algorithm: str | None = None) -> Iterator[Listed | BadLine]:
    """The lines of a list of checksums, in the formats of GNU (``digest  name``) and BSD (``MD5 (name) = digest``).

    Parameters
    ----------
    file : binary file
        Read line by line.
    title : str
        What messages call it; where it names an algorithm that is not known here, the list is refused.
    algorithm : str, optional
        What all checksums are of; by default the number of their digits tells.

    Yields
    ------
    Listed or BadLine
        Nothing for blank lines and those that begin with ``#``.

    Raises
    ------
    FormatError
        Where this is no list of checksums at all.
    """
    if _OTHER_ALGORITHM.search(os.path.basename(title)):
        raise FormatError(f"{title}: its name speaks of an algorithm other than {', '.join(ALGORITHMS)}")
    bad = good = 0
    carriage_returns = False
    for number, line in enumerate(_lines(file, title), 1):
        if number == 1:
            line = line.removeprefix(_MARK)
            carriage_returns = line.endswith(b"\r\n")
        line = line.removesuffix(b"\n")
        line = line.removesuffix(b"\r") if carriage_returns else line
        if not line.strip() or line.startswith(b"#"):
            continue
        read = _parse(line, number, algorithm)
        good, bad = good + isinstance(read, Listed), bad + isinstance(read, BadLine)
        if bad > _MOST_BAD and not good:
            raise FormatError(f"{title}: is no list of checksums: {_wrong(line)}")
        yield read
    if not good:
        raise FormatError(f"{title}: has no checksum in it; expected lines as md5sum writes them: digest, blanks, name")


class ManifestFile:
    """A list of checksums in a file, or on stdin, that can be read again.

    Lines that are not understood are warned of, the first few by number, and counted.

    Parameters
    ----------
    path : str, optional
        By default stdin, of which a copy is kept on disk.
    algorithm : str, optional
        What all checksums are of; by default the number of their digits tells.

    Attributes
    ----------
    title : str
    bad_lines : int

    Raises
    ------
    InputError
        Where it cannot be read, or is not a plain file.
    FormatError
        While it is read, where this is no list of checksums at all.
    """

    def __init__(self, path: str | None, algorithm: str | None = None) -> None:
        self.title = path or "stdin"
        self.bad_lines = 0
        self._algorithm = algorithm
        self._file = _spooled_stdin() if path is None else _opened(path)
        self._told = False

    def __enter__(self) -> ManifestFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Listed]:
        """The lines that are understood."""
        first_pass, self._told = not self._told, True
        lines = read_manifest(io.BufferedReader(_Pass(self._file)), self.title, self._algorithm)
        for line in lines:
            if isinstance(line, Listed):
                yield line
            elif first_pass:
                self._complain(line)

    def _complain(self, line: BadLine) -> None:
        self.bad_lines += 1
        if self.bad_lines <= _MOST_BAD:
            _log.warning("%s: line %d: %s", self.title, line.number, line.reason)


class _Pass(io.RawIOBase):
    """Reads a file from its beginning without moving its place, as several passes may be under way."""

    def __init__(self, file: BinaryIO) -> None:
        self._descriptor, self._place = file.fileno(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        read = os.preadv(self._descriptor, [buffer], self._place)
        self._place += read
        return read


def _opened(path: str) -> BinaryIO:
    descriptor = open_regular(path)
    return open(descriptor, "rb")


def _spooled_stdin() -> BinaryIO:
    import shutil
    import sys
    from tempfile import TemporaryFile

    spool = TemporaryFile()  # noqa: SIM115, the caller closes it
    shutil.copyfileobj(sys.stdin.buffer, spool)
    spool.flush()
    return spool


def manifest_line(name: str, digest: Digest) -> bytes:
    """The line, with its end, that ``md5sum``, ``sha1sum``, ``sha256sum`` and ``sha512sum`` write for a file."""
    raw = os.fsencode(name)
    safe = raw.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"\\" if safe != raw else b"") + digest.value.encode() + b"  " + safe + b"\n"


def escaped(name: str) -> str:
    """A name on one line, as ``md5sum -c`` prints it: escaped only where it has a line end in it."""
    if "\n" not in name:
        return name
    return "\\" + name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def _lines(file: BinaryIO, title: str) -> Iterator[bytes]:
    while line := file.readline(_LONGEST):
        if b"\0" in line:
            hint = " (UTF-16? save it as UTF-8)" if line[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
            raise FormatError(f"{title}: is no list of checksums but binary{hint}")
        if len(line) == _LONGEST and not line.endswith(b"\n"):
            raise FormatError(f"{title}: is no list of checksums: a line has {_LONGEST:,} bytes or more")
        yield line


def _parse(line: bytes, number: int, algorithm: str | None) -> Listed | BadLine:
    if match := _GNU.fullmatch(line):
        mark, digits, tag = match[1], match[2], None
        name = match[3] or match[4]
    elif match := _BSD.fullmatch(line):
        mark, tag, name, digits = match.groups()
    else:
        return BadLine(number, _wrong(line))
    digest = _digest(digits.decode(), tag, algorithm)
    if isinstance(digest, str):
        return BadLine(number, digest)
    plain = _unescape(name) if mark else name
    if plain is None:
        return BadLine(number, f"'{_shown(name)}' has an escape that is none of \\\\, \\n and \\r")
    return Listed(os.fsdecode(plain), digest)


def _digest(digits: str, tag: bytes | None, algorithm: str | None) -> Digest | str:
    """The digest, or why it is none."""
    named = tag.decode().lower().replace("sha2-", "sha").replace("-", "") if tag is not None else None
    if named is not None and named not in ALGORITHMS:
        return f"'{named}' is none of the algorithms {', '.join(ALGORITHMS)}"
    by_length = next((each for each, length in ALGORITHMS.items() if length == len(digits)), None)
    if by_length is None:
        expected = ", ".join(f"{length} ({each})" for each, length in ALGORITHMS.items())
        return f"expected a checksum of {expected} digits, found {len(digits)}"
    for wanted in (named, algorithm):
        if wanted is not None and wanted != by_length:
            return f"expected a checksum of {wanted}, {ALGORITHMS[wanted]} digits, found {len(digits)}"
    return Digest(by_length, digits.lower())


def _unescape(name: bytes) -> bytes | None:
    pieces = re.split(rb"(\\.?)", name, flags=re.DOTALL)
    try:
        return b"".join(_ESCAPES[piece] if place % 2 else piece for place, piece in enumerate(pieces))
    except KeyError:
        return None


def _wrong(line: bytes) -> str:
    return f"'{_shown(line)}' is neither 'digest  name' nor 'MD5 (name) = digest'"


def _shown(text: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in text[:60])
