"""Sources of features: whatever the file, the rows are those that were saved, and what is no matrix is refused."""

from __future__ import annotations

import io
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from features.sets import Array, Trap, archive_of, saved
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support import file_of, peak_bytes

from facedata.errors import EmptyDatasetError, FormatError, OptionError
from facedata.features.sources import open_features

some_rows = np.random.default_rng(0).normal(size=(23, 5))


def read(path: Path | str, **options: Any) -> Array:
    return np.concatenate([np.array(block) for block in open_features(path, **options).blocks()])


matrices = arrays.arrays(
    st.sampled_from(["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"]).map(np.dtype),
    st.tuples(st.integers(1, 40), st.integers(1, 9)),
    elements=st.floats(-100, 100, width=16),
)


@settings(max_examples=20)
@given(matrices, st.booleans(), st.sampled_from(["npy", "savez", "savez_compressed"]))
def test_arrays_of_numpy_come_back_in_any_order_and_type(array: Array, fortran: bool, how: str) -> None:
    array = np.asfortranarray(array) if fortran else array
    data = io.BytesIO(saved(array) if how == "npy" else b"")
    if how != "npy":
        getattr(np, how)(data, a=array)
    with file_of(data.getvalue(), "a.npy" if how == "npy" else "a.npz") as path:
        if how == "savez_compressed" and fortran and 1 not in array.shape:
            with pytest.raises(FormatError, match=r"column by column.*np\.save"):
                open_features(path)
            return
        source = open_features(path)
        assert (source.rows, source.dimensions, source.dtype) == (*array.shape, array.dtype.name)
        np.testing.assert_array_equal(read(path), array)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.arange(10).reshape(5, 2), r"found int64: are these the labels\?.*astype\(np\.float32\)"),
        (np.ones((5, 2), np.complex64), "found complex64"),
        (np.ones((5, 1, 2), np.float32), r"found \(5, 1, 2\); in Python: .*reshape"),
        (np.ones((5, 0), np.float32), "found 0"),
        (np.array([[1], [1, 2]], object), r"holds Python objects, a pickle, which is never loaded"),
        (np.zeros(3, [("a", "f4")]), "expected an array of numbers, found the type .\\[\\('a'"),
    ],
)
def test_arrays_other_than_matrices_of_floats_are_refused(tmp_path: Path, array: Array, message: str) -> None:
    for name, data in (("a.npy", saved(array)), ("a.npz", archive_of("a.npy", saved(array)))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FormatError, match=message):
            open_features(tmp_path / name)


def test_headers_of_all_versions_are_read_and_wrong_ones_refused(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.npy", saved(some_rows)
    for data, message in [
        (saved(np.ones((0, 5))), "has no rows"),
        (whole[:-8], "expected 1,048 bytes .*found 1,040: was it cut short"),
        (whole * 2, "does it contain more than one array"),
        (whole.replace(b"(23, 5), }" + b" " * 20, b"(%d, 512), }" % (1 << 60) + b" "), "was it cut short"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b"(" * 20_000, "longer than 10,000 bytes"),
        (b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"(" * 9000, "header is damaged"),
        (b"\x93NUMPY\x09\x00" + bytes(100), "does not begin with a NumPy header"),
    ]:
        path.write_bytes(data)
        with pytest.raises((FormatError, EmptyDatasetError), match=message):
            open_features(path)
    for version in [(1, 0), (2, 0), (3, 0)]:
        with open(path, "wb") as file:
            np.lib.format.write_array(file, some_rows, version)
        np.testing.assert_array_equal(read(path), some_rows)
    path.write_bytes(whole.replace(b"(23, 5)", b"(23L, 5L)").replace(b"  \n", b"\n", 1))  # of Python 2
    np.testing.assert_array_equal(read(path), some_rows)
    source = open_features(path)
    path.write_bytes(whole[:500])
    with pytest.raises(FormatError, match="cut short while it was being read"):
        list(source.blocks())


def test_a_damaged_archive_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, some_rows)
    whole = path.read_bytes()
    end = whole.rindex(b"PK\x05\x06")
    for data, message in [
        (whole[:400] + bytes([whole[400] ^ 1]) + whole[401:], r"a\.npz: is not a complete \.npz archive: .*CRC"),
        (whole[:600], r"is not a complete \.npz archive"),
        (whole[: end + 12] + b"\xff\xff\xff\x7f" + whole[end + 16 :], r"is not a complete \.npz archive"),
        (archive_of("readme.txt", b"hello"), "contains no array"),
        (archive_of("a.npy", saved(some_rows)[:-8]), "array 'a': expected 1,048 bytes"),
        # others than np.savez's methods may unpack gigabytes at once
        (archive_of("a.npy", saved(some_rows), zipfile.ZIP_BZIP2), r"compressed in another way than np\.savez"),
        (archive_of("a.npy", saved(some_rows), zipfile.ZIP_LZMA), r"compressed in another way than np\.savez"),
    ]:
        path.write_bytes(data)
        with pytest.raises((FormatError, EmptyDatasetError), match=message):
            read(path)


