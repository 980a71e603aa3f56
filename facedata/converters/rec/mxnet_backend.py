"""Reading records through MXNet itself, as a cross-check of this project's own reader."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.converters.rec.recordio import ImageRecord, class_of
from facedata.converters.rec.source import RecSource
from facedata.dataset import Sample, WrappedSource
from facedata.errors import FormatError, MissingExtraError, SampleError

__all__ = ["MXNetRecSource", "check_mxnet", "import_mxnet_recordio"]


class MXNetRecSource(WrappedSource):
    """The samples of a `RecSource`, read with ``MXIndexedRecordIO.read_idx``.

    Parameters
    ----------
    source : RecSource
        It gives the keys and offsets; its own reader is not used.
    """

    _source: RecSource

    def __getitem__(self, part: slice) -> MXNetRecSource:
        return MXNetRecSource(self._source[part])

    def take(self, positions: NDArray[np.int64]) -> MXNetRecSource:
        """The records at `positions`."""
        return MXNetRecSource(self._source.take(positions))

    def save_cache(self) -> None:
        """Save the rebuilt index of the wrapped source."""
        self._source.save_cache()

    def read(self) -> Iterator[Sample | SampleError]:
        """Every sample in key order, or the error in its place.

        Raises
        ------
        MissingExtraError
            If MXNet, or the old NumPy that it needs, is not installed.
        """
        recordio = import_mxnet_recordio()
        index = self._source.index
        # an empty index instead of MXNet's own, which takes 2 GB for 17 million lines
        reader = recordio.MXIndexedRecordIO(os.devnull, self._source.path, "r")
        try:
            reader.idx = dict(zip(map(int, index.keys), index.offsets.tolist(), strict=True))
            for place, (key, offset) in enumerate(reader.idx.items()):
                damage = self._source.known_damage(place)
                yield damage if damage is not None else self._read_one(recordio, reader, key, offset)
        finally:
            reader.close()

    def _read_one(self, recordio: Any, reader: Any, key: int, offset: int) -> Sample | SampleError:
        try:
            payload = reader.read_idx(key)
            if payload is None:
                raise FormatError(f"offset {offset} lies past the end of the file")
            header, image = recordio.unpack(payload)
            if not image:
                raise FormatError("the record holds no image")
            labels = (float(header.label),) if header.flag == 0 else tuple(map(float, header.label))
            record = ImageRecord(header.flag, labels, header.id, header.id2, image)
            return Sample(str(key), class_of(record), bytes(image))
        except Exception as error:  # MXNet and struct raise many kinds of errors, each about this record
            # the first lines of MXNet's message are a traceback; some errors have no message
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            return SampleError(self._source.path, str(key), reason, offset)


def check_mxnet() -> None:
    """Check that MXNet can be loaded, without loading it: its threads would make forking workers unsafe.

    Raises
    ------
    MissingExtraError
    """
    if find_spec("mxnet") is None:
        raise MissingExtraError("--backend mxnet", "mxnet", "in an environment of Python 3.11")
    if tuple(map(int, np.__version__.split(".")[:2])) >= (1, 24):
        raise MissingExtraError("--backend mxnet", "mxnet", f"MXNet does not load with NumPy {np.__version__}")


def import_mxnet_recordio() -> Any:
    """Import MXNet's ``recordio``.

    Raises
    ------
    MissingExtraError
    """
    try:
        from mxnet import recordio
    except Exception as error:  # a NumPy that is too new shows as AttributeError
        raise MissingExtraError("--backend mxnet", "mxnet", f"Python 3.11 and NumPy 1.23; {error}") from error
    return recordio
