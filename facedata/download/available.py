"""What a root has: ``provenance.json``, the record of earlier downloads, and files that need not be fetched.

The record says which terms were accepted, and where the files came from, when, and with which checksums.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from facedata import __version__
from facedata.download.catalogue import CatalogueSet, Download
from facedata.download.checksums import ALGORITHMS, Digest, remember
from facedata.download.schema import PROVENANCE
from facedata.download.verify import Expectation, Result, verify
from facedata.download.walk import check_stop
from facedata.errors import FormatError, InputError, InputNotFoundError, OptionError, input_error, output_error
from facedata.files import atomic_writer, open_locked, opened_regular, read_small, temporary_name
from facedata.identify import web_page_title
from facedata.jobs.signals import StopRequest

__all__ = [
    "Accept",
    "AvailableFile",
    "ByHandError",
    "Plan",
    "accept_terms",
    "change_provenance",
    "find_downloads",
    "given_files",
    "is_accepted",
    "is_finished",
    "put_in_root",
    "read_provenance",
    "read_records",
    "record_download",
    "record_finish",
    "record_restart",
    "recorded_digest",
    "steps_by_hand",
]

_HEAD = 4096
_BLOCK = 1 << 20
_LOCK = ".facedata-provenance-lock"
_LARGEST = 64 << 20
_BROWSER_COPY = re.compile(r"(.+?)(?: ?\(\d+\))?((?:\.[A-Za-z0-9]{1,4}){0,2})")


Accept = Callable[[CatalogueSet], str]
"""Shows the terms and asks for them to be accepted; returns how they were, or raises a `FacedataError`."""


def read_provenance(root: Path, name: str) -> dict[str, Any]:
    """The record of the set with that name in `root`, empty if there is none.

    Raises
    ------
    FormatError
        If the file is not one of facedata's.
    InputError
        If it cannot be read.
    """
    return read_records(root).get(name, {})


def read_records(root: Path) -> dict[str, dict[str, Any]]:
    """The records of all sets in `root`, by name; raises as `read_provenance`."""
    path = root / PROVENANCE
    if not os.path.lexists(path):
        return {}
    try:
        whole = json.loads(read_small(path, _LARGEST))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is not a record of downloads: {error}; move it away") from error
    sets: Any = whole.get("sets") if isinstance(whole, dict) else None
    if not isinstance(sets, dict):
        raise FormatError(f"{path}: is not a record of downloads: it has no 'sets'; move it away")
    for name, record in sets.items():
        tables = (record.get("downloads", {}), record.get("files", {})) if isinstance(record, dict) else (None,)
        if not all(isinstance(table, dict) for table in tables):
            raise FormatError(f"{path}: is not a record of downloads: its record of {name!a} is invalid; move it away")
    return sets


def recorded_digest(record: Mapping[str, Any], name: str) -> Digest | None:
    """The checksum that a download had when it was fetched or given, by the record of its set."""
    for algorithm in ALGORITHMS:
        with suppress(KeyError, TypeError, OptionError):
            return Digest(algorithm, record["downloads"][name][algorithm])
    return None


@contextmanager
def change_provenance(root: Path, name: str) -> Iterator[dict[str, Any]]:
    """The record of a set, to be changed; written when the block ends without an error.

    Records of other sets in the same root are kept, also those that another process writes meanwhile.
    """
    path = root / PROVENANCE
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = open_locked(root / _LOCK, wait=True)
        try:
            sets = read_records(root)
            yield sets.setdefault(name, {})
            text = json.dumps({"sets": sets, "facedata": __version__}, indent=2, ensure_ascii=False)
            with atomic_writer(path) as file:
                file.write(text.encode(errors="backslashreplace") + b"\n")
        finally:
            os.close(lock)
    except OSError as error:
        raise output_error(error, path) from error


def _now() -> str:
    """The time in UTC, to the second, in the format of ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def is_accepted(entry: CatalogueSet, record: Mapping[str, Any]) -> bool:
    """Whether these very terms have been accepted before, or there is nothing to accept."""
    before = record.get("accepted")
    return not entry.asks or (isinstance(before, dict) and before.get("digest") == _digest_of_terms(entry))