def test_the_directory_of_an_archive_is_not_read_whole(tmp_path: Path) -> None:
    path, size = tmp_path / "a.npz", 1 << 28
    with open(path, "wb") as file:  # a sparse file; another end record lies inside the one that counts
        file.truncate(size)
        file.seek(size)
        file.write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, size, 0x06054B50, 0))

    def refused() -> None:
        with pytest.raises(FormatError, match="is not a complete"):
            open_features(path)

    assert peak_bytes(refused) < 1 << 26


@pytest.mark.filterwarnings("ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["a.pt", "a.pkl", "a.npz"])
def test_a_pickle_is_never_loaded_but_explained(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # as PyTorch saves it; another name does not hide it
    Path(name).write_bytes(archive_of("archive/data.pkl", pickle.dumps(Trap())))
    with pytest.raises(FormatError, match=r"is a pickle.*two lines of Python") as refused:
        open_features(name)
    lines = [line.strip() for line in str(refused.value).splitlines()[1:]]
    compile("\n".join(lines), "lines", "exec")
    assert not Path("trapped").exists()
    if name == "a.pkl":
        Path(name).write_bytes(pickle.dumps(some_rows))
        exec("\n".join(lines))
        np.testing.assert_array_equal(read("a.npy"), some_rows)


@pytest.mark.parametrize(("name", "meta"), [("features/a.bin", "labels/a.meta"), ("a.bin", "a.meta")])
def test_the_dimensions_of_a_bin_are_given_or_follow_from_its_meta(tmp_path: Path, name: str, meta: str) -> None:
    path, rows = tmp_path / name, some_rows.astype(np.float32)
    for folder in ("features", "labels"):
        (tmp_path / folder).mkdir()
    rows.tofile(path)
    with pytest.raises(OptionError, match=r"no \.meta to count its rows by: give --dim"):
        open_features(path)
    np.testing.assert_array_equal(read(path, dimensions=5), rows)
    (tmp_path / meta).write_text("1\n" * 23)
    np.testing.assert_array_equal(read(path), rows)
    with pytest.raises(FormatError, match=r"it would fit with 5 dimensions \(23 lines in .*a\.meta\)"):
        open_features(path, dimensions=7)
    some_rows.tofile(path)
    np.testing.assert_array_equal(read(path, dimensions=5, dtype="float64"), some_rows)
    with pytest.raises(FormatError, match=r"expected 230 bytes for 5 float16 a row, found 920"):
        open_features(path, dimensions=5, dtype="float16")
    (tmp_path / meta).write_text("1\n" * 22)
    with pytest.raises(FormatError, match="not a whole number of float32 values for each of the 22 lines"):
        open_features(path)
    path.write_bytes(saved(some_rows))
    np.testing.assert_array_equal(read(path), some_rows)  # by its first bytes
    path.write_bytes(b"")
    with pytest.raises(EmptyDatasetError, match="is empty"):
        open_features(path, dimensions=5)


def test_a_bin_of_other_numbers_is_not_taken_for_float32_though_its_size_fits(tmp_path: Path) -> None:
    for stored, message in (
        ("<f8", r"only as float64: give --dtype float64"),
        ("<f2", r"only as float16: give --dtype float16"),
        (">f4", r"only as big-endian float32: in Python: numpy\.fromfile\(name, '>f4'\)"),
    ):
        np.random.default_rng(0).normal(size=(200, 8)).astype(stored).tofile(tmp_path / "a.bin")
        with pytest.raises(FormatError, match=message):
            open_features(tmp_path / "a.bin", dimensions=8)
        taken = open_features(tmp_path / "a.bin", dimensions=8, dtype="float32")
        assert taken.rows == 200 * np.dtype(stored).itemsize // 4


@settings(max_examples=20)
@given(matrices.map(lambda array: array.astype(np.float64)), st.sampled_from(",;\t "), st.booleans(), st.booleans())
def test_text_comes_back(array: Array, separator: str, header: bool, windows: bool) -> None:
    end = "\r\n" if windows else "\n"
    lines = [separator.join(map(repr, row)) for row in array.tolist()]
    names = separator.join(f"f{column}" for column in range(array.shape[1]))
    text = end.join([names, *lines] if header else lines) + end * (len(lines) % 2)
    with file_of(b"\xef\xbb\xbf" * windows + text.encode(), "a.csv") as path:
        source = open_features(path)
        assert (source.rows, source.dimensions) == (None, array.shape[1])
        np.testing.assert_array_equal(read(path), array)


def test_text_of_several_blocks_keeps_its_lines(tmp_path: Path) -> None:
    line = ",".join(["0.12345678901234567"] * 1000) + "\n"
    (tmp_path / "a.csv").write_text(line * 300)
    assert (tmp_path / "a.csv").stat().st_size > 1 << 22
    assert read(tmp_path / "a.csv").shape == (300, 1000)
    (tmp_path / "a.csv").write_text(line * 290 + line.replace("0.", "?", 1))
    with pytest.raises(FormatError, match=r"line 291, column 1 is '\?1.*', expected a number"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n\n3,4\n", "line 2 is blank, expected 2 numbers"),
        ("1,2\n3,4,5\n", "line 2 has 3 values, the first row has 2"),
        ("1,2\n3,\n", "line 2, column 2 is empty"),
        ("1,x\n3,4\n", "line 1, column 2 is 'x', expected a number, or a header of names only"),
        (",0,1\n0,0.5,0.5\n", r"the first column counts the rows.*index=False"),
        ("\n1,2\n", "line 1 is blank"),
        ("", "is empty"),
        ("a,b\n", "has no rows after its header"),
        ("1,2\0\n", "zero bytes"),
        ("0,5;0,7\n1,2;3,4\n", "line 2, column 1 is '1,2'"),
    ],
)
def test_text_other_than_a_table_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises((FormatError, EmptyDatasetError), match=message):
        read(tmp_path / "a.csv")


def test_an_array_of_several_is_named_and_an_option_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_bytes(b"hello")
    with pytest.raises(FormatError, match="is not a known kind of file"):
        open_features(tmp_path / "a.xyz")
    np.save(tmp_path / "a.npy", some_rows)
    options: list[dict[str, Any]] = [{"dimensions": 5}, {"dtype": "float32"}, {"array": "a"}, {"column": "a"}]
    for option in options:
        with pytest.raises(OptionError, match=r"applies to \.(bin|npz|parquet) files, but .* is read as \.npy"):
            open_features(tmp_path / "a.npy", **option)
    path = tmp_path / "a.npz"
    np.savez(path, features=some_rows, labels=np.arange(23))
    with pytest.raises(OptionError, match="contains several arrays; give --array: features, labels"):
        open_features(path)
    with pytest.raises(OptionError, match="contains no array 'x'"):
        open_features(path, array="x")
    np.testing.assert_array_equal(read(path, array="features"), some_rows)


def parquet(folder: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), folder / "a.parquet", row_group_size=7)
    return folder / "a.parquet"


