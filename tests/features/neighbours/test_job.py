"""The search itself: against brute force, in whatever memory and threads, exact and approximate."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
from features.sets import Array, nearest, people, write_set

from facedata.errors import FormatError, OptionError, OutputError, OutputExistsError, OutputMismatchError
from facedata.features.feature_set import OpenedSet, open_feature_set
from facedata.features.neighbours.job import NeighbourJob, NeighbourOptions
from facedata.features.neighbours.search import (
    IndexSearch,
    Method,
    UnitRows,
    exact_nearest,
    fit_into_memory,
    measured_recall,
)
from facedata.jobs.job import JobOptions, JobSummary
from facedata.jobs.plan import Part


def make_set(root: Path, features: Array) -> OpenedSet:
    return open_feature_set(write_set(root, features.astype("<f4")), "a", features.shape[1])


def of_all_lengths(rows: int, dimensions: int, seed: int = 0) -> Array:
    """Rows around centres, of all lengths, in no order."""
    random = np.random.default_rng(seed)
    return random.permutation(people(rows, dimensions, seed=seed)[0]) * 10 ** random.uniform(-25, 25, (rows, 1))


def loaded(opened: OpenedSet) -> UnitRows:
    base = UnitRows(opened.matrix, 1024, resident=True)
    base.load()
    return base


def read(summary: JobSummary) -> tuple[Array, Array]:
    with np.load(summary.facts["files"][0]) as file:
        data = file["data"]
    return data[:, 0].astype(np.int32), data[:, 1]


def search(opened: OpenedSet, output: Path, job: JobOptions = JobOptions(), **options: Any) -> JobSummary:
    return NeighbourJob(opened, NeighbourOptions(output=str(output), **options)).run(job)


def test_memory_and_threads_do_not_show(tmp_path: Path) -> None:
    features = of_all_lengths(5000, 64)
    opened = make_set(tmp_path / "data", features)
    memory = NeighbourJob(opened, NeighbourOptions(k=30, threads=2, memory=1 << 40)).memory
    assert (memory.resident, memory.threads) == (True, 2)
    files = set()
    for threads, limit in ((1, 1 << 40), (2, memory.bytes - 1), (3, None)):
        summary = search(opened, tmp_path / f"{threads}.npz", k=30, memory=limit, threads=threads)
        assert summary.shards == 3
        files.add((tmp_path / f"{threads}.npz").read_bytes())
    assert len(files) == 1
    (ids, distances), (true, true_distances) = read(summary), nearest(features, 30)
    np.testing.assert_allclose(distances, true_distances, atol=2e-6)
    assert (ids != true).mean() < 1e-3


def test_chunks_that_are_read_again_give_the_same_neighbours(tmp_path: Path) -> None:
    matrix = make_set(tmp_path, of_all_lengths(1500, 32)).matrix
    kept, read_again = UnitRows(matrix, 400, resident=True), UnitRows(matrix, 400, resident=False)
    kept.load()
    queries = kept.rows(100, 800)
    whole = exact_nearest(queries, UnitRows(matrix, 1500, resident=False), 30, 500)
    in_chunks = [exact_nearest(queries, base, 30, 500) for base in (kept, read_again)]
    for part in (0, 1):
        np.testing.assert_array_equal(in_chunks[0][part], in_chunks[1][part])
    np.testing.assert_allclose(in_chunks[0].cosines, whole.cosines, atol=1e-6)
    assert (in_chunks[0].ids != whole.ids).mean() < 1e-3
    assert (exact_nearest(queries, kept, 1500, 500).ids[:, -1] >= 0).all()  # more neighbours than rows in a chunk


@pytest.mark.parametrize("index_bytes", [None, 10_000_000])
def test_less_memory_means_fewer_threads_down_to_one(index_bytes: int | None) -> None:
    plans = [fit_into_memory(1_000_000, 256, 80, 8, 1 << 34, index_bytes)]
    while plans[-1].threads > 1 or plans[-1].resident:
        plans.append(fit_into_memory(1_000_000, 256, 80, 8, plans[-1].bytes - 1, index_bytes))
        assert plans[-1].bytes < plans[-2].bytes
    with pytest.raises(OptionError, match=f"at least {plans[-1].bytes:,} "):
        fit_into_memory(1_000_000, 256, 80, 8, plans[-1].bytes - 1, index_bytes)
    assert (plans[0].threads, plans[0].resident) == (8, index_bytes is None)
    threads = [plan.threads for plan in plans]
    assert threads == sorted(threads, reverse=True)


@pytest.mark.parametrize("rows", [1, 150])
def test_every_row_may_be_asked_for(tmp_path: Path, rows: int) -> None:
    features = of_all_lengths(rows, 8)
    ids, distances = read(search(make_set(tmp_path, features), tmp_path / "out.npz", k=rows))
    np.testing.assert_allclose(distances, nearest(features, rows)[1], atol=2e-6)
    np.testing.assert_array_equal(np.sort(ids, axis=1), np.tile(np.arange(rows), (rows, 1)))


@pytest.mark.parametrize("method", ["exact", "ivf", "hnsw"])
def test_rows_that_are_all_the_same_are_each_their_own_first(tmp_path: Path, method: str) -> None:
    opened = make_set(tmp_path, np.tile(np.array([[3.0, 4.0, 0.0]]), (300, 1)))
    ids, distances = read(search(opened, tmp_path / "out.npz", k=5, method=Method(method)))
    np.testing.assert_array_equal(ids[:, 0], np.arange(300))
    assert (distances[:, 0] == 0).all()
    assert ((distances[:, 1:] > 0) & (distances[:, 1:] < 1e-6)).all()
    assert all(len(set(row)) == 5 for row in ids.tolist())


def test_bad_rows_are_refused_by_number_before_anything_is_written(tmp_path: Path) -> None:
    features = of_all_lengths(3000, 4)
    for method, value, said in (("exact", np.nan, "NaN"), ("hnsw", 0.0, "all zero")):
        features[2222] = value
        with pytest.raises(FormatError, match=rf"a\.bin: row 2,222 \({said}\)"):
            search(make_set(tmp_path, features), tmp_path / "out.npz", k=2, method=Method(method))
        assert sorted(os.listdir(tmp_path)) == ["features", "labels"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 0}, "--k 0: expected 1 or more"),
        ({"k": 41}, r"has 40 rows, so a row has at most 40 neighbours, itself included"),
        ({"k": 40, "format": "gcn", "output": "x.npy"}, "at most 39 neighbours, itself not counted"),
        ({"k": 5, "memory": 1000}, r"this search needs at least [\d,]+ \(\d+MB\)"),
        ({"k": 5, "memory": 1000, "method": Method("hnsw")}, "--method exact takes less"),
        ({"k": 5, "format": "csv"}, "expected one of ltc, cdp, gcn, npy"),
        ({"k": 5, "output": "x.npy"}, "expected a name that ends in .npz"),
        ({"k": 5, "method": Method("ivf", nlist=41)}, "at most one list a row, and there are 40 rows"),
    ],
)
def test_impossible_options_are_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        NeighbourJob(make_set(tmp_path, of_all_lengths(40, 4)), NeighbourOptions(**options))


def test_a_method_has_its_own_options_and_a_missing_gpu_is_refused(tmp_path: Path) -> None:
    for given in ({"name": "hnsw", "device": "cuda"}, {"name": "ivf", "ef": 3}, {"name": "hnsw", "ef": 0}):
        with pytest.raises(OptionError):
            Method(**given)
    if not hasattr(faiss, "StandardGpuResources"):
        with pytest.raises(OptionError, match="no GPU support"):
            search(make_set(tmp_path, of_all_lengths(40, 4)), tmp_path / "out.npz", k=3, method=Method(device="cuda"))


@pytest.mark.parametrize("method", ["ivf", "hnsw"])
def test_an_approximate_search_says_its_recall_and_is_the_same_again(tmp_path: Path, method: str) -> None:
    features = of_all_lengths(2500, 32)
    opened, name = make_set(tmp_path, features), Method(method)
    first, second = (search(opened, tmp_path / f"{n}.npz", k=20, method=name, threads=n) for n in (1, 2))
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()
    assert 0.95 < first.facts["recall"] == second.facts["recall"] <= 1
    (ids, distances), (true, true_distances) = read(first), nearest(features, 20)
    shared = np.mean([len(set(a) & set(b)) / 20 for a, b in zip(ids.tolist(), true.tolist(), strict=True)])
    assert abs(shared - first.facts["recall"]) < 0.03
    assert (distances >= true_distances - 2e-6).all()


def test_recall_does_not_count_rows_at_distance_one_as_equals(tmp_path: Path) -> None:
    base = loaded(make_set(tmp_path, np.random.default_rng(0).normal(size=(1000, 16))))  # half of the cosines < 0
    asked: list[int] = []

    def far(queries: Array) -> Any:
        """Finds the far rows instead of the near."""
        asked.append(len(queries))
        found = exact_nearest(queries, base, 1000, 1000)
        return type(found)(*(np.concatenate([part[:, :1], part[:, -799:]], axis=1) for part in found))

    search: Any = SimpleNamespace(nearest=far)
    assert measured_recall(search, base, 800, 1000) == pytest.approx(599 / 799)
    assert measured_recall(search, base, 800, 100) > 0.7
    assert asked == [1000, 100]  # no more rows than there is memory for if k is large


def test_a_low_recall_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened = make_set(tmp_path, np.random.default_rng(0).normal(size=(2000, 32)))
    caplog.set_level(logging.INFO)
    summary = search(opened, tmp_path / "out.npz", k=10, method=Method("ivf", nlist=40, nprobe=1))
    assert summary.facts["recall"] < 0.9
    assert "below 0.95: a larger --nprobe finds more" in caplog.text
    assert (read(summary)[0] >= 0).all()  # lists with fewer rows than k do not leave gaps


def test_an_index_that_finds_too_few_is_searched_more_thoroughly(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    features = np.concatenate([random.normal(size=(200, 8)) + 30 * side for side in np.eye(8)])
    base = loaded(make_set(tmp_path, features))
    parameters = {"links": 2, "ef construction": 1, "ef": 1}  # a graph that is not connected
    search = IndexSearch(base, Method("hnsw"), parameters, 100, 1024, threading.Event())
    ids = search.nearest(base.rows(0, 1600)).ids
    assert (ids >= 0).all()
    assert all(len(set(row)) == 100 for row in ids.tolist())


def test_parts_of_the_job_make_the_same_file_but_for_a_part_that_was_changed(tmp_path: Path) -> None:
    opened, parts = make_set(tmp_path, of_all_lengths(3000, 128)), tmp_path / "parts.npz"
    search(opened, tmp_path / "whole.npz", k=10)
    for number in (2, 1):
        assert not search(opened, parts, JobOptions(part=Part(number, 3)), k=10).finished
    block = tmp_path / "parts.npz.facedata" / ".facedata-building" / "000000"
    whole = block.read_bytes()
    for wrong, said in (
        (whole[:-4], f"{len(whole) - 4:,} bytes, expected whole rows of 80"),
        (whole[:-80], "corrupt"),
        (bytes(len(whole)), "corrupt: a row is not the first"),
    ):
        block.write_bytes(wrong)
        with pytest.raises(OutputError, match=rf"{said}.*--overwrite starts the job over"):
            search(opened, parts, k=10)
        assert not parts.exists()
    block.write_bytes(whole)
    assert search(opened, parts, JobOptions(part=Part(3, 3)), k=10).finished
    assert parts.read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    opened, path = make_set(tmp_path, of_all_lengths(100, 8)), tmp_path / "out.npz"
    path.write_bytes(b"another file")
    with pytest.raises(OutputExistsError, match="already exists"):
        search(opened, path, k=3)
    assert search(opened, path, JobOptions(overwrite=True), k=3).finished
    assert search(opened, path, k=3).nothing_to_do
    with pytest.raises(OutputMismatchError, match="k was 3, is now 4"):
        search(opened, path, k=4)
    make_set(tmp_path, of_all_lengths(100, 8, seed=1))
    with pytest.raises(OutputMismatchError, match="digest was"):
        search(opened, path, k=3)