def accept_terms(entry: CatalogueSet, root: Path, accept: Accept) -> None:
    """Ask for the terms to be accepted, and record what was accepted and when; a `FacedataError` if they are not."""
    facts = {"how": accept(entry), "status": list(entry.status), "terms": entry.terms}
    with change_provenance(root, entry.name) as record:
        record["accepted"] = {"at": _now(), **facts, "digest": _digest_of_terms(entry)}


def _digest_of_terms(entry: CatalogueSet) -> str:
    return hashlib.sha256("\n".join(entry.terms).encode()).hexdigest()


def record_download(
    entry: CatalogueSet, root: Path, name: str, origin: str, size: int, digest: Digest, **more: str | None
) -> None:
    """Record where a download came from, a URL or a path, when, and with which size and checksum."""
    facts = {"from": origin, "at": _now(), "bytes": size, **more, digest.algorithm: digest.value}
    with change_provenance(root, entry.name) as record:
        record.setdefault("downloads", {})[name] = facts


def record_restart(entry: CatalogueSet, root: Path) -> None:
    """Record that the set is no longer finished, and mark what was downloaded before as old."""
    with change_provenance(root, entry.name) as record:
        record.pop("finished", None)
        for facts in record.get("downloads", {}).values():
            if isinstance(facts, dict):
                facts["old"] = True


def record_finish(entry: CatalogueSet, root: Path, placed: Iterable[str], results: Sequence[Result]) -> None:
    """Record that all files are in place and right: their sizes, how each was checked, and when."""
    right = [result for result in results if result.verdict == "OK"]
    files: dict[str, int | None] = {}
    for path in [*placed, *(result.found_at or result.path for result in right)]:
        whole = root / path
        if whole.exists():
            files[path] = None if whole.is_dir() else whole.stat().st_size
    with change_provenance(root, entry.name) as record:
        downloads = record.get("downloads", {})
        for facts in downloads.values():
            if isinstance(facts, dict):
                facts.pop("old", None)
        record["downloads"] = dict(sorted(downloads.items()))  # they end in any order
        record["title"] = entry.title
        record["files"] = files
        record["checked"] = dict(sorted((result.path, result.how) for result in right))
        record["finished"] = _now()


def is_finished(record: Mapping[str, Any], root: Path) -> bool:
    """Whether an earlier download finished, and its files still exist with the sizes they had."""
    files = record.get("files")
    if "finished" not in record or not isinstance(files, dict):
        return False
    try:
        return all(
            os.path.isdir(root / path) if size is None else os.path.getsize(root / path) == size
            for path, size in files.items()
        )
    except (OSError, ValueError):  # a name that no file can have
        return False


class ByHandError(InputError):
    """Files of a set that no program can fetch; the message has the steps for a person."""


@dataclass(frozen=True)
class AvailableFile:
    """A download that exists and is right: its published checksum, if there is one, is `digest`.

    It is `given` if the user named it or its folder, not if it was found in the root.
    """

    path: Path
    digest: Digest | None
    given: bool = False


@dataclass(frozen=True)
class Plan:
    """What there is to do to acquire a set, found out without a connection; `already` if everything was done before.

    Attributes
    ----------
    found : dict of str to AvailableFile
        Downloads that are available, by name.
    wrong : dict of str to str
        Files that have the name of a download but are not right, and why.
    fetch, by_hand : list of Download
        To be fetched by facedata, and by a person.
    """

    already: bool = False
    found: dict[str, AvailableFile] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    fetch: list[Download] = field(default_factory=list)
    by_hand: list[Download] = field(default_factory=list)


