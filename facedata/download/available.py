"""Downloads that need not be fetched: in the root already, or fetched by hand; and the steps to fetch one by hand."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from facedata.download.catalogue import CatalogueSet, Download
from facedata.download.checksums import Digest, remember
from facedata.download.pages import web_page_title
from facedata.download.provenance import read_all_provenance
from facedata.download.verify import Expectation, verify
from facedata.download.walk import check_stop
from facedata.errors import InputError, InputNotFoundError, input_error, output_error
from facedata.files import atomic_writer, opened_regular, temporary_name
from facedata.jobs.signals import StopRequest

__all__ = [
    "AvailableFile",
    "ByHandError",
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
    """A download that exists and is right.

    Attributes
    ----------
    digest : Digest, optional
        Its published checksum, which it has; None if none is published.
    given : bool
        True if the user named it or its folder, False if it was found in the root.
    """

    path: Path
    digest: Digest | None
    given: bool = False


def given_files(from_dir: Path | None, from_files: Sequence[Path]) -> list[Path]:
    """The files that the user points to, those named individually first.

    Raises
    ------
    InputError
        If one does not exist or is not a file.
    """
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
    given: Sequence[Path] = (),
    named: Sequence[Path] = (),
    *,
    distrusted: Collection[str] = (),
    workers: int | None = None,
    observer: Callable[[int, int], None] | None = None,
    stop: StopRequest | None = None,
) -> tuple[dict[str, AvailableFile], dict[str, str]]:
    """Search for each download in the root, then among the files given, and check what is found.

    Parameters
    ----------
    entry : CatalogueSet
    root : path
    given, named : sequence of path
        The files that the user points to, and those of them that were named individually, with ``--from-file``.
    distrusted : collection of str
        Downloads of which the root may have an old one: they are searched for among the files given only.
    workers, observer, stop
        As in `verify`.

    Returns
    -------
    found : dict of str to AvailableFile
        The right files, by the names of the downloads.
    wrong : dict of str to str
        The files that have the name of a download and are not right, by path, with the reason.

    Raises
    ------
    InputError
        If the root has the archive of another set with the same name.
    InterruptedJobError
        If `stop` is set.
    """
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
            for path in _candidates(download, given, named, is_only=len(entry.downloads) == 1):
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
    return found, {path: reason for path, reason in wrong.items() if path not in used}


def _candidates(download: Download, given: Sequence[Path], named: Sequence[Path], is_only: bool) -> Iterator[Path]:
    """The given files that may be that download, the likeliest first.

    Browsers name a second copy ``data (1).tar.gz``. A file that was named individually may have any name if the set has
    no other download, or if a checksum can show what it is.
    """
    names = {download.name, *download.superseded_names}

    def original(name: str) -> str:
        match = _BROWSER_COPY.fullmatch(name)
        return match[1] + match[2] if match else name

    yield from (path for path in given if path.name in names)
    yield from (path for path in given if path.name not in names and original(path.name) in names)
    if is_only or download.digest is not None:
        yield from (path for path in named if path.name not in names and original(path.name) not in names)


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
    """Give a file that was fetched by hand a second name in the root.

    On another disk an archive is used where it is, because a copy would only cost time and space; a file that is not
    unpacked is copied. Returns where to read the download.

    Raises
    ------
    InterruptedJobError
        If `stop` is set during the copy.
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
