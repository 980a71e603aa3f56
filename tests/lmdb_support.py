"""What the tests of the format lmdb share: the message of FFC, a reader that does as FFC's does, sources and builds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from support import MemorySource

from facedata.converters.convert import plan_conversion, run_conversion
from facedata.converters.lmdb import create_sink
from facedata.converters.lmdb.datum import datum_parts
from facedata.dataset import Sample, Source
from facedata.jobs.job import JobOptions, JobSummary

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


def as_protobuf(*, minimal: bool = False, **fields: Any) -> bytes:
    return bytes(datum_class(minimal=minimal)(**fields).SerializeToString())


def encode_datum(sample: Sample, layout: str = "caffe") -> bytes:
    return b"".join(datum_parts(sample, layout))


def read_as_ffc(database: Path, kv: Path) -> Iterator[tuple[str, int, Any]]:
    """Key, label and the parsed message of each line, as FFC's loader gets them."""
    import lmdb

    with (
        lmdb.open(str(database), readonly=True, lock=False) as environment,
        environment.begin() as transaction,
        open(kv) as lines,
    ):
        for line in lines:
            key, label = line.rstrip("\n").split(" ")
            yield key, int(label), datum_class().FromString(transaction.get(key.encode()))


def image(number: int) -> bytes:
    """Bytes that begin like a JPEG: short ones, which lie in the tree itself, and others on pages of their own."""
    generator = np.random.default_rng(number)
    size = int(generator.integers(40, 900) if number % 3 else generator.integers(3000, 9000))
    return HEADER + generator.bytes(size)


def samples(count: int) -> MemorySource:
    """A source of seven people, with keys that are paths in no order."""
    return MemorySource([Sample(f"id_{n * 7919 % count}/{n}.jpg", n * 7 // count, image(n)) for n in range(count)])


def build(
    path: Path, source: Source, *, shards: int = 5, workers: int = 1, map_size: int = 0, job: Any = None, **options: Any
) -> JobSummary:
    """Build a database in so many shards, as the engine does."""
    sink = replace(create_sink(str(path), **options), map_size=map_size)
    conversion = plan_conversion("test", source, sink, size=shards * SHARD)
    return run_conversion(conversion, JobOptions(workers=workers, **(job or {})))


def built(path: Path) -> tuple[bytes, str]:
    """The bytes of the database and of its key-label file."""
    data = path / "data.mdb" if path.is_dir() else path
    return data.read_bytes(), path.with_name(f"{path.stem}_kv.txt").read_text()
