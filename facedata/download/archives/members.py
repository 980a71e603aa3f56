"""What walks through an archive of any kind yields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

__all__ = ["Member", "Walk"]


class Member(NamedTuple):
    """One member of an archive.

    Attributes
    ----------
    name : str
        As the archive has it.
    kind : {'file', 'folder', 'other'}
    reason : str
        Why it is not unpacked, whatever its name; empty where it can be.
    size : int
        Bytes of its data.
    executable : bool
    modified : float
        Seconds since 1970.
    mark : int
        Where a later run goes on if this member is done.
    """

    name: str
    kind: Literal["file", "folder", "other"]
    reason: str
    size: int
    executable: bool
    modified: float
    mark: int


class Walk(Protocol):
    """A walk through an archive from front to back."""

    @property
    def position(self) -> int:
        """Compressed bytes that have been read."""

    def members(self) -> Iterator[Member]:
        """Every member from the mark that the walk began with; at the end all of the archive has been proven."""

    def blocks(self) -> Iterator[list[bytes]]:
        """The data of the member that came last, in chunks; what is not asked for is passed over."""

    def close(self) -> None:
        """End the threads and close the files."""
