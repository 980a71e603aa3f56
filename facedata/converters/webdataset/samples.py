"""Finding the samples in tars: members in a row that share their path up to the first dot of the file name."""

from __future__ import annotations

import json
import logging
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.columns import LARGEST_LABEL
from facedata.converters.webdataset.walk import Member, TarReader, walk_members
from facedata.errors import EmptyDatasetError
from facedata.tar_format import BLOCK

__all__ = [
    "BAD_LABEL",
    "IMAGES",
    "LARGEST_JSON",
    "LARGEST_LABEL",
    "NO_LABEL",
    "REPEATED",
    "SampleTable",
    "ScannedTars",
    "json_object",
    "label_in_json",
    "scan_tars",
    "split_name",
]

IMAGES = frozenset([b"jpg", b"jpeg", b"png", b"bmp", b"webp", b"gif", b"tif", b"tiff", b"bin"])
"""The extensions, in lower case, of the members that are a sample's image."""

LARGEST_JSON = 1 << 20
"""Bytes; a longer ``.json`` is not looked into."""

NO_LABEL, BAD_LABEL, REPEATED = -1, -2, -3
"""In the place of a label: there is none; it is no whole number from 0; the sample has two members of one extension."""

_LARGEST_SIZE = (1 << 31) - 1
_LONGEST_LABEL = 64
_FARTHEST = (1 << 31) - 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleTable:
    """Where samples are; 22 bytes each.

    Attributes
    ----------
    places : ndarray of shape (N,), int64
        Where each image begins, counting the bytes of all tars as if these lay one behind the other.
    sizes : ndarray of shape (N,), int32
        Bytes of each image; those of 2 GiB and more count as 2**31 - 1.
    labels : ndarray of shape (N,), int32
        `NO_LABEL`, `BAD_LABEL` or `REPEATED` where there is none to be had.
    extras : ndarray of shape (N,), int32
        How many blocks of 512 bytes behind the image's first byte the headers of the ``.json`` begin, or, where the
        label is bad or an extension repeated, those of the member that is to blame; 0 where there is none.
    headings : ndarray of shape (N,), uint16
        Blocks that the headers of the image take.
    """

    places: NDArray[np.int64]
    sizes: NDArray[np.int32]
    labels: NDArray[np.int32]
    extras: NDArray[np.int32]
    headings: NDArray[np.uint16]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, part: slice) -> SampleTable:
        return self._of(part)

    def take(self, positions: NDArray[np.int64]) -> SampleTable:
        """The rows at `positions`."""
        return self._of(positions)

    def _of(self, rows: slice | NDArray[np.int64]) -> SampleTable:
        return SampleTable(
            self.places[rows], self.sizes[rows], self.labels[rows], self.extras[rows], self.headings[rows]
        )


@dataclass(frozen=True)
class ScannedTars:
    """All samples of some tars.

    Attributes
    ----------
    table : SampleTable
    starts : ndarray of shape (T,), int64
        Where each tar begins, as in `SampleTable.places`.
    """

    table: SampleTable
    starts: NDArray[np.int64]


def split_name(name: bytes) -> tuple[bytes, bytes] | None:
    """The key and the extension, in lower case, of a member, or None where it belongs to no sample.

    As the webdataset library splits names: at the first dot of the file name; ``__meta__`` files are left out.
    """
    slash = name.rfind(b"/")
    dot = name.find(b".", slash + 1)
    if dot <= slash + 1 or (name[:2] == b"__" and name.split(b"/", 1)[0].endswith(b"__")):
        return None
    return name[:dot], name[dot + 1 :].lower()


