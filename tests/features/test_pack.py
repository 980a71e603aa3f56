"""Packing: what learn-to-cluster then reads, what is refused, labels, and that no partial file has a final name."""

from __future__ import annotations

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
from features.sets import Array, read_set, saved, write_set
from hypothesis import given, settings
from hypothesis import strategies as st
from support import file_of, jpeg, peak_bytes, temporary_of_dead_process, tree

from facedata import errors
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
    (rows, dimensions), dtype = array.shape, array.dtype.name
    shape: dict[str, Any] = {"rows": rows if known else None, "dimensions": dimensions}
    return InMemory(path="memory", title="memory", dtype=dtype, array=array, **shape)


def some_rows(rows: int = 10, dimensions: int = 3) -> Array:
    return np.random.default_rng(0).normal(size=(rows, dimensions)).astype(np.float32)


def labels_of(*numbers: int) -> Labels:
    return Labels("labels", lambda: iter([np.array(numbers, np.int64)]))


def assert_set(root: Path, features: Array, labels: Iterable[int]) -> None:
    found, found_labels = read_set(root, features.shape[1])
    np.testing.assert_array_equal(found, features)
    assert found_labels == list(labels)


def pack(root: Path, array: Array, labels: Labels | str = UNLABELLED_ROWS, *, known: bool = True, **how: Any) -> Packed:
    return pack_features(in_memory(array, known=known), FeatureSet(str(root), "a"), labels, PackOptions(**how))


either_way = pytest.mark.parametrize("known", [True, False], ids=["rows are known", "rows are counted"])


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


def test_other_floats_become_float32_with_a_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "facedata")
    for dtype, message in (("<f2", "float16 becomes float32"), (">f8", "float64 becomes float32"), (">f4", "")):
        array = some_rows().astype(dtype)
        pack(tmp_path / dtype, array)
        assert_set(tmp_path / dtype, array.astype(np.float32), [-1] * 10)
        assert message in caplog.text
    assert caplog.text.count("becomes float32") == 2


odd_values = st.sampled_from([0.0, -0.0, 1.0, 1e-30, 3e38, 1e-46, 1e39, -1e300, np.nan, np.inf])


@settings(max_examples=15)
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
        with pytest.raises(errors.FormatError, match=r"memory: row \d .*rows count from 0") as refused:
            pack(Path(folder), array, allow_zero=zero)
        row = int(str(refused.value).split()[2].rstrip(","))
        assert bad[row]
        assert bad.index(True) // 4 == row // 4
        assert not os.listdir(folder)


@either_way
@pytest.mark.parametrize("count", [9, 11])
def test_too_few_or_too_many_labels_and_too_large_values_are_refused(tmp_path: Path, known: bool, count: int) -> None:
    for dry_run in {known, False}:
        with pytest.raises(errors.FormatError, match=rf"labels: has {count} labels, but memory has 10 rows"):
            pack(tmp_path, some_rows(), labels_of(*range(count)), known=known, dry_run=dry_run)
    array = some_rows().astype(np.float64)
    array[7, 1] = 1e300
    with pytest.raises(errors.FormatError, match=r"row 7 has 1e\+300, which is too large"):
        pack(tmp_path, array, known=known)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_without_the_option(tmp_path: Path) -> None:
    pack(tmp_path, some_rows(), labels_of(*range(10)))
    before = tree(tmp_path)
    source, output = in_memory(some_rows() + 1), FeatureSet(str(tmp_path), "a")
    with pytest.raises(errors.OutputExistsError, match=r"a\.(bin|meta): already exists; .*--overwrite"):
        pack_features(source, output, UNLABELLED_ROWS)
    os.unlink(tmp_path / "features" / "a.bin")
    with pytest.raises(errors.OutputExistsError, match=r"a\.meta: already exists"):
        pack_features(source, output, UNLABELLED_ROWS)
    with pytest.raises(errors.OutputExistsError, match=r"a\.meta: already exists, and would be taken for the labels"):
        pack_features(source, output, NO_LABELS)
    assert source.seen == []  # refused before the matrix is read
    assert tree(tmp_path) == {"labels/a.meta": before["labels/a.meta"]}
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "features").write_bytes(b"")
    with pytest.raises(errors.OutputError, match="features: exists and is not a folder"):
        pack(tmp_path / "b", some_rows())
    (tmp_path / "c" / "features" / "a.bin").mkdir(parents=True)
    with pytest.raises(errors.OutputExistsError, match="is a folder"):
        pack(tmp_path / "c", some_rows(), overwrite=True)


def test_labels_of_the_previous_features_do_not_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pack(tmp_path, some_rows(), labels_of(*range(10)))
    (tmp_path / "knns" / "a").mkdir(parents=True)
    pack(tmp_path, some_rows() + 1, NO_LABELS, overwrite=True)
    assert set(tree(tmp_path)) == {"features/a.bin"}
    assert "a.meta: removed" in caplog.text
    assert "knns/a: belongs to the previous features of this name" in caplog.text


