"""Packing: what learn-to-cluster then reads, what is refused, labels, and that no partial file has a final name."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from features.sets import Array, saved
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import file_of, jpeg, peak_bytes, tree

from facedata.dataset import open_dataset
from facedata.errors import (
    DiskFullError,
    FacedataError,
    FormatError,
    InputError,
    InterruptedJobError,
    OptionError,
    OutputError,
    OutputExistsError,
)
from facedata.features.feature_set import FeatureSet, FeatureSource
from facedata.features.pack import (
    NO_LABELS,
    UNLABELLED_ROWS,
    Labels,
    Packed,
    PackOptions,
    meta_lines,
    open_labels,
    pack_features,
    save_features,
)
from facedata.features.sources import open_features
from facedata.files import temporary_name
from facedata.jobs.signals import StopRequest


@dataclass(frozen=True, kw_only=True)
class InMemory(FeatureSource):
    """Rows in memory, four at a time."""

    array: Array
    seen: list[int] = field(default_factory=list)

    def blocks(self) -> Iterator[Array]:
        for begin in range(0, len(self.array), 4):
            self.seen.append(begin)
            yield self.array[begin : begin + 4]


def in_memory(array: Array, *, known: bool = True) -> InMemory:
    rows, dimensions = array.shape
    known_rows = rows if known else None
    return InMemory(
        path="memory", title="memory", rows=known_rows, dimensions=dimensions, dtype=array.dtype.name, array=array
    )


def some_rows(rows: int = 10, dimensions: int = 3) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(rows, dimensions)).astype(np.float32)


def labels_of(*numbers: int) -> Labels:
    return Labels("labels", lambda: iter([np.array(numbers, np.int64)]))


def read_set(root: Path, dimensions: int = 3) -> tuple[Array, list[int]]:
    """The set as learn-to-cluster's reader sees it: as many rows as there are labels, of so many values."""
    labels = [int(line) for line in (root / "labels" / "a.meta").read_text().splitlines()]
    values = np.fromfile(root / "features" / "a.bin", dtype=np.float32, count=len(labels) * dimensions)
    return values.reshape(len(labels), dimensions), labels


def assert_set(root: Path, features: Array, labels: Iterable[int]) -> None:
    found, found_labels = read_set(root, features.shape[1])
    np.testing.assert_array_equal(found, features)
    assert found_labels == list(labels)


def pack(root: Path, array: Array, labels: Labels | str = UNLABELLED_ROWS, *, known: bool = True, **how: Any) -> Packed:
    return pack_features(in_memory(array, known=known), FeatureSet(str(root), "a"), labels, PackOptions(**how))


either_way = pytest.mark.parametrize("known", [True, False])
"""Whether the number of rows is known before they are read."""


@either_way
def test_the_set_is_read_as_it_was(tmp_path: Path, known: bool) -> None:
    packed = pack(tmp_path, some_rows(), labels_of(*range(-1, 9)), known=known)
    assert_set(tmp_path, some_rows(), range(-1, 9))
    assert (packed.rows, packed.dimensions, packed.classes) == (10, 3, 9)
    assert set(tree(tmp_path)) == {"features/a.bin", "labels/a.meta"}
    packed = pack(tmp_path / "b", some_rows(), UNLABELLED_ROWS, known=known)
    assert_set(tmp_path / "b", some_rows(), [-1] * 10)
    assert packed.classes == 0
    packed = pack(tmp_path / "c", some_rows(), NO_LABELS, known=known)
    assert set(tree(tmp_path / "c")) == {"features/a.bin"}
    assert (packed.labels, packed.classes) == (None, None)
    packed = pack(tmp_path / "d", some_rows(), labels_of(*range(10)), known=known, limit=6)
    assert_set(tmp_path / "d", some_rows()[:6], range(6))
    assert (packed.rows, packed.classes) == (6, 6)


@pytest.mark.parametrize("dtype", ["<f2", ">f8", ">f4"])
def test_other_floats_become_float32_with_a_message(
    tmp_path: Path, dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "facedata")
    array = some_rows().astype(dtype)
    pack(tmp_path, array)
    assert_set(tmp_path, array.astype(np.float32), [-1] * 10)
    assert (f"{array.dtype.name} becomes float32" in caplog.text) == (array.dtype.itemsize != 4)


odd_values = st.sampled_from([0.0, -0.0, 1.0, 1e-30, 3e38, 1e-46, 1e39, -1e300, np.nan, np.inf])


