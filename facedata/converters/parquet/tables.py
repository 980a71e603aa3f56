"""What facedata's Parquet files look like: their schema, and samples as Arrow tables of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.converters.parquet.columns import FACEDATA_METADATA, HUGGINGFACE_METADATA, LANDMARK_COLUMN
from facedata.converters.parquet.library import import_pyarrow

__all__ = ["WRITER_OPTIONS", "make_schema", "make_table"]

WRITER_OPTIONS: dict[str, Any] = {
    "compression": "none",  # JPEG does not shrink, and what is beside it is small
    "use_dictionary": ["label"],
    "write_statistics": ["label"],  # of images and names, the smallest and the largest would be copied into the footer
    "write_batch_size": 64,  # rows after which a page is ended if it has a megabyte; of 1,024 images it would have four
    "write_page_index": True,  # lets readers that know it fetch one row instead of a whole row group
    "write_page_checksum": True,
}
"""For ``pyarrow.parquet.ParquetWriter``."""

_IMAGE = {"_type": "Image"}
_LABEL = {"dtype": "int64", "_type": "Value"}
# Sequence is what every release of the library reads; those from 4.0 on write List
_LANDMARKS = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}


def make_schema(*, landmarks: bool, extensions: bool, classes: int | None) -> Any:
    """The schema, with what the Hugging Face library and `ParquetSource` want to know in its metadata.

    Parameters
    ----------
    landmarks : bool
        Whether there is a column of landmarks: 10 numbers or null.
    extensions : bool
        Whether the member ``path`` of the image is the sample's key with a file extension behind it.
    classes : int, optional
        How many classes the source declares.
    """
    pyarrow = import_pyarrow()
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    fields = [("image", image), ("label", pyarrow.int64())]
    features: dict[str, Any] = {"image": _IMAGE, "label": _LABEL}
    if landmarks:
        fields.append((LANDMARK_COLUMN, pyarrow.list_(pyarrow.float32())))
        features[LANDMARK_COLUMN] = _LANDMARKS
    metadata = {
        HUGGINGFACE_METADATA: json.dumps({"info": {"features": features}}),
        FACEDATA_METADATA: json.dumps({"extensions": extensions, "classes": classes}),
    }
    return pyarrow.schema(fields, metadata)


def make_table(
    schema: Any,
    images: Sequence[bytes],
    paths: Sequence[bytes],
    labels: Sequence[int],
    landmarks: Sequence[NDArray[np.float32] | None],
) -> Any:
    """A table of some samples.

    Made from buffers: pyarrow's own way from Python objects loads pandas where that is installed, and takes twice as
    long.
    """
    pyarrow = import_pyarrow()
    image = schema.field("image").type
    members = [_strings(pyarrow, image.field(place).type, values) for place, values in enumerate((images, paths))]
    columns = [
        pyarrow.StructArray.from_arrays(members, fields=list(image)),
        _array(pyarrow, pyarrow.int64(), np.array(labels, np.int64)),
    ]
    if LANDMARK_COLUMN in schema.names:
        columns.append(_lists(pyarrow, schema.field(LANDMARK_COLUMN).type, landmarks))
    return pyarrow.Table.from_arrays(columns, schema=schema)


def _array(pyarrow: Any, kind: Any, values: NDArray[Any]) -> Any:
    return pyarrow.Array.from_buffers(kind, len(values), [None, pyarrow.py_buffer(values)])


def _strings(pyarrow: Any, kind: Any, values: Sequence[bytes]) -> Any:
    buffers = [None, pyarrow.py_buffer(_offsets(list(map(len, values)))), pyarrow.py_buffer(b"".join(values))]
    return pyarrow.Array.from_buffers(kind, len(values), buffers)


def _offsets(lengths: Sequence[int]) -> NDArray[np.int32]:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _lists(pyarrow: Any, kind: Any, rows: Sequence[NDArray[np.float32] | None]) -> Any:
    there = [row for row in rows if row is not None]
    valid = np.packbits([row is not None for row in rows], bitorder="little")
    offsets = _offsets([0 if row is None else row.size for row in rows])
    values = np.concatenate([np.empty(0, np.float32), *(row.ravel() for row in there)])
    buffers = [pyarrow.py_buffer(valid), pyarrow.py_buffer(offsets)]
    return pyarrow.Array.from_buffers(kind, len(rows), buffers, children=[_array(pyarrow, pyarrow.float32(), values)])
