from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from support import peak_bytes

from facedata.download.walk import HashedNames, Meter, NameIndex, Task, run_in_order


@pytest.mark.parametrize("count", [10, (1 << 17) + 10])  # many are sorted in another way
def test_a_set_of_names(count: int) -> None:
    names = HashedNames()
    for number in range(count):
        names.add(f"name {number}")
        assert number > 3 or f"name {number}" in names
    assert all(f"name {number}" in names for number in range(0, count, 999))
    assert not any(f"other {number}" in names for number in range(100))


def test_missing_files_are_found_by_the_longest_end_of_their_paths() -> None:
    paths = ["x", "a/x", "b/c/x", "d/c/x", "a/y", "z/c/w"]
    index = NameIndex(paths, {"x", "y"})
    assert index.find("c/x") == ["b/c/x", "d/c/x"]
    assert index.find("d/c/x") == ["d/c/x"]
    assert index.find("q/x") == ["a/x", "b/c/x", "d/c/x", "x"]
    assert index.find("x") == ["a/x", "b/c/x", "d/c/x", "x"]
    assert (index.find("y"), index.find("w"), index.find("nope")) == (["a/y"], [], [])
    many = NameIndex((f"moved/{folder}/x" for folder in range(1001)), {"x"})
    assert (many.find("other/x"), many.find("7/x")) == ([], ["moved/7/x"])


def task(value: int, size: int = 1 << 21) -> Task[int]:
    return Task(lambda: value, size)


def test_results_come_in_order_and_as_early_as_possible() -> None:
    release = threading.Event()

    def slow() -> int:
        release.wait(20)
        return 1

    results = run_in_order([task(0), Task(slow, 3 << 20), task(2), task(3)], Meter(), workers=2)
    assert next(results) == 0
    release.set()
    assert list(results) == [1, 2, 3]


def test_memory_does_not_grow_with_the_number_of_files() -> None:
    def consume(count: int) -> None:
        tasks: Iterator[Task[bytes]] = (Task(lambda: bytes(1000), 1) for _ in range(count))
        for _ in run_in_order(tasks, Meter(), workers=2):
            pass

    consume(10)
    assert peak_bytes(lambda: consume(8_000)) < 5_000_000


def test_an_error_in_a_thread_is_raised_and_ends_all_threads() -> None:
    def fail() -> int:
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        list(run_in_order([Task(fail, 1 << 21) for _ in range(10)], Meter(), workers=3))
