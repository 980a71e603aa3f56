from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import jpeg, peak_bytes

from facedata.converters.parquet.source import ParquetSource
from facedata.dataset import Sample, Source, open_dataset
from facedata.errors import FormatError, InputError, InputNotFoundError, OptionError, SampleError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema([("image", IMAGE), ("label", pa.int64())])


def images(rows: range) -> list[dict[str, Any]]:
    return [{"bytes": jpeg(row), "path": f"{row}.jpg"} for row in rows]


def table(rows: range, schema: pa.Schema = SCHEMA) -> pa.Table:
    return pa.table([images(rows), [row // 4 for row in rows]], schema=schema)


def wide_table(rows: int) -> pa.Table:
    values = [{"bytes": jpeg(random.Random(row).randbytes(2000)), "path": f"{row}.jpg"} for row in range(rows)]
    return pa.table([values, [row // 4 for row in range(rows)]], schema=SCHEMA)


def opened(path: object) -> ParquetSource:
    source = open_dataset(f"parquet:{path}")
    assert isinstance(source, ParquetSource)
    return source


def as_tuples(source: Source) -> list[tuple[str, int, bytes]]:
    return [(sample.key, sample.label, sample.image) for sample in source]


def expected(rows: Sequence[int]) -> list[tuple[str, int, bytes]]:
    return [(f"{row}.jpg", row // 4, jpeg(row)) for row in rows]


@pytest.fixture
def three_files(tmp_path: Path) -> Path:
    """40 rows in files that natural order puts in another order than text, with row groups of 7."""
    folder = tmp_path / "set"
    folder.mkdir()
    for name, rows in (("part-2", range(10)), ("part-10", range(10, 25)), ("part-100", range(25, 40))):
        pq.write_table(table(rows), folder / f"{name}.parquet", row_group_size=7)
    (folder / ".facedata-temporary.parquet").write_bytes(b"incomplete")
    return folder


def test_a_folder_a_pattern_and_a_file_are_read_in_natural_order(three_files: Path) -> None:
    assert as_tuples(open_dataset(str(three_files))) == expected(range(40))
    assert as_tuples(opened(three_files / "part-*0.parquet")) == expected(range(10, 40))
    assert as_tuples(open_dataset(str(three_files / "part-10.parquet"))) == expected(range(10, 25))
    (three_files.parent / "hub").mkdir()
    (three_files.parent / "hub" / "data").symlink_to(three_files)  # where a clone from the Hub has its files
    assert as_tuples(open_dataset(str(three_files.parent / "hub"))) == expected(range(40))
    renamed = (three_files / "part-10.parquet").rename(three_files / "no extension")
    assert as_tuples(open_dataset(str(renamed))) == expected(range(10, 25))


@pytest.mark.parametrize(
    "part", [slice(0, 0), slice(3, 9), slice(8, 12), slice(24, 40), slice(39, 100), slice(50, 60), slice(3, 30, 4)]
)
def test_slices_are_sources_of_their_own(three_files: Path, part: slice) -> None:
    source = opened(three_files)
    wanted = range(40)[part]
    sliced: ParquetSource = pickle.loads(pickle.dumps(source[part]))  # noqa: S301, our own bytes
    assert len(sliced) == len(wanted)
    assert as_tuples(sliced) == expected(wanted)
    assert list(sliced.keys()) == [f"{row}.jpg" for row in wanted]
    assert np.concatenate([np.empty(0, np.int64), *sliced.labels()]).tolist() == [row // 4 for row in wanted]
    assert len(sliced.sizes()) == len(wanted)
    assert sliced.identity() == source.identity()
    assert as_tuples(sliced[1:3]) == expected(wanted[1:3])


def test_ascending_positions_are_taken(three_files: Path) -> None:
    source = opened(three_files)
    positions = np.array([0, 3, 3, 9, 10, 30, 39])
    taken = source.take(positions)
    assert as_tuples(taken) == expected(positions.tolist())
    assert list(taken.keys()) == [f"{row}.jpg" for row in positions]
    assert np.concatenate(list(taken.labels())).tolist() == (positions // 4).tolist()
    assert as_tuples(taken[3:6]) == expected([9, 10, 30])
    assert as_tuples(taken.take(np.array([1, 5]))) == expected([3, 30])
    assert as_tuples(source[5:].take(np.array([0, 5]))) == expected([5, 10])
    assert [os.path.basename(taken.locate(place)[0]) for place in (0, 4, 6)] == [
        "part-2.parquet",
        "part-10.parquet",
        "part-100.parquet",
    ]
    assert len(taken.sizes()) == len(positions)
    with pytest.raises(OptionError, match="convert it to lmdb or webdataset first"):
        source.take(np.array([3, 2]))


def test_a_slice_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    pq.write_table(table(range(20_000)), tmp_path / "a.parquet", row_group_size=10)
    assert len(pickle.dumps(opened(tmp_path)[5000:5100])) < 3000


def test_sizes_come_from_the_footers(tmp_path: Path) -> None:
    pq.write_table(wide_table(300), tmp_path / "a.parquet", row_group_size=70, compression="zstd")
    source = opened(tmp_path)
    total = sum(len(sample.image) for sample in source)
    assert source.size() == pytest.approx(total, rel=0.05)
    assert int(source.sizes().sum()) == source.size()
    assert source[:20].size() == pytest.approx(total * 20 / 300, rel=0.05)


def test_the_identity_depends_on_the_content_not_the_path(three_files: Path, tmp_path: Path) -> None:
    before = opened(three_files).identity()
    assert json.loads(json.dumps(before)) == before
    moved = three_files.rename(tmp_path / "elsewhere")
    assert opened(moved).identity() == before
    pq.write_table(table(range(9, 24)), moved / "part-10.parquet", row_group_size=7)
    assert opened(moved).identity() != before


# Files of other programs


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip", "row_group_size": 3},
        {"data_page_version": "2.0", "version": "1.0"},
        {"data_page_size": 64, "write_page_index": True},
        {"store_schema": False},
    ],
)
def test_files_of_other_writers_are_read(tmp_path: Path, options: dict[str, Any]) -> None:
    pq.write_table(table(range(50)), tmp_path / "a.parquet", **options)
    assert as_tuples(opened(tmp_path)) == expected(range(50))


@pytest.mark.parametrize(
    ("columns", "kinds"),
    [
        (("image", "label"), (pa.binary(), pa.int32())),
        (("jpg", "cls"), (pa.large_binary(), pa.uint8())),
        (("img", "target"), (pa.dictionary(pa.int32(), pa.binary()), pa.dictionary(pa.int8(), pa.int64()))),
        (("image_bytes", "identity"), (pa.struct([("bytes", pa.large_binary())]), pa.uint64())),
        (("face crop", "labels"), (pa.struct([("path", pa.null()), ("bytes", pa.binary())]), pa.int16())),
    ],
)
def test_columns_are_found_by_name_and_type(
    tmp_path: Path, columns: tuple[str, str], kinds: tuple[pa.DataType, pa.DataType]
) -> None:
    struct = pa.types.is_struct(kinds[0])
    values = pa.array([{"bytes": jpeg(row)} if struct else jpeg(row) for row in range(20)], kinds[0])
    labels = pa.array([row // 4 for row in range(20)], kinds[1])
    written = pa.table([pa.array(["x"] * 20), values, labels], ["name", *columns])
    pq.write_table(written, tmp_path / "a.parquet", row_group_size=7)
    source = opened(tmp_path)
    assert as_tuples(source) == [(str(row), row // 4, jpeg(row)) for row in range(20)]
    assert np.concatenate(list(source[3:].labels())).tolist() == [row // 4 for row in range(3, 20)]
    assert list(source[3:5].keys()) == ["3", "4"]


def test_a_key_column_of_its_own_names_the_samples(tmp_path: Path) -> None:
    written = pa.table({"__key__": ["a", None, "c"], "jpg": [jpeg(1), jpeg(2), jpeg(3)], "cls": [0, 1, 2]})
    pq.write_table(written, tmp_path / "a.parquet")
    assert list(opened(tmp_path).keys()) == ["a", "1", "c"]
    assert [sample.key for sample in opened(tmp_path)] == ["a", "1", "c"]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            {"label": [1], "text": ["x"]},
            r"no image column; expected .*'bytes'.*; columns found: label \(int64\), text \(string\)",
        ),
        (
            {"image": [b"x"], "name": ["x"]},
            r"no label column; expected an integer column named label, .*name \(str",
        ),
        ({"image": [b"x"], "label": ["anna"]}, r"no label column; .*label \(string\)"),
        ({"image": ["a.jpg"], "label": [1]}, r"no image column; .*image \(string\)"),
        ({"a": [{"bytes": b"x"}], "b": [{"bytes": b"x"}], "label": [1]}, "no image column"),
    ],
)
def test_a_missing_column_is_reported_with_the_columns_found(
    tmp_path: Path, written: dict[str, list[Any]], message: str
) -> None:
    pq.write_table(pa.table(written), tmp_path / "a.parquet")
    with pytest.raises(FormatError, match=message):
        opened(tmp_path)


def test_a_row_that_lacks_something_fails_alone(tmp_path: Path) -> None:
    rows = [
        ({"bytes": jpeg(0), "path": "good"}, 0),
        (None, 1),
        ({"bytes": None, "path": "/home/me/1.jpg"}, 2),
        ({"bytes": b"", "path": "empty"}, 3),
        ({"bytes": jpeg(4), "path": "unlabelled"}, None),
        ({"bytes": jpeg(5), "path": "negative"}, -1),
        ({"bytes": jpeg(6), "path": "huge"}, 1 << 40),
        ({"bytes": jpeg(7), "path": None}, 7),
    ]
    pq.write_table(
        pa.table([[row[0] for row in rows], [row[1] for row in rows]], schema=SCHEMA), tmp_path / "a.parquet"
    )
    source = opened(tmp_path)
    items = list(source.read())
    assert [type(item) for item in items] == [Sample, *[SampleError] * 6, Sample]
    errors = [item for item in items if isinstance(item, SampleError)]
    assert [error.key for error in errors] == ["1", "/home/me/1.jpg", "empty", "unlabelled", "negative", "huge"]
    assert "holds no image; images outside the Parquet file are not read" in errors[1].reason
    assert errors[2].reason == "the column image.bytes holds no image"
    assert "column label holds no label; expected an integer from 0" in errors[3].reason
    assert "holds the label -1;" in errors[4].reason
    assert errors[0].dataset == str(tmp_path / "a.parquet")
    assert np.concatenate(list(source.labels())).tolist() == [0, 1, 2, 3, -1, -1, -1, 7]


def test_bytes_that_are_not_utf8_are_replaced(tmp_path: Path) -> None:
    binary = pa.array([b"fine", b"caf\xe9", None], pa.binary())
    paths = pa.StringArray.from_buffers(3, *binary.buffers()[1:], binary.buffers()[0])
    image = pa.StructArray.from_arrays([pa.array([jpeg(n) for n in range(3)]), paths], ["bytes", "path"])
    pq.write_table(pa.table([image, [0, 0, 0]], ["image", "label"]), tmp_path / "a.parquet")
    assert [sample.key for sample in opened(tmp_path)] == ["fine", "caf\N{REPLACEMENT CHARACTER}", "2"]
    assert [sample.key for sample in opened(tmp_path).take(np.array([1]))] == ["caf\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize(
    "metadata", [b"{}", b"not json", b'{"info": 3}', b"[" * 100_000, b'{"info": {"features": []}}']
)
def test_invalid_metadata_is_ignored(tmp_path: Path, metadata: bytes) -> None:
    written = table(range(3)).replace_schema_metadata({b"huggingface": metadata, b"facedata": metadata})
    pq.write_table(written, tmp_path / "a.parquet")
    (tmp_path / "classes.txt").write_text("anna\nbert\n")  # not ours
    assert opened(tmp_path).class_names() is None
    assert opened(tmp_path).declared_classes() is None


def test_class_labels_have_their_names(tmp_path: Path) -> None:
    features = {"image": {"_type": "Image"}, "label": {"names": ["anna", "bert"], "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table(range(3)).replace_schema_metadata(metadata), tmp_path / "a.parquet")
    assert opened(tmp_path).class_names() == {0: "anna", 1: "bert"}
    assert opened(tmp_path).declared_classes() == 2


@pytest.mark.parametrize(
    ("value", "kind", "read"),
    [
        (list(range(10)), pa.list_(pa.float32()), True),
        (list(range(10)), pa.list_(pa.float64(), 10), True),
        ([[2 * n, 2 * n + 1] for n in range(5)], pa.list_(pa.list_(pa.float32(), 2), 5), True),
        ([0.0] * 136, pa.list_(pa.float32()), False),
        ([1.0, None], pa.list_(pa.float32()), False),
        (["x"] * 10, pa.list_(pa.string()), False),
        ([[1.0], [1.0, 2.0]], pa.list_(pa.list_(pa.float32())), False),
        (None, pa.list_(pa.float32()), False),
    ],
)
def test_landmarks_are_ten_numbers(tmp_path: Path, value: Any, kind: pa.DataType, read: bool) -> None:
    rows = pa.array([value, value], kind)
    pq.write_table(table(range(2)).append_column("landmarks", rows), tmp_path / "a.parquet")
    for sample in opened(tmp_path):
        if read:
            assert sample.landmarks is not None
            assert sample.landmarks.dtype == np.float32
            assert sample.landmarks.tolist() == [[2 * n, 2 * n + 1] for n in range(5)]
        else:
            assert sample.landmarks is None


def test_memory_is_bounded_by_a_batch(tmp_path: Path) -> None:
    image = os.urandom(100_000)
    rows = [{"bytes": jpeg(image), "path": None}] * 500  # 50 MB
    pq.write_table(
        pa.table([rows, [0] * 500], schema=SCHEMA),
        tmp_path / "a.parquet",
        compression="none",
        use_dictionary=False,
        write_batch_size=10,  # the size of a page is looked at every so many rows
    )
    del rows
    source = opened(tmp_path)
    before = pa.total_allocated_bytes()
    highest = 0

    def read() -> None:
        nonlocal highest
        for _ in source.read():
            highest = max(highest, pa.total_allocated_bytes() - before)

    assert peak_bytes(read) < 12 << 20  # what Python holds, a batch of samples
    assert highest < 24 << 20  # what Arrow holds, a batch and a page or two


# Damaged and crafted files


def test_a_path_without_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none.parquet", tmp_path / "*.parquet", tmp_path):
        with pytest.raises(
            InputNotFoundError, match=r"no such file|no file matches this pattern|contains no \*\.parquet file"
        ):
            opened(path)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="is a named pipe, not a file"):
        opened(tmp_path)
    with pytest.raises(InputError, match="is not a valid path: embedded null"):
        opened("a\0b")


@pytest.mark.parametrize("keep", [0, 3, 8, 2000, -1, -8, -500])
def test_a_file_cut_short_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    pq.write_table(table(range(200)), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[:keep])
    with pytest.raises(FormatError, match=r"a\.parquet: is not a complete Parquet file: .*; copy or download it again"):
        opened(tmp_path)


def test_a_file_removed_or_truncated_after_opening_is_an_error(three_files: Path) -> None:
    source = opened(three_files)
    (three_files / "part-10.parquet").write_bytes(b"")
    with pytest.raises(FormatError, match=r"part-10\.parquet: is not a complete"):
        list(source.read())
    (three_files / "part-10.parquet").unlink()
    with pytest.raises(InputNotFoundError):
        list(source.read())


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_damaged_page_fails_the_rest_of_its_row_group_only(tmp_path: Path, compression: str) -> None:
    path, written = tmp_path / "a.parquet", wide_table(600)
    pq.write_table(
        written, path, row_group_size=200, compression=compression, use_dictionary=False, write_page_checksum=True
    )
    chunk = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    source = opened(path)
    items = list(source.read())
    good = [position for position, item in enumerate(items) if isinstance(item, Sample)]
    assert len(items) == 600
    assert {*range(200), *range(400, 600)} <= set(good) < set(range(600))
    bad = next(item for item in items if isinstance(item, SampleError))
    assert "row group 1 of the file cannot be read from this row on" in bad.reason
    assert bad.key == str(next(position for position in range(600) if position not in good))
    assert [sample.image for sample in items if isinstance(sample, Sample)] == [
        written["image"][position]["bytes"].as_py() for position in good
    ]
    # the same samples fail whatever the slices
    in_parts = [item for begin in range(0, 600, 37) for item in source[begin : begin + 37].read()]
    assert [isinstance(item, Sample) for item in in_parts] == [isinstance(item, Sample) for item in items]
    assert len(np.concatenate(list(source.labels()))) == 600
    assert len(list(source.keys())) == 600


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bits_raise_only_documented_errors(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    path = tmp_path / "a.parquet"
    pq.write_table(
        table(range(300)),
        path,
        row_group_size=100,
        data_page_size=512,
        compression=generator.choice(["none", "snappy"]),
    )
    data = path.read_bytes()
    footer = int.from_bytes(data[-8:-4], "little") + 8
    for _ in range(30):
        damaged = bytearray(data)
        for _ in range(generator.choice([1, 1, 4])):
            first = generator.choice([0, len(data) - footer])
            damaged[generator.randrange(first, len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        read_in_every_way(path)


def test_damaged_column_metadata_fails_its_row_group(tmp_path: Path) -> None:
    """pyarrow ends the process if the statistics of definition levels of a column are too short."""
    path = tmp_path / "a.parquet"
    pq.write_table(table(range(300)), path, row_group_size=100)
    data = path.read_bytes()
    three, two = bytes.fromhex("19360000c801"), bytes.fromhex("19268000c801")  # 0, 0, 100; 0, 100
    if three not in data:
        pytest.skip("this release of pyarrow writes no such statistics")
    path.write_bytes(data.replace(three, two, 1))
    script = (
        "import sys; from facedata.dataset import open_dataset; print(*open_dataset(sys.argv[1]).read(), sep='\\n')"
    )
    ran = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=60, check=True)
    assert (
        ran.stdout.count("row group 0 of the file cannot be read from this row on: Definition level histogram") == 100
    )
    assert ran.stdout.count("Sample(") == 200


def read_in_every_way(path: Path) -> None:
    """Fails if an item is missing, or at an error that is not an `InputError`."""
    with suppress(InputError):
        source = opened(path)
        assert len(list(source.read())) == len(source)
        assert len(list(source.keys())) == len(source)
        assert sum(map(len, source.labels())) == len(source)
        source.class_names()


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


@pytest.mark.parametrize("rows", [1 << 40, 5000])
def test_an_invented_number_of_rows_is_refused(tmp_path: Path, rows: int) -> None:
    """Every 8191 in the footer, which counts rows and values, is set to another number."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([[{"bytes": b"x"}] * 8191, [0] * 8191], schema=SCHEMA), path)
    data = path.read_bytes()
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer = data[begin:-8].replace(_varint(2 * 8191), _varint(2 * rows))
    assert footer != data[begin:-8]
    path.write_bytes(data[:begin] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    if rows > 1 << 30:
        with pytest.raises(
            FormatError, match=r"its footer is damaged: it says 1099511627776 rows, but the file has only"
        ):
            opened(path)
    else:
        assert len(list(opened(path).read())) == 5000


def test_rows_missing_from_a_row_group_fail(three_files: Path) -> None:
    source = opened(three_files)
    pq.write_table(table(range(10, 12)), three_files / "part-10.parquet")
    items = list(source.read())
    assert len(items) == 40
    assert sum(isinstance(item, SampleError) for item in items) == 13
    reasons = [item.reason for item in items if isinstance(item, SampleError)]
    assert (
        reasons[0] == "row group 0 of the file cannot be read from this row on: it has fewer rows than the footer says"
    )
    assert "row group 2 of the file cannot be read" in reasons[-1]
