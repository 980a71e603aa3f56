"""``facedata build-knn`` as it is typed, and its files as their readers open them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from features.sets import Array, people, write_set
from support import Ran, Running, tree

Facedata = Callable[..., Ran]
COMMAND = ("build-knn", "data", "--name", "a", "--k")


def as_learn_to_cluster(data: Array) -> tuple[Array, Array, set[tuple[int, int]]]:
    """By its rules: ids cast to int32, each row sorted by distance in no stable way; and the edges of its graph."""
    distances = data[:, 1, :]
    assert -1e-5 <= distances.min() <= distances.max() <= 1 + 1e-5
    ids = data[:, 0, :].astype(np.int32)
    order = np.argsort(distances, axis=1)
    rows, columns = np.where(1.0 - distances >= 0.3)
    ends = data[rows, 0, columns]
    edges = {(row, int(end)) for row, end in zip(rows.tolist(), ends.tolist(), strict=True) if row != end}
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(distances, order, axis=1), edges


def test_learn_to_cluster_reads_what_numpy_finds(tmp_path: Path, inline_facedata: Facedata) -> None:
    features, labels = people(1000, 256)
    write_set(tmp_path / "data", features, labels)
    ran = inline_facedata(*COMMAND, 40)
    assert ran.status == 0, ran.stderr
    assert ran.stdout.startswith("data/knns/a/faiss_k_40.npz: 1,000 rows, 40 neighbours each, 320.3 kB; ")
    data = np.load(tmp_path / "data/knns/a/faiss_k_40.npz", allow_pickle=False)["data"]
    assert data.shape == (1000, 2, 40)
    ids, distances, edges = as_learn_to_cluster(data)
    cosines = (features @ features.T).astype(np.float64)
    np.testing.assert_array_equal(ids[:, 0], np.arange(1000))
    np.testing.assert_allclose(distances, np.clip(np.sort(1 - cosines, axis=1)[:, :40], 0, 1), atol=2e-6)
    np.testing.assert_allclose(distances, np.clip(1 - np.take_along_axis(cosines, ids, axis=1), 0, 1), atol=2e-6)
    assert len(edges) > 1000
    in_float64 = as_learn_to_cluster(data.astype(np.float64))  # what its own code writes
    np.testing.assert_array_equal(in_float64[0], ids)
    np.testing.assert_array_equal(in_float64[1], distances)
    assert len(in_float64[2] ^ edges) <= 2  # a similarity of 0.3 to the last bit


def test_refusals(tmp_path: Path, inline_facedata: Facedata) -> None:
    write_set(tmp_path / "data", *people(60, 16))
    for arguments, status, said in (
        (("--memory", "1MB"), 2, "this search needs at least"),
        (("--memory", "much"), 2, "is not a size"),
        (("--dim", "32"), 1, "60 rows of 32 float32, found 3,840: half of that: is it float16?"),
        (("--output", "missing/a.npz"), 1, "does not exist; create it first"),
    ):
        ran = inline_facedata(*COMMAND, 5, *arguments)
        assert (ran.status, ran.stdout) == (status, "")
        assert said in ran.stderr.replace("\n", " ")
        assert not (tmp_path / "data/knns/a").exists() or os.listdir(tmp_path / "data/knns/a") == []


def test_a_missing_faiss_is_named(tmp_path: Path, inline_facedata: Facedata, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path / "data", *people(60, 16))
    monkeypatch.setitem(sys.modules, "faiss", None)
    ran = inline_facedata(*COMMAND, 5)
    assert (ran.status, "pip install -e '.[features]'" in ran.stderr) == (1, True)


def test_a_dry_run_writes_nothing_and_json_is_one_object(tmp_path: Path, inline_facedata: Facedata) -> None:
    write_set(tmp_path / "data", *people(60, 16))
    before, names = tree(tmp_path), ["faiss_k_5.ids.npy", "faiss_k_5.distances.npy"]
    dry = inline_facedata(*COMMAND, 5, "--dry-run", "--json", "--format", "npy")
    assert [os.path.basename(name) for name in json.loads(dry.stdout)["files"]] == names
    assert tree(tmp_path) == before
    assert not (tmp_path / "data/knns").exists()
    done = inline_facedata(*COMMAND, 5, "--json", "--format", "npy", "--quiet")
    shown = json.loads(done.stdout)
    assert (shown["rows"], shown["k"], shown["finished"], done.stderr) == (60, 5, True, "")
    assert [os.path.basename(name) for name in shown["files"]] == names
    assert "all done before" in inline_facedata(*COMMAND, 5, "--format", "npy").stdout


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_or_stopped_it_goes_on(tmp_path: Path, inline_facedata: Facedata, number: signal.Signals) -> None:
    write_set(tmp_path / "data", *people(10_000, 128))
    folder = tmp_path / "data/knns/a"
    blocks = folder / "faiss_k_60.npz.facedata/.facedata-building"
    running = Running(tmp_path, *COMMAND, "60")
    running.wait_for(lambda: blocks.is_dir() and len(list(blocks.glob("0*"))) >= 4)
    os.kill(running.process.pid, number)
    errors = running.end()
    if number == signal.SIGTERM:
        assert (running.process.returncode, "run the same command again to resume" in errors) == (75, True)
    assert not (folder / "faiss_k_60.npz").exists()
    assert inline_facedata("status", "data/knns/a/faiss_k_60.npz").status == 75
    ran = inline_facedata(*COMMAND, 60)
    assert (ran.status, "resuming: " in ran.stderr) == (0, True)
    if number == signal.SIGKILL:
        assert inline_facedata(*COMMAND, 60, "--output", "whole.npz").status == 0
        assert (folder / "faiss_k_60.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert sorted(os.listdir(folder)) == ["faiss_k_60.npz", "faiss_k_60.npz.facedata"]
    assert not blocks.exists()


def test_a_full_disk_keeps_what_is_done(tmp_path: Path, inline_facedata: Facedata, small_disk: Path) -> None:
    write_set(tmp_path / "data", *people(5000, 128))
    (small_disk / "filler").write_bytes(bytes(3_500_000))  # the blocks take 3.2 MB, and the file as much
    ran = inline_facedata(*COMMAND, 80, "--output", small_disk / "a.npz")
    assert (ran.status, "free some space and run the same command again" in ran.stderr) == (1, True)
    assert not (small_disk / "a.npz").exists()
    (small_disk / "filler").unlink()
    assert inline_facedata(*COMMAND, 80, "--output", small_disk / "a.npz").status == 0
    assert np.load(small_disk / "a.npz", allow_pickle=False)["data"].shape == (5000, 2, 80)