def test_labels_that_are_in_their_place_already_are_accepted_but_no_input_is_replaced(tmp_path: Path) -> None:
    meta, path = tmp_path / "labels" / "a.meta", tmp_path / "features" / "a.bin"
    write_set(tmp_path, some_rows(), np.arange(10))
    path.unlink()
    pack(tmp_path, some_rows(), open_labels(meta), dry_run=True)
    pack(tmp_path, some_rows(), open_labels(meta))
    assert_set(tmp_path, some_rows(), range(10))
    before, replacing = tree(tmp_path), PackOptions(overwrite=True)
    with pytest.raises(errors.OutputError, match=r"a\.meta: is the input itself"):
        pack(tmp_path, some_rows(), open_labels(meta), overwrite=True, limit=5)
    with pytest.raises(errors.OutputError, match="is the input itself"):
        pack_features(open_features(path), FeatureSet(str(tmp_path), "a"), UNLABELLED_ROWS, replacing)
    with pytest.raises(errors.OutputError, match="is the input itself"):
        save_features(open_features(path), path, replacing)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("last", range(4))
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_reader_never_finds_a_wrong_pair_and_the_same_call_completes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int, overwrite: bool
) -> None:
    """Killed before any of the steps that change names: the old pair, no pair, or the new one."""
    new, finished, steps = labels_of(*range(10)), False, iter(range(99))
    if overwrite:
        pack(tmp_path, some_rows() + 5, labels_of(*range(10, 20)))

    def step(call: Any) -> Any:
        def stepping(*paths: str) -> None:
            if next(steps) >= last:
                raise KeyboardInterrupt  # a killed process cleans nothing up
            call(*paths)

        return stepping

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(os, "unlink", step(os.unlink))
        patch.setattr(os, "replace", step(os.replace))
        pack(tmp_path, some_rows(), new, overwrite=overwrite)
        finished = True
    if (tmp_path / "features" / "a.bin").exists():
        features, labels = read_set(tmp_path, 3)
        assert (labels[0] == 0) == bool((features == some_rows()).all())
        assert finished or overwrite
    if not finished:
        pack(tmp_path, some_rows(), new, overwrite=overwrite)
        assert_set(tmp_path, some_rows(), range(10))


def test_a_stop_leaves_no_files_and_does_not_wait_for_all_labels(tmp_path: Path) -> None:
    stop = StopRequest()
    read: list[int] = []

    def observe(done: int, total: int) -> None:
        assert total == 120
        stop.count = int(done > 50)

    def blocks() -> Iterator[Array]:
        for number in range(100):
            read.append(number)
            stop.count = int(number == 3)
            yield np.arange(10)

    with pytest.raises(errors.InterruptedJobError, match="stopped after 8 rows; nothing is kept: run the same command"):
        pack(tmp_path, some_rows(), stop=stop, observer=observe)
    with pytest.raises(errors.InterruptedJobError, match="numbers: stopped while reading labels; nothing is kept"):
        pack(tmp_path, some_rows(), Labels("numbers", blocks), stop=stop)
    assert (read, list(tmp_path.iterdir())) == ([0, 1, 2, 3], [])


def test_a_full_disk_is_reported_and_no_files_are_left(small_disk: Path) -> None:
    array = np.ones((3000, 1000), np.float32)
    with pytest.raises(errors.DiskFullError, match=r"the matrix needs 12,000,000 bytes, but .* are free"):
        pack(small_disk, array)
    with pytest.raises(errors.DiskFullError, match=r"after 8,\d\d\d,\d\d\d bytes; nothing is kept: free some space"):
        pack(small_disk, array, known=False)
    assert not list(small_disk.iterdir())
    (small_disk / "features").mkdir()
    of_killed_run = Path(temporary_of_dead_process(small_disk / "features" / "a.bin"))
    of_killed_run.write_bytes(bytes(7_000_000))  # its room is free
    pack(small_disk, array[:1900])
    assert_set(small_disk, array[:1900], [-1] * 1900)


@pytest.mark.parametrize(("order", "most"), [("C", 12_000_000), ("F", 75_000_000)])
def test_a_large_array_in_either_order_takes_bounded_memory(tmp_path: Path, order: str, most: int) -> None:
    array = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.float64, (40_000, 256), order == "F")
    array[:] = np.arange(1, 40_001)[:, None]
    array.flush()
    source = open_features(tmp_path / "a.npy")
    assert peak_bytes(lambda: save_features(source, tmp_path / "a.bin")) < most < array.nbytes
    np.testing.assert_array_equal(np.fromfile(tmp_path / "a.bin", np.float32).reshape(array.shape), array)


@either_way
@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (30, 1234)])
def test_the_way_back_is_what_np_save_writes(tmp_path: Path, known: bool, shape: tuple[int, int]) -> None:
    array = some_rows(*shape)
    for name, expected in (("a.npy", saved(array)), ("a.bin", array.tobytes())):
        save_features(in_memory(array, known=known), tmp_path / name)
        assert (tmp_path / name).read_bytes() == expected
    assert len(list(tmp_path.iterdir())) == 2


