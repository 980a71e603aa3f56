"""Turn the name of a dataset into checked files in their final layout: what ``facedata download`` does.

The folder ``ROOT/.facedata-download-NAME/`` has a lock, the unpacked archives until they are placed, and the plan of
their placing. Every step finds out what has been done already, so that the same call resumes where the last one ended.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from facedata.download.available import (
    Accept,
    ByHandError,
    Plan,
    accept_terms,
    find_downloads,
    given_files,
    is_accepted,
    is_finished,
    put_in_root,
    read_provenance,
    record_download,
    record_finish,
    record_restart,
    steps_by_hand,
)
from facedata.download.catalogue import CatalogueSet, Download
from facedata.download.checksums import hash_file, remember
from facedata.download.expectations import file_expectations, set_expectations
from facedata.download.layout import forget_unpacked, is_unpacked, place_unpacked, set_aside, unpack
from facedata.download.transfer import Fetched, FileRequest, TransferOptions, fetch_files
from facedata.download.verify import Expectation, Result, verify
from facedata.download.walk import check_stop
from facedata.errors import ChecksumError, FacedataError, output_error
from facedata.files import check_room, make_own_folder, open_locked, open_own, remove_stale_temporaries
from facedata.jobs.signals import StopRequest
from facedata.text import shown_url

__all__ = ["AcquireOptions", "Acquired", "Plan", "acquire", "plan_acquisition"]

Watch = Callable[[str], AbstractContextManager[Callable[[int, int], None] | None]]
"""Given what is being done, a context that gives an observer of bytes."""

_log = logging.getLogger(__name__)


def _unwatched(_: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class AcquireOptions:
    """How a set is acquired.

    Attributes
    ----------
    from_dir, from_files : path
        A folder with files that were fetched by hand, and such files one by one.
    overwrite : bool
        Do everything again, and replace existing files.
    remove_archives : bool
        Delete the archives in the root when everything is placed and checked.
    workers : int, optional
        How many files are read at once to check them.
    """

    from_dir: Path | None = None
    from_files: tuple[Path, ...] = ()
    overwrite: bool = False
    remove_archives: bool = False
    workers: int | None = None
    transfer: TransferOptions = field(default_factory=TransferOptions)


@dataclass(frozen=True)
class Acquired:
    """The result of `acquire`; `already` if everything was done before.

    Attributes
    ----------
    fetched, used
        The downloads that this run fetched, and those that were available, by name, and where.
    placed : list of str
        Files and folders below the root.
    refused : dict of str to str
        Members of archives that were not unpacked, and why.
    results : tuple of Result
        The checks of the files in their final places; none if everything was done before.
    next : list of str
        Commands to run next.
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
        """Whether all files exist and are right."""
        return not self.refused and all(result.good for result in self.results)


def plan_acquisition(
    entry: CatalogueSet,
    root: Path,
    options: AcquireOptions,
    *,
    watch: Watch = _unwatched,
    stop: StopRequest | None = None,
) -> Plan:
    """Find out which files of a set are available, which a program can fetch, and which a person has to.

    Raises
    ------
    ByHandError
        If no file of the set is known.
    InputError
        If given files do not exist.
    """
    given_files(entry, options.from_dir, options.from_files)
    acquisition = _Acquisition(entry, root, options, watch, stop)
    if options.overwrite:
        return acquisition.plan(entry, again=True)
    damaged, is_finished_set = acquisition.damaged(), is_finished(read_provenance(root, entry.name), root)
    needed = acquisition.needed(acquisition.is_unpacked_right())
    if not damaged and (is_finished_set or not needed.downloads):
        return Plan(already=True)
    plan = acquisition.plan(needed, again=False)
    return replace(plan, wrong={os.fspath(root / each.path): each.detail for each in damaged} | plan.wrong)


