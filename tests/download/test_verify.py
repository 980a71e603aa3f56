from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
from pathlib import Path

import pytest
from support import peak_bytes, raised_without_root, write_tree

from facedata.download.checksums import Digest
from facedata.download.expectations import IndexLines, RecordFile
from facedata.download.verify import Expectation, Verification, verify
from facedata.download.walk import HashedNames, Meter, NameIndex, Task, run_in_order
from facedata.errors import InputError, InputNotFoundError


def md5(content: str) -> Digest:
    return Digest("md5", hashlib.md5(content.encode()).hexdigest())


def verdicts(done: Verification) -> list[tuple[str, str]]:
    return [(result.path, result.verdict) for result in done.results]


def places(done: Verification) -> list[tuple[str, str | None]]:
    return [(result.verdict, result.found_at) for result in done.results]


def test_each_file_gets_its_verdict_in_order_and_what_is_wrong_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path, {"b": "B", "a": "old", "short": "12345", "c": "C"})
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    known = {md5("old").value: "the first release"}
    expected = [Expectation(name, md5(name.upper()), known=known) for name in ("b", "a", "none", "pipe", "folder", "c")]
    done = verify(tmp_path, [*expected, Expectation("short", md5("123456"), size=6)], use_cache=False)
    assert not done.good
    assert [(result.path, result.verdict, result.detail) for result in done.results] == [
        ("b", "OK", ""),
        ("a", "FAILED", f"expected {md5('A')}, found {md5('old').value}: it is the first release"),
        ("none", "MISSING", ""),
        ("pipe", "FAILED", "is a named pipe, not a file"),
        ("folder", "FAILED", "is a folder, not a file"),
        ("c", "OK", ""),
        ("short", "FAILED", "expected 6 bytes, found 5"),
    ]
    assert (done.hows["checksum"], done.bytes_read) == (2, 5)  # not the one with a wrong size