@settings(deadline=None, max_examples=15)
@given(st.lists(st.lists(odd_values, min_size=3, max_size=3), min_size=1, max_size=9), st.booleans())
def test_exactly_the_rows_on_which_readers_fail_are_refused(rows: list[list[float]], zero: bool) -> None:
    array = np.array(rows)
    with np.errstate(all="ignore"):
        single = array.astype(np.float32)
    bad = [not np.isfinite(row).all() or (not row.any() and not zero) for row in single]
    with TemporaryDirectory() as folder:
        if not any(bad):
            pack(Path(folder), array, allow_zero=zero)
            assert_set(Path(folder), single, [-1] * len(rows))
            return
        with pytest.raises(FormatError, match=r"memory: row \d .*rows count from 0") as refused:
            pack(Path(folder), array, allow_zero=zero)
        row = int(str(refused.value).split()[2].rstrip(","))
        assert bad[row]
        assert bad.index(True) // 4 == row // 4
        assert not os.listdir(folder)


@either_way
@pytest.mark.parametrize("count", [9, 11])
def test_too_few_or_too_many_labels_and_too_large_values_are_refused(tmp_path: Path, known: bool, count: int) -> None:
    for dry_run in {known, False}:
        with pytest.raises(FormatError, match=rf"labels: has {count} labels, but memory has 10 rows"):
            pack(tmp_path, some_rows(), labels_of(*range(count)), known=known, dry_run=dry_run)
    array = some_rows().astype(np.float64)
    array[7, 1] = 1e300
    with pytest.raises(FormatError, match=r"row 7 has 1e\+300, which is too large"):
        pack(tmp_path, array, known=known)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_without_the_option(tmp_path: Path) -> None:
    pack(tmp_path, some_rows(), labels_of(*range(10)))
    before = tree(tmp_path)
    source, output = in_memory(some_rows() + 1), FeatureSet(str(tmp_path), "a")
    with pytest.raises(OutputExistsError, match=r"a\.bin: already exists; .*--overwrite"):
        pack_features(source, output, UNLABELLED_ROWS)
    os.unlink(tmp_path / "features" / "a.bin")
    with pytest.raises(OutputExistsError, match=r"a\.meta: already exists"):
        pack_features(source, output, UNLABELLED_ROWS)
    with pytest.raises(OutputExistsError, match=r"a\.meta: already exists, and would be taken for the labels"):
        pack_features(source, output, NO_LABELS)
    assert source.seen == []  # refused before the matrix is read
    assert tree(tmp_path) == {"labels/a.meta": before["labels/a.meta"]}
    pack(tmp_path, some_rows() + 1, UNLABELLED_ROWS, overwrite=True)
    assert read_set(tmp_path)[1] == [-1] * 10
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "features").write_bytes(b"")
    with pytest.raises(OutputError, match="features: cannot be written: File exists"):
        pack(tmp_path / "b", some_rows())
    (tmp_path / "c" / "features" / "a.bin").mkdir(parents=True)
    with pytest.raises(OutputExistsError, match="is a folder"):
        pack(tmp_path / "c", some_rows(), overwrite=True)


def test_labels_of_the_previous_features_do_not_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pack(tmp_path, some_rows(), labels_of(*range(10)))
    (tmp_path / "knns" / "a").mkdir(parents=True)
    pack(tmp_path, some_rows() + 1, NO_LABELS, overwrite=True)
    assert set(tree(tmp_path)) == {"features/a.bin"}
    assert "a.meta: removed" in caplog.text
    assert "knns/a: belongs to the previous features of this name" in caplog.text


def test_labels_that_are_in_their_place_already_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    meta = tmp_path / "labels" / "a.meta"
    meta.write_text("".join(f"{label}\n" for label in range(10)))
    pack(tmp_path, some_rows(), open_labels(meta), dry_run=True)
    pack(tmp_path, some_rows(), open_labels(meta))
    assert_set(tmp_path, some_rows(), range(10))
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=r"a\.meta: is the input itself"):
        pack(tmp_path, some_rows(), open_labels(meta), overwrite=True, limit=5)
    source = open_features(tmp_path / "features" / "a.bin")
    with pytest.raises(OutputError, match="is the input itself"):
        pack_features(source, FeatureSet(str(tmp_path), "a"), UNLABELLED_ROWS, PackOptions(overwrite=True))
    with pytest.raises(OutputError, match="is the input itself"):
        save_features(source, source.path, PackOptions(overwrite=True))
    assert tree(tmp_path) == before


class _KilledError(BaseException):
    pass