def acquire(
    entry: CatalogueSet,
    root: Path,
    options: AcquireOptions,
    accept: Accept,
    *,
    watch: Watch = _unwatched,
    stop: StopRequest | None = None,
) -> Acquired:
    """Fetch, check, unpack and place a set below `root`; resumes where an earlier call was interrupted.

    Terms that were not accepted before are shown by `accept`; `watch` gives observers of the progress in bytes.

    Raises
    ------
    ByHandError
        If a person must fetch files first; the message says which, from where, and how to resume.
    FacedataError
        If the terms are not accepted.
    TransferError, ChecksumError, ArchiveError, OutputError, InputError
    InterruptedJobError
        If `stop` is set; the same call resumes.
    """
    acquisition = _Acquisition(entry, root, options, watch, stop)
    record = read_provenance(root, entry.name)
    if not options.overwrite and is_finished(record, root) and not acquisition.damaged():
        # what an earlier call was killed before removing, or was not asked to remove
        if acquisition.work.exists() or (options.remove_archives and any(map(Path.exists, acquisition.archives))):
            with acquisition.working(restart=False):
                acquisition.clear()
        return Acquired(entry.name, root, already=True, next=entry.next_commands(root))
    given_files(entry, options.from_dir, options.from_files)  # what is wrong is an error before any question
    if not is_accepted(entry, record):
        accept_terms(entry, root, accept)
    return acquisition.run()


