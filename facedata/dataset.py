"""Samples, the base classes of sources that read them and sinks that write them, and the registry of formats."""

from __future__ import annotations

import errno
import importlib
import inspect
import operator
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, SupportsIndex, overload

from facedata.errors import (
    EmptyDatasetError,
    FormatError,
    InputNotFoundError,
    OptionError,
    RefusedSampleError,
    SampleError,
    input_error,
)
from facedata.images import image_extension

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

_LABELS_AT_ONCE = 1 << 16
_PEEKS = 8


Publish = Callable[[str | os.PathLike[str], str | os.PathLike[str]], None]
"""Gives a file, the first path, its final name, the second, which replaces nothing."""


class Sample(NamedTuple):
    """One image.

    Attributes
    ----------
    key : str
        Its name in its dataset.
    label : int
        Its class, from 0; -1 if it has none.
    image : bytes
        The encoded image exactly as stored.
    landmarks : ndarray of shape (5, 2), float32, optional
        Pixel coordinates, x then y: eye on the image's left, eye on the right, nose tip, left and right mouth corner.
    values : tuple of float, optional
        What follows the label in a record with several label values: an age, say. Only the format ``rec`` keeps them.
    """

    key: str
    label: int
    image: bytes
    landmarks: NDArray[np.float32] | None = None
    values: tuple[float, ...] | None = None

    def __repr__(self) -> str:
        return f"Sample(key={self.key!r}, label={self.label}, image=<{len(self.image):,} bytes>)"


class Source(ABC):
    """Reads a dataset as a sequence of samples: ``source[5]``, ``source[-1]``, ``source[10:20]``, ``len``, iteration.

    It can be pickled, and used in forked and spawned processes, each of which opens the files for itself or reads them
    with ``pread`` alone.

    A format has to say how many samples there are, which ones lie at given positions, how they are read, what
    identifies the input and which files are read. The other methods have defaults that read the samples; a format that
    knows better overrides them.
    """

    keys_are_paths: bool = False
    """Whether keys are relative paths of image files, which a folder may keep as names."""
    labelled: bool = True
    """Whether the samples have labels; if not, the label of each is -1."""
    may_have_values: bool = False
    """Whether samples may have further label values, `Sample.values`."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""

    @abstractmethod
    def take(self, positions: NDArray[np.int64]) -> Source:
        """The samples at `positions` (shape (M,), each from 0 to len - 1), in that order.

        Raises
        ------
        OptionError
            If the format can only be read in its own order and `positions` do not ascend.
        """

    @abstractmethod
    def read(self) -> Iterator[Sample | SampleError]:
        """Every sample in order, and the error in the place of each that cannot be read."""

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """What tells this input from another, as JSON values; independent of where it lies."""

    @abstractmethod
    def places(self) -> Mapping[str, bool]:
        """The files and folders that are read; for a folder, whether everything in it belongs to the dataset."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Source: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Sample | Source:
        """One sample, or a source of some; raises `SampleError` if the sample cannot be read."""
        if isinstance(index, slice):
            return self.sliced(index)
        position, count = operator.index(index), len(self)
        if not -count <= position < count:
            raise IndexError(f"sample {position}: the dataset has {count:,}")
        item = self.fetch(position if position >= 0 else position + count)
        if isinstance(item, SampleError):
            raise item
        return item

    def __getstate__(self) -> dict[str, Any]:
        """Everything except the files that `fetch` keeps open: a format keeps them as ``_opened``."""
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}

    def sliced(self, part: slice) -> Source:
        """The samples of a slice."""
        import numpy as np

        return self.take(np.arange(*part.indices(len(self))))

    def fetch(self, position: int) -> Sample | SampleError:
        """The sample at `position`, from 0 to len - 1, or the error in its place; for reading in any order."""
        import numpy as np

        return next(self.take(np.array([position])).read())

    def __iter__(self) -> Iterator[Sample]:
        """Every sample in order; raises `SampleError` at the first that cannot be read."""
        return strict(self.read())

    def locate(self, position: int) -> tuple[str, int | None]:
        """The file or folder of the sample at `position`, and its byte offset there if it has one."""
        return next(iter(self.places())), None

    def keys(self) -> Iterator[str]:
        """The key of every sample, in order."""
        for item in self.read():
            yield item.key

    def labels(self) -> NDArray[np.int64]:
        """The labels of all samples, shape (N,); -1 for a sample that has none, or whose label cannot be read."""
        import numpy as np

        return np.concatenate([np.empty(0, np.int64), *self.label_blocks()])

    def label_blocks(self) -> Iterator[NDArray[np.int64]]:
        """The labels in order, in blocks; -1 for a sample that has none, or whose label cannot be read."""
        import numpy as np

        labels = list(map(label_of, self.read()))
        for begin in range(0, len(labels), _LABELS_AT_ONCE):
            yield np.array(labels[begin : begin + _LABELS_AT_ONCE], np.int64)

    def size(self) -> int:
        """About how many bytes all images take: an estimate that is cheap and always the same."""
        return int(self.sizes().sum(dtype="int64"))

    def sizes(self) -> NDArray[np.int32]:
        """About how many bytes each image takes, shape (N,); may look at every file."""
        import numpy as np

        return np.fromiter((len(item.image) if isinstance(item, Sample) else 0 for item in self.read()), np.int32)

    def class_names(self) -> Mapping[int, str] | None:
        """The name of each label, if the dataset has names."""
        return None

    def declared_classes(self) -> int | None:
        """How many classes the dataset itself declares: all labels are below; None if it declares nothing."""
        return None

    def describe(self) -> Mapping[str, Any]:
        """What a summary says about this input beyond its size, as JSON values."""
        return {}

    def save_cache(self) -> None:
        """Save what opening took long to find out, if an option said where; called once the job's output is claimed."""
        return


