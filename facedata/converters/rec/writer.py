"""Writing a record set: the single writer appends blocks of records, and the set is completed after the last one.

The writer's files lie in the folder `BUILDING` until the set is complete: the records, and beside them the offsets and
labels of all images (8 and 4 bytes an image), from which index, identity records and counts follow.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.converters.class_names import CLASSES, write_class_names
from facedata.converters.rec.dialect import INSIGHTFACE
from facedata.converters.rec.encoder import RecordBlock
from facedata.converters.rec.index import write_index
from facedata.converters.rec.recordio import CHUNK_HEADER_SIZE, LARGEST_LABEL, MAGIC, RecordReader, unpack_image_record
from facedata.dataset import OrderedWriter
from facedata.errors import FormatError, InputError, OptionError, OutputMismatchError, output_error
from facedata.files import atomic_writer, write_fully
from facedata.images import image_size

__all__ = ["BUILDING", "BlockWriter", "BuildFiles", "check_count", "complete_set", "count_people"]

BUILDING = ".facedata-building"
LARGEST_INSIGHTFACE_SET = LARGEST_LABEL
"""In records; above it the meta record, which counts in float32, would be wrong."""

_RANGE_RECORD = np.dtype(
    [("chunk", "<u4", 2), ("flag", "<u4"), ("label", "<f4"), ("id", "<u8"), ("id2", "<u8"), ("range", "<f4", 2)]
)  # a whole record without an image, whose two labels are a range of keys: the first, and the one after the last
_RANGES_AT_ONCE = 1 << 16
_KEY_WORD = 4  # where in a record its key stands, in words of 4 bytes, the low half first
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_USUAL_SIZE = (112, 112)
_SAMPLED_SIZES = 64
_LABELS_AT_ONCE = 1 << 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildFiles:
    """The files of a set while it is built in `folder`."""

    folder: str

    def path(self, name: str) -> str:
        """The file that will be published under `name`."""
        return os.path.join(self.folder, name)

    @property
    def records(self) -> str:
        """The record file."""
        return self.path("train.rec")

    @property
    def list(self) -> str:
        """The lines of the list."""
        return self.path("train.lst")

    @property
    def offsets(self) -> str:
        """Where each image record begins, and where the last one ends; int64."""
        return self.path("offsets")

    @property
    def labels(self) -> str:
        """The label of each image; int32."""
        return self.path("labels")


class BlockWriter(OrderedWriter):
    """Appends blocks to the files of a set, and the keys to its records.

    Parameters
    ----------
    files : BuildFiles
    ends : mapping
        What `write` returned for each shard that is done; bytes after these are removed.
    first_key : int
        The key of the first image; the keys of the others follow.
    listed : bool
        Whether to write a list.

    Raises
    ------
    OutputMismatchError
        If a file is shorter than `ends` say.
    OutputError
        If the files cannot be written.
    """

    def __init__(
        self, files: BuildFiles, ends: Mapping[int, Mapping[str, Any]], *, first_key: int, listed: bool
    ) -> None:
        self.done = next(shard for shard in range(len(ends) + 1) if shard not in ends)
        end = ends[self.done - 1] if self.done else {"images": 0, "records": 0, "list": 0}
        self._images, self._first_key = int(end["images"]), first_key
        self._scratch = np.empty(0, "<u4")
        with ExitStack() as stack:
            self._records = stack.enter_context(_GrowingFile(files.records, int(end["records"])))
            self._offsets = stack.enter_context(_GrowingFile(files.offsets, 8 * (self._images + 1) if self.done else 0))
            self._labels = stack.enter_context(_GrowingFile(files.labels, 4 * self._images))
            self._list = stack.enter_context(_GrowingFile(files.list, int(end["list"]))) if listed else None
            if not self.done:
                self._offsets.append(bytes(8))
            self._stack = stack.pop_all()

    def write(self, shard: int, block: RecordBlock) -> Mapping[str, Any]:
        """Append a block; return the ends of the files."""
        first_key = self._first_key + self._images
        keys = np.arange(first_key, first_key + len(block.ends))
        base = self._records.end
        self._records.append(self._with_keys(block, keys))
        self._offsets.append((block.ends + base).tobytes())
        self._labels.append(block.labels.tobytes())
        if self._list is not None:
            lines = zip(keys.tolist(), block.labels.tolist(), block.names, strict=True)
            self._list.append(b"".join([b"%d\t%d\t%b\n" % line for line in lines]))
        self._images += len(block.ends)
        end = 0 if self._list is None else self._list.end
        return {"images": self._images, "records": self._records.end, "list": end}

    def _with_keys(self, block: RecordBlock, keys: NDArray[np.int64]) -> memoryview:
        """The bytes of the block with the key of each record in its header; valid until the next call."""
        if self._scratch.nbytes < block.data.size:
            self._scratch = np.empty(block.data.size // 4, "<u4")
        words = self._scratch[: block.data.size // 4]
        block.data.take(words.data.cast("B"))
        places = np.concatenate([[0], block.ends[:-1] >> 2])[: len(keys)] + _KEY_WORD
        words[places], words[places + 1] = keys & 0xFFFFFFFF, keys >> 32
        return words.data.cast("B")

    def commit(self, entry: Mapping[str, Any]) -> None:
        """Nothing to do: the next writer removes what the journal does not list."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class _GrowingFile:
    """A file that grows; bytes after `end` are removed when it is opened."""

    def __init__(self, path: str, end: int) -> None:
        self._path, self.end = path, end
        try:
            self._descriptor = os.open(path, _FLAGS, 0o666)
        except OSError as error:
            raise output_error(error, path) from error
        size = os.fstat(self._descriptor).st_size
        if size < end:
            os.close(self._descriptor)
            raise OutputMismatchError(
                f"{path}: has {size} bytes, but earlier runs of this job wrote {end}: it was changed, or the machine "
                "lost power; --overwrite starts again"
            )
        os.ftruncate(self._descriptor, end)
        os.lseek(self._descriptor, end, os.SEEK_SET)

    def append(self, data: bytes | memoryview) -> None:
        try:
            write_fully(self._descriptor, data)
        except OSError as error:
            raise output_error(error, self._path) from error
        self.end += len(data)

    def __enter__(self) -> _GrowingFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def check_count(place: str, images: int, people: int) -> None:
    """Raise `OptionError` if the InsightFace dialect cannot count that many records."""
    if images + people + 1 > LARGEST_INSIGHTFACE_SET:
        raise OptionError(
            f"{place}: the insightface style counts its records (images, people and the meta record) in float32, which "
            f"is exact only up to {LARGEST_INSIGHTFACE_SET:,}, and there are more; --style plain has no such limit"
        )


