"""`LmdbSink`: writes a database and its key-label file; its workers encode the records that one process puts in."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from facedata.columns import LARGEST_LABEL, different_labels
from facedata.converters.lmdb import CLASSES_SUFFIX, DATA, stem_of
from facedata.converters.lmdb.datum import CAFFE, LAYOUTS, datum_parts
from facedata.converters.lmdb.writer import BuildFiles, LmdbWriter, round_map_size
from facedata.dataset import BlockEncoder, OrderedOutput, Publish, Sample, Sink, Source, known_extension
from facedata.errors import EmptyDatasetError, OptionError, RefusedSampleError
from facedata.files import network_file_system, output_errors
from facedata.jobs.buffers import BlockBuffer, ProcessAddress, SharedBuffer, this_process
from facedata.jobs.journal import BESIDE, BUILDING

__all__ = ["Block", "LmdbSink"]

LONGEST_KEY = 511
"""In bytes: LMDB's own limit."""

GENERATED, PATH, SOURCE = "generated", "path", "source"
KEYS = (GENERATED, PATH, SOURCE)
_LOCK = "lock.mdb"
_PAGE = 4096
_NODE_AND_KEY = 64
_INLINE = 2000  # bytes of a value; a larger one gets pages of its own
_KEYS_AT_A_TIME = 4096

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LmdbSink(Sink, OrderedOutput):
    """Writes ``<path>/data.mdb``, or `path` itself, and the key-label file.

    Attributes
    ----------
    path, kv : str
        The database, a folder or with `single_file` a file; the key-label file.
    name : str
        The beginning of generated keys.
    datum : str
        The layout of the values: ``"caffe"``, ``"minimal"`` or ``"raw"``, see `datum_parts`.
    keys : str
        ``"generated"``: ``<name>_<label>_<n>``, n counting the samples of the job from 0; ``"path"`` and
        ``"source"``: as in the source; the first requires relative paths.
    single_file : bool
        Write one file; the journal is then in the folder ``<path>.facedata`` beside it.
    build_dir : str, optional
        A folder on a local file system, in which the database is built before it is moved to its place.
    keep_undecodable : bool
        Also write bytes that do not begin like an image.
    map_size, names : int, mapping
        Bytes that the database is expected to need, and the name of each label, both from `fit`; workers get no names.
    receiver : ProcessAddress, optional
        The process of the writer, in a sink that was sent to a worker.
    """

    path: str
    kv: str
    name: str
    datum: str = CAFFE
    keys: str = GENERATED
    single_file: bool = False
    build_dir: str | None = None
    keep_undecodable: bool = False
    map_size: int = 0
    names: Mapping[int, str] | None = field(default=None, repr=False, compare=False)
    receiver: ProcessAddress | None = field(default=None, repr=False, compare=False)

    needs_labels = True

    def __post_init__(self) -> None:
        for option, value, known in (("datum", self.datum, LAYOUTS), ("keys", self.keys, KEYS)):
            if value not in known:
                raise OptionError(f"--{option} {value}: expected one of {', '.join(known)}")
        if os.path.abspath(self.kv) in (os.path.abspath(self.path), os.path.abspath(self._files.target)):
            raise OptionError(f"--kv {self.kv}: is the database itself; choose another name")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "names": None, "receiver": this_process()}

    @property
    def root(self) -> str:
        """The folder of the journal: the database's own, or one beside the single file."""
        return self.path + BESIDE if self.single_file else self.path

    @property
    def _files(self) -> BuildFiles:
        folder = os.path.join(self.root, BUILDING)
        target = self.path if self.single_file else os.path.join(self.path, DATA)
        data_folder = folder
        if self.build_dir is not None:
            digest = hashlib.blake2b(os.fsencode(os.path.abspath(self.path)), digest_size=8).hexdigest()
            data_folder = os.path.join(self.build_dir, f"{os.path.basename(stem_of(self.path))}-{digest}")
        return BuildFiles(folder, data_folder, target, self.kv)

    @property
    def _classes(self) -> str:
        stem = os.path.basename(stem_of(self.path))
        return os.path.join(os.path.dirname(self.kv), stem + CLASSES_SUFFIX)

    @property
    def named_by_key(self) -> bool:  # type: ignore[override]
        """Whether the database keeps the keys of the source."""
        return self.keys != GENERATED

    def identity(self) -> Mapping[str, Any]:
        """Layout, keys and their names, and which files there are."""
        return {
            "format": "lmdb",
            "datum": self.datum,
            "keys": self.keys,
            "name": self.name if self.keys == GENERATED else None,
            "single file": self.single_file,
            "key-label file": os.path.abspath(self.kv),
            "keep undecodable": self.keep_undecodable,
        }

    def fit(self, source: Source) -> tuple[LmdbSink, None]:
        """Check the file system and the keys; read the names of the classes and estimate the size."""
        kind = network_file_system(self.root if self.build_dir is None else self.build_dir)
        if kind is not None and self.build_dir is None:
            raise OptionError(
                f"{self.path}: lies on a network file system ({kind}), on which LMDB cannot write safely; give "
                "--build-dir with a folder on a local disk, from which the finished database is moved"
            )
        if kind is not None:
            _log.warning("--build-dir %s: lies on a network file system too (%s)", self.build_dir, kind)
        if self.keys == GENERATED:
            _refuse_key(
                f"{self.name}_{LARGEST_LABEL}_{len(source)}",
                f"{self.path}: its keys would begin with '{self.name}', like its file name",
            )
        else:
            keys = source.keys()
            while block := list(islice(keys, _KEYS_AT_A_TIME)):
                for key in block if self.keys == PATH else ():
                    if "/" not in key or key.startswith("/"):
                        raise OptionError(
                            f"--keys path: the source's key {key[:80]!r} is not a relative path (folder/file); give "
                            "--keys source or generated"
                        )
                joined = "\n".join(block)  # a quick check of all, which leaves few blocks to be checked key by key
                if not (joined.isascii() and max(map(len, block)) <= LONGEST_KEY and joined.split() == block):
                    for key in block:
                        _refuse_key(key, f"--keys {self.keys}: {key[:80]!r}")
        # estimated too large rather than too small: a large map costs nothing
        size, count = source.size(), len(source)
        unused = _PAGE if size > _INLINE * count else size // max(count, 1)  # in the last page of a value, or a leaf
        map_size = self.map_size or round_map_size(size + count * (unused + _NODE_AND_KEY) + (1 << 23))
        return replace(self, map_size=map_size, names=source.class_names()), None

    def owns(self, name: str) -> bool:
        """Whether an entry of the root is the database, LMDB's lock, or the folder of the build."""
        return name in (DATA, _LOCK, BUILDING)

    def named_files(self) -> list[str]:
        """The key-label file, the names of the classes, and the single file."""
        files = [self.kv] if self.names is None else [self.kv, self._classes]
        return [*files, self.path] if self.single_file else files

    def final_files(self) -> Iterable[str]:
        """The database and its key-label file."""
        return [*self.named_files(), self._files.target]

    def prepare(self) -> None:
        """Make the folders of the build."""
        with output_errors(self._files.data_folder):
            self._files.make_folders()

    @contextmanager
    def open_shard(self, shard: int) -> Iterator[LmdbEncoder]:
        """The encoder of a shard."""
        prefix = self.name if self.keys == GENERATED else None
        yield LmdbEncoder(self.datum, prefix, keep_undecodable=self.keep_undecodable, receiver=self.receiver)

    def open_writer(self, ends: Mapping[int, Mapping[str, Any]]) -> LmdbWriter:
        """The writer of the database."""
        return LmdbWriter(self._files, ends, self.map_size, single_file=self.single_file)

    def finish(self, shards: int, publish: Publish) -> Mapping[str, Any]:
        """Publish the files, the database last."""
        files = self._files
        labels = different_labels(files.current_kv())
        if not len(labels):
            raise EmptyDatasetError(
                f"{self.path}: no image could be written, so there is no database; see "
                f"{os.path.join(self.root, 'failures.jsonl')} or skipped.jsonl there"
            )
        gaps = int(labels[-1]) + 1 - len(labels)
        files.publish_kv(publish)
        if self.names is not None:
            from facedata.converters.class_names import write_class_names

            write_class_names(self._classes, self.names, publish)
        files.publish_data(publish)
        if len(labels) == 1:
            _log.warning(
                "%s: has a single class; the two loaders of FFC count the labels of the next set differently", self.kv
            )
        if gaps:
            _log.warning(
                "%s: %d labels below the largest have no image; convert with --relabel to close the gaps", self.kv, gaps
            )
        return {"kv": self.kv, "classes": len(labels), "label_gaps": gaps}

    def clean_up(self) -> None:
        """Remove the files of the build."""
        self._files.remove()


