"""Finding and reading the samples in tars: members in a row that share their path up to the first dot of the name."""

from __future__ import annotations

import json
import logging
import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.columns import LARGEST_LABEL
from facedata.converters.webdataset.members import Member, TarReader, walk_members
from facedata.dataset import Sample
from facedata.errors import EmptyDatasetError, FormatError, InputError, SampleError
from facedata.images import LARGEST_IMAGE
from facedata.tar_format import BLOCK, read_heading

__all__ = ["Row", "SampleTable", "read_key", "read_sample", "scan_tars"]

IMAGES = frozenset([b"jpg", b"jpeg", b"png", b"bmp", b"webp", b"gif", b"tif", b"tiff", b"bin"])
"""The extensions, in lower case, of the members that are a sample's image."""

_LARGEST_JSON = 1 << 20  # bytes; a larger .json is not read
_NO_LABEL, _BAD_LABEL, _REPEATED = -1, -2, -3  # in the place of a label; the last is for a repeated extension
_INT32 = (1 << 31) - 1
_TEXTS = {b"cls": 65, b"json": _LARGEST_JSON}  # the bytes that are read of each
_LONGEST_KEY = 1 << 12
_SHOWN = 40
_LARGEST_COORDINATE = float(np.finfo(np.float32).max)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleTable:
    """The places and labels of samples, in 22 bytes each.

    Attributes
    ----------
    places : ndarray of shape (N,), int64
        Where each image begins, counted as if all tars followed each other.
    sizes : ndarray of shape (N,), int32
        Bytes of each image; 2**31 - 1 for those of 2 GiB and more.
    labels : ndarray of shape (N,), int32
        Below 0 if there is no label or a wrong one.
    extras : ndarray of shape (N,), int32
        Blocks of 512 bytes from the image to the headers of the ``.json``, or of the member that is wrong; 0 if none.
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

    def take(self, rows: slice | NDArray[np.int64]) -> SampleTable:
        """Some rows."""
        return SampleTable(
            self.places[rows], self.sizes[rows], self.labels[rows], self.extras[rows], self.headings[rows]
        )


class Row(NamedTuple):
    """A row of a `SampleTable`; `tar` is the number of its tar, `offset` is where the image begins in it."""

    tar: int
    offset: int
    size: int
    label: int
    extra: int
    heading: int


def scan_tars(paths: Sequence[str]) -> tuple[SampleTable, NDArray[np.int64]]:
    """Walk through the tars once and note where their samples are.

    Returns
    -------
    table : SampleTable
    starts : ndarray of shape (T,), int64
        Where each tar begins, as in `SampleTable.places`.

    Raises
    ------
    InputError
        If a tar cannot be read.
    FormatError
        If a tar is corrupt, or holds something other than regular files and folders.
    EmptyDatasetError
        If there is no sample with an image.
    """
    columns = _Columns()
    starts, start = [], 0
    for path in paths:
        with TarReader(path) as reader:
            key: bytes | None = None
            members: list[tuple[bytes, Member, bytes]] = []
            for member in walk_members(reader):
                if (parts := _split_name(member.name)) is None:
                    continue
                if parts[0] != key:
                    if members:
                        columns.add(reader, start, members)
                    key, members = parts[0], []
                most = _TEXTS.get(parts[1], 0)  # read now, since the walk goes on from here
                text = reader.take(member.offset, min(member.size, most)) if most else b""
                members.append((parts[1], member, text))
            if members:
                columns.add(reader, start, members)
            starts.append(start)
            start += reader.size
    columns.report(paths[0])
    return columns.table(), np.array(starts, np.int64)


class _Columns:
    """The columns of a `SampleTable` as they grow, and counts of what was skipped."""

    def __init__(self) -> None:
        self._places, self._headings = array("q"), array("H")
        self._sizes, self._labels, self._extras = array("i"), array("i"), array("i")
        self._without_image = self._more_images = 0
        self._first_without_image = ""

    def add(self, reader: TarReader, start: int, members: Iterable[tuple[bytes, Member, bytes]]) -> None:
        """Add the sample that consists of `members`, each with its extension and text."""
        image: Member | None = None
        found: dict[bytes, Member] = {}
        texts: dict[bytes, bytes] = {}
        repeated: Member | None = None
        for extension, member, text in members:
            if extension in found:
                repeated = repeated or member
            elif extension in IMAGES:
                found[extension] = member
                self._more_images += image is not None
                image = image or member
            elif extension in _TEXTS:
                found[extension], texts[extension] = member, text
        if image is None:
            self._without_image += 1
            name = os.fsdecode(member.name[: len(member.name) - len(extension) - 1])
            self._first_without_image = self._first_without_image or f"{reader.path}: {name}"
            return
        label, other = _NO_LABEL, found.get(b"json")
        if repeated is not None:
            label, other = _REPEATED, repeated
        elif b"cls" in found:
            digits = texts[b"cls"].strip()
            label = int(digits) if digits.isdigit() and len(digits) < _TEXTS[b"cls"] else _BAD_LABEL
            if not 0 <= label <= LARGEST_LABEL:
                label, other = _BAD_LABEL, found[b"cls"]
        elif other is not None:
            value = _label_in(_json_object(texts[b"json"]))
            if value is not None:
                label = value if type(value) is int and 0 <= value <= LARGEST_LABEL else _BAD_LABEL
        blocks = 0 if other is None else (other.start - image.offset) // BLOCK
        self._places.append(start + image.offset)
        self._sizes.append(min(image.size, _INT32))
        self._labels.append(label)
        self._extras.append(blocks if abs(blocks) <= _INT32 else 0)
        self._headings.append((image.offset - image.start) // BLOCK)

    def table(self) -> SampleTable:
        return SampleTable(
            np.frombuffer(self._places, np.int64),
            np.frombuffer(self._sizes, np.int32),
            np.frombuffer(self._labels, np.int32),
            np.frombuffer(self._extras, np.int32),
            np.frombuffer(self._headings, np.uint16),
        )

    def report(self, path: str) -> None:
        """Warn about what was skipped."""
        count, first = self._without_image, self._first_without_image
        if not self._places:
            extensions = ", ".join(sorted(extension.decode() for extension in IMAGES))
            found = f"; {count} samples have none, the first is {first}" if count else ""
            raise EmptyDatasetError(f"{path}: there is no sample with an image ({extensions}){found}")
        if count:
            _log.warning("skipped %d samples without an image; the first is %s", count, first)
        if self._more_images:
            _log.warning("%s: read the first image of each sample, and skipped %d others", path, self._more_images)


def _split_name(name: bytes) -> tuple[bytes, bytes] | None:
    """The key and the extension, in lower case, of a member; None if it belongs to no sample.

    As the webdataset library splits names: at the first dot of the file name, without ``__meta__`` files.
    """
    slash = name.rfind(b"/")
    dot = name.find(b".", slash + 1)
    if dot <= slash + 1 or (name[:2] == b"__" and name.split(b"/", 1)[0].endswith(b"__")):
        return None
    return name[:dot], name[dot + 1 :].lower()


def _json_object(text: bytes) -> dict[str, Any]:
    """The content of a ``.json``; empty if it is not a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}