def count_people(labels: NDArray[np.int32]) -> int:
    """The number of different labels, counted with one byte per possible label."""
    met = np.zeros(int(labels.max()) + 1, bool)
    for begin in range(0, len(labels), _LABELS_AT_ONCE):
        met[labels[begin : begin + _LABELS_AT_ONCE]] = True
    return int(met.sum())


def complete_set(
    files: BuildFiles, labels: NDArray[np.int32], *, style: str, listed: bool, names: Mapping[int, str] | None
) -> None:
    """Write everything that follows from the images beside them; files of an earlier try are written again.

    Parameters
    ----------
    files : BuildFiles
        With the records of the images, their offsets and labels.
    labels : ndarray of shape (N,), int32
    style : str
    listed : bool
        Whether there is a list.
    names : mapping of int to str, optional
        The names of the classes.

    Raises
    ------
    OutputMismatchError
        If the records are corrupt.
    OutputError
        If a file cannot be written.
    """
    offsets: NDArray[np.int64] = np.memmap(files.offsets, np.int64, "r")
    with atomic_writer(files.path("property")) as file:
        file.write(b"%d,%d,%d\n" % (int(labels.max()) + 1, *_usual_size(files, offsets)))
    if style == INSIGHTFACE:
        steps = np.diff(labels)
        if (steps < 0).any():
            raise FormatError(f"{files.folder}: the labels of the input changed while it was being read")
        first_keys = np.append(0, np.flatnonzero(steps) + 1) + 1
        images, people, end = len(labels), len(first_keys), int(offsets[-1])
        check_count(files.folder, images, people)
        _append(files.records, end, _closing_records(first_keys, images))
        closing = end + _RANGE_RECORD.itemsize * np.arange(1, people + 1)
        write_index(files.path("train.idx"), _MetaLast(images + people + 1), np.concatenate([offsets, closing]))
    else:
        _append(files.records, int(offsets[-1]), [])
        write_index(files.path("train.idx"), range(len(labels)), offsets[:-1])
    if listed:
        with open(files.list, "r+b") as file:
            os.fsync(file.fileno())
    if names is not None:
        write_class_names(files.path(CLASSES), names)


