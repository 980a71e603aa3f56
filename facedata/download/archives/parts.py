"""Which files make up an archive, in which order, and which of them are missing."""

from __future__ import annotations

import os
import re
import stat
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from facedata.errors import ArchiveError, InputError, InputNotFoundError, OptionError, input_error
from facedata.files import opened_regular
from facedata.identify import identify, identify_bytes, web_page_title
from facedata.tar_format import BLOCK
from facedata.text import listed

__all__ = ["GZIP", "Archive", "PartName", "group_archives", "parse_part_name"]

Kind = Literal["tar", "tar.gz", "zip"]

GZIP = b"\x1f\x8b\x08"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08PK\x03\x04", b"PK00PK\x03\x04")  # the last two: split by zip itself
_HEAD = 1 << 16
_END_OF_TAR = 2 * BLOCK
_MOST_PARTS = 100_000

_LAST = 1 << 62  # X.zip is the part after X.z01, X.z02 ...
_STYLES = (  # before the number, the number, after it
    ("zip", re.compile(r"(.+\.)z(\d{2,4})()", re.IGNORECASE)),
    ("inside", re.compile(r"(.*?)(\d+)((?:\.tar)?\.(?:gz|tgz|zip|tar))", re.IGNORECASE)),
    ("end", re.compile(r"(.*?)(\d{1,9})()", re.ASCII)),
    ("letters", re.compile(r"(.*)([a-z]{2})()")),
)
_KNOWN_ENDING = re.compile(r".*\.(?:tar|gz|tgz|zip|bz2|xz|zst|7z|rar|rec|idx|bin|md|txt|json|part)", re.IGNORECASE)
_NAME_OF_A_SPLIT = re.compile(r".*(?:\.(?:tar|tgz|gz|zip)[._-]?(?:part)?[._-]?|\.part[._-]?|\.)", re.IGNORECASE)


@dataclass(frozen=True)
class Archive:
    """An archive, whole or in `parts`, in their order.

    `name` is that of the file, or what the names of its parts have in common; `kind` is found by the content.
    """

    name: str
    kind: Kind
    parts: tuple[Path, ...]

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(_status(part).st_size for part in self.parts)


class PartName(NamedTuple):
    """The name of a file that may be a part: what stands before and after its number, and how that is written.

    The styles are those of ``X.z01`` (zip), ``X1.tar.gz`` (inside), ``X01`` (end) and ``Xaa`` (letters).
    """

    before: str
    after: str
    style: str
    number: int
    width: int

    @property
    def series(self) -> tuple[str, str, str]:
        """What the names of a series have in common."""
        return self.before, self.after, self.style

    def with_number(self, number: int) -> str:
        """The name of another part of the series."""
        if self.style == "letters":
            return f"{self.before}{chr(97 + number // 26)}{chr(97 + number % 26)}"
        if self.style == "zip":
            return f"{self.before}zip" if number == _LAST else f"{self.before}z{number:02d}"
        return f"{self.before}{number:0{self.width}d}{self.after}"


def parse_part_name(name: str) -> PartName | None:
    """Parse the name of a part: a number at its end or before its ending, two letters as of `split`, or ``.z01``."""
    for style, pattern in _STYLES:
        if match := pattern.fullmatch(name):
            before, text, after = match.groups()
            if style != "letters":
                return PartName(before, after, style, int(text), len(text))
            if not _KNOWN_ENDING.fullmatch(name):
                return PartName(before, after, style, 26 * (ord(text[0]) - 97) + ord(text[1]) - 97, 2)
    return None


