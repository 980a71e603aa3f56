"""What unpacking may write into the output, and writes there: unfinished work, the final files, and the record.

``.facedata-extract-<id>/`` lies in the output, so that finished files are renamed, not copied:

- ``tree/`` holds the members under their own names;
- ``progress.json`` is replaced every second. It survives the death of the process, but is trusted only until the
  machine restarts, since the members that it counts need not be on the disk;
- ``synced.json`` is an earlier state, written after all members that it counts were forced to the disk;
- ``refused.jsonl`` names each member that was not unpacked;
- ``names`` has 8 bytes for each name that a member took: see `MemberNames`.

``.facedata-extracted-<id>.json`` is the record of a finished archive, so that the same command does nothing next time.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import stat
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from facedata.download.archives.parts import Archive
from facedata.download.checksums import Digest
from facedata.download.walk import HashedNames, name_hash
from facedata.errors import FacedataError, OutputExistsError
from facedata.files import (
    atomic_writer,
    boot_id,
    combined_identity,
    file_identity,
    make_own_folder,
    open_own,
    output_errors,
    read_small,
)
from facedata.jobs.journal import EXTRACTING
from facedata.jobs.plan import COUNT, TEXT, Shape, check_shape
from facedata.names import Folding

__all__ = ["OWN_PREFIX", "Extraction", "MemberNames", "OutputConflicts", "Progress", "Staging", "publish", "safe_name"]

OWN_PREFIX = ".facedata-extract"
"""The prefix of this package's own files in the output; members at the top level may not have it."""

_PLAIN_NAME = re.compile(r"[^/\0.][^/\0]{0,59}(?:/[^/\0.][^/\0]{0,59}){0,15}")
_LONGEST_COMPONENT = 255
_MOST_COMPONENTS = 200  # each folder takes a call to make and one to delete
_LONGEST_NAME = 3000  # a path may have 4096 bytes, and the output's own path takes some
_CACHED_FOLDERS = 4096
_CACHED_LISTS = 8
_SYMBOLIC_LINK = "its path leads through a symbolic link in the output"
_MOST_TOP_LEVEL = 1000
_MOST_SAMPLES = 64
_FIRST_REFUSED = 100  # named in the record; all others only in their list
_BATCH = 10_000
_LARGEST = 64 << 20  # bytes of a record, which has the digests of members
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Extraction:
    """The result of unpacking an archive.

    Attributes
    ----------
    archive, output : str
        The archive's name and the folder.
    files, folders, bytes : int
        Unpacked.
    refused_count : int
        Members that were not unpacked.
    refused : tuple of (name, reason)
        The first of them, at most 100; the file `refused_list` names all, one JSON object a line.
    top_level : tuple of str
        The names at the top level, at most 1000.
    digests : dict of str to Digest
        Of the members that were to be hashed.
    done_before : bool
        An earlier run did all of it; this one did nothing.
    """

    archive: str
    output: str
    files: int
    folders: int
    bytes: int
    refused_count: int = 0
    refused: tuple[tuple[str, str], ...] = ()
    refused_list: str | None = None
    top_level: tuple[str, ...] = ()
    digests: Mapping[str, Digest] = field(default_factory=dict)
    done_before: bool = False


@dataclass
class Progress:
    """How much of an archive has been unpacked.

    `mark` is the `Member.mark` of the last finished member, `refused_bytes` the length of the list of refused members.
    `samples` has names and sizes of some files, at most 64, spread over the archive, by which a later run sees whether
    the output still exists; `names` says how many hashes the file of the names has. If it is `complete`, everything is
    unpacked, verified and on the disk.
    """

    mark: int = 0
    files: int = 0
    folders: int = 0
    bytes: int = 0
    refused: int = 0
    refused_bytes: int = 0
    top_level: dict[str, None] = field(default_factory=dict)
    digests: dict[str, tuple[str, str]] = field(default_factory=dict)
    samples: list[tuple[str, int]] = field(default_factory=list)
    sample_every: int = 1
    names: int = 0
    complete: bool = False

    def add(self, name: str, size: int | None) -> None:
        """Count a finished member, of `size` bytes, or a folder if that is None."""
        if len(self.top_level) < _MOST_TOP_LEVEL:
            self.top_level[name.partition("/")[0]] = None
        if size is None:
            self.folders += 1
            return
        if self.files % self.sample_every == 0:
            self.samples.append((name, size))
            if len(self.samples) >= _MOST_SAMPLES:
                self.samples, self.sample_every = self.samples[::2], 2 * self.sample_every
        self.files += 1
        self.bytes += size


