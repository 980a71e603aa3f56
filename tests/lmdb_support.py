"""What the tests of the format lmdb share: the message of FFC, a reader that does as FFC's does, builds cut off."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from support import MemorySource

from facedata.converters.convert import Conversion, plan_conversion, run_conversion
from facedata.converters.lmdb import create_sink
from facedata.converters.lmdb.datum import datum_parts
from facedata.converters.lmdb.sink import LmdbSink
from facedata.converters.lmdb.writer import BuildFiles, LmdbWriter
from facedata.dataset import Sample, Source
from facedata.jobs.job import JobOptions, JobSummary
from facedata.jobs.journal import Journal, JournalWriter

HEADER = b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x02\x00\x03\x03\x01\x11\x00\x02\x11\x01\x03\x11\x01"
"""Of a JPEG of 2 x 3 pixels and three channels."""

SHARD = 1 << 24  # what the engine gives a single writer at a time


@cache
def datum_class(*, minimal: bool = False) -> Any:
    """FFC's message, or the one of LFS's README, made by protobuf itself from the numbers of the fields."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    package = "minimal" if minimal else "caffe"
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto2")
    message = file.message_type.add(name="Datum")
    kinds = descriptor_pb2.FieldDescriptorProto
    fields = {
        "channels": (1, kinds.TYPE_INT32),
        "height": (2, kinds.TYPE_INT32),
        "width": (3, kinds.TYPE_INT32),
        "data": (4, kinds.TYPE_BYTES),
        "label": (5, kinds.TYPE_INT32),
        "float_data": (6, kinds.TYPE_FLOAT),
        "encoded": (7, kinds.TYPE_BOOL),
        "left": (8, kinds.TYPE_FLOAT),
        "landmarks": (12, kinds.TYPE_FLOAT),
    }
    for name, (number, kind) in ({"data": (1, kinds.TYPE_BYTES)} if minimal else fields).items():
        label = kinds.LABEL_REPEATED if name in ("float_data", "landmarks") else kinds.LABEL_OPTIONAL
        message.field.add(name=name, number=number, type=kind, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.Datum"))


def encode_datum(sample: Sample, layout: str = "caffe") -> bytes:
    return b"".join(datum_parts(sample, layout))


def read_as_ffc(database: Path, kv: Path) -> Iterator[tuple[str, int, Any]]:
    """Key, label and the parsed message of each line, as FFC's loader gets them."""
    import lmdb

    single = not database.is_dir()
    with (
        lmdb.open(str(database), readonly=True, lock=False, subdir=not single) as environment,
        environment.begin() as transaction,
        open(kv) as lines,
    ):
        for line in lines:
            key, label = line.rstrip("\n").split(" ")
            datum = datum_class()()
            datum.ParseFromString(transaction.get(key.encode()))
            yield key, int(label), datum


def image(number: int) -> bytes:
    """Bytes that begin like a JPEG: short ones, which lie in the tree itself, and others on pages of their own."""
    generator = np.random.default_rng(number)
    size = int(generator.integers(40, 900) if number % 3 else generator.integers(3000, 9000))
    return HEADER + generator.bytes(size)


def samples(count: int, *, people: int = 7) -> MemorySource:
    """A source with keys that are paths in no order."""
    items = [Sample(f"id_{n * 7919 % count}/{n}.jpg", n * people // count, image(n)) for n in range(count)]
    return MemorySource(items)


def planned(source: Source, sink: LmdbSink, shards: int) -> Conversion:
    """A conversion in so many shards."""
    return plan_conversion("test", source, sink, size=shards * SHARD)


def build(
    path: Path, source: Source, *, shards: int = 5, workers: int = 1, map_size: int = 0, job: Any = None, **options: Any
) -> JobSummary:
    """Build a database as the engine does."""
    sink = replace(create_sink(str(path), **options), map_size=map_size)
    return run_conversion(planned(source, sink, shards), JobOptions(workers=workers, **(job or {})))


def built(path: Path) -> tuple[bytes, str]:
    """The bytes of the database and of its key-label file."""
    data = path / "data.mdb" if path.is_dir() else path
    return data.read_bytes(), path.with_name(f"{path.stem}_kv.txt").read_text()


COUNT = 90
PHASES = {
    "write": (LmdbWriter, "write"),
    "pending": (BuildFiles, "write_pending"),
    "commit": (LmdbWriter, "commit"),
    "committed": (LmdbWriter, "commit"),
    "journal": (JournalWriter, "append"),
    "kv": (BuildFiles, "publish_kv"),
    "data": (BuildFiles, "publish_data"),
    "summary": (Journal, "write_summary"),
    "clean": (BuildFiles, "remove"),
}
"""Where a build is killed: behind the n-th call of each."""


def killed_build(path: Path, phase: str, number: int, **options: Any) -> None:
    """Build in a process that is killed on its way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pytest-xdist has threads
        child = os.fork()
    if child == 0:
        _kill_behind(phase, number)
        try:
            build(path, samples(COUNT), **options)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"it was not killed: {phase} was called fewer than {number} times"


def _kill_behind(phase: str, number: int) -> None:
    owner, name = PHASES[phase]
    original, calls = getattr(owner, name), 0

    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if phase == "commit" and calls == number:
            _commit_half(arguments[0], lambda: original(*arguments))
        result = original(*arguments, **options)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, wrapped)


def _commit_half(writer: LmdbWriter, commit: Callable[[], None]) -> None:
    """As a kill in the middle of a commit leaves the file: some pages written, the meta page not."""
    data = Path(writer.files.data)
    before = data.read_bytes()
    commit()
    after = bytearray(data.read_bytes())
    after[:8192] = before[:8192]
    for place in range(8192, len(before), 3 * 4096):
        after[place : place + 4096] = before[place : place + 4096]
    data.write_bytes(after)
    os.kill(os.getpid(), signal.SIGKILL)