class WrappedSource(Source):
    """A source that changes something about another one; everything else is as the other says."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    @property
    def keys_are_paths(self) -> bool:  # type: ignore[override]
        """Whether the keys of the wrapped source are relative paths."""
        return self._source.keys_are_paths

    @property
    def labelled(self) -> bool:  # type: ignore[override]
        """Whether the samples of the wrapped source have labels."""
        return self._source.labelled

    @property
    def may_have_values(self) -> bool:  # type: ignore[override]
        """Whether the samples of the wrapped source may have further label values."""
        return self._source.may_have_values

    def read(self) -> Iterator[Sample | SampleError]:
        """The samples of the wrapped source."""
        return self._source.read()

    def identity(self) -> Mapping[str, Any]:
        """The identity of the wrapped source."""
        return self._source.identity()

    def places(self) -> Mapping[str, bool]:
        """The places of the wrapped source."""
        return self._source.places()

    def locate(self, position: int) -> tuple[str, int | None]:
        """Where the wrapped source has this sample."""
        return self._source.locate(position)

    def keys(self) -> Iterator[str]:
        """The keys of the wrapped source."""
        return self._source.keys()

    def label_blocks(self) -> Iterator[NDArray[np.int64]]:
        """The blocks of labels of the wrapped source."""
        return self._source.label_blocks()

    def size(self) -> int:
        """The size of the wrapped source."""
        return self._source.size()

    def sizes(self) -> NDArray[np.int32]:
        """The sizes of the wrapped source."""
        return self._source.sizes()

    def class_names(self) -> Mapping[int, str] | None:
        """The class names of the wrapped source."""
        return self._source.class_names()

    def declared_classes(self) -> int | None:
        """The declared classes of the wrapped source."""
        return self._source.declared_classes()

    def describe(self) -> Mapping[str, Any]:
        """The description of the wrapped source."""
        return self._source.describe()


class SampleWriter(Protocol):
    """Writes the samples of one shard."""

    def write(self, index: int, sample: Sample, face: int = 0) -> None:
        """Write one sample; `index` counts the samples of the source over the whole job from 0.

        `face` counts, from 0, the samples that were made of the same sample of the source: the faces in one photo.

        Raises `RefusedSampleError` if the format or the user does not want this sample.
        """
        ...


class BlockEncoder(ABC):
    """A `SampleWriter` in a worker that prepares what the single writer of an `OrderedOutput` writes."""

    @abstractmethod
    def write(self, index: int, sample: Sample, face: int = 0) -> None:
        """Add one sample, as for `SampleWriter`."""

    @abstractmethod
    def block(self) -> Any:
        """Everything that was prepared, picklable; called once, after the last sample."""


class Output:
    """What a job writes: a folder, in which the job keeps its journal, and perhaps single files that the user named."""

    if TYPE_CHECKING:  # a field of a dataclass, or a property

        @property
        def root(self) -> str:
            """The folder."""

    def owns(self, name: str) -> bool:
        """Whether an entry of the root is named as this output names what it writes."""
        return False

    def named_files(self) -> Sequence[str]:
        """Files, in the root or elsewhere, that the user named and that the finished job will have written."""
        return ()

    def final_files(self) -> Iterable[str]:
        """Files to which `finish` gives their names."""
        return self.named_files()

    def shard_file(self, shard: int) -> str | None:
        """The file that a shard has for itself, if it has one; it appears when it is complete."""
        return None

    def files(self, shards: int) -> Iterable[str]:
        """Files that the finished output holds, if these are few enough to look for."""
        own = (self.shard_file(shard) for shard in range(shards))
        return [*self.final_files(), *(path for path in own if path is not None)]

    def count_images(self) -> int | None:
        """How many images the output holds, if each is a file; called before `finish`."""
        return None

    def missing_images(self, samples: int) -> Iterable[tuple[int, str]]:
        """Number and path of each image that is not in the output, of all `samples`, also of those that failed."""
        return ()

    def prepare(self) -> None:
        """Called before the first shard of each run."""
        return

    def finish(self, shards: int, publish: Publish) -> Mapping[str, Any]:
        """Publish the result and return facts for the summary; called when every shard is done.

        `publish` renames a finished file to its final name, as `rename_new`, and notes that it belongs to the job.
        """
        return {}

    def clean_up(self) -> None:
        """Remove what was needed only until the summary is written; called after that."""
        return


class OrderedWriter(ABC):
    """Writes the blocks that workers prepared, shard after shard, in one process alone.

    For each shard `write` is called, then `commit`, then its line is appended to the journal. A run may be killed
    between any two of these; the next writer reports how many shards are truly in the output.
    """

    done: int
    """How many shards, counted from the first, the output holds; everything after them was removed."""
    unrecorded: Sequence[Mapping[str, Any]] = ()
    """Journal entries of shards that an earlier run committed and was killed before it appended them."""

    @abstractmethod
    def write(self, shard: int, block: Any) -> Mapping[str, Any]:
        """Write a block; return the end of the output as JSON values, for the writer that resumes from there."""

    @abstractmethod
    def commit(self, entry: Mapping[str, Any]) -> None:
        """Make the block that was written part of the output; `entry` is the shard's line in the journal."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return


