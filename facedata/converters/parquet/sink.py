"""`ParquetSink`: samples as Parquet files that the Hugging Face libraries read, one for each shard of the job."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from facedata.columns import UNLABELLED
from facedata.converters.class_names import CLASSES, write_class_names
from facedata.converters.parquet.library import (
    FACEDATA_METADATA,
    HUGGINGFACE_METADATA,
    LANDMARK_COLUMN,
    import_pyarrow,
)
from facedata.dataset import Publish, Sample, Sink, Source, known_extension, peek
from facedata.errors import FacedataError, OptionError, RefusedSampleError, output_error
from facedata.files import atomic_writer, remove_stale_temporaries
from facedata.images import image_extension
from facedata.jobs.plan import cut_by_size

__all__ = ["ParquetSink"]

_SHARD_SIZE = 500_000_000
_MOST_FILES = 100_000  # names have five digits
_ROW_GROUP_BYTES = 1 << 23
_ROW_GROUP_ROWS = 1 << 13
_LONGEST_KEY = 1 << 12
_FEW = 1000  # labels without a name, which then have their number as their name
_NAME = "train-{:05d}-of-{:05d}.parquet"
_NAMES = re.compile(r"train-\d{5}-of-\d{5,6}\.parquet")
_IMAGE_NAME = re.compile(r".+\.(jpe?g|png|bmp|webp|gif|tiff?)", re.IGNORECASE | re.DOTALL)
_WRITER_OPTIONS: dict[str, Any] = {
    "compression": "none",  # JPEG does not shrink, and the other columns are small
    "use_dictionary": ["label"],
    "write_statistics": ["label"],  # those of the images would copy the smallest and the largest into the footer
    "write_batch_size": 64,  # a page ends after one of these batches that fills it; 1,024 images would be too many
    "write_page_index": True,  # some readers use it to fetch one row instead of a whole row group
    "write_page_checksum": True,
}


@dataclass(frozen=True)
class ParquetSink(Sink):
    """Writes files ``train-<shard>-of-<shards>.parquet`` with the columns that the Hugging Face libraries expect.

    The columns are ``image``, a struct of ``bytes`` and ``path``; ``label``; and ``landmarks`` if there are any.

    A row group has at most 8 MiB of images and 8,192 rows, unless a single image is larger: most readers hold a whole
    row group in memory to return one row, and so does each worker here while it writes one.

    Attributes
    ----------
    root : str
        The folder.
    shard_size, shard_samples : int, optional
        The most bytes of images in a file, and the most samples; a larger image has a file of its own.
    keep_undecodable : bool
        Write bytes that do not begin like an image instead of refusing them.
    landmarks : bool, optional
        Whether to write a column ``landmarks``: 10 numbers or null. If None, `fit` decides; if it finds no landmarks,
        a sample with landmarks is refused.
    file_count : int
        The number of files; known after `fit`.
    add_extensions : bool
        Whether a file extension is appended to each key to make the image's ``path``, because the keys of the source
        have none; `ParquetSource` removes it again.
    classes : int, optional
        How many classes the source declares.
    features : tuple of str
        The name of each label from 0, as a ``ClassLabel`` of Hugging Face; empty if there are none.
    class_names : mapping of int to str, optional
        Names of the labels, for `finish`; not sent to workers.
    """

    root: str
    shard_size: int | None = None
    shard_samples: int | None = None
    keep_undecodable: bool = False
    landmarks: bool | None = None
    file_count: int = 0
    add_extensions: bool = False
    classes: int | None = None
    features: tuple[str, ...] = ()
    class_names: Mapping[int, str] | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "class_names": None}

    def prefer(self, *, source_names: bool = False, shard_samples: int | None = None, landmarks: bool = False) -> Sink:
        """Write smaller files, and landmarks, if the user did not choose."""
        given = self.shard_size is not None or self.shard_samples is not None
        samples = self.shard_samples if given else shard_samples
        return replace(self, shard_samples=samples, landmarks=True if landmarks else self.landmarks)

    def identity(self) -> Mapping[str, Any]:
        """The options, what `fit` learned of the source, and the release of pyarrow, which affects the bytes too."""
        return {
            "format": "parquet",
            "shard size": self.shard_size,
            "shard samples": self.shard_samples,
            "keep undecodable": self.keep_undecodable,
            "landmarks": self.landmarks,
            "file extensions": self.add_extensions,
            "classes": self.classes,
            **({"features": crc32("\0".join(self.features).encode(errors="surrogateescape"))} if self.features else {}),
            "pyarrow": int(import_pyarrow().__version__.partition(".")[0]),
        }

    def fit(self, source: Source) -> tuple[ParquetSink, tuple[int, ...]]:
        """Cut the source into files; look for landmarks, and for file extensions in the keys, in some of its samples.

        Raises
        ------
        MissingExtraError
            If pyarrow is not installed.
        OptionError
            If there would be too many files.
        """
        import_pyarrow()
        size = _SHARD_SIZE if self.shard_size is None and self.shard_samples is None else self.shard_size
        if size is None:
            most = self.shard_samples or max(len(source), 1)
            ends: tuple[int, ...] = (*range(most, len(source), most), len(source))
        else:
            ends = cut_by_size(source.sizes(), size, self.shard_samples)
        if len(ends) > _MOST_FILES:
            raise OptionError(
                f"{self.root}: this would write {len(ends):,} files, but their names allow {_MOST_FILES:,}; choose a "
                "larger --shard-size or --shard-samples"
            )
        samples = [item for item in peek(source) if isinstance(item, Sample)]
        found = any(sample.landmarks is not None for sample in samples)
        fitted = replace(
            self,
            landmarks=True if self.landmarks is None and found else self.landmarks,
            file_count=len(ends),
            add_extensions=not any(_IMAGE_NAME.fullmatch(sample.key) for sample in samples),
            classes=source.declared_classes(),
            features=_class_label(source),
            class_names=source.class_names(),
        )
        return fitted, ends

    def owns(self, name: str) -> bool:
        """Whether an entry of the root is named as its files, or is the file of the class names."""
        return name == CLASSES or _NAMES.fullmatch(name) is not None

    def final_files(self) -> list[str]:
        """The file of the class names."""
        return [] if self.class_names is None else [os.path.join(self.root, CLASSES)]

    def shard_file(self, shard: int) -> str:
        """The Parquet file of a shard."""
        return os.path.join(self.root, _NAME.format(shard, self.file_count))

    def prepare(self) -> None:
        """Remove the unfinished files of killed workers, which are large."""
        remove_stale_temporaries(self.root)

    @contextmanager
    def open_shard(self, shard: int) -> Iterator[_ParquetWriter]:
        """A writer for one file, which appears when it is complete."""
        path = self.shard_file(shard)
        try:
            with atomic_writer(path, replace=False) as file, _ParquetWriter(self, file) as writer:
                yield writer
        except FacedataError:  # about the source that is read meanwhile
            raise
        except OSError as error:
            raise output_error(error, path) from error

    def finish(self, shards: int, publish: Publish) -> Mapping[str, Any]:
        """Write the names of the classes beside the files; return the number of files."""
        if self.class_names is not None:
            write_class_names(os.path.join(self.root, CLASSES), self.class_names, publish)
        return {"files": shards}


class _ParquetWriter:
    """Writes one file, row group after row group."""

    def __init__(self, sink: ParquetSink, file: BinaryIO) -> None:
        self._sink = sink
        self._schema = _make_schema(sink)
        self._writer = import_pyarrow().parquet.ParquetWriter(file, self._schema, **_WRITER_OPTIONS)
        self._rows: list[tuple[bytes, bytes, int, NDArray[np.float32] | None]] = []
        self._size = 0

    def __enter__(self) -> _ParquetWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
                self._writer.close()
        finally:
            self._writer.is_open = False  # or pyarrow closes it again when it is collected, and prints the error

    def write(self, index: int, sample: Sample, face: int = 0) -> None:
        key, label, image, landmarks, _ = sample
        extension = image_extension(image) or "bin" if self._sink.keep_undecodable else known_extension(image)
        try:
            path = (f"{key}.{extension}" if self._sink.add_extensions else key).encode()
        except UnicodeEncodeError:
            raise RefusedSampleError("its key is not valid UTF-8, which text in Parquet must be") from None
        if landmarks is not None and self._sink.landmarks is None:
            raise RefusedSampleError(
                "it has landmarks, but there is no column for them, because the samples that were checked first had "
                "none; use --landmark-column"
            )
        if len(path) > _LONGEST_KEY:
            raise RefusedSampleError(f"its key has {len(path):,} bytes; at most {_LONGEST_KEY:,} are allowed")
        if self._rows and (self._size + len(image) > _ROW_GROUP_BYTES or len(self._rows) == _ROW_GROUP_ROWS):
            self._flush()
        self._rows.append((image, path, label, landmarks))
        self._size += len(image)

    def _flush(self) -> None:
        """Write the gathered rows as a row group."""
        if self._rows:
            table = _make_table(self._schema, *zip(*self._rows, strict=True))
            self._writer.write_table(table, row_group_size=len(self._rows))
        self._rows.clear()
        self._size = 0


def _make_schema(sink: ParquetSink) -> Any:
    """The Arrow schema, with metadata for the Hugging Face libraries and for `ParquetSource`."""
    pyarrow = import_pyarrow()
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    fields = [("image", image), ("label", pyarrow.int64())]
    features: dict[str, Any] = {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}
    if sink.features:
        features["label"] = {"names": sink.features, "_type": "ClassLabel"}
    if sink.landmarks:
        fields.append((LANDMARK_COLUMN, pyarrow.list_(pyarrow.float32())))
        # every release of the datasets library reads Sequence; since 4.0 it writes List
        features[LANDMARK_COLUMN] = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}
    metadata = {
        HUGGINGFACE_METADATA: json.dumps({"info": {"features": features}}),
        FACEDATA_METADATA: json.dumps({"extensions": sink.add_extensions, "classes": sink.classes}),
    }
    return pyarrow.schema(fields, metadata)


def _make_table(
    schema: Any,
    images: Sequence[bytes],
    paths: Sequence[bytes],
    labels: Sequence[int],
    landmarks: Sequence[NDArray[np.float32] | None],
) -> Any:
    """An Arrow table of some samples.

    It is made from buffers, because pyarrow's conversion of Python objects takes twice as long, and imports pandas.
    """
    pyarrow = import_pyarrow()
    buffer, from_buffers = pyarrow.py_buffer, pyarrow.Array.from_buffers

    known = [label != UNLABELLED for label in labels]
    image = schema.field("image").type
    members = [
        from_buffers(member.type, len(images), [None, buffer(_offsets(values)), buffer(b"".join(values))])
        for member, values in zip(image, (images, paths), strict=True)
    ]
    columns = [
        pyarrow.StructArray.from_arrays(members, fields=list(image)),
        from_buffers(pyarrow.int64(), len(labels), [buffer(_valid(known)), buffer(np.array(labels, np.int64))]),
    ]
    if LANDMARK_COLUMN in schema.names:
        rows = [() if points is None else points.ravel() for points in landmarks]
        values = np.concatenate(rows).astype(np.float32)
        valid = _valid([points is not None for points in landmarks])
        numbers = from_buffers(pyarrow.float32(), len(values), [None, buffer(values)])
        kind = schema.field(LANDMARK_COLUMN).type
        columns.append(from_buffers(kind, len(rows), [buffer(valid), buffer(_offsets(rows))], children=[numbers]))
    return pyarrow.Table.from_arrays(columns, schema=schema)


def _class_label(source: Source) -> tuple[str, ...]:
    """The name of each label from 0, or its number; empty if there are no names, or two are the same."""
    names = source.class_names() or {}
    count = max(max(names, default=-1) + 1, source.declared_classes() or 0)
    if not names or count > 2 * len(names) + _FEW:
        return ()
    found = tuple(names.get(label, str(label)) for label in range(count))
    return found if len(set(found)) == count else ()


def _valid(known: Sequence[bool]) -> NDArray[np.uint8]:
    """The bits that say which values of an array are not null."""
    return np.packbits(known, bitorder="little")


def _offsets(values: Iterable[Any]) -> NDArray[np.int32]:
    """Where each value begins, and where the last ends, if they follow each other."""
    lengths = list(map(len, values))
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
