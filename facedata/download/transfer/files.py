"""What is asked for, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from facedata.download.digest import Digest
from facedata.download.links import Link

__all__ = ["Fetched", "FileRequest", "TransferOptions"]


@dataclass(frozen=True)
class FileRequest:
    """One file to fetch.

    Attributes
    ----------
    path : Path
        Its final name; until it is whole and checked, it is ``<name>.part``.
    links : tuple of Link
        Where it can be had from, in order of preference.
    digest : Digest, optional
        The published checksum.
    size : int, optional
        The published size in bytes.
    known : mapping of str to str
        Digests, in hexadecimal, of files known to be something else, and what they are.
    """

    path: Path
    links: tuple[Link, ...]
    digest: Digest | None = None
    size: int | None = None
    known: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fetched:
    """One file that was fetched.

    Attributes
    ----------
    path : Path
    size : int
        In bytes.
    digest : Digest
        Of the published algorithm; SHA-256 where no checksum was published.
    link : Link
        The link that it came from.
    final_url : str
        Where redirects led; without the query, which may hold a passing secret, where it is not the link itself.
    etag, last_modified : str or None
        As the server gave them.
    fetched_bytes : int
        What this call transferred; less than `size` where a half was there, more where something was fetched twice.
    """

    path: Path
    size: int
    digest: Digest
    link: Link
    final_url: str
    etag: str | None
    last_modified: str | None
    fetched_bytes: int


@dataclass(frozen=True)
class TransferOptions:
    """How files are fetched.

    Attributes
    ----------
    connections : int
        Connections at once, over all files.
    timeout : float
        Seconds to wait for a connection or for the next byte, and over which `least_speed` is taken.
    retries : int
        Tries after the first that may bring nothing, in a row, before a link is given up.
    overwrite : bool
        Replace files that are there.
    reserve : int
        Bytes of the disk to leave free.
    least_speed : int
        Bytes a second; a slower connection is given up and made anew.
    first_wait : float
        Seconds before the first retry; each further one waits twice as long, up to a minute.
    """

    connections: int = 4
    timeout: float = 60.0
    retries: int = 8
    overwrite: bool = False
    reserve: int = 0
    least_speed: int = 1000
    first_wait: float = 1.0
