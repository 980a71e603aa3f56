"""Walking through tars and reading samples: members in a row that share their path up to the first dot of the name.

Names with more dots are told apart by what lies beside them. If ``a.b.jpg`` has an ``a.b.cls`` or ``a.b.json``, or if
there is neither ``a.cls`` nor ``a.json``, it is a sample of its own. Else it is an image of the sample ``a``, which has
the first of its images, as in ``a.input.jpg``, ``a.target.jpg`` and ``a.cls``.
"""

from __future__ import annotations

import json
import logging
import os
from array import array
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Any, NamedTuple, Self
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from facedata.columns import LARGEST_LABEL, UNLABELLED
from facedata.dataset import Sample
from facedata.errors import EmptyDatasetError, FormatError, InputError, SampleError, input_error, is_transient
from facedata.files import open_regular, read_exactly
from facedata.images import IMAGE_EXTENSIONS, LARGEST_IMAGE
from facedata.tar_format import BLOCK, END, FILE, FOLDER, SPARSE, Heading, padded, read_heading
from facedata.text import counted

__all__ = [
    "NO_LABEL",
    "REPEATED",
    "ROW",
    "Member",
    "Row",
    "Scan",
    "TarReader",
    "read_key",
    "read_sample",
    "scan_tars",
    "walk_members",
]

IMAGES = frozenset({extension.encode() for extension in IMAGE_EXTENSIONS} | {b"bin"})
"""The extensions, in lower case, of the members that are a sample's image."""

ROW = np.dtype([("place", "<i8"), ("size", "<i4"), ("label", "<i4"), ("extra", "<i4"), ("heading", "<u2")])
"""What is kept of a sample, in 22 bytes.

``place``: where its image begins, counted as if all tars followed each other. ``size``: bytes of the image; 2**31 - 1
for those of 2 GiB and more. ``label``: below 0 if there is none or a wrong one. ``extra``: blocks of 512 bytes from the
image to the headers of the ``.json``, or of the member that is wrong; 0 if none. ``heading``: blocks that the headers
of the image take.
"""

NO_LABEL = UNLABELLED
"""The label of a sample that has none."""

REPEATED = -3
"""In the place of the label of a sample that has a member twice."""

_row = Struct("<qiiiH")
_LARGEST_JSON = 1 << 20  # bytes; a larger .json is not read
_BAD_LABEL = -2
_INT32 = (1 << 31) - 1
_TEXTS = {b"cls": 65, b"json": _LARGEST_JSON}  # the bytes that are read of each
_LONGEST_KEY = 1 << 12
_MOST_MEMBERS = 1 << 12  # that are held at once; a larger sample is cut between two names
_MOST_TEXT = 1 << 25  # bytes of these that are held at once
_MOST_KEYS = 1 << 16  # that are remembered to find members that are not adjacent
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


class Scan(NamedTuple):
    """What a walk through tars has found.

    Attributes
    ----------
    table : ndarray of shape (N,), `ROW`
    starts : ndarray of shape (T,), int64
        Where each tar begins, as in ``place``.
    folders : list of str
        The paths in the tars of the folders with images.
    folder_of : ndarray of shape (N,), int32
        The folder of each image.
    """

    table: NDArray[np.void]
    starts: NDArray[np.int64]
    folders: list[str]
    folder_of: NDArray[np.int32]


class _Part(NamedTuple):
    """A member of a sample.

    `key` is its path up to the first dot of the name, `stem` up to the last; `extension` is what follows the last, in
    lower case. `text` is read if it may be a label.
    """

    key: bytes
    stem: bytes
    extension: bytes
    member: Member
    text: bytes


