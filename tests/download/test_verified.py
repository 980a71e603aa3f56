from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from facedata.download.digest import Digest
from facedata.download.verified import VerifiedFiles, remember

DIGEST = Digest("md5", "d41d8cd98f00b204e9800998ecf8427e")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "facedata" / "verified"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "file").write_text("content")
    return folder


def found(root: Path, name: str = "file", algorithm: str = "md5") -> Digest | None:
    with VerifiedFiles(root) as files:
        return files.find(name, (root / name).stat(), algorithm)


def test_what_has_not_changed_is_remembered(root: Path) -> None:
    assert found(root) is None
    remember(root, "file", DIGEST)
    assert found(root) == DIGEST
    assert found(root, algorithm="sha1") is None
    link = root.parent / "link"
    link.symlink_to(root)
    assert found(link) == DIGEST


def test_any_change_is_noticed(root: Path) -> None:
    path, before = root / "file", (root / "file").stat()

    def change_in_secret() -> None:
        path.write_text("CONTENT")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    changes: tuple[Callable[[], object], ...] = (
        lambda: path.write_text("longer content"),
        change_in_secret,
        lambda: path.rename(root / "old") and path.write_text("content"),
    )
    for change in changes:
        remember(root, "file", DIGEST)
        assert found(root) == DIGEST
        time.sleep(0.02)
        change()
        assert found(root) is None


def test_a_file_that_may_still_be_written_to_is_not_remembered(root: Path) -> None:
    status = (root / "file").stat()
    with VerifiedFiles(root) as files:
        files.add("file", status, DIGEST, status.st_mtime_ns + 1_900_000_000)
    assert found(root) is None
    with VerifiedFiles(root) as files:
        files.add("file", status, DIGEST, status.st_mtime_ns + 2_100_000_000)
    assert found(root) == DIGEST


def test_names_of_any_bytes_are_remembered(root: Path) -> None:
    name = os.fsdecode(b"\xff\n\\")
    (root / name).write_text("")
    remember(root, name, DIGEST)
    assert found(root, name) == DIGEST


def test_a_broken_memory_is_thrown_away_with_a_warning(
    root: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remember(root, "file", DIGEST)
    (database,) = cache.iterdir()
    whole = database.read_bytes()
    for broken in (
        b"not a database at all, " * 100,
        whole[:4096] + bytes(len(whole) - 4096),
        whole[:100] + b"\xff" * 5000,
    ):
        database.write_bytes(broken)
        caplog.clear()
        assert found(root) is None
        assert "is broken" in caplog.text
        remember(root, "file", DIGEST)
        assert found(root) == DIGEST


def test_a_row_that_somebody_else_wrote_is_not_believed(root: Path, cache: Path) -> None:
    remember(root, "file", DIGEST)
    (database,) = cache.iterdir()
    connection = sqlite3.connect(database)
    with connection:
        connection.execute("UPDATE files SET digest = 'nonsense'")
    connection.close()
    assert found(root) is None


@pytest.mark.parametrize("kind", ["file", "full"])
def test_a_cache_that_cannot_be_written_is_no_error(
    kind: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "occupied") if kind == "file" else "/proc")
    remember(root, "file", DIGEST)
    assert found(root) is None
    assert not caplog.records


def test_a_full_disk_is_no_error(root: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_disk))
    with VerifiedFiles(root) as files:
        status = (root / "file").stat()
        for number in range(50_000):
            files.put(f"{number:0200d}", status, DIGEST)
    assert found(root) is None


def test_several_processes_remember_at_once(root: Path) -> None:
    code = (
        "import sys; from facedata.download.digest import Digest; from facedata.download.verified import remember\n"
        f"for n in range(20): remember({os.fspath(root)!r}, f'{{sys.argv[1]}}-{{n}}', Digest('md5', '0' * 32))"
    )
    for writer in range(3):
        for number in range(20):
            (root / f"{writer}-{number}").write_text("")
    processes = [subprocess.Popen([sys.executable, "-c", code, str(writer)]) for writer in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert all(found(root, f"{writer}-{number}") for writer in range(3) for number in range(0, 20, 7))


@pytest.mark.parametrize("seconds", [13_569_465_600, -14_000_000_000])
def test_times_that_a_database_cannot_hold_are_no_matter(root: Path, seconds: int) -> None:
    os.utime(root / "file", (seconds, seconds))
    if (root / "file").stat().st_mtime_ns != seconds * 1_000_000_000:
        pytest.skip("nor can this file system")
    assert found(root) is None
    remember(root, "file", DIGEST)
    assert found(root) is None


def test_without_a_home_folder_nothing_is_written_to_the_current_one(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as of a user who is in no list
    remember(root, "file", DIGEST)
    assert found(root) is None
    assert list(here.iterdir()) == []
