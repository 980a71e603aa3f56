"""Inputs that change while a job is not running, and I/O errors that pass."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from facedata.converters.class_names import read_class_names_in
from facedata.converters.convert import convert_dataset
from facedata.errors import FormatError, InputChangedError, InterruptedJobError
from facedata.files import retried
from facedata.jobs.job import JobOptions
from facedata.jobs.plan import InputTimes


def _photos(folder: Path) -> Path:
    for person in ("a", "b"):
        (folder / person).mkdir(parents=True)
        for number in range(20):
            (folder / person / f"{number:02}.jpg").write_bytes(b"\xff\xd8\xff\xe0" + f"{person}{number:02}".encode())
    return folder


def _fail_at(monkeypatch: pytest.MonkeyPatch, data: bytes, code: int, times: int, output: Path) -> None:
    """Let reading a file that holds `data` fail so many times, once the job has begun."""
    real, left = os.pread, [times]

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        found = real(descriptor, length, offset)
        if data in found and left[0] and (output / ".facedata-plan.json").exists():
            left[0] -= 1
            raise OSError(code, os.strerror(code))
        return found

    monkeypatch.setattr("facedata.files._PAUSES", (0.0, 0.0, None))
    monkeypatch.setattr(os, "pread", pread)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE])
@pytest.mark.parametrize("target", ["folder", "lmdb"])
def test_an_error_that_passes_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, target: str
) -> None:
    _fail_at(monkeypatch, b"b07", code, 2, tmp_path / "out")
    summary = convert_dataset([f"folder:{_photos(tmp_path / 'in')}"], f"{target}:{tmp_path / 'out'}")
    assert summary.good
    assert summary.samples == 40


@pytest.mark.parametrize("target", ["folder", "lmdb"])
def test_the_same_command_tries_again_what_could_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    names = [f"folder:{_photos(tmp_path / 'in')}"], f"{target}:{tmp_path / 'out'}"
    with monkeypatch.context() as patch:
        _fail_at(patch, b"b07", errno.EIO, 1000, tmp_path / "out")
        summary = convert_dataset(*names)
        failures = (tmp_path / "out" / "failures.jsonl").read_text()
        assert (summary.finished, summary.good, summary.failed_shards) == (False, False, 1)
        assert '"key": "b/07.jpg"' in failures
        assert '"transient": true' in failures
    summary = convert_dataset(*names)
    assert summary.finished
    assert summary.good
    assert summary.samples == 40
    assert not (tmp_path / "out" / "failures.jsonl").exists()


def test_max_failures_gives_up_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_at(monkeypatch, b"b07", errno.EIO, 1000, tmp_path / "out")
    names = [f"folder:{_photos(tmp_path / 'in')}"], f"folder:{tmp_path / 'out'}"
    summary = convert_dataset(*names, job=JobOptions(max_failures=1))
    assert summary.finished
    assert summary.good
    assert (summary.samples, summary.failures) == (39, 1)


def test_other_errors_are_not_tried_again() -> None:
    calls = []

    def read() -> None:
        calls.append(1)
        raise OSError(errno.EISDIR, "Is a directory")

    with pytest.raises(IsADirectoryError):
        retried(read)
    assert len(calls) == 1


def _interrupted(source: str, target: str) -> None:
    """Begin a job that is stopped before it has finished."""

    def stop(_: object) -> None:
        raise InterruptedJobError("stopped")

    with pytest.raises(InterruptedJobError):
        convert_dataset([source], target, job=JobOptions(workers=1, observer=stop))


@pytest.mark.parametrize("how", ["rewritten", "renamed", "time"])
@pytest.mark.parametrize("format_name", ["rec", "lmdb", "list", "webdataset"])
def test_a_resume_refuses_a_file_that_has_changed(tmp_path: Path, format_name: str, how: str) -> None:
    photos = _photos(tmp_path / "in")
    names = {"rec": "set/train.rec", "lmdb": "set/data.mdb", "list": "list.txt", "webdataset": "set/000000.tar"}
    path, spec = tmp_path / names[format_name], f"{format_name}:{tmp_path / 'set'}"
    if format_name == "list":
        path.write_text("".join(f"{p}/{n:02}.jpg {p == 'b':d}\n" for p in "ab" for n in range(20)))
        spec = f"list:{path}@{photos}"
    else:
        convert_dataset([f"folder:{photos}"], f"{format_name}:{tmp_path / 'set'}")
        path = path if path.exists() else next((tmp_path / "set").glob("*.tar"))
    target = f"folder:{tmp_path / 'out'}"
    _interrupted(spec, target)
    status, copy = path.stat(), tmp_path / "copy"
    shutil.copy2(path, copy)
    if how == "rewritten":
        path.write_bytes(copy.read_bytes())
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # only the time of the inode shows it
    elif how == "renamed":
        copy.replace(path)
    else:
        os.utime(path, ns=(0, status.st_mtime_ns - 10**10))
    with pytest.raises(InputChangedError, match=rf"{path.name}: has changed .* --overwrite .* --trust-input"):
        convert_dataset([spec], target)
    summary = convert_dataset([spec], target, job=JobOptions(trust_input=True))
    assert summary.finished
    assert summary.samples == 40


def test_an_image_that_has_changed_is_refused_when_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, target = f"folder:{_photos(tmp_path / 'in')}", f"folder:{tmp_path / 'out'}"
    with monkeypatch.context() as patch:  # so that nothing is done yet
        _fail_at(patch, b"b19", errno.EIO, 1000, tmp_path / "out")
        assert not convert_dataset([spec], target).finished
    image = tmp_path / "in" / "b" / "07.jpg"
    with open(image, "r+b") as file:
        file.seek(4)
        file.write(b"c07")
    with pytest.raises(InputChangedError, match=r"07\.jpg: has changed"):
        convert_dataset([spec], target)
    assert convert_dataset([spec], target, job=JobOptions(overwrite=True)).good


def test_a_file_that_changes_while_the_job_runs_is_reported(tmp_path: Path) -> None:
    convert_dataset([f"folder:{_photos(tmp_path / 'in')}"], f"rec:{tmp_path / 'set'}")

    def touch(_: object) -> None:
        os.utime(tmp_path / "set" / "train.rec")

    with pytest.raises(InputChangedError, match=r"train\.rec: has changed"):
        convert_dataset([f"rec:{tmp_path / 'set'}"], f"folder:{tmp_path / 'out'}", job=JobOptions(observer=touch))
    assert not (tmp_path / "out" / ".facedata-summary.json").exists()


def test_a_copy_elsewhere_is_the_same_input_if_it_has_the_time(tmp_path: Path) -> None:
    path, copy = tmp_path / "a.rec", tmp_path / "copy" / "a.rec"
    path.write_bytes(b"1")
    copy.parent.mkdir()
    shutil.copy2(path, copy)
    before = InputTimes.of([str(path)])
    os.utime(copy, ns=(0, path.stat().st_mtime_ns // 10**9 * 10**9))  # some file systems keep only seconds
    assert before.changed(InputTimes.of([str(copy)])) is None
    os.utime(copy, ns=(0, path.stat().st_mtime_ns + 3 * 10**9))
    assert before.changed(InputTimes.of([str(copy)])) == str(copy)


@pytest.mark.parametrize("text", [b"0\ta\n1\tb\nx", b"0\ta\n0\tb\n"], ids=["cut", "twice"])
def test_class_names_of_ours_are_not_lost_silently(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "classes.txt").write_bytes(text)
    with pytest.raises(FormatError, match=r"classes\.txt: line"):
        read_class_names_in(tmp_path)


def test_a_foreign_classes_txt_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "classes.txt").write_bytes(b"person\ncar\n")
    assert read_class_names_in(tmp_path) is None
    assert "line 1: expected 'label<TAB>name'" in caplog.text
    (tmp_path / ".facedata-summary.json").touch()
    with pytest.raises(FormatError, match="line 1"):
        read_class_names_in(tmp_path)
