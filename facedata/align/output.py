"""The output of an alignment: a dataset in any format, and beside it what else the job has to tell."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from facedata.align.found import FRAGMENTS, FoundLandmarks
from facedata.dataset import OrderedOutput, OrderedWriter, SampleWriter, Sink, Source
from facedata.errors import OptionError, output_error
from facedata.files import atomic_writer
from facedata.jobs.journal import FAILURES

__all__ = ["UNUSED", "AlignedOutput", "Extras", "with_extras"]

UNUSED = "unused-landmarks.txt"
"""The file in the output that names the entries of a landmark file which belong to no image."""

CAUSES = (
    "no face",
    "low score",
    "too small",
    "degenerate landmarks",
    "outside the image",
    "undecodable",
    "no landmarks",
    "too large",
    "aligned already",
    "several faces",
    "bad landmarks",
)


@dataclass(frozen=True)
class Extras:
    """What is written beside the dataset, by the parent alone.

    Attributes
    ----------
    expected : callable
        From the source to how a sink is to see it.
    found : FoundLandmarks, optional
        The landmarks of all faces.
    unused : callable, optional
        Gives the keys of the entries of the landmark file that belong to no image.
    preview : str, optional
        The contact sheet.
    draw : callable, optional
        Writes it.
    """

    expected: Callable[[Source], Source]
    found: FoundLandmarks | None = None
    unused: Callable[[], Iterable[str]] | None = None
    preview: str | None = None
    draw: Callable[[str], bool] | None = None


class AlignedOutput(Sink):
    """A sink, and what is written beside it.

    Parameters
    ----------
    sink : Sink
    extras : Extras
    """

    def __init__(self, sink: Sink, extras: Extras) -> None:
        self._sink, self._extras = sink, extras

    def __reduce__(self) -> tuple[Any, ...]:  # in a worker there is the sink alone
        return _itself, (self._sink,)

    @property
    def root(self) -> str:
        """The folder."""
        return self._sink.root

    def fit(self, source: Source) -> tuple[Sink, tuple[int, ...] | None]:
        """The sink sees what the faces will be, not what the images are."""
        sink, ends = self._sink.fit(self._extras.expected(source))
        self._refuse_names_in_use(sink)
        return with_extras(sink, self._extras), ends

    def _refuse_names_in_use(self, sink: Sink) -> None:
        """What is written beside the dataset must not take the place of a part of it."""
        root = os.path.realpath(self.root)
        taken = set(map(os.path.realpath, sink.named_files()))
        for path in self._beside():
            place = os.path.realpath(path)
            if place in taken:
                raise OptionError(f"{path}: two files are to be written under this name; choose another for one")
            taken.add(place)
            if place.startswith(os.path.join(root, "")):
                name = os.path.relpath(place, root).partition(os.sep)[0]
                if name in (FAILURES, FRAGMENTS, UNUSED) or sink.owns(name):
                    raise OptionError(f"{path}: there the output itself has '{name}'; choose another name")

    def _beside(self) -> list[str]:
        found, preview = self._extras.found, self._extras.preview
        return [path for path in (None if found is None else found.path, preview) if path is not None]

    def identity(self) -> Mapping[str, Any]:
        """That of the sink, and which files are written beside it."""
        found, preview = self._extras.found, self._extras.preview
        paths = {"write landmarks": found and found.path, "preview": preview}
        beside = {name: path and os.path.abspath(path) for name, path in paths.items()}
        return {**self._sink.identity(), **beside}

    def owns(self, name: str) -> bool:
        """What the sink owns, and our own."""
        return name in (FRAGMENTS, UNUSED) or self._sink.owns(name)

    def named_files(self) -> Sequence[str]:
        """Those of the sink, the landmarks, the preview."""
        return [*self._sink.named_files(), *self._beside()]

    def files(self, shards: int) -> Iterable[str]:
        """Those of the sink, and the landmarks; a preview may be thrown away when it was looked at."""
        yield from self._sink.files(shards)
        if self._extras.found is not None:
            yield self._extras.found.path

    def prepare(self) -> None:
        """Make ready for the sink, and for the landmarks."""
        self._sink.prepare()
        if self._extras.found is not None:
            self._extras.found.prepare()

    def open_shard(self, shard: int) -> AbstractContextManager[SampleWriter]:
        """The sink's own writer."""
        return self._sink.open_shard(shard)

    def finish(self, shards: int) -> Mapping[str, Any]:
        """Publish the dataset, then the rest; counts the failures by their cause."""
        facts = dict(self._sink.finish(shards))
        if self._extras.found is not None:
            self._extras.found.join(shards)
        if self._extras.unused is not None:
            facts["unused_landmarks"] = self._write_unused(self._extras.unused())
        if (
            self._extras.preview is not None
            and self._extras.draw is not None
            and self._extras.draw(self._extras.preview)
        ):
            facts["preview"] = self._extras.preview
        return {**facts, "causes": count_causes(os.path.join(self.root, FAILURES))}

    def _write_unused(self, keys: Iterable[str]) -> int:
        path, count = os.path.join(self.root, UNUSED), 0
        try:
            with atomic_writer(path) as file:
                for key in keys:
                    file.write(os.fsencode(key) + b"\n")
                    count += 1
            if count == 0:
                os.unlink(path)
        except OSError as error:
            raise output_error(error, path) from error
        return count

    def clean_up(self) -> None:
        """What only the unfinished job needed goes."""
        self._sink.clean_up()
        if self._extras.found is not None:
            self._extras.found.clean_up()


class _OrderedAlignedOutput(AlignedOutput, OrderedOutput):
    """Where the dataset is one that a single process writes."""

    _sink: Any

    def open_writer(self, ends: Mapping[int, Mapping[str, Any]]) -> OrderedWriter:
        """The sink's own."""
        writer: OrderedWriter = self._sink.open_writer(ends)
        return writer


def with_extras(sink: Sink, extras: Extras) -> Sink:
    """The sink, with what is written beside it."""
    return (_OrderedAlignedOutput if isinstance(sink, OrderedOutput) else AlignedOutput)(sink, extras)


def _itself(sink: Sink) -> Sink:
    return sink


def count_causes(path: str) -> dict[str, int]:
    """How many of the failures there are of each cause, the most frequent first."""
    counts = Counter(map(_cause, _reasons(path)))
    return dict(counts.most_common())


def _reasons(path: str) -> Iterator[str]:
    if os.path.exists(path):
        with open(path, "rb") as file:
            for line in file:
                yield json.loads(line)["reason"]


def _cause(reason: str) -> str:
    cause = reason.partition(":")[0]
    return cause if cause in CAUSES else "unreadable"
