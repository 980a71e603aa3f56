"""From a name to checked files in their final layout: what ``facedata download`` does.

In ``ROOT/.facedata-download-NAME/`` lie a lock, the unpacked archives until they are placed, and the plan of that
placing. Every step finds out what is there already, so that the same call goes on wherever the last one ended.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from facedata.download.by_hand import ByHandError, files_given, nothing_to_fetch, steps
from facedata.download.catalogue import CatalogueSet, Download
from facedata.download.checksums import remember
from facedata.download.expectations import file_expectations
from facedata.download.feature_sets import look_into_feature_sets
from facedata.download.found import Found, find_downloads, is_archive, put_in_root, set_aside, target
from facedata.download.placing import Placing
from facedata.download.provenance import read_provenance
from facedata.download.recording import (
    is_finished,
    owner,
    record_fetched,
    record_finish,
    record_found,
    record_restart,
    renewed,
)
from facedata.download.terms import Accept, accept_terms, accepted
from facedata.download.transfer import Fetched, FileRequest, TransferOptions, fetch_files
from facedata.download.transfer.pages import shown_url
from facedata.download.verify import Result, verify
from facedata.download.working import disk_bytes, work_folder, working
from facedata.errors import DiskFullError, InputError
from facedata.jobs.signals import StopRequest

__all__ = ["AcquireOptions", "Acquired", "Plan", "acquire", "plan_acquisition"]

_log = logging.getLogger(__name__)

Watch = Callable[[str], AbstractContextManager[Callable[[int, int], None] | None]]
"""Given what is being done, something to enter that gives an observer of bytes."""


@dataclass(frozen=True)
class AcquireOptions:
    """How a set is fetched.

    Attributes
    ----------
    from_dir : path, optional
        A folder with files that were fetched by hand.
    from_files : tuple of path
        Such files, one by one.
    overwrite : bool
        Do it all again, and replace what is there.
    remove_archives : bool
        Delete archives of the root when all is placed and checked.
    workers : int, optional
        How many files are read at once to check them.
    transfer : TransferOptions
    """

    from_dir: Path | None = None
    from_files: tuple[Path, ...] = ()
    overwrite: bool = False
    remove_archives: bool = False
    workers: int | None = None
    transfer: TransferOptions = field(default_factory=TransferOptions)


@dataclass(frozen=True)
class Acquired:
    """What came of it.

    Attributes
    ----------
    name : str
    root : path
    already : bool
        Whether everything was there before.
    fetched : tuple of Fetched
        By this run.
    used : dict of str to str
        Downloads that were there or given, and where.
    placed : list of str
        Files and folders below the root.
    refused : dict of str to str
        Members of archives that were not unpacked, and why.
    results : tuple of Result
        Of the checks of the files in their final places; none where they were there before.
    next : list of str
        Commands.
    """

    name: str
    root: Path
    already: bool = False
    fetched: tuple[Fetched, ...] = ()
    used: dict[str, str] = field(default_factory=dict)
    placed: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    results: tuple[Result, ...] = ()
    next: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether all is there and right."""
        return not self.refused and _all_good(self.results)


@dataclass(frozen=True)
class Plan:
    """What is to be done, found out without a connection.

    Attributes
    ----------
    already : bool
        Nothing: all has been done before.
    found : dict of str to Found
    wrong : dict of str to str
    fetch : list of Download
        By a program.
    by_hand : list of Download
        By a person.
    """

    already: bool = False
    found: dict[str, Found] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    fetch: list[Download] = field(default_factory=list)
    by_hand: list[Download] = field(default_factory=list)


def plan_acquisition(
    entry: CatalogueSet,
    root: Path,
    options: AcquireOptions,
    *,
    watch: Watch | None = None,
    stop: StopRequest | None = None,
) -> Plan:
    """Find out what of a set is there, what a program can fetch, and what a person has to.

    Raises
    ------
    ByHandError
        Where no file of the set is known.
    InputError
        Where files that were given are not there.
    InterruptedJobError
        Where `stop` was asked for.
    """
    if not entry.downloads:
        raise ByHandError(nothing_to_fetch(entry))
    return _Acquisition(entry, root, options, watch, stop).plan(again=options.overwrite)