class Staging:
    """The files that unpacking leaves in an output: a hidden `folder` with the `tree` of members and more."""

    def __init__(self, archive: Archive, output: Path, encoding: str | None = None) -> None:
        self._archive, self._output = archive, output
        self._identities: list[dict[str, Any]] = [file_identity(part) for part in archive.parts]
        # these change if a part is replaced by another file with the same name and size
        self._versions = [
            [str(part.absolute()), status.st_size, status.st_mtime_ns, status.st_ino]
            for part, status in ((part, os.stat(part)) for part in archive.parts)
        ]
        if archive.kind == "tar":
            # a plain tar archive does not prove its content: one that was fetched again after a damaged one has the
            # same size and often the same samples, and must not count as unpacked
            for identity, (_, _, modified, inode) in zip(self._identities, self._versions, strict=True):
                identity["written"] = f"{modified} {inode}"
        if encoding is not None:  # the names differ: another folder, and another record
            self._identities[0]["encoding"] = encoding
        name = combined_identity(("", json.dumps(part, sort_keys=True)) for part in self._identities)[:16]
        self.folder = output / f"{OWN_PREFIX}-{name}"
        self.tree = self.folder / "tree"
        self.refused = self.folder / "refused.jsonl"
        self.names = self.folder / "names"
        self._mark = output / EXTRACTING  # as long as the output may hold a part of an archive
        self._record = output / f"{OWN_PREFIX}ed-{name}.json"
        self._final_refused = output / f"{OWN_PREFIX}ed-{name}-refused.jsonl"

    def open(self) -> Progress:
        """Continue where an earlier run stopped, or begin; returns its progress."""
        own = {version[0] for version in self._versions}
        with suppress(OSError):
            for folder in self._output.glob(f"{OWN_PREFIX}-*"):
                parts = _read_json(folder / "progress.json").get("parts")
                others = parts if isinstance(parts, list) and folder != self.folder else []
                if own & {str(part[0]) for part in others if isinstance(part, list) and part}:
                    _log.info("%s: deleted, since the parts that it was unpacked from have changed", folder)
                    shutil.rmtree(folder)
        found: list[Progress] = []
        for name in ("progress.json", "synced.json"):
            state = _read_json(self.folder / name)
            trusted = name == "synced.json" or state.get("boot") == boot_id() != ""
            if trusted and state.get("parts") == self._versions and not self.folder.is_symlink():
                with suppress(KeyError, TypeError, ValueError):
                    check_shape(state["progress"], _PROGRESS)
                    found.append(Progress(**state["progress"]))
        walk = os.walk(self.tree) if found else ()  # of no archive does a link get there
        if not found or any(os.path.islink(os.path.join(above, name)) for above, names, _ in walk for name in names):
            self.remove()
            found = []
        progress = max(found, key=lambda progress: (progress.complete, progress.mark), default=Progress())
        with output_errors(self.folder):
            make_own_folder(self.tree)
            self.write(progress)
            if not progress.complete:  # else the list may have been published
                with open(self.refused, "ab", opener=open_own) as file:
                    file.truncate(progress.refused_bytes)
        return progress

    def sync(self, progress: Progress) -> None:
        """Force all members to the disk, then write that those which `progress` counts are there."""
        import ctypes

        syncfs = getattr(ctypes.CDLL(None), "syncfs", None)  # musl before 1.1 and other systems have none
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if syncfs is None or syncfs(descriptor) != 0:
                os.sync()
        finally:
            os.close(descriptor)
        self.write(progress, "synced.json", sync=True)

    def write(self, progress: Progress, name: str = "progress.json", *, sync: bool = False) -> None:
        """Write how far the archive is unpacked."""
        state = {"parts": self._versions, "boot": boot_id(), "progress": asdict(progress)}
        with output_errors(self.folder / name), atomic_writer(self.folder / name, sync=sync) as file:
            file.write(json.dumps(state).encode())

    def remove(self) -> None:
        """Remove all that was unpacked and not published."""
        with output_errors(self.folder):
            if self.folder.is_symlink():
                self.folder.unlink()
            elif self.folder.exists():
                shutil.rmtree(self.folder)

    def begin_publishing(self) -> None:
        """Say in the output that it is not complete, for `refuse_unfinished`."""
        os.close(open_own(self._mark))

    def close(self) -> None:
        """Remove the hidden folder, and the mark unless another archive is unfinished."""
        if not any(path.parent != self.folder for path in self._output.glob(f"{OWN_PREFIX}-*/synced.json")):
            self._mark.unlink(missing_ok=True)
        self.remove()

    def finish(self, progress: Progress) -> Extraction:
        """Write the record, the last thing written, and remove the hidden folder."""
        refused: list[tuple[str, str]] = []
        if progress.refused:
            if self.refused.exists():
                os.replace(self.refused, self._final_refused)
            with open(self._final_refused, "rb") as file:
                lines = [json.loads(line) for line in islice(file, _FIRST_REFUSED)]
            refused = [(line["name"], line["reason"]) for line in lines]
        progress.samples = [sample for sample in progress.samples if _is_file(self._output / sample[0], sample[1])]
        parts = zip(self._archive.parts, self._identities, strict=True)
        record = {
            "archive": self._archive.name,
            "parts": [{"name": part.name, **identity} for part, identity in parts],
            **asdict(progress),
            "first_refused": refused,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with atomic_writer(self._record) as file:
            file.write(json.dumps(record, indent=2).encode() + b"\n")
        self.close()
        return self._extraction(record, done_before=False)

    def forget_record(self) -> None:
        """Remove the record of an earlier run."""
        with output_errors(self._record):
            self._record.unlink(missing_ok=True)

    def read_record(self) -> Extraction | None:
        """Read what an earlier run unpacked, if it still exists; None if not, or if the record is corrupt."""
        record = _read_json(self._record)
        try:
            check_shape(record, _RECORD)
            extraction = self._extraction(record, done_before=True)
            exists = all(_is_file(self._output / name, size) for name, size in record["samples"])
        except (KeyError, TypeError, ValueError):
            return None
        return extraction if exists and all(os.path.lexists(self._output / n) for n in extraction.top_level) else None

    def _extraction(self, record: Mapping[str, Any], *, done_before: bool) -> Extraction:
        return Extraction(
            archive=record["archive"],
            output=str(self._output),
            files=record["files"],
            folders=record["folders"],
            bytes=record["bytes"],
            refused_count=record["refused"],
            refused=tuple((name, reason) for name, reason in record["first_refused"]),
            refused_list=str(self._final_refused) if record["refused"] else None,
            top_level=tuple(record["top_level"]),
            digests={name: Digest(kind, text) for name, (kind, text) in record["digests"].items()},
            done_before=done_before,
        )


def _are_pairs(value: Any, second: type) -> bool:
    pairs = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    return pairs and all(isinstance(name, str) and isinstance(other, second) for name, other in value)


_COUNTS = {"files": COUNT, "folders": COUNT, "bytes": COUNT, "refused": COUNT}
_LISTS: Shape = {
    "top_level": (lambda value: isinstance(value, dict), "an object of names"),
    "digests": (
        lambda value: isinstance(value, dict) and all(_are_pairs([pair], str) for pair in value.values()),
        "an object of digests",
    ),
    "samples": (lambda value: _are_pairs(value, int), "a list of names and sizes"),
}
_RECORD: Shape = {
    "archive": TEXT,
    **_COUNTS,
    **_LISTS,
    "first_refused": (lambda value: _are_pairs(value, str), "a list of names and reasons"),
}
_PROGRESS: Shape = {
    **_COUNTS,
    **_LISTS,
    **dict.fromkeys(("mark", "refused_bytes", "names?"), COUNT),
    "sample_every": (lambda value: COUNT[0](value) and value > 0, "a number from 1"),
    "complete": (lambda value: isinstance(value, bool), "true or false"),
}


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one if it is missing or corrupt."""
    try:
        value = json.loads(read_small(path, _LARGEST))
    except (OSError, FacedataError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_file(path: Path, size: int) -> bool:
    try:
        found = os.lstat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def safe_name(name: str) -> tuple[str, str]:
    """The relative path that a member's name stands for, and why it may not be used, empty if it may.

    The path has no ``.``, no empty components and no slash at its end; it is empty for the output folder itself.
    """
    if _PLAIN_NAME.fullmatch(name) and name.isascii():
        return name, ""
    if name.startswith("/"):
        return "", "an absolute name"
    if not name:
        return "", "an empty name"
    if "\0" in name:
        return "", "a name with a zero byte"
    components = [component for component in name.split("/") if component not in ("", ".")]
    lengths = [len(os.fsencode(component)) for component in components]
    refusal = ""
    if ".." in components:
        refusal = "a name that leads out of the folder ('..')"
    elif components and components[0].startswith(OWN_PREFIX):
        refusal = f"a name that is reserved by facedata ({OWN_PREFIX}...)"
    elif max(lengths, default=0) > _LONGEST_COMPONENT or sum(lengths) + len(lengths) > _LONGEST_NAME:
        refusal = "a name that is too long for a file system"
    elif len(components) > _MOST_COMPONENTS:
        refusal = f"a name in more than {_MOST_COMPONENTS - 1} nested folders"
    return "/".join(components), refusal


class MemberNames:
    """The names that members have taken, in a file too, by which a resumed run knows them.

    A second member of a name would replace the first. If the file system ignores case, for example, ``A`` is the name
    of ``a``, and a folder may come again in the same letters only.
    """

    def __init__(self, path: Path, count: int, folding: Folding) -> None:
        ignored = f", and the file system of the output ignores {folding}" if any(folding) else ""
        self._folding, self._reason, self.count = folding, f"the archive has this name before{ignored}", count
        self._file = os.fdopen(open_own(path), "r+b")
        self._file.truncate(8 * count)
        blocks = iter(lambda: self._file.read(8 * _BATCH), b"")
        self._known = HashedNames(value for block in blocks for value in array("q", block))

    def refusal(self, name: str, *, is_folder: bool) -> str:
        """Why a name is not free, empty if it is; takes its folders."""
        *parents, _ = (f"{name}/" if is_folder else name).split("/")
        for path in accumulate(parents, "{}/{}".format) if any(self._folding) else ():
            if f"{path}//" not in self._known:  # which no member is called
                if f"{self._folding(path)}/" in self._known:
                    return self._reason
                self._add(f"{path}//")
                self._add(f"{self._folding(path)}/")
        return self._reason if not is_folder and self._folding(name) in self._known else ""

    def take(self, name: str) -> None:
        """Take the name of a file."""
        self._add(self._folding(name))

    def _add(self, text: str) -> None:
        self._known.add(text)
        self._file.write(name_hash(text).to_bytes(8, sys.byteorder, signed=True))
        self.count += 1

    def save(self) -> None:
        """Write all `count` hashes to the file."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class OutputConflicts:
    """Finds out whether a member's path in the output is free; `parts` of the archive are never overwritten."""

    def __init__(self, output: Path, parts: Iterable[Path], folding: Folding, *, overwrite: bool) -> None:
        self._output, self._overwrite, self._folding = str(output), overwrite, folding
        self._spelling = spelling = folding._replace(case=False)  # some file systems change the Unicode form themselves
        self._names_in = lru_cache(_CACHED_LISTS)(
            lambda folder: HashedNames(name_hash(spelling(name)) for name in os.listdir(folder))
        )
        self._parts = [os.stat(part) for part in parts]
        self._examine_folder = lru_cache(_CACHED_FOLDERS)(self._examine)

    def refusal(self, name: str, *, is_folder: bool) -> str:
        """Return why a member may not be written at `name`; empty if it may.

        Raises
        ------
        OutputExistsError
            If something exists there that may not be replaced.
        """
        exists, refusal = self._examine_folder(name.rpartition("/")[0])
        path = f"{self._output}/{name}"
        found = _lstat(path) if exists else None
        if found is None or refusal:
            return refusal
        if stat.S_ISDIR(found.st_mode):
            if is_folder:
                return ""
            raise OutputExistsError(f"{path}: is a folder, but the archive has a file of that name")
        if is_folder:
            if stat.S_ISLNK(found.st_mode):
                return _SYMBOLIC_LINK
            raise OutputExistsError(f"{path}: is a file, but the archive has a folder of that name")
        if any(os.path.samestat(found, part) for part in self._parts):
            return "the name of the archive that is being unpacked"
        if not self._overwrite:
            raise OutputExistsError(
                f"{path}: already exists; choose another output, move it away, or give --overwrite to replace the "
                "files that the archive has too"
            )
        return ""

    def _examine(self, folder: str) -> tuple[bool, str]:
        """Whether a folder exists in the output, and why nothing may be written in it."""
        path = self._output
        for component in folder.split("/") if folder else []:
            path = f"{path}/{component}"
            found = _lstat(path)
            if found is None:
                return False, ""
            if stat.S_ISLNK(found.st_mode):
                return False, _SYMBOLIC_LINK
            if not stat.S_ISDIR(found.st_mode):
                raise OutputExistsError(f"{path}: is a file, but the archive has a folder of that name")
            place, _, name = path.rpartition("/")
            if any(self._folding) and self._spelling(name) not in self._names_in(place):
                raise OutputExistsError(
                    f"{path}: exists in other letters, and this file system ignores {self._folding}: two folders would "
                    "become one; choose another output"
                )
        return True, ""


def _lstat(path: str) -> os.stat_result | None:
    with output_errors(path):
        try:
            return os.lstat(path)
        except FileNotFoundError:
            return None


def publish(tree: Path, output: Path, *, overwrite: bool, check_stop: Callable[[], None]) -> None:
    """Move everything in `tree` to `output`: whole folders if they do not exist there, else file by file.

    Called again after an interruption, it continues. Nothing is copied.

    Raises
    ------
    OutputExistsError
        If something appeared in the output since the members were unpacked.
    """
    folders, merged = [""], []
    while folders:
        folder = folders.pop()
        merged.append(folder)
        for name, is_folder in _list_folder(tree / folder):
            check_stop()
            path = os.path.join(folder, name)
            source, target = str(tree / path), str(output / path)
            found = _lstat(target)
            exists_as_folder = found is not None and stat.S_ISDIR(found.st_mode)
            if found is None:
                os.rename(source, target)
            elif is_folder and exists_as_folder:
                folders.append(path)
            elif is_folder or exists_as_folder or not overwrite:
                advice = "" if is_folder or exists_as_folder else ", or give --overwrite to replace it"
                raise OutputExistsError(
                    f"{target}: appeared while the archive was being unpacked, which is complete except for this; "
                    f"move it away and run the same command again{advice}"
                )
            else:
                os.replace(source, target)
    for folder in reversed(merged[1:]):
        os.rmdir(tree / folder)


def _list_folder(folder: Path) -> Iterator[tuple[str, bool]]:
    """Name and whether it is a folder of each entry of a folder that is being emptied; in batches, for millions."""
    kept: set[str] = set()
    while True:
        with os.scandir(folder) as entries:
            new = ((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries if entry.name not in kept)
            batch = list(islice(new, _BATCH))
        if not batch:
            return
        yield from batch
        kept.update(name for name, is_folder in batch if is_folder)
