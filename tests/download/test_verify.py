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

from facedata.download import elsewhere, finding
from facedata.download.checksums import hash_file
from facedata.download.digest import Digest
from facedata.download.finding import NameIndex, walk_files
from facedata.download.readers import Meter, Task, read_in_order
from facedata.download.structure import IndexLines, RecordFile
from facedata.download.verify import Expectation, Result, Verification, verify
from facedata.errors import InputError, InputNotFoundError, InterruptedJobError
from facedata.jobs.signals import StopRequest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


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


def test_each_file_gets_its_verdict_in_order(tmp_path: Path) -> None:
    put(tmp_path, b="B", a="wrong", c="C")
    expected = [Expectation(name, md5(name.upper())) for name in ("b", "a", "nope", "c")]
    done = verify(tmp_path, expected, use_cache=False)
    assert verdicts(done) == [("b", "OK"), ("a", "FAILED"), ("nope", "MISSING"), ("c", "OK")]
    assert not done.good
    assert done.results[1].detail == f"expected {md5('A')}, found {md5('wrong').value}"
    assert (done.hows["checksum"], done.bytes_read) == (2, 7)


def test_a_file_known_under_its_wrong_checksum_is_named(tmp_path: Path) -> None:
    put(tmp_path, part="old")
    known = {md5("old").value: "the first release"}
    result = only(verify(tmp_path, [Expectation("part", md5("new"), known=known)]))
    assert result.detail.endswith(f"found {md5('old').value}: it is the first release")


def test_a_wrong_size_is_told_without_reading(tmp_path: Path) -> None:
    put(tmp_path, a="12345")
    done = verify(tmp_path, [Expectation("a", md5("123456"), size=6)])
    assert (only(done).how, only(done).detail, done.bytes_read) == ("size", "expected 6 bytes, found 5", 0)


def test_what_was_checked_is_said_where_no_checksum_exists(tmp_path: Path) -> None:
    put(tmp_path, train_idx="0\t0\n1\t8\n", property="2,112,112\n", lfw_bin="12345")
    done = verify(
        tmp_path,
        [
            Expectation("train.idx", structure=IndexLines(2)),
            Expectation("property"),
            Expectation("lfw.bin", size=5),
            Expectation("train.rec", structure=RecordFile(), optional=True),
        ],
    )
    assert [(one.verdict, one.how, one.detail) for one in done.results] == [
        ("OK", "structure", "2 lines"),
        ("OK", "presence", "present; nothing published to check it against"),
        ("OK", "size", "no checksum published; its size is right: 5"),
    ]


def test_a_broken_structure_fails(tmp_path: Path) -> None:
    put(tmp_path, train_idx="0\t0\nnonsense\n", a__train_rec="12345")
    done = verify(
        tmp_path,
        [Expectation("train.idx", structure=IndexLines(2)), Expectation("a/train.rec", structure=RecordFile())],
    )
    assert verdicts(done) == [("train.idx", "FAILED"), ("a/train.rec", "FAILED")]
    assert "line 2 is 'nonsense'" in done.results[0].detail
    assert "cannot be checked" in done.results[1].detail


def test_a_file_is_found_by_its_name(tmp_path: Path) -> None:
    put(tmp_path, data__features__part_bin="P", other__part_bin="other")
    result = only(verify(tmp_path, [Expectation("features/part.bin", md5("P"))]))
    assert (result.verdict, result.found_at) == ("OK", "data/features/part.bin")


def test_of_several_of_a_name_the_one_that_fits_is_found_and_each_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, a__x="1", b__x="2", c__x="3")
    read: list[str] = []

    def noting(path: str, *arguments: object, **options: object) -> object:
        read.append(os.path.relpath(path, tmp_path))
        return original(path, *arguments, **options)  # type: ignore[arg-type]

    original = hash_file
    monkeypatch.setattr("facedata.download.verify.hash_file", noting)
    expected = [Expectation(f"{folder}/x", md5(content)) for folder, content in (("p", "3"), ("q", "2"), ("r", "9"))]
    done = verify(tmp_path, expected, use_cache=False, workers=3)
    assert [(one.verdict, one.found_at) for one in done.results] == [("OK", "c/x"), ("OK", "b/x"), ("MISSING", None)]
    assert "not there; a/x has its name, but: expected md5" in done.results[2].detail
    assert sorted(read) == ["a/x", "b/x", "c/x"]


def test_a_damaged_file_under_its_whole_path_has_failed(tmp_path: Path) -> None:
    put(tmp_path, extracted__glint__train_rec="damaged")
    result = only(verify(tmp_path, [Expectation("glint/train.rec", md5("whole"))]))
    assert (result.verdict, result.found_at) == ("FAILED", "extracted/glint/train.rec")


def test_another_file_of_the_list_is_not_taken_for_the_missing_one(tmp_path: Path) -> None:
    put(tmp_path, a__x="same")
    expected = [Expectation("b/x", md5("same")), Expectation("a/x", md5("same"))]
    assert verdicts(verify(tmp_path, expected)) == [("b/x", "MISSING"), ("a/x", "OK")]
    assert verdicts(verify(tmp_path, iter(expected))) == [("b/x", "MISSING"), ("a/x", "OK")]


