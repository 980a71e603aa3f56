"""Check a folder of files against what is known of them: checksums, sizes, structure, or that they exist."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Protocol

from facedata.download.checksums import Digest, VerifiedFiles, hash_file
from facedata.download.walk import HashedNames, Meter, NameIndex, Task, run_in_order, shared_end, walk_files
from facedata.errors import InputError, InputNotFoundError, InterruptedJobError, input_error
from facedata.files import kind_name
from facedata.jobs.signals import StopRequest
from facedata.text import counted

__all__ = ["Expectation", "Finding", "How", "Result", "Structure", "Verdict", "Verification", "verify"]

_LOCKS = 64

Verdict = Literal["OK", "FAILED", "MISSING", "EXTRA"]
How = Literal["checksum", "structure", "size", "presence"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check of a file's structure: what was found and, if that is not good, what was expected."""

    good: bool
    text: str


class Structure(Protocol):
    """A check of a file's structure."""

    def check(self, path: str) -> Finding:
        """Check the file at `path`. Raises `InputError` if it cannot be read."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What is known of a file.

    Attributes
    ----------
    path : str
        Relative to the root, ``/`` between names.
    size : int, optional
        In bytes.
    structure : Structure, optional
        What is checked if there is no digest.
    known : mapping of str to str
        Wrong digests that the file is known to have elsewhere, in hexadecimal, and what the file is then.
    optional : bool
        True if the file may be missing.
    note : str
        What to add to the result about the digest.
    """

    path: str
    digest: Digest | None = None
    size: int | None = None
    structure: Structure | None = None
    known: Mapping[str, str] = field(default_factory=dict)
    optional: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """The verdict on an expected file, or on a file that was not expected, and how it was checked.

    Attributes
    ----------
    found_at : str, optional
        Where the file is, relative to the root, if that is not `path`.
    from_cache : bool
        True if the file was not read again, because it has not changed since it was read before.
    """

    path: str
    verdict: Verdict
    how: How
    detail: str = ""
    found_at: str | None = None
    from_cache: bool = False

    @property
    def good(self) -> bool:
        """Whether the file did not fail and is not missing."""
        return self.verdict in ("OK", "EXTRA")

    @property
    def line(self) -> bytes:
        """``NAME: OK``, in the format of ``md5sum -c``, with details in brackets, and a newline."""
        structure = "structure: " if self.how == "structure" and self.detail else ""
        notes = [f"{structure}{self.detail}"] if self.detail else []
        notes += [f"found at {_escaped(self.found_at)}"] if self.found_at is not None else []
        bracket = f" ({'; '.join(notes)})" if notes else ""
        return os.fsencode(f"{_escaped(self.path)}: {self.verdict}{bracket}\n")


def _escaped(name: str) -> str:
    """A name as ``md5sum -c`` prints it, on one line."""
    if "\n" not in name:
        return name
    return "\\" + name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