class OrderedOutput(Output, ABC):
    """An output that only one process can write, shard after shard: a single file, a database."""

    @abstractmethod
    def open_writer(self, ends: Mapping[int, Mapping[str, Any]]) -> OrderedWriter:
        """The writer that continues earlier runs; `ends` has what `write` returned for each shard that is done."""


class Sink(Output, ABC):
    """Writes a dataset, shard by shard; picklable.

    Several processes may write at once, unless it is an `OrderedOutput` too: its workers' writers are `BlockEncoder`.
    """

    grouped: bool = False
    """Whether the samples of a class have to follow each other, in the order of the labels."""
    named_by_key: bool = False
    """Whether of two samples with the same key the second would replace the first."""
    needs_labels: bool = False
    """Whether the readers of the format need a label for every sample, so that one without a label is refused."""
    keeps_values: bool = False
    """Whether the format holds further label values, `Sample.values`."""

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """The options that decide the bytes written, as JSON values."""

    @abstractmethod
    def open_shard(self, shard: int) -> AbstractContextManager[SampleWriter]:
        """A writer for one shard, in a worker. A shard that was interrupted is written again from its start."""

    def prefer(self, *, source_names: bool = False, shard_samples: int | None = None, landmarks: bool = False) -> Sink:
        """Adopt what the job prefers if the user has given no option.

        That is to name image files as in the source, whose keys are paths; to put fewer samples into a file, if each
        takes long; to keep the landmarks of the samples.
        """
        return self

    def fit(self, source: Source) -> tuple[Sink, tuple[int, ...] | None]:
        """Prepare for a source; called once, before there is a plan. Writes nothing.

        Returns this sink with what it had to learn about the source, and where the shards of the job have to end (None
        if any cut will do). Raises `FacedataError` if the format cannot hold the source.
        """
        return self, None


