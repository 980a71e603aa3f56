"""The outputs of an alignment: a dataset in any format, and beside it landmarks, unused entries and a preview."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.align.faces import Face
from facedata.align.landmark_files import landmark_header, landmark_line
from facedata.dataset import OrderedOutput, OrderedWriter, Publish, Sample, SampleWriter, Sink, Source, WrappedSource
from facedata.errors import OptionError, SampleError
from facedata.files import atomic_writer, make_own_folder, open_own, output_errors

__all__ = ["UNUSED", "AlignedOutput", "ExpectedSource", "FoundLandmarks", "aligned_output"]

UNUSED = "unused-landmarks.txt"
"""The file in the output that names the entries of a landmark file which belong to no image."""

_FRAGMENTS = ".facedata-landmarks"
_BUFFER = 1 << 20


class ExpectedSource(WrappedSource):
    """A source as it will be when its faces are aligned: their keys, about their sizes, whether with landmarks.

    Sinks look at the source before there is a plan. Aligning then would load a detector in the parent before it
    forks; so they see the images as they are, under the keys that `rename` gives them.
    """

    def __init__(self, source: Source, rename: Callable[[str], str], size: int, *, with_landmarks: bool) -> None:
        super().__init__(source)
        self._rename, self._size, self._with_landmarks = rename, size, with_landmarks

    def take(self, positions: NDArray[np.int64]) -> ExpectedSource:
        """The faces at `positions`."""
        taken = self._source.take(positions)
        return ExpectedSource(taken, self._rename, self._size, with_landmarks=self._with_landmarks)

    def read(self) -> Iterator[Sample | SampleError]:
        """The images as they are, under other keys."""
        landmarks = np.zeros((5, 2), np.float32) if self._with_landmarks else None
        for item in self._source.read():
            if isinstance(item, Sample):
                yield item._replace(key=self._rename(item.key), landmarks=landmarks)
            else:
                yield item

    def keys(self) -> Iterator[str]:
        """The keys that the faces will have."""
        return map(self._rename, self._source.keys())

    def size(self) -> int:
        """About how many bytes the faces will take."""
        return self._size * len(self)

    def sizes(self) -> NDArray[np.int32]:
        """About how many bytes each face will take."""
        return np.full(len(self), self._size, np.int32)


@dataclass(frozen=True)
class FoundLandmarks:
    """A file for the landmarks of all faces; workers write a fragment for each shard into the output, `root`."""

    path: str
    root: str

    @property
    def folder(self) -> str:
        """The folder of the fragments."""
        return os.path.join(self.root, _FRAGMENTS)

    def _fragment(self, shard: int) -> str:
        return os.path.join(self.folder, f"{shard:08d}")

    @contextmanager
    def open_shard(self, shard: int) -> Iterator[Callable[[str, Sequence[Face]], None]]:
        """A function that writes the faces of an image of one shard; an interrupted earlier try is replaced."""
        with open(self._fragment(shard), "wb", _BUFFER, opener=open_own) as file:

            def write(key: str, faces: Sequence[Face]) -> None:
                file.writelines(landmark_line(self.path, key, face) for face in faces)

            yield write

    def join(self, shards: int, publish: Publish) -> None:
        """Write the file, unless an earlier run has done so and was interrupted afterwards."""
        if not os.path.isdir(self.folder):
            return
        with output_errors(self.path), atomic_writer(self.path, rename=publish) as file:
            file.write(landmark_header(self.path))
            for shard in range(shards):
                with open(self._fragment(shard), "rb") as fragment:
                    shutil.copyfileobj(fragment, file, _BUFFER)


@dataclass(frozen=True)
class AlignedOutput(Sink):
    """A sink, and what the parent process writes beside it.

    `expected` gives, for the source, what the sink has to expect; `unused` the keys of the entries of the landmark file
    that belong to no image. `preview` is a file that is written after the job: see `run_alignment`.
    """

    sink: Sink
    expected: Callable[[Source], Source]
    found: FoundLandmarks | None = None
    unused: Callable[[], Iterable[str]] | None = None
    preview: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:  # workers have only the sink
        return _unchanged, (self.sink,)

    @property
    def root(self) -> str:
        """The folder of the sink."""
        return self.sink.root

    def _beside(self) -> list[str]:
        return [path for path in (None if self.found is None else self.found.path, self.preview) if path is not None]

    def fit(self, source: Source) -> tuple[Sink, tuple[int, ...] | None]:
        """Prepare the sink for the faces instead of the images."""
        sink, ends = self.sink.fit(self.expected(source))
        if self.unused is not None and sink.owns(UNUSED):
            raise OptionError(f"{self.root}: the source has a folder '{UNUSED}', but a file of this name is written")
        return replace(self, sink=sink), ends

    def identity(self) -> Mapping[str, Any]:
        """The identity of the sink, and which landmarks are written beside it."""
        return {**self.sink.identity(), "write landmarks": self.found and os.path.abspath(self.found.path)}

    def owns(self, name: str) -> bool:
        """Whether the sink, or what is written beside it, uses this name."""
        return name in (_FRAGMENTS, UNUSED) or self.sink.owns(name)

    def named_files(self) -> Sequence[str]:
        """The files of the sink, the landmarks and the preview."""
        return [*self.sink.named_files(), *self._beside()]

    def final_files(self) -> Iterable[str]:
        """The files of the sink, the landmarks, and the entries of a landmark file that belong to no image.

        A preview may be deleted after it was looked at.
        """
        yield from self.sink.final_files()
        if self.found is not None:
            yield self.found.path
        if self.unused is not None:
            yield os.path.join(self.root, UNUSED)

    def files(self, shards: int) -> Iterable[str]:
        """The files of the sink, and the landmarks."""
        yield from self.sink.files(shards)
        if self.found is not None:
            yield self.found.path

    def shard_file(self, shard: int) -> str | None:
        """The file of the shard in the sink."""
        return self.sink.shard_file(shard)

    def count_images(self) -> int | None:
        """How many images the sink counts."""
        return self.sink.count_images()

    def missing_images(self, samples: int) -> Iterable[tuple[int, str]]:
        """The images that are not in the sink."""
        return self.sink.missing_images(samples)

    def prepare(self) -> None:
        """Prepare the sink and the landmarks."""
        self.sink.prepare()
        if self.found is not None:
            make_own_folder(self.found.folder)

    def open_shard(self, shard: int) -> AbstractContextManager[SampleWriter]:
        """The writer of the sink."""
        return self.sink.open_shard(shard)

    def finish(self, shards: int, publish: Publish) -> Mapping[str, Any]:
        """Publish the dataset, then the rest."""
        facts = dict(self.sink.finish(shards, publish))
        if self.found is not None:
            self.found.join(shards, publish)
        if self.unused is not None:
            facts["unused_landmarks"] = _write_unused(os.path.join(self.root, UNUSED), self.unused(), publish)
        return facts

    def clean_up(self) -> None:
        """Remove what only the unfinished job needed."""
        self.sink.clean_up()
        if self.found is not None:
            with suppress(FileNotFoundError):
                shutil.rmtree(self.found.folder)


class _OrderedAlignedOutput(AlignedOutput, OrderedOutput):
    """An `AlignedOutput` whose dataset only one process can write."""

    def open_writer(self, ends: Mapping[int, Mapping[str, Any]]) -> OrderedWriter:
        """The writer of the sink."""
        assert isinstance(self.sink, OrderedOutput)
        return self.sink.open_writer(ends)


def aligned_output(sink: Sink, **parameters: Any) -> AlignedOutput:
    """The `AlignedOutput` of a sink with those parameters, which is an `OrderedOutput` if the sink is one."""
    return (_OrderedAlignedOutput if isinstance(sink, OrderedOutput) else AlignedOutput)(sink, **parameters)


def _unchanged(sink: Sink) -> Sink:
    return sink


def _write_unused(path: str, keys: Iterable[str], publish: Publish) -> int:
    count = 0

    def lines() -> Iterator[bytes]:
        nonlocal count
        for count, key in enumerate(keys, 1):  # noqa: B007
            yield os.fsencode(key) + b"\n"

    written = lines()
    if (first := next(written, None)) is not None:
        with output_errors(path), atomic_writer(path, rename=publish) as file:
            file.writelines(chain([first], written))
    return count