def scan_tars(paths: Sequence[str], *, labels: bool = True) -> Scan:
    """Walk through the tars once and note where their samples are; without `labels`, these may lie anywhere.

    Raises
    ------
    InputError
        If a tar cannot be read.
    FormatError
        If a tar is corrupt, holds something other than regular files and folders, or has labels apart from the images.
    EmptyDatasetError
        If there is no sample with an image.
    """
    rows, folder_of, folders = bytearray(), array("i"), dict[bytes, int]()
    without_image = more_images = start = 0
    first_without_image, first_more, starts = "", "", []
    apart: set[int] = set()  # hashes of keys with a label and no image
    unlabelled: dict[int, str] = {}
    for path in paths:
        with TarReader(path) as reader:
            for parts in _groups(reader):
                samples, skipped, orphans = _samples_of(parts)
                for image, stem, members in samples:
                    row = _row_of(start, image, members)
                    rows += row
                    folder_of.append(folders.setdefault(stem.rpartition(b"/")[0], len(folders)))
                    if _row.unpack(row)[2] == NO_LABEL and len(unlabelled) < _MOST_KEYS:
                        unlabelled[hash(stem)] = os.fsdecode(stem)
                if skipped:
                    more_images += len(skipped)
                    first_more = first_more or f"{path}: {os.fsdecode(skipped[0].name)}"
                if not samples:
                    without_image += 1
                    first_without_image = first_without_image or f"{path}: {os.fsdecode(parts[0].key)}"
                if labels and len(apart) < _MOST_KEYS:
                    apart.update(map(hash, orphans))
            starts.append(start)
            start += reader.size
    if not rows:
        extensions = ", ".join(sorted(extension.decode() for extension in IMAGES))
        found = ""
        if without_image:
            found = f"; {counted(without_image, 'sample')} without one, the first is {first_without_image}"
        raise EmptyDatasetError(f"{paths[0]}: there is no sample with an image ({extensions}){found}")
    split = next((key for number, key in unlabelled.items() if number in apart), None)
    if split is not None:
        raise FormatError(
            f"{paths[0]}: the members of the sample {split!r} are not adjacent: its label does not follow or precede "
            "its image, as all programs that read such tars expect; unpack the tar and write it again in the order of "
            "the names: tar --sort=name -cf NEW.tar -C FOLDER ."
        )
    if without_image:
        _log.warning("skipped %d samples without an image; the first is %s", without_image, first_without_image)
    if more_images:
        _log.warning(
            "%s: read the first image of each sample, and skipped %d others; the first of these is %s",
            paths[0],
            more_images,
            first_more,
        )
    names = list(map(os.fsdecode, folders))
    return Scan(np.frombuffer(rows, ROW), np.array(starts, np.int64), names, np.frombuffer(folder_of, np.int32))


def _groups(reader: TarReader) -> Iterator[list[_Part]]:
    """The members in a row with the same path up to the first dot."""
    parts: list[_Part] = []
    held = 0
    for member in walk_members(reader):
        key, stem, extension = _split_name(member.name)
        if not key:
            continue
        full = len(parts) >= _MOST_MEMBERS or held >= _MOST_TEXT // 2
        if parts and (key != parts[0].key or (full and stem != parts[-1].stem)):
            yield parts
            parts, held = [], 0
        most = _TEXTS.get(extension, 0)  # read now, since the walk goes on from here
        text = reader.take(member.offset, min(member.size, most)) if most else b""
        if (held := held + len(text)) > _MOST_TEXT:
            raise FormatError(
                f"{reader.path}: byte {member.start}: the sample {_shown(stem)} has more than {_MOST_TEXT:,} bytes of "
                "labels and .json files; write the tar again with one of each"
            )
        parts.append(_Part(key, stem, extension, member, text))
    if parts:
        yield parts


def _samples_of(parts: Sequence[_Part]) -> tuple[list[tuple[Member, bytes, list[_Part]]], list[Member], list[bytes]]:
    """The samples among members with the same key, the images that belong to none, and the names of labels of none.

    A sample is its image, the path of that without the extension, and its members.
    """
    key, samples, orphans = parts[0].key, [], []
    if (
        len(parts) == 2
        and parts[0].stem == parts[1].stem
        and (parts[0].extension in IMAGES) != (parts[1].extension in IMAGES)
    ):  # nearly always
        return [(parts[parts[1].extension in IMAGES].member, parts[0].stem, list(parts))], [], []
    by_stem: dict[bytes, list[_Part]] = {}
    for part in parts:
        by_stem.setdefault(part.stem, []).append(part)
    skipped: list[Member] = []
    shared = [part for part in by_stem.get(key, ()) if part.extension in _TEXTS]
    free = bool(shared) and not any(part.extension in IMAGES for part in by_stem[key])  # labels that need an image
    for stem, some in by_stem.items():
        images = {part.extension: part.member for part in reversed(some) if part.extension in IMAGES}
        *others, image = images.values() if images else (None,)
        described = any(part.extension in _TEXTS for part in some)
        if image is None:
            orphans += [stem] if described and stem != key else []
        elif described or stem == key or not shared:
            samples.append((image, stem, some))
            skipped += others
        elif free:
            samples.append((image, stem, [*some, *shared]))
            skipped, free = skipped + others, False
        else:
            skipped += images.values()
    return samples, skipped, [*orphans, *([key] if free else [])]


