"""Access to Parquet files through pyarrow: finding and opening files, the columns of a sample, and the row groups."""

from __future__ import annotations

import glob
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.errors import FormatError, InputError, InputNotFoundError, MissingExtraError, input_error
from facedata.files import opened_regular, read_exactly
from facedata.jobs.machine import limited_memory
from facedata.text import natural_sort

__all__ = [
    "FACEDATA_METADATA",
    "HUGGINGFACE_METADATA",
    "LANDMARK_COLUMN",
    "ROW_GROUP",
    "ColumnOptions",
    "Columns",
    "Leaf",
    "find_columns",
    "find_files",
    "first_line",
    "import_pyarrow",
    "iter_batches",
    "open_parquet",
    "read_metadata",
    "read_row_groups",
    "recognises",
]

LANDMARK_COLUMN = "landmarks"
"""The column of landmarks: lists of ten numbers."""

HUGGINGFACE_METADATA, FACEDATA_METADATA = b"huggingface", b"facedata"
"""Keys of the metadata of a schema, whose values are JSON."""

_EXTENSION = ".parquet"
_MAGIC = b"PAR1"
_SUBFOLDER = "data"  # where datasets of the Hugging Face Hub have their files
_PLAUSIBLE_ROWS = 1 << 20  # in any file; with one image repeated, a row may take less than a byte

ROW_GROUP = np.dtype([(name, np.int64) for name in ("file", "number", "begin", "end", "size")])
"""A row group: the index of its file, its number in that file, its first row and the row after its last, counted over
all files of the dataset, and its bytes before compression, nearly all of them images."""

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes")
_LABEL_COLUMNS = ("label", "labels", "cls", "class", "target", "identity")
_KEY_COLUMNS = ("path", "key", "__key__", "file_name", "filename")
_BINARY, _STRING = {"binary", "large_binary", "binary_view"}, {"string", "large_string", "string_view"}
_FLOAT = {"halffloat", "float", "double"}
_DOUBLE = {"double"}  # what pandas makes of integers if some are missing
_INTEGER = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_READ_BUFFER = 1 << 20
_LARGEST_FOOTER = 1 << 26  # bytes; a megabyte describes ten thousand row groups
_MEMORY = 1 << 29  # bytes that reading may take, besides the file's own size some times: images hardly shrink
_MEMORY_TIMES = 4  # a page as it is stored, the page unpacked, its values


def import_pyarrow() -> Any:
    """Import pyarrow with its Parquet module, which takes a quarter of a second.

    The import starts one thread, of pyarrow's memory allocator, which survives a fork. The functions of pyarrow that
    start thread pools, which do not, are never used here.

    Raises
    ------
    MissingExtraError
        If it is not installed or cannot be loaded; the message says how to install it.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError("the format parquet", "parquet") from error
    except Exception as error:  # a build for another release of NumPy may raise anything
        raise MissingExtraError("the format parquet", "parquet", first_line(error)) from error
    pyarrow.allocate_buffer(_READ_BUFFER)  # its allocator reserves a GiB of addresses, which no limit must prevent
    return pyarrow


def first_line(error: BaseException) -> str:
    """The first line of an error of pyarrow; the others are for its developers."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def open_parquet(path: str) -> Iterator[Any]:
    """Open a ``pyarrow.parquet.ParquetFile``, which reads page by page and verifies the checksums of pages.

    The file is not mapped into memory: if it were truncated while it is read, the process would be killed.

    Raises
    ------
    InputError
        If the file cannot be opened.
    FormatError
        If it is not a Parquet file, or its footer is damaged.
    """
    pyarrow = import_pyarrow()
    with opened_regular(path) as descriptor:
        end = read_exactly(descriptor, 8, max(os.fstat(descriptor).st_size - 8, 0))
        if (footer := int.from_bytes(end[:4], "little")) > _LARGEST_FOOTER and end.endswith(_MAGIC):
            raise FormatError(f"{path}: its footer has {footer:,} bytes; at most {_LARGEST_FOOTER:,} are read")
        handle = pyarrow.OSFile(path)  # which would wait for ever at a named pipe
    with handle:
        try:
            with limited_memory(_MEMORY):
                file = pyarrow.parquet.ParquetFile(
                    handle, pre_buffer=False, buffer_size=_READ_BUFFER, page_checksum_verification=True
                )
                _ = file.schema_arrow, file.metadata
        except Exception as error:  # pyarrow raises many kinds of errors; all of them are about this file
            if isinstance(error, OSError) and error.errno is not None:
                raise input_error(error, path) from error
            raise FormatError(
                f"{path}: is not a complete Parquet file: {first_line(error)}; copy or download it again"
            ) from error
        yield file


def iter_batches(file: Any, path: str, rows: int, **options: Any) -> Iterator[Any]:
    """Record batches of an open file, read with a limit on memory: a page of some bytes may unpack to gigabytes.

    Raises
    ------
    FormatError
        If they cannot be read, or take too much memory.
    """
    memory = _MEMORY + _MEMORY_TIMES * os.path.getsize(path)
    try:
        batches = file.iter_batches(rows, use_threads=False, **options)
        while True:
            with limited_memory(memory):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
    except MemoryError as error:
        raise FormatError(f"reading it takes more than {memory:,} bytes of memory") from error
    except Exception as error:  # pyarrow raises many kinds of errors; all of them are about this file
        raise FormatError(first_line(error)) from error