@pytest.mark.parametrize("last", range(4))
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_reader_never_finds_a_wrong_pair_and_the_same_call_completes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int, overwrite: bool
) -> None:
    """Killed before any of the steps that change names: the old pair, no pair, or the new one."""
    if overwrite:
        pack(tmp_path, some_rows() + 5, labels_of(*range(10, 20)))
    new = labels_of(*range(10))
    steps: list[object] = []

    def step(call: Any) -> Any:
        def stepping(*paths: str) -> None:
            steps.append(paths)
            if len(steps) > last:
                raise _KilledError  # a killed process cleans nothing up
            call(*paths)

        return stepping

    with monkeypatch.context() as patch, suppress(_KilledError):
        patch.setattr(os, "unlink", step(os.unlink))
        patch.setattr(os, "replace", step(os.replace))
        pack(tmp_path, some_rows(), new, overwrite=overwrite)
    finished = len(steps) <= last
    if (tmp_path / "features" / "a.bin").exists():
        features, labels = read_set(tmp_path)
        assert (labels[0] == 0) == bool((features == some_rows()).all())
        assert finished or overwrite
    if not finished:
        pack(tmp_path, some_rows(), new, overwrite=overwrite)
        assert_set(tmp_path, some_rows(), range(10))


def left_by_killed_run(path: Path, size: int) -> Path:
    """The temporary file of a process that is not running any more."""
    child = os.fork()
    if child == 0:
        Path(temporary_name(path)).write_bytes(bytes(size))
        os._exit(0)
    os.waitpid(child, 0)
    (left,) = path.parent.glob(".facedata-temporary-*")
    return left


def test_a_stop_leaves_no_files_and_does_not_wait_for_all_labels(tmp_path: Path) -> None:
    stop = StopRequest()
    read: list[int] = []

    def observe(done: int, total: int) -> None:
        assert total == 120
        stop.count = int(done > 50)

    def blocks() -> Iterator[NDArray[np.int64]]:
        for number in range(100):
            read.append(number)
            stop.count = int(number == 3)
            yield np.arange(10)

    with pytest.raises(InterruptedJobError, match="stopped after 8 rows; nothing is kept: run the same command to"):
        pack(tmp_path, some_rows(), stop=stop, observer=observe)
    with pytest.raises(InterruptedJobError, match="numbers: stopped while reading labels; nothing is kept"):
        pack(tmp_path, some_rows(), Labels("numbers", blocks), stop=stop)
    assert (read, list(tmp_path.iterdir())) == ([0, 1, 2, 3], [])


def test_a_full_disk_is_reported_and_no_files_are_left(small_disk: Path) -> None:
    array = np.ones((3000, 1000), np.float32)
    with pytest.raises(DiskFullError, match=r"the matrix needs 12,000,000 bytes, but .* are free"):
        pack(small_disk, array)
    with pytest.raises(DiskFullError, match=r"after 8,\d\d\d,\d\d\d bytes; nothing is kept: free some space"):
        pack(small_disk, array, known=False)
    assert not list(small_disk.iterdir())
    (small_disk / "features").mkdir()
    left_by_killed_run(small_disk / "features" / "a.bin", 7_000_000)  # its room is free
    pack(small_disk, array[:1900])
    assert_set(small_disk, array[:1900], [-1] * 1900)


def test_memory_does_not_grow_with_the_array(tmp_path: Path) -> None:
    array = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.float64, (15_000, 256))
    array[:] = 1.5
    array.flush()
    source = open_features(tmp_path / "a.npy")
    used = peak_bytes(lambda: pack_features(source, FeatureSet(str(tmp_path), "a"), UNLABELLED_ROWS))
    assert used < 12_000_000 < array.nbytes


@either_way
@settings(deadline=None, max_examples=15)
@given(rows=st.integers(1, 30), dimensions=st.integers(1, 5))
def test_the_way_back_is_what_np_save_writes(tmp_path_factory: Any, known: bool, rows: int, dimensions: int) -> None:
    folder = tmp_path_factory.mktemp("a")
    array = some_rows(rows, dimensions)
    expected = io.BytesIO()
    np.save(expected, array)
    save_features(in_memory(array, known=known), folder / "a.npy")
    assert (folder / "a.npy").read_bytes() == expected.getvalue()
    save_features(in_memory(array, known=known), folder / "a.bin")
    assert (folder / "a.bin").read_bytes() == array.tobytes()
    assert len(list(folder.iterdir())) == 2


