from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from job_tasks import PlainOutput

from facedata.errors import FormatError, OutputError, OutputExistsError, OutputLockedError, OutputMismatchError
from facedata.files import remove_stale_temporaries
from facedata.jobs.journal import ShardLock, refuse_unfinished
from facedata.jobs.output import check_still_ours, claim_output, refuse_overlap
from facedata.jobs.plan import Plan

PLAN = Plan("test", {}, {"limit": None}, 100, 10, {"command_line": "facedata test"})
OTHER = Plan("test", {}, {"limit": 3}, 3, 1, {"command_line": "facedata test --limit 3"})
LOCK = """
import sys, time
from pathlib import Path
from facedata.jobs.journal import ShardLock, refuse_unfinished
with ShardLock(Path(sys.argv[1])) as lock:
"""


def claim(folder: Path, plan: Plan = PLAN, *, overwrite: bool = False) -> None:
    claim_output(plan, PlainOutput(str(folder)), overwrite=overwrite)


def test_a_new_an_empty_and_the_jobs_own_folder_are_taken(tmp_path: Path) -> None:
    claim(tmp_path / "deep" / "new")
    (tmp_path / "empty").mkdir()
    claim(tmp_path / "empty")
    claim(tmp_path / "empty")


def test_a_folder_with_something_in_it_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputExistsError, match=r"thesis\.tex"):
        claim(tmp_path)
    with pytest.raises(OutputExistsError, match=r"deletes only what facedata writes.*thesis\.tex"):
        claim(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_another_jobs_folder_is_refused_with_the_difference_and_its_own_command(tmp_path: Path) -> None:
    claim(tmp_path)
    with pytest.raises(OutputMismatchError, match=r"limit was none, is now 3.*resumes with: facedata test"):
        claim(tmp_path, OTHER)


def test_overwrite_deletes_what_the_job_wrote_and_nothing_else(tmp_path: Path) -> None:
    claim(tmp_path)
    (tmp_path / "done-1").mkdir()
    (tmp_path / "done-1" / "image").touch()
    (tmp_path / "done-2").touch()
    (tmp_path / "failures.jsonl").touch()
    (tmp_path / "README").touch()
    claim(tmp_path, OTHER, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".facedata-lock", ".facedata-plan.json", "README"]


def test_a_link_is_removed_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    claim(tmp_path / "out")
    (tmp_path / "out" / "done-1").symlink_to(precious)
    claim(tmp_path / "out", OTHER, overwrite=True)
    assert (precious / "file").exists()
    assert not (tmp_path / "out" / "done-1").is_symlink()


def test_a_clearing_that_was_cut_off_is_completed(tmp_path: Path) -> None:
    claim(tmp_path)
    (tmp_path / ".facedata-plan.json").unlink()
    (tmp_path / ".facedata-clearing").touch()
    (tmp_path / "done-1").touch()
    claim(tmp_path, OTHER)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".facedata-lock", ".facedata-plan.json"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="is not a folder"):
            claim(tmp_path / "file", overwrite=overwrite)
    with pytest.raises(OutputError):
        claim(tmp_path / "file" / "inside")


def test_two_runs_never_write_the_same_shards(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    program = LOCK + "    lock.take(range(*map(int, sys.argv[2:4])))"

    def other_process(first: int, end: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, str(lock), str(first), str(end)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    with ShardLock(lock) as held:
        held.take(range(4, 8))
        assert other_process(0, 4).returncode == 0
        assert other_process(8, 9).returncode == 0
        assert other_process(5, 5).returncode == 0
        assert "another run is writing here" in other_process(7, 9).stderr
    assert other_process(7, 9).returncode == 0


def test_overwrite_is_refused_while_another_run_writes(tmp_path: Path) -> None:
    claim(tmp_path)
    program = LOCK + "    lock.take(range(1)); print('locked', flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / ".facedata-lock")], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(OutputLockedError):
            claim(tmp_path, OTHER, overwrite=True)
        other.kill()
    claim(tmp_path, OTHER, overwrite=True)


@pytest.mark.parametrize(
    ("source", "target"), [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a/train.rec", "a"), ("a/../a", "a/b/../c")]
)
def test_output_and_input_must_not_lie_in_each_other(tmp_path: Path, source: str, target: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "train.rec").touch()
    with pytest.raises(OutputError, match="lies in"):
        refuse_overlap([str(tmp_path / source)], tmp_path / target)


def test_neighbours_are_fine(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    refuse_overlap([str(tmp_path / "a")], tmp_path / "ab")


def test_a_job_whose_output_was_taken_by_another_does_not_go_on(tmp_path: Path) -> None:
    claim(tmp_path)
    claim(tmp_path, OTHER, overwrite=True)
    with pytest.raises(OutputMismatchError, match="another job took this output"):
        check_still_ours(PLAN, PlainOutput(str(tmp_path)))
    check_still_ours(OTHER, PlainOutput(str(tmp_path)))


def test_only_what_dead_processes_of_this_machine_left_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    for name in (f"list-{host}-{dead.pid}", f"list-{host}-{os.getpid()}", "list-elsewhere-1"):
        (tmp_path / f".facedata-temporary-{name}").touch()
    remove_stale_temporaries(tmp_path)
    assert not (tmp_path / f".facedata-temporary-list-{host}-{dead.pid}").exists()
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_zombie_left_is_removed_too(tmp_path: Path) -> None:
    child = os.posix_spawn(sys.executable, ["python", "-c", ""], os.environ)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has asked for its status
    left = tmp_path / f".facedata-temporary-x-{socket.gethostname()}-{child}"
    left.touch()
    remove_stale_temporaries(tmp_path)
    assert not left.exists()
    os.waitpid(child, 0)


def test_a_job_begun_by_another_version_is_refused_and_can_be_started_again(tmp_path: Path) -> None:
    output = PlainOutput(str(tmp_path))
    claim_output(PLAN, output, overwrite=False)
    path = tmp_path / ".facedata-plan.json"
    plan = json.loads(path.read_text())
    del plan["version"]  # plans had no version before
    path.write_text(json.dumps(plan))
    with pytest.raises(FormatError, match=r"another version of facedata \(plan version 1.*--overwrite"):
        claim_output(PLAN, output, overwrite=False)
    with pytest.raises(FormatError, match="another version of facedata"):
        refuse_unfinished(tmp_path)
    claim_output(PLAN, output, overwrite=True)
