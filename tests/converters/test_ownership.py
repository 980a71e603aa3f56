"""What a job takes for its own, in every format: nothing else is replaced, nothing of it that is gone is forgotten."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from format_support import HERE, numbered
from support import forked, tree

from facedata.converters.convert import plan_conversion, run_conversion
from facedata.converters.folder.sink import FolderSink
from facedata.dataset import Sink, create_dataset
from facedata.errors import OutputExistsError, OutputMismatchError
from facedata.jobs.engine import Progress
from facedata.jobs.job import JobOptions, JobSummary
from facedata.jobs.journal import Journal, JournalWriter

FORMATS = ("folder", "webdataset", "parquet", "rec", "lmdb")
JOURNAL = "out/.facedata-journal.jsonl"


def write(folder: Path, name: str, job: JobOptions = HERE) -> JobSummary:
    """Write four shards of six images."""
    if name == "list":
        sink: Sink = FolderSink(f"{folder}/out", list_file=str(folder / "list.txt"))
    else:
        options = {"shard_samples": 6} if name in ("webdataset", "parquet") else {}
        sink = create_dataset(f"{name}:{folder}/out", **options)
    return run_conversion(plan_conversion("test", numbered(24), sink, ends=(6, 12, 18, 24)), job)


def interrupt(folder: Path, name: str, owner: type = JournalWriter, method: str = "append", calls: int = 3) -> None:
    """Run the job in a process that is killed after some calls of a method: by default, when two shards are done."""
    original, left = getattr(owner, method), calls

    def counted(*arguments: object) -> object:
        nonlocal left
        result = original(*arguments)
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def doomed() -> None:
        setattr(owner, method, counted)
        write(folder, name)

    assert forked(doomed) == -signal.SIGKILL


def content(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(folder).items() if "/.facedata-" not in name}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The folder of the job that is tested."""
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


@pytest.fixture
def whole(tmp_path: Path) -> Callable[[str], dict[str, bytes]]:
    """The files of an undisturbed job."""

    def whole(name: str) -> dict[str, bytes]:
        (tmp_path / "whole").mkdir()
        write(tmp_path / "whole", name)
        return content(tmp_path / "whole")

    return whole


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("folder", "out/id_3/3_13.jpg"),
        ("list", "list.txt"),
        ("webdataset", "out/shard-000003.tar"),
        ("parquet", "out/train-00003-of-00004.parquet"),
        *(("rec", f"out/{file}") for file in ("train.rec", "train.idx", "property")),
        ("lmdb", "out/data.mdb"),
        ("lmdb", "out_kv.txt"),
    ],
)
def test_a_file_that_appears_during_an_interruption_is_refused_by_name(
    here: Path, whole: Callable[[str], dict[str, bytes]], name: str, file: str
) -> None:
    interrupt(here, name)
    before = (here / JOURNAL).read_bytes()
    (here / file).parent.mkdir(exist_ok=True)
    (here / file).write_bytes(b"precious")
    with pytest.raises(OutputExistsError, match=f"{file}: appeared"):
        write(here, name)
    assert (here / file).read_bytes() == b"precious"
    done = (here / JOURNAL).read_bytes().count(b"digest") - before.count(b"digest")
    assert done <= 1  # at once, with at most what was done beside it
    (here / file).unlink()
    assert write(here, name).finished
    assert content(here) == whole(name)


@pytest.mark.parametrize("name", ["list", "rec", "lmdb"])
def test_what_a_killed_run_has_published_is_recognised(
    here: Path, whole: Callable[[str], dict[str, bytes]], name: str
) -> None:
    interrupt(here, name, Journal, "publish", 1)
    published = content(here).keys() - {path for path in content(here) if ".jpg" in path}
    assert len(published) == 1
    assert write(here, name).finished
    assert content(here) == whole(name)


@pytest.mark.parametrize(
    ("name", "file", "size"),
    [
        ("folder", "out/id_0", None),
        ("folder", "out/id_2/2_9.jpg", None),
        ("list", "out/.facedata-list/00000001", 5),
        ("webdataset", "out/shard-000001.tar", None),
        ("webdataset", "out/shard-000001.tar", 1024),
        ("parquet", "out/train-00000-of-00004.parquet", None),
    ],
)
def test_what_is_gone_or_cut_when_the_job_ends_is_named_and_written_again(
    here: Path, whole: Callable[[str], dict[str, bytes]], name: str, file: str, size: int | None
) -> None:
    interrupt(here, name)
    lost = here / file
    if size is not None:
        os.truncate(lost, size)
    else:
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    with pytest.raises(OutputMismatchError, match=f"{file.removesuffix('.jpg')}.*: this job wrote it, but it"):
        write(here, name)
    if size is not None:
        lost.unlink()
    assert write(here, name).finished
    assert content(here) == whole(name)


@pytest.mark.parametrize("name", FORMATS)
def test_a_job_that_is_moved_away_writes_nothing_to_what_takes_its_name(
    here: Path, whole: Callable[[str], dict[str, bytes]], name: str
) -> None:

    def move(progress: Progress) -> None:
        if progress.done and not (here / "moved").exists():
            (here / "out").rename(here / "moved")
            (here / "out").mkdir()

    with pytest.raises(OutputMismatchError, match="out: was moved away or replaced while this job was writing it"):
        write(here, name, replace(HERE, observer=move))
    (here / "out").rmdir()  # it is empty
    (here / "moved").rename(here / "out")
    assert write(here, name).finished
    assert content(here) == whole(name)