def test_lists_of_parquet_come_back(tmp_path: Path) -> None:
    for of, bits in ((pa.list_(pa.float16()), 16), (pa.large_list(pa.float64()), 64), (pa.list_(pa.float32(), 5), 32)):
        expected = some_rows.astype(f"float{bits}")
        path = parquet(tmp_path, id=pa.array(range(23)), emb=pa.array(list(expected), of))
        source = open_features(path)
        assert (source.rows, source.dimensions, source.dtype) == (23, 5, f"float{bits}")
        np.testing.assert_array_equal(read(path), expected)


def test_a_column_of_parquet_is_named_where_there_are_several(tmp_path: Path) -> None:
    path = parquet(tmp_path, a=[[1.0]], b=[[2.0]], c=[3])
    for column, said in (
        (None, "give --column; columns of lists of floats: a, b"),
        ("x", "has no column 'x'"),
        ("c", "column 'c' does not contain lists of floats"),
    ):
        with pytest.raises(OptionError, match=said):
            open_features(path, column=column)
    np.testing.assert_array_equal(read(path, column="b"), [[2.0]])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0, 2.0], [1.0], [1.0, 2.0]], "row 1 has 1 values, the first row 2"),
        ([[1.0, 2.0], [3.0, 4.0], None], "row 2 has null"),
        ([[1.0, 2.0], [None, 4.0]], "row 1 contains a null"),
        ([[], [1.0]], "expected 1 to 1,048,576 values in a row, found 0"),
        ([None, [1.0]], "row 0 has null"),
    ],
)
def test_rows_of_parquet_that_are_not_like_the_first_are_refused(tmp_path: Path, rows: Any, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read(parquet(tmp_path, a=rows))


def test_damage_to_parquet_is_reported(tmp_path: Path) -> None:
    path = parquet(tmp_path, a=some_rows.tolist())
    whole = path.read_bytes()
    path.write_bytes(whole[:20] + bytes(200) + whole[220:])
    with pytest.raises(FormatError, match=re.escape(str(path))):
        read(path)