def acquire(
    entry: CatalogueSet,
    root: Path,
    options: AcquireOptions,
    accept: Accept,
    *,
    watch: Watch | None = None,
    stop: StopRequest | None = None,
) -> Acquired:
    """Fetch, check, unpack and place a set; goes on where an earlier call ended.

    Parameters
    ----------
    entry : CatalogueSet
    root : path
        The folder for the set's files; made if it is not there.
    options : AcquireOptions
    accept : callable
        Has the terms accepted, where that has not been done before.
    watch : callable, optional
        Gives observers of the progress in bytes.
    stop : StopRequest, optional

    Raises
    ------
    ByHandError
        Where a person must fetch files first; says which, from where, and how to go on.
    OptionError
        Where the terms are not accepted.
    TransferError, ChecksumError, ArchiveError, OutputError, InputError
    InterruptedJobError
        Where `stop` was asked for; the same call goes on.
    """
    record = read_provenance(root, entry.name)
    if not options.overwrite and is_finished(record, root):
        _Acquisition(entry, root, options, watch, stop).tidy()
        return Acquired(entry.name, root, already=True, next=entry.next_commands(root))
    if not entry.downloads:
        raise ByHandError(nothing_to_fetch(entry))
    files_given(options.from_dir, options.from_files)  # a path that is not there is said before anything is asked
    if not accepted(entry, record):
        accept_terms(entry, root, accept)
    return _Acquisition(entry, root, options, watch, stop).run()


