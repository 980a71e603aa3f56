"""Whole sets: good ones, and ones with a single thing wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from features.sets import Array, people, saved, write_neighbours, write_set
from support import peak_bytes

from facedata.errors import InputError, InputNotFoundError
from facedata.features.checks import CheckOptions, check_feature_set, set_names
from facedata.features.checks.report import Observer, SetReport

CLASSES, OF_EACH, DIMENSIONS = 10, 12, 16
ROWS = CLASSES * OF_EACH
LABELS = np.arange(ROWS) // OF_EACH


def features() -> Array:
    return people(ROWS, DIMENSIONS, OF_EACH, noise=0.4)[0]


def report_of(root: Path, rows: Array | None = None, meta: Array | str | None = LABELS) -> SetReport:
    """Write a set, and check it."""
    write_set(root, features() if rows is None else rows, meta)
    return check_feature_set(root, "a", CheckOptions(DIMENSIONS))


def test_everything_is_reported_of_a_good_set(tmp_path: Path) -> None:
    by_sample = check_feature_set(write_set(tmp_path, features(), LABELS), "a", CheckOptions(k=5)).same_label
    ids = write_neighbours(tmp_path, features(), 5)
    (tmp_path / "features" / "a.keys.txt").write_text("".join(f"k{row}\n" for row in range(ROWS)))
    text = json.dumps(check_feature_set(tmp_path, "a").facts(), allow_nan=False)
    assert text == json.dumps(check_feature_set(tmp_path, "a").facts())
    facts = json.loads(text)
    norms, classes, same, (file,) = (facts[name] for name in ("norms", "classes", "same_label", "neighbours"))
    assert (facts["good"], facts["findings"]) == (True, [])
    assert (facts["rows"], facts["dimensions"], facts["keys"]) == (ROWS, DIMENSIONS, True)
    assert [round(norms[name], 4) for name in ("smallest", "largest", "unit")] == [1, 1, 1]
    assert [classes[name] for name in ("classes", "smallest", "largest")] == [CLASSES, OF_EACH, OF_EACH]
    assert [file[name] for name in ("layout", "k", "rows", "dtype")] == ["learn-to-cluster", 5, ROWS, "float64"]
    shares = LABELS[ids] == LABELS[:, None]
    assert (same["all"], same["nearest"]) == (pytest.approx(shares.mean()), pytest.approx(shares[:, 0].mean()))
    assert (same["neighbours"], same["possible"], same["source"]) == (4, 1.0, file["path"])
    assert by_sample is not None  # a sample of all rows gives the same share
    assert (by_sample.all, by_sample.nearest, by_sample.possible) == (same["all"], same["nearest"], 1.0)
    assert by_sample.source == f"exact neighbours of {ROWS} rows"
    assert facts["same"]["mean"] > facts["other"]["mean"] + 0.3


@pytest.mark.parametrize("meta", ["-1\n" * ROWS, None])
def test_without_labels_all_but_the_quality_is_checked(tmp_path: Path, meta: str | None) -> None:
    write_neighbours(tmp_path, features(), 5)
    report = report_of(tmp_path, meta=meta)
    assert report.good
    assert (report.same_label, report.same, len(report.neighbours)) == (None, None, 1)
    assert (report.classes is None) == (meta is None)


def test_the_smallest_sets_and_classes(tmp_path: Path) -> None:
    report = report_of(tmp_path, features()[:1], LABELS[:1])
    assert (report.good, report.rows, report.same_label) == (True, 1, None)
    write_neighbours(tmp_path, features(), ROWS)  # k may be as large as N
    report = report_of(tmp_path, meta=np.arange(ROWS))
    assert (report.facts()["classes"]["singletons"], report.same, report.good) == (ROWS, None, True)


def test_the_sets_of_a_folder_are_found(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_set(tmp_path, features(), LABELS, name)
    (tmp_path / "features" / "a.keys.txt").touch()
    assert set_names(tmp_path) == ["a", "b"]
    (tmp_path / "empty" / "features").mkdir(parents=True)
    for folder, said in (("none", "no such file or folder"), ("empty", r"has no \.bin file")):
        with pytest.raises(InputNotFoundError, match=said):
            set_names(tmp_path / folder)


BYTES = features().tobytes()
ONE_WRONG: dict[str, tuple[str, bytes, int | None, int | None, str, str]] = {
    "float64": ("features/a.bin", features().astype("<f8").tobytes(), None, ROWS, "kind of number", "as float64"),
    "big-endian": ("features/a.bin", features().astype(">f4").tobytes(), None, ROWS, "kind of number", "big-endian"),
    "np.save": ("features/a.bin", saved(features()), None, None, "size", "saved by np.save"),
    "cut": ("features/a.bin", BYTES[:-1], DIMENSIONS, None, "size", "was it cut short?"),
    "half": ("features/a.bin", BYTES[: len(BYTES) // 2 + 2], DIMENSIONS, None, "size", "was it cut short?"),
    "half, unknown dimensions": ("features/a.bin", BYTES[: len(BYTES) // 2 + 2], None, None, "size", "expected"),
    "no rows": ("features/a.bin", b"", DIMENSIONS, None, "size", "found an empty file"),
    "no rows, unknown dimensions": ("features/a.bin", b"", None, None, "size", "found an empty file"),
    "blank": ("labels/a.meta", b"0\n" * 60 + b"\n" + b"0\n" * 60, DIMENSIONS, ROWS, "labels", "line 61 is blank"),
    "no number": ("labels/a.meta", b"a\n", None, None, "labels", "line 1"),
    "no label": ("labels/a.meta", b"", None, None, "labels", "no line"),
    "below -1": ("labels/a.meta", b"0\n" * 7 + b"-2\n" + b"0\n" * 112, None, ROWS, "labels", "found 1 below: row 7"),
    "keys": ("features/a.keys.txt", b"k\n" * 119, None, ROWS, "keys", "expected 120 lines, one a row, found 119"),
    "blank key": ("features/a.keys.txt", b"k\n\n" + b"k\n" * 118, None, ROWS, "keys", "found 1 blank"),
}


@pytest.mark.parametrize(("file", "content", "dimensions", "rows", "check", "said"), ONE_WRONG.values(), ids=ONE_WRONG)
def test_one_thing_wrong_is_one_finding(
    tmp_path: Path, file: str, content: bytes, dimensions: int | None, rows: int | None, check: str, said: str
) -> None:
    (write_set(tmp_path, features(), LABELS) / file).write_bytes(content)
    report = check_feature_set(tmp_path, "a", CheckOptions(dimensions))
    (finding,) = (finding for finding in report.findings if finding.wrong)
    assert (report.good, report.rows, finding.check, said in finding.message) == (False, rows, check, True)


def test_some_rows_without_a_label_are_noted_and_not_counted(tmp_path: Path) -> None:
    some, ids = np.where(np.arange(ROWS) % 3, LABELS, -1), write_neighbours(tmp_path, features(), 5)
    report = report_of(tmp_path, meta=some)
    assert (report.good, [finding.check for finding in report.findings]) == (True, ["unlabelled rows"])
    known = (some[:, None] >= 0) & (some[ids] >= 0)
    same_label = report.facts()["same_label"]
    assert same_label["all"] == pytest.approx((some[ids] == some[:, None])[known].mean())
    assert same_label["rows"] == 80


def test_nan_infinity_and_zeros_by_row_number(tmp_path: Path) -> None:
    rows = features()
    rows[[3, 9], 2], rows[5, 0], rows[[11, 12]] = np.nan, -np.inf, 0
    rows[100:107, 1] = np.nan
    report = report_of(tmp_path, rows)
    assert [(finding.check, finding.message) for finding in report.findings if finding.wrong] == [
        ("NaN", "expected finite values, found NaN in 9: rows 3, 9, 100, 101, 102 and 4 more"),
        ("infinite values", "expected finite values, found infinite values in 1: row 5"),
        ("zero rows", "expected no row of zeros, found 2: rows 11, 12"),
    ]
    facts = report.facts()
    assert (facts["not_finite"], facts["zero"], facts["same_label"]["rows"]) == (10, 2, ROWS - 12)
    assert facts["duplicates"]["rows"] == 0  # rows of zeros are reported once


def test_duplicates_are_noted(tmp_path: Path) -> None:
    rows = features()
    rows[[50, 70]] = rows[20]
    rows[31] = rows[30]
    report = report_of(tmp_path, rows)
    (note,) = report.findings
    expected = "found 3 copies of others in 2 groups, 1 of them with several labels: rows 20, 50, 70; 30, 31"
    assert (report.good, expected in note.message) == (True, True)
    found = report.facts()["duplicates"]
    assert (found["rows"], found["groups"], found["other_labels"]) == (3, 2, 1)


def test_rows_of_any_length_and_values_beyond_what_float32_can_square(tmp_path: Path) -> None:
    rows = features() * np.float32(22)
    rows[:2] *= np.array([[1e30], [1e-30]], np.float32)
    rows[2] = np.finfo(np.float32).max
    report = report_of(tmp_path, rows)
    norms, (note,) = report.facts()["norms"], report.findings
    assert (norms["smallest"], norms["unit"]) == (pytest.approx(22e-30, rel=1e-3), 0)
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
    (finding,) = report_of(tmp_path).findings
    assert (finding.wrong, "is a named pipe" in finding.message) == (True, True)


def test_progress_reaches_its_end(tmp_path: Path) -> None:
    write_neighbours(write_set(tmp_path, features(), LABELS), features(), 5)
    last: dict[str, tuple[int, int]] = {}

    @contextmanager
    def watch(step: str) -> Iterator[Observer]:
        yield lambda done, total: last.update({step: (done, total)})

    check_feature_set(tmp_path, "a", watch=watch)
    assert last["reading rows"] == (ROWS * DIMENSIONS * 4,) * 2
    assert last["reading faiss_k_5.npz"] == (ROWS * 2 * 5 * 8,) * 2


def test_memory_is_a_part_of_the_set(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(40_000, 256)).astype(np.float32)  # 41 MB
    write_set(tmp_path, rows, np.arange(40_000) // 10)
    del rows
    assert peak_bytes(lambda: check_feature_set(tmp_path, "a", CheckOptions(sample=50))) < 35_000_000
