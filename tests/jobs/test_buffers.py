"""Large bytes on their way from a worker: they arrive whole by either way, and their memory is given back."""

from __future__ import annotations

import os
import pickle
import random
import sys
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facedata.jobs.buffers import ProcessAddress, SharedBuffer, this_process
from facedata.jobs.engine import LocalExecutor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory without a name is of Linux alone")

LARGE = 1 << 18


def bytes_of(number: int, size: int = LARGE) -> bytes:
    return random.Random(number).randbytes(size)


def pack(number: int, receiver: ProcessAddress | None) -> SharedBuffer:
    return SharedBuffer(memoryview(bytes_of(number)), receiver)


def pack_and_die(receiver: ProcessAddress | None) -> tuple[SharedBuffer, _Die]:
    return pack(0, receiver), _Die()


class _Die:
    """Kills the worker when it is about to be sent."""

    def __reduce__(self) -> str:
        os._exit(1)


def kept_in_memory(_: int) -> int:
    """The bytes that a worker has left and that were not taken yet."""
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return sum(
        os.stat(link).st_size for link in links if os.path.islink(link) and "memfd:facedata" in os.readlink(link)
    )


def taken(buffer: SharedBuffer) -> bytes:
    into = bytearray(buffer.size + 10)
    buffer.take(memoryview(into))
    assert into[buffer.size :] == bytes(10)
    return bytes(into[: buffer.size])


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_bytes_left_by_a_worker_arrive_and_their_memory_is_given_back() -> None:
    here = this_process()
    with LocalExecutor(1) as executor:
        executor.submit(kept_in_memory, 0).result()
        before = descriptors()
        for number in range(5):
            buffer = executor.submit(pack, number, here).result()
            assert len(pickle.dumps((buffer.size, buffer.shared))) < 1000
            assert executor.submit(kept_in_memory, 0).result() == LARGE
            assert taken(buffer) == bytes_of(number)
        assert executor.submit(kept_in_memory, 0).result() == 0
        assert descriptors() == before


def test_bytes_stay_when_their_worker_ends_and_a_buffer_that_is_dropped_leaves_no_descriptor() -> None:
    with LocalExecutor(1) as executor:
        buffer, dropped = (executor.submit(pack, number, this_process()).result() for number in (7, 8))
        before = descriptors()
        del dropped
        assert descriptors() == before - 1
    assert taken(buffer) == bytes_of(7)


def test_bytes_go_through_the_pipe_if_the_receiver_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    here = this_process()
    assert here is not None
    elsewhere = ProcessAddress("another machine", 1, 1)
    other_container, unseen = here._replace(namespace=1), here._replace(process=1 << 22)
    with LocalExecutor(1) as executor:
        for receiver in (None, elsewhere, other_container, unseen):
            buffer = executor.submit(pack, 3, receiver).result()
            assert executor.submit(kept_in_memory, 0).result() == 0
            assert buffer.shared is None
            assert taken(buffer) == bytes_of(3)

    def none_left(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", none_left)
    buffer = pickle.loads(pickle.dumps(pack(1, here)))  # noqa: S301, our own bytes
    assert buffer.shared is None
    assert taken(buffer) == bytes_of(1)


def test_a_worker_that_dies_on_the_way_breaks_the_executor_and_nothing_else() -> None:
    with LocalExecutor(1) as executor, pytest.raises(BrokenExecutor):
        executor.submit(pack_and_die, this_process()).result()


def test_memory_that_is_not_the_workers_any_more_is_not_taken_for_it(tmp_path: Path) -> None:
    buffer = pack(2, this_process())
    assert buffer.shared is not None
    sent = pickle.dumps(buffer)
    with open(tmp_path / "other", "wb") as other:
        os.dup2(other.fileno(), buffer.shared.descriptor)
    with pytest.raises(ConnectionError, match="it was killed"):
        pickle.loads(sent)  # noqa: S301, our own bytes


@given(st.binary(max_size=100))
def test_small_ones_go_through_the_pipe(data: bytes) -> None:
    buffer = pickle.loads(pickle.dumps(SharedBuffer(memoryview(data), this_process())))  # noqa: S301, our own bytes
    assert buffer.shared is None
    assert taken(buffer) == taken(SharedBuffer(memoryview(data), None)) == data
