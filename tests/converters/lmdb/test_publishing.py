"""The files of a database get their names: from another disk, compacted, killed on the way; nothing is replaced."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lmdb_support import build, samples
from support import forked

from facedata.errors import OutputExistsError
from facedata.jobs.job import JobSummary
from facedata.jobs.journal import Journal

COMPACTED: dict[str, Any] = {"keys": "path", "map_size": 1 << 16}
"""Options of a build that leaves many free pages; one in a single shard leaves none."""
TEMPORARY = ".facedata-temporary-"


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def killed_build(path: Path, name: str, **options: Any) -> None:
    """Build in a process that is killed when it is about to remove the file `name`, or to write the summary."""
    remove = os.unlink

    def killed(removed: Any, *_: Any, **where: Any) -> None:
        if os.path.basename(getattr(removed, "folder", removed)) == name:
            os.kill(os.getpid(), signal.SIGKILL)
        remove(removed, **where)

    def doomed() -> None:
        pytest.MonkeyPatch().setattr(os, "unlink", killed)
        pytest.MonkeyPatch().setattr(Journal, "write_summary", killed)
        build_again(path, **options)

    assert forked(doomed) == -signal.SIGKILL, f"{name} was not about to be removed"


def build_again(path: Path, **options: Any) -> JobSummary:
    return build(path, samples(90), **options)


@pytest.mark.parametrize("killed_at", ["kv.txt", "data.mdb"])
def test_killed_after_a_copy_to_another_disk_it_resumes(tmp_path: Path, other_disk: Path, killed_at: str) -> None:
    """The database is copied from there, the key-label file is copied there."""
    path, kv, scratch = tmp_path / "a.lmdb", other_disk / "kv.txt", other_disk / "scratch"
    options: dict[str, Any] = {"shards": 1, "kv": str(kv), "build_dir": str(scratch)}
    killed_build(path, killed_at, **options)
    if killed_at == "kv.txt":
        copied, built = kv, path / ".facedata-building" / "kv.txt"
    else:
        copied, built = path / "data.mdb", next(scratch.rglob("data.mdb"))
    content = copied.read_bytes()
    assert content == built.read_bytes()
    # a file of the same size and name that somebody else put there is not taken for the job's own
    copied.rename(aside := copied.with_suffix(".aside"))
    copied.write_bytes(bytes(len(content)))
    with pytest.raises(OutputExistsError, match=f"{copied}: appeared after this job began"):
        build_again(path, **options)
    assert copied.read_bytes() == bytes(len(content))
    aside.rename(copied)
    assert build_again(path, **options).finished
    build_again(tmp_path / "whole" / "a.lmdb", shards=1, kv=str(tmp_path / "kv.txt"))
    assert (path / "data.mdb").read_bytes() == (tmp_path / "whole" / "a.lmdb" / "data.mdb").read_bytes()
    assert kv.read_bytes() == (tmp_path / "kv.txt").read_bytes()
    assert not list(other_disk.rglob("data.mdb"))
    assert not [file for folder in (tmp_path, other_disk) for file in folder.rglob(f"{TEMPORARY}*")]


def test_killed_after_the_compacted_copy_got_its_name_it_resumes(tmp_path: Path) -> None:
    path = tmp_path / "a.lmdb"
    killed_build(path, path.name, **COMPACTED)
    content = (path / "data.mdb").read_bytes()
    assert len(content) < (path / ".facedata-building" / "data.mdb").stat().st_size
    assert build_again(path, **COMPACTED).finished
    assert (path / "data.mdb").read_bytes() == content
    assert not list(tmp_path.rglob(f"{TEMPORARY}*"))
    assert not (path / ".facedata-building").exists()


def refused(path: Path, **options: Any) -> None:
    with pytest.raises(OutputExistsError, match=r"data\.mdb: appeared while this job was running"):
        build_again(path, **options)
    assert (path / "data.mdb").read_text() == "of somebody else"
    assert not list(path.rglob(f"{TEMPORARY}*"))
    (path / "data.mdb").unlink()


def test_a_file_that_appears_while_the_database_is_copied_is_not_replaced(tmp_path: Path, other_disk: Path) -> None:
    path, copy = tmp_path / "a.lmdb", shutil.copyfileobj
    options: dict[str, Any] = {"shards": 1, "build_dir": str(other_disk)}

    def copy_late(*arguments: Any) -> None:
        copy(*arguments)
        (path / "data.mdb").write_text("of somebody else")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", copy_late)
        refused(path, **options)
    assert build_again(path, **options).finished


def test_a_file_that_appears_while_the_database_is_built_is_not_replaced_by_a_compacted_copy(tmp_path: Path) -> None:
    path = tmp_path / "a.lmdb"
    refused(path, job={"observer": lambda _: (path / "data.mdb").write_text("of somebody else")}, **COMPACTED)
    assert build_again(path, **COMPACTED).finished