class Leaf(NamedTuple):
    """A column, or a member of a column that is a struct."""

    column: str
    member: str | None = None

    @property
    def path(self) -> str:
        """Its path in the Parquet schema."""
        return self.column if self.member is None else f"{self.column}.{self.member}"

    def values(self, batch: Any) -> Any:
        """Its array in a record batch."""
        array = batch.column(batch.schema.get_field_index(self.column))
        if self.member is None:
            return array
        return array.flatten()[array.type.get_field_index(self.member)]  # null wherever the struct is null


class ColumnOptions(NamedTuple):
    """Which columns the user names; None for those that are found by name and type.

    Without `labels` no column of labels is looked for.
    """

    image: str | None = None
    label: str | None = None
    labels: bool = True


class Columns(NamedTuple):
    """The columns of a Parquet file that make up a sample.

    Attributes
    ----------
    label : Leaf or None
        None if there are no labels.
    texts : bool
        Whether the labels are texts.
    key : Leaf or None
        None if the number of the row is the key.
    landmarks : Leaf or None
    has_extensions : bool
        Whether facedata wrote the file and appended a file extension to each key.
    """

    image: Leaf
    label: Leaf | None
    texts: bool
    key: Leaf | None
    landmarks: Leaf | None
    has_extensions: bool


def find_columns(schema: Any, path: str, options: ColumnOptions = ColumnOptions()) -> Columns:
    """Find the columns of a sample in the Arrow schema of the file at `path`.

    The image is a column with a usual name (``image``, ``jpg``) that is binary, or a struct with a binary member
    ``bytes`` like the image feature of Hugging Face; or else the only such struct. The label is a column of integers or
    texts with a usual name; if no column can be the label, there are no labels. The key is the member ``path`` of the
    image's struct, or a string column with a usual name.

    Raises
    ------
    FormatError
        If there is no image column, or a label column cannot be told; the message lists the columns of the file.
    """
    types = {field.name: field.type for field in schema if len(schema.get_all_field_indices(field.name)) == 1}

    images = {name: leaf for name, kind in types.items() if (leaf := _image_leaf(name, kind)) is not None}
    structs = [leaf for leaf in images.values() if leaf.member is not None]
    image = next((images[name] for name in _IMAGE_COLUMNS if name in images), structs[0] if len(structs) == 1 else None)
    image = image if options.image is None else images.get(options.image)
    label_kinds = (_INTEGER, _DOUBLE, _STRING)
    label_names = _LABEL_COLUMNS if options.label is None else (options.label,)
    labels = [leaf for kinds in label_kinds if (leaf := _named_column(types, label_names, kinds)) is not None]
    label = labels[0] if labels and options.labels else None
    key = _named_column(types, _KEY_COLUMNS, _STRING)
    texts_or_integers = {name for name, kind in types.items() if _type_name(kind) in _INTEGER | _STRING}
    others = texts_or_integers.difference(_KEY_COLUMNS) | types.keys() & set(_LABEL_COLUMNS)
    if image is None or (label is None and options.labels and (others or options.label is not None)):
        what, names = ("image", _IMAGE_COLUMNS) if image is None else ("label", _LABEL_COLUMNS)
        wanted = options.image if image is None else options.label
        kind = "a binary column, or a struct with a binary member 'bytes'" if image is None else "integers or texts"
        named = f"named {', '.join(names[:-1])} or {names[-1]}" if wanted is None else f"named {wanted}"
        found = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
        way_out = "" if image is None else ", or read it without labels: --labels none"
        raise FormatError(
            f"{path}: has no {what} column; expected {kind}, {named}; columns found: {found}; name the column with "
            f"--{what}-column{way_out}"
        )

    if _member_type(types[image.column], "path") in _STRING:
        key = Leaf(image.column, "path")
    landmarks = Leaf(LANDMARK_COLUMN) if _is_list_of_floats(types.get(LANDMARK_COLUMN)) else None
    has_extensions = read_metadata(schema, FACEDATA_METADATA).get("extensions") is True
    texts = label is not None and _type_name(types[label.column]) in _STRING
    return Columns(image, label, texts, None if key == label else key, landmarks, has_extensions)


def _image_leaf(name: str, kind: Any) -> Leaf | None:
    if _type_name(kind) in _BINARY:
        return Leaf(name)
    return Leaf(name, "bytes") if _member_type(kind, "bytes") in _BINARY else None


def _named_column(types: Mapping[str, Any], names: tuple[str, ...], kinds: set[str]) -> Leaf | None:
    return next((Leaf(name) for name in names if name in types and _type_name(types[name]) in kinds), None)


def _type_name(kind: Any) -> str:
    """The name of an Arrow type; for a dictionary, of the type of its values."""
    return str(kind.value_type) if str(kind).startswith("dictionary<") else str(kind)


