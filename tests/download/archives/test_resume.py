from __future__ import annotations

import json
import os
import random
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from archive_support import StopAfter, split, visible, write_tar
from support import Ran, Running

from facedata.download.archives import Extraction, extract_archive, group_archives
from facedata.errors import DiskFullError, InterruptedJobError, OutputExistsError

Unpack = Callable[..., Extraction]


def pack(folder: Path, ending: str, files: int = 60, size: int = 30_000) -> tuple[Path, dict[str, bytes]]:
    """An archive, and what is in it."""
    generator = random.Random(0)
    members = {f"set/id_{number % 7}/{number:05d}.jpg": generator.randbytes(size) for number in range(files)}
    path = folder / f"a.{ending}"
    if ending != "zip":
        return write_tar(path, list(members.items())), members
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path, members


def staged(out: Path) -> Path:
    (folder,) = (path for path in out.glob(".facedata-extract-*") if path.is_dir())
    return folder


@pytest.mark.parametrize("ending", ["tar", "tgz", "zip"])
def test_it_goes_on_where_it_was_stopped(tmp_path: Path, unpack: Unpack, ending: str) -> None:
    path, members = pack(tmp_path, ending)
    asked: list[str] = []

    def digests(name: str) -> str:
        asked.append(name)
        return "md5"

    stops = 0
    extraction = None
    while extraction is None:
        try:
            extraction = unpack(path, stop=StopAfter(21), digests=digests)
        except InterruptedJobError:
            stops += 1
            assert visible(tmp_path / "out") == {}
            first = min(staged(tmp_path / "out").rglob("*.jpg"))
            first.write_bytes(b"seen")  # what is finished is not written again
    assert stops > 1
    assert {data for name, data in visible(tmp_path / "out").items() if data != members[name]} == {b"seen"}
    assert extraction.files == len(members)
    assert extraction.digests.keys() == members.keys()
    assert len(asked) <= len(members) + stops  # at most the member that it was stopped in is written again


