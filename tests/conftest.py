"""Fixtures that several test modules share: record sets written record by record, and the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from facedata.converters.rec.recordio import ImageRecord, encode_record, pack_image_record

JPEG = b"\xff\xd8\xff\xe0"


def jpeg(content: bytes | str | int) -> bytes:
    """Bytes that begin like a JPEG and say what they are; nothing in facedata decodes them."""
    return JPEG + (content if isinstance(content, bytes) else str(content).encode())


@dataclass
class RecordSetMaker:
    """Writes record sets record by record, independently of the library's own writers, so that they can be wrong."""

    folder: Path
    keys: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)

    def add(self, key: int, labels: float | Sequence[float], image: bytes, identifier: int | None = None) -> int:
        """Append an image record; returns its offset."""
        array = () if isinstance(labels, int | float) else tuple(labels)
        record = ImageRecord(len(array), array or (float(labels),), key if identifier is None else identifier, 0, image)  # type: ignore[arg-type]
        return self.add_payload(key, pack_image_record(record))

    def add_payload(self, key: int, payload: bytes) -> int:
        offset = len(self.data)
        self.keys.append(key)
        self.offsets.append(offset)
        self.data += encode_record(payload)
        return offset

    def write(self, *, index: bool = True, num_classes: int | None = None) -> Path:
        """Write what was added; returns the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "train.rec").write_bytes(self.data)
        if index:
            lines = [f"{key}\t{offset}\n" for key, offset in zip(self.keys, self.offsets, strict=True)]
            (self.folder / "train.idx").write_text("".join(lines))
        if num_classes is not None:
            (self.folder / "property").write_text(f"{num_classes},112,112\n")
        return self.folder

    def insightface(self, counts: Sequence[int], **options: object) -> Path:
        """A set of the InsightFace dialect with ``counts[label]`` images of each label."""
        key, firsts = 1, []
        for label, count in enumerate(counts):
            firsts.append(key)
            for _ in range(count):
                self.add(key, float(label), jpeg(f"label {label} key {key}"))
                key += 1
        people = key
        for first, count in zip(firsts, counts, strict=True):
            self.add(key, (float(first), float(first + count)), b"")
            key += 1
        self.add(0, (float(people), float(key)), b"")
        return self.write(**options)  # type: ignore[arg-type]

    def plain(self, labels: Sequence[int], first_key: int = 0, **options: object) -> Path:
        """Images alone, one for each label, as im2rec writes them."""
        for key, label in enumerate(labels, first_key):
            self.add(key, float(label), jpeg(f"label {label} key {key}"))
        return self.write(**options)  # type: ignore[arg-type]


@pytest.fixture
def record_set(tmp_path: Path) -> Callable[[str], RecordSetMaker]:
    """A maker of record sets in a folder of that name."""
    return lambda name="set": RecordSetMaker(tmp_path / name)  # type: ignore[misc]


@dataclass
class Ran:
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str


FACEDATA = [sys.executable, "-c", "from facedata.cli import main; main()"]


@pytest.fixture
def facedata(tmp_path: Path) -> Callable[..., Ran]:
    """Run the command line in the test's folder, as a user's shell would."""

    def run(*arguments: object, timeout: float = 60, **environment: str) -> Ran:
        command = [*FACEDATA, *map(str, arguments)]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=timeout, env={**os.environ, **environment}, check=False
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


def tree(folder: Path) -> dict[str, bytes]:
    """Every file that a user would see, by relative path: the hidden files of the journal are left out."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".facedata-"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
