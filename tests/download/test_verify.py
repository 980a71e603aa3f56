from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import peak_bytes, raised_without_root

from facedata.download.checksums import Digest
from facedata.download.expectations import IndexLines, RecordFile
from facedata.download.verify import Expectation, Result, Verification, verify
from facedata.download.walk import HashedNames, Meter, NameIndex, Task, run_in_order
from facedata.errors import InputError, InputNotFoundError


def md5(content: str | bytes) -> Digest:
    return Digest("md5", hashlib.md5(content.encode() if isinstance(content, str) else content).hexdigest())


def put(root: Path, **files: str) -> None:
    """Files that have been there for a while; __ is a folder's slash, _ the dot."""
    for key, content in files.items():
        path = root / key.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        os.utime(path, (1e9, 1e9))


def verdicts(done: Verification) -> list[tuple[str, str]]:
    return [(result.path, result.verdict) for result in done.results]


def only(done: Verification) -> Result:
    (result,) = done.results
    return result


def test_each_file_gets_its_verdict_in_order_and_what_is_wrong_is_named(tmp_path: Path) -> None:
    put(tmp_path, b="B", a="old", short="12345", c="C")
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
    put(tmp_path, train_idx="0\t0\n1\t8\n", wrong_idx="0\t0\nnonsense\n", property="2,112,112\n", lfw_bin="12345")
    put(tmp_path, a__train_rec="12345")
    done = verify(
        tmp_path,
        [
            Expectation("train.idx", structure=IndexLines(2)),
            Expectation("property"),
            Expectation("lfw.bin", size=5),
            Expectation("none.rec", structure=RecordFile(), optional=True),
            Expectation("wrong.idx", structure=IndexLines(2)),
            Expectation("a/train.rec", structure=RecordFile()),
        ],
    )
    assert [(result.verdict, result.how, result.detail) for result in done.results[:3]] == [
        ("OK", "structure", "2 lines"),
        ("OK", "presence", "present; nothing is published to check it against"),
        ("OK", "size", "no checksum is published; the size is right: 5"),
    ]
    assert verdicts(done)[3:] == [("wrong.idx", "FAILED"), ("a/train.rec", "FAILED")]
    assert "line 2 is 'nonsense'" in done.results[3].detail
    assert "cannot be checked" in done.results[4].detail


@pytest.mark.parametrize(
    ("path", "digest", "verdict", "found_at"),
    [
        ("features/part.bin", md5("P"), "OK", "data/features/part.bin"),
        ("glint/train.rec", md5("whole"), "FAILED", "moved/glint/train.rec"),  # damaged, under its whole path
        ("glint/property", None, "OK", "moved/glint/property"),
        ("ms1m/property", None, "MISSING", None),  # the name alone is not enough
    ],
)
def test_a_file_is_found_by_its_name(
    tmp_path: Path, path: str, digest: Digest | None, verdict: str, found_at: str | None
) -> None:
    put(tmp_path, data__features__part_bin="P", other__part_bin="other", moved__glint__train_rec="damaged")
    put(tmp_path, casia__property="1", moved__glint__property="2")
    result = only(verify(tmp_path, [Expectation(path, digest)]))
    assert (result.verdict, result.found_at) == (verdict, found_at)


def test_of_several_files_of_a_name_the_right_one_is_found_and_each_is_read_once(tmp_path: Path) -> None:
    put(tmp_path, a__x="1", b__x="2", c__x="3")
    expected = [Expectation(f"{folder}/x", md5(content)) for folder, content in (("p", "3"), ("q", "2"), ("r", "9"))]
    done = verify(tmp_path, expected, use_cache=False, workers=3)
    assert [(result.verdict, result.found_at) for result in done.results] == [
        ("OK", "c/x"),
        ("OK", "b/x"),
        ("MISSING", None),
    ]
    assert "a/x has the same name, but: expected md5" in done.results[2].detail
    assert done.bytes_read == 3


def test_another_file_of_the_list_is_not_taken_for_the_missing_one(tmp_path: Path) -> None:
    put(tmp_path, a__x="same")
    expected = [Expectation("b/x", md5("same")), Expectation("a/x", md5("same"))]
    assert verdicts(verify(tmp_path, expected)) == [("b/x", "MISSING"), ("a/x", "OK")]
    assert verdicts(verify(tmp_path, iter(expected))) == [("b/x", "MISSING"), ("a/x", "OK")]


def test_files_that_are_not_expected_are_extra(tmp_path: Path) -> None:
    put(tmp_path, a="A", sub__b="B", sub__c="C", moved__d="D", LIST="x")
    (tmp_path / "sub" / "e.part").write_text("")
    (tmp_path / ".facedata-x").mkdir()
    (tmp_path / ".facedata-x" / "f").write_text("")
    expected = [Expectation("./a", md5("A")), Expectation("sub/../sub/b", md5("B")), Expectation("d", md5("D"))]
    done = verify(tmp_path, expected, extra_in=[""], not_extra=["LIST"])
    assert verdicts(done)[3:] == [("sub/c", "EXTRA")]
    assert done.good
    assert verdicts(verify(tmp_path, expected, extra_in=["sub"]))[3:] == [("sub/c", "EXTRA")]
    assert verify(tmp_path, expected).verdicts == {"OK": 3}


def test_a_file_that_may_not_be_read_fails_by_name() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "secret").write_text("x")
        (root / "secret").chmod(0)

        def call() -> None:
            result = only(verify(root, [Expectation("secret", md5("x"))], use_cache=False))
            raise ValueError(f"{result.verdict} {result.detail}")

        assert raised_without_root(call).startswith("ValueError: FAILED no permission to read it")


def test_a_second_call_reads_nothing(tmp_path: Path) -> None:
    put(tmp_path, a="A", b="wrong", moved__c="C")
    expected = [Expectation(name, md5(name.upper())) for name in ("a", "b", "c")]
    first = verify(tmp_path, expected)
    again = verify(tmp_path, expected)
    assert verdicts(again) == verdicts(first) == [("a", "OK"), ("b", "FAILED"), ("c", "OK")]
    assert (first.from_cache, first.bytes_read) == (0, 7)
    assert (again.from_cache, again.bytes_read) == (3, 0)
    assert verify(tmp_path, expected, use_cache=False).bytes_read == 7
    put(tmp_path, b="B")
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
    assert heard
    assert heard == sorted(heard)
    assert {total for _, total in heard} == {100_000_000}


def test_many_files_of_few_names_are_found_elsewhere_in_time(tmp_path: Path) -> None:
    expected = []
    for folder in range(250):
        (tmp_path / "moved" / f"{folder}").mkdir(parents=True)
        for name in range(5):
            (tmp_path / "moved" / f"{folder}" / f"{name}.jpg").write_text(f"{folder} {name}")
            expected.append(Expectation(f"{folder}/{name}.jpg", md5(f"{folder} {name}")))
    begin = time.monotonic()
    done = verify(tmp_path, expected)
    assert time.monotonic() - begin < 10  # it took minutes
    assert done.verdicts == {"OK": 1250}
    assert done.results[-1].found_at == "moved/249/4.jpg"


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
