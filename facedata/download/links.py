"""Where a file can be fetched from by a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Link", "LinkKind"]

LinkKind = Literal["http", "google-drive", "onedrive"]


@dataclass(frozen=True)
class Link:
    """One place that a file can be had from.

    Attributes
    ----------
    kind : {'http', 'google-drive', 'onedrive'}
    address : str
        The URL; for Google Drive the id of the file.
    """

    kind: LinkKind
    address: str

    @property
    def page(self) -> str:
        """What a person opens in a browser to get the file."""
        if self.kind == "google-drive":
            return f"https://drive.google.com/file/d/{self.address}/view"
        return self.address
