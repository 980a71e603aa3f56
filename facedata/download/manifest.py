"""Read, write and check lists of checksums, in the formats of ``md5sum`` and similar programs."""

from __future__ import annotations

import logging
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from typing import Any, BinaryIO, NamedTuple

from facedata.download.checksums import ALGORITHMS, Digest, hash_file
from facedata.download.verify import Expectation, Verification, verify
from facedata.download.walk import LeftOut, Meter, Task, run_in_order, walk
from facedata.errors import EmptyDatasetError, FormatError, InputError, InterruptedJobError, input_error
from facedata.files import open_regular
from facedata.identify import explained
from facedata.jobs.signals import StopRequest
from facedata.text import counted

__all__ = [
    "BadLine",
    "Listed",
    "ManifestFile",
    "list_checksums",
    "lists_in",
    "manifest_line",
    "read_manifest",
    "verify_manifest",
]

_LONGEST = 1 << 15  # a path has at most 4,096 bytes, each escaped as two
_MOST_BAD = 20
_MARK = b"\xef\xbb\xbf"
_GNU = re.compile(rb"(\\?)([0-9A-Fa-f]{32,}) (?:[ *](.+)|([^ *].*))", re.DOTALL)
_BSD = re.compile(rb"(\\?)([A-Za-z0-9-]{3,12}) ?\((.+)\) ?= ?([0-9A-Fa-f]{32,})", re.DOTALL)
_ESCAPES = {b"\\\\": b"\\", b"\\n": b"\n", b"\\r": b"\r"}
_OTHER_ALGORITHM = re.compile(
    r"b2sum|b3sum|blake|sha3[^0-9]|sha-?224|sha-?384|sm3|whirlpool|tiger|ripemd", re.IGNORECASE
)
_LIST = re.compile(
    r"(md5|sha1|sha256|sha512)(sums?)?(\.txt)?|check[-_]?sums?(\.\w+)?|.+[._-](md5|sha1|sha256|sha512)(sums?)?(\.txt)?",
    re.IGNORECASE,
)
_log = logging.getLogger(__name__)


class Listed(NamedTuple):
    """A line of a list: a file and its checksum."""

    name: str
    digest: Digest


class BadLine(NamedTuple):
    """A line that cannot be parsed, and why."""

    number: int
    reason: str


