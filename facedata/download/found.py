"""Which downloads of a set are there already, in the root or among the files that the user fetched by hand."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from facedata.download.by_hand import candidates
from facedata.download.catalogue import CatalogueSet, Download
from facedata.download.checksums import remember
from facedata.download.digest import Digest
from facedata.download.transfer import web_page_title
from facedata.download.verify import Expectation, Result, verify
from facedata.errors import InterruptedJobError, input_error, output_error
from facedata.files import atomic_writer, temporary_name
from facedata.jobs.signals import StopRequest

__all__ = ["Found", "find_downloads", "is_archive", "put_in_root", "set_aside", "target"]

_HEAD = 4096
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Found:
    """A download that is there and is what it should be.

    Attributes
    ----------
    path : path
    digest : Digest, optional
        Its published checksum, which holds; None where none was published.
    given : bool
        Whether the user pointed at it, outside of the root.
    """

    path: Path
    digest: Digest | None
    given: bool = False


def target(download: Download, root: Path) -> Path:
    """Where a download lies below the root."""
    return root / (download.place or download.name)


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
) -> tuple[dict[str, Found], dict[str, str]]:
    """Look for each download, first in the root, then among the files given; check what is found.

    `distrusted` names downloads of which the root may have an old one: they are looked for among the files given only.

    Returns
    -------
    found : dict of str to Found
        By name, what is there and right.
    wrong : dict of str to str
        By path, what is there, may have been meant, and is none of them, with the reason.
    """
    found: dict[str, Found] = {}
    wrong: dict[str, str] = {}

    def check(folder: Path, wanted: Mapping[str, Download], is_given: bool) -> None:
        """Check files of one folder, all at once; `wanted` maps their names to what they may be."""
        if not wanted:
            return
        expected = [_expectation(path, download) for path, download in wanted.items()]
        results: list[Result] = []
        verify(folder, expected, workers=workers, observer=observer, stop=stop, on_result=results.append)
        for result in results:
            download, path = wanted[result.path], folder / result.path
            reason = _reason(result, path, download)
            if reason:
                wrong[os.fspath(path)] = reason
            else:
                found[download.name] = Found(path, download.digest, is_given)

    here = {one.place or one.name: one for one in entry.downloads if one.name not in distrusted}
    check(root, {path: one for path, one in here.items() if (root / path).is_file()}, is_given=False)
    for folder, wanted in _rounds(entry, given, named, found):
        check(folder, wanted, is_given=True)
    used = {os.fspath(one.path) for one in found.values()}
    return found, {path: reason for path, reason in wrong.items() if path not in used}


def _rounds(
    entry: CatalogueSet, given: Sequence[Path], named: Sequence[Path], found: Mapping[str, Found]
) -> Iterable[tuple[Path, Mapping[str, Download]]]:
    """What to check next: folders, and which of their files may be which download that is still missing."""
    tried: dict[str, set[Path]] = {}
    while True:
        batches: dict[Path, dict[str, Download]] = {}
        for download in entry.downloads:
            if download.name in found:
                continue
            seen = tried.setdefault(download.name, set())
            likely = candidates(download, given, named, alone=len(entry.downloads) == 1)
            path = next(
                (path for path in likely if path not in seen and path.name not in batches.get(path.parent, {})), None
            )
            if path is not None:
                seen.add(path)
                batches.setdefault(path.parent, {})[path.name] = download
        if not batches:
            return
        yield from batches.items()


def _expectation(path: str, download: Download) -> Expectation:
    return Expectation(path=path, digest=download.digest, size=download.size, known=download.superseded)


def _reason(result: Result, path: Path, download: Download) -> str:
    """Why a file is not the download, or nothing."""
    if result.verdict != "OK":
        return result.detail or result.verdict
    if download.digest is None and (title := _page(path)) is not None:
        return f"is a web page ('{title}'), not {download.name}: what a site shows instead of a file"
    return ""


def _page(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            return web_page_title(file.read(_HEAD))
    except OSError as error:
        raise input_error(error, path) from error


def set_aside(path: Path) -> Path:
    """Keep a wrong file under another name, so that the right one can take its place; the name it has then."""
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
    entry: CatalogueSet, download: Download, found: Found, root: Path, stop: StopRequest | None = None
) -> Path:
    """Have a file that the user fetched by hand in the root too, as a second name of the same file.

    On another disk an archive is used where it is, for a copy would cost time and space for nothing, and what is not
    unpacked is copied.

    Returns
    -------
    path
        Where it is read from.

    Raises
    ------
    InterruptedJobError
        Where `stop` was asked for while it is copied.
    """
    final = target(download, root)
    if not found.given or final == found.path:
        return found.path
    try:
        if final.exists() and final.samefile(found.path):
            return final
        final.parent.mkdir(parents=True, exist_ok=True)
        if not _link(found.path, final):
            if is_archive(entry, download):
                return found.path
            _copy(found.path, final, stop)
    except OSError as error:
        raise output_error(error, final) from error
    if download.digest:
        remember(root, os.path.relpath(final, root), download.digest)
    return final


def _link(path: Path, final: Path) -> bool:
    """Give the file a second name, in one step; whether that could be done."""
    temporary = temporary_name(final)
    try:
        os.link(os.path.realpath(path), temporary)  # the file itself: a symbolic link may mean nothing elsewhere
    except OSError:
        return False
    try:
        os.replace(temporary, final)
    except OSError:
        os.unlink(temporary)
        raise
    return True


def _copy(path: Path, final: Path, stop: StopRequest | None) -> None:
    with open(path, "rb") as source, atomic_writer(final) as copy:
        while block := source.read(_BLOCK):
            if stop:
                raise InterruptedJobError(f"stopped by {stop.signal_name} while {path} was copied; run it again")
            copy.write(block)


def is_archive(entry: CatalogueSet, download: Download) -> bool:
    """Whether a download is to be unpacked."""
    return not entry.place_of(download)