def _member_type(kind: Any, name: str) -> str | None:
    """The name of the type of a member; None if `kind` is not a struct or has no such member."""
    index = kind.get_field_index(name) if str(kind).startswith("struct<") else -1
    return None if index < 0 else _type_name(kind.field(index).type)


def _is_list_of_floats(kind: Any) -> bool:
    """Whether a type is a list of floats, or a list of such lists."""
    value = getattr(kind, "value_type", None)
    return value is not None and (str(value) in _FLOAT or _is_list_of_floats(value))


def read_metadata(schema: Any, name: bytes) -> Mapping[str, Any]:
    """The JSON object in the metadata of an Arrow schema; empty if there is none, or it is not valid."""
    try:
        value = json.loads((schema.metadata or {}).get(name, b"{}"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def find_files(path: str) -> list[str]:
    """The files of the dataset at `path`, in the natural order of their names.

    Parameters
    ----------
    path : str
        A file; a folder with ``*.parquet``, or with a folder ``data`` that has them; or a pattern of file names.

    Raises
    ------
    InputNotFoundError
        If there is none.
    """
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except (OSError, ValueError):
        if not glob.has_magic(path):
            return [path]  # opening it reports what is wrong
        if files := natural_sort(glob.glob(path)):
            return files
        raise InputNotFoundError(f"{path}: no file matches this pattern") from None
    if not is_folder:
        return [path]
    subfolder = os.path.join(path, _SUBFOLDER)
    files = _list_folder(path) or (_list_folder(subfolder) if os.path.isdir(subfolder) else [])
    if not files:
        raise InputNotFoundError(f"{path}: contains no *{_EXTENSION} file, and neither does {subfolder}")
    return files


def _list_folder(folder: str) -> list[str]:
    try:
        names = [name for name in os.listdir(folder) if name.endswith(_EXTENSION) and not name.startswith(".")]
    except OSError as error:
        raise input_error(error, folder) from error
    return [os.path.join(folder, name) for name in natural_sort(names)]


def recognises(path: str) -> bool:
    """Whether `path` is a Parquet file, or a folder of Parquet files."""
    if os.path.isdir(path):
        with suppress(InputError):  # a folder without permission to list it is not recognised
            return any(map(_list_folder, (path, os.path.join(path, _SUBFOLDER))))
        return False
    if path.endswith(_EXTENSION):
        return os.path.isfile(path)
    with suppress(OSError, ValueError):
        if os.path.isfile(path):
            with open(path, "rb", buffering=0) as file:
                return file.read(len(_MAGIC)) == _MAGIC
    return False


def read_row_groups(
    paths: Sequence[str], options: ColumnOptions = ColumnOptions()
) -> tuple[NDArray[np.void], list[Columns]]:
    """The row groups of the files, according to their footers; those without rows are left out.

    Returns
    -------
    ndarray of shape (G,), ROW_GROUP
    list of Columns
        Those of each file.

    Raises
    ------
    InputError
        If a file cannot be read.
    FormatError
        If it is not a complete Parquet file, lacks a column, or its footer contradicts itself.
    """
    tables, columns = [np.empty(0, ROW_GROUP)], list[Columns]()
    for index, path in enumerate(paths):
        with open_parquet(path) as file:
            columns.append(find_columns(file.schema_arrow, path, options))
            if columns[-1].texts != columns[0].texts:
                raise FormatError(
                    f"{path}: its labels are {'texts' if columns[-1].texts else 'integers'}, and those of {paths[0]} "
                    "are not; convert them separately"
                )
            metadata = file.metadata
            try:  # the metadata of single columns is not read: if it is damaged, pyarrow ends the process
                groups = enumerate(map(metadata.row_group, range(metadata.num_row_groups)))
                # "end" holds the number of rows until all are known
                values = [(index, number, 0, group.num_rows, group.total_byte_size) for number, group in groups]
                table = np.array(values, ROW_GROUP)
                rows = int(metadata.num_rows)
            except Exception as error:  # pyarrow raises many kinds of errors; all of them are about this footer
                raise FormatError(f"{path}: its footer is damaged: {first_line(error)}") from error

        # rows take memory in many places, so an invented number of rows is refused
        size = os.path.getsize(path)
        counted = sum(table["end"].tolist())  # Python's integers do not overflow
        if (table["end"] < 0).any() or (table["size"] < 0).any() or counted != rows:
            raise FormatError(f"{path}: its footer is damaged: it says {rows} rows, but its row groups have {counted}")
        if rows > max(size, _PLAUSIBLE_ROWS):
            raise FormatError(f"{path}: its footer is damaged: it says {rows} rows, but the file has only {size} bytes")
        if not table["size"].any():  # some writers leave it out
            table["size"] = table["end"] * (size // max(rows, 1))
        tables.append(table[table["end"] > 0])

    joined = np.concatenate(tables)
    joined["end"] = joined["end"].cumsum()
    joined["begin"][1:] = joined["end"][:-1]
    return joined, columns
