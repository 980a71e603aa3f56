"""Which files make up one archive, in which order, and which of them is missing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from facedata.download.archives import kinds
from facedata.download.archives.kinds import Kind
from facedata.download.archives.part_names import LAST, Place, place_of
from facedata.errors import ArchiveError, InputNotFoundError, OptionError

__all__ = ["Archive", "group_archives"]

_SAYS_SPLIT = re.compile(r".*(?:\.(?:tar|tgz|gz|zip)[._-]?(?:part)?[._-]?|\.part[._-]?|\.)", re.IGNORECASE)
_END_OF_TAR = 1024
_MOST = 100_000


@dataclass(frozen=True)
class Archive:
    """One archive, whole or in parts.

    Attributes
    ----------
    name : str
        Of the file, or what the names of its parts have in common.
    kind : {'tar', 'tar.gz', 'zip'}
        By its content.
    parts : tuple of Path
        In order.
    """

    name: str
    kind: Kind
    parts: tuple[Path, ...]

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(kinds.check_regular(part).st_size for part in self.parts)


@dataclass
class _Series:
    """Files whose names differ in one number: given ones, and those that lie beside them."""

    place: Place
    given: dict[int, Path] = field(default_factory=dict)
    beside: dict[int, Path] = field(default_factory=dict)

    @property
    def files(self) -> dict[int, Path]:
        return dict(sorted({**self.beside, **self.given}.items()))

    def keep_neighbours(self) -> None:
        """Of the files beside, only those without a gap to a given one belong here."""
        belongs: set[int] = set()
        for number in self.given:
            for step in (1, -1):
                at = number + step
                while at in self.beside or (at in self.given and at not in belongs):
                    belongs.add(at)
                    at += step
        self.beside = {number: path for number, path in self.beside.items() if number in belongs}

    def runs(self) -> list[dict[int, Path]]:
        """The files cut before each that begins an archive of its own."""
        runs: list[dict[int, Path]] = []
        previous: Path | None = None
        for number, path in self.files.items():
            if previous is None or self._begins_another(previous, path):
                runs.append({})
            runs[-1][number] = path
            previous = path
        return [run for run in runs if any(number in self.given for number in run)]

    def _begins_another(self, previous: Path, path: Path) -> bool:
        if self.place.style == "zip" or (self.place.style != "inside" and _SAYS_SPLIT.fullmatch(self.place.before)):
            return False
        kind = kinds.kind_of(kinds.read_head(path))
        return kind is not None and (kind != "tar" or _ends_as_tar(previous))


def _ends_as_tar(path: Path) -> bool:
    """Whether a file ends in the zeros that end a tar archive: a part may well begin with a header by chance."""
    descriptor = kinds.open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        return size >= _END_OF_TAR and not any(os.pread(descriptor, _END_OF_TAR, size - _END_OF_TAR))
    finally:
        os.close(descriptor)


def group_archives(paths: Sequence[str | os.PathLike[str]], *, expected: Sequence[str] = ()) -> list[Archive]:
    """Find out which of the files belong together, by their names and their content.

    Parameters
    ----------
    paths : sequence of path
        Whole archives and parts of archives, in any order.
    expected : sequence of str
        Names of files that are known to belong together, from a catalogue, so that a missing last part is noticed.

    Returns
    -------
    list of Archive
        In the order in which the first file of each was given.

    Raises
    ------
    OptionError
        Where a file is given twice, or parts lie beside the given ones.
    InputNotFoundError
        Where a part is missing.
    ArchiveError
        Where a file is not an archive; says what it is.
    """
    files = _checked([Path(path) for path in paths])
    singles, series = _by_series(files)
    archives = [Archive(path.name, _kind_or_raise(path), (path,)) for path in singles]
    for one in series:
        _look_beside(one)
        archives += [_assembled(one, run, expected) for run in one.runs()]
    first = {path: number for number, path in enumerate(files)}
    return sorted(archives, key=lambda archive: min(first[part] for part in archive.parts))


def _checked(paths: Sequence[Path]) -> list[Path]:
    seen: dict[tuple[int, int], Path] = {}
    for path in paths:
        status = kinds.check_regular(path)
        before = seen.setdefault((status.st_dev, status.st_ino), path)
        if before is not path:
            also = "" if before == path else f" (also as {before})"
            raise OptionError(f"{path}: is given twice{also}; give each part once")
    return list(seen.values())


def _by_series(files: Sequence[Path]) -> tuple[list[Path], list[_Series]]:
    singles: list[Path] = []
    series: dict[tuple[str, ...], _Series] = {}
    for path in files:
        place = place_of(path.name) or _last_of_zip(path, files)
        if place is None:
            singles.append(path)
            continue
        key: tuple[str, ...] = place.series
        if place.number in series.setdefault(key, _Series(place)).given:
            key = (*key, str(path.parent))  # two sets of the same names, in two folders
        one = series.setdefault(key, _Series(place))
        if place.number in one.given:
            raise OptionError(f"{path}: has the same number as {one.given[place.number]}; give each part once")
        one.given[place.number] = path
    return singles, list(series.values())


def _last_of_zip(path: Path, files: Iterable[Path]) -> Place | None:
    """``X.zip`` is the last part where ``X.z01`` is given or lies beside it."""
    if path.suffix.lower() != ".zip":
        return None
    first = path.with_suffix(".z01")
    return Place(path.name[:-3], "", "zip", LAST, 2) if first in files or first.is_file() else None


def _look_beside(series: _Series) -> None:
    for folder in {path.parent for path in series.given.values()}:
        for path in _names_in(folder):
            place = place_of(path.name)
            if place and place.series == series.place.series and place.number not in series.given and path.is_file():
                series.beside[place.number] = path
    if series.place.style == "zip":
        last = next(iter(series.given.values())).parent / series.place.name(LAST)
        if LAST not in series.given and last.is_file():
            series.beside[LAST] = last
    else:
        series.keep_neighbours()


def _names_in(folder: Path) -> Iterable[Path]:
    try:
        return [folder / name for name in os.listdir(folder)]
    except OSError:  # a folder that may be passed through, not listed
        return []


def _assembled(series: _Series, run: Mapping[int, Path], expected: Sequence[str]) -> Archive:
    """The archive of a run of files, if it is all there."""
    _refuse_what_is_no_part(run, series)
    kind = kinds.kind_of(kinds.read_head(next(iter(run.values()))))
    wanted = _in_catalogue(series, expected, run) or _by_numbers(series, list(run), begins=kind is not None)
    missing = [name for number, name in sorted(wanted.items()) if number not in run]
    if missing:
        raise InputNotFoundError(_missing_words(missing, list(run.values()), kind is None))
    not_given = [path.name for number, path in run.items() if number not in series.given]
    if not_given:
        raise OptionError(
            f"{next(path for number, path in run.items() if number in series.given)}: is one of {len(run)} parts, and "
            f"{_some(not_given)} {'lies' if len(not_given) == 1 else 'lie'} beside it; give all parts in one command"
        )
    parts = tuple(run.values())
    return Archive(_common_name(series, parts), kind or _kind_or_raise(parts[0]), parts)


def _in_catalogue(series: _Series, expected: Sequence[str], run: Mapping[int, Path]) -> dict[int, str]:
    """Of the names that a catalogue has, those of this series."""
    places = [(name, place_of(name)) for name in expected]
    wanted = {place.number: name for name, place in places if place and place.series == series.place.series}
    return wanted if wanted.keys() & run.keys() else {}


def _by_numbers(series: _Series, numbers: Sequence[int], *, begins: bool) -> dict[int, str]:
    """The names that have to be there if nobody knows more than the numbers that are."""
    split_by_zip = series.place.style == "zip"
    counted = [number for number in numbers if number != LAST]
    first = counted[0] if counted else 1
    if split_by_zip or (not begins and _first_may_be_missing(series, numbers)):
        first = _first_number(series, first)
    last = counted[-1] if counted else first
    wanted = [*range(first, min(last + 1, first + _MOST)), *([LAST] if split_by_zip else [])]
    return {number: series.place.name(number) for number in wanted}


def _first_may_be_missing(series: _Series, numbers: Sequence[int]) -> bool:
    """Whether files of the series could come before these, the first of which does not begin an archive."""
    alone = len(numbers) == 1
    if series.place.style == "letters":
        return not alone or numbers[0] < 26
    return series.place.style == "behind" or not alone


def _first_number(series: _Series, first: int) -> int:
    """Where a series that has the number `first` begins: `split` counts from 00 or aa, others from 1 or 001."""
    from_one = series.place.style == "zip" or (series.place.style != "letters" and series.place.width != 2)
    return 1 if from_one and first > 1 else 1 if series.place.style == "zip" else 0


def _missing_words(missing: Sequence[str], there: Sequence[Path], no_beginning: bool) -> str:
    names = ", ".join(path.name for path in there[:3]) + (f" and {len(there) - 3} more" if len(there) > 3 else "")
    why = f"; {there[0].name} does not begin an archive" if no_beginning else ""
    verb = "is" if len(missing) == 1 else "are"
    return f"{there[0].parent}: {_some(missing)} {verb} missing ({names} given or there{why}); nothing was unpacked"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _refuse_what_is_no_part(run: Mapping[int, Path], series: _Series) -> None:
    for number, path in run.items():
        if number in series.given:
            head = kinds.read_head(path)
            if not head or kinds.is_web_page(head) or (path == next(iter(run.values())) and kinds.is_other(head)):
                raise ArchiveError(kinds.describe(path, head))


def _common_name(series: _Series, parts: Sequence[Path]) -> str:
    if len(parts) == 1:
        return parts[0].name
    stem = re.sub(r"[._-]*(?:part)?[._-]*$", "", series.place.before, flags=re.IGNORECASE)
    return stem + (".zip" if series.place.style == "zip" else series.place.behind) or parts[0].name


def _kind_or_raise(path: Path) -> Kind:
    head = kinds.read_head(path)
    kind = kinds.kind_of(head)
    if kind is None:
        raise ArchiveError(kinds.describe(path, head))
    return kind
