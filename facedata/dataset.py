"""The core: samples, sources that read them, sinks that write them, and the registry of formats."""

from __future__ import annotations

import importlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from facedata.errors import FormatError, OptionError, SampleError, input_error

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "FORMATS",
    "ConcatenatedSource",
    "Output",
    "Sample",
    "SampleWriter",
    "Sink",
    "Source",
    "create_dataset",
    "open_dataset",
    "split_spec",
]


class Sample(NamedTuple):
    """One labelled image.

    Attributes
    ----------
    key : str
        Its name in its dataset.
    label : int
        Its class, from 0.
    image : bytes
        The encoded image exactly as stored.
    landmarks : ndarray of shape (5, 2), float32, optional
        Pixel coordinates, x then y: eye on the image's left, eye on the right, nose tip, left and right mouth corner.
    """

    key: str
    label: int
    image: bytes
    landmarks: NDArray[np.float32] | None = None


@runtime_checkable
class Source(Protocol):
    """Reads a dataset: sized, sliceable, iterable, picklable; opens its files anew in each process."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice) -> Source: ...

    def __iter__(self) -> Iterator[Sample]:
        """Every sample in order; raises `SampleError` at the first that cannot be read."""
        ...

    def read(self) -> Iterator[Sample | SampleError]:
        """Every sample in order, with the error in the place of each that cannot be read."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """What tells this input from another, as JSON values; independent of where it lies."""
        ...

    def locate(self, position: int) -> tuple[str, int | None]:
        """The file or folder that the sample at `position` is in, and its byte offset there, where it has one."""
        ...


class SampleWriter(Protocol):
    """Writes the samples of one shard."""

    def write(self, index: int, sample: Sample) -> None:
        """Write one sample; `index` counts over the whole job from 0.

        Raises
        ------
        RefusedSampleError
            Where the format, or the user, does not want it.
        """
        ...


class Output(Protocol):
    """What a job writes: a folder, in which the job keeps its journal, and perhaps single files that the user named."""

    @property
    def root(self) -> str:
        """The folder."""
        ...

    def owns(self, name: str) -> bool:
        """Whether an entry of the root is named as this output names what it writes."""
        ...

    def named_files(self) -> Sequence[str]:
        """Files, in the root or elsewhere, that the user named and that the finished job will have written."""
        ...

    def prepare(self) -> None:
        """Called before the first shard of each run."""
        ...

    def finish(self, shards: int) -> Mapping[str, Any]:
        """Called when every shard is done; publishes the result and returns facts for the summary."""
        ...

    def clean_up(self) -> None:
        """Called when the summary is written; removes what was needed only until then."""
        ...


class Sink(Output, Protocol):
    """Writes a dataset, shard by shard; picklable."""

    @property
    def many_writers(self) -> bool:
        """Whether several processes may write at once."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """The options that decide the bytes written, as JSON values."""
        ...

    def open_shard(self, shard: int) -> AbstractContextManager[SampleWriter]:
        """A writer for one shard. A shard that was cut off is written again from its start."""
        ...


class ConcatenatedSource:
    """Several sources, one after the other, each with its labels shifted.

    Parameters
    ----------
    sources : sequence of Source
    shifts : sequence of int
        What is added to the labels of each.
    classes : sequence of int or None
        The number of classes of each, where its labels must stay below it because the labels of the next set
        begin there; None where they need not.
    """

    def __init__(self, sources: Sequence[Source], shifts: Sequence[int], classes: Sequence[int | None]) -> None:
        self._parts = list(zip(sources, shifts, classes, strict=True))

    def __len__(self) -> int:
        return sum(len(source) for source, _, _ in self._parts)

    def __getitem__(self, part: slice) -> ConcatenatedSource:
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError(f"a source is sliced in steps of 1, not {step}")
        kept, first = [], 0
        for source, shift, classes in self._parts:
            inner = slice(max(start - first, 0), max(min(stop - first, len(source)), 0))
            if inner.start < inner.stop:
                kept.append((source[inner], shift, classes))
            first += len(source)
        result = ConcatenatedSource([], [], [])
        result._parts = kept
        return result

    def __iter__(self) -> Iterator[Sample]:
        return strict(self.read())

    def read(self) -> Iterator[Sample | SampleError]:
        """Every sample of every source in order, labels shifted, with the error in the place of each that fails."""
        for source, shift, classes in self._parts:
            if shift == 0 and classes is None:
                yield from source.read()
            else:
                yield from _shifted(source, shift, classes)

    def identity(self) -> Mapping[str, Any]:
        """The identities of the sources, and the shifts."""
        return {
            "sets": [dict(source.identity()) for source, _, _ in self._parts],
            "label shifts": [shift for _, shift, _ in self._parts],
        }

    def locate(self, position: int) -> tuple[str, int | None]:
        """Ask the source that the sample at `position` is in."""
        for source, _, _ in self._parts:
            if position < len(source):
                return source.locate(position)
            position -= len(source)
        raise IndexError(f"position {position} lies behind the last sample")


def _shifted(source: Source, shift: int, classes: int | None) -> Iterator[Sample | SampleError]:
    for position, item in enumerate(source.read()):
        if isinstance(item, SampleError):
            yield item
        elif classes is not None and item.label >= classes:
            dataset, offset = source.locate(position)
            reason = f"label {item.label}, but the set declares {classes} classes, and the next set's begin behind them"
            yield SampleError(dataset, item.key, reason, offset)
        else:
            yield Sample(item.key, item.label + shift, item.image, item.landmarks)


def strict(items: Iterator[Sample | SampleError]) -> Iterator[Sample]:
    """Pass samples on; raise the first error."""
    for item in items:
        if isinstance(item, SampleError):
            raise item
        yield item


FORMATS: dict[str, str] = {
    "rec": "facedata.converters.rec",
    "folder": "facedata.converters.folder",
    "null": "facedata.converters.null",
}
"""Format name to the module with its ``open_source(path)`` and/or ``create_sink(path)`` and ``recognises(path)``."""


def split_spec(spec: str) -> tuple[str | None, str]:
    """Cut ``format:path`` into the two; the format is None where only a path was given."""
    name, colon, path = spec.partition(":")
    return (name, path) if colon and name in FORMATS else (None, spec)


def open_dataset(spec: str) -> Source:
    """Open a dataset for reading.

    Parameters
    ----------
    spec : str
        A path, whose format is found from its content, or ``format:path``.

    Raises
    ------
    InputError
        Where there is no such dataset, or it cannot be read.
    FormatError
        Where no format, or more than one, fits its content.
    """
    name, path = split_spec(spec)
    if name is None:
        _check_readable(path)
        fitting = [known for known, module in _modules("recognises") if module.recognises(path)]
        if len(fitting) != 1:
            found = f"it could be any of: {', '.join(fitting)}" if fitting else "no format fits its content"
            raise FormatError(f"{path}: {found}; name the format: FORMAT:{path}, one of {', '.join(FORMATS)}")
        name = fitting[0]
    source: Source = _door(name, "open_source", "read")(path)
    return source


def _check_readable(path: str) -> None:
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            os.scandir(path).close()
    except OSError as error:
        raise input_error(error, path) from error


def create_dataset(spec: str) -> Sink:
    """Prepare to write a dataset to ``format:path``.

    Raises
    ------
    OptionError
        Where no format is named, or facedata cannot write it.
    """
    name, path = split_spec(spec)
    if name is None:
        raise OptionError(f"{spec}: name the format to write: FORMAT:{path}, one of {', '.join(FORMATS)}")
    sink: Sink = _door(name, "create_sink", "written")(path)
    return sink


def _modules(door: str) -> Iterator[tuple[str, Any]]:
    for name, path in FORMATS.items():
        module = importlib.import_module(path)
        if hasattr(module, door):
            yield name, module


def _door(name: str, door: str, verb: str) -> Any:
    module = importlib.import_module(FORMATS[name])
    if not hasattr(module, door):
        raise OptionError(f"{name}: this format cannot be {verb}")
    return getattr(module, door)
