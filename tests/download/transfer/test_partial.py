"""The partial file: locks, records, power cuts, full disks and names that cannot be written."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from http_server import Server
from support import tree

from facedata.download.checksums import Digest
from facedata.download.transfer import Fetched, FileRequest, Link, fetch_files
from facedata.download.transfer.options import CancelledError
from facedata.download.transfer.partial import PartialFile, State
from facedata.errors import DiskFullError, OutputError, OutputExistsError, OutputLockedError

DATA = os.urandom(300_000)


def fetch_to(path: Path, server: Server, size: int | None = None, **options: Any) -> list[Fetched]:
    return fetch_files([FileRequest(path, (Link("http", server.url("/a.bin")),), size=size)], **options)


@contextmanager
def opened(path: Path, cancel: threading.Event | None = None) -> Iterator[PartialFile]:
    partial = PartialFile(path, algorithm="sha256", cancel=cancel or threading.Event())
    yield partial
    partial.close()


def leave_partial(path: Path, data: bytes, **record: Any) -> Path:
    """Write a partial file and close it; `record` replaces values in its record, which is returned."""
    with opened(path) as partial:
        partial.restart(State("link", total=len(DATA)))
        partial.write(data)
    file = path.with_name(f"{path.name}.part.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **record}))
    return file


class TestPartialFile:
    def test_it_is_hashed_from_its_beginning_also_if_it_is_resumed(self, tmp_path: Path) -> None:
        leave_partial(tmp_path / "a", DATA[:200_000])
        with opened(tmp_path / "a") as partial:
            assert (partial.done, partial.received, partial.state.link) == (200_000, 0, "link")
            for first in range(200_000, 300_000, 1000):
                partial.write(DATA[first : first + 1000])
            assert partial.is_complete
            assert partial.digest() == Digest("sha256", sha256(DATA).hexdigest())
            partial.publish(None)
        assert (tmp_path / "a").read_bytes() == DATA
        assert os.listdir(tmp_path) == ["a"]

    @pytest.mark.parametrize(
        ("record", "done"),
        [
            ({}, 1000),
            ({"boot": "before the power cut", "synced": 300}, 300),
            ({"boot": "before the power cut", "synced": 5000}, 1000),
            ({"boot": ""}, 0),
            ({"total": 400}, 400),
            ({"total": -1}, 0),
            ({"total": "many"}, 0),
            ({"synced": None}, 0),
            ({"etag": "a\r\nb"}, 0),
            ({"boot": None}, 0),
            ({"unknown": 1}, 0),
            ({"version": 1}, 0),
            *((text, 0) for text in (None, "{", "[]", "{}", "[" * 100_000)),  # None: a pipe
        ],
    )
    def test_what_a_record_says_survives(self, tmp_path: Path, record: Any, done: int) -> None:
        file = leave_partial(tmp_path / "a", DATA[:1000], **(record if isinstance(record, dict) else {}))
        if not isinstance(record, dict):
            file.unlink()
            os.mkfifo(file) if record is None else file.write_text(record)
        for _ in range(2 if done else 1):  # reading a record does not change what survives
            with opened(tmp_path / "a") as partial:
                assert partial.done == done

    def test_enough_bytes_are_synced_and_recorded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(_: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        with opened(tmp_path / "a") as partial:
            partial.restart(State("link", total=1 << 30))
            for synced in (0, 70 << 20):
                partial.write(bytes(35 << 20))
                partial.checkpoint()
                assert json.loads((tmp_path / "a.part.json").read_text())["synced"] == synced
            partial.restart()
            partial.write(bytes(70 << 20))
            with monkeypatch.context() as broken:  # Linux reports a failed write-back only once
                broken.setattr(os, "fdatasync", fail)
                partial.checkpoint()
            with pytest.raises(OutputError, match="Input/output error"):
                partial.publish(None)
        assert not (tmp_path / "a").exists()

    def test_an_incomplete_or_cancelled_file_is_not_published(self, tmp_path: Path) -> None:
        cancel = threading.Event()
        with opened(tmp_path / "a", cancel) as partial:
            partial.restart(State(total=10))
            partial.write(b"x" * 5)
            with pytest.raises(OutputError, match="5 of its 10 bytes"):
                partial.publish(None)
            partial.write(b"x" * 5)
            cancel.set()
            with pytest.raises(CancelledError):
                partial.publish(None)
        assert sorted(os.listdir(tmp_path)) == ["a.part", "a.part.json"]

    def test_what_another_program_appended_is_not_published(self, tmp_path: Path) -> None:
        leave_partial(tmp_path / "a", DATA)
        with opened(tmp_path / "a") as partial:
            with open(tmp_path / "a.part", "ab") as file:
                file.write(b"tail")
            partial.publish(1e30)  # a date that no file system can store
        assert (tmp_path / "a").read_bytes() == DATA

    def test_folders_in_the_place_of_files_set_aside(self, tmp_path: Path) -> None:
        for name in ("a.wrong-x", "a.wrong-y"):
            (tmp_path / name).mkdir()
        with opened(tmp_path / "a") as partial:
            partial.write(b"data")
            with pytest.raises(OutputError, match="cannot be written"):
                partial.set_aside("a.wrong-1")

    def test_only_one_run_has_it_and_replaces_nothing(self, server: Server, tmp_path: Path) -> None:
        served = server.add("/a.bin", DATA)
        with opened(tmp_path / "a"), pytest.raises(OutputLockedError, match="another run is writing"):
            fetch_to(tmp_path / "a", server)
        assert (served.requests, os.listdir(tmp_path)) == (0, [])
        served.on_request = lambda _: (tmp_path / "a").write_bytes(b"of another run")
        with pytest.raises(OutputExistsError, match="created by another program meanwhile"):
            fetch_to(tmp_path / "a", server)
        assert (tmp_path / "a").read_bytes() == b"of another run"


class TestFullDisk:
    @pytest.mark.parametrize("options", [{"rate": 1_000_000}, {"chunked": True}])
    def test_a_size_that_is_not_published(self, server: Server, small_disk: Path, options: dict[str, Any]) -> None:
        served = server.add("/a.bin", bytes(9 << 20), **options)
        with pytest.raises(DiskFullError):
            fetch_to(small_disk / "a", server)
        if not served.chunked:  # the server announced it
            assert served.bytes_served < 2 << 20
            assert os.listdir(small_disk) == []

    def test_the_partial_file_is_kept_and_the_same_call_resumes(self, server: Server, small_disk: Path) -> None:
        data, filler = os.urandom(6 << 20), small_disk / "filler"
        served = server.add("/a.bin", data, rate=5 << 20)
        filler.write_bytes(b"")

        def fill(done: int, total: int) -> None:
            if done and not filler.stat().st_size:
                with suppress(OSError):
                    filler.write_bytes(bytes(3 << 20))

        with pytest.raises(DiskFullError, match="what is finished is kept"):
            fetch_to(small_disk / "a", server, len(data), observer=fill)
        there = (small_disk / "a.part").stat().st_size
        assert there > 1 << 20
        filler.unlink()
        server.wait_until_idle()
        served.bytes_served = 0
        fetch_to(small_disk / "a", server, len(data))
        assert (small_disk / "a").read_bytes() == data
        assert served.bytes_served == len(data) - there


class TestNames:
    def test_a_pipe_or_link_in_the_place_of_the_partial_file(self, server: Server, tmp_path: Path) -> None:
        server.add("/a.bin", DATA)
        os.mkfifo(tmp_path / "a.part")
        with pytest.raises(OutputError, match="is a named pipe, expected a plain file"):
            fetch_to(tmp_path / "a", server)
        (tmp_path / "a.part").unlink()
        (tmp_path / "victim").write_bytes(b"precious")
        (tmp_path / "a.part").symlink_to(tmp_path / "victim")
        with pytest.raises(OutputError):
            fetch_to(tmp_path / "a", server)
        assert (tmp_path / "victim").read_bytes() == b"precious"

    def test_unusual_names(self, server: Server, tmp_path: Path) -> None:
        server.add("/a.bin", DATA)
        names = ("[a]*?", "ü 漢", "-n", "a'b\"c", "a.part")
        for name in names:
            fetch_to(tmp_path / name, server)
        assert tree(tmp_path) == dict.fromkeys(names, DATA)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("n" * 250, "File name too long"),  # its record
            ("n" * 253, "File name too long"),  # its partial file
            ("a" * 300 + "/a", "File name too long"),
            ("folder", "Is a directory"),
            ("file/a", "cannot be written"),
        ],
    )
    def test_names_that_cannot_be_written(self, server: Server, tmp_path: Path, name: str, message: str) -> None:
        server.add("/a.bin", DATA)
        (tmp_path / "folder.part.json").mkdir()
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(OutputError, match=f"cannot be written: .*{message}|{message}"):
            fetch_to(tmp_path / name, server)
