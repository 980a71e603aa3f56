"""Unpack a set's archives in a hidden folder, and move everything to where it belongs below the root.

The moves are written to ``placing.json`` before the first one, so that a run that was killed is resumed exactly.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from facedata.download.archives import extract_archive, group_archives
from facedata.download.catalogue import CatalogueSet
from facedata.download.checksums import Digest, remember
from facedata.download.walk import check_stop, shared_end
from facedata.errors import FacedataError, FormatError, OutputExistsError, input_error, output_error
from facedata.files import atomic_writer, make_own_folder, read_small
from facedata.jobs.signals import StopRequest

__all__ = ["Move", "forget_unpacked", "is_unpacked", "place", "place_unpacked", "plan_moves", "set_aside", "unpack"]

_PLAN, _UNPACKED = "placing.json", "unpacked"
_LARGEST = 64 << 20  # bytes of the list of moves, which has the digests of members
_CLUSTERING = ("features", "labels", "knns", "pretrained_models")
_BY_SUFFIX = {".bin": "features", ".npy": "features", ".meta": "labels"}
_BLOCK = 1 << 20
_JUNK = ("__MACOSX", ".DS_Store")
_log = logging.getLogger(__name__)


class Move(NamedTuple):
    """A file or folder of the unpacked archives, and where it belongs below the root."""

    source: Path
    target: str


def is_unpacked(work: Path) -> bool:
    """Whether an earlier call of `unpack` finished in the hidden folder `work`."""
    return (work / _PLAN).exists()


def forget_unpacked(work: Path) -> None:
    """Remove what an earlier call of `unpack` left in the hidden folder `work`."""
    (work / _PLAN).unlink(missing_ok=True)
    shutil.rmtree(work / _UNPACKED, ignore_errors=True)


def unpack(
    entry: CatalogueSet,
    archives: Sequence[Path],
    work: Path,
    observer: Callable[[int, int], None] | None = None,
    stop: StopRequest | None = None,
) -> None:
    """Unpack archives in the set's hidden folder `work`, and plan where each file belongs.

    It resumes where an earlier call was interrupted; `observer` is called with compressed bytes done and the total.
    """
    unpacked = work / _UNPACKED
    make_own_folder(unpacked)

    # members are hashed while they are written, as the catalogue's file with their name
    algorithms = {PurePosixPath(file.path).name: file.digest.algorithm for file in entry.files if file.digest}

    total, before = sum(os.path.getsize(path) for path in archives), 0
    digests: dict[str, str] = {}
    refused: dict[str, str] = {}
    expected = [download.name for download in entry.downloads]
    for archive in group_archives(archives, expected=expected) if archives else ():

        def report(done: int, _: int, before: int = before) -> None:
            if observer is not None:
                observer(before + done, total)

        done = extract_archive(
            archive,
            unpacked,
            digests=lambda member: algorithms.get(PurePosixPath(member).name),
            observer=report,
            stop=stop,
        )
        before += sum(os.path.getsize(path) for path in archive.parts)
        digests |= {name: str(digest) for name, digest in done.digests.items()}
        refused |= dict(done.refused)
        if done.refused_count > len(done.refused):
            refused["and more"] = f"{done.refused_count:,} in all: see {done.refused_list}"
    planned = plan_moves(entry, unpacked) if unpacked.is_dir() else []
    moves = [[os.fspath(move.source.relative_to(unpacked)), move.target] for move in planned]
    plan = {"moves": moves, "digests": digests, "refused": refused}
    with atomic_writer(work / _PLAN) as file:
        file.write(json.dumps(plan).encode(errors="surrogateescape"))


def place_unpacked(
    root: Path,
    work: Path,
    damaged: Mapping[Path, str] = {},
    *,
    overwrite: bool,
    stop: StopRequest | None = None,
) -> tuple[list[str], dict[str, str]]:
    """Move what `unpack` unpacked to where it belongs; resumes where an earlier call was interrupted.

    The `damaged` files, given with what is wrong with them, are set aside for those that were unpacked.

    Returns the files and folders below the root, and the members of archives that were not unpacked, and why.

    Raises
    ------
    OutputExistsError
        If another file is in the way; nothing has been moved then.
    """
    try:
        plan = json.loads(read_small(work / _PLAN, _LARGEST).decode(errors="surrogateescape"))
        paths = [path for source, target in plan["moves"] for path in (source, target)]
        good = not any(path.startswith("/") or ".." in path.split("/") for path in paths)
        good = good and all(" " in digest for digest in plan["digests"].values())
        if not (good and all(isinstance(reason, str) for reason in plan["refused"].values())):
            raise ValueError("it is not a list of moves into the folder")
    except (FacedataError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{work / _PLAN}: cannot be read: {error}; delete {work} and run again") from error
    unpacked = work / _UNPACKED
    make_own_folder(unpacked)
    moves = [Move(unpacked / source, target) for source, target in plan["moves"]]
    left = [move for move in moves if os.path.lexists(move.source)]
    place(left, root, damaged, overwrite=overwrite, stop=stop)
    for member, text in plan["digests"].items():  # hashed while it was unpacked: need not be read to be verified
        path = unpacked / member
        for move in moves:
            if path.is_relative_to(move.source):
                final = os.path.normpath(PurePosixPath(move.target) / path.relative_to(move.source))
                if os.path.exists(root / final):
                    remember(root, final, Digest(*text.split(" ", 1)))
    return [move.target for move in moves], plan["refused"]


def plan_moves(entry: CatalogueSet, unpacked: Path) -> list[Move]:
    """Where everything in the folder `unpacked` belongs, by the layout of the set.

    ``files`` leaves every path as it is; ``folder`` makes the folder that has the file or folder named ``holding`` the
    set's own; ``learn-to-cluster`` sorts files into features, labels and knns.
    """
    if entry.layout == "learn-to-cluster":
        return list(_clustering_moves(entry, unpacked))
    if entry.layout == "folder":
        own = _own_folder(entry, unpacked)
        moves = [] if own == unpacked else [Move(own, entry.folder)]
        return moves + [Move(path, f"{entry.folder}/{path.relative_to(unpacked)}") for path in _outside(unpacked, own)]
    return [Move(path, path.name) for path in _entries(unpacked)]


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


def _clustering_moves(entry: CatalogueSet, unpacked: Path) -> Iterator[Move]:
    known = [file.path for file in entry.files]
    taken: set[str] = set()
    for path in _files(unpacked):
        inside = PurePosixPath(path.relative_to(unpacked).as_posix())
        target = _known_place(str(inside), known) or _usual_place(inside) or f"{entry.name}/{inside}"
        if target in taken:
            target = f"{entry.name}/{inside}"
            _log.warning("%s: the archive has two files for the same place; this one goes to %s", inside, target)
        taken.add(target)
        yield Move(path, target)


def _known_place(inside: str, known: Sequence[str]) -> str:
    """Where the catalogue has a file of that name; among several, the one that shares most of the path."""
    shared = {path: shared_end(path, inside) for path in known if path.rpartition("/")[2] == inside.rpartition("/")[2]}
    best = max(shared, key=shared.__getitem__, default="")
    return best if len(shared) == 1 or shared.get(best, 0) >= 2 else ""


def _usual_place(inside: PurePosixPath) -> str:
    """Where learn-to-cluster keeps a file in a folder of that name or with that suffix."""
    for number, part in reversed(list(enumerate(inside.parts[:-1]))):
        if part in _CLUSTERING:
            return "/".join(inside.parts[number:])
    if inside.suffix in _BY_SUFFIX:
        return f"{_BY_SUFFIX[inside.suffix]}/{inside.name}"
    if inside.suffix == ".npz" and len(inside.parts) > 1:
        return f"knns/{inside.parts[-2]}/{inside.name}"
    return ""


def _own_folder(entry: CatalogueSet, unpacked: Path) -> Path:
    """The folder that is the set: the topmost one that has what it must have, or else the only one, or else all."""
    level = [unpacked]
    while entry.holding and level:
        for folder in level:
            if (folder / entry.holding).exists():
                return folder
        level = [path for folder in level for path in _entries(folder) if path.is_dir() and not path.is_symlink()]
    entries = _entries(unpacked)
    if entry.holding:
        _log.warning("%s: '%s' is not in the archive; all of it goes to %s", entry.name, entry.holding, entry.folder)
    elif len(entries) == 1 and entries[0].is_dir():
        return entries[0]
    return unpacked


def _outside(folder: Path, own: Path) -> Iterator[Path]:
    """What is not in `own`, in as few whole folders as possible; everything if `own` is `folder` itself."""
    for path in _entries(folder):
        if path == own:
            continue
        if own.is_relative_to(path):
            yield from _outside(path, own)
        else:
            yield path


def place(
    moves: Iterable[Move],
    root: Path,
    damaged: Mapping[Path, str] = {},
    *,
    overwrite: bool,
    stop: StopRequest | None = None,
) -> None:
    """Rename everything to where it belongs; may be interrupted and called again with the moves that are left.

    Files in the way that are `damaged` are set aside, see `place_unpacked`.

    Raises
    ------
    OutputExistsError
        If another file is in the way, before anything has been moved, unless `overwrite`. A file with the same
        content, from an earlier download for example, is not in the way.
    InterruptedJobError
        If `stop` is set.
    """
    moves = list(moves)
    for move in moves if not overwrite else ():
        for source, target in _joined(move.source, root / move.target):
            if os.path.lexists(target) and target not in damaged and not _same_content(source, target, stop):
                raise OutputExistsError(
                    f"{target}: already exists and differs from the file of this download; "
                    "move it away, or replace it with --overwrite"
                )
    for move in moves:
        try:
            for source, target in _joined(move.source, root / move.target):
                target.parent.mkdir(parents=True, exist_ok=True)
                if target in damaged and os.path.lexists(target):
                    set_aside(target, damaged[target])
                os.replace(source, target)
        except OSError as error:
            raise output_error(error, root / move.target) from error


def set_aside(path: Path, reason: str) -> None:
    """Rename a file that is wrong for that reason, so that the right one can take its place."""
    aside = path.with_name(f"{path.name}.wrong")
    numbers = itertools.count(2)
    while os.path.lexists(aside):
        aside = path.with_name(f"{path.name}.wrong-{next(numbers)}")
    try:
        os.replace(path, aside)
    except OSError as error:
        raise output_error(error, path) from error
    _log.warning("%s: %s; kept as %s", path, reason, aside.name)


def _joined(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """What to rename: the content of a folder joins that of a folder that exists."""
    if source.is_dir() and target.is_dir() and not (source.is_symlink() or target.is_symlink()):
        for path in _entries(source):
            yield from _joined(path, target / path.name)
    else:
        yield source, target


def _same_content(source: Path, target: Path, stop: StopRequest | None) -> bool:
    try:
        if target.is_symlink() or not (source.is_file() and target.is_file()):
            return False
        if source.stat().st_size != target.stat().st_size:
            return False
        with open(source, "rb") as file, open(target, "rb") as other:
            while block := file.read(_BLOCK):
                check_stop(stop)
                if block != other.read(_BLOCK):
                    return False
    except OSError as error:
        raise input_error(error, target) from error
    return True