def _row_of(start: int, image: Member, members: Sequence[_Part]) -> bytes:
    """The row of a sample that consists of `members`."""
    repeated: Member | None = None
    found: dict[bytes, Member] = {}
    texts: dict[bytes, bytes] = {}
    for _, _, extension, member, text in members:
        if extension in found:
            repeated = repeated or member
        elif extension in IMAGES or extension in _TEXTS:
            found[extension], texts[extension] = member, text
    label, other = NO_LABEL, found.get(b"json")
    if repeated is not None:
        label, other = REPEATED, repeated
    elif b"cls" in found:
        digits = texts[b"cls"].strip()
        short = digits.removeprefix(b"-").isdigit() and len(digits) < _TEXTS[b"cls"]
        label = int(digits) if short else _BAD_LABEL
        if not NO_LABEL <= label <= LARGEST_LABEL:
            label, other = _BAD_LABEL, found[b"cls"]
    elif other is not None:
        described = _json_object(texts[b"json"])
        value = described.get("label", described.get("cls"))
        if value is not None:
            label = value if type(value) is int and NO_LABEL <= value <= LARGEST_LABEL else _BAD_LABEL
    blocks = 0 if other is None else (other.start - image.offset) // BLOCK
    return _row.pack(
        start + image.offset,
        min(image.size, _INT32),
        label,
        blocks if abs(blocks) <= _INT32 else 0,
        (image.offset - image.start) // BLOCK,
    )


def _split_name(name: bytes) -> tuple[bytes, bytes, bytes]:
    """The path up to the first dot of the name and up to the last, and what follows the last, in lower case.

    The webdataset library, too, groups by the first dot. All three are empty for a member that belongs to no sample,
    as a ``__meta__`` file.
    """
    slash = name.rfind(b"/")
    dot = name.find(b".", slash + 1)
    if dot <= slash + 1 or (name[:2] == b"__" and name.split(b"/", 1)[0].endswith(b"__")):
        return b"", b"", b""
    key, last = name[:dot], name.rfind(b".")
    return key, key if last == dot else name[:last], name[last + 1 :].lower()


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
        if row.label < NO_LABEL:
            reason = _label_problem(reader, row)
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
        return SampleError(reader.path, key, str(error), row.offset, is_transient(error))
    return SampleError(reader.path, key, reason, row.offset)


def read_key(reader: TarReader, row: Row) -> str:
    """Read the sample's key; if that fails, the place of its image."""
    try:
        described = _json_object(_other_member(reader, row)[1]) if row.extra and row.label >= NO_LABEL else {}
        return _key_in(described, _key_in_name(reader, row))
    except InputError as error:
        if is_transient(error):
            raise
        return f"at byte {row.offset}"


def _key_in_name(reader: TarReader, row: Row) -> str:
    """The path of the image without its extension, from the same headers as when the tar was opened."""
    start = row.offset - BLOCK * row.heading
    heading = read_heading(reader.take, start)
    stem = _split_name(heading.name)[1]
    if not stem or heading.offset != row.offset or (heading.size != row.size and row.size <= LARGEST_IMAGE):
        raise FormatError(f"byte {start}: another member begins here")
    return os.fsdecode(stem)


def _other_member(reader: TarReader, row: Row) -> tuple[str, bytes]:
    """The name and the bytes of the member that the row points to besides the image."""
    heading = read_heading(reader.take, row.offset + BLOCK * row.extra)
    return os.fsdecode(heading.name), reader.take(heading.offset, min(heading.size, _LARGEST_JSON))


def _label_problem(reader: TarReader, row: Row) -> str:
    name, text = _other_member(reader, row)
    if row.label == REPEATED:
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