def _usual_size(files: BuildFiles, offsets: NDArray[np.int64]) -> tuple[int, int]:
    """Height and width of the first image that has a size; warns if those of some others differ."""
    places = np.unique(np.linspace(0, len(offsets) - 2, _SAMPLED_SIZES).astype(np.int64))
    sizes = []
    with RecordReader(files.records) as reader:
        for offset in offsets[places].tolist():
            try:
                size = image_size(unpack_image_record(reader.read(offset)[0]).image)
            except InputError as error:
                raise OutputMismatchError(f"{reader.path}: is corrupt: {error}; --overwrite starts again") from error
            if size is not None:
                sizes.append((size[0], size[1]))
    if len(set(sizes)) > 1:
        shown = ", ".join(f"{height} x {width}" for height, width in sorted(set(sizes))[:3])
        folder = os.path.dirname(files.folder)
        _log.warning("%s: the images have different sizes (%s); property has that of the first", folder, shown)
    return sizes[0] if sizes else _USUAL_SIZE


def _closing_records(first_keys: NDArray[np.int64], images: int) -> Iterator[NDArray[Any]]:
    """The records after the images in the InsightFace dialect, some at a time: one for each identity, and the meta.

    Parameters
    ----------
    first_keys : ndarray of shape (C,), int64
        The key of the first image of each identity, ascending.
    images : int
        Their keys are 1 to `images`.
    """
    first = images + 1
    ends = np.append(first_keys[1:], first)
    for begin in range(0, len(first_keys), _RANGES_AT_ONCE):
        part = slice(begin, begin + _RANGES_AT_ONCE)
        ranges = np.stack([first_keys[part], ends[part]], axis=1)
        yield _range_records(np.arange(len(ranges)) + first + begin, ranges)
    yield _range_records(np.zeros(1, np.int64), np.array([[first, first + len(first_keys)]]))


def _range_records(keys: NDArray[np.int64], ranges: NDArray[np.int64]) -> NDArray[Any]:
    records = np.zeros(len(keys), _RANGE_RECORD)
    records["chunk"] = MAGIC, _RANGE_RECORD.itemsize - CHUNK_HEADER_SIZE
    records["flag"], records["id"], records["range"] = 2, keys, ranges
    return records


def _append(path: str, end: int, closing: Iterable[NDArray[Any]]) -> None:
    """Write records from `end` on, and force the whole file to the disk."""
    with open(path, "r+b") as file:
        file.truncate(end)
        file.seek(end)
        for records in closing:
            file.write(records.tobytes())
        file.flush()
        os.fsync(file.fileno())


class _MetaLast(Sequence[int]):
    """The keys of an InsightFace set in file order, 1, 2, ..., and 0, without the 8 bytes each of an array."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: Any) -> Any:
        keys = [*range(1, self._count)[part]]
        return [*keys, 0] if part.stop >= self._count else keys
