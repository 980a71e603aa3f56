"""Labels and keys of the rows of each shard, kept in small files until all are there and are joined."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from facedata.errors import FormatError, OutputMismatchError

__all__ = ["Fragment", "encoded_key", "fragment_exists", "read_fragments", "write_fragment"]

_SUFFIX = ".rows"
_BREAKS = {ord(letter): letter.encode("unicode_escape").decode() for letter in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"}


@dataclass(frozen=True)
class Fragment:
    """The rows of a shard.

    Attributes
    ----------
    rows : int
    failed : tuple of int
        Which of them have no embedding, counted from 0.
    labels, keys : bytes
        A line for each row.
    """

    rows: int
    failed: tuple[int, ...]
    labels: bytes
    keys: bytes

    def without_failed(self) -> tuple[bytes, bytes]:
        """Labels and keys of the other rows."""
        gone = set(self.failed)
        lists = (lines.split(b"\n")[: self.rows] for lines in (self.labels, self.keys))
        labels, keys = ([line for row, line in enumerate(one) if row not in gone] for one in lists)
        return _lines(labels), _lines(keys)

    def kept(self) -> list[tuple[int, int]]:
        """Runs of rows that have embeddings: the first, and the one behind the last."""
        ends = [*self.failed, self.rows]
        starts = [0, *(row + 1 for row in self.failed)]
        return [(first, end) for first, end in zip(starts, ends, strict=True) if first < end]


def encoded_key(key: str) -> bytes:
    """A key as it stands on a line of its own: line breaks in it are written as ``\\n`` and the like."""
    key = key.translate(_BREAKS)
    try:
        return os.fsencode(key)
    except UnicodeEncodeError:  # half a surrogate pair
        return key.encode(errors="backslashreplace")


def write_fragment(
    folder: str, shard: int, labels: Sequence[int], keys: Sequence[bytes], failed: Sequence[int]
) -> None:
    """Write the file of a shard. Only what the journal says is done is read, so it need not appear at once."""
    labels_text, keys_text = _lines([b"%d" % label for label in labels]), _lines(keys)
    sizes = {"rows": len(labels), "failed": list(failed), "labels": len(labels_text), "keys": len(keys_text)}
    with open(_path(folder, shard), "wb") as file:
        file.write(json.dumps(sizes).encode() + b"\n" + labels_text + keys_text)


def fragment_exists(folder: str) -> bool:
    """Whether there is one of any shard."""
    with os.scandir(folder) as entries:
        return any(entry.name.endswith(_SUFFIX) for entry in entries)


def read_fragments(folder: str, shards: int) -> Iterator[Fragment]:
    """Those of all shards, in order.

    Raises
    ------
    OutputMismatchError
        Where one is gone.
    FormatError
        Where one is damaged.
    """
    for shard in range(shards):
        path = _path(folder, shard)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            raise OutputMismatchError(
                f"{path}: was written by this job and is gone; --overwrite starts it afresh"
            ) from None
        yield _parsed(data, path)


def _parsed(data: bytes, path: str) -> Fragment:
    header, _, rest = data.partition(b"\n")
    try:
        sizes = json.loads(header)
        rows, middle, failed = int(sizes["rows"]), int(sizes["labels"]), tuple(map(int, sizes["failed"]))
        whole = len(rest) == middle + int(sizes["keys"])
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise FormatError(f"{path}: is damaged; --overwrite starts the job afresh")
    return Fragment(rows, failed, rest[:middle], rest[middle:])


def _lines(lines: Sequence[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _path(folder: str, shard: int) -> str:
    return os.path.join(folder, f"{shard}{_SUFFIX}")
