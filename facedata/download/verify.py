"""Checking a folder of files against what is known of them: checksums, sizes, structure, or that they are there."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from facedata.download.checksums import Hashed, hash_file
from facedata.download.elsewhere import Answer, Candidates
from facedata.download.finding import HashedNames, shared_suffix, walk_files
from facedata.download.readers import Meter, Task, read_in_order
from facedata.download.verdicts import (
    Expectation,
    How,
    Result,
    Verdict,
    Verification,
    failed,
    glance,
    judge,
    judge_structure,
    reason,
)
from facedata.errors import InputError, InputNotFoundError, InterruptedJobError, input_error
from facedata.jobs.signals import StopRequest

if TYPE_CHECKING:
    from facedata.download.verified import VerifiedFiles

__all__ = ["Expectation", "How", "Result", "Verdict", "Verification", "verify"]

_STRUCTURE_SHARE = 1 << 20  # what a check of structure counts for among the bytes that are read


def verify(
    root: str | os.PathLike[str],
    expectations: Iterable[Expectation],
    *,
    workers: int | None = None,
    use_cache: bool = True,
    extra_in: Sequence[str] | None = None,
    not_extra: Collection[str] = (),
    observer: Callable[[int, int], None] | None = None,
    stop: StopRequest | None = None,
    on_result: Callable[[Result], None] | None = None,
) -> Verification:
    """Check the files below a folder.

    A file that is not at its place is looked for by its name, wherever it lies below `root`: the longest common end
    of the path wins, and of several the one whose checksum, structure or size fits. One that fits nowhere is MISSING,
    unless it lies under its whole path: then it has FAILED.

    Parameters
    ----------
    root : path
    expectations : iterable of Expectation
        Taken from as needed; iterated over again, if it is no iterator, when the first file is missing.
    workers : int, optional
        Files read at a time; by default the CPUs that this process may use.
    use_cache : bool
        Do not read again what has not changed since it was last read, and remember what is read.
    extra_in : sequence of str, optional
        Folders, relative to `root` ("" is `root` itself), in which to look for files that nobody expects.
    not_extra : collection of str
        Paths, relative to `root`, that are no such files.
    observer : callable, optional
        Called with the bytes read and those to be read in all (0: not known yet), a few times a second.
    stop : StopRequest, optional
    on_result : callable, optional
        Called with each result, in the order of the expectations, as soon as it is its turn; the extra files last.
        Without it they are collected in what is returned.

    Raises
    ------
    InputNotFoundError, InputError
        Where there is no such folder.
    InterruptedJobError
        Where `stop` asked for it; what has been read is remembered.
    """
    begin, total = time.monotonic(), Verification()

    def give(result: Result) -> None:
        total.add(result)
        (on_result or total.results.append)(result)

    with _memory(root, use_cache) as memory:
        verifier = _Verifier(_existing(root), expectations, memory, stop)
        try:
            for result in verifier.results(workers, observer):
                give(result)
            for folder in extra_in or ():
                for result in verifier.extra(folder, not_extra):
                    give(result)
        except InterruptedJobError as error:
            raise InterruptedJobError(f"{error}; {_so_far(total, memory)}") from error
    total.bytes_read, total.seconds = verifier.bytes_read, time.monotonic() - begin
    return total


def _memory(root: str | os.PathLike[str], wanted: bool) -> AbstractContextManager[VerifiedFiles | None]:
    if not wanted:
        return nullcontext()
    from facedata.download.verified import VerifiedFiles

    return VerifiedFiles(root)


def _existing(root: str | os.PathLike[str]) -> str:
    try:
        if stat.S_ISDIR(os.stat(root).st_mode):
            return os.fspath(root)
    except OSError as error:
        raise input_error(error, root) from error
    raise InputError(f"{os.fspath(root)}: is not a folder; give the folder that the files are in")


def _so_far(total: Verification, memory: VerifiedFiles | None) -> str:
    checked = f"{sum(total.verdicts.values()):,} files were checked"
    if memory is None:
        return f"{checked}; run the same command again (it begins anew; without --no-cache it would go on)"
    return f"{checked}; run the same command again, it goes on from there"


class _Verifier:
    def __init__(
        self, root: str, expectations: Iterable[Expectation], memory: VerifiedFiles | None, stop: StopRequest | None
    ) -> None:
        self._root, self._memory, self._stop = root, memory, stop
        self._expectations = list(expectations) if isinstance(expectations, Iterator) else expectations
        self._expected = HashedNames()
        self._candidates = Candidates(root)
        self.bytes_read = 0

    def results(self, workers: int | None, observer: Callable[[int, int], None] | None) -> Iterator[Result]:
        def tick(done: int, in_all: int) -> None:
            if self._memory is not None:
                self._memory.flush(every=2.0)
            if observer is not None:
                observer(done, in_all)

        tasks = (self._task(each) for each in self._expectations)
        answers = read_in_order(tasks, workers=workers, stop=self._stop, tick=tick, completed=self._remember)
        with closing(answers):
            for answer in answers:
                if answer.result is not None:
                    yield answer.result

    def extra(self, folder: str, not_extra: Collection[str]) -> Iterator[Result]:
        """The files in a folder that are not expected there."""
        for path in self._walk(folder):
            if path not in self._expected and path not in not_extra:
                yield Result(path, "EXTRA", "presence")

    def _walk(self, folder: str = "") -> Iterator[str]:
        for path in walk_files(self._root, folder):
            if self._stop:
                raise InterruptedJobError(f"stopped by {self._stop.signal_name}")
            yield path

    def _remember(self, answer: Answer) -> None:
        for place, hashed in answer.read:
            self.bytes_read += hashed.status.st_size
            if self._memory is not None and hashed.steady:
                self._memory.add(place, hashed.status, hashed.digest, hashed.ended_ns)
        if answer.result is not None and answer.result.found_at is not None:
            self._expected.add(answer.result.found_at)

    def _task(self, expectation: Expectation) -> Task[Answer]:
        place = self._relative(expectation.path)
        self._expected.add(place)
        try:
            status = os.stat(os.path.join(self._root, place))
        except (FileNotFoundError, NotADirectoryError):
            return self._missing(expectation, place)
        except (OSError, ValueError) as error:
            return _settled(failed(expectation, reason(error)))
        result = glance(expectation, status) or self._recall(expectation, place, status)
        if result is not None:
            return _settled(result)
        size = status.st_size if expectation.digest is not None else _STRUCTURE_SHARE
        return Task(partial(self._check, expectation, place), size)

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, os.path.abspath(self._root)) if os.path.isabs(path) else os.path.normpath(path)

    def _recall(self, expectation: Expectation, place: str, status: os.stat_result) -> Result | None:
        """The result, if the file has been read before."""
        if self._memory is None or expectation.digest is None:
            return None
        digest = self._memory.find(place, status, expectation.digest.algorithm)
        return None if digest is None else replace(judge(expectation, digest), from_cache=True)

    def _check(self, expectation: Expectation, place: str, meter: Meter) -> Answer:
        """Read the file; in a thread."""
        path = os.path.join(self._root, place)
        try:
            if expectation.digest is None:
                result = judge_structure(expectation, path)
                meter.advance(_STRUCTURE_SHARE)
                return Answer(result)
            hashed = hash_file(path, expectation.digest.algorithm, advance=meter.advance, ahead=meter.spare)
        except InputNotFoundError:
            return Answer(Result(expectation.path, "MISSING", "presence", "it was there a moment ago"))
        except InputError as error:
            return Answer(failed(expectation, str(error).removeprefix(f"{path}: ")))
        return Answer(judge(expectation, hashed.digest, hashed.steady), ((place, hashed),))

    def _missing(self, expectation: Expectation, place: str) -> Task[Answer]:
        """Look for it elsewhere."""
        if expectation.optional:
            return _settled(None)
        candidates = self._candidates.of(place, expectation, self._walk, self._places)
        if not candidates:
            return _settled(Result(expectation.path, "MISSING", "presence"))
        recalled: dict[str, Result] = {}
        size = 0
        for candidate in candidates:
            try:
                status = os.stat(os.path.join(self._root, candidate))
            except OSError:  # it was there a moment ago; `_try` says so
                continue
            result = glance(expectation, status) or self._recall(expectation, candidate, status)
            if result is not None:
                recalled[candidate] = result
            else:
                size += status.st_size if expectation.digest is not None else _STRUCTURE_SHARE
        return Task(partial(self._try, expectation, candidates, recalled), size)

    def _places(self) -> Iterator[str]:
        return (self._relative(each.path) for each in self._expectations)

    def _try(
        self, expectation: Expectation, candidates: list[str], recalled: dict[str, Result], meter: Meter
    ) -> Answer:
        """The first candidate that fits, or what is wrong with the first; in a thread."""
        read: list[tuple[str, Hashed]] = []
        wrong: Result | None = None
        for candidate in candidates:
            if candidate in recalled:
                result = recalled[candidate]
            else:
                answer = self._candidates.once(candidate, expectation, partial(self._check, expectation), meter)
                read.extend(answer.read)
                result = answer.result or failed(expectation, "")
            result = replace(result, found_at=candidate)
            if result.verdict == "OK":
                return Answer(result, tuple(read))
            wrong = wrong or result
        assert wrong is not None
        whole = shared_suffix(wrong.found_at or "", expectation.path) == len(expectation.path.split("/"))
        if not whole:
            detail = f"not there; {wrong.found_at} has its name, but: {wrong.detail}"
            wrong = Result(expectation.path, "MISSING", wrong.how, detail)
        return Answer(wrong, tuple(read))


def _settled(result: Result | None) -> Task[Answer]:
    return Task(lambda _: Answer(result), at_once=True)
