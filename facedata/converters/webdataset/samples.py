"""Walking through tars and reading samples: members in a row that share their path up to the first dot of the name."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from struct import Struct
from typing import Any, NamedTuple, Self
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from facedata.columns import LARGEST_LABEL
from facedata.dataset import Sample
from facedata.errors import EmptyDatasetError, FormatError, InputError, SampleError, input_error
from facedata.files import open_regular, read_exactly
from facedata.images import LARGEST_IMAGE
from facedata.tar_format import BLOCK, END, FILE, FOLDER, SPARSE, Heading, padded, read_heading

__all__ = ["ROW", "Member", "Row", "TarReader", "read_key", "read_sample", "scan_tars", "walk_members"]

IMAGES = frozenset([b"jpg", b"jpeg", b"png", b"bmp", b"webp", b"gif", b"tif", b"tiff", b"bin"])
"""The extensions, in lower case, of the members that are a sample's image."""

ROW = np.dtype([("place", "<i8"), ("size", "<i4"), ("label", "<i4"), ("extra", "<i4"), ("heading", "<u2")])
"""What is kept of a sample, in 22 bytes.

``place``: where its image begins, counted as if all tars followed each other. ``size``: bytes of the image; 2**31 - 1
for those of 2 GiB and more. ``label``: below 0 if there is none or a wrong one. ``extra``: blocks of 512 bytes from the
image to the headers of the ``.json``, or of the member that is wrong; 0 if none. ``heading``: blocks that the headers
of the image take.
"""

_row = Struct("<qiiiH")
_LARGEST_JSON = 1 << 20  # bytes; a larger .json is not read
_NO_LABEL, _BAD_LABEL, _REPEATED = -1, -2, -3  # in the place of a label; the last is for a repeated extension
_INT32 = (1 << 31) - 1
_TEXTS = {b"cls": 65, b"json": _LARGEST_JSON}  # the bytes that are read of each
_LONGEST_KEY = 1 << 12
_SHOWN = 40
_LARGEST_COORDINATE = float(np.finfo(np.float32).max)
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    SPARSE: "a sparse file",
}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

_SMALL_WINDOW, _LARGE_WINDOW = 1 << 15, 1 << 21

_log = logging.getLogger(__name__)


class Member(NamedTuple):
    """A regular file in an archive: its path, where its first header and its data begin, the bytes of its data."""

    name: bytes
    start: int
    offset: int
    size: int


