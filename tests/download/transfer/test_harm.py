"""What must not harm a file: threads in the middle of something, failing disks, hostile records and bodies."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trustme
from http_server import Server

from facedata.download.links import Link
from facedata.download.transfer import FileRequest, TransferOptions, attempt, fetch_files, partial, ranges
from facedata.download.transfer.http import Session
from facedata.download.transfer.partial import PartFile
from facedata.download.transfer.retry import CancelledError
from facedata.download.transfer.sockets import Sockets
from facedata.download.transfer.state import State, boot_id, read_state, write_state
from facedata.errors import DiskFullError, OutputError, OutputLockedError, TransferError

BIG = os.urandom(6_000_000)


def is_helper() -> bool:
    return threading.current_thread().name == "facedata-range"


def test_what_a_second_connection_still_writes_is_waited_for(
    server: Server, fetch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = PartFile.write

    def slow(part: PartFile, position: int, data: bytes, generation: int) -> None:
        time.sleep(0.3 if is_helper() else 0)
        write(part, position, data, generation)

    monkeypatch.setattr(ranges, "SMALLEST", 1 << 18)
    monkeypatch.setattr(PartFile, "write", slow)
    server.add("/a.bin", BIG, rate=2_000_000)
    fetch(server.url("/a.bin"), connections=3)
    assert (tmp_path / "a.bin").read_bytes() == BIG


def test_what_a_second_connection_could_not_write_is_fetched_again(
    server: Server, fetch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, failed = os.pwrite, list[int]()

    def full_once(descriptor: int, data: Any, position: int) -> int:
        if is_helper() and not failed:
            failed.append(position)
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data, position)

    monkeypatch.setattr(ranges, "SMALLEST", 1 << 18)
    monkeypatch.setattr(os, "pwrite", full_once)
    server.add("/a.bin", BIG, rate=2_000_000)
    fetch(server.url("/a.bin"), connections=2)
    assert failed
    assert (tmp_path / "a.bin").read_bytes() == BIG


def test_nothing_is_written_behind_a_gap_that_cannot_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = PartFile(tmp_path / "a", overwrite=False)
    part.restart(State(total=100))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(partial, "write_state", full)
    with pytest.raises(DiskFullError):
        part.unorder()
    part.close()


def test_a_half_is_no_file_whatever_came_before(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "a", overwrite=False)
    part.restart(State(total=10))
    part.write(5, b"x" * 5, part.generation)
    with pytest.raises(OutputError, match="5 of its 10 bytes"):
        part.publish(None)
    part.close()
    assert not (tmp_path / "a").exists()


def test_what_somebody_appended_to_the_half_is_not_published(server: Server, fetch: Any, tmp_path: Path) -> None:
    served = server.add("/a.bin", BIG, cut_at=[400_000, None])
    with pytest.raises(TransferError):
        fetch(server.url("/a.bin"), check=BIG, retries=0)
    (tmp_path / "a.bin.part").write_bytes(BIG + b"tail")
    fetch(server.url("/a.bin"), check=BIG)
    assert (tmp_path / "a.bin").read_bytes() == BIG
    assert served.requests == 1


def test_a_disk_that_failed_once_is_told_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = PartFile(tmp_path / "a", overwrite=False)
    part.restart(State(total=4))
    part.write(0, b"data", part.generation)
    with monkeypatch.context() as broken:  # Linux tells of a failed write-back once, and then no more

        def fail(_: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        broken.setattr(os, "fdatasync", fail)
        part.sync(at_least=1)
    with pytest.raises(OutputError, match="Input/output error"):
        part.publish(None)
    part.close()
    assert not (tmp_path / "a").exists()


def test_a_date_that_the_disk_does_not_take_is_not_worth_an_error(
    server: Server, fetch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "utime", refuse)
    server.add("/a.bin", BIG, last_modified="Fri, 31 Dec 9999 23:59:59 GMT")
    fetch(server.url("/a.bin"))
    assert (tmp_path / "a.bin").read_bytes() == BIG


def test_a_file_set_aside_whose_place_is_taken_is_closed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = PartFile(tmp_path / "a", overwrite=False)
    part.restart(State(total=4))
    part.write(0, b"data", part.generation)

    def taken(path: Path) -> int:
        raise OutputLockedError(f"{path}: another run is fetching this file")

    monkeypatch.setattr(partial, "open_locked", taken)
    with pytest.raises(OutputLockedError):
        part.set_aside("a.wrong-1")
    os.fstat(part.descriptor)  # still its own, not a number that another file may have by now
    part.close()


def test_a_run_that_was_ended_publishes_nothing_behind_its_back(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "a", overwrite=False)
    part.restart(State(total=4))
    part.write(0, b"data", part.generation)
    part.abandon()
    with pytest.raises(CancelledError):
        part.publish(None)
    part.close()
    assert sorted(os.listdir(tmp_path)) == ["a.part", "a.part.json"]


@pytest.mark.parametrize(
    "text",
    ["5", '"x"', "null", "true", "1.5", '{"version": 1, "ordered": false, "boot": "x", "synced": [[null, null]]}'],
)
def test_a_record_that_is_no_table_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "record").write_text(text)
    assert read_state(tmp_path / "record", 10) is None


def test_a_record_that_is_a_pipe_or_a_link_is_none(tmp_path: Path) -> None:
    write_state(tmp_path / "elsewhere", State(boot=boot_id()), sync=False)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert read_state(tmp_path / "link", 10) is None
    os.mkfifo(tmp_path / "pipe")
    reader = threading.Thread(target=read_state, args=(tmp_path / "pipe", 10), daemon=True)
    reader.start()
    reader.join(5)
    assert not reader.is_alive()


def test_what_survived_a_power_cut_survives_the_next_run_too(tmp_path: Path) -> None:
    path = tmp_path / "record"
    write_state(path, State(boot="before", total=90, written=[(0, 50)], synced=[(0, 40)]), sync=False)
    first = read_state(path, 60)
    assert first is not None
    write_state(path, first, sync=False)
    again = read_state(path, 60)
    assert again is not None
    assert again.written == [(0, 40)]


def test_a_refused_range_is_no_empty_file(server: Server, fetch: Any, tmp_path: Path) -> None:
    server.add("/a.bin", BIG, status=416, headers={"Content-Type": "text/plain"})
    with pytest.raises(TransferError, match="answers 416"):
        fetch(server.url("/a.bin"), retries=0)
    assert os.listdir(tmp_path) == []


def test_what_is_broken_off_gives_no_encrypted_bytes(authority: trustme.CA) -> None:
    listener, context = socket.create_server(("127.0.0.1", 0)), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    def serve() -> None:
        with listener, listener.accept()[0] as plain, context.wrap_socket(plain, server_side=True) as one:
            one.sendall(bytes(1 << 16))
            done.wait(10)

    done, thread = threading.Event(), threading.Thread(target=serve)
    thread.start()
    client = ssl.create_default_context()
    authority.configure_trust(client)
    with client.wrap_socket(socket.create_connection(listener.getsockname()), server_hostname="127.0.0.1") as one:
        sockets, came = Sockets(), one.recv(10)
        time.sleep(0.2)  # the rest waits in the buffers of the system
        sockets.add(one)
        sockets.break_all()
        while data := one.recv(1 << 16):
            came += data
        assert came == bytes(len(came))
    done.set()
    thread.join()


def test_a_body_that_is_broken_off_is_not_at_its_end(server: Server) -> None:
    server.add("/a.bin", BIG, rate=500_000, length=None)
    sockets = Sockets()
    with Session(sockets, TransferOptions()) as session, session.ask(server.url("/a.bin")) as answer:
        assert answer.read(10)
        sockets.break_all()
        with pytest.raises(CancelledError):
            answer.read_all(1 << 30)


@pytest.mark.parametrize("piece", [b"1;x" + b"x" * 40, b"0\r\nX: y\r\n"], ids=["extension", "trailers"])
def test_a_body_that_drips_without_a_byte_of_data_does_not_hold_for_ever(fetch: Any, piece: bytes) -> None:
    listener, done = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def drip() -> None:
        with listener, listener.accept()[0] as one:
            one.recv(1 << 16)
            one.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ndata\r\n" + piece[:3])
            for number in range(3, 1 << 16):
                if done.wait(0.05):
                    return
                try:
                    one.sendall(piece[number % len(piece) :][:1] if b"\r" not in piece else b"X: y\r\n")
                except OSError:
                    return

    thread, begin = threading.Thread(target=drip), time.monotonic()
    thread.start()
    timer = threading.Timer(8, done.set)
    timer.start()
    try:
        with pytest.raises(TransferError):
            fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/a.bin", timeout=0.3, retries=0, size=100)
        assert time.monotonic() - begin < 6
    finally:
        done.set()
        timer.cancel()
        thread.join()


def test_a_body_without_end_leaves_free_what_should_stay_free(
    server: Server, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "_LOOK_AT_DISK", 1 << 20)
    server.add("/a.bin", bytes(7 << 20), chunked=True)
    with pytest.raises(DiskFullError, match="to be left free"):
        fetch_files(
            [FileRequest(small_disk / "a", (Link("http", server.url("/a.bin")),))], TransferOptions(reserve=4 << 20)
        )


def test_only_connections_of_threads_that_still_run_are_broken_off(
    server: Server, fetch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, break_thread = list[bool](), Sockets.break_thread

    def note(sockets: Sockets, thread: int | None) -> None:
        broken.append(any(one.ident == thread for one in threading.enumerate()))
        break_thread(sockets, thread)

    write = PartFile.write

    def slow(part: PartFile, position: int, data: bytes, generation: int) -> None:
        time.sleep(0 if is_helper() else 0.05)  # so that the helper is the first to end
        write(part, position, data, generation)

    monkeypatch.setattr(Sockets, "break_thread", note)
    monkeypatch.setattr(PartFile, "write", slow)
    served = server.add("/a.bin", BIG[: 3 << 20], rate=1_000_000, status=[200, 404])
    monkeypatch.setattr(ranges, "SMALLEST", 1 << 18)
    fetch(server.url("/a.bin"), connections=2)
    assert served.requests >= 2
    assert all(broken)


@pytest.mark.parametrize("name", ["n" * 250, "n" * 253, "a" * 300 + "/a"], ids=["record", "half", "folder"])
def test_a_name_that_is_too_long_is_told(server: Server, fetch: Any, name: str) -> None:
    server.add("/a.bin", BIG)
    with pytest.raises(OutputError, match="cannot be written: File name too long"):
        fetch(server.url("/a.bin"), name=name)


def test_a_folder_in_the_place_of_the_record_is_named(server: Server, fetch: Any, tmp_path: Path) -> None:
    server.add("/a.bin", BIG)
    (tmp_path / "a.bin.part.json").mkdir()
    with pytest.raises(OutputError, match=r"a\.bin\.part\.json: cannot be written: Is a directory"):
        fetch(server.url("/a.bin"))


def test_a_folder_called_like_a_file_set_aside_is_told(tmp_path: Path) -> None:
    for name in ("a.wrong-x", "a.wrong-y"):
        (tmp_path / name).mkdir()
    part = PartFile(tmp_path / "a", overwrite=False)
    part.restart(State(total=4))
    part.write(0, b"data", part.generation)
    with pytest.raises(OutputError):
        part.set_aside("a.wrong-1")
    part.close()


def test_a_proxy_without_a_usable_address_is_told(server: Server, fetch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http:///me:secret")
    with pytest.raises(TransferError, match="the proxy that the environment names") as error:
        fetch("http://nowhere.example/a.bin", retries=0)
    assert "secret" not in str(error.value)