def read_manifest(file: BinaryIO, title: str, algorithm: str | None = None) -> Iterator[Listed | BadLine]:
    """Read a list of checksums, in the formats of GNU (``digest  name``) and BSD (``MD5 (name) = digest``).

    Blank lines and those that begin with ``#`` are skipped. By default the number of digits decides the algorithm.

    Raises
    ------
    FormatError
        If this is not a list of checksums at all, or its `title` names an algorithm that is not supported.
    """
    if _OTHER_ALGORITHM.search(os.path.basename(title)):
        raise FormatError(f"{title}: its name mentions an algorithm other than {', '.join(ALGORITHMS)}")
    bad = good = number = 0
    has_carriage_returns = False
    while line := file.readline(_LONGEST):
        number += 1
        if b"\0" in line:
            hint = " (UTF-16? save it as UTF-8)" if line[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
            raise FormatError(f"{title}: is not a list of checksums but binary{hint}")
        if len(line) == _LONGEST and not line.endswith(b"\n"):
            raise FormatError(f"{title}: is not a list of checksums: a line has {_LONGEST:,} bytes or more")
        if number == 1:
            line = line.removeprefix(_MARK)
            has_carriage_returns = line.endswith(b"\r\n")
        line = line.removesuffix(b"\n")
        line = line.removesuffix(b"\r") if has_carriage_returns else line
        if not line.strip() or line.startswith(b"#"):
            continue
        try:
            parsed: Listed | BadLine = _parse(line, algorithm)
            good += 1
        except ValueError as error:
            parsed = BadLine(number, str(error))
            bad += 1
            if bad > _MOST_BAD and not good:
                raise FormatError(f"{title}: is not a list of checksums: line {number}: {error}") from error
        yield parsed
    if not good:
        raise FormatError(f"{title}: has no checksums; expected lines as md5sum writes them: digest, two spaces, name")


def _parse(line: bytes, algorithm: str | None) -> Listed:
    """Parse a line; a ValueError says what is wrong with it."""
    if match := _GNU.fullmatch(line):
        mark, digits, name, tag = match[1], match[2].decode(), match[3] or match[4], ""
    elif match := _BSD.fullmatch(line):
        mark, digits, name, tag = match[1], match[4].decode(), match[3], match[2].decode().lower()
    else:
        raise ValueError(f"'{_shown(line)}' is neither 'digest  name' nor 'MD5 (name) = digest'")
    tag = tag.replace("sha2-", "sha").replace("-", "")
    if tag and tag not in ALGORITHMS:
        raise ValueError(f"'{tag}' is not one of the algorithms {', '.join(ALGORITHMS)}")
    found = next((each for each, length in ALGORITHMS.items() if length == len(digits)), None)
    if found is None:
        expected = ", ".join(f"{length} ({each})" for each, length in ALGORITHMS.items())
        raise ValueError(f"expected a checksum of {expected} digits, found {len(digits)}")
    for wanted in (tag, algorithm):
        if wanted and wanted != found:
            raise ValueError(f"expected a checksum of {wanted}, {ALGORITHMS[wanted]} digits, found {len(digits)}")
    if mark:
        pieces = re.split(rb"(\\.?)", name, flags=re.DOTALL)
        if not _ESCAPES.keys() >= set(pieces[1::2]):
            raise ValueError(f"'{_shown(name)}' has an escape other than \\\\, \\n and \\r")
        name = b"".join(_ESCAPES.get(piece, piece) for piece in pieces)
    return Listed(os.fsdecode(name), Digest(found, digits.lower()))


def _shown(text: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in text[:60])


class ManifestFile:
    """A list of checksums in a file, or from stdin, that can be iterated over again, even before the end.

    Lines that cannot be parsed are counted (`bad_lines`), and the first few are reported as warnings. Stdin is copied
    to the disk. By default the number of digits decides the algorithm.

    Raises
    ------
    InputError
        If the file cannot be read or is not a regular file.
    FormatError
        During iteration, if this is not a list of checksums at all.
    """

    def __init__(self, path: str | None, algorithm: str | None = None) -> None:
        self.title = path or "stdin"
        self.bad_lines = 0
        self._algorithm = algorithm
        self._is_first_pass = True
        self._copy: Any = None
        if path is None:
            import shutil
            from tempfile import NamedTemporaryFile

            self._copy = NamedTemporaryFile()  # noqa: SIM115, __exit__ closes it
            shutil.copyfileobj(sys.stdin.buffer, self._copy)
            self._copy.flush()
            path = self._copy.name
        self.path = path
        os.close(open_regular(path))

    def __enter__(self) -> ManifestFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._copy is not None:
            self._copy.close()

    def __iter__(self) -> Iterator[Expectation]:
        """What the lines that can be parsed say of files."""
        is_first_pass, self._is_first_pass = self._is_first_pass, False
        with open(open_regular(self.path), "rb") as file, explained(self.title, "checksums", "a list of checksums"):
            for line in read_manifest(file, self.title, self._algorithm):
                if isinstance(line, Listed):
                    yield Expectation(line.name, line.digest)
                elif is_first_pass:
                    self.bad_lines += 1
                    if self.bad_lines <= _MOST_BAD:
                        _log.warning("%s: line %d: %s", self.title, line.number, line.reason)


def lists_in(folder: str) -> list[str]:
    """The lists of checksums that lie in a folder, by their usual names."""
    try:
        names = sorted(name for name in os.listdir(folder) if _LIST.fullmatch(name))
    except OSError as error:
        raise input_error(error, folder) from error
    return [path for name in names if os.path.isfile(path := os.path.join(folder, name))]


def verify_manifest(manifest: ManifestFile, root: str, *, extra: bool = True, **options: Any) -> Verification:
    """Check files below `root` against a list of checksums, as `verify` does; not good if a line cannot be parsed.

    With `extra`, files that are not in the list are reported.
    """
    itself = [os.path.relpath(os.path.realpath(manifest.path), os.path.realpath(root))]
    done = verify(root, manifest, extra_in=[""] if extra else [], not_extra=itself, **options)
    done.bad_lines = manifest.bad_lines
    if done.bad_lines:
        lines = counted(done.bad_lines, "line")
        _log.warning("%s: %s cannot be parsed, so not everything was checked", manifest.title, lines)
    return done


def list_checksums(
    path: str | os.PathLike[str],
    algorithm: str = "md5",
    *,
    workers: int | None = None,
    leave_out: tuple[int, int] | None = None,
    observer: Callable[[int, int], None] | None = None,
    stop: StopRequest | None = None,
) -> Iterator[Listed | LeftOut]:
    """Compute the checksums of a file, or of all files below a folder in the order of the bytes of their paths.

    Names are relative to the folder. The file with the device and inode `leave_out` is skipped: the one that the list
    is written to. `workers` and `observer` are as in `verify`.

    Raises
    ------
    InputError
        If the path cannot be read, or a file belongs to a job that has not finished.
    EmptyDatasetError
        If there is no file.
    InterruptedJobError
        If `stop` is set.
    """
    from facedata.jobs.journal import refuse_unfinished

    path = os.fspath(path)
    refuse_unfinished(path)
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        raise input_error(error, path) from error
    root = path if is_folder else os.path.dirname(path)
    names: Iterator[str | LeftOut] = walk(path) if is_folder else iter([os.path.basename(path)])
    meter = Meter()

    def hash_one(name: str | LeftOut) -> Listed | LeftOut:
        if isinstance(name, LeftOut):
            return name
        whole = os.path.join(root, name)
        try:
            hashed = hash_file(whole, algorithm, advance=meter.advance, ahead=meter.spare)
        except InputError as error:
            return LeftOut(whole, str(error).removeprefix(f"{whole}: "))
        return Listed(name, hashed.digest) if hashed.unchanged else LeftOut(whole, "it changed while it was read")

    def tasks() -> Iterator[Task[Listed | LeftOut]]:
        checked = None
        for name in names:
            size = 0
            if isinstance(name, str):
                if (folder := os.path.dirname(name)) != checked:
                    refuse_unfinished(os.path.join(root, folder))
                    checked = folder
                with suppress(OSError):  # reading it reports what is wrong
                    status = os.stat(os.path.join(root, name))
                    if (status.st_dev, status.st_ino) == leave_out:
                        continue
                    size = status.st_size
            yield Task(partial(hash_one, name), size)

    count = 0
    try:
        with closing(run_in_order(tasks(), meter, workers=workers, stop=stop, tick=observer)) as entries:
            for entry in entries:
                count += 1
                yield entry
    except InterruptedJobError as error:
        raise InterruptedJobError(f"{error}; the list is not complete: run the same command again") from error
    if not count:
        raise EmptyDatasetError(f"{path}: has no files in it")


def manifest_line(name: str, digest: Digest) -> bytes:
    """The line, with its newline, that ``md5sum``, ``sha1sum``, ``sha256sum`` and ``sha512sum`` write for a file."""
    raw = b"./-" if name == "-" else os.fsencode(name)  # these programs take - for stdin
    safe = raw.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"\\" if safe != raw else b"") + digest.value.encode() + b"  " + safe + b"\n"