@pytest.mark.parametrize("ending", ["tgz", "zip"])
def test_it_survives_being_killed(tmp_path: Path, unpack: Unpack, ending: str) -> None:
    path, members = pack(tmp_path, ending, files=400, size=12_000)
    if ending != "zip":
        items = list(members.items())
        write_tar(path, [*items[:5], ("../evil", b"evil"), *items[5:]])
    parts, out = split(path, 3), tmp_path / "out"
    generator = random.Random(ending)
    for _ in range(4):
        child = os.fork()
        if child == 0:
            unpack(*parts)
            os._exit(0)
        while not any(out.glob(".facedata-extract*")):
            time.sleep(0.001)
        time.sleep(generator.random() * 0.1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        there = visible(out)
        assert there == {} or there.items() <= members.items()
    assert unpack(*parts).refused_count == (ending != "zip")
    assert visible(out) == members
    (record,) = out.glob(".facedata-extracted-*.json")
    assert json.loads(record.read_text())["files"] == len(members)
    lists = [path.read_text() for path in out.glob("*-refused.jsonl")]
    assert [len(text.splitlines()) for text in lists] == ([] if ending == "zip" else [1])
    assert not [path for path in out.glob(".facedata-extract-*") if path.is_dir()]


def test_publishing_that_was_cut_off_is_completed(
    tmp_path: Path, unpack: Unpack, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, members = pack(tmp_path, "tgz")
    (tmp_path / "out" / "set" / "id_0").mkdir(parents=True)
    (tmp_path / "out" / "set" / "mine").write_bytes(b"mine")
    write_tar(path, [*members.items(), ("../evil", b""), ("top", b"top")])
    rename = os.rename
    renamed: list[Any] = []

    def cut(*names: Any) -> None:
        if len(renamed) == 4:
            raise KeyboardInterrupt
        renamed.append(names)
        rename(*names)

    monkeypatch.setattr(os, "rename", cut)
    with pytest.raises(KeyboardInterrupt):
        unpack(path)
    monkeypatch.undo()
    monkeypatch.setattr("facedata.download.archives.extract._Run._unpack", None)  # the archive is not read again
    extraction = unpack(path)
    assert visible(tmp_path / "out") == {**members, "top": b"top", "set/mine": b"mine"}
    assert (extraction.files, extraction.refused_count, len(extraction.refused)) == (61, 1, 1)


@pytest.mark.parametrize("synced", [True, False])
def test_after_a_power_cut_only_what_was_forced_to_the_disk_counts(
    tmp_path: Path, unpack: Unpack, monkeypatch: pytest.MonkeyPatch, synced: bool
) -> None:
    path, members = pack(tmp_path, "tgz")
    if synced:
        monkeypatch.setattr("facedata.download.archives.extract._SYNC_EVERY", 1)
        monkeypatch.setattr("facedata.download.archives.extract._WRITE_PROGRESS_EVERY", 0)
    with pytest.raises(InterruptedJobError):
        unpack(path, stop=StopAfter(45))
    min(staged(tmp_path / "out").rglob("*.jpg")).write_bytes(b"seen")
    monkeypatch.setattr("facedata.download.archives.staging.boot_id", lambda: "another boot")
    unpack(path)
    changed = [data for name, data in visible(tmp_path / "out").items() if data != members[name]]
    assert changed == ([b"seen"] if synced else [])


@pytest.mark.parametrize(
    "change",
    ["cut before", "fetched again", b"", b'{"parts": 3}\n', b"[" * 100_000],
    ids=["cut before", "fetched again", "empty", "other", "nested"],
)
def test_it_begins_again_after_parts_were_replaced_or_the_progress_was_damaged(
    tmp_path: Path, unpack: Unpack, change: str | bytes
) -> None:
    (path, members), out = pack(tmp_path, "tgz"), tmp_path / "out"
    data = path.read_bytes()
    path.write_bytes(data[:-1000] if change == "cut before" else data)
    with pytest.raises(InterruptedJobError):
        unpack(path, stop=StopAfter(30))
    for file in staged(out).rglob("*.jpg"):
        file.write_bytes(b"wrong")
    if isinstance(change, bytes):
        (staged(out) / "progress.json").write_bytes(change)
    else:
        (tmp_path / "again").write_bytes(data)
        os.replace(tmp_path / "again", path)  # perhaps the same bytes
    unpack(path)
    assert visible(out) == members
    assert not [entry for entry in out.glob(".facedata-extract-*") if entry.is_dir()]


@pytest.mark.parametrize("ending", ["tgz", "zip"])
def test_a_full_disk_is_said_and_can_be_mended(tmp_path: Path, small_disk: Path, ending: str) -> None:
    path, members = pack(tmp_path, ending, files=200)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(5_000_000))
    (archive,) = group_archives([path])
    with pytest.raises(DiskFullError, match="run the same command again"):
        extract_archive(archive, small_disk / "out")
    assert visible(small_disk / "out") == {}
    filler.unlink()
    extract_archive(archive, small_disk / "out")
    assert visible(small_disk / "out") == members


def test_an_existing_file_is_noticed_before_much_is_written(tmp_path: Path, unpack: Unpack) -> None:
    path, members = pack(tmp_path, "tgz")
    name = list(members)[30]
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match=name):
        unpack(path)
    assert visible(tmp_path / "out") == {name: b"mine"}
    assert len(list(staged(tmp_path / "out").rglob("*.jpg"))) == 30
    reported: list[tuple[int, int]] = []
    unpack(path, overwrite=True, observer=lambda done, total: reported.append((done, total)))
    assert visible(tmp_path / "out") == members
    size = path.stat().st_size
    assert reported == sorted(reported)
    assert reported[-1] == (size, size)
    assert any(0 < done < size for done, _ in reported)


def test_a_stopped_command_goes_on(tmp_path: Path, facedata: Callable[..., Ran]) -> None:
    path, members = pack(tmp_path, "tgz", files=1000, size=12_000)
    running = Running(tmp_path, "extract", path.name, "--output", "out")
    running.wait_for(lambda: any((tmp_path / "out").glob(".facedata-extract-*/tree/set/*/*")))
    running.process.send_signal(signal.SIGTERM)
    errors = running.end()
    if running.process.returncode != 0:
        assert running.process.returncode == 75
        assert "run the same command again" in errors
        assert visible(tmp_path / "out") == {}
    ran = facedata("extract", path.name, "--output", "out")
    assert ran.status == 0
    assert visible(tmp_path / "out") == members