class TarReader:
    """An open tar file that reads bytes anywhere in it, and ahead if they are wanted in order.

    Raises `InputError` if it cannot be opened or is not a regular file. Readers may share the file of another.
    """

    def __init__(self, path: str, shared: TarReader | None = None) -> None:
        self.path, self._shared = path, shared
        self._descriptor: int = open_regular(path) if shared is None else shared._descriptor
        self._close = finalize(self, os.close, self._descriptor) if shared is None else None
        self.size = os.fstat(self._descriptor).st_size
        self._base, self._window, self._ahead = 0, b"", _SMALL_WINDOW

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._close is not None:
            self._close()

    def take(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; raises `FormatError` if the file ends before them."""
        begin = offset - self._base
        if begin >= 0 and begin + length <= len(self._window):
            return self._window[begin : begin + length]
        if offset + length > self.size:
            raise FormatError(f"byte {offset}: the file ends at byte {self.size}: it is truncated")
        # the less of the last window was skipped, the more is read
        in_order = 0 <= begin <= len(self._window) + _SMALL_WINDOW
        self._ahead = min(2 * self._ahead, _LARGE_WINDOW) if in_order else _SMALL_WINDOW
        try:
            window = read_exactly(self._descriptor, max(length, self._ahead), offset)
        except OSError:  # the bad spot may lie after the bytes that are wanted
            try:
                window = read_exactly(self._descriptor, length, offset)
            except OSError as error:
                raise input_error(error, self.path) from error
        if len(window) < length:
            raise InputError(f"{self.path}: became shorter while it was being read")
        self._base, self._window = offset, window
        return window[:length]


def walk_members(reader: TarReader) -> Iterator[Member]:
    """The regular files of an archive, in order; folders are skipped.

    An archive that ends after a whole member, without the blocks of zeros, is read with a warning, as by tar.

    Raises
    ------
    FormatError
        If a header is corrupt, the file is truncated, or a member is not a regular file or a folder, or its path leads
        out of its folder.
    """
    at, size = 0, reader.size
    if size == 0:
        raise FormatError(f"{reader.path}: is empty (0 bytes); even an empty archive has an end marker")
    while at < size:
        try:
            heading = read_heading(reader.take, at)
        except FormatError as error:
            raise FormatError(f"{reader.path}: {error}{_advice(reader, at)}") from None
        name, kind, length, offset = heading
        if kind == END:
            rest = reader.take(at, min(size - at, _SMALL_WINDOW))
            if more := rest.lstrip(b"\0"):
                _log.warning(
                    "%s: the archive ends at byte %d; the data from byte %d on is not read, as by tar itself; if "
                    "archives were joined with cat, keep them as separate files",
                    reader.path,
                    at,
                    (at + len(rest) - len(more)) // BLOCK * BLOCK,
                )
            return
        if kind not in FILE or name[:1] == b"/" or b".." in name:
            _check_member(reader.path, heading, at)
        end = offset + padded(length)
        if end > size:
            raise FormatError(
                f"{reader.path}: byte {at}: the member {_shown(name)} has {length} bytes, but the file ends "
                f"{size - offset} bytes after its header: it is truncated; fetch it again"
            )
        if kind != FOLDER and name[-1:] != b"/":  # before POSIX only the slash marked a folder
            yield Member(name, at, offset, length)
        at = end
    _log.warning("%s: ends without the blocks of zeros that end an archive: members may be missing", reader.path)


def _advice(reader: TarReader, at: int) -> str:
    """What to do about a file that has no header at byte `at`."""
    if at:
        return "; fetch it again"
    begin = reader.take(0, min(8, reader.size))
    method = next((method for magic, method in _COMPRESSED.items() if begin.startswith(magic)), None)
    if method is None:
        return "; this is not a tar"
    return f"; it is compressed ({method}), but samples are read at random places: decompress it to a plain .tar first"


def _check_member(path: str, heading: Heading, at: int) -> None:
    """Refuse links, devices and so on, and paths that lead out of the folder."""
    place = f"{path}: byte {at}: the member {_shown(heading.name)}"
    if heading.kind not in (*FILE, FOLDER):
        what = _KINDS.get(heading.kind, f"of the type {heading.kind!r}")
        raise FormatError(
            f"{place} is {what}; only regular files are read: write the tar again with the files themselves "
            "(tar --dereference --hard-dereference)"
        )
    if heading.name.startswith(b"/") or b".." in heading.name.split(b"/"):
        raise FormatError(f"{place} leads out of its folder; write the tar again with relative paths without '..'")


def _shown(name: bytes) -> str:
    return repr(os.fsdecode(name[:200]))


class Row(NamedTuple):
    """A row as Python numbers; `tar` is the number of its tar, `offset` is where the image begins in it."""

    tar: int
    offset: int
    size: int
    label: int
    extra: int
    heading: int


def scan_tars(paths: Sequence[str]) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """Walk through the tars once and note where their samples are.

    Returns
    -------
    table : ndarray of shape (N,), `ROW`
    starts : ndarray of shape (T,), int64
        Where each tar begins, as in ``place``.

    Raises
    ------
    InputError
        If a tar cannot be read.
    FormatError
        If a tar is corrupt, or holds something other than regular files and folders.
    EmptyDatasetError
        If there is no sample with an image.
    """
    rows = bytearray()
    without_image = more_images = start = 0
    first_without_image, starts = "", []
    for path in paths:
        with TarReader(path) as reader:
            for key, group in groupby(_members_of_samples(reader), itemgetter(0)):
                members = list(group)
                images = [(extension, member) for _, extension, member, _ in members if extension in IMAGES]
                if images:
                    rows += _row_of(start, images[0][1], members)
                    more_images += len({extension for extension, _ in images}) - 1
                else:
                    without_image += 1
                    first_without_image = first_without_image or f"{path}: {os.fsdecode(key)}"
            starts.append(start)
            start += reader.size
    if not rows:
        extensions = ", ".join(sorted(extension.decode() for extension in IMAGES))
        found = f"; {without_image} samples have none, the first is {first_without_image}" if without_image else ""
        raise EmptyDatasetError(f"{paths[0]}: there is no sample with an image ({extensions}){found}")
    if without_image:
        _log.warning("skipped %d samples without an image; the first is %s", without_image, first_without_image)
    if more_images:
        _log.warning("%s: read the first image of each sample, and skipped %d others", paths[0], more_images)
    return np.frombuffer(rows, ROW), np.array(starts, np.int64)


def _members_of_samples(reader: TarReader) -> Iterator[tuple[bytes, bytes, Member, bytes]]:
    """The key, the extension, the place and the text of each member that belongs to a sample."""
    for member in walk_members(reader):
        if (parts := _split_name(member.name)) is not None:
            most = _TEXTS.get(parts[1], 0)  # read now, since the walk goes on from here
            yield *parts, member, reader.take(member.offset, min(member.size, most)) if most else b""


def _row_of(start: int, image: Member, members: Sequence[tuple[bytes, bytes, Member, bytes]]) -> bytes:
    """The row of a sample that consists of `members`."""
    repeated: Member | None = None
    found: dict[bytes, Member] = {}
    texts: dict[bytes, bytes] = {}
    for _, extension, member, text in members:
        if extension in found:
            repeated = repeated or member
        elif extension in IMAGES or extension in _TEXTS:
            found[extension], texts[extension] = member, text
    label, other = _NO_LABEL, found.get(b"json")
    if repeated is not None:
        label, other = _REPEATED, repeated
    elif b"cls" in found:
        digits = texts[b"cls"].strip()
        label = int(digits) if digits.isdigit() and len(digits) < _TEXTS[b"cls"] else _BAD_LABEL
        if not 0 <= label <= LARGEST_LABEL:
            label, other = _BAD_LABEL, found[b"cls"]
    elif other is not None:
        described = _json_object(texts[b"json"])
        value = described.get("label", described.get("cls"))
        if value is not None:
            label = value if type(value) is int and 0 <= value <= LARGEST_LABEL else _BAD_LABEL
    blocks = 0 if other is None else (other.start - image.offset) // BLOCK
    return _row.pack(
        start + image.offset,
        min(image.size, _INT32),
        label,
        blocks if abs(blocks) <= _INT32 else 0,
        (image.offset - image.start) // BLOCK,
    )


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
            described = _json_object(_other_member(reader, row)[1])
            return Sample(_key_in(described, key), row.label, image, _landmarks_in(described))
    except FormatError as error:
        reason = f"the tar has changed since it was opened: {error}"
    except InputError as error:
        reason = str(error)
    return SampleError(reader.path, key, reason, row.offset)


def read_key(reader: TarReader, row: Row) -> str:
    """Read the sample's key; if that fails, the place of its image."""
    try:
        described = _json_object(_other_member(reader, row)[1]) if row.extra and row.label >= 0 else {}
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


def _other_member(reader: TarReader, row: Row) -> tuple[str, bytes]:
    """The name and the bytes of the member that the row points to besides the image."""
    heading = read_heading(reader.take, row.offset + BLOCK * row.extra)
    return os.fsdecode(heading.name), reader.take(heading.offset, min(heading.size, _LARGEST_JSON))


def _label_problem(reader: TarReader, row: Row, key: str) -> str:
    if row.label == _NO_LABEL:
        return f"no label: there is neither {key}.cls beside the image, nor a 'label' in {key}.json"
    name, text = _other_member(reader, row)
    if row.label == _REPEATED:
        return f"the sample has a second {name}: it is not clear which one to read"
    found: Any = os.fsdecode(text[:_SHOWN])
    if name.lower().endswith(".json"):
        described = _json_object(text)
        found = described.get("label", described.get("cls"))
    return f"the label in {name} is {repr(found)[:_SHOWN]}, expected an integer from 0 to {LARGEST_LABEL}"


def _key_in(described: dict[str, Any], otherwise: str) -> str:
    key = described.get("key")
    return key if isinstance(key, str) and len(key) <= _LONGEST_KEY else otherwise


def _landmarks_in(described: dict[str, Any]) -> NDArray[np.float32] | None:
    """The landmarks, shape (5, 2), in pixels; None unless there are five pairs of finite numbers."""
    points = described.get("landmarks")
    if not (isinstance(points, list) and all(isinstance(point, list) for point in points)):
        return None
    numbers = [number for point in points for number in point]
    finite = all(type(number) in (int, float) and abs(number) <= _LARGEST_COORDINATE for number in numbers)
    return np.array(points, np.float32) if finite and [len(point) for point in points] == [2] * 5 else None
