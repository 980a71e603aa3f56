"""`RecSink`: writes a record set, in the InsightFace dialect or plain."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.converters.class_names import CLASSES
from facedata.converters.rec.recordio import INSIGHTFACE, MAGIC, PLAIN
from facedata.converters.rec.writer import BlockWriter, RecordEncoder, check_count, complete_set, count_people
from facedata.dataset import OrderedOutput, OrderedWriter, Publish, Sink, Source, further_values
from facedata.errors import EmptyDatasetError, OptionError, OutputMismatchError
from facedata.files import make_own_folder, output_errors
from facedata.jobs.buffers import ProcessAddress, this_process
from facedata.jobs.journal import BUILDING

__all__ = ["RecSink"]

_PUBLISHED = ("train.rec", "train.idx", "property", "train.lst", CLASSES)
"""In the order in which they appear: records are usable without an index, an index without records is not."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecSink(Sink, OrderedOutput):
    """Writes ``train.rec``, ``train.idx`` and ``property``.

    Attributes
    ----------
    root : str
        The folder.
    style : str
        ``"insightface"``: images from key 1, grouped by label, then a record for each identity and the meta record 0;
        or ``"plain"``: images alone, from key 0, in any order.
    list_file : bool
        Also write ``train.lst`` as im2rec has it: ``key<TAB>label<TAB>key of the source``.
    keep_undecodable : bool
        Also write bytes that do not begin like an image.
    label_array : bool
        Write each label as ``[label, 0]``; in a plain set the first record, key 0, keeps a single label.
    several : bool
        Whether the source has records with several label values that say more than that, from `fit`.
    names, receiver : mapping, ProcessAddress, optional
        The names of the classes, from `fit`; in a sink that was sent to a worker, the process of the writer.
    """

    root: str
    style: str = INSIGHTFACE
    list_file: bool = False
    keep_undecodable: bool = False
    label_array: bool = False
    several: bool = False
    names: Mapping[int, str] | None = field(default=None, repr=False, compare=False)
    receiver: ProcessAddress | None = field(default=None, repr=False, compare=False)

    needs_labels = True
    keeps_values = True

    def __post_init__(self) -> None:
        if self.style not in (INSIGHTFACE, PLAIN):
            raise OptionError(f"--style {self.style}: expected {INSIGHTFACE} or {PLAIN}")
        if self.root.endswith(".rec"):
            raise OptionError(f"{self.root}: name a folder; the record file is written in it, as train.rec")

    def __getstate__(self) -> dict[str, Any]:
        # a sink is sent with each shard, and workers do not need the names
        return {**self.__dict__, "names": None, "receiver": this_process()}

    @property
    def grouped(self) -> bool:  # type: ignore[override]
        """Whether the style wants the images of an identity together."""
        return self.style == INSIGHTFACE

    def identity(self) -> Mapping[str, Any]:
        """Style and options, as JSON values."""
        options = {"style": self.style, "list": self.list_file, "keep undecodable": self.keep_undecodable}
        return {"format": "rec", **options, **({"label array": True} if self.label_array else {})}

    def fit(self, source: Source) -> tuple[RecSink, None]:
        """Read the names of the classes; check that the style can count the records and has labels in its order."""
        if len(source) == 0:
            raise EmptyDatasetError(f"{self.root}: there is no image to write")
        if len(source) > MAGIC:  # a key equal to the magic word would split its own record
            raise OptionError(f"{self.root}: {len(source):,} images are more than one record set can number")
        if self.style == INSIGHTFACE:
            _check_insightface(source, self.root)
        several = self.style == PLAIN and source.may_have_values and further_values(source) is not None
        return replace(self, names=source.class_names(), several=several), None

    def owns(self, name: str) -> bool:
        """Whether an entry of the root is named like a file of this sink."""
        return name in _PUBLISHED or name == BUILDING

    def final_files(self) -> Iterable[str]:
        """The records, their index and what else was asked for, in the order in which they appear."""
        left_out = {"train.lst": not self.list_file, CLASSES: self.names is None}
        return (self._path(name) for name in _PUBLISHED if not left_out.get(name))

    def prepare(self) -> None:
        """Make the folder of the build."""
        make_own_folder(self._path(BUILDING))

    @contextmanager
    def open_shard(self, shard: int) -> Iterator[RecordEncoder]:
        """The encoder of a shard."""
        yield RecordEncoder(
            listed=self.list_file,
            keep_undecodable=self.keep_undecodable,
            label_array=self.label_array,
            scalar_first=self.style == PLAIN and not self.several,
            receiver=self.receiver,
        )

    def open_writer(self, ends: Mapping[int, Mapping[str, Any]]) -> OrderedWriter:
        """The writer of the record file, which continues after the last shard that is done."""
        if ends and os.path.exists(self._path("train.rec")):
            return _NothingToWrite(self.root, len(ends))
        first_key = 1 if self.style == INSIGHTFACE else 0
        return BlockWriter(self._path(BUILDING), ends, first_key=first_key, listed=self.list_file)

    def finish(self, shards: int, publish: Publish) -> Mapping[str, Any]:
        """Complete the set and publish its files; the next call completes one that was interrupted."""
        path = self._path(BUILDING, "labels")
        with output_errors(self.root):
            if not os.path.exists(path) or os.path.getsize(path) == 0:
                raise EmptyDatasetError(f"{self.root}: no image could be written; see failures.jsonl or skipped.jsonl")
            labels: NDArray[np.int32] = np.memmap(path, np.int32, "r")
            if not os.path.exists(self._path("train.rec")):  # else publishing has begun
                complete_set(self._path(BUILDING), labels, style=self.style, listed=self.list_file, names=self.names)
            for target in self.final_files():
                if os.path.exists(built := self._path(BUILDING, os.path.basename(target))):
                    publish(built, target)
        return {"identities": count_people(labels), "style": self.style}

    def clean_up(self) -> None:
        """Remove the folder of the build."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self._path(BUILDING))

    def _path(self, *names: str) -> str:
        return os.path.join(self.root, *names)


def _check_insightface(source: Source, root: str) -> None:
    """Check that labels ascend and that float32 can count the records."""
    images = people = seen = 0
    last = -1
    for block in source.label_blocks():
        known = block[block >= 0]
        steps = np.diff(known, prepend=last)
        if (steps < 0).any():
            place = int(np.flatnonzero(steps < 0)[0])
            position = seen + int(np.flatnonzero(block >= 0)[place])
            key = next(source[position : position + 1].keys())
            raise OptionError(
                f"{root}: the insightface style needs images grouped by label, labels ascending, but label "
                f"{known[place]} (image {position}, '{key}') comes after {known[place] - steps[place]}; facedata "
                "pack-rec groups them, --style plain takes any order"
            )
        people, images, seen = people + int((steps > 0).sum()), images + len(known), seen + len(block)
        last = int(known[-1]) if len(known) else last
        check_count(root, images, people)
    if people <= last:
        _log.warning(
            "%s: the largest label is %d, but only %d labels have images; --relabel closes the gaps", root, last, people
        )


class _NothingToWrite(OrderedWriter):
    """The writer of a set whose records are published: it only remains to finish."""

    def __init__(self, root: str, done: int) -> None:
        self._root, self.done = root, done

    def write(self, shard: int, block: Any) -> Mapping[str, Any]:
        raise OutputMismatchError(
            f"{self._root}: its records are complete, but its journal lacks shard {shard}; --overwrite starts again"
        )

    def commit(self, entry: Mapping[str, Any]) -> None: ...
