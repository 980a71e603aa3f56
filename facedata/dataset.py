"""The core: samples, sources that read them, sinks that write them, and the registry of formats."""

from __future__ import annotations

import errno
import importlib
import inspect
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, runtime_checkable

from facedata.errors import FormatError, OptionError, SampleError, input_error

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "FORMATS",
    "BlockEncoder",
    "OrderedOutput",
    "OrderedWriter",
    "Output",
    "Sample",
    "SampleWriter",
    "Sink",
    "Source",
    "create_dataset",
    "find_format",
    "open_dataset",
    "split_spec",
    "strict",
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

    def take(self, positions: NDArray[np.int64]) -> Source:
        """The samples at `positions` (shape (M,), each from 0 to len - 1), in that order.

        Raises
        ------
        OptionError
            Where the format cannot be read in another order than its own, and `positions` do not ascend.
        """
        ...

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

    def places(self) -> Mapping[str, bool]:
        """The files and folders that are read; of a folder, whether all that lies in it belongs to the dataset."""
        ...

    def keys(self) -> Iterator[str]:
        """The key of every sample, in order, without its image."""
        ...

    def labels(self) -> Iterator[NDArray[np.int64]]:
        """The labels in order, block by block, without the images; -1 for each that cannot be told."""
        ...

    def size(self) -> int:
        """About how many bytes all images take; an estimate that costs little and is always the same."""
        ...

    def sizes(self) -> NDArray[np.int32]:
        """About how many bytes each image takes, shape (N,); may look at every file."""
        ...

    def class_names(self) -> Mapping[int, str] | None:
        """The name of each label, where the dataset has names for them."""
        ...

    def declared_classes(self) -> int | None:
        """How many classes the dataset itself says it has: all labels are below; None where it says nothing."""
        ...


class SampleWriter(Protocol):
    """Writes the samples of one shard."""

    def write(self, index: int, sample: Sample, face: int = 0) -> None:
        """Write one sample; `index` counts the samples of the source over the whole job from 0.

        `face` counts, from 0, those that were made of the same sample of the source: the faces in one photo.

        Raises
        ------
        RefusedSampleError
            Where the format, or the user, does not want it.
        """
        ...


@runtime_checkable
class BlockEncoder(Protocol):
    """A `SampleWriter` that only makes ready what the single writer of an `OrderedOutput` then writes."""

    def write(self, index: int, sample: Sample, face: int = 0) -> None:
        """As for `SampleWriter`."""
        ...

    def block(self) -> Any:
        """All that was made ready, picklable; called once, behind the last sample."""
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

    def files(self, shards: int) -> Iterable[str]:
        """Files that the finished output holds, where these are few enough to look for."""
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


class OrderedWriter(Protocol):
    """Writes the blocks that workers made ready, shard after shard, in one process alone.

    For each shard `write` is called, then `commit`, then its line is appended to the journal. A run may be killed
    between any two of these; the next writer tells how many shards are truly in the output.
    """

    @property
    def done(self) -> int:
        """How many shards, counted from the first, the output holds; whatever lay behind them is gone."""
        ...

    @property
    def unrecorded(self) -> Sequence[Mapping[str, Any]]:
        """Entries of shards that were committed by an earlier run that did not live to append their lines."""
        ...

    def write(self, shard: int, block: Any) -> Mapping[str, Any]:
        """Write a block; returns how far the output then is, as JSON values, for the writer that goes on from there."""
        ...

    def commit(self, entry: Mapping[str, Any]) -> None:
        """Make the block that was written part of the output; `entry` is the shard's line in the journal."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class OrderedOutput(Output, Protocol):
    """An output that only one process can write, shard after shard: a single file, a database."""

    def open_writer(self, ends: Mapping[int, Mapping[str, Any]]) -> OrderedWriter:
        """The writer, which goes on behind what earlier runs wrote.

        Parameters
        ----------
        ends : mapping
            For each shard that is done, what `OrderedWriter.write` returned for it.
        """
        ...


class Sink(Output, Protocol):
    """Writes a dataset, shard by shard; picklable.

    Several processes may write at once, unless it is an `OrderedOutput` too: its workers' writers are `BlockEncoder`.
    """

    def fit(self, source: Source) -> tuple[Sink, tuple[int, ...] | None]:
        """Make ready for what is to be written; called once, before there is a plan. Writes nothing.

        Returns
        -------
        Sink
            This sink, with whatever it had to learn of the source.
        tuple of int or None
            Where the shards of the job are to end; None where that is all one to the sink.

        Raises
        ------
        FacedataError
            Where the format cannot hold the source.
        """
        ...

    def identity(self) -> Mapping[str, Any]:
        """The options that decide the bytes written, as JSON values."""
        ...

    def open_shard(self, shard: int) -> AbstractContextManager[SampleWriter]:
        """A writer for one shard, in a worker. A shard that was cut off is written again from its start."""
        ...


def strict(items: Iterator[Sample | SampleError]) -> Iterator[Sample]:
    """Pass samples on; raise the first error."""
    for item in items:
        if isinstance(item, SampleError):
            raise item
        yield item


FORMATS: dict[str, str] = {
    "rec": "facedata.converters.rec",
    "folder": "facedata.converters.folder",
    "list": "facedata.converters.image_list",
    "lmdb": "facedata.converters.lmdb",
    "parquet": "facedata.converters.parquet",
    "webdataset": "facedata.converters.webdataset",
    "null": "facedata.converters.null",
}
"""Format name to its module, which has some of:

