"""Keys of images and of landmarks, written in one way so that they can be compared."""

from __future__ import annotations

from typing import NamedTuple

from facedata.images import IMAGE_EXTENSIONS

__all__ = ["EXACT", "KeyForm", "bytes_of_key", "plain_key", "text_of_key", "without_extension", "without_folders"]

_EXTENSIONS = frozenset(extension.encode() for extension in IMAGE_EXTENSIONS | {"gif", "pgm", "ppm", "tif", "tiff"})


def plain_key(key: bytes | str) -> bytes:
    """A key without leading ``./`` or ``/``, folders parted by single slashes; upper and lower case stay apart."""
    if isinstance(key, str):
        key = bytes_of_key(key)
    if b"\\" in key:
        key = key.replace(b"\\", b"/")
    while b"//" in key:
        key = key.replace(b"//", b"/")
    while key.startswith((b"./", b"/")):
        key = key[key.index(b"/") + 1 :]
    return key


def bytes_of_key(key: str) -> bytes:
    """A key as bytes, whatever is in it."""
    try:
        return key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character that no file name gives, out of JSON's \ud800
        return key.encode("utf-8", "surrogatepass")


def text_of_key(key: bytes) -> str:
    """A key as text; bytes that are no UTF-8 as Python has them in file names."""
    return key.decode("utf-8", "surrogateescape")


def without_extension(key: bytes) -> bytes:
    """A key without the extension of an image file; one that ends in anything else stays as it is."""
    stem, _, extension = key.rpartition(b".")
    return stem if stem and extension.lower() in _EXTENSIONS else key


def without_folders(key: bytes, count: int) -> bytes:
    """A key without its first `count` folders; what is like no key where it has not so many."""
    parts = key.split(b"/", count)
    return parts[count] if len(parts) > count else b"\0" + key


class KeyForm(NamedTuple):
    """What is taken away from keys before they are compared.

    Attributes
    ----------
    file_folders : int
        Leading folders of the keys in the landmark file.
    source_folders : int
        Leading folders of the source's keys.
    stems : bool
        The extensions of both.
    """

    file_folders: int = 0
    source_folders: int = 0
    stems: bool = False

    def of_file(self, key: bytes) -> bytes:
        """A plain key of the landmark file, in this form."""
        return self._cut(key, self.file_folders)

    def of_source(self, key: bytes) -> bytes:
        """A plain key of the source, in this form."""
        return self._cut(key, self.source_folders)

    def _cut(self, key: bytes, folders: int) -> bytes:
        if folders:
            key = without_folders(key, folders)
        return without_extension(key) if self.stems else key

    def __str__(self) -> str:
        told = [f"the first {_folders(count)} of {whose} paths" for count, whose in self._cuts() if count]
        return " and ".join(told + ["the file extensions"] * self.stems) or "nothing"

    def _cuts(self) -> tuple[tuple[int, str], tuple[int, str]]:
        return (self.file_folders, "its"), (self.source_folders, "the images'")


def _folders(count: int) -> str:
    return "folder" if count == 1 else f"{count} folders"


EXACT = KeyForm()
"""Keys as they are."""
