"""Where the files of a set belong below the root, wherever its archive had them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from facedata.download.catalogue import CatalogueSet
from facedata.errors import InterruptedJobError, OutputExistsError, input_error, output_error
from facedata.jobs.signals import StopRequest

__all__ = ["Move", "place", "plan_moves"]

_CLUSTERING = ("features", "labels", "knns", "pretrained_models")
_BY_SUFFIX = {".bin": "features", ".npy": "features", ".meta": "labels"}
_BLOCK = 1 << 20
_JUNK = ("__MACOSX", ".DS_Store")
_log = logging.getLogger(__name__)


class Move(NamedTuple):
    """A file or folder of the unpacked archives, and where it belongs below the root."""

    source: Path
    target: str


def plan_moves(entry: CatalogueSet, unpacked: Path) -> list[Move]:
    """Where everything in `unpacked` belongs.

    Parameters
    ----------
    entry : CatalogueSet
        Its layout decides: ``files`` leaves every path as it is; ``folder`` makes the folder that holds the file or
        folder named ``holding`` the set's own; ``learn-to-cluster`` sorts files into features, labels and knns.
    unpacked : path
        The folder that the set's archives were unpacked to.
    """
    if entry.layout == "learn-to-cluster":
        return list(_clustering(entry, unpacked))
    if entry.layout == "folder":
        return list(_folder(entry, unpacked))
    return [Move(path, path.name) for path in _entries(unpacked)]


def place(moves: Iterable[Move], root: Path, *, overwrite: bool, stop: StopRequest | None = None) -> list[str]:
    """Rename everything to where it belongs; returns the paths, relative to `root`.

    May be interrupted and called again with the moves that are left.

    Raises
    ------
    OutputExistsError
        Where another file is there already, before anything has been moved, unless `overwrite`. One with the same
        content, from an earlier download say, is in nobody's way.
    InterruptedJobError
        Where `stop` was asked for.
    """
    moves = list(moves)
    if not overwrite:
        for move in moves:
            _refuse_existing(move.source, root / move.target, stop)
    for move in moves:
        try:
            _move(move.source, root / move.target)
        except OSError as error:
            raise output_error(error, root / move.target) from error
    return sorted(move.target for move in moves)


def _entries(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    return [folder / name for name in names if name not in _JUNK and not name.startswith((".facedata-", "._"))]


def _files(folder: Path) -> Iterator[Path]:
    for path in _entries(folder):
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        else:
            yield path


def _clustering(entry: CatalogueSet, unpacked: Path) -> Iterator[Move]:
    known = [PurePosixPath(file.path) for file in entry.files]
    taken: set[str] = set()
    for path in _files(unpacked):
        inside = PurePosixPath(path.relative_to(unpacked).as_posix())
        target = _known_place(inside, known) or _clustering_place(inside) or f"{entry.name}/{inside}"
        if target in taken:
            target = f"{entry.name}/{inside}"
            _log.warning("%s: the archive has two files for the same place; this one goes to %s", inside, target)
        taken.add(target)
        yield Move(path, target)


def _known_place(inside: PurePosixPath, known: Sequence[PurePosixPath]) -> str:
    """Where the catalogue has a file of that name; of several the one that shares most of the path."""
    same = [path for path in known if path.name == inside.name]
    best = max(same, key=lambda path: _common_end(path, inside), default=None)
    if best is None or (len(same) > 1 and _common_end(best, inside) < 2):
        return ""
    return str(best)


def _common_end(one: PurePosixPath, other: PurePosixPath) -> int:
    pairs = zip(reversed(one.parts), reversed(other.parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _clustering_place(inside: PurePosixPath) -> str:
    for number, part in reversed(list(enumerate(inside.parts[:-1]))):
        if part in _CLUSTERING:
            return "/".join(inside.parts[number:])
    if inside.suffix in _BY_SUFFIX:
        return f"{_BY_SUFFIX[inside.suffix]}/{inside.name}"
    if inside.suffix == ".npz" and len(inside.parts) > 1:
        return f"knns/{inside.parts[-2]}/{inside.name}"
    return ""


def _folder(entry: CatalogueSet, unpacked: Path) -> Iterator[Move]:
    own = _own_folder(entry, unpacked)
    if own != unpacked:
        yield Move(own, entry.folder)
    for path in _outside(unpacked, own):
        yield Move(path, f"{entry.folder}/{path.relative_to(unpacked)}")


def _own_folder(entry: CatalogueSet, unpacked: Path) -> Path:
    """The folder that is the set: the one that holds what it must; else the only one; else all of it."""
    if entry.holding:
        found = _holder(unpacked, entry.holding)
        if found is not None:
            return found
        _log.warning("%s: '%s' is not in the archive; all of it goes to %s", entry.name, entry.holding, entry.folder)
    entries = _entries(unpacked)
    if not entry.holding and len(entries) == 1 and entries[0].is_dir():
        return entries[0]
    return unpacked


def _holder(folder: Path, name: str) -> Path | None:
    """The folder nearest to the top that has an entry of that name."""
    level = [folder]
    while level:
        for one in level:
            if (one / name).exists():
                return one
        level = [path for one in level for path in _entries(one) if path.is_dir() and not path.is_symlink()]
    return None


def _outside(folder: Path, own: Path) -> Iterator[Path]:
    """What is not in `own`, as few whole folders as possible; everything, where `own` is `folder` itself."""
    for path in _entries(folder):
        if path == own:
            continue
        if own.is_relative_to(path):
            yield from _outside(path, own)
        else:
            yield path


def _refuse_existing(source: Path, target: Path, stop: StopRequest | None) -> None:
    """A folder may join one that is there; a file may not take the place of another."""
    if source.is_dir() and target.is_dir() and not target.is_symlink():
        for path in _entries(source):
            _refuse_existing(path, target / path.name, stop)
    elif os.path.lexists(target) and not _same_content(source, target, stop):
        raise OutputExistsError(
            f"{target}: is there already, and is another file than that of this download; "
            "move it away, or replace it with --overwrite"
        )


def _same_content(source: Path, target: Path, stop: StopRequest | None) -> bool:
    try:
        if target.is_symlink() or not (source.is_file() and target.is_file()):
            return False
        if source.stat().st_size != target.stat().st_size:
            return False
        with open(source, "rb") as one, open(target, "rb") as other:
            while block := one.read(_BLOCK):
                if stop:
                    raise InterruptedJobError("stopped while comparing files; run the same command again to go on")
                if block != other.read(_BLOCK):
                    return False
    except OSError as error:
        raise input_error(error, target) from error
    return True


def _move(source: Path, target: Path) -> None:
    if source.is_dir() and target.is_dir() and not target.is_symlink():
        for path in _entries(source):
            _move(path, target / path.name)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