def given_files(entry: CatalogueSet, from_dir: Path | None, from_files: Sequence[Path]) -> list[Path]:
    """The files that the user points to, those named individually first.

    Raises
    ------
    ByHandError
        If no file of the set is known; the message says where to get it.
    InputError
        If a path is not a file, or the folder cannot be read.
    """
    if not entry.downloads:
        lines = [f"{entry.name}: facedata knows no files of this set that it could fetch or check"]
        lines += [*entry.terms, *entry.places, *filter(None, [entry.found_at])]
        lines.append(f"once you have it, add its files to your catalogue: facedata datasets {entry.name} --add FOLDER")
        raise ByHandError("\n  ".join(lines))
    for path in from_files:
        if not path.is_file():
            raise InputNotFoundError(f"{path}: {'is not a file' if path.exists() else 'no such file'} (--from-file)")
    if from_dir is None:
        return list(from_files)
    try:
        with os.scandir(from_dir) as entries:
            names = sorted(each.name for each in entries if each.is_file())
    except OSError as error:
        raise input_error(error, from_dir) from error
    # files of a folder of one's own are in their places below it, or below the folder that it is in
    places = [from_dir / each.place for each in entry.downloads if "/" in each.place]
    places += [Path(os.path.abspath(from_dir)).parent / each.place for each in entry.downloads if "/" in each.place]
    return [*from_files, *(from_dir / name for name in names), *filter(Path.is_file, places)]


def find_downloads(
    entry: CatalogueSet,
    root: Path,
    from_dir: Path | None = None,
    from_files: Sequence[Path] = (),
    *,
    distrusted: Collection[str] = (),
    workers: int | None = None,
    observer: Callable[[int, int], None] | None = None,
    stop: StopRequest | None = None,
) -> Plan:
    """Search for each download in the root, then among the files given, and check what is found, as `verify` does.

    `distrusted` are downloads of which the root may have an old one: they are searched for only among the files in
    `from_dir` and those of `from_files`.

    Raises
    ------
    InputError
        If the root has the archive of another set with the same name.
    """
    given = given_files(entry, from_dir, from_files)
    found: dict[str, AvailableFile] = {}
    wrong: dict[str, str] = {}
    sets = read_records(root)
    record = sets.get(entry.name, {})

    def check(folder: Path, wanted: Mapping[str, Download], is_given: bool) -> None:
        """Check the files of a folder together; `wanted` maps their names to the downloads that they may be."""
        recorded = {} if is_given else {name: recorded_digest(record, each.name) for name, each in wanted.items()}
        expected = [
            Expectation(path, download.digest or recorded.get(path), download.size, known=download.superseded)
            for path, download in wanted.items()
        ]
        for result in verify(folder, expected, workers=workers, observer=observer, stop=stop).results:
            download, path = wanted[result.path], folder / result.path
            title = _web_page(path) if result.verdict == "OK" and download.digest is None else None
            if result.verdict != "OK":
                wrong[os.fspath(path)] = result.detail or result.verdict
            elif title is not None:
                what = "a site shows such a page instead of the file"
                wrong[os.fspath(path)] = f"is a web page ('{title}'), not {download.name}: {what}"
            else:
                found[download.name] = AvailableFile(path, download.digest, is_given)

    in_root = {
        download.place or download.name: download
        for download in entry.downloads
        if download.name not in distrusted and download.path(root).is_file()
    }
    if in_root:
        check(root, in_root, is_given=False)
    tried: dict[str, set[Path]] = {download.name: set() for download in entry.downloads}
    while True:  # the likeliest file for each missing download, and the next one if it is not right
        batches: dict[Path, dict[str, Download]] = {}
        for download in entry.downloads:
            if download.name in found:
                continue
            for path in _candidates(download, given, from_files, is_only=len(entry.downloads) == 1):
                if path not in tried[download.name] and path.name not in batches.get(path.parent, {}):
                    tried[download.name].add(path)
                    batches.setdefault(path.parent, {})[path.name] = download
                    break
        if not batches:
            break
        for folder, wanted in batches.items():
            check(folder, wanted, is_given=True)
    # archives of several sets may have the same name, data.tar.gz for example; only a checksum tells them apart
    for download in filter(entry.is_archive, entry.downloads):
        path, file = download.path(root), found.get(download.name)
        is_proven = file is not None and file.digest is not None and not file.given
        owners = [name for name, record in sets.items() if download.name in record.get("downloads", {})]
        if owners and entry.name not in owners and not is_proven and path.exists():
            raise InputError(
                f"{path}: is the download of {owners[0]}; expected that of {entry.name}, "
                f"which has the same name: move it away, or give {entry.name} another --root"
            )
    used = {os.fspath(file.path) for file in found.values()}
    missing = [download for download in entry.downloads if download.name not in found]
    return Plan(
        found=found,
        wrong={path: reason for path, reason in wrong.items() if path not in used},
        fetch=[download for download in missing if entry.links(download)],
        by_hand=[download for download in missing if not entry.links(download)],
    )