def json_object(data: bytes) -> dict[str, Any]:
    """What a ``.json`` says; nothing where it is no JSON object."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def scan_tars(paths: Sequence[str]) -> ScannedTars:
    """Walk through the tars once and note where their samples are.

    Raises
    ------
    InputError
        Where one cannot be read.
    FormatError
        Where one is damaged, or holds what is neither a regular file nor a folder.
    EmptyDatasetError
        Where there is no sample with an image.
    """
    rows, starts, start = _Rows(), [], 0
    for path in paths:
        with TarReader(path) as reader:
            grouping = _Grouping(reader, rows, start)
            for member in walk_members(reader):
                grouping.add(member)
            grouping.end_sample()
        starts.append(start)
        start += reader.size
    rows.tell_of_oddities(paths[0])
    return ScannedTars(rows.table(), np.array(starts, np.int64))


class _Rows:
    """The columns of a `SampleTable` as they grow, and what was passed over on the way."""

    def __init__(self) -> None:
        self._places, self._headings = array("q"), array("H")
        self._sizes, self._labels, self._extras = array("i"), array("i"), array("i")
        self.without_image = self.more_images = 0
        self.first_without_image = ""

    def add(self, place: int, image: Member, label: int, extra: int) -> None:
        self._places.append(place)
        self._sizes.append(min(image.size, _LARGEST_SIZE))
        self._labels.append(label)
        self._extras.append(extra)
        self._headings.append((image.offset - image.start) // BLOCK)

    def table(self) -> SampleTable:
        return SampleTable(
            np.frombuffer(self._places, np.int64),
            np.frombuffer(self._sizes, np.int32),
            np.frombuffer(self._labels, np.int32),
            np.frombuffer(self._extras, np.int32),
            np.frombuffer(self._headings, np.uint16),
        )

    def tell_of_oddities(self, path: str) -> None:
        if not self._places:
            found = f"; {self.without_image} have none, the first is {self.first_without_image}"
            raise EmptyDatasetError(
                f"{path}: there is no sample with an image ({_extensions()}){found if self.without_image else ''}"
            )
        if self.without_image:
            first = self.first_without_image
            _log.warning("samples without an image, passed over: %d; the first is %s", self.without_image, first)
        if self.more_images:
            _log.warning("%s: a sample's first image is taken; others, passed over: %d", path, self.more_images)


def _extensions() -> str:
    return ", ".join(sorted(extension.decode() for extension in IMAGES))


class _Grouping:
    """Puts the members of one tar together into samples, as they come."""

    def __init__(self, reader: TarReader, rows: _Rows, start: int) -> None:
        self._reader, self._rows, self._start = reader, rows, start
        self._begin_sample(None)

    def _begin_sample(self, key: bytes | None) -> None:
        self._key = key
        self._members: dict[bytes, Member] = {}
        self._image: Member | None = None
        self._repeated: Member | None = None
        self._class_text = self._json = b""

    def add(self, member: Member) -> None:
        parts = split_name(member.name)
        if parts is None:
            return
        key, extension = parts
        if key != self._key:
            self.end_sample()
            self._begin_sample(key)
        if extension in self._members:
            self._repeated = self._repeated or member
        elif extension in IMAGES:
            self._add_image(member)
        elif extension == b"cls":
            self._class_text = self._reader.take(member.offset, min(member.size, _LONGEST_LABEL + 1))
        elif extension == b"json":
            self._json = self._reader.take(member.offset, member.size) if member.size <= LARGEST_JSON else b""
        else:
            return
        self._members[extension] = member

    def _add_image(self, member: Member) -> None:
        if self._image is None:
            self._image = member
        else:
            self._rows.more_images += 1

    def end_sample(self) -> None:
        """Note the sample whose last member was added."""
        image = self._image
        if image is not None:
            label, other = self._label()
            blocks = 0 if other is None else (other.start - image.offset) // BLOCK
            self._rows.add(self._start + image.offset, image, label, blocks if abs(blocks) <= _FARTHEST else 0)
        elif self._key is not None:
            self._rows.without_image += 1
            self._rows.first_without_image = (
                self._rows.first_without_image or f"{self._reader.path}: {os.fsdecode(self._key)}"
            )

    def _label(self) -> tuple[int, Member | None]:
        """The label, and the member that the row points to."""
        json_member = self._members.get(b"json")
        if self._repeated is not None:
            return REPEATED, self._repeated
        if (class_member := self._members.get(b"cls")) is not None:
            label = _label_in_text(self._class_text)
            return label, json_member if label >= 0 else class_member
        return _checked_label(label_in_json(json_object(self._json))), json_member


def _label_in_text(text: bytes) -> int:
    text = text.strip()
    if not text.isdigit() or len(text) > _LONGEST_LABEL or (label := int(text)) > LARGEST_LABEL:
        return BAD_LABEL
    return label


def label_in_json(value: dict[str, Any]) -> Any:
    """What a ``.json`` says is the label; None where it says nothing."""
    return value.get("label", value.get("cls"))


def _checked_label(value: Any) -> int:
    if value is None:
        return NO_LABEL
    return value if type(value) is int and 0 <= value <= LARGEST_LABEL else BAD_LABEL