def group_archives(paths: Sequence[str | os.PathLike[str]], *, expected: Sequence[str] = ()) -> list[Archive]:
    """Find out which of the files belong together, by their names and their content.

    Parameters
    ----------
    paths : sequence of path
        Whole archives and parts of archives, in any order; the archives are in the order of their first files.
    expected : sequence of str
        Names of files that are known to belong together, from a catalogue, so that a missing last part is noticed.

    Raises
    ------
    OptionError
        If a file is given twice, or if only some of the parts in a folder are given.
    InputNotFoundError
        If a part is missing.
    ArchiveError
        If a file is not an archive; the message says what it is.
    """
    files: dict[tuple[int, int], Path] = {}
    for path in map(Path, paths):
        status = _status(path)
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path}: is a folder; give the files of an archive")
        with opened_regular(path):
            before = files.setdefault((status.st_dev, status.st_ino), path)
        if before is not path:
            also = "" if before == path else f" (also as {before})"
            raise OptionError(f"{path}: is given twice{also}; give each part once")

    archives: list[Archive] = []
    all_series: dict[tuple[str, ...], tuple[PartName, dict[int, Path]]] = {}  # names that differ only in a number
    for path in files.values():
        name = parse_part_name(path.name)
        if name is None and path.suffix.lower() == ".zip":
            first = path.with_suffix(".z01")
            if first in files.values() or first.is_file():
                name = PartName(path.name[:-3], "", "zip", _LAST, 2)
        if name is None:
            kind = _kind(_read_head(path))
            if kind is None:
                raise _not_an_archive(path)
            archives.append(Archive(path.name, kind, (path,)))
            continue
        key: tuple[str, ...] = name.series
        if name.number in all_series.setdefault(key, (name, {}))[1]:
            key = (*key, str(path.parent))  # two sets with the same names, in two folders
        _, given = all_series.setdefault(key, (name, {}))
        if name.number in given:
            raise OptionError(f"{path}: has the same number as {given[name.number]}; give each part once")
        given[name.number] = path

    for name, given in all_series.values():
        archives += [_assemble(name, given, run, expected) for run in _runs(name, given)]
    order = list(files.values())
    return sorted(archives, key=lambda archive: min(order.index(part) for part in archive.parts))


def _status(path: Path) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise input_error(error, path) from error


def _find_beside(series: PartName, given: Mapping[int, Path]) -> dict[int, Path]:
    """Find the files in the folders of the given ones that belong to the series without a gap between them."""
    found: dict[int, Path] = {}
    for folder in {path.parent for path in given.values()}:
        names: list[str] = []
        with suppress(OSError):  # a folder that may be entered but not listed
            names = os.listdir(folder)
        for text in names:
            name = parse_part_name(text)
            number = name.number if name and name.series == series.series else None
            if series.style == "zip" and text == series.with_number(_LAST):
                number = _LAST
            if number is not None and number not in given and (folder / text).is_file():
                found[number] = folder / text
    if series.style == "zip":
        return found
    connected: set[int] = set()
    for first in given:
        for step in (1, -1):
            number = first + step
            while number in found or (number in given and number not in connected):
                connected.add(number)
                number += step
    return {number: path for number, path in found.items() if number in connected}


def _runs(series: PartName, given: Mapping[int, Path]) -> list[dict[int, Path]]:
    """Cut the series before each file that begins an archive of its own; keep what has a given file in it."""
    never_cut = series.style == "zip" or (series.style != "inside" and _NAME_OF_A_SPLIT.fullmatch(series.before))
    runs: list[dict[int, Path]] = []
    previous: Path | None = None
    for number, path in sorted({**_find_beside(series, given), **given}.items()):
        cut = previous is None
        if previous is not None and not never_cut:
            kind = _kind(_read_head(path))
            cut = kind is not None
            if kind == "tar":  # a part may begin like a tar header by chance, but not after the end of an archive
                with opened_regular(previous) as descriptor:
                    size = os.fstat(descriptor).st_size
                    end = os.pread(descriptor, _END_OF_TAR, max(size - _END_OF_TAR, 0))
                cut = len(end) == _END_OF_TAR and not any(end)
        if cut:
            runs.append({})
        runs[-1][number] = path
        previous = path
    return [run for run in runs if run.keys() & given.keys()]


