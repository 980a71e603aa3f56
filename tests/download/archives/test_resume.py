from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from archive_support import StopAfter, split, visible, write_tar, zip_bytes
from support import Running, write_tree

from facedata.download.archives import Extraction
from facedata.errors import DiskFullError, InterruptedJobError, OutputExistsError

Unpack = Callable[..., Extraction]
OUT = Path("out")


def pack(ending: str, files: int = 60, size: int = 30_000) -> tuple[Path, dict[str, bytes]]:
    """An archive, and what is in it."""
    generator = random.Random(0)
    members = {f"set/id_{number % 7}/{number:05d}.jpg": generator.randbytes(size) for number in range(files)}
    path = Path(f"a.{ending}")
    if ending == "zip":
        path.write_bytes(zip_bytes(*members.items()))
    else:
        write_tar(path, list(members.items()))
    return path, members


def staged() -> Path:
    (folder,) = (path for path in OUT.glob(".facedata-extract-*") if path.is_dir())
    return folder


@pytest.mark.parametrize("ending", ["tar", "tgz", "zip"])
def test_it_goes_on_where_it_was_stopped(unpack: Unpack, ending: str) -> None:
    path, members = pack(ending)
    asked: list[str] = []

    def digests(name: str) -> str:
        asked.append(name)
        return "md5"

    stops, extraction = 0, None
    while extraction is None:
        try:
            extraction = unpack(path, stop=StopAfter(21), digests=digests)
        except InterruptedJobError:
            stops += 1
            assert visible(OUT) == {}
            first = min(staged().rglob("*.jpg"))
            first.write_bytes(b"seen")  # what is finished is not written again
    assert stops > 1
    assert {data for name, data in visible(OUT).items() if data != members[name]} == {b"seen"}
    assert extraction.files == len(members)
    assert extraction.digests.keys() == members.keys()
    assert len(asked) <= len(members) + stops  # at most the member that it was stopped in is written again


