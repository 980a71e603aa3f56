"""Finding the image, label and key columns of a Parquet file, whoever wrote it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from facedata.errors import FormatError

__all__ = [
    "FACEDATA_METADATA",
    "HUGGINGFACE_METADATA",
    "IMAGE_COLUMNS",
    "KEY_COLUMNS",
    "LABEL_COLUMNS",
    "LANDMARK_COLUMN",
    "Columns",
    "Leaf",
    "class_names_of",
    "find_columns",
    "own_facts",
]

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes")
LABEL_COLUMNS = ("label", "labels", "cls", "class", "target", "identity")
KEY_COLUMNS = ("path", "key", "__key__", "file_name", "filename")
LANDMARK_COLUMN = "landmarks"

HUGGINGFACE_METADATA, FACEDATA_METADATA = b"huggingface", b"facedata"

_BINARY, _STRING = {"binary", "large_binary", "binary_view"}, {"string", "large_string", "string_view"}
_FLOAT = {"halffloat", "float", "double"}
_INTEGER = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


class Leaf(NamedTuple):
    """A column, or a member of a column that is a struct."""

    column: str
    member: str | None = None

    @property
    def path(self) -> str:
        """As Parquet names it."""
        return self.column if self.member is None else f"{self.column}.{self.member}"

    def of(self, batch: Any) -> Any:
        """Its values in a record batch."""
        array = batch.column(batch.schema.get_field_index(self.column))
        if self.member is None:
            return array
        return array.flatten()[array.type.get_field_index(self.member)]  # where the struct is null, so are its members


class Columns(NamedTuple):
    """Where a Parquet file keeps what makes a sample.

    Attributes
    ----------
    image, label : Leaf
    key : Leaf or None
        None where the number of the row is the key.
    landmarks : Leaf or None
    extensions : bool
        Whether facedata wrote the file and put a file extension behind each key.
    """

    image: Leaf
    label: Leaf
    key: Leaf | None
    landmarks: Leaf | None
    extensions: bool

    def paths(self) -> list[str]:
        """What to read for whole samples, as Parquet names it."""
        return [leaf.path for leaf in (self.image, self.label, self.key, self.landmarks) if leaf is not None]

    def path_of(self, what: str) -> str:
        """What to read for the ``"key"`` or the ``"label"`` alone; where there is no key, the label counts the rows."""
        return (self.key or self.label).path if what == "key" else self.label.path


def find_columns(schema: Any, path: str) -> Columns:
    """Find the columns in the Arrow schema of the file at `path`.

    The image is a column of the names `IMAGE_COLUMNS` that is binary or a struct with a binary member ``bytes`` (as the
    image feature of Hugging Face), or else the only such struct; the label an integer column of the names
    `LABEL_COLUMNS`; the key the member ``path`` beside ``bytes``, or a string column of the names `KEY_COLUMNS`.

    Raises
    ------
    FormatError
        Where there is no image or no label column; says what columns there are.
    """
    fields = {field.name: field.type for field in schema if len(schema.get_all_field_indices(field.name)) == 1}
    image, label = _find_image(fields), _find(fields, LABEL_COLUMNS, _INTEGER)
    if image is None or label is None:
        what = "image" if image is None else "label"
        wanted = (
            f"a binary column, or a struct with a binary member 'bytes', of the name {_either(IMAGE_COLUMNS)}"
            if image is None
            else f"an integer column of the name {_either(LABEL_COLUMNS)}"
        )
        found = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
        raise FormatError(f"{path}: has no {what} column; expected {wanted}; found: {found}")
    landmarks = Leaf(LANDMARK_COLUMN) if _holds_numbers(fields.get(LANDMARK_COLUMN)) else None
    return Columns(image, label, _find_key(fields, image), landmarks, own_facts(schema).get("extensions") is True)


def _either(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _find_image(fields: Mapping[str, Any]) -> Leaf | None:
    named = [leaf for name in IMAGE_COLUMNS if name in fields for leaf in _image_leaves(name, fields[name])]
    structs = [leaf for name, kind in fields.items() for leaf in _image_leaves(name, kind) if leaf.member]
    if named:
        return named[0]
    return structs[0] if len(structs) == 1 else None


def _image_leaves(name: str, kind: Any) -> Iterator[Leaf]:
    if _plain(kind) in _BINARY:
        yield Leaf(name)
    elif _member(kind, "bytes") in _BINARY:
        yield Leaf(name, "bytes")


def _find_key(fields: Mapping[str, Any], image: Leaf) -> Leaf | None:
    if image.member is not None and _member(fields[image.column], "path") in _STRING:
        return Leaf(image.column, "path")
    return _find(fields, KEY_COLUMNS, _STRING)


def _find(fields: Mapping[str, Any], names: tuple[str, ...], kinds: set[str]) -> Leaf | None:
    return next((Leaf(name) for name in names if name in fields and _plain(fields[name]) in kinds), None)


def _holds_numbers(kind: Any) -> bool:
    """Whether a type is a list of numbers, or of such lists."""
    value = getattr(kind, "value_type", None)
    return value is not None and (str(value) in _FLOAT or _holds_numbers(value))


def _plain(kind: Any) -> str:
    """The name of an Arrow type; of the values, where it is one of dictionaries."""
    return str(getattr(kind, "value_type", kind)) if str(kind).startswith("dictionary<") else str(kind)


def _member(kind: Any, name: str) -> str | None:
    if not str(kind).startswith("struct<"):
        return None
    index = kind.get_field_index(name)
    return None if index < 0 else _plain(kind.field(index).type)


def own_facts(schema: Any) -> Mapping[str, Any]:
    """What `ParquetSink` wrote about the file; empty where another program wrote it."""
    return _json(schema, FACEDATA_METADATA)


def class_names_of(schema: Any, label: Leaf) -> list[str] | None:
    """The names of the classes, where the label column is a class label of the Hugging Face library."""
    value: Any = _json(schema, HUGGINGFACE_METADATA)
    for name in ("info", "features", label.column, "names"):
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, list) and value and all(isinstance(name, str) for name in value) else None


def _json(schema: Any, name: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads((schema.metadata or {}).get(name, b"{}"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