def test_without_a_checksum_the_result_says_what_was_checked(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train.idx": "0\t0\n1\t8\n", "wrong.idx": "0\t0\nnonsense\n", "property": "2,112,112\n"})
    write_tree(tmp_path, {"lfw.bin": "12345", "a/train.rec": "12345"})
    expected = [
        Expectation("train.idx", structure=IndexLines(2)),
        Expectation("property"),
        Expectation("lfw.bin", size=5),
        Expectation("none.rec", structure=RecordFile(), optional=True),
        Expectation("wrong.idx", structure=IndexLines(2)),
        Expectation("a/train.rec", structure=RecordFile()),
    ]
    *good, line, records = verify(tmp_path, expected).results
    assert [(result.verdict, result.how, result.detail) for result in good] == [
        ("OK", "structure", "2 lines"),
        ("OK", "presence", "present; nothing is published to check it against"),
        ("OK", "size", "no checksum is published; the size is right: 5"),
    ]
    assert (line.verdict, records.verdict) == ("FAILED", "FAILED")
    assert "line 2 is 'nonsense'" in line.detail
    assert "cannot be checked" in records.detail


def test_a_file_is_found_by_its_name_and_the_right_one_of_several_and_each_is_read_once(tmp_path: Path) -> None:
    found = {"data/features/part.bin": "P", "other/part.bin": "other", "casia/property": "1", "moved/g/property": "2"}
    write_tree(tmp_path, {**found, "moved/g/train.rec": "damaged", "a/x": "1", "b/x": "2", "c/x": "3"})
    expected = [
        (Expectation("features/part.bin", md5("P")), ("OK", "data/features/part.bin")),
        (Expectation("g/train.rec", md5("whole")), ("FAILED", "moved/g/train.rec")),  # damaged, under its whole path
        (Expectation("g/property"), ("OK", "moved/g/property")),
        (Expectation("ms1m/property"), ("MISSING", None)),  # the name alone is not enough
        (Expectation("p/x", md5("3")), ("OK", "c/x")),
        (Expectation("q/x", md5("2")), ("OK", "b/x")),
        (Expectation("r/x", md5("9")), ("MISSING", None)),
    ]
    done = verify(tmp_path, [each for each, _ in expected], use_cache=False, workers=3)
    assert places(done) == [place for _, place in expected]
    assert "a/x has the same name, but: expected md5" in done.results[-1].detail
    assert done.bytes_read == len("P" + "damaged" + "1" + "2" + "3")


def test_another_file_of_the_list_is_not_taken_for_the_missing_one(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a/x": "same"})
    expected = [Expectation("b/x", md5("same")), Expectation("a/x", md5("same"))]
    for each in (expected, iter(expected)):
        assert verdicts(verify(tmp_path, each)) == [("b/x", "MISSING"), ("a/x", "OK")]


def test_files_that_are_not_expected_are_extra(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a": "A", "sub/b": "B", "sub/c": "C", "moved/d": "D", "LIST": "x"})
    write_tree(tmp_path, {"sub/e.part": "", ".facedata-x/f": ""})
    expected = [Expectation("./a", md5("A")), Expectation("sub/../sub/b", md5("B")), Expectation("d", md5("D"))]
    done = verify(tmp_path, expected, extra_in=[""], not_extra=["LIST"])
    assert verdicts(done)[3:] == [("sub/c", "EXTRA")]
    assert done.good
    assert verdicts(verify(tmp_path, expected, extra_in=["sub"]))[3:] == [("sub/c", "EXTRA")]
    assert verify(tmp_path, expected).verdicts == {"OK": 3}


def test_a_file_that_may_not_be_read_fails_by_name() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = write_tree(Path(name), {"secret": "x"})
        root.chmod(0o755)
        (root / "secret").chmod(0)

        def call() -> None:
            (result,) = verify(root, [Expectation("secret", md5("x"))], use_cache=False).results
            raise ValueError(f"{result.verdict} {result.detail}")

        assert raised_without_root(call).startswith("ValueError: FAILED no permission to read it")


def test_a_second_call_reads_nothing(tmp_path: Path) -> None:
    def put(files: dict[str, str]) -> None:
        write_tree(tmp_path, files)
        for name in files:
            os.utime(tmp_path / name, (1e9, 1e9))  # they have been there for a while

    put({"a": "A", "b": "wrong", "moved/c": "C"})
    expected = [Expectation(name, md5(name.upper())) for name in ("a", "b", "c")]
    first = verify(tmp_path, expected)
    again = verify(tmp_path, expected)
    assert verdicts(again) == verdicts(first) == [("a", "OK"), ("b", "FAILED"), ("c", "OK")]
    assert [(done.from_cache, done.bytes_read) for done in (first, again)] == [(0, 7), (3, 0)]
    assert verify(tmp_path, expected, use_cache=False).bytes_read == 7
    put({"b": "B"})
    assert verdicts(verify(tmp_path, expected))[1] == ("b", "OK")


def test_a_root_that_is_not_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputNotFoundError, match="nowhere: no such file or folder"):
        verify(tmp_path / "nowhere", [])
    with pytest.raises(InputError, match="file: is not a folder"):
        verify(tmp_path / "file", [])


def test_the_observer_is_called_with_bytes(tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(100_000_000)
    heard: list[tuple[int, int]] = []
    verify(tmp_path, [Expectation("large", md5(""))], observer=lambda *both: heard.append(both), use_cache=False)
    assert heard == sorted(heard)
    assert {total for _, total in heard} == {100_000_000}


def test_many_files_of_few_names_are_found_elsewhere_in_time(tmp_path: Path) -> None:
    paths = [f"{folder}/{name}.jpg" for folder in range(250) for name in range(5)]
    write_tree(tmp_path / "moved", {path: path for path in paths})
    begin = time.monotonic()
    done = verify(tmp_path, [Expectation(path, md5(path)) for path in paths])
    assert time.monotonic() - begin < 10  # it took minutes
    assert places(done) == [("OK", f"moved/{path}") for path in paths]


@pytest.mark.parametrize("count", [10, (1 << 17) + 10])  # many are sorted in another way
def test_a_set_of_names(count: int) -> None:
    names = HashedNames()
    for number in range(count):
        names.add(f"name {number}")
        assert number > 3 or f"name {number}" in names
    assert all(f"name {number}" in names for number in range(0, count, 999))
    assert not any(f"other {number}" in names for number in range(100))


def test_missing_files_are_found_by_the_longest_end_of_their_paths() -> None:
    index = NameIndex(["x", "a/x", "b/c/x", "d/c/x", "a/y", "z/c/w"], {"x", "y"})
    everywhere = ["a/x", "b/c/x", "d/c/x", "x"]
    found = {"c/x": ["b/c/x", "d/c/x"], "d/c/x": ["d/c/x"], "q/x": everywhere, "x": everywhere}
    found |= {"y": ["a/y"], "w": [], "nope": []}
    assert {path: index.find(path) for path in found} == found
    many = NameIndex((f"moved/{folder}/x" for folder in range(1001)), {"x"})
    assert (many.find("other/x"), many.find("7/x")) == ([], ["moved/7/x"])


def test_results_come_in_order_and_as_early_as_possible() -> None:
    release = threading.Event()
    work = [lambda: 0, lambda: release.wait(20) and 1, lambda: 2, lambda: 3]
    results = run_in_order([Task(each, 2 << 20) for each in work], Meter(), workers=2)
    assert next(results) == 0
    release.set()
    assert list(results) == [1, 2, 3]


def test_memory_does_not_grow_with_the_number_of_files() -> None:
    def consume(count: int) -> None:
        for _ in run_in_order((Task(lambda: bytes(1000), 1) for _ in range(count)), Meter(), workers=2):
            pass

    consume(10)
    assert peak_bytes(lambda: consume(8_000)) < 5_000_000


def test_an_error_in_a_thread_is_raised_and_ends_all_threads() -> None:
    def fail() -> int:
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        list(run_in_order([Task(fail, 1 << 21) for _ in range(10)], Meter(), workers=3))