@pytest.mark.parametrize("ending", ["tgz", "zip"])
def test_it_survives_being_killed(unpack: Unpack, ending: str) -> None:
    path, members = pack(ending, files=400, size=12_000)
    if ending != "zip":
        items = list(members.items())
        write_tar(path, [*items[:5], ("../evil", b"evil"), *items[5:]])
    parts = split(path, 3)
    generator = random.Random(ending)
    for _ in range(4):
        child = os.fork()
        if child == 0:
            unpack(*parts)
            os._exit(0)
        while not any(OUT.glob(".facedata-extract*")):
            time.sleep(0.001)
        time.sleep(generator.random() * 0.1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        there = visible(OUT)
        assert there == {} or there.items() <= members.items()
    assert unpack(*parts).refused_count == (ending != "zip")
    assert visible(OUT) == members
    (record,) = OUT.glob(".facedata-extracted-*.json")
    assert json.loads(record.read_text())["files"] == len(members)
    lists = [path.read_text() for path in OUT.glob("*-refused.jsonl")]
    assert [len(text.splitlines()) for text in lists] == ([] if ending == "zip" else [1])
    assert not [path for path in OUT.glob(".facedata-extract-*") if path.is_dir()]


def test_publishing_that_was_cut_off_is_completed(unpack: Unpack, monkeypatch: pytest.MonkeyPatch) -> None:
    path, members = pack("tgz")
    write_tree(OUT, {"set/mine": "mine", "set/id_0/mine": "mine"})
    write_tar(path, [*members.items(), ("../evil", b""), ("top", b"top")])
    rename = os.rename
    renamed: list[Any] = []

    def cut(*names: Any) -> None:
        if len(renamed) == 4:
            raise KeyboardInterrupt
        renamed.append(names)
        rename(*names)

    with monkeypatch.context() as broken:
        broken.setattr(os, "rename", cut)
        with pytest.raises(KeyboardInterrupt):
            unpack(path)
    monkeypatch.setattr("facedata.download.archives.extract._Run._unpack", None)  # the archive is not read again
    extraction = unpack(path)
    assert visible(OUT) == {**members, "top": b"top", "set/mine": b"mine", "set/id_0/mine": b"mine"}
    assert (extraction.files, extraction.refused_count, len(extraction.refused)) == (61, 1, 1)


@pytest.mark.parametrize("synced", [True, False])
def test_a_power_cut_leaves_what_was_synced(unpack: Unpack, monkeypatch: pytest.MonkeyPatch, synced: bool) -> None:
    path, members = pack("tgz")
    if synced:
        monkeypatch.setattr("facedata.download.archives.extract._SYNC_EVERY", 1)
        monkeypatch.setattr("facedata.download.archives.extract._WRITE_PROGRESS_EVERY", 0)
    with pytest.raises(InterruptedJobError):
        unpack(path, stop=StopAfter(45))
    min(staged().rglob("*.jpg")).write_bytes(b"seen")
    monkeypatch.setattr("facedata.download.archives.staging.boot_id", lambda: "another boot")
    unpack(path)
    changed = [data for name, data in visible(OUT).items() if data != members[name]]
    assert changed == ([b"seen"] if synced else [])


@pytest.mark.parametrize(
    "change",
    ["cut before", "fetched again", b"", b'{"parts": 3}\n', b"[" * 100_000],
    ids=["cut before", "fetched again", "empty", "other", "nested"],
)
def test_it_begins_again_after_parts_were_replaced_or_progress_damaged(unpack: Unpack, change: str | bytes) -> None:
    path, members = pack("tgz")
    data = path.read_bytes()
    path.write_bytes(data[:-1000] if change == "cut before" else data)
    with pytest.raises(InterruptedJobError):
        unpack(path, stop=StopAfter(30))
    for file in staged().rglob("*.jpg"):
        file.write_bytes(b"wrong")
    if isinstance(change, bytes):
        (staged() / "progress.json").write_bytes(change)
    else:
        Path("again").write_bytes(data)
        os.replace("again", path)  # perhaps the same bytes
    unpack(path)
    assert visible(OUT) == members
    assert not [entry for entry in OUT.glob(".facedata-extract-*") if entry.is_dir()]


@pytest.mark.parametrize("ending", ["tgz", "zip"])
def test_a_full_disk_is_said_and_can_be_mended(unpack: Unpack, small_disk: Path, ending: str) -> None:
    path, members = pack(ending, files=200)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(5_000_000))
    with pytest.raises(DiskFullError, match="run the same command again"):
        unpack(path, output=small_disk / "out")
    assert visible(small_disk / "out") == {}
    filler.unlink()
    unpack(path, output=small_disk / "out")
    assert visible(small_disk / "out") == members


def test_an_existing_file_is_noticed_before_much_is_written(unpack: Unpack) -> None:
    path, members = pack("tgz")
    name = list(members)[30]
    write_tree(OUT, {name: "mine"})
    with pytest.raises(OutputExistsError, match=name):
        unpack(path)
    assert visible(OUT) == {name: b"mine"}
    assert len(list(staged().rglob("*.jpg"))) == 30
    reported: list[tuple[int, int]] = []
    unpack(path, overwrite=True, observer=lambda done, total: reported.append((done, total)))
    assert visible(OUT) == members
    size = path.stat().st_size
    assert reported == sorted(reported)
    assert reported[-1] == (size, size)
    assert any(0 < done < size for done, _ in reported)


def test_a_stopped_command_goes_on(unpack: Unpack) -> None:
    path, members = pack("tgz", files=1000, size=12_000)
    running = Running(Path(), "extract", path.name, "--output", "out")
    running.wait_for(lambda: any(OUT.glob(".facedata-extract-*/tree/set/*/*")))
    running.process.send_signal(signal.SIGTERM)
    errors = running.end()
    if running.process.returncode != 0:
        assert running.process.returncode == 75
        assert "run the same command again" in errors
        assert visible(OUT) == {}
    unpack(path)
    assert visible(OUT) == members