def strict(items: Iterator[Sample | SampleError]) -> Iterator[Sample]:
    """Pass samples on; raise the first error."""
    for item in items:
        if isinstance(item, SampleError):
            raise item
        yield item


def label_of(item: Sample | SampleError) -> int:
    """The label of a sample, -1 if the sample cannot be read; raises the error if it may pass."""
    if isinstance(item, SampleError) and item.transient:
        raise item
    return item.label if isinstance(item, Sample) else -1


def known_extension(image: bytes) -> str:
    """The file extension for an encoded image, as of `image_extension`, for sinks that refuse anything else.

    Raises
    ------
    RefusedSampleError
        If the bytes do not begin like an image.
    """
    extension = image_extension(image)
    if extension is None:
        from facedata.identify import not_an_image

        raise RefusedSampleError(not_an_image(image))
    return extension


def peek(source: Source) -> list[Sample | SampleError]:
    """Eight samples from all over a source: if sets are joined, the first says little about the last."""
    places = sorted({round(place * (len(source) - 1) / (_PEEKS - 1)) for place in range(_PEEKS)}) if len(source) else []
    return [item for place in places for item in source[place : place + 1].read()]


def further_values(source: Source) -> tuple[float, ...] | None:
    """All label values of a sample that has several, found by `peek`; None if there is none, or the others are 0.

    ``[label, 0]`` says no more than the label: some readers want this form.
    """
    for item in peek(source):
        if isinstance(item, Sample) and item.values is not None and any(item.values):
            return (item.label, *item.values)
    return None


@dataclass(frozen=True)
class Format:
    """What facedata knows about a format. The module of each format defines one, named ``FORMAT``.

    Attributes
    ----------
    open_source : callable, optional
        Opens a path as a `Source`; its keyword parameters are the options of the format for reading.
    create_sink : callable, optional
        Gives a `Sink` for a path; its keyword parameters are the options of the format for writing.
    recognises : callable, optional
        Whether a path holds this format, from its content.
    accepts : callable, optional
        Whether a path that no format recognises can be opened as this one.
    input_paths : callable
        The files and folders that a path of a spec stands for, and whether everything in a folder belongs to it.
    extensions : tuple of str
        Endings of paths that are written in this format, as in ``.lmdb``.
    """

    name: str
    open_source: Callable[..., Source] | None = None
    create_sink: Callable[..., Sink] | None = None
    recognises: Callable[[str], bool] | None = None
    accepts: Callable[[str], bool] | None = None
    input_paths: Callable[[str], Mapping[str, bool]] = lambda path: {path: True}
    extensions: tuple[str, ...] = ()


FORMATS: dict[str, str] = {
    "rec": "facedata.converters.rec",
    "folder": "facedata.converters.folder",
    "list": "facedata.converters.lists",
    "lmdb": "facedata.converters.lmdb",
    "parquet": "facedata.converters.parquet",
    "webdataset": "facedata.converters.webdataset",
    "evalbin": "facedata.converters.evalbin",
    "null": "facedata.converters.null",
}
"""The module of each format, imported when it is needed; it defines ``FORMAT``."""

DEFAULT_TARGET = "folder"
"""The format of an aligned dataset if the user names none."""


def load_format(name: str) -> Format:
    """The format of that name."""
    found: Format = importlib.import_module(FORMATS[name]).FORMAT
    return found


def split_spec(spec: str) -> tuple[str | None, str]:
    """Cut ``format:path`` into the two; the format is None if only a path was given."""
    name, colon, path = spec.partition(":")
    return (name, path) if colon and name in FORMATS else (None, spec)