def _refuse_key(key: str, what: str) -> None:
    if (problem := key_problem(key)) is not None:
        raise OptionError(f"{what}: {problem}; give --keys generated, and a short --output without spaces")


@dataclass(frozen=True)
class Block:
    """The encoded records of one shard.

    `data` has four parts, which end at `ends`: the values in the order of the samples; the keys, ascending, with
    newlines between; where the value of each key begins, and its size; the lines of the key-label file.
    """

    data: SharedBuffer
    records: int
    ends: Mapping[str, int]

    def unpack(self, into: memoryview) -> tuple[Sequence[tuple[bytes, memoryview]], memoryview]:
        """Move the data, which can be done once, into memory of at least ``data.size`` bytes.

        Returns key and value of each record, the keys ascending, and the lines of the key-label file.
        """
        self.data.take(into)
        ends = self.ends
        keys = bytes(into[ends["values"] : ends["keys"]]).split(b"\n")
        begins, sizes = np.frombuffer(into[ends["keys"] : ends["table"]], np.int64).reshape(2, -1).tolist()
        values = [into[begin : begin + size] for begin, size in zip(begins, sizes, strict=True)]
        records = list(zip(keys, values, strict=True)) if self.records else []
        return records, into[ends["table"] : ends["kv"]]


class LmdbEncoder(BlockEncoder):
    """Encodes the records of a shard for the writer in the process `receiver`.

    The keys begin with `prefix`; if it is None, they are those of the samples.
    """

    def __init__(
        self, layout: str, prefix: str | None, *, keep_undecodable: bool = False, receiver: ProcessAddress | None = None
    ) -> None:
        self._layout, self._prefix, self._keep_undecodable = layout, prefix, keep_undecodable
        self._receiver = receiver
        self._buffer = BlockBuffer()
        self._keys: list[bytes] = []
        self._ends: list[int] = []
        self._lines: list[bytes] = []

    def write(self, index: int, sample: Sample, face: int = 0) -> None:
        """Encode a sample; refuse what does not begin like an image, and labels and keys that cannot be written."""
        if not self._keep_undecodable:
            known_extension(sample.image)
        label = sample.label
        if not 0 <= label <= LARGEST_LABEL:
            raise RefusedSampleError(f"its label is {label}; a Datum holds labels from 0 to {LARGEST_LABEL}")
        if self._prefix is not None:
            number = f"{index}_{face}" if face else index
            key = f"{self._prefix}_{label}_{number}".encode("utf-8", "surrogateescape")
        else:
            if (problem := key_problem(sample.key)) is not None:
                raise RefusedSampleError(problem)
            key = sample.key.encode("utf-8", "surrogateescape")
        for part in datum_parts(sample, self._layout):
            self._buffer.append(part)
        self._ends.append(self._buffer.end)
        self._keys.append(key)
        self._lines.append(b"%b %d\n" % (key, label))

    def block(self) -> Block:
        """All records, in the order of their keys: so LMDB is fastest, and packs its pages best."""
        order = sorted(range(len(self._keys)), key=self._keys.__getitem__)
        begins = np.array([0, *self._ends], np.int64)
        table = np.stack([begins[:-1], np.diff(begins)])[:, order]
        ends = {"values": self._buffer.end}
        for name, data in (
            ("keys", b"\n".join([self._keys[place] for place in order])),
            ("table", table.tobytes()),
            ("kv", b"".join(self._lines)),
        ):
            self._buffer.append(data)
            ends[name] = self._buffer.end
        return Block(self._buffer.share(self._receiver), len(order), ends)


def key_problem(key: str) -> str | None:
    """Why a key cannot stand in LMDB or in a key-label file; None if it can."""
    if not key:
        return "its key is empty"
    if key.split(None, 1) != [key]:
        return "its key has a space or a line break, at which readers of key-label files split the line"
    try:
        size = len(key.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return "its key cannot be written as UTF-8"
    return f"its key has {size} bytes; LMDB takes {LONGEST_KEY}" if size > LONGEST_KEY else None
