"""What the parts of one file's transfer hand to each other."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from facedata.download.digest import Digest
from facedata.download.links import Link
from facedata.download.transfer.disk import DiskLedger
from facedata.download.transfer.files import FileRequest, TransferOptions
from facedata.download.transfer.pages import shown_url
from facedata.download.transfer.partial import PartFile
from facedata.download.transfer.sockets import Sockets

__all__ = ["FileJob", "Origin", "Surroundings"]


@dataclass(frozen=True)
class Surroundings:
    """What all files of a run share: `slots` counts the connections that may still be made."""

    options: TransferOptions
    sockets: Sockets
    disk: DiskLedger
    slots: threading.Semaphore

    @property
    def cancel(self) -> threading.Event:
        """Set when everything is to stop."""
        return self.sockets.cancel


@dataclass(frozen=True)
class FileJob:
    """One file from one link; `other_encoding`: what was first made of an encoded answer has turned out wrong."""

    request: FileRequest
    part: PartFile
    link: Link
    around: Surroundings
    other_encoding: bool = False

    @property
    def link_name(self) -> str:
        """The link, as it may be recorded."""
        return shown_url(self.link.address)


@dataclass(frozen=True)
class Origin:
    """Where a file came from in the end, and its digest, where it is known already."""

    final_url: str
    etag: str | None = None
    last_modified: str | None = None
    digest: Digest | None = None
