"""What is known of a half-fetched file, beside it in ``<name>.part.json``.

Bytes written survive the death of the process, not a power cut. So two records are kept: what was written, which
counts only while the machine has not been started anew, and what was forced to the disk, which always counts.
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from facedata.files import temporary_name

__all__ = ["State", "boot_id", "read_state", "write_state"]

_VERSION = 1
_LARGEST = 1 << 22
_MOST_BYTES = 1 << 60


@dataclass(frozen=True)
class State:
    """Where a half came from, and which bytes of it are there.

    Attributes
    ----------
    link : str
        The address of the link.
    etag, last_modified : str or None
        What the server called that version of the file.
    total : int or None
        Its size.
    resumable : bool
        Whether the server gives ranges of it.
    encoding : {None, 'kept'}
        ``kept`` where the server calls the file itself an encoding of something else.
    ordered : bool
        Whether it was written from front to back, so that its size says what is there.
    written, synced : list of pairs of int
        Ranges of bytes.
    boot : str
        Since when `written` and `ordered` hold.
    """

    link: str = ""
    etag: str | None = None
    last_modified: str | None = None
    total: int | None = None
    resumable: bool = False
    encoding: str | None = None
    ordered: bool = True
    written: list[tuple[int, int]] = field(default_factory=list)
    synced: list[tuple[int, int]] = field(default_factory=list)
    boot: str = ""

    @property
    def validator(self) -> str | None:
        """What ``If-Range`` takes: a strong ETag, or else a date."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified


def boot_id() -> str:
    """What changes whenever the machine is started; empty where it does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def read_state(path: Path, size: int) -> State | None:
    """The record of a half that is `size` bytes long, its ranges cut down to what can be relied on.

    None where there is no record, or none that this version can read.
    """
    try:
        state = _parse(json.loads(_read_regular(path)))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    same_boot = state.boot != "" and state.boot == boot_id()
    if not same_boot:
        ranges = state.synced
    elif state.ordered:
        ranges = [(0, size)]
    else:
        ranges = state.written
    most = size if state.total is None else min(size, state.total)
    written, synced = _cut(ranges, most), _cut(state.synced, most)
    if same_boot:
        return replace(state, written=written, synced=synced)
    # from now on it is this start of the machine that counts; what lies behind these ranges may be anything
    return replace(state, written=written, synced=synced, ordered=False, boot=boot_id())


def _read_regular(path: Path) -> bytes:
    """What a file holds; who opened a pipe would wait for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("no regular file")
        return os.read(descriptor, _LARGEST)
    finally:
        os.close(descriptor)


def _cut(ranges: list[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    return [(first, min(end, most)) for first, end in ranges if first < min(end, most)]


def write_state(path: Path, state: State, *, sync: bool) -> None:
    """Replace the record."""
    temporary = temporary_name(path)
    try:
        with open(temporary, "w") as file:
            json.dump({"version": _VERSION, **asdict(state)}, file)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _parse(value: Any) -> State:
    if not isinstance(value, dict) or value.pop("version") != _VERSION:
        raise ValueError("another version's record")
    state = State(**value)
    texts = (state.link, state.etag, state.last_modified, state.encoding, state.boot)
    if not all(text is None or (isinstance(text, str) and text.isprintable()) for text in texts):
        raise ValueError("a text that is none")
    total = 0 if state.total is None else state.total
    for number in [total, *(n for pair in [*state.written, *state.synced] for n in pair)]:
        if not (isinstance(number, int) and 0 <= number < _MOST_BYTES):
            raise ValueError("a size that is none")
    return replace(state, written=_pairs(state.written), synced=_pairs(state.synced))


def _pairs(value: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(first, end) for first, end in value]
