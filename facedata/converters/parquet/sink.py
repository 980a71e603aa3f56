"""`ParquetSink`: one Parquet file a shard, as the Hugging Face libraries read them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from facedata.converters.class_names import CLASSES, write_class_names
from facedata.converters.parquet.library import import_pyarrow
from facedata.converters.parquet.tables import WRITER_OPTIONS, make_schema, make_table
from facedata.dataset import Sample, Sink, Source
from facedata.errors import FacedataError, OptionError, RefusedSampleError, output_error
from facedata.files import atomic_writer, remove_stale_temporaries
from facedata.images import image_extension, known_extension
from facedata.jobs.plan import cut_by_size

__all__ = ["ParquetSink", "create_sink"]

_SHARD_SIZE = 500_000_000
_MOST_FILES = 100_000  # names have five digits
_ROW_GROUP_BYTES = 1 << 23
_LONGEST_KEY = 1 << 12
_ROW_GROUP_ROWS = 1 << 13
_PEEKS = 8
_NAME = "train-{:05d}-of-{:05d}.parquet"
_NAMES = re.compile(r"train-\d{5}-of-\d{5,6}\.parquet")
_IMAGE_NAME = re.compile(r".+\.(jpe?g|png|bmp|webp|gif|tiff?)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class ParquetSink(Sink):
    """Writes files ``train-<shard>-of-<shards>.parquet``, with the columns that the Hugging Face libraries expect.

    These are ``image``, a struct of ``bytes`` and ``path``, and ``label``; and ``landmarks`` where there are some.

    A row group has at most 8 MiB of images and 8,192 rows, unless a single image is larger: most readers hold a whole
    row group in memory to get at one row, and so does each worker here while it makes one.

    Attributes
    ----------
    root : str
        The folder.
    shard_size : int, optional
        Bytes of images in a file, at most; a larger image has a file of its own.
    shard_samples : int, optional
        Samples in a file, at most.
    keep_undecodable : bool
        Write what does not begin like an image too.
    landmarks : bool, optional
        Whether to write a column ``landmarks``: 10 numbers or null. None where a look at some samples shall tell, and
        has not; a sample that then has landmarks is refused.
    file_count : int
        How many files there will be; known once `fit` has seen the source.
    extensions : bool
        Whether a file extension is put behind each key to make the image's ``path``, because the keys of the source
        have none; `ParquetSource` takes it off again.
    classes : int, optional
        How many classes the source declares.
    class_names : mapping of int to str, optional
        Their names.
    """

    root: str
    shard_size: int | None = None
    shard_samples: int | None = None
    keep_undecodable: bool = False
    landmarks: bool | None = None
    file_count: int = 0
    extensions: bool = False
    classes: int | None = None
    class_names: Mapping[int, str] | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "class_names": None}  # no worker needs them, and there may be very many

    def prefer(self, *, source_names: bool = False, shard_samples: int | None = None, landmarks: bool = False) -> Sink:
        """Write smaller files, and landmarks, if the user did not choose."""
        given = self.shard_size is not None or self.shard_samples is not None
        samples = self.shard_samples if given else shard_samples
        return replace(self, shard_samples=samples, landmarks=True if landmarks else self.landmarks)

    def identity(self) -> Mapping[str, Any]:
        """Options, what was learnt of the source, and the release of pyarrow, which decides the bytes too."""
        return {
            "format": "parquet",
            "shard size": self.shard_size,
            "shard samples": self.shard_samples,
            "keep undecodable": self.keep_undecodable,
            "landmarks": self.landmarks,
            "file extensions": self.extensions,
            "classes": self.classes,
            "pyarrow": int(import_pyarrow().__version__.partition(".")[0]),
        }

    def fit(self, source: Source) -> tuple[ParquetSink, tuple[int, ...]]:
        """Cut the source into files; look at some of its samples for landmarks, and for file extensions in the keys.

        Raises
        ------
        MissingExtraError
            Where pyarrow is not installed.
        OptionError
            Where there would be too many files.
        """
        import_pyarrow()
        ends = self._cut(source)
        if len(ends) > _MOST_FILES:
            raise OptionError(
                f"{self.root}: there would be {len(ends)} files; at most {_MOST_FILES} can be named: choose a larger "
                "shard size"
            )
        samples = _peek(source)
        seen = any(sample.landmarks is not None for sample in samples)
        fitted = replace(
            self,
            landmarks=True if self.landmarks is None and seen else self.landmarks,
            file_count=len(ends),
            extensions=not any(_IMAGE_NAME.fullmatch(sample.key) for sample in samples),
            classes=source.declared_classes(),
            class_names=source.class_names(),
        )
        return fitted, ends

    def _cut(self, source: Source) -> tuple[int, ...]:
        size = _SHARD_SIZE if self.shard_size is None and self.shard_samples is None else self.shard_size
        by_size = (len(source),) if size is None else cut_by_size(source.sizes(), size)
        if self.shard_samples is None:
            return by_size
        begins = (0, *by_size)
        runs = zip(begins, by_size, strict=False)
        return tuple(end for begin, last in runs for end in _cut_by_count(begin, last, self.shard_samples))

    def owns(self, name: str) -> bool:
        """Whether an entry of the root is named as this sink names what it writes."""
        return name == CLASSES or _NAMES.fullmatch(name) is not None

    def files(self, shards: int) -> Iterable[str]:
        """All of them."""
        return (os.path.join(self.root, _NAME.format(shard, shards)) for shard in range(shards))

    def prepare(self) -> None:
        """Remove the unfinished files of workers that were killed: each may take half a gigabyte."""
        remove_stale_temporaries(self.root)

    @contextmanager
    def open_shard(self, shard: int) -> Iterator[_ParquetWriter]:
        """A writer for one file, which appears when it is whole."""
        path = os.path.join(self.root, _NAME.format(shard, self.file_count))
        try:
            with atomic_writer(path) as file, _ParquetWriter(self, file) as writer:
                yield writer
        except FacedataError:  # of whatever is read meanwhile
            raise
        except OSError as error:
            raise output_error(error, path) from error

    def finish(self, shards: int) -> Mapping[str, Any]:
        """Write the names of the classes beside the files; counts the files."""
        if self.class_names is not None:
            write_class_names(os.path.join(self.root, CLASSES), self.class_names)
        return {"files": shards}


def _cut_by_count(begin: int, end: int, count: int) -> Iterator[int]:
    yield from range(begin + count, end, count)
    yield end


def _peek(source: Source) -> list[Sample]:
    """Some samples from all over the source: where several sets are joined, the first says little of the last."""
    places = sorted({len(source) * place // _PEEKS for place in range(_PEEKS)}) if len(source) else []
    items = (item for place in places for item in source[place : place + 1].read())
    return [item for item in items if isinstance(item, Sample)]


class _ParquetWriter:
    """Gathers samples until they fill a row group."""

    def __init__(self, sink: ParquetSink, file: BinaryIO) -> None:
        self._sink, self._file = sink, file
        self._rows: list[tuple[bytes, bytes, int, NDArray[np.float32] | None]] = []
        self._size = 0

    def __enter__(self) -> _ParquetWriter:
        sink = self._sink
        self._schema = make_schema(landmarks=sink.landmarks is True, extensions=sink.extensions, classes=sink.classes)
        self._writer = import_pyarrow().parquet.ParquetWriter(self._file, self._schema, **WRITER_OPTIONS)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
                self._writer.close()
        finally:
            self._writer.is_open = False  # else it tries again when it is collected, and prints that it could not

    def write(self, index: int, sample: Sample, face: int = 0) -> None:
        key, label, image, landmarks = sample
        extension = image_extension(image) or "bin" if self._sink.keep_undecodable else known_extension(image)
        try:
            path = (f"{key}.{extension}" if self._sink.extensions else key).encode()
        except UnicodeEncodeError:
            raise RefusedSampleError("its key is not valid UTF-8, as all text in Parquet must be") from None
        if landmarks is not None and self._sink.landmarks is None:
            raise RefusedSampleError(
                "it has landmarks, but no sample that was looked at first had any, so there is no column for them; "
                "--landmark-column makes one"
            )
        if len(path) > _LONGEST_KEY:
            raise RefusedSampleError(f"its key is {len(path):,} bytes long; at most {_LONGEST_KEY:,} are taken")
        if self._rows and (self._size + len(image) > _ROW_GROUP_BYTES or len(self._rows) == _ROW_GROUP_ROWS):
            self._flush()
        self._rows.append((image, path, label, landmarks))
        self._size += len(image)

    def _flush(self) -> None:
        if self._rows:
            table = make_table(self._schema, *zip(*self._rows, strict=True))
            self._writer.write_table(table, row_group_size=len(self._rows))
        self._rows.clear()
        self._size = 0


def create_sink(
    path: str,
    *,
    shard_size: int | None = None,
    shard_samples: int | None = None,
    landmark_column: bool | None = None,
    keep_undecodable: bool = False,
) -> ParquetSink:
    """A sink that writes Parquet files into the folder `path`.

    Parameters
    ----------
    path : str
    shard_size : int, optional
        Bytes of images in a file, at most: 500,000,000, unless this or `shard_samples` is given.
    shard_samples : int, optional
        Samples in a file, at most.
    landmark_column : bool, optional
        Whether to write landmarks; by default, where one of eight samples from all over the source has them. Then a
        sample that has some though none of the eight had is refused.
    keep_undecodable : bool
        Write what does not begin like an image too.

    Raises
    ------
    OptionError
        Where a file could hold nothing.
    """
    for name, value in (("shard-size", shard_size), ("shard-samples", shard_samples)):
        if value is not None and value < 1:
            raise OptionError(f"--{name} {value}: must be at least 1")
    return ParquetSink(path, shard_size, shard_samples, keep_undecodable, landmark_column)