@either_way
def test_a_run_that_was_killed_after_its_last_rename_runs_again(tmp_path: Path, known: bool) -> None:
    array = some_rows()
    for name in ("a.npy", "a.bin"):
        path = tmp_path / name
        save_features(in_memory(array), path)
        before = path.stat()
        save_features(in_memory(array, known=known), path)
        assert path.stat() == before
        for other in (array[:9], -array, np.concatenate([array, array[:1]])):
            with pytest.raises(errors.OutputExistsError, match="already exists"):
                save_features(in_memory(other, known=known), path)
        assert path.stat() == before
    pack(tmp_path, array, labels_of(*range(10)))
    kept = tree(tmp_path)
    pack(tmp_path, array, labels_of(*range(10)), known=known)
    with pytest.raises(errors.OutputExistsError, match="already exists"):
        pack(tmp_path, -array, labels_of(*range(10)), known=known)
    assert tree(tmp_path) == kept


def test_the_way_back_is_checked_and_overwrites_nothing(tmp_path: Path) -> None:
    array, path = some_rows(), tmp_path / "a.npy"
    array[3, 1], array[5] = np.nan, 0
    for refused in (PackOptions(), PackOptions(allow_nan=True), PackOptions(allow_zero=True)):
        with pytest.raises(errors.FormatError, match=r"row [35] \((NaN|all zero)\)"):
            save_features(in_memory(array), path, refused)
    assert not list(tmp_path.iterdir())
    save_features(in_memory(array), path, PackOptions(allow_nan=True, allow_zero=True))
    np.testing.assert_array_equal(np.load(path), array)
    for name, error, said in (
        ("a.npy", errors.OutputExistsError, "already exists"),
        ("a.csv", errors.OptionError, r"ends in \.npy or \.bin"),
        ("b/a.npy", errors.OutputError, r"folder .* does not exist"),
    ):
        with pytest.raises(error, match=said):
            save_features(in_memory(some_rows()), tmp_path / name)
    save_features(in_memory(some_rows()), path, PackOptions(overwrite=True, limit=2))
    np.testing.assert_array_equal(np.load(path), some_rows()[:2])
    assert save_features(in_memory(some_rows()), tmp_path / "c.npy", PackOptions(dry_run=True)).rows == 10
    assert os.listdir(tmp_path) == ["a.npy"]


# Labels


def read_labels(path: Path | str) -> list[int]:
    return [label for block in open_labels(path).blocks() for label in block.tolist()]


@settings(max_examples=20)
@given(st.lists(st.integers(-1, (1 << 59)), min_size=1), st.sampled_from(["text", "windows", "<i8", ">i8", "<u8"]))
def test_labels_come_back_and_are_written_as_integers_a_line(expected: list[int], how: str) -> None:
    if how in ("text", "windows"):
        data = "".join(f"{label}{chr(13) * (how == 'windows')}\n" for label in expected).encode()
    else:
        expected = [abs(label) for label in expected] if how == "<u8" else expected
        data = saved(np.array(expected, how))
    with file_of(data, "labels") as path:
        assert read_labels(path) == expected
        labels = open_labels(path)
        assert labels.count() == (len(expected), len(set(expected) - {-1}))
        assert b"".join(meta_lines(labels, len(expected))) == "".join(f"{label}\n" for label in expected).encode()


def test_a_list_and_a_folder_give_the_labels_of_their_dataset_once_it_is_finished(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a/1.jpg 7\nb/2.jpg 3\na/3.jpg 7\n")
    assert read_labels(tmp_path / "train.txt") == [7, 3, 7]
    images = tmp_path / "images"
    for name in ("b10", "b9", "a"):
        (images / name).mkdir(parents=True)
        for image in range(len(name)):
            (images / name / f"{image}.jpg").write_bytes(jpeg(image))
    for spec in (images, f"folder:{images}"):
        assert read_labels(spec) == [0, 1, 1, 2, 2, 2]  # a, b9, b10: the natural order of the names
    (images / ".facedata-plan.json").write_text("{}")
    with pytest.raises(errors.InputError, match=r"plan\.json|has not finished"):
        open_labels(images)


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
        (saved(np.array([0, 10**18])), "the label of row 1 is 1000000000000000000; expected at most 9{18}"),
        (saved(np.array(["a", None], object)), "never loaded"),
        (saved(np.array([1, 2]))[:-1], "was it cut short"),
    ],
)
def test_wrong_labels_are_refused_by_their_place(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "labels").write_bytes(data)
    with pytest.raises(errors.FormatError, match=message):
        read_labels(tmp_path / "labels")


def test_missing_and_too_few_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match="no such file"):
        open_labels(tmp_path / "none")
    with pytest.raises(errors.FacedataError, match="image"):
        open_labels(tmp_path)
    with pytest.raises(errors.FormatError, match="has 2 labels, but 3 rows need one"):
        list(meta_lines(labels_of(1, 2), 3))
    assert b"".join(meta_lines(UNLABELLED_ROWS, (1 << 20) + 1)) == b"-1\n" * ((1 << 20) + 1)
