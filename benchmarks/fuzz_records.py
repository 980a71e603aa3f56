"""Fuzz the reading of record sets with atheris: arbitrary ``.rec`` and ``.idx`` bytes, run by hand.

    python benchmarks/fuzz_records.py corpus/ -max_total_time=300

It ends at the first input that raises anything but a `FacedataError`, loses or invents a sample, takes more memory
than the bound or longer than ten seconds; libFuzzer leaves that input in a file ``crash-...``. All of libFuzzer's
options can be given. Needs ``pip install atheris`` beside facedata; no extra, for its wheels are few.
"""

from __future__ import annotations

import logging
import resource
import struct
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["facedata"]):
    from facedata.converters.rec.record_set import open_record_set
    from facedata.converters.rec.recordio import (
        MAGIC_BYTES,
        ImageRecord,
        RecordReader,
        encode_record,
        pack_image_record,
        read_index,
    )
    from facedata.converters.rec.walk import walk_records
    from facedata.dataset import Sample
    from facedata.errors import FacedataError, SampleError

MEMORY_BOUND = 400 << 20
"""Bytes above what the fuzzer holds before each input. A record may claim 512 MiB: one claim believed is noticed."""

_SALVAGE, _REBUILD, _NO_INDEX, _PROPERTY = 1, 2, 4, 8
_FOLDER = Path(tempfile.mkdtemp(prefix="facedata-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def read_everything(data: bytes) -> None:
    """Read `data` as a record set in every way that there is; its layout is that of `packed`."""
    if len(data) < 3:
        return
    _limit_memory()
    options, cut = data[0], 3 + struct.unpack_from("<H", data, 1)[0]
    index, records = data[3:cut], data[cut:]
    (_FOLDER / "train.rec").write_bytes(records)
    (_FOLDER / "train.idx").unlink(missing_ok=True)
    (_FOLDER / "property").unlink(missing_ok=True)
    if not options & _NO_INDEX:
        (_FOLDER / "train.idx").write_bytes(index)
        _read_index()
    if options & _PROPERTY:
        (_FOLDER / "property").write_bytes(index[:32])
    _read_records(records)
    _open(salvage=bool(options & _SALVAGE), rebuild_index=bool(options & _REBUILD))


def _read_index() -> None:
    with suppress(FacedataError):
        index = read_index(_FOLDER / "train.idx")
        assert len(index.keys) == len(index.offsets)
        assert list(index.keys) == sorted(set(index.keys))


def _read_records(records: bytes) -> None:
    with suppress(FacedataError):
        assert walk_records(_FOLDER / "train.rec").damaged == 0
    offsets = walk_records(_FOLDER / "train.rec", salvage=True).offsets
    assert len(set(offsets)) == len(offsets)
    with RecordReader(_FOLDER / "train.rec") as reader:
        for offset in (*offsets, 1, len(records) - 8, 1 << 63):
            with suppress(FacedataError):
                payload, end = reader.read(offset)
                assert len(payload) < end - offset <= len(records) + 3


def _open(*, salvage: bool, rebuild_index: bool) -> None:
    with suppress(FacedataError):
        source = open_record_set(_FOLDER, salvage=salvage, rebuild_index=rebuild_index)
        items = list(source.read())
        assert len(items) == len(source)
        for item in items:
            assert isinstance(item, SampleError) or (isinstance(item, Sample) and item.image and item.label >= 0)
        labels = [-1 if isinstance(item, SampleError) else item.label for item in items]
        assert labels == source.labels().tolist()


def packed(options: int, index: bytes, records: bytes) -> bytes:
    """An input of the fuzzer: a byte of options, the length of the index in two, the index, the records."""
    return struct.pack("<BH", options, len(index)) + index + records


def _seeds() -> list[bytes]:
    """Small sets of every dialect, split records among them."""
    insightface = [
        *[ImageRecord(0, (float(key > 2),), key, 0, b"\xff\xd8\xff" + bytes(key)) for key in range(1, 5)],
        *[ImageRecord(2, ranges, key, 0, b"") for key, ranges in ((5, (1.0, 3.0)), (6, (3.0, 5.0)), (0, (5.0, 7.0)))],
    ]
    plain = [ImageRecord(key, (1.0,) * max(key, 1), key, 0, bytes(key) + MAGIC_BYTES * key) for key in range(4)]
    return [_set(options, records) for options in range(16) for records in (insightface, plain)]


def _set(options: int, records: list[ImageRecord]) -> bytes:
    data, index = b"", b""
    for record in records:
        index += b"%d\t%d\n" % (record.id, len(data))
        data += encode_record(pack_image_record(record))
    return packed(options, index, data)


def _prepare(arguments: list[str]) -> list[str]:
    """Put the seeds into an empty corpus; tell libFuzzer the magic word and a time limit for each input."""
    folders = [Path(argument) for argument in arguments[1:] if not argument.startswith("-")]
    if folders and not folders[0].is_file():
        folders[0].mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(_seeds()):
            (folders[0] / f"seed-{number}").write_bytes(seed)
    words = _FOLDER / "dictionary"
    words.write_text("\n".join(f'"{_escaped(word)}"' for word in (MAGIC_BYTES, b"\t0\n", b"\t18446744073709551615\n")))
    return [*arguments, f"-dict={words}", "-timeout=10", "-max_len=8192"]


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = pages * resource.getpagesize() + MEMORY_BOUND
    resource.setrlimit(resource.RLIMIT_AS, (bound, resource.RLIM_INFINITY))


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    atheris.Setup(_prepare(sys.argv), read_everything)
    atheris.Fuzz()