@dataclass(frozen=True)
class _Acquisition:
    """One call of `acquire`, and what all of its steps need."""

    entry: CatalogueSet
    root: Path
    options: AcquireOptions
    watch: Watch
    stop: StopRequest | None

    @property
    def work(self) -> Path:
        """The hidden folder, which exists until the set is finished."""
        return self.root / f".facedata-download-{self.entry.name}"

    @property
    def archives(self) -> list[Path]:
        """Where the set's archives are or will be."""
        return [download.path(self.root) for download in self.entry.downloads if self.entry.is_archive(download)]

    def run(self) -> Acquired:
        entry, root = self.entry, self.root
        used: dict[str, Path] = {}
        fetched: list[Fetched] = []
        placed: list[str] = []
        refused: dict[str, str] = {}
        with self.working(restart=self.options.overwrite) as overwrite:
            is_right = not overwrite and self.is_unpacked_right()
            needed = entry if overwrite else self.needed(is_right)
            if "finished" in read_provenance(root, entry.name):
                # files were lost or damaged; what this run records may be used by the next one
                record_restart(entry, root)
            if not is_unpacked(self.work) and needed.downloads:
                used, fetched = self._collect(needed, overwrite=overwrite)
            if not is_unpacked(self.work) and not is_right:
                archives = [used[download.name] for download in entry.downloads if entry.is_archive(download)]
                if archives:
                    _log.info("%s: unpacking %s", entry.name, ", ".join(path.name for path in archives))
                with self.watch("unpacking") as observer:
                    unpack(entry, archives, self.work, observer, self.stop)
            if is_unpacked(self.work):
                there = [each for each in self._unpacked() if not overwrite and (root / each.path).is_file()]
                damaged = {root / each.path: each.detail for each in self._check(there) if not each.good}
                placed, refused = place_unpacked(root, self.work, damaged, overwrite=overwrite, stop=self.stop)
            placed += [place for download in entry.downloads if (place := entry.place_of(download))]
            fetched_paths = {file.path for file in fetched}
            done = Acquired(
                name=entry.name,
                root=root,
                fetched=tuple(fetched),
                used={name: os.fspath(path) for name, path in used.items() if path not in fetched_paths},
                placed=sorted(placed),
                refused=refused,
                results=self._check(file_expectations(entry, placed)),
                next=entry.next_commands(root),
            )
            if done.good:
                record_finish(entry, root, done.placed, done.results)
                self.clear()
        return done

    def damaged(self) -> list[Result]:
        """Files in their places that are wrong; of a finished set, missing files too, but not archives."""
        record = read_provenance(self.root, self.entry.name)
        expected = set_expectations(self.entry, self.root, record)
        if not is_finished(record, self.root):  # what is missing need not be searched for
            expected = [each for each in expected if (self.root / each.path).is_file()]
        archives = {path.name for path in self.archives if not path.exists()}
        return [each for each in self._check(expected) if not each.good and each.path not in archives]

    def needed(self, is_unpacked_right: bool) -> CatalogueSet:
        """The set with those downloads alone that have to be there: plain files, and archives to unpack or repair."""
        wrong = {each.path for each in self.damaged()} if is_unpacked_right else set()
        downloads = [
            download
            for download in self.entry.downloads
            if download.name in wrong or not (is_unpacked_right and self.entry.is_archive(download))
        ]
        return replace(self.entry, downloads=tuple(downloads))

    def plan(self, needed: CatalogueSet, *, again: bool, fresh: Collection[str] = ()) -> Plan:
        """What there is to do; with `again`, downloads without a checksum are not trusted, unless they are `fresh`."""
        unproven = {download.name for download in needed.downloads if again and download.digest is None}
        with self.watch("checking what is there") as observer:
            return find_downloads(
                needed,
                self.root,
                self.options.from_dir,
                self.options.from_files,
                distrusted=unproven - set(fresh),
                workers=self.options.workers,
                observer=observer,
                stop=self.stop,
            )

    def _collect(self, needed: CatalogueSet, *, overwrite: bool) -> tuple[dict[str, Path], list[Fetched]]:
        """Get every needed download: where each is read from, and what was fetched for it."""
        recorded = read_provenance(self.root, self.entry.name).get("downloads", {})
        fresh = {name for name, facts in recorded.items() if isinstance(facts, dict) and "old" not in facts}
        plan = self.plan(needed, again=overwrite, fresh=fresh)
        downloads = {download.name: download for download in needed.downloads}
        paths = {name: download.path(self.root) for name, download in downloads.items()}
        # wrong files in the places of downloads are renamed; others are the user's own and stay
        for path, reason in plan.wrong.items():
            if Path(path) in paths.values():
                set_aside(Path(path), reason)
            else:
                _log.warning("%s: %s; it is not used", path, reason)
        for name, file in plan.found.items():
            paths[name] = put_in_root(self.entry, downloads[name], file, self.root, self.stop)
            if file.given or name not in recorded:
                digest = file.digest
                if digest is None:  # for the record
                    digest = hash_file(file.path, "sha256", advance=lambda _: check_stop(self.stop), ahead=True).digest
                size, origin = file.path.stat().st_size, os.path.abspath(file.path)
                record_download(self.entry, self.root, name, origin, size, digest)
        if plan.by_hand:
            reasons = [f"{path}: {reason}" for path, reason in plan.wrong.items()]
            if self.options.from_dir and not reasons:
                reasons = [f"{self.options.from_dir}: has no file with the name of a missing one"]
            raise ByHandError("\n".join([*reasons, steps_by_hand(self.entry, plan.by_hand, self.root)]))
        return paths, self._fetch(plan.fetch, overwrite=overwrite) if plan.fetch else []

    def _fetch(self, downloads: Sequence[Download], *, overwrite: bool) -> list[Fetched]:
        # refuse a disk that is too small before the first byte; archives need their size again when unpacked
        to_fetch = 0
        for download in downloads:
            path = download.path(self.root)
            partial = _bytes_on_disk(path.with_name(f"{path.name}.part"))
            to_fetch += max((download.size or download.about or 0) - partial, 0)
        unpacked = 0 if self.entry.layout == "files" else self.entry.bytes[0]
        to_unpack = max(unpacked - _bytes_on_disk(self.work), 0)
        what = f"{self.entry.name} ({to_fetch:,} bytes to download, {to_unpack:,} to unpack)"
        check_room(self.root, to_fetch + to_unpack, what, "or choose another --root; nothing was fetched")
        names = {download.path(self.root): download.name for download in downloads}

        def note(fetched: Fetched) -> None:
            link = f"{fetched.link.kind} {shown_url(fetched.link.address)}"
            more = {"link": link, "etag": fetched.etag, "last_modified": fetched.last_modified}
            name, url = names[fetched.path], fetched.final_url
            record_download(self.entry, self.root, name, url, fetched.size, fetched.digest, **more)
            remember(self.root, os.path.relpath(fetched.path, self.root), fetched.digest)

        requests = []
        for download in downloads:
            links = self.entry.links(download)
            _log.info("%s: fetching %s from %s", self.entry.name, download.name, shown_url(links[0].page))
            path = download.path(self.root)
            requests.append(FileRequest(path, links, download.digest, download.size, download.superseded))
        options = replace(self.options.transfer, overwrite=overwrite)
        try:
            with self.watch("fetching") as observer:
                return fetch_files(requests, options, observer=observer, stop=self.stop, on_fetched=note)
        except ChecksumError as error:
            raise ChecksumError(f"{error}; 'facedata datasets {self.entry.name}' shows all sources") from error

    def _check(self, expected: Sequence[Expectation]) -> tuple[Result, ...]:
        if not expected:
            return ()
        workers = self.options.workers
        with self.watch("checking") as observer:
            return tuple(verify(self.root, expected, workers=workers, observer=observer, stop=self.stop).results)

    def _unpacked(self) -> list[Expectation]:
        """What the files from the archives must be; the plain downloads are left out."""
        plain = set(map(self.entry.place_of, self.entry.downloads))
        placed = read_provenance(self.root, self.entry.name).get("files", {})
        return [each for each in file_expectations(self.entry, placed) if each.path not in plain]

    def is_unpacked_right(self) -> bool:
        """Whether the files from the archives are right and in their final places, perhaps unpacked by hand."""
        record, expected = read_provenance(self.root, self.entry.name), self._unpacked()
        needed = [self.root / each.path for each in expected if not each.optional]
        if not needed:  # nothing is known of them but what was recorded
            plain = set(map(self.entry.place_of, self.entry.downloads))
            files = {path: size for path, size in record.get("files", {}).items() if path not in plain}
            return is_finished({**record, "files": files}, self.root)
        return all(path.is_file() for path in needed) and all(result.good for result in self._check(expected))

    def clear(self) -> None:
        """Remove the hidden folder and, if that is asked for, the archives."""
        for path in (download.path(self.root) for download in self.entry.downloads):
            if path.exists() and not path.with_name(f"{path.name}.part").exists():  # a kill may leave this record
                path.with_name(f"{path.name}.part.json").unlink(missing_ok=True)
        if self.options.remove_archives:
            for path in self.archives:
                path.unlink(missing_ok=True)
        shutil.rmtree(self.work)

    @contextmanager
    def working(self, *, restart: bool) -> Iterator[bool]:
        """Lock the hidden folder; whether this call, or the one that it resumes, replaces existing files."""
        mark = self.work / "overwrite"
        try:
            make_own_folder(self.work)
            lock = open_locked(self.work / "lock")
            try:
                # if the set is finished, a run was killed before it could remove this folder
                remove_stale_temporaries(self.root)
                is_finished_set = "finished" in read_provenance(self.root, self.entry.name)
                if is_finished_set or (restart and not mark.exists()):
                    mark.unlink(missing_ok=True)
                    forget_unpacked(self.work)
                if restart and not mark.exists():
                    record_restart(self.entry, self.root)
                    os.close(open_own(mark))
                yield mark.exists()
            finally:
                os.close(lock)
        except FacedataError:
            raise
        except OSError as error:
            raise output_error(error, self.work) from error


def _bytes_on_disk(path: Path) -> int:
    """How much of the disk a file, or a folder with all that is in it, takes; 0 if it does not exist."""
    with suppress(OSError):
        return 512 * sum(each.lstat().st_blocks for each in (path, *path.rglob("*")))
    return 0
