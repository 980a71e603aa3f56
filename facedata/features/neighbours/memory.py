"""What a search takes in memory, and what there is."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from facedata.errors import OptionError
from facedata.features.matrix import VALUE_BYTES, Matrix
from facedata.features.neighbours.cut import Cut

__all__ = ["Room", "available_memory", "exact_room", "index_room"]

_PROGRAM = 80_000_000  # Python, NumPy and faiss
_FOUND = 76  # bytes for each neighbour of a row, while what two chunks gave is put together
_KEPT = 32  # the same where a shard is put together, turned round and written
_PRODUCTS = 4096  # bytes for each row: faiss multiplies with 1,024 rows at a time
_WORKING = 1 << 23


@dataclass(frozen=True)
class Room:
    """How a search fits into memory.

    Attributes
    ----------
    threads : int
    resident : bool
        Whether all rows are kept, or read again for each shard.
    bytes : int
        About what that takes.
    fewer : bool
        Whether that is fewer threads than were wanted.
    """

    threads: int
    resident: bool
    bytes: int
    fewer: bool = False


def available_memory() -> int:
    """Bytes that this process may still take: the machine's, or less where its cgroup has a limit."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(free, 0)


def exact_room(matrix: Matrix, k: int, cut: Cut, threads: int, limit: int) -> Room:
    """Find room for an exact search: rows kept where they fit, fewer threads where they do not.

    Raises
    ------
    OptionError
        Where there is not even room for one thread; says how much that is.
    """
    whole = matrix.rows * matrix.dimensions * VALUE_BYTES
    kept = _thread_bytes(matrix, k, cut, reads=False)
    if _PROGRAM + threads * kept + whole <= limit:
        return Room(threads, True, _PROGRAM + threads * kept + whole)
    reading = _thread_bytes(matrix, k, cut, reads=True)
    fewer = min(threads, (limit - _PROGRAM) // reading)
    least = min(_PROGRAM + reading, _PROGRAM + kept + whole)
    if fewer < 1 and limit >= least:
        return Room(1, True, least, threads > 1)
    if fewer < 1:
        raise _too_small(limit, least)
    return Room(fewer, False, _PROGRAM + fewer * reading, fewer < threads)


def index_room(matrix: Matrix, k: int, cut: Cut, threads: int, limit: int, index: int) -> Room:
    """Find room for a search through an index of so many bytes; raises as `exact_room`."""
    chunk = _chunk_bytes(matrix, cut)
    each = _thread_bytes(matrix, k, cut, reads=True) - chunk
    fewer = min(threads, (limit - _PROGRAM - index - chunk) // each)
    if fewer < 1:
        raise _too_small(limit, _PROGRAM + index + chunk + each, "; --method exact takes less")
    return Room(fewer, False, _PROGRAM + index + chunk + fewer * each, fewer < threads)


def _too_small(limit: int, least: int, way_out: str = "") -> OptionError:
    return OptionError(
        f"--memory: {limit:,} bytes are too few: the least that this search works with is {least:,} "
        f"({-(-least // 1_000_000):,}MB){way_out}"
    )


def _chunk_bytes(matrix: Matrix, cut: Cut) -> int:
    return min(cut.chunk, matrix.rows) * matrix.dimensions * VALUE_BYTES


def _thread_bytes(matrix: Matrix, k: int, cut: Cut, *, reads: bool) -> int:
    shard = cut.shard_rows(matrix.rows)
    at_once = min(cut.at_once, shard)
    found = at_once * k * _FOUND + shard * k * _KEPT + at_once * _PRODUCTS + _WORKING
    return found + (shard * matrix.dimensions * VALUE_BYTES + _chunk_bytes(matrix, cut) if reads else 0)
