"""What several test modules share: record sets written record by record, and what a command left behind."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.converters.rec.recordio import MAGIC, ImageRecord, encode_record, pack_image_record
from facedata.dataset import Sample, Source
from facedata.errors import SampleError

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
        self.close_insightface(firsts, key)
        return self.write(**options)  # type: ignore[arg-type]

    def close_insightface(self, firsts: Sequence[int], end: int) -> None:
        """Append a record for each identity, whose first image has the key ``firsts[label]``, and the meta record."""
        for place, (first, after) in enumerate(zip(firsts, [*firsts[1:], end], strict=True)):
            self.add(end + place, (float(first), float(after)), b"")
        self.add(0, (float(end), float(end + len(firsts))), b"")

    def insightface_of(self, samples: Sequence[Sample]) -> Path:
        """A set of the InsightFace dialect of samples that are grouped by label, from 0 without a gap."""
        firsts = [key for key, sample in enumerate(samples, 1) if key == 1 or sample.label != samples[key - 2].label]
        for key, sample in enumerate(samples, 1):
            self.add(key, float(sample.label), sample.image)
        self.close_insightface(firsts, len(samples) + 1)
        return self.write(num_classes=len(firsts))

    def plain(self, labels: Sequence[int], first_key: int = 0, **options: object) -> Path:
        """Images alone, one for each label, as im2rec writes them."""
        for key, label in enumerate(labels, first_key):
            self.add(key, float(label), jpeg(f"label {label} key {key}"))
        return self.write(**options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class MemorySource(Source):
    """A source of samples, and of samples that fail, in memory."""

    items: Sequence[Sample | SampleError]
    name: str = "memory"
    names: Mapping[int, str] | None = None
    classes: int | None = None

    def __len__(self) -> int:
        return len(self.items)

    def take(self, positions: NDArray[np.int64]) -> MemorySource:
        return replace(self, items=[self.items[position] for position in positions])

    def read(self) -> Iterator[Sample | SampleError]:
        return iter(self.items)

    def identity(self) -> Mapping[str, Any]:
        return {"name": self.name}

    def locate(self, position: int) -> tuple[str, int | None]:
        key = self.items[position].key
        return self.name, int(key) if key.isdigit() else None

    def places(self) -> Mapping[str, bool]:
        return {}

    def class_names(self) -> Mapping[int, str] | None:
        return self.names

    def declared_classes(self) -> int | None:
        return self.classes


@dataclass
class Ran:
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str


FACEDATA = [sys.executable, "-c", "from facedata.cli import main; main()"]


class Running:
    """A command in the background, in a process group of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*FACEDATA, *arguments],
            cwd=folder,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition() and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)

    def end(self) -> str:
        _, errors = self.process.communicate(timeout=30)
        assert "Traceback" not in errors, errors
        return errors


def bytes_read(pid: int) -> int:
    """What a process has read so far, of files, pipes and all."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return 0
    return int(lines[0].removeprefix("rchar: "))


def wait_until_idle(pid: int, seconds: float = 0.3) -> None:
    """Until the process has done something, and then nothing for a while: it waits for us."""
    deadline, used, since = time.monotonic() + 30, -1, time.monotonic()
    while time.monotonic() < deadline:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        now = int(fields[11]) + int(fields[12])  # ticks of CPU in user and kernel mode
        if now != used or fields[0] == "R":
            used, since = now, time.monotonic()
        elif used > 0 and time.monotonic() - since > seconds:
            return
        time.sleep(0.02)


def big_set(maker: RecordSetMaker, images: int = 24_000, size: int = 400) -> Path:
    """Large enough to be cut into several shards and to be interrupted."""
    for key in range(images):
        maker.add(key, float(key // 50), jpeg(key) + bytes(size))
    return maker.write()


def tree(folder: Path) -> dict[str, bytes]:
    """Every file that a user would see, by relative path: the hidden files of the journal are left out."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".facedata-"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def write_tree(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """Write files by relative path, and their folders; returns the folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def chunk(flag: int, payload: bytes, *, length: int | None = None, magic: int = MAGIC) -> bytes:
    """One chunk of a record file, by the letter of the format; with a wrong magic or length where a test wants it."""
    word = flag << 29 | (len(payload) if length is None else length)
    return struct.pack("<II", magic, word) + payload + bytes(-len(payload) % 4)


@contextmanager
def file_of(data: bytes, name: str = "train.rec") -> Iterator[Path]:
    """A file in a folder of its own, for hypothesis, whose examples cannot share pytest's ``tmp_path``."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        yield path


def peak_bytes(call: Callable[[], object]) -> int:
    """The most memory that Python held at once while `call` ran."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def temporary_of_dead_process(path: Path) -> str:
    """A name for a temporary file beside `path`, of a process that has ended."""
    code = "import sys; from facedata.files import temporary_name; print(temporary_name(sys.argv[1]))"
    return subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    ).stdout.rstrip()


def forked(call: Callable[[], object]) -> int:
    """Make the call in a forked process; its exit status, or minus the number of the signal that ended it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pytest-xdist has threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            call()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def raised_without_root(call: Callable[[], object]) -> str:
    """What `call` raises in a process that may not read everything, as root may."""
    reading, writing = os.pipe()

    def called() -> None:
        message = "nothing was raised"
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            call()
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
        os.write(writing, message.encode())

    forked(called)
    os.close(writing)
    with open(reading) as file:
        return file.read()
