from __future__ import annotations

import hashlib
import mmap
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import write_tree

from facedata.download.checksums import ALGORITHMS, Digest, Hashed, VerifiedFiles, hash_file, remember
from facedata.errors import InputError, InputNotFoundError
from facedata.files import file_system

DIGEST = Digest("md5", "d41d8cd98f00b204e9800998ecf8427e")
LARGE = 17 << 20  # read by a second thread


class TestHashing:
    @pytest.mark.parametrize("size", [0, 1, (1 << 20) + 1, LARGE + 1])
    def test_the_checksum_of_a_file_of_any_size(self, size: int, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes((os.urandom(1021) * (size // 1021 + 1))[:size])
        for algorithm in ALGORITHMS:
            expected = hashlib.new(algorithm, path.read_bytes()).hexdigest()
            for ahead in (False, True):
                blocks: list[int] = []
                hashed = hash_file(path, algorithm, ahead=ahead, advance=blocks.append)
                assert hashed.digest == Digest(algorithm, expected)
                assert (hashed.unchanged, hashed.status.st_size, sum(blocks)) == (True, size, size)

    def test_a_file_that_grows_meanwhile_has_changed(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(bytes(3 << 20))

        def grow(_: int) -> None:
            if path.stat().st_size < 4 << 20:
                with open(path, "ab") as file:
                    file.write(bytes(1 << 20))

        hashed = hash_file(path, "md5", advance=grow)
        assert not hashed.unchanged
        assert hashed.digest.value == hashlib.md5(bytes(4 << 20)).hexdigest()

    @pytest.mark.parametrize("ahead", [False, True])
    def test_an_exception_from_the_callback_ends_the_reading(self, ahead: bool, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(bytes(LARGE))
        before = len(os.listdir("/proc/self/fd"))

        def refuse(_: int) -> None:
            raise KeyError("enough")

        with pytest.raises(KeyError):
            hash_file(path, "md5", advance=refuse, ahead=ahead)
        assert len(os.listdir("/proc/self/fd")) == before

    def test_only_regular_files_are_opened(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        for path, said in ((tmp_path / "pipe", "pipe"), (tmp_path, "folder"), (Path("/dev/zero"), "device")):
            with pytest.raises(InputError, match=f"is a .*{said}, not a file"):
                hash_file(path, "md5")
        with pytest.raises(InputNotFoundError, match="nothing"):
            hash_file(tmp_path / "nothing", "md5")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_tree(tmp_path / "root", {"file": "content"})


def found(root: Path, name: str = "file", algorithm: str = "md5") -> Digest | None:
    with VerifiedFiles(root) as files:
        return files.find(name, (root / name).stat(), algorithm)


class TestMemory:
    def test_an_unchanged_file_is_remembered(self, root: Path) -> None:
        assert found(root) is None
        remember(root, "file", DIGEST)
        assert found(root) == DIGEST
        assert found(root, algorithm="sha1") is None
        (root.parent / "link").symlink_to(root)
        assert found(root.parent / "link") == DIGEST
        name = os.fsdecode(b"\xff\n\\")
        (root / name).write_text("")
        remember(root, name, DIGEST)
        assert found(root, name) == DIGEST

    def test_any_change_is_noticed(self, root: Path) -> None:
        path, before = root / "file", (root / "file").stat()

        def change_in_secret() -> None:
            path.write_text("CONTENT")
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

        changes: list[Callable[[], object]] = [lambda: path.write_text("longer content"), change_in_secret]
        changes.append(lambda: path.rename(root / "old") and path.write_text("content"))
        for change in changes:
            remember(root, "file", DIGEST)
            assert found(root) == DIGEST
            time.sleep(0.02)
            change()
            assert found(root) is None

    def test_a_change_through_a_mapping_is_noticed(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if file_system(root) == "tmpfs":
            pytest.skip("a file in memory does not show such changes, and is not remembered")
        path = root / "file"
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping, VerifiedFiles(root) as files:
            mapping[0] = 0
            os.utime(path, (1e9, 1e9))
            files.add("file", hashed := hash_file(path, "md5", settle=True))
            files.flush()
            assert found(root) == hashed.digest
            time.sleep(0.02)
            mapping[1] = 0
            assert found(root) is None
        monkeypatch.setattr("facedata.download.checksums.file_system", lambda _: "tmpfs")
        remember(root, "file", DIGEST)
        assert found(root) is None

    @pytest.mark.parametrize(
        ("age", "unchanged", "expected"), [(1.9, True, None), (2.1, True, DIGEST), (2.1, False, None)]
    )
    def test_a_file_that_may_still_change_is_not_remembered(
        self, root: Path, age: float, unchanged: bool, expected: Digest | None
    ) -> None:
        status = (root / "file").stat()
        with VerifiedFiles(root) as files:
            files.add("file", Hashed(DIGEST, status, unchanged, status.st_mtime_ns + int(age * 1e9)))
        assert found(root) == expected

    def test_a_corrupt_database_is_removed_with_a_warning(self, root: Path, caplog: pytest.LogCaptureFixture) -> None:
        remember(root, "file", DIGEST)
        (database,) = (root.parent / "cache/facedata/verified").iterdir()
        whole = database.read_bytes()
        contents = [b"not a database, " * 100, whole[:4096] + bytes(len(whole) - 4096), whole[:100] + b"\xff" * 5000]
        for corrupt in contents:
            database.write_bytes(corrupt)
            caplog.clear()
            assert found(root) is None
            assert "is corrupt" in caplog.text
            remember(root, "file", DIGEST)
            assert found(root) == DIGEST
        connection = sqlite3.connect(database)
        with connection:
            connection.execute("UPDATE files SET digest = 'nonsense'")  # as a program of another version might
        connection.close()
        assert found(root) is None

    @pytest.mark.parametrize("place", ["occupied", "/proc", ""])
    def test_a_cache_that_cannot_be_written_is_not_an_error(
        self, place: str, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        (root.parent / "occupied").write_text("")
        (root.parent / "here").mkdir()
        monkeypatch.chdir(root.parent / "here")
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user without a home folder
        monkeypatch.setenv("XDG_CACHE_HOME", place and str(root.parent / place))
        remember(root, "file", DIGEST)
        assert found(root) is None
        assert not caplog.records
        assert list(Path.cwd().iterdir()) == []

    def test_a_full_disk_is_not_an_error(self, root: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(small_disk))
        with VerifiedFiles(root) as files:
            status = (root / "file").stat()
            for number in range(50_000):
                files.put(f"{number:0200d}", status, DIGEST)
        assert found(root) is None

    def test_several_processes_remember_at_once(self, root: Path) -> None:
        code = (
            "import sys; from facedata.download.checksums import Digest, remember\n"
            f"for n in range(20): remember({os.fspath(root)!r}, f'{{sys.argv[1]}}-{{n}}', Digest('md5', '0' * 32))"
        )
        names = [f"{writer}-{number}" for writer in "ab" for number in range(20)]
        write_tree(root, dict.fromkeys(names, ""))
        processes = [subprocess.Popen([sys.executable, "-c", code, writer]) for writer in "ab"]
        assert [process.wait(60) for process in processes] == [0, 0]
        assert all(found(root, name) for name in names[::7])

    @pytest.mark.parametrize("seconds", [13_569_465_600, -14_000_000_000])
    def test_times_that_a_database_cannot_hold_are_ignored(self, root: Path, seconds: int) -> None:
        os.utime(root / "file", (seconds, seconds))
        if (root / "file").stat().st_mtime_ns != seconds * 1_000_000_000:
            pytest.skip("nor can this file system")
        assert found(root) is None
        remember(root, "file", DIGEST)
        assert found(root) is None