def test_a_mere_name_is_not_enough_to_be_found(tmp_path: Path) -> None:
    put(tmp_path, casia__property="1", x__glint__property="2")
    done = verify(tmp_path, [Expectation("glint/property"), Expectation("ms1m/property")])
    assert verdicts(done) == [("glint/property", "OK"), ("ms1m/property", "MISSING")]


def test_files_that_nobody_expects_are_extra(tmp_path: Path) -> None:
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


def test_what_is_no_file_fails_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    done = verify(tmp_path, [Expectation("pipe", md5("")), Expectation("folder", md5(""))])
    assert [one.detail for one in done.results] == ["is a named pipe, not a file", "is a folder, not a file"]


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


def test_a_root_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputNotFoundError, match="nowhere: no such file or folder"):
        verify(tmp_path / "nowhere", [])
    with pytest.raises(InputError, match="file: is not a folder"):
        verify(tmp_path / "file", [])


def test_a_stop_keeps_what_is_done(tmp_path: Path) -> None:
    put(tmp_path, **{f"f{number}": "x" for number in range(50)})
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 40)
    stop = StopRequest()
    expected = [*(Expectation(f"f{number}", md5("x")) for number in range(50)), Expectation("large", md5("x"))]
    seen: list[Result] = []

    def note(result: Result) -> None:
        seen.append(result)
        if len(seen) == 50:
            stop.count, stop.signal_name = 1, "SIGINT"

    begin = time.monotonic()
    with pytest.raises(InterruptedJobError, match="stopped by SIGINT; 50 files were checked; run the same command"):
        verify(tmp_path, expected, stop=stop, on_result=note, workers=2)
    assert time.monotonic() - begin < 5
    assert verify(tmp_path, expected[:50]).from_cache == 50


def test_the_observer_hears_of_bytes(tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(400_000_000)
    heard: list[tuple[int, int]] = []
    verify(tmp_path, [Expectation("large", md5(""))], observer=lambda *both: heard.append(both), use_cache=False)
    assert heard
    assert heard == sorted(heard)
    assert {total for _, total in heard} == {400_000_000}


def test_answers_come_in_order_and_as_early_as_they_can() -> None:
    release = threading.Event()

    def slow(_: Meter) -> int:
        release.wait(20)
        return 1

    def number(value: int) -> Task[int]:
        return Task(lambda _: value, size=1 << 21)

    answers = read_in_order([number(0), Task(slow, size=3 << 20), number(2), number(3)], workers=2)
    assert next(answers) == 0
    release.set()
    assert list(answers) == [1, 2, 3]


def test_memory_does_not_grow_with_the_number_of_files() -> None:
    def tasks(count: int) -> Iterator[Task[bytes]]:
        return (Task(lambda _: bytes(1000), size=1) for _ in range(count))

    def consume(count: int) -> None:
        for _ in read_in_order(tasks(count), workers=2):
            pass

    consume(10)
    assert peak_bytes(lambda: consume(20_000)) < 5_000_000


def test_an_error_in_a_thread_is_raised_and_ends_all_threads() -> None:
    def fail(_: Meter) -> int:
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        list(read_in_order([Task(fail, size=1 << 21) for _ in range(10)], workers=3))


def test_the_index_of_names_is_the_same_with_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, a__x="", b__c__x="", b__y="", z="")
    for few in (0, 1 << 17):
        monkeypatch.setattr(finding, "_FEW", few)
        index = NameIndex(str(tmp_path), walk_files(str(tmp_path)))
        assert sorted(index.find("x")) == ["a/x", "b/c/x"]
        assert (index.find("y"), index.find("z"), index.find("nope")) == (["b/y"], ["z"], [])


def test_a_link_in_a_circle_does_not_hide_its_neighbours(tmp_path: Path) -> None:
    put(tmp_path, a="", b="", c="", d="", sub__e="")
    for name in ("loop", "other"):
        (tmp_path / name).symlink_to(name)
    told: list[str] = []
    found = list(walk_files(str(tmp_path), complain=lambda path, *_: told.append(os.path.basename(path))))
    assert (found, sorted(told)) == (["a", "b", "c", "d", "sub/e"], ["loop", "other"])


def test_many_files_of_few_names_are_found_elsewhere_in_time(tmp_path: Path) -> None:
    expected = []
    for folder in range(1000):
        (tmp_path / "moved" / f"{folder}").mkdir(parents=True)
        for name in range(5):
            (tmp_path / "moved" / f"{folder}" / f"{name}.jpg").write_text(f"{folder} {name}")
            expected.append(Expectation(f"{folder}/{name}.jpg", md5(f"{folder} {name}")))
    begin = time.monotonic()
    done = verify(tmp_path, expected)
    assert time.monotonic() - begin < 10  # it took minutes
    assert done.verdicts == {"OK": 5000}
    assert done.results[-1].found_at == "moved/999/4.jpg"


def test_looking_for_names_that_everything_has_ends_some_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(elsewhere, "_FEW", 10)
    monkeypatch.setattr(elsewhere, "_MOST_LOOKS", 50)
    put(tmp_path, **{f"moved__{folder}__x": f"{folder}" for folder in range(20)})
    done = verify(tmp_path, [Expectation(f"other{folder}/x", md5(f"{folder}")) for folder in range(6)])
    assert done.verdicts == {"OK": 2, "MISSING": 4}
    assert caplog.text.count("very many files") == 1