@dataclass(frozen=True)
class _Acquisition:
    """One call: what all of its steps need to know."""

    entry: CatalogueSet
    root: Path
    options: AcquireOptions
    watch: Watch | None
    stop: StopRequest | None

    def run(self) -> Acquired:
        fetched: list[Fetched] = []
        with working(self.entry, self.root, restart=self.options.overwrite) as (work, overwrite):
            if "finished" in read_provenance(self.root, self.entry.name):
                record_restart(self.entry, self.root)  # something was lost: what is begun now may be gone on with
            placing = Placing(self.entry, self.root, work, overwrite)
            used: dict[str, Path] = {}
            if not placing.begun and (overwrite or not self._ready()):
                fresh = renewed(read_provenance(self.root, self.entry.name))
                used = self._collect(self.plan(again=overwrite, fresh=fresh), fetched, overwrite=overwrite)
                archives = [used[one.name] for one in self.entry.downloads if is_archive(self.entry, one)]
                if archives:
                    _log.info("%s: unpacking %s", self.entry.name, ", ".join(path.name for path in archives))
                with self._watched("unpacking") as observer:
                    placing.unpack(archives, observer, self.stop)
            placed, refused = placing.place(self.stop)
            now_fetched = {one.path for one in fetched}
            done = Acquired(
                name=self.entry.name,
                root=self.root,
                fetched=tuple(fetched),
                used={name: os.fspath(path) for name, path in used.items() if path not in now_fetched},
                placed=placed,
                refused=refused,
                results=self._verify(placed),
                next=self.entry.next_commands(self.root),
            )
            if done.good:
                if self.entry.layout == "learn-to-cluster":
                    look_into_feature_sets(self.root, self._lying(done), watch=self.watch, stop=self.stop)
                self._finish(done, work)
        return done

    def tidy(self) -> None:
        """What an earlier call that had finished its work was killed before, or was not asked for."""
        archives = [path for path in self._archives() if path.exists()] if self.options.remove_archives else []
        if archives or work_folder(self.entry, self.root).exists():
            with working(self.entry, self.root, restart=False) as (work, _):
                self._clear(work)

    def plan(self, *, again: bool, fresh: Collection[str] = ()) -> Plan:
        """What there is to do; `again` distrusts what is there without a published checksum, unless it is `fresh`."""
        given = files_given(self.options.from_dir, self.options.from_files)
        if not again and is_finished(read_provenance(self.root, self.entry.name), self.root):
            return Plan(already=True)
        old = {one.name for one in self.entry.downloads if again and one.digest is None} - set(fresh)
        with self._watched("checking what is there") as observer:
            found, wrong = find_downloads(
                self.entry,
                self.root,
                given,
                self.options.from_files,
                distrusted=old,
                workers=self.options.workers,
                observer=observer,
                stop=self.stop,
            )
        self._refuse_others(found)
        missing = [download for download in self.entry.downloads if download.name not in found]
        return Plan(
            found=found,
            wrong=wrong,
            fetch=[download for download in missing if self.entry.links(download)],
            by_hand=[download for download in missing if not self.entry.links(download)],
        )

    def _refuse_others(self, found: Mapping[str, Found]) -> None:
        """Archives of several sets may have one name, ``data.tar.gz`` say: only a checksum tells whose it is."""
        for download in self.entry.downloads:
            one = found.get(download.name)
            if one is not None and one.digest and not one.given:
                continue
            if other := owner(self.entry, download, self.root):
                raise InputError(
                    f"{target(download, self.root)}: is the download of {other}; expected that of {self.entry.name}, "
                    f"which has the same name: move it away, or give {self.entry.name} another --root"
                )

    def _collect(self, plan: Plan, fetched: list[Fetched], *, overwrite: bool) -> dict[str, Path]:
        """Have every download at hand; where each is read from."""
        self._set_aside(plan.wrong)
        downloads = {download.name: download for download in self.entry.downloads}
        used = {
            name: put_in_root(self.entry, downloads[name], one, self.root, self.stop)
            for name, one in plan.found.items()
        }
        record_found(self.entry, self.root, plan.found, self.stop)
        if plan.by_hand:
            reasons = [f"{path}: {reason}" for path, reason in plan.wrong.items()]
            if self.options.from_dir and not reasons:
                reasons = [f"{self.options.from_dir}: has no file of the names that are missing"]
            raise ByHandError("\n".join([*reasons, steps(self.entry, plan.by_hand, self.root)]))
        self._check_disk(plan.fetch)
        fetched += self._fetch(plan.fetch, overwrite=overwrite)
        return {name: used.get(name) or target(download, self.root) for name, download in downloads.items()}

    def _fetch(self, downloads: Sequence[Download], *, overwrite: bool) -> list[Fetched]:
        if not downloads:
            return []
        names = {target(one, self.root): one.name for one in downloads}
        requests = [
            FileRequest(target(one, self.root), self.entry.links(one), one.digest, one.size, one.superseded)
            for one in downloads
        ]

        def note(fetched: Fetched) -> None:
            record_fetched(self.entry, self.root, names[fetched.path], fetched)
            remember(self.root, os.path.relpath(fetched.path, self.root), fetched.digest)

        for one in downloads:
            _log.info("%s: fetching %s from %s", self.entry.name, one.name, shown_url(self.entry.links(one)[0].page))
        options = replace(self.options.transfer, overwrite=overwrite)
        with self._watched("fetching") as observer:
            return fetch_files(requests, options, observer=observer, stop=self.stop, on_fetched=note)

    def _verify(self, placed: Sequence[str]) -> tuple[Result, ...]:
        results: list[Result] = []
        with self._watched("checking") as observer:
            verify(
                self.root,
                file_expectations(self.entry, placed),
                workers=self.options.workers,
                observer=observer,
                stop=self.stop,
                on_result=results.append,
            )
        return tuple(results)

    def _lying(self, done: Acquired) -> set[str]:
        """Files of the set in their final places, below the root."""
        return {*done.placed, *(result.found_at or result.path for result in done.results)}

    def _ready(self) -> bool:
        """Whether the files are in their final places already, unpacked by hand say: then they are only checked."""
        needed = [file for file in self.entry.files if not file.optional]
        there = bool(needed) and all((self.root / file.path).is_file() for file in needed)
        return there and _all_good(self._verify([]))

    def _set_aside(self, wrong: Mapping[str, str]) -> None:
        """Keep wrong files in the places of downloads under another name; others are the user's own and stay."""
        places = {target(download, self.root) for download in self.entry.downloads}
        for path, reason in wrong.items():
            if Path(path) in places:
                _log.warning("%s: %s; kept as %s", path, reason, set_aside(Path(path)).name)
            else:
                _log.warning("%s: %s; it is not used", path, reason)

    def _check_disk(self, downloads: Sequence[Download]) -> None:
        """Refuse before the first byte what cannot fit; archives of images are as large again when unpacked."""
        to_fetch = sum(max((one.size or one.about or 0) - self._half(one), 0) for one in downloads)
        unpacked = 0 if self.entry.layout == "files" else self.entry.bytes[0]
        to_unpack = max(unpacked - disk_bytes(work_folder(self.entry, self.root)), 0)
        free = shutil.disk_usage(self.root).free
        if to_fetch + to_unpack > free:
            raise DiskFullError(
                f"{self.root}: {self.entry.name} needs about {to_fetch:,} bytes for what is to be fetched and "
                f"{to_unpack:,} unpacked; {free:,} are free: make room, or choose another --root; nothing was fetched"
            )

    def _half(self, download: Download) -> int:
        """Bytes of the disk that an interrupted transfer takes already."""
        final = target(download, self.root)
        return disk_bytes(final.with_name(f"{final.name}.part"))

    def _finish(self, done: Acquired, work: Path) -> None:
        record_finish(self.entry, self.root, done.placed, done.results)
        self._clear(work)

    def _clear(self, work: Path) -> None:
        if self.options.remove_archives:
            for path in self._archives():
                path.unlink(missing_ok=True)
        shutil.rmtree(work)

    def _archives(self) -> list[Path]:
        return [target(one, self.root) for one in self.entry.downloads if is_archive(self.entry, one)]

    @contextmanager
    def _watched(self, what: str) -> Iterator[Callable[[int, int], None] | None]:
        with self.watch(what) if self.watch else nullcontext() as observer:
            yield observer


def _all_good(results: Sequence[Result]) -> bool:
    return all(result.verdict not in ("FAILED", "MISSING") for result in results)
