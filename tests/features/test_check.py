"""Whole sets, good ones and ones with a single thing wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support import peak_bytes

from facedata.errors import InputError, InputNotFoundError, OptionError
from facedata.features.check import CheckOptions, check_feature_set, check_matrix, set_names
from facedata.features.checks.report import Observer, SetReport

Array = NDArray[Any]
CLASSES, OF_EACH, DIMENSIONS = 10, 12, 16
ROWS = CLASSES * OF_EACH


def features(rows: int = ROWS, dimensions: int = DIMENSIONS, seed: int = 0) -> Array:
    """Unit rows around the centre of their class."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(CLASSES, dimensions))
    whole = centres[np.arange(rows) // OF_EACH % CLASSES] + 0.4 * random.normal(size=(rows, dimensions))
    unit: Array = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    return unit.astype(np.float32)


def labels(rows: int = ROWS) -> Array:
    return np.arange(rows) // OF_EACH % CLASSES


def write_set(root: Path, rows: Array | None = None, meta: Array | str | None = None, name: str = "a") -> Path:
    for folder in ("features", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rows = features() if rows is None else rows
    rows.tofile(root / "features" / f"{name}.bin")
    lines = meta if isinstance(meta, str) else "".join(f"{one}\n" for one in (labels() if meta is None else meta))
    (root / "labels" / f"{name}.meta").write_text(lines)
    return root


def neighbours(rows: Array, k: int) -> Array:
    """The array of learn-to-cluster, by brute force."""
    cosines = rows.astype(np.float64) @ rows.T.astype(np.float64)
    np.fill_diagonal(cosines, 2)  # the row itself first
    ids = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    distances = np.clip(1 - np.take_along_axis(cosines, ids, 1), 0, 1)
    return np.stack([ids, distances], axis=1)


def write_neighbours(root: Path, array: Array, name: str = "a", k: int = 5) -> Path:
    path = root / "knns" / name / f"faiss_k_{k}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, data=array)
    return path


def wrong(report: SetReport) -> list[tuple[str, str]]:
    return [(one.check, one.message) for one in report.findings if one.wrong]


def one_wrong(report: SetReport) -> tuple[str, str]:
    (found,) = wrong(report)
    assert not report.good
    return found


class TestGoodSets:
    def test_everything_is_told(self, tmp_path: Path) -> None:
        rows = features()
        write_neighbours(write_set(tmp_path), neighbours(rows, 5))
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
        ids = neighbours(rows, 5)[:, 0, 1:].astype(int)
        same = labels()[ids] == labels()[:, None]
        assert report.same_label.all == pytest.approx(same.mean())
        assert report.same_label.nearest == pytest.approx(same[:, 0].mean())
        assert (report.same_label.possible, report.same_label.source) == (1.0, file.path)
        assert report.same is not None
        assert report.other is not None
        assert report.same.mean > report.other.mean + 0.3

    def test_the_sample_has_the_same_share_as_the_file(self, tmp_path: Path) -> None:
        write_set(tmp_path)
        by_sample = check_feature_set(tmp_path, "a", CheckOptions(k=6)).same_label
        write_neighbours(tmp_path, neighbours(features(), 6), k=6)
        by_file = check_feature_set(tmp_path, "a").same_label
        assert by_sample is not None
        assert by_file is not None
        assert (by_sample.all, by_sample.nearest, by_sample.possible) == (
            by_file.all,
            by_file.nearest,
            by_file.possible,
        )
        assert by_sample.source == f"exact neighbours of {ROWS} rows"

    def test_the_facts_are_json_and_the_same_each_time(self, tmp_path: Path) -> None:
        write_set(tmp_path)
        first, second = (json.dumps(check_feature_set(tmp_path, "a").facts(), allow_nan=False) for _ in range(2))
        assert first == second
        assert json.loads(first)["same_label"]["neighbours"] == 79

    @pytest.mark.parametrize("meta", ["-1\n" * ROWS, None])
    def test_without_labels_there_is_no_quality_but_all_else(self, tmp_path: Path, meta: str | None) -> None:
        write_neighbours(write_set(tmp_path, meta="-1\n" * ROWS), neighbours(features(), 5))
        if meta is None:
            (tmp_path / "labels" / "a.meta").unlink()
        report = check_feature_set(tmp_path, "a", CheckOptions(dimensions=DIMENSIONS))
        assert report.good
        assert (report.same_label, report.same, len(report.neighbours)) == (None, None, 1)
        assert (report.classes is None) == (meta is None)

    def test_a_matrix_alone(self, tmp_path: Path) -> None:
        features().tofile(tmp_path / "x.bin")
        report = check_matrix(tmp_path / "x.bin", CheckOptions(dimensions=DIMENSIONS))
        assert (report.good, report.rows, report.classes) == (True, ROWS, None)
        with pytest.raises(OptionError, match="give --dim"):
            check_matrix(tmp_path / "x.bin")

    def test_one_row(self, tmp_path: Path) -> None:
        write_neighbours(write_set(tmp_path, features(1), labels(1)), neighbours(features(1), 1), k=1)
        report = check_feature_set(tmp_path, "a")
        assert (report.good, report.rows, report.same_label) == (True, 1, None)

    def test_k_may_be_as_large_as_n(self, tmp_path: Path) -> None:
        write_neighbours(write_set(tmp_path), neighbours(features(), ROWS), k=ROWS)
        assert check_feature_set(tmp_path, "a").good

    def test_every_class_of_one_row_and_a_single_class(self, tmp_path: Path) -> None:
        write_set(tmp_path, meta=np.arange(ROWS))
        report = check_feature_set(tmp_path, "a")
        assert report.classes is not None
        assert (report.classes.singletons, report.same, report.good) == (ROWS, None, True)
        write_set(tmp_path, meta=np.zeros(ROWS, int))
        report = check_feature_set(tmp_path, "a")
        assert (report.other, report.good) == (None, True)

    def test_rows_of_any_length_are_good_and_their_norms_told(self, tmp_path: Path) -> None:
        write_set(tmp_path, features() * 22)
        report = check_feature_set(tmp_path, "a")
        assert report.good
        assert report.norms is not None
        assert (round(report.norms.mean, 3), report.norms.unit) == (22, 0)

    def test_the_sets_of_a_folder_are_found(self, tmp_path: Path) -> None:
        for name in ("b", "a"):
            write_set(tmp_path, name=name)
        (tmp_path / "features" / "a.keys.txt").touch()
        assert set_names(tmp_path) == ["a", "b"]
        with pytest.raises(InputNotFoundError, match="no such file or folder"):
            set_names(tmp_path / "none")
        (tmp_path / "empty" / "features").mkdir(parents=True)
        with pytest.raises(InputNotFoundError, match=r"has no \.bin file"):
            set_names(tmp_path / "empty")


class TestSizes:
    def test_float64(self, tmp_path: Path) -> None:
        write_set(tmp_path, features().astype(np.float64))
        size, kind = wrong(check_feature_set(tmp_path, "a", CheckOptions(dimensions=DIMENSIONS)))
        assert size[0] == "size"
        assert "twice that: is it float64?" in size[1]
        assert kind[1] == "expected float32, found bytes that make sense only as float64"

    @pytest.mark.parametrize(("kind", "dimensions"), [("<f8", 32), ("<f2", 8), (">f4", 16)])
    def test_other_numbers_are_told_by_their_bytes_where_the_size_fits(
        self, tmp_path: Path, kind: str, dimensions: int
    ) -> None:
        write_set(tmp_path, features().astype(kind))
        report = check_feature_set(tmp_path, "a")
        assert report.dimensions == dimensions
        check, message = one_wrong(report)
        assert check == "kind of number"
        assert message.endswith({"<f8": "float64", "<f2": "float16", ">f4": "big-endian float32"}[kind])

    def test_a_header_that_was_left_in(self, tmp_path: Path) -> None:
        write_set(tmp_path)
        np.save(tmp_path / "x.npy", features())
        (tmp_path / "x.npy").rename(tmp_path / "features" / "a.bin")
        for options in (CheckOptions(), CheckOptions(dimensions=DIMENSIONS)):
            check, message = one_wrong(check_feature_set(tmp_path, "a", options))
            assert check == "size"
            assert "saved by np.save" in message

    @pytest.mark.parametrize("dimensions", [None, 256])
    def test_a_label_too_few(self, tmp_path: Path, dimensions: int | None) -> None:
        write_set(tmp_path, features(dimensions=256), labels(ROWS - 1))
        report = check_feature_set(tmp_path, "a", CheckOptions(dimensions=dimensions))
        check, message = one_wrong(report)
        assert check == "size"
        assert f"it has {ROWS} rows, 1 more ({ROWS - 1} lines in " in message
        assert (report.rows, report.dimensions, report.same_label) == (
            ROWS,
            256,
            None,
        )  # the rows were read all the same

    @pytest.mark.parametrize("cut", [1, 4, 1023, 1024 * 60 + 2])
    def test_a_file_that_was_cut(self, tmp_path: Path, cut: int) -> None:
        path = write_set(tmp_path, features(dimensions=256)) / "features" / "a.bin"
        os.truncate(path, path.stat().st_size - cut)
        check, message = one_wrong(check_feature_set(tmp_path, "a", CheckOptions(dimensions=256)))
        assert check == "size"
        assert "was it cut short?" in message
        assert one_wrong(check_feature_set(tmp_path, "a"))[0] == "size"

    def test_an_empty_file(self, tmp_path: Path) -> None:
        write_set(tmp_path, features(0))
        assert one_wrong(check_feature_set(tmp_path, "a"))[0] == "size"


class TestLabels:
    @pytest.mark.parametrize(
        ("meta", "said"),
        [
            ("0\n" * 60 + "\n" + "0\n" * 60, "line 61 is blank"),
            ("0\n" * 60 + "1.5\n" + "0\n" * 59, "line 61 is '1.5'"),
            ("0\n" * 60 + "Anna\n" + "0\n" * 59, "line 61 is 'Anna'"),
            ("", "no line"),
        ],
    )
    @pytest.mark.parametrize("dimensions", [None, DIMENSIONS])
    def test_a_line_that_is_no_label(self, tmp_path: Path, meta: str, said: str, dimensions: int | None) -> None:
        write_set(tmp_path, meta=meta)
        report = check_feature_set(tmp_path, "a", CheckOptions(dimensions=dimensions))
        check, message = one_wrong(report)
        assert check == "labels"
        assert said in message
        assert report.rows == (ROWS if dimensions else None)

    def test_labels_below_minus_one(self, tmp_path: Path) -> None:
        write_set(tmp_path, meta=np.where(np.arange(ROWS) == 7, -2, labels()))
        assert one_wrong(check_feature_set(tmp_path, "a"))[1] == (
            "expected labels from 0 on, or -1, found 1 below: row 7"
        )

    def test_some_without_a_label_are_noted_and_left_out(self, tmp_path: Path) -> None:
        some = np.where(np.arange(ROWS) % 3, labels(), -1)
        write_neighbours(write_set(tmp_path, meta=some), neighbours(features(), 5))
        report = check_feature_set(tmp_path, "a")
        assert report.good
        assert [one.check for one in report.findings] == ["unlabelled rows"]
        ids = neighbours(features(), 5)[:, 0, 1:].astype(int)
        known = (some[:, None] >= 0) & (some[ids] >= 0)
        assert report.same_label is not None
        assert report.same_label.all == pytest.approx((some[ids] == some[:, None])[known].mean())
        assert report.same_label.rows == 80

    @pytest.mark.parametrize(("keys", "said"), [("k\n" * 119, "found 119"), ("k\n\n" + "k\n" * 118, "1 blank")])
    def test_keys(self, tmp_path: Path, keys: str, said: str) -> None:
        (write_set(tmp_path) / "features" / "a.keys.txt").write_text(keys)
        check, message = one_wrong(check_feature_set(tmp_path, "a"))
        assert check == "keys"
        assert said in message


class TestRows:
    def test_nan_infinity_and_zeros_by_row_number(self, tmp_path: Path) -> None:
        rows = features()
        rows[[3, 9], 2], rows[5, 0], rows[[11, 12]] = np.nan, -np.inf, 0
        rows[100:107, 1] = np.nan
        report = check_feature_set(write_set(tmp_path, rows), "a")
        assert wrong(report) == [
            ("NaN", "expected finite values, found NaN in 9: rows 3, 9, 100, 101, 102 and 4 more"),
            ("infinite values", "expected finite values, found infinite values in 1: row 5"),
            ("zero rows", "expected no row of zeros, found 2: rows 11, 12"),
        ]
        assert (report.not_finite, report.zero) == (10, 2)
        assert report.same_label is not None
        assert report.same_label.rows == ROWS - 12
        assert report.duplicates is not None
        assert report.duplicates.rows == 0  # rows of zeros are told once

    def test_duplicates_are_noted(self, tmp_path: Path) -> None:
        rows = features()
        rows[[50, 70]] = rows[20]
        rows[31] = rows[30]
        report = check_feature_set(write_set(tmp_path, rows), "a")
        assert report.good
        (note,) = report.findings
        assert (
            "found 3 copies of others in 2 groups, 1 of them with several labels: rows 20, 50, 70; 30, 31"
            in note.message
        )
        assert report.duplicates is not None
        assert (report.duplicates.rows, report.duplicates.groups, report.duplicates.other_labels) == (3, 2, 1)

    def test_all_rows_the_same(self, tmp_path: Path) -> None:
        rows = np.repeat(features(1), ROWS, axis=0)
        report = check_feature_set(write_set(tmp_path, rows), "a")
        assert report.duplicates is not None
        assert (report.duplicates.rows, report.duplicates.examples) == (ROWS - 1, [[0, 1, 2, 3]])

    def test_values_beyond_what_float32_can_square(self, tmp_path: Path) -> None:
        rows = features()
        rows[0] *= np.float32(1e30)
        rows[1] *= np.float32(1e-30)
        rows[2] = np.finfo(np.float32).max
        report = check_feature_set(write_set(tmp_path, rows), "a")
        assert wrong(report) == []
        assert report.norms is not None
        assert report.norms.smallest == pytest.approx(1e-30, rel=1e-3)
        (note,) = report.findings
        assert "expected norms that float32 can square, found others in 3: rows 0, 1, 2" in note.message


class TestFiles:
    def test_what_is_not_there(self, tmp_path: Path) -> None:
        write_set(tmp_path)
        with pytest.raises(InputNotFoundError, match=r"b\.bin: no such file"):
            check_feature_set(tmp_path, "b")
        with pytest.raises(InputNotFoundError):
            check_matrix(tmp_path / "b.bin", CheckOptions(dimensions=4))

    @pytest.mark.parametrize("which", ["features/a.bin", "labels/a.meta", "features/a.keys.txt"])
    def test_pipes_and_folders_are_refused_and_not_waited_for(self, tmp_path: Path, which: str) -> None:
        for make in (os.mkfifo, os.mkdir):
            root = write_set(tmp_path / make.__name__)
            (root / which).unlink(missing_ok=True)
            make(root / which)
            with pytest.raises(InputError, match="not a file"):
                check_feature_set(root, "a")

    def test_a_pipe_among_the_neighbours(self, tmp_path: Path) -> None:
        (write_set(tmp_path) / "knns" / "a").mkdir(parents=True)
        os.mkfifo(tmp_path / "knns" / "a" / "faiss_k_5.npz")
        assert "is a named pipe" in one_wrong(check_feature_set(tmp_path, "a"))[1]

    def test_progress_comes_to_its_end(self, tmp_path: Path) -> None:
        write_neighbours(write_set(tmp_path), neighbours(features(), 5))
        seen: dict[str, list[tuple[int, int]]] = {}

        @contextmanager
        def watch(what: str) -> Iterator[Observer]:
            yield lambda done, total: seen.setdefault(what, []).append((done, total))

        check_feature_set(tmp_path, "a", watch=watch)
        assert seen["reading rows"][-1] == (ROWS * DIMENSIONS * 4,) * 2
        assert seen["reading faiss_k_5.npz"][-1] == (ROWS * 2 * 5 * 8,) * 2

    def test_memory_is_a_part_of_the_set(self, tmp_path: Path) -> None:
        rows = np.random.default_rng(0).normal(size=(60_000, 256)).astype(np.float32)  # 61 MB
        write_set(tmp_path, rows, np.arange(60_000) // 10)
        del rows
        assert peak_bytes(lambda: check_feature_set(tmp_path, "a", CheckOptions(sample=50))) < 45_000_000