def _assemble(series: PartName, given: Mapping[int, Path], run: Mapping[int, Path], expected: Sequence[str]) -> Archive:
    """Make the archive of a run of files, if all of them exist and are given."""
    parts = tuple(run.values())
    for number, path in run.items():
        head = _read_head(path) if number in given else b"-"
        what = identify_bytes(head, path.name)
        other = path == parts[0] and what is not None and what.sure and "archive" not in what.uses
        if not head or web_page_title(head) is not None or (other and not head.startswith(GZIP)):
            raise _not_an_archive(path)
    kind = _kind(_read_head(parts[0]))

    names = [(text, parse_part_name(text)) for text in expected]
    wanted = {name.number: text for text, name in names if name and name.series == series.series}
    if not wanted.keys() & run.keys():
        numbers = _wanted_numbers(series, list(run), begins_archive=kind is not None)
        wanted = {number: series.with_number(number) for number in numbers}
    missing = [text for number, text in sorted(wanted.items()) if number not in run]
    if missing:
        why = "" if kind else f"; {parts[0].name} is not the beginning of an archive"
        raise InputNotFoundError(
            f"{parts[0].parent}: {listed(missing, 5, quote='')} {'is' if len(missing) == 1 else 'are'} missing (found "
            f"{listed([path.name for path in parts], quote='')}{why}); nothing was unpacked"
        )
    not_given = [path.name for number, path in run.items() if number not in given]
    if not_given:
        example = next(path for number, path in run.items() if number in given)
        raise OptionError(
            f"{example}: is one of {len(run)} parts, but {listed(not_given, 5, quote='')} in the same folder "
            f"{'was' if len(not_given) == 1 else 'were'} not given; give all parts in one command"
        )
    name = parts[0].name
    if len(parts) > 1:
        stem = re.sub(r"[._-]*(?:part)?[._-]*$", "", series.before, flags=re.IGNORECASE)
        name = stem + (".zip" if series.style == "zip" else series.after) or name
    if kind is None:
        raise _not_an_archive(parts[0])
    return Archive(name, kind, parts)


def _wanted_numbers(name: PartName, numbers: Sequence[int], *, begins_archive: bool) -> Iterable[int]:
    """The numbers that must exist, as far as the files themselves show: from the first to the last without a gap.

    `split` counts from 00 or aa, other programs from 1 or 001.
    """
    counted = [number for number in numbers if number != _LAST]
    first, last = (counted[0], counted[-1]) if counted else (1, 1)
    if name.style == "zip":
        return [*range(1, min(last, _MOST_PARTS) + 1), _LAST]
    alone = len(numbers) == 1
    may_have_earlier = {"end": True, "inside": not alone, "letters": not alone or first < 26}[name.style]
    if not begins_archive and may_have_earlier:
        first = 1 if first > 1 and name.style != "letters" and name.width != 2 else 0
    return range(first, min(last + 1, first + _MOST_PARTS))


def _read_head(path: Path) -> bytes:
    with opened_regular(path) as descriptor:
        return os.read(descriptor, _HEAD)


def _kind(head: bytes) -> Kind | None:
    """The kind of the archive that begins with `head`, or None if none does."""
    if head.startswith(_ZIP):
        return "zip"
    if not head.startswith(GZIP):
        return "tar" if _begins_tar(head) else None
    # does a tar archive begin in the gzip data? too little of it to know may be its beginning
    content, rest = b"", head
    while len(content) < BLOCK and rest.startswith(GZIP):
        decompressor = zlib.decompressobj(wbits=31)
        try:
            content += decompressor.decompress(rest, BLOCK)
        except zlib.error:
            return None
        rest = decompressor.unused_data
        if not decompressor.eof and len(content) < BLOCK:
            return "tar.gz" if len(head) < _HEAD else None
    return "tar.gz" if _begins_tar(content) else None


def _begins_tar(block: bytes) -> bool:
    """Whether it begins with a tar header whose checksum is right, or with the zeros of an empty archive."""
    if len(block) < BLOCK:
        return False
    try:
        checksum = int(block[148:156].strip(b"\0 ") or b"0", 8)
    except ValueError:
        return False
    header = block[:BLOCK]
    return not any(header) or sum(header[:148]) + 8 * ord(" ") + sum(header[156:]) == checksum


def _not_an_archive(path: Path) -> ArchiveError:
    """The error that says what a file is that is not a supported archive, and what to do."""
    what = identify(path)
    if what is None or not what.sure or "archive" in what.uses:
        text = "is not a tar, gzip or zip file, nor the first part of one; check its checksum, or fetch it again"
    else:
        text = f"expected an archive (tar, tar.gz or zip), found {what}"
    return ArchiveError(f"{path}: {text}")
