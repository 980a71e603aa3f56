"""What to download, how, what was downloaded, and what can go wrong with one link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from facedata.download.checksums import Digest

__all__ = [
    "CancelledError",
    "Fetched",
    "FileRequest",
    "Link",
    "LinkError",
    "RestartError",
    "TransferOptions",
    "TransientError",
    "WrongChecksumError",
]


@dataclass(frozen=True)
class Link:
    """A place that a file can be downloaded from; `address` is a URL, or for Google Drive the id of the file."""

    kind: Literal["http", "google-drive", "onedrive"]
    address: str

    @property
    def page(self) -> str:
        """The page that a person opens in a browser to get the file."""
        if self.kind == "google-drive":
            return f"https://drive.google.com/file/d/{self.address}/view"
        return self.address


@dataclass(frozen=True)
class FileRequest:
    """One file to download.

    Attributes
    ----------
    path : Path
        Its final name. Until the file is complete and checked, it is ``<name>.part``.
    links : tuple of Link
        Where to download it from, in order of preference.
    digest, size : Digest and int, optional
        The published checksum and size in bytes.
    known : mapping of str to str
        Hexadecimal digests of other files that a link may give, such as an older release, and what each of them is.
    """

    path: Path
    links: tuple[Link, ...]
    digest: Digest | None = None
    size: int | None = None
    known: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fetched:
    """One downloaded file.

    Attributes
    ----------
    size : int
        In bytes.
    digest : Digest
        With the algorithm of the published checksum; SHA-256 if none is published.
    final_url : str
        Where redirects led, without its query, which may hold a temporary secret; the link itself if there were none.
    fetched_bytes : int
        What this call received: less than `size` if it resumed a partial file, more if it had to start over.
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
    """How files are downloaded.

    Attributes
    ----------
    connections : int
        Files at once, each over one connection.
    timeout : float
        Seconds to wait for a connection and for the next bytes; also the period over which `least_speed` is measured.
    retries : int
        Further attempts in a row that may receive nothing, before a link is given up.
    overwrite : bool
        Replace existing files.
    least_speed : int
        Bytes per second; a slower connection is closed and opened again.
    first_wait : float
        Seconds before the first retry. Each further wait is twice as long, up to a minute.
    """

    connections: int = 4
    timeout: float = 60.0
    retries: int = 8
    overwrite: bool = False
    least_speed: int = 1000
    first_wait: float = 1.0


class LinkError(Exception):
    """A link does not give the file, and a retry would not help.

    It `is_page` if it gives a web page instead, and `is_wrong` if it gives another file.
    """

    def __init__(self, reason: str, *, is_page: bool = False, is_wrong: bool = False) -> None:
        super().__init__(reason)
        self.is_page, self.is_wrong = is_page, is_wrong


class WrongChecksumError(LinkError):
    """A link gave a complete file with another checksum; `is_known` if that file is known to be something else."""

    def __init__(self, reason: str, *, is_known: bool = False) -> None:
        super().__init__(reason, is_wrong=True)
        self.is_known = is_known


class TransientError(Exception):
    """An error that may be gone at the next attempt.

    The server asks to wait `after` seconds; at most `retries` are made, if success is less likely than usual.
    """

    def __init__(self, reason: str, *, after: float | None = None, retries: int | None = None) -> None:
        super().__init__(reason)
        self.after, self.retries = after, retries


class RestartError(TransientError):
    """The partial file cannot be resumed: it does not belong to the file that the server has now."""


class CancelledError(Exception):
    """The whole download is to stop."""
