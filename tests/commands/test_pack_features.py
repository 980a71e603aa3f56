"""``facedata pack-features`` as it is typed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from features.sets import Array, read_set, saved
from support import Ran, Running, tree

Facedata = Callable[..., Ran]
SET = ("--output", "data", "--name", "my_set")


@pytest.fixture
def rows(tmp_path: Path) -> Array:
    array = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    np.save(tmp_path / "feats.npy", array)
    (tmp_path / "labels.txt").write_text("".join(f"{row // 5}\n" for row in range(20)))
    return array


def test_there_and_back(tmp_path: Path, inline_facedata: Facedata, rows: Array) -> None:
    ran = inline_facedata("pack-features", "feats.npy", "--labels", "labels.txt", *SET)
    assert (ran.status, ran.stderr) == (0, "")
    assert ran.stdout == (
        "data/features/my_set.bin: has 20 rows of 8 float32 (640 bytes)\ndata/labels/my_set.meta: has 4 classes\n"
    )
    found, labels = read_set(tmp_path / "data", 8, "my_set")
    np.testing.assert_array_equal(found, rows)
    assert labels == [row // 5 for row in range(20)]
    again = (*SET, "--overwrite", "--labels-npy", "--limit", "6")
    assert inline_facedata("pack-features", "feats.npy", "--labels", "labels.txt", *again).status == 0
    array = np.load(tmp_path / "data/labels/my_set.npy")
    assert (array.dtype, array.tolist()) == (np.int64, [0, 0, 0, 0, 0, 1])
    ran = inline_facedata("pack-features", "feats.npy", "--labels", "labels.txt", *SET, "--overwrite")
    assert "labels/my_set.npy: belongs to the previous features of this name" in ran.stderr
    (tmp_path / "data/features/my_set.bin").unlink()
    ran = inline_facedata("pack-features", "feats.npy", "--labels", "labels.txt", *SET, "--labels-npy")
    assert "my_set.npy: already exists" in ran.stderr
    (tmp_path / "data/labels/my_set.npy").unlink()
    assert inline_facedata("pack-features", "feats.npy", "--labels", "labels.txt", *SET).status == 0
    for dimensions in (["--dim", "8"], []):
        back = ("data/features/my_set.bin", *dimensions, "--output", "b.npy", "--overwrite")
        ran = inline_facedata("pack-features", *back)
        assert (ran.status, ran.stdout) == (0, "b.npy: has 20 rows of 8 float32 (640 bytes)\n")
        assert (tmp_path / "b.npy").read_bytes() == saved(rows)


@pytest.mark.usefixtures("rows")
def test_json_and_dry_run(tmp_path: Path, inline_facedata: Facedata) -> None:
    how = ("--dry-run", "--json", "--limit", "7")
    ran = inline_facedata("pack-features", "feats.npy", "--labels", "labels.txt", *SET, *how)
    files = {"features": "data/features/my_set.bin", "labels": "data/labels/my_set.meta"}
    facts = {"rows": 7, "dimensions": 8, "dtype": "float32", "classes": 2}
    assert json.loads(ran.stdout) == {"dry_run": True, **files, **facts}
    ran = inline_facedata("pack-features", "feats.npy", "--unlabeled", *SET, "--dry-run")
    assert ran.stdout.splitlines()[1] == "data/labels/my_set.meta: would have -1 for every row"
    np.savetxt(tmp_path / "a.csv", np.ones((3, 2)), delimiter=",")
    ran = inline_facedata("pack-features", "a.csv", "--no-meta", *SET, "--dry-run")
    assert ran.stdout == "data/features/my_set.bin: would have all rows of 2 float32\n"
    assert not (tmp_path / "data").exists()


@pytest.mark.usefixtures("rows")
def test_contradictions_are_wrong_usage(tmp_path: Path, inline_facedata: Facedata) -> None:
    for arguments, expected in (
        (SET, "expected one of --labels FILE, --unlabeled and --no-meta, found none of them"),
        ((*SET, "--unlabeled", "--no-meta"), "found --unlabeled and --no-meta"),
        (("--output", "data", "--unlabeled"), "for a set give --name too; a single file ends in .npy or .bin"),
        (("--output", "a.npy", "--unlabeled"), "--unlabeled applies to a set"),
        (("--output", "a.npy", "--name", "x", "--unlabeled"), "for a file, leave out --name"),
        ((*SET, "--no-meta", "--labels-npy"), "--labels-npy applies to a set with labels"),
        ((*SET, "--unlabeled", "--allow-nan"), "--allow-nan applies to a single file"),
        ((*SET, "--unlabeled", "--dim", "8"), "--dim applies to .bin files"),
    ):
        ran = inline_facedata("pack-features", "feats.npy", *arguments)
        assert (ran.status, expected in ran.stderr) == (2, True)
        assert not (tmp_path / "data").exists()


def test_wrong_data_is_status_1(tmp_path: Path, inline_facedata: Facedata) -> None:
    np.save(tmp_path / "a.npy", np.diag([1.0, np.nan]))
    ran = inline_facedata("pack-features", "a.npy", "--unlabeled", *SET, "--quiet")
    assert (ran.status, ran.stdout) == (1, "")
    assert ran.stderr.startswith("facedata: error: a.npy: row 1 (NaN): expected finite values")
    (tmp_path / "a.pt").write_bytes(b"\x80\x02")
    ran = inline_facedata("pack-features", "a.pt", "--unlabeled", *SET)
    assert ran.status == 1
    assert "\n  import numpy, torch\n  numpy.save('a.npy', torch.load('a.pt'," in ran.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_or_killed_it_starts_again(tmp_path: Path, inline_facedata: Facedata, number: signal.Signals) -> None:
    array = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.float64, (40_000, 512))
    array[:] = 1.0
    array.flush()
    command = ("pack-features", "a.npy", "--unlabeled", *SET)

    def partial_files() -> list[Path]:
        return list((tmp_path / "data/features").glob(".facedata-temporary-my_set.bin-*"))

    running = Running(tmp_path, *command)
    running.wait_for(lambda: any(path.stat().st_size > 0 for path in partial_files()))
    os.kill(running.process.pid, number)
    errors = running.end()
    assert running.process.returncode == (75 if number == signal.SIGINT else -number)
    assert tree(tmp_path / "data") == {}
    assert len(partial_files()) == (number == signal.SIGKILL)
    assert ("nothing is kept: run the same command to start again" in errors) == (number == signal.SIGINT)
    assert inline_facedata(*command).status == 0
    assert (tmp_path / "data/features/my_set.bin").stat().st_size == 40_000 * 512 * 4
    assert not partial_files()