def _label_in(value: dict[str, Any]) -> Any:
    return value.get("label", value.get("cls"))


def read_sample(reader: TarReader, row: Row) -> Sample | SampleError:
    """Read one sample, or say what is wrong with it."""
    key = f"at byte {row.offset}"
    try:
        key = _key_in_name(reader, row)
        if row.label < 0:
            reason = _label_problem(reader, row, key)
        elif row.size == 0:
            reason = "the image is empty (0 bytes)"
        elif row.size > LARGEST_IMAGE:
            reason = f"the image has more than {LARGEST_IMAGE} bytes, too many for a face"
        else:
            image = reader.take(row.offset, row.size)
            if not row.extra:
                return Sample(key, row.label, image)
            described = _json_object(_text_of(reader, _other_member(reader, row)))
            return Sample(_key_in(described, key), row.label, image, _landmarks_in(described))
    except FormatError as error:
        reason = f"the tar has changed since it was opened: {error}"
    except InputError as error:
        reason = str(error)
    return SampleError(reader.path, key, reason, row.offset)


def read_key(reader: TarReader, row: Row) -> str:
    """Read the sample's key; if that fails, the place of its image."""
    try:
        has_json = row.extra and row.label >= 0
        described = _json_object(_text_of(reader, _other_member(reader, row))) if has_json else {}
        return _key_in(described, _key_in_name(reader, row))
    except InputError:
        return f"at byte {row.offset}"


def _key_in_name(reader: TarReader, row: Row) -> str:
    """The path of the image without its extension, from the same headers as when the tar was opened."""
    start = row.offset - BLOCK * row.heading
    heading = read_heading(reader.take, start)
    parts = _split_name(heading.name)
    if parts is None or heading.offset != row.offset or (heading.size != row.size and row.size <= LARGEST_IMAGE):
        raise FormatError(f"byte {start}: another member begins here")
    return os.fsdecode(parts[0])


def _other_member(reader: TarReader, row: Row) -> Member:
    """The member that the row points to besides the image."""
    start = row.offset + BLOCK * row.extra
    heading = read_heading(reader.take, start)
    return Member(heading.name, start, heading.offset, heading.size)


def _text_of(reader: TarReader, member: Member) -> bytes:
    return reader.take(member.offset, min(member.size, _LARGEST_JSON))


def _label_problem(reader: TarReader, row: Row, key: str) -> str:
    if row.label == _NO_LABEL:
        return f"no label: there is neither {key}.cls beside the image, nor a 'label' in {key}.json"
    member = _other_member(reader, row)
    name = os.fsdecode(member.name)
    if row.label == _REPEATED:
        return f"the sample has a second {name}: it is not clear which one to read"
    if name.lower().endswith(".json"):
        found = repr(_label_in(_json_object(_text_of(reader, member))))
    else:
        found = repr(os.fsdecode(reader.take(member.offset, min(member.size, _SHOWN))))
    return f"the label in {name} is {found[:_SHOWN]}, expected an integer from 0 to {LARGEST_LABEL}"


def _key_in(described: dict[str, Any], otherwise: str) -> str:
    key = described.get("key")
    return key if isinstance(key, str) and len(key) <= _LONGEST_KEY else otherwise


def _landmarks_in(described: dict[str, Any]) -> NDArray[np.float32] | None:
    """The landmarks, shape (5, 2), in pixels; None unless there are five pairs of finite numbers."""
    points = described.get("landmarks")
    if not isinstance(points, list) or [len(point) for point in points if isinstance(point, list)] != [2] * 5:
        return None
    numbers = [number for point in points if isinstance(point, list) for number in point]
    if len(points) != 5 or not all(type(n) in (int, float) and abs(n) <= _LARGEST_COORDINATE for n in numbers):
        return None
    return np.array(points, np.float32)