def target_spec(spec: str) -> str:
    """A spec to be written with its format named: `DEFAULT_TARGET` if it is only a path.

    Raises
    ------
    OptionError
        If the path ends like a path of another format.
    """
    name, path = split_spec(spec)
    if name is not None:
        return spec
    for known in map(load_format, FORMATS):
        if path.rstrip("/").endswith(known.extensions) and known.name != DEFAULT_TARGET:
            raise OptionError(
                f"{path}: name the format to write, as in {known.name}:{path}; "
                f"without one the output is a {DEFAULT_TARGET}"
            )
    return f"{DEFAULT_TARGET}:{path}"


def find_format(spec: str) -> tuple[str, str]:
    """The format and the path of a dataset to be read; the format is found from the content if it is not named.

    Raises
    ------
    InputError
        If there is nothing, or it may not be read.
    FormatError
        If no format, or more than one, fits the content.
    """
    name, path = split_spec(spec)
    if not path:
        raise OptionError(f"'{spec}': names no path")
    if name is not None:
        return name, path
    formats = [load_format(name) for name in FORMATS]
    if os.path.lexists(path):
        _check_readable(path)
    fitting = [known.name for known in formats if known.recognises is not None and known.recognises(path)]
    if not fitting:
        fitting = [known.name for known in formats if known.accepts is not None and known.accepts(path)]
    if not fitting:  # else it may be a pattern of names
        _check_readable(path)
    if len(fitting) == 1:
        return fitting[0], path
    if not fitting:
        from facedata.identify import identify

        what = identify(path)
        readable = ", ".join(known.name for known in formats if known.open_source is not None)
        way_out = f"to see what is wrong, name its format: FORMAT:{path}, one of {readable}"
        raise FormatError(
            f"{path}: is not a dataset that facedata knows{f': it is {what}' if what else f'; {way_out}'}"
        )
    raise FormatError(f"{path}: it could be any of: {', '.join(fitting)}; name the format: {fitting[0]}:{path}")


def open_dataset(spec: str | os.PathLike[str], **options: Any) -> Source:
    """Open a dataset for reading.

    `spec` is a path, whose format is found from its content, or ``format:path``; the options are the keyword parameters
    of the format's ``open_source``.

    Raises
    ------
    InputError
        If there is no such dataset, or it cannot be read.
    FormatError
        If no format, or more than one, fits its content.
    OptionError
        If facedata cannot read the format, or an option does not apply to it.
    """
    name, path = find_format(os.fspath(spec))
    opener = load_format(name).open_source
    if opener is None:
        raise OptionError(f"{name}: this format cannot be read")
    _check_options(name, opener, options)
    try:
        return opener(path, **options)
    except (FormatError, EmptyDatasetError, InputNotFoundError) as error:
        from facedata.identify import explained

        with explained(next(iter(load_format(name).input_paths(path)), path), name, f"a dataset of the format {name}"):
            raise error


def takes_option(name: str, option: str) -> bool:
    """Whether opening a dataset of this format takes the option."""
    opener = load_format(name).open_source
    return opener is not None and option in inspect.signature(opener).parameters


def _check_readable(path: str) -> None:
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            os.scandir(path).close()
        elif not os.access(path, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise input_error(error, path) from error


def create_dataset(spec: str, **options: Any) -> Sink:
    """Prepare to write a dataset to ``format:path``; the options are the keywords of the format's ``create_sink``.

    Raises
    ------
    OptionError
        If no format is named, facedata cannot write it, or an option does not apply to it.
    """
    name, path = split_spec(spec)
    if name is None:
        raise OptionError(f"{spec}: name the format to write: FORMAT:{path}, one of {', '.join(FORMATS)}")
    if not path:
        raise OptionError(f"'{spec}': names no path")
    create = load_format(name).create_sink
    if create is None:
        raise OptionError(f"{name}: this format cannot be written")
    _check_options(name, create, options)
    return create(path, **options)


def _check_options(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise unless every option is a keyword parameter of the format's function."""
    known = list(inspect.signature(function).parameters)[1:]
    for option in options:
        if option not in known:
            has = f"it has {', '.join(map(_as_typed, known))}" if known else "it has no options here"
            raise OptionError(f"{_as_typed(option)} does not apply to the format '{name}'; {has}")


def _as_typed(option: str) -> str:
    return "--list" if option == "list_file" else "--" + option.replace("_", "-")
