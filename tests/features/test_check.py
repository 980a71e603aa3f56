"""Whole sets: good ones, and ones with a single thing wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from features.sets import Array, people, write_neighbours, write_set
from support import peak_bytes

from facedata.errors import InputError, InputNotFoundError
from facedata.features.checks import CheckOptions, check_feature_set, set_names
from facedata.features.checks.report import Observer, SetReport

CLASSES, OF_EACH, DIMENSIONS = 10, 12, 16
ROWS = CLASSES * OF_EACH
LABELS = np.arange(ROWS) // OF_EACH


def features(dimensions: int = DIMENSIONS) -> Array:
    return people(ROWS, dimensions, OF_EACH, noise=0.4)[0]


def report_of(
    root: Path, rows: Array | None = None, meta: Array | str | None = LABELS, dimensions: int | None = None
) -> SetReport:
    """Write a set, and check it."""
    write_set(root, features() if rows is None else rows, meta)
    return check_feature_set(root, "a", CheckOptions(dimensions=dimensions))


def wrong(report: SetReport) -> list[tuple[str, str]]:
    return [(finding.check, finding.message) for finding in report.findings if finding.wrong]


def one_wrong(report: SetReport) -> tuple[str, str]:
    (found,) = wrong(report)
    assert not report.good
    return found


class TestGoodSets:
    def test_everything_is_reported(self, tmp_path: Path) -> None:
        by_sample = check_feature_set(write_set(tmp_path, features(), LABELS), "a", CheckOptions(k=5)).same_label
        ids = write_neighbours(tmp_path, features(), 5)
        (tmp_path / "features" / "a.keys.txt").write_text("".join(f"k{row}\n" for row in range(ROWS)))
        report = check_feature_set(tmp_path, "a")
        assert (report.good, report.findings) == (True, [])
        assert (report.rows, report.dimensions, report.keys) == (ROWS, DIMENSIONS, True)
        assert report.norms is not None
        assert (round(report.norms.smallest, 4), round(report.norms.largest, 4), report.norms.unit) == (1, 1, 1)
        assert report.classes is not None
        assert (report.classes.classes, report.classes.smallest, report.classes.largest) == (CLASSES, OF_EACH, OF_EACH)
        (file,) = report.neighbours
        assert (file.layout, file.k, file.rows, file.dtype) == ("learn-to-cluster", 5, ROWS, "float64")
        assert report.same_label is not None
        same = LABELS[ids] == LABELS[:, None]
        assert report.same_label.all == pytest.approx(same.mean())
        assert report.same_label.nearest == pytest.approx(same[:, 0].mean())
        assert (report.same_label.possible, report.same_label.source) == (1.0, file.path)
        assert by_sample is not None  # a sample of all rows gives the same share
        assert (by_sample.all, by_sample.nearest) == (report.same_label.all, report.same_label.nearest)
        assert (by_sample.possible, by_sample.source) == (1.0, f"exact neighbours of {ROWS} rows")
        assert report.same is not None
        assert report.other is not None
        assert report.same.mean > report.other.mean + 0.3
        facts = json.dumps(report.facts(), allow_nan=False)
        assert facts == json.dumps(check_feature_set(tmp_path, "a").facts())
        assert json.loads(facts)["same_label"]["neighbours"] == 4

    @pytest.mark.parametrize("meta", ["-1\n" * ROWS, None])
    def test_without_labels_all_but_the_quality_is_checked(self, tmp_path: Path, meta: str | None) -> None:
        write_neighbours(tmp_path, features(), 5)
        report = report_of(tmp_path, meta=meta, dimensions=DIMENSIONS)
        assert report.good
        assert (report.same_label, report.same, len(report.neighbours)) == (None, None, 1)
        assert (report.classes is None) == (meta is None)

    def test_the_smallest_sets_and_classes(self, tmp_path: Path) -> None:
        report = report_of(tmp_path, features()[:1], LABELS[:1])
        assert (report.good, report.rows, report.same_label) == (True, 1, None)
        write_neighbours(tmp_path, features(), ROWS)  # k may be as large as N
        report = report_of(tmp_path, meta=np.arange(ROWS))
        assert report.classes is not None
        assert (report.classes.singletons, report.same, report.good) == (ROWS, None, True)

    def test_the_sets_of_a_folder_are_found(self, tmp_path: Path) -> None:
        for name in ("b", "a"):
            write_set(tmp_path, features(), LABELS, name)
        (tmp_path / "features" / "a.keys.txt").touch()
        assert set_names(tmp_path) == ["a", "b"]
        (tmp_path / "empty" / "features").mkdir(parents=True)
        for folder, said in (("none", "no such file or folder"), ("empty", r"has no \.bin file")):
            with pytest.raises(InputNotFoundError, match=said):
                set_names(tmp_path / folder)


@pytest.mark.parametrize(("stored", "dimensions", "kind"), [("<f8", 32, "float64"), (">f4", 16, "big-endian float32")])
def test_other_types_are_recognised_by_their_bytes_if_the_size_fits(
    tmp_path: Path, stored: str, dimensions: int, kind: str
) -> None:
    report = report_of(tmp_path, features().astype(stored))
    assert report.dimensions == dimensions
    check, message = one_wrong(report)
    assert (check, message.endswith(kind)) == ("kind of number", True)


def test_a_numpy_header(tmp_path: Path) -> None:
    with open(write_set(tmp_path, features(), LABELS) / "features" / "a.bin", "wb") as file:
        np.save(file, features())
    check, message = one_wrong(check_feature_set(tmp_path, "a"))
    assert (check, "saved by np.save" in message) == ("size", True)


@pytest.mark.parametrize("cut", [1, 1024 * 60 + 2, 1024 * ROWS])
def test_a_file_that_was_cut(tmp_path: Path, cut: int) -> None:
    path = write_set(tmp_path, features(256), LABELS) / "features" / "a.bin"
    os.truncate(path, path.stat().st_size - cut)
    check, message = one_wrong(check_feature_set(tmp_path, "a", CheckOptions(dimensions=256)))
    assert (check, "was it cut short?" in message) == ("size", cut < 1024 * ROWS)
    assert one_wrong(check_feature_set(tmp_path, "a"))[0] == "size"


@pytest.mark.parametrize(
    ("meta", "expected", "dimensions"),
    [("0\n" * 60 + "\n" + "0\n" * 60, "line 61 is blank", DIMENSIONS), ("a\n", "line 1", None), ("", "no line", None)],
)
def test_a_line_that_is_not_a_label(tmp_path: Path, meta: str, expected: str, dimensions: int | None) -> None:
    report = report_of(tmp_path, meta=meta, dimensions=dimensions)
    check, message = one_wrong(report)
    assert (check, expected in message) == ("labels", True)
    assert report.rows == (ROWS if dimensions else None)


def test_some_rows_without_a_label_are_noted_and_not_counted(tmp_path: Path) -> None:
    some, ids = np.where(np.arange(ROWS) % 3, LABELS, -1), write_neighbours(tmp_path, features(), 5)
    report = report_of(tmp_path, meta=some)
    assert (report.good, [finding.check for finding in report.findings]) == (True, ["unlabelled rows"])
    known = (some[:, None] >= 0) & (some[ids] >= 0)
    assert report.same_label is not None
    assert report.same_label.all == pytest.approx((some[ids] == some[:, None])[known].mean())
    assert report.same_label.rows == 80
    report = report_of(tmp_path, meta=np.where(np.arange(ROWS) == 7, -2, LABELS))
    assert one_wrong(report)[1] == "expected labels from 0 on, or -1, found 1 below: row 7"


@pytest.mark.parametrize(("keys", "expected"), [("k\n" * 119, "found 119"), ("k\n\n" + "k\n" * 118, "1 blank")])
def test_keys(tmp_path: Path, keys: str, expected: str) -> None:
    (write_set(tmp_path, features(), LABELS) / "features" / "a.keys.txt").write_text(keys)
    check, message = one_wrong(check_feature_set(tmp_path, "a"))
    assert (check, expected in message) == ("keys", True)


def test_nan_infinity_and_zeros_by_row_number(tmp_path: Path) -> None:
    rows = features()
    rows[[3, 9], 2], rows[5, 0], rows[[11, 12]] = np.nan, -np.inf, 0
    rows[100:107, 1] = np.nan
    report = report_of(tmp_path, rows)
    assert wrong(report) == [
        ("NaN", "expected finite values, found NaN in 9: rows 3, 9, 100, 101, 102 and 4 more"),
        ("infinite values", "expected finite values, found infinite values in 1: row 5"),
        ("zero rows", "expected no row of zeros, found 2: rows 11, 12"),
    ]
    assert (report.not_finite, report.zero) == (10, 2)
    assert report.same_label is not None
    assert report.same_label.rows == ROWS - 12
    assert report.duplicates is not None
    assert report.duplicates.rows == 0  # rows of zeros are reported once


def test_duplicates_are_noted(tmp_path: Path) -> None:
    rows = features()
    rows[[50, 70]] = rows[20]
    rows[31] = rows[30]
    report = report_of(tmp_path, rows)
    (note,) = report.findings
    expected = "found 3 copies of others in 2 groups, 1 of them with several labels: rows 20, 50, 70; 30, 31"
    assert (report.good, expected in note.message) == (True, True)
    assert report.duplicates is not None
    assert (report.duplicates.rows, report.duplicates.groups, report.duplicates.other_labels) == (3, 2, 1)


def test_rows_of_any_length_and_values_beyond_what_float32_can_square(tmp_path: Path) -> None:
    rows = features() * np.float32(22)
    rows[:3] *= np.array([[1e30], [1e-30], [0]], np.float32)
    rows[2] = np.finfo(np.float32).max
    report = report_of(tmp_path, rows)
    assert report.norms is not None
    assert report.norms.smallest == pytest.approx(22e-30, rel=1e-3)
    assert report.norms.unit == 0
    (note,) = report.findings
    assert not note.wrong
    assert "expected norms that float32 can square, found others in 3: rows 0, 1, 2" in note.message


@pytest.mark.parametrize("which", ["features/a.bin", "labels/a.meta", "features/a.keys.txt"])
def test_pipes_and_folders_are_refused_without_waiting(tmp_path: Path, which: str) -> None:
    for make in (os.mkfifo, os.mkdir):
        root = write_set(tmp_path / make.__name__, features(), LABELS)
        (root / which).unlink(missing_ok=True)
        make(root / which)
        with pytest.raises(InputError, match="not a file"):
            check_feature_set(root, "a")
    (tmp_path / "knns" / "a").mkdir(parents=True)
    os.mkfifo(tmp_path / "knns" / "a" / "faiss_k_5.npz")
    assert "is a named pipe" in one_wrong(report_of(tmp_path))[1]


def test_progress_reaches_its_end(tmp_path: Path) -> None:
    write_neighbours(write_set(tmp_path, features(), LABELS), features(), 5)
    seen: dict[str, list[tuple[int, int]]] = {}

    @contextmanager
    def watch(step: str) -> Iterator[Observer]:
        yield lambda done, total: seen.setdefault(step, []).append((done, total))

    check_feature_set(tmp_path, "a", watch=watch)
    assert seen["reading rows"][-1] == (ROWS * DIMENSIONS * 4,) * 2
    assert seen["reading faiss_k_5.npz"][-1] == (ROWS * 2 * 5 * 8,) * 2


def test_memory_is_a_part_of_the_set(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(40_000, 256)).astype(np.float32)  # 41 MB
    write_set(tmp_path, rows, np.arange(40_000) // 10)
    del rows
    assert peak_bytes(lambda: check_feature_set(tmp_path, "a", CheckOptions(sample=50))) < 35_000_000
