"""What to download, how, and what was downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from facedata.download.checksums import Digest

__all__ = ["Fetched", "FileRequest", "Link", "TransferOptions"]


@dataclass(frozen=True)
class Link:
    """A place that a file can be downloaded from.

    Attributes
    ----------
    kind : {'http', 'google-drive', 'onedrive'}
    address : str
        The URL; for Google Drive the id of the file.
    """

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
    digest : Digest, optional
        The published checksum.
    size : int, optional
        The published size in bytes.
    known : mapping of str to str
        Hexadecimal digests of other files that a link may give, such as an older release, and what each of them is.
    """

    path: Path
    links: tuple[Link, ...]
    digest: Digest | None = None
    size: int | None = None
    known: Mapping[str, str] = field(default_factory=dict)

    @property
    def algorithm(self) -> str:
        """The algorithm of the published checksum; SHA-256 if none is published."""
        return self.digest.algorithm if self.digest else "sha256"


@dataclass(frozen=True)
class Fetched:
    """One downloaded file.

    Attributes
    ----------
    path : Path
    size : int
        In bytes.
    digest : Digest
        With the algorithm of the published checksum; SHA-256 if none is published.
    link : Link
        The link that gave the file.
    final_url : str
        Where redirects led, without its query, which may hold a temporary secret; the link itself if there were none.
    etag, last_modified : str or None
        As the server sent them.
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
