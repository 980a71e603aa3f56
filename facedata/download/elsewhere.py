"""Files that are not at their place: looked for by name, each read once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from facedata.download.checksums import Hashed
from facedata.download.digest import Digest
from facedata.download.finding import HashedNames, NameIndex, shared_suffix
from facedata.download.readers import Meter
from facedata.download.verdicts import Expectation, Result, judge

__all__ = ["Answer", "Candidates"]


_FEW = 100
_MOST_LOOKS = 2_000_000  # about half a minute
_log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """The result, if there is one to tell, and what was read for it: each with its path relative to the root."""

    result: Result | None
    read: tuple[tuple[str, Hashed], ...] = ()


class Candidates:
    """Files that may be the ones that are missing, each read once, however many it may be."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._looks, self._warned = 0, False
        self._index: NameIndex | None = None
        self._expected = HashedNames()
        self._lock = threading.Lock()
        self._locks: dict[tuple[str, str], threading.Lock] = {}
        self._digests: dict[tuple[str, str], Digest] = {}

    def of(
        self,
        place: str,
        expectation: Expectation,
        walk: Callable[[], Iterator[str]],
        places: Callable[[], Iterator[str]],
    ) -> list[str]:
        """The files of that name that are not expected where they are, the longest common end of the path alone."""
        if self._index is None:
            self._index = NameIndex(self._root, walk())
            for expected in places():
                self._expected.add(expected)
        found = self._of_the_same_end(self._index, place)
        longest = max((shared_suffix(path, place) for path in found), default=0)
        found = sorted(path for path in found if shared_suffix(path, place) == longest)
        if expectation.digest is None and expectation.structure is None and expectation.size is None:
            # nothing but the name: its folder must have the right one too, and it must be the only one
            return found if len(found) == 1 and longest >= min(2, len(place.split("/"))) else []
        return found

    def _of_the_same_end(self, index: NameIndex, place: str) -> list[str]:
        """Those whose folder's name is right too, or else those of the name alone.

        A million files may have a thousand names in a thousand folders: the folder's name keeps that from taking a
        thousand looks a file, and where it does not help either, that ends some time.
        """
        names = place.split("/")
        found = [path for path in index.find("/".join(names[-2:])) if path not in self._expected]
        if found or len(names) == 1:
            return found
        count = index.count(names[-1])
        if count > _FEW:
            self._looks += count
            if self._looks > _MOST_LOOKS:
                self._warn()
                return []
        return [path for path in index.find(names[-1]) if path not in self._expected]

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(
                "too many files are missing whose names very many files have: from here on such a file is found "
                "elsewhere only in a folder of the same name; is %s the right folder?",
                self._root,
            )

    def once(
        self, candidate: str, expectation: Expectation, check: Callable[[str, Meter], Answer], meter: Meter
    ) -> Answer:
        """The answer of `check`, or that from the digest of an earlier one."""
        if expectation.digest is None:
            return check(candidate, meter)
        key = candidate, expectation.digest.algorithm
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key in self._digests:
                return Answer(judge(expectation, self._digests[key]))
            answer = check(candidate, meter)
            for _, hashed in answer.read:
                self._digests[key] = hashed.digest
            return answer