def _candidates(download: Download, given: Sequence[Path], named: Sequence[Path], is_only: bool) -> Iterator[Path]:
    """The given files that may be that download, the likeliest first.

    Browsers name a second copy ``data (1).tar.gz``. A file that was named individually may have any name if the set has
    no other download, or if a checksum can show what it is.
    """
    names = {download.name, *download.superseded_names}

    def is_copy(path: Path) -> bool:
        match = _BROWSER_COPY.fullmatch(path.name)
        return match is not None and match[1] + match[2] in names

    if "/" in download.place:
        yield from (path for path in given if path.as_posix().endswith(f"/{download.place}"))
    yield from (path for path in given if path.name in names)
    yield from filter(is_copy, given)
    if is_only or download.digest is not None:
        yield from named


def _web_page(path: Path) -> str | None:
    with opened_regular(path) as descriptor:
        return web_page_title(os.read(descriptor, _HEAD))


def put_in_root(
    entry: CatalogueSet, download: Download, file: AvailableFile, root: Path, stop: StopRequest | None = None
) -> Path:
    """Give a file that was fetched by hand a second name in the root; returns where to read the download.

    On another disk an archive is used where it is, because a copy would only cost time and space; a file that is not
    unpacked is copied.
    """
    final = download.path(root)
    if not file.given or final == file.path:
        return file.path
    try:
        if final.exists() and final.samefile(file.path):
            return final
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(final)
        try:
            os.link(os.path.realpath(file.path), temporary)  # a symbolic link may point nowhere from another folder
        except OSError:
            if entry.is_archive(download):
                return file.path
            with open(file.path, "rb") as source, atomic_writer(final) as copy:
                while block := source.read(_BLOCK):
                    check_stop(stop)
                    copy.write(block)
        else:
            os.replace(temporary, final)
    except OSError as error:
        raise output_error(error, final) from error
    if download.digest:
        remember(root, os.path.relpath(final, root), download.digest)
    return final


def steps_by_hand(entry: CatalogueSet, missing: Sequence[Download], root: Path) -> str:
    """What a person does to get the missing files, and the command that resumes."""
    lines = [f"{entry.name}: no program can fetch these files; fetch them in a browser:"]
    for download in missing:
        lines.append(f"  {download.name}  ({download.digest or 'no checksum published'})")
    if places := [*entry.places, *filter(None, [entry.found_at])]:
        lines += ["from:", *(f"  {place}" for place in places)]
    else:
        lines.append("facedata knows no place to get them from")
    command = f"  facedata download {entry.name} --root {shlex.quote(os.fspath(root))}"
    what = "folder or the file" if len(missing) == 1 else "folder that they are in"
    lines += [f"then run this, with the {what}:", f"{command} --from-dir ~/Downloads"]
    if len(missing) == 1:
        lines.append(f"{command} --from-file ~/Downloads/{shlex.quote(missing[0].name)}")
    return "\n".join(lines)
