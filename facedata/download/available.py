"""Downloads that need not be fetched: in the root already, or fetched by hand; and the steps to fetch one by hand."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from facedata.download.catalogue import CatalogueSet, Download
from facedata.download.checksums import Digest, remember
from facedata.download.provenance import read_all_provenance
from facedata.download.verify import Expectation, verify
from facedata.download.walk import check_stop
from facedata.errors import InputError, InputNotFoundError, input_error, output_error
from facedata.files import atomic_writer, opened_regular, temporary_name
from facedata.jobs.signals import StopRequest
from facedata.text import web_page_title

__all__ = [
    "AvailableFile",
    "ByHandError",
    "Plan",
    "find_downloads",
    "given_files",
    "put_in_root",
    "require_downloads",
    "set_aside",
    "steps_by_hand",
]

_HEAD = 4096
_BLOCK = 1 << 20
_BROWSER_COPY = re.compile(r"(.+?)(?: ?\(\d+\))?((?:\.[A-Za-z0-9]{1,4}){0,2})")


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


def given_files(from_dir: Path | None, from_files: Sequence[Path]) -> list[Path]:
    """The files that the user points to, those named individually first; `InputError` if one is not a file."""
    for path in from_files:
        if not path.is_file():
            raise InputNotFoundError(f"{path}: {'is not a file' if path.exists() else 'no such file'} (--from-file)")
    if from_dir is None:
        return list(from_files)
    try:
        with os.scandir(from_dir) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file())
    except OSError as error:
        raise input_error(error, from_dir) from error
    return [*from_files, *(from_dir / name for name in names)]


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
    """Search for each download in the root, then among the files given, and check what is found.

    Parameters
    ----------
    entry : CatalogueSet
    root : path
    from_dir, from_files : path
        A folder with files that the user points to, and such files that were named individually.
    distrusted : collection of str
        Downloads of which the root may have an old one: they are searched for among the files given only.
    workers, observer, stop
        As in `verify`, which also says what is raised.

    Raises
    ------
    InputError
        If the root has the archive of another set with the same name.
    """
    given = given_files(from_dir, from_files)
    found: dict[str, AvailableFile] = {}
    wrong: dict[str, str] = {}

    def check(folder: Path, wanted: Mapping[str, Download], is_given: bool) -> None:
        """Check the files of a folder together; `wanted` maps their names to the downloads that they may be."""
        expected = [
            Expectation(path, download.digest, download.size, known=download.superseded)
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
    sets = read_all_provenance(root)
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

    yield from (path for path in given if path.name in names)
    yield from filter(is_copy, given)
    if is_only or download.digest is not None:
        yield from named


def _web_page(path: Path) -> str | None:
    with opened_regular(path) as descriptor:
        return web_page_title(os.read(descriptor, _HEAD))


def set_aside(path: Path) -> Path:
    """Rename a wrong file, so that the right one can take its place; returns the new path."""
    aside = path.with_name(f"{path.name}.wrong")
    numbers = itertools.count(2)
    while os.path.lexists(aside):
        aside = path.with_name(f"{path.name}.wrong-{next(numbers)}")
    try:
        os.replace(path, aside)
    except OSError as error:
        raise output_error(error, path) from error
    return aside


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
    if entry.places:
        lines += ["from:", *(f"  {place}" for place in entry.places)]
    else:
        lines.append("facedata knows no place to get them from")
    command = f"  facedata download {entry.name} --root {shlex.quote(os.fspath(root))}"
    if len(missing) == 1:
        lines.append("then run one of these, with the folder that it is in, or with the file:")
        lines.append(f"{command} --from-dir ~/Downloads")
        lines.append(f"{command} --from-file ~/Downloads/{shlex.quote(missing[0].name)}")
    else:
        lines.append("then run this, with the folder that they are in:")
        lines.append(f"{command} --from-dir ~/Downloads")
    return "\n".join(lines)


def require_downloads(entry: CatalogueSet) -> None:
    """Raise `ByHandError` for a set without a single known file; the message says where to get it."""
    if not entry.downloads:
        lines = [f"{entry.name}: facedata knows no files of this set that it could fetch or check"]
        lines += [*entry.terms, *entry.places]
        lines.append("once you have it, add its files to a catalogue of your own: docs/reference/catalogue.md")
        raise ByHandError("\n  ".join(lines))