def test_the_way_back_is_checked_and_overwrites_nothing(tmp_path: Path) -> None:
    array, path = some_rows(), tmp_path / "a.npy"
    array[3, 1], array[5] = np.nan, 0
    for refused in (PackOptions(), PackOptions(allow_nan=True), PackOptions(allow_zero=True)):
        with pytest.raises(FormatError, match=r"row [35] \((NaN|all zero)\)"):
            save_features(in_memory(array), path, refused)
    assert not list(tmp_path.iterdir())
    save_features(in_memory(array), path, PackOptions(allow_nan=True, allow_zero=True))
    np.testing.assert_array_equal(np.load(path), array)
    for name, error, said in (
        ("a.npy", OutputExistsError, "already exists"),
        ("a.csv", OptionError, r"ends in \.npy or \.bin"),
        ("b/a.npy", OutputError, r"folder .* does not exist"),
    ):
        with pytest.raises(error, match=said):
            save_features(in_memory(some_rows()), tmp_path / name)
    save_features(in_memory(some_rows()), path, PackOptions(overwrite=True, limit=2))
    np.testing.assert_array_equal(np.load(path), some_rows()[:2])
    assert save_features(in_memory(some_rows()), tmp_path / "c.npy", PackOptions(dry_run=True)).rows == 10
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


# Labels


def read_labels(labels: Labels) -> list[int]:
    return [label for block in labels.blocks() for label in block.tolist()]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(-1, (1 << 59)), min_size=1), st.sampled_from(["text", "windows", "<i8", ">i8", "<u8"]))
def test_labels_come_back_and_are_written_as_integers_a_line(expected: list[int], how: str) -> None:
    if how in ("text", "windows"):
        data = "".join(f"{label}{chr(13) * (how == 'windows')}\n" for label in expected).encode()
    else:
        expected = [abs(label) for label in expected] if how == "<u8" else expected
        data = saved(np.array(expected, how))
    with file_of(data, "labels") as path:
        labels = open_labels(path)
        assert read_labels(labels) == expected
        assert labels.count() == (len(expected), len(set(expected) - {-1}))
        assert b"".join(meta_lines(labels, len(expected))) == "".join(f"{label}\n" for label in expected).encode()


def test_a_list_and_a_folder_give_the_labels_of_their_dataset(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a/1.jpg 7\nb/2.jpg 3\na/3.jpg 7\n")
    assert read_labels(open_labels(tmp_path / "train.txt")) == [7, 3, 7]
    for name in ("b10", "b9", "a"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for image in range(len(name)):
            (tmp_path / "images" / name / f"{image}.jpg").write_bytes(jpeg(image))
    source = open_dataset(f"folder:{tmp_path / 'images'}")
    expected = np.concatenate(list(source.labels())).tolist()
    assert expected == [0, 1, 1, 2, 2, 2]  # a, b9, b10: the natural order of the names
    assert read_labels(open_labels(tmp_path / "images")) == expected
    assert read_labels(open_labels(f"folder:{tmp_path / 'images'}")) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"1\n1.0\n", "line 2 is '1.0', expected an integer"),
        (b"1\n-2\n", r"the label of row 1 is -2; expected an integer from 0, or -1 for unlabelled"),
        (b"a.jpg 1\nb.jpg 1.5\n", "line 2: the label is not an integer"),
        (b"a.jpg 1\nb.jpg\n", "line 2: expected 'path label'"),
        (saved(np.array([1.0, 2.0])), r"expected labels as integers of shape \(rows,\), found float64"),
        (saved(np.array([[1], [2]])), r"found int64 of shape \(2, 1\); in Python: .*ravel"),
        (saved(np.array([1 << 63], np.uint64)), "the label of row 0 is 9223372036854775808; expected at most"),
        (
            saved(np.array([0, 10**18])),
            "the label of row 1 is 1000000000000000000; expected at most 9{18}",
        ),
        (saved(np.array(["a", None], object)), "never loaded"),
        (saved(np.array([1, 2]))[:-1], "was it cut short"),
    ],
)
def test_wrong_labels_are_refused_by_their_place(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "labels").write_bytes(data)
    with pytest.raises(FormatError, match=message):
        read_labels(open_labels(tmp_path / "labels"))


def test_missing_and_too_few_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        open_labels(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FacedataError, match="image"):
        open_labels(tmp_path / "empty")
    (tmp_path / "labels").write_text("1\n2\n")
    with pytest.raises(FormatError, match="has 2 labels, but 3 rows need one"):
        list(meta_lines(open_labels(tmp_path / "labels"), 3))
    assert b"".join(meta_lines(UNLABELLED_ROWS, (1 << 20) + 1)) == b"-1\n" * ((1 << 20) + 1)


def test_the_output_of_an_unfinished_job_has_no_labels(tmp_path: Path) -> None:
    (tmp_path / "id_0").mkdir()
    (tmp_path / "id_0" / "1.jpg").touch()
    (tmp_path / ".facedata-plan.json").write_text("{}")
    with pytest.raises(InputError, match=r"plan\.json|has not finished"):
        open_labels(tmp_path)