- ``open_source(path)``: a `Source`;
- ``recognises(path)``: whether what lies there can be read as this format, told from its content;
- ``create_sink(path, *, option=default, ...)``: a `Sink`; its keyword options are those that the format knows.
"""


def split_spec(spec: str) -> tuple[str | None, str]:
    """Cut ``format:path`` into the two; the format is None where only a path was given."""
    name, colon, path = spec.partition(":")
    return (name, path) if colon and name in FORMATS else (None, spec)


def find_format(spec: str) -> tuple[str, str]:
    """The format and the path of a dataset to be read, the format found from the content where it is not named.

    Raises
    ------
    InputError
        Where there is nothing, or it may not be read.
    FormatError
        Where no format, or more than one, fits the content.
    """
    name, path = split_spec(spec)
    if not path:
        raise OptionError(f"'{spec}': names no path")
    if name is not None:
        return name, path
    known = list(_modules("recognises"))
    if os.path.lexists(path) or not any(module.recognises(path) for _, module in known):  # it may be a pattern
        _check_readable(path)
    fitting = [name for name, module in known if module.recognises(path)]
    if len(fitting) != 1:
        found = f"it could be any of: {', '.join(fitting)}" if fitting else f"no format fits its content{_hint(path)}"
        readable = [name for name in FORMATS if hasattr(importlib.import_module(FORMATS[name]), "open_source")]
        raise FormatError(
            f"{path}: {found}; name the format, which also says what is wrong: FORMAT:{path}, one of "
            f"{', '.join(readable)}"
        )
    return fitting[0], path


def _hint(path: str) -> str:
    """What is often meant by a path that is no dataset: a folder with the images in it."""
    from facedata.converters.folder.scan import has_image

    if not has_image(path):
        return ""
    return ": there are images in it, but no folder for each person or class with images in it, so none has a label"


def open_dataset(spec: str, **options: Any) -> Source:
    """Open a dataset for reading.

    Parameters
    ----------
    spec : str
        A path, whose format is found from its content, or ``format:path``.
    **options
        What the format can be told: the keywords of its ``open_source``.

    Raises
    ------
    InputError
        Where there is no such dataset, or it cannot be read.
    FormatError
        Where no format, or more than one, fits its content.
    OptionError
        Where facedata cannot read the format, or it does not know an option.
    """
    name, path = find_format(spec)
    opener = _door(name, "open_source", "read")
    _check_options(name, opener, options)
    source: Source = opener(path, **options)
    return source


def _check_readable(path: str) -> None:
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            os.scandir(path).close()
        elif not os.access(path, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise input_error(error, path) from error


def create_dataset(spec: str, **options: Any) -> Sink:
    """Prepare to write a dataset to ``format:path``.

    Parameters
    ----------
    spec : str
    **options
        What the format can be told: the keywords of its ``create_sink``.

    Raises
    ------
    OptionError
        Where no format is named, facedata cannot write it, or it does not know an option.
    """
    name, path = split_spec(spec)
    if name is None:
        raise OptionError(f"{spec}: name the format to write: FORMAT:{path}, one of {', '.join(FORMATS)}")
    if not path:
        raise OptionError(f"'{spec}': names no path")
    create = _door(name, "create_sink", "written")
    _check_options(name, create, options)
    sink: Sink = create(path, **options)
    return sink


def _check_options(name: str, door: Callable[..., Any], options: Mapping[str, Any]) -> None:
    known = list(inspect.signature(door).parameters)[1:]
    for option in options:
        if option not in known:
            has = f"it has {', '.join(map(_as_typed, known))}" if known else "it has none"
            raise OptionError(f"{_as_typed(option)}: is no option of the format {name}; {has}")


def _as_typed(option: str) -> str:
    return "--list" if option == "list_file" else "--" + option.replace("_", "-")


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
