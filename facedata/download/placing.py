"""Unpacking a set's archives in a hidden folder, and putting what comes out where it belongs."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from facedata.download.archives import extract_archive, group_archives
from facedata.download.catalogue import CatalogueSet
from facedata.download.checksums import remember
from facedata.download.digest import Digest
from facedata.download.layout import Move, place, plan_moves
from facedata.errors import FormatError
from facedata.files import atomic_writer
from facedata.jobs.signals import StopRequest

__all__ = ["Placing"]

Observer = Callable[[int, int], None]
_log = logging.getLogger(__name__)


class Placing:
    """What happens between checked archives and files in their final places; goes on where an earlier one ended.

    Parameters
    ----------
    entry : CatalogueSet
    root : path
        The folder that the files go to.
    work : path
        A hidden folder in it, this set's own.
    overwrite : bool
        Replace files that are there.
    """

    def __init__(self, entry: CatalogueSet, root: Path, work: Path, overwrite: bool) -> None:
        self._entry, self._root, self._work, self._overwrite = entry, root, work, overwrite
        self._unpacked, self._plan = work / "unpacked", work / "placing.json"

    @property
    def begun(self) -> bool:
        """Whether all is unpacked, and the placing has been planned."""
        return self._plan.exists()

    def unpack(self, archives: Sequence[Path], observer: Observer | None, stop: StopRequest | None) -> None:
        """Unpack them, and plan where each file belongs."""
        expected = [download.name for download in self._entry.downloads]
        groups = group_archives(archives, expected=expected) if archives else []
        total, before = sum(os.path.getsize(path) for path in archives), 0
        digests: dict[str, str] = {}
        refused: dict[str, str] = {}
        for group in groups:
            done = extract_archive(
                group, self._unpacked, digests=self._algorithm, observer=_shifted(observer, before, total), stop=stop
            )
            before += sum(os.path.getsize(path) for path in group.parts)
            digests |= {name: str(digest) for name, digest in done.digests.items()}
            refused |= dict(done.refused)
            if done.refused_count > len(done.refused):
                refused["and more"] = f"{done.refused_count:,} in all: see {done.refused_list}"
        moves = plan_moves(self._entry, self._unpacked) if self._unpacked.is_dir() else []
        plan = {
            "moves": [[os.fspath(move.source.relative_to(self._unpacked)), move.target] for move in moves],
            "digests": digests,
            "refused": refused,
        }
        with atomic_writer(self._plan) as file:
            file.write(json.dumps(plan).encode(errors="surrogateescape"))

    def place(self, stop: StopRequest | None = None) -> tuple[list[str], dict[str, str]]:
        """Put everything where it belongs.

        Returns
        -------
        placed : list of str
            Files and folders below the root.
        refused : dict of str to str
            Members of the archives that were not unpacked, and why.

        Raises
        ------
        OutputExistsError
            Where another file is in the way; nothing has been moved then.
        """
        if not self.begun:
            return self._placed_downloads(), {}
        plan = self._read_plan()
        moves = [Move(self._unpacked / source, target) for source, target in plan["moves"]]
        left = [move for move in moves if os.path.lexists(move.source)]
        place(left, self._root, overwrite=self._overwrite, stop=stop)
        self._remember(plan["digests"], moves)
        return sorted([move.target for move in moves] + self._placed_downloads()), plan["refused"]

    def _placed_downloads(self) -> list[str]:
        return [place for one in self._entry.downloads if (place := self._entry.place_of(one))]

    def _algorithm(self, member: str) -> str | None:
        """With what a member is to be hashed while it is written: that of the catalogue's file of its name."""
        name = PurePosixPath(member).name
        known = [file.digest.algorithm for file in self._entry.files if file.digest and file.path.endswith(f"/{name}")]
        return known[0] if known else None

    def _read_plan(self) -> dict[str, Any]:
        try:
            plan: dict[str, Any] = json.loads(self._plan.read_bytes().decode(errors="surrogateescape"))
        except (OSError, ValueError) as error:
            raise FormatError(f"{self._plan}: cannot be read: {error}; delete {self._work} and run again") from error
        return plan

    def _remember(self, digests: dict[str, str], moves: Sequence[Move]) -> None:
        """What was hashed while it was unpacked need not be read again to be verified."""
        for member, text in digests.items():
            path = self._unpacked / member
            for move in moves:
                if path.is_relative_to(move.source):
                    final = os.path.normpath(PurePosixPath(move.target) / path.relative_to(move.source))
                    if os.path.exists(self._root / final):
                        remember(self._root, final, Digest(*text.split(" ", 1)))


def _shifted(observer: Observer | None, before: int, total: int) -> Observer | None:
    if observer is None:
        return None
    return lambda done, _: observer(before + done, total)