@dataclass(slots=True)
class Verification:
    """How many results have each verdict, and how those that are OK were checked.

    Attributes
    ----------
    from_cache, bad_lines : int
        How many files were not read again, and how many lines of the list of checksums could not be parsed.
    results : list of Result
        All results, unless they were passed to a callback.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    hows: Counter[str] = field(default_factory=Counter)
    from_cache: int = 0
    bytes_read: int = 0
    seconds: float = 0.0
    bad_lines: int = 0
    results: list[Result] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether all was checked, and no file failed or is missing."""
        return not (self.bad_lines or self.verdicts["FAILED"] or self.verdicts["MISSING"])

    def add(self, other: Verification) -> None:
        """Add the counts and results of another verification."""
        self.verdicts += other.verdicts
        self.hows += other.hows
        self.from_cache += other.from_cache
        self.bytes_read += other.bytes_read
        self.seconds += other.seconds
        self.bad_lines += other.bad_lines
        self.results += other.results


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

    A file that is not in its place is searched for by its name, wherever it is below `root`: the longest common end of
    the path wins, and among several files the one whose checksum, structure or size is right. If none is right, the
    file is MISSING, unless one has its whole path at the end of its own: then it has FAILED.

    Parameters
    ----------
    expectations : iterable of Expectation
        Taken as needed, and iterated over again when the first file is missing, unless it is an iterator.
    workers : int, optional
        How many files are read at a time; by default the CPUs that this process may use.
    use_cache : bool
        Do not read again what has not changed since it was read before, and remember what is read now.
    extra_in, not_extra
        Folders ("" is `root` itself) in which to look for files that are not expected, and paths not to report.
    observer : callable, optional
        Called with the bytes read and the total (0 as long as unknown), a few times a second.
    on_result : callable, optional
        Called with each result as soon as possible, in the order of the expectations, the extra files last. Without
        it, the results are collected in the return value.

    Raises
    ------
    InputNotFoundError, InputError
        If there is no such folder.
    InterruptedJobError
        If `stop` is set; what has been read is remembered.
    """
    begin, done = time.monotonic(), Verification()
    try:
        if not stat.S_ISDIR(os.stat(root).st_mode):
            raise InputError(f"{os.fspath(root)}: is not a folder; give the folder that the files are in")
    except OSError as error:
        raise input_error(error, root) from error
    with VerifiedFiles(root) if use_cache else nullcontext() as memory:
        verifier = _Verifier(os.fspath(root), expectations, memory, stop)

        def tick(read: int, total: int) -> None:
            if memory is not None:
                memory.flush(every=2.0)
            if observer is not None:
                observer(read, total)

        def note(result: Result) -> None:
            done.verdicts[result.verdict] += 1
            done.from_cache += result.from_cache
            if result.verdict == "OK":
                done.hows[result.how] += 1
            (on_result or done.results.append)(result)

        tasks = map(verifier.task, verifier.expectations)
        try:
            with closing(run_in_order(tasks, verifier.meter, workers=workers, stop=stop, tick=tick)) as results:
                for result in results:
                    if result is not None:
                        if result.found_at is not None:
                            verifier.expected.add(result.found_at)
                        note(result)
            for folder in extra_in or ():
                for path in verifier.until_stopped(walk_files(os.fspath(root), folder)):
                    if path not in verifier.expected and path not in not_extra:
                        note(Result(path, "EXTRA", "presence"))
        except InterruptedJobError as error:
            checked = f"{counted(sum(done.verdicts.values()), 'file')} checked; run the same command again"
            resumes = "to resume" if use_cache else "(it starts from the beginning; without --no-cache it would resume)"
            raise InterruptedJobError(f"{error}; {checked} {resumes}") from error
    done.bytes_read, done.seconds = verifier.meter.done, time.monotonic() - begin
    return done


class _Verifier:
    """One call of `verify`. The main thread looks at files; those that must be read become tasks for threads."""

    def __init__(
        self, root: str, expectations: Iterable[Expectation], memory: VerifiedFiles | None, stop: StopRequest | None
    ) -> None:
        self._root, self._memory, self._stop = root, memory, stop
        self.expectations = list(expectations) if isinstance(expectations, Iterator) else expectations
        self.expected = HashedNames()
        self._index: NameIndex | None = None
        self._digests: dict[tuple[str, str], Digest] = {}  # of files elsewhere, each of which is read once
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self._structure_lock = threading.Lock()  # parsing numbers changes the warning filter of the whole process
        self.meter = Meter()

    def until_stopped(self, paths: Iterable[str]) -> Iterator[str]:
        """The paths, until a stop is requested."""
        for path in paths:
            if self._stop:
                raise InterruptedJobError(f"stopped by {self._stop.signal_name}")
            yield path

    def _place(self, path: str) -> str:
        return os.path.relpath(path, os.path.abspath(self._root)) if os.path.isabs(path) else os.path.normpath(path)

    def task(self, expectation: Expectation) -> Task[Result | None]:
        """Look at a file; the task reads it if that is needed."""
        place = self._place(expectation.path)
        self.expected.add(place)
        seen = self._look(expectation, place)
        if isinstance(seen, Result):
            return Task(lambda: seen)
        if isinstance(seen, int):
            return Task(partial(self._read, expectation, place), seen)
        if expectation.optional:
            return Task(lambda: None)
        candidates = self._elsewhere(expectation, place)
        looks = {candidate: self._look(expectation, candidate) for candidate in candidates}
        size = sum(look for look in looks.values() if isinstance(look, int))
        return Task(partial(self._try, expectation, looks), size)

    def _look(self, expectation: Expectation, place: str) -> Result | int | None:
        """The result if the file need not be read, else the bytes to read; None if there is no file."""
        try:
            status = os.stat(os.path.join(self._root, place))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            return _failed(expectation, getattr(error, "strerror", None) or str(error))
        if not stat.S_ISREG(status.st_mode):
            return _failed(expectation, f"is {kind_name(status.st_mode)}, not a file")
        if expectation.size is not None and expectation.size != status.st_size:
            detail = f"expected {expectation.size:,} bytes, found {status.st_size:,}"
            return Result(expectation.path, "FAILED", "size", detail)
        if expectation.digest is not None:
            if self._memory is not None and (digest := self._memory.find(place, status, expectation.digest.algorithm)):
                return replace(_judge(expectation, digest), from_cache=True)
            return status.st_size
        if expectation.structure is not None:
            return 0
        if expectation.size is None:
            return Result(expectation.path, "OK", "presence", "present; nothing is published to check it against")
        detail = f"no checksum is published; the size is right: {status.st_size:,}"
        return Result(expectation.path, "OK", "size", detail)

    def _read(self, expectation: Expectation, place: str, *, once: bool = False) -> Result:
        """Check the content of a file, in a thread; with `once`, use the digest of an earlier call."""
        path = os.path.join(self._root, place)
        try:
            if expectation.digest is None:
                assert expectation.structure is not None
                with self._structure_lock:
                    finding = expectation.structure.check(path)
                return Result(expectation.path, "OK" if finding.good else "FAILED", "structure", finding.text)
            algorithm = expectation.digest.algorithm
            with self._locks[hash(place) % _LOCKS] if once else nullcontext():
                if known := self._digests.get((place, algorithm)):
                    return _judge(expectation, known)
                settle, ahead = self._memory is not None, self.meter.spare
                hashed = hash_file(path, algorithm, advance=self.meter.advance, ahead=ahead, settle=settle)
                if once:
                    self._digests[place, algorithm] = hashed.digest
        except InputNotFoundError as error:
            if os.path.exists(path):  # another file that the check of structure needs
                return Result(expectation.path, "FAILED", "structure", f"cannot be checked: {error}")
            return Result(expectation.path, "MISSING", "presence", "it was removed a moment ago")
        except InputError as error:
            return _failed(expectation, str(error).removeprefix(f"{path}: "))
        if self._memory is not None:
            self._memory.add(place, hashed)
        return _judge(expectation, hashed.digest, hashed.unchanged)

    def _elsewhere(self, expectation: Expectation, place: str) -> list[str]:
        """The files that may be a missing one, by name; not those that are expected where they are."""
        if self._index is None:
            places = HashedNames()
            names: set[str] = set()
            for each in self.until_stopped(self._place(expected.path) for expected in self.expectations):
                places.add(each)
                if not os.path.exists(os.path.join(self._root, each)):
                    names.add(os.path.basename(each))
            paths = self.until_stopped(walk_files(self._root))
            self._index = NameIndex((path for path in paths if path not in places), names)
        found = self._index.find(place)
        if expectation.digest is None and expectation.structure is None and expectation.size is None:
            # a name alone proves little: the folder must have the right name too, and no other file may fit
            needed = min(2, place.count("/") + 1)
            return found if len(found) == 1 and shared_end(found[0], place) >= needed else []
        return found

    def _try(self, expectation: Expectation, looks: Mapping[str, Result | int | None]) -> Result:
        """The first file elsewhere that is right, or else what is wrong with the first; in a thread."""
        wrong: Result | None = None
        for place, seen in looks.items():
            result = seen if isinstance(seen, Result) else self._read(expectation, place, once=True)
            result = replace(result, found_at=place)
            if result.verdict == "OK":
                return result
            wrong = wrong or result
        if wrong is None:
            return Result(expectation.path, "MISSING", "presence")
        if shared_end(wrong.found_at or "", expectation.path) == len(expectation.path.split("/")):
            return wrong
        detail = f"{wrong.found_at} has the same name, but: {wrong.detail}"
        return Result(expectation.path, "MISSING", wrong.how, detail)


def _failed(expectation: Expectation, detail: str) -> Result:
    return Result(expectation.path, "FAILED", "presence", detail)


def _judge(expectation: Expectation, digest: Digest, unchanged: bool = True) -> Result:
    if digest == expectation.digest:
        return Result(expectation.path, "OK", "checksum", expectation.note)
    detail = f"expected {expectation.digest}, found {digest.value}"
    if digest.value in expectation.known:
        detail += f": it is {expectation.known[digest.value]}"
    if not unchanged:
        detail += "; it changed while it was read"
    if expectation.note:
        detail += f"; {expectation.note}"
    return Result(expectation.path, "FAILED", "checksum", detail)
