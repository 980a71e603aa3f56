from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from format_support import check_parts
from hypothesis import given, settings
from hypothesis import strategies as st
from support import jpeg, peak_bytes

from facedata.dataset import Sample, Source, open_dataset
from facedata.errors import FormatError, InputError, InputNotFoundError, SampleError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema([("image", IMAGE), ("label", pa.int64())])


def table(rows: range, size: int = 0) -> pa.Table:
    """Rows whose images have so many random bytes more."""
    images = [{"bytes": jpeg(row) + random.Random(row).randbytes(size), "path": f"{row}.jpg"} for row in rows]
    return pa.table([images, [row // 4 for row in rows]], schema=SCHEMA)


def opened(path: object) -> Source:
    return open_dataset(f"parquet:{path}")


def expected(rows: range) -> list[Sample]:
    return [Sample(f"{row}.jpg", row // 4, jpeg(row)) for row in rows]


def three_files(folder: Path) -> Path:
    """40 rows in files that natural order puts in another order than text, with row groups of 7."""
    folder.mkdir()
    for name, rows in (("part-2", range(10)), ("part-10", range(10, 25)), ("part-100", range(25, 40))):
        pq.write_table(table(rows), folder / f"{name}.parquet", row_group_size=7)
    (folder / ".facedata-temporary.parquet").write_bytes(b"incomplete")
    return folder


def test_a_folder_a_pattern_and_a_file_are_read_in_natural_order(tmp_path: Path) -> None:
    folder = three_files(tmp_path / "set")
    assert list(open_dataset(str(folder))) == expected(range(40))
    assert opened(folder).locate(10) == (f"{folder}/part-10.parquet", None)
    assert list(opened(folder / "part-*0.parquet")) == expected(range(10, 40))
    assert list(open_dataset(str(folder / "part-10.parquet"))) == expected(range(10, 25))
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "data").symlink_to(folder)  # where a clone from the Hub has its files
    assert list(open_dataset(str(tmp_path / "hub"))) == expected(range(40))
    renamed = (folder / "part-10.parquet").rename(folder / "no extension")
    assert list(open_dataset(str(renamed))) == expected(range(10, 25))


@settings(max_examples=30)
@given(st.data())
def test_parts_are_sources_of_their_own(data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        check_parts(opened(three_files(Path(folder, "set"))), data, ascending=True)


def test_sizes_come_from_the_footers(tmp_path: Path) -> None:
    pq.write_table(table(range(300), 2000), tmp_path / "a.parquet", row_group_size=70, compression="zstd")
    source = opened(tmp_path)
    total = sum(len(sample.image) for sample in source)
    assert source.size() == pytest.approx(total, rel=0.05)
    assert int(source.sizes().sum()) == source.size()
    assert source[:20].size() == pytest.approx(total * 20 / 300, rel=0.05)


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
    assert list(opened(tmp_path)) == expected(range(50))


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
    assert list(source) == [Sample(str(row), row // 4, jpeg(row)) for row in range(20)]
    assert source[3:].labels().tolist() == [row // 4 for row in range(3, 20)]
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
            {"image": [b"x"], "person_id": [1]},
            r"no label column; expected integers or texts, named label, .*person_id \(int64\); name the column with "
            "--label-column, or read it without labels: --labels none",
        ),
        ({"image": [b"x"], "label": [[1]]}, r"no label column; .*label \(list<"),
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


def test_columns_that_are_named_count(tmp_path: Path) -> None:
    columns = {"image": [b"other"], "crop": [{"bytes": jpeg(3)}], "label": [0], "person_id": ["p"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    source = open_dataset(f"parquet:{tmp_path}/a.parquet", image_column="crop", label_column="person_id")
    assert list(copy.deepcopy(source[:])) == [Sample("0", 0, jpeg(3))]
    assert (source.class_names(), source.identity() == opened(tmp_path).identity()) == ({0: "p"}, False)
    for options, message in (
        ({"image_column": "label"}, r"no image column; expected a binary .*, named label; .*--image-column$"),
        ({"label_column": "crop"}, r"no label column; .* named crop; columns found: .*--label-column, or .*none$"),
    ):
        with pytest.raises(FormatError, match=message):
            open_dataset(f"parquet:{tmp_path}/a.parquet", **options)


@pytest.mark.parametrize("form", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
@pytest.mark.parametrize(
    ("labels", "expected", "names"),
    [
        (["n10", "n9", None, "n9", ""], [1, 0, -1, 0, -1], {0: "n9", 1: "n10"}),
        (["7", "007", "12", None, "7"], [7, 7, 12, -1, 7], None),
        (["7", "é", "12", "x", "y"], [0, 4, 1, 2, 3], {0: "7", 1: "12", 2: "x", 3: "y", 4: "é"}),
    ],
)
def test_labels_that_are_texts_are_numbered_in_natural_order(
    tmp_path: Path, form: pa.DataType, labels: list[str | None], expected: list[int], names: dict[int, str] | None
) -> None:
    column = pa.array(labels, form)
    for name, part in (("a", slice(0, 2)), ("b", slice(2, 5))):  # numbers are the same in all files
        written = pa.table({"image": list(map(jpeg, range(5))), "label": column})[part]
        pq.write_table(written, tmp_path / f"{name}.parquet", row_group_size=2)
    source = opened(tmp_path)
    assert source.labels().tolist() == expected
    assert [sample.label for sample in source] == expected
    assert source.take(np.array([1, 4])).labels().tolist() == [expected[1], expected[4]]
    assert (source.class_names(), source.declared_classes()) == (names, max(expected) + 1)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (None, "3 images, without a label column: unlabelled"),
        (pa.array([None] * 3, pa.int64()), "3 images, without a label in any row: unlabelled"),
        (pa.array([-1] * 3), "without a label in any row"),
        (pa.array([0.0, float("nan"), 2.0]), ""),  # as pandas writes integers if some are missing
    ],
)
def test_rows_without_labels_are_unlabelled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, label: pa.Array | None, said: str
) -> None:
    caplog.set_level("INFO")
    columns = {"image": list(map(jpeg, range(3)))} | ({} if label is None else {"label": label})
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    source = opened(tmp_path / "a.parquet")
    expected = [-1] * 3 if said else [0, -1, 2]
    assert ([sample.label for sample in source], source.labels().tolist()) == (expected, expected)
    assert (list(source.keys()), source.labelled) == (["0", "1", "2"], not said)
    assert source.declared_classes() == (0 if said else None)
    assert said in caplog.text
    assert not open_dataset(f"parquet:{tmp_path}/a.parquet", labels="none").labelled


def test_files_that_do_not_belong_together_are_not_mixed(tmp_path: Path) -> None:
    for name in ("train-0", "train-1", "test-0"):
        pq.write_table(table(range(2)), tmp_path / f"{name}.parquet")
    with pytest.raises(
        FormatError, match=r"test \(1: test-0.parquet\), train \(2: train-0.parquet\); name one of them"
    ):
        open_dataset(str(tmp_path))
    assert len(opened(tmp_path / "train-*.parquet")) == 4
    assert len(opened(tmp_path / "*.parquet")) == 6
    pq.write_table(pa.table({"image": [jpeg(0)], "label": ["anna"]}), tmp_path / "train-2.parquet")
    with pytest.raises(
        FormatError, match=r"train-2.parquet: its labels are texts, and those of .*train-0.parquet are not"
    ):
        opened(tmp_path / "train-*.parquet")


def test_a_row_that_lacks_something_fails_alone(tmp_path: Path) -> None:
    no_image = "the column image.bytes holds no image"
    no_label = "the column label holds {}; expected an integer from 0 to 2147483647"
    outside = f"{no_image}; images outside the Parquet file are not read"
    rows: list[tuple[dict[str, Any] | None, int | None, str]] = [
        ({"bytes": jpeg(0), "path": "good"}, 0, ""),
        (None, 1, f"1: {outside}"),
        ({"bytes": None, "path": "/home/me/1.jpg"}, 2, f"/home/me/1.jpg: {outside}"),
        ({"bytes": b"", "path": "empty"}, 3, f"empty: {no_image}"),
        ({"bytes": jpeg(4), "path": "unlabelled"}, None, ""),
        ({"bytes": jpeg(5), "path": "negative"}, -2, f"negative: {no_label.format('the label -2')}"),
        ({"bytes": jpeg(6), "path": "huge"}, 1 << 31, f"huge: {no_label.format('the label 2147483648')}"),
        ({"bytes": jpeg(7), "path": None}, 7, ""),
    ]
    images, labels, reasons = zip(*rows, strict=True)
    pq.write_table(pa.table([images, labels], schema=SCHEMA), tmp_path / "a.parquet")
    source = opened(tmp_path)
    place = f"{tmp_path}/a.parquet: key "
    found = [str(item).removeprefix(place) if isinstance(item, SampleError) else "" for item in source.read()]
    assert found == list(reasons)
    assert source.labels().tolist() == [0, 1, 2, 3, -1, -1, -1, 7]


def test_bytes_that_are_not_utf8_are_replaced(tmp_path: Path) -> None:
    binary = pa.array([b"fine", b"caf\xe9", None], pa.binary())
    paths = pa.StringArray.from_buffers(3, *binary.buffers()[1:], binary.buffers()[0])
    image = pa.StructArray.from_arrays([pa.array([jpeg(n) for n in range(3)]), paths], ["bytes", "path"])
    pq.write_table(pa.table([image, [0, 0, 0]], ["image", "label"]), tmp_path / "a.parquet")
    assert [sample.key for sample in opened(tmp_path)] == ["fine", "caf\N{REPLACEMENT CHARACTER}", "2"]
    assert [sample.key for sample in opened(tmp_path).take(np.array([1]))] == ["caf\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        *((invalid, None) for invalid in (b"{}", b"not json", b'{"info": 3}', b"[" * 100_000)),
        (b'{"info": {"features": []}}', None),
        (b'{"info": {"features": {"label": {"names": ["anna", 5]}}}}', None),
        (b'{"info": {"features": {"label": {"names": ["anna", "bert"]}}}}', {0: "anna", 1: "bert"}),
    ],
)
def test_class_labels_have_the_names_in_valid_metadata(
    tmp_path: Path, metadata: bytes, names: dict[int, str] | None
) -> None:
    written = table(range(3)).replace_schema_metadata({b"huggingface": metadata, b"facedata": metadata})
    pq.write_table(written, tmp_path / "a.parquet")
    (tmp_path / "classes.txt").write_text("0\tclaes\n")  # not ours
    assert opened(tmp_path).class_names() == names
    assert opened(tmp_path).declared_classes() == (names and 2)


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
        assert (sample.landmarks is not None) == read
        if sample.landmarks is not None:
            assert sample.landmarks.dtype == np.float32
            assert sample.landmarks.tolist() == [[2 * n, 2 * n + 1] for n in range(5)]


def test_memory_is_bounded_by_a_batch(tmp_path: Path) -> None:
    pq.write_table(
        pa.table([[{"bytes": jpeg(os.urandom(100_000))}] * 500, [0] * 500], schema=SCHEMA),  # 50 MB
        tmp_path / "a.parquet",
        compression="none",
        use_dictionary=False,
        write_batch_size=10,  # the size of a page is looked at every so many rows
    )
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


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("none.parquet", InputNotFoundError, "no such file"),
        ("*.parquet", InputNotFoundError, "no file matches this pattern"),
        ("empty", InputNotFoundError, r"contains no \*\.parquet file"),
        ("pipe", InputError, "is a named pipe, not a file"),
        ("a\0b", InputError, "is not a valid path: embedded null"),
    ],
)
def test_what_is_not_a_file_is_refused(tmp_path: Path, name: str, error: type[InputError], message: str) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(error, match=message):
        opened(tmp_path / name)


@pytest.mark.parametrize("keep", [0, 3, 8, 2000, -1, -8, -500])
def test_a_file_cut_short_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    pq.write_table(table(range(200)), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[:keep])
    with pytest.raises(FormatError, match=r"a\.parquet: is not a complete Parquet file: .*; copy or download it again"):
        opened(tmp_path)


def test_a_file_that_changes_or_goes_after_opening_is_an_error(tmp_path: Path) -> None:
    source = opened(three_files(tmp_path / "set"))
    part = tmp_path / "set" / "part-10.parquet"
    pq.write_table(table(range(10, 12)), part)
    reasons = [item.reason for item in source.read() if isinstance(item, SampleError)]
    cannot = "row group {} of the file cannot be read from this row on: "
    assert reasons[0] == cannot.format(0) + "it has fewer rows than the footer says"
    assert reasons[-1].startswith(cannot.format(2))
    assert (len(list(source.read())), len(reasons)) == (40, 13)
    part.write_bytes(b"")
    with pytest.raises(FormatError, match=r"part-10\.parquet: is not a complete"):
        list(source.read())
    part.unlink()
    with pytest.raises(InputNotFoundError):
        list(source.read())


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_damaged_page_fails_the_rest_of_its_row_group_only(tmp_path: Path, compression: str) -> None:
    path, written = tmp_path / "a.parquet", table(range(600), 2000)
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
    assert len(source.labels()) == len(list(source.keys())) == 600


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bits_raise_only_documented_errors_and_lose_no_item(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    path = tmp_path / "a.parquet"
    compression = generator.choice(["none", "snappy"])
    pq.write_table(table(range(300)), path, row_group_size=100, data_page_size=512, compression=compression)
    data = path.read_bytes()
    footer = int.from_bytes(data[-8:-4], "little") + 8
    for _ in range(30):
        damaged = bytearray(data)
        for _ in range(generator.choice([1, 1, 4])):
            first = generator.choice([0, len(data) - footer])
            damaged[generator.randrange(first, len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with suppress(InputError):
            source = opened(path)
            assert len(list(source.read())) == len(list(source.keys())) == len(source)
            assert len(source.labels()) == len(source)
            source.class_names()


def test_damaged_column_metadata_fails_its_row_group(tmp_path: Path) -> None:
    """pyarrow ends the process if the statistics of definition levels of a column are too short."""
    path = tmp_path / "a.parquet"
    pq.write_table(table(range(300)), path, row_group_size=100)
    data = path.read_bytes()
    three, two = bytes.fromhex("19360000c801"), bytes.fromhex("19268000c801")  # 0, 0, 100; 0, 100
    if three not in data:
        pytest.skip("this release of pyarrow writes no such statistics")
    path.write_bytes(data.replace(three, two, 1))
    script = "import sys, facedata.dataset as d; print(*d.open_dataset(sys.argv[1]).read(), sep='\\n')"
    ran = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=60, check=True)
    message = "row group 0 of the file cannot be read from this row on: Definition level histogram"
    assert (ran.stdout.count(message), ran.stdout.count("Sample(")) == (100, 200)


def test_a_small_file_that_unpacks_to_much_takes_little_memory(tmp_path: Path) -> None:
    """Read in a process of its own, whose peak counts: pages and footers, whose sizes nothing else bounds."""
    value, texts = b"\xff\xd8\xff" + bytes(1 << 28), [str(row).rjust(40_000, "0") for row in range(7000)]
    for name, images, labels in (("a", [value], [0]), ("b", [value[:3]] * len(texts), texts)):
        columns = pa.table({"image": pa.array(images), "label": labels})
        file = tmp_path / f"{name}.parquet"
        pq.write_table(columns, file, compression="zstd", use_dictionary=False, write_statistics=False)
    (tmp_path / "c.parquet").write_bytes(bytes(8) + (1 << 29).to_bytes(4, "little") + b"PAR1")
    script = (
        "import sys, facedata.converters.parquet.library as library, facedata.dataset as d\n"
        "from facedata.errors import FormatError\n"
        "library._MEMORY = 1 << 26\n"
        "for path in sys.argv[1:]:\n"
        "    try: print(*d.open_dataset('parquet:' + path).read())\n"
        "    except FormatError as error: print(error)\n"
        "print(*[line.split()[1] for line in open('/proc/self/status') if 'VmHWM' in line])"  # kB
    )
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}  # the usual one keeps a gigabyte
    command = [sys.executable, "-c", script, *(f"{tmp_path}/{name}.parquet" for name in "abc")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    page, label, footer, memory = ran.stdout.splitlines()
    assert "row group 0 of the file cannot be read from this row on: reading it takes more than" in page
    assert "the labels from row 0 on are too long to be labels: name another column with --label-column" in label
    assert "its footer has 536,870,912 bytes; at most 67,108,864 are read" in footer
    assert int(memory) < 250_000


def test_an_invented_number_of_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([[{"bytes": b"x"}] * 8191, [0] * 8191], schema=SCHEMA), path)
    data = path.read_bytes()
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")

    def opened_with(number: bytes) -> Source:
        """With another number for every 8191 in the footer, which counts rows and values: zigzag varints."""
        footer = data[begin:-8].replace(b"\xfe\x7f", number)
        path.write_bytes(data[:begin] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
        return opened(path)

    assert len(list(opened_with(b"\x90\x4e").read())) == 5000
    with pytest.raises(FormatError, match="its footer is damaged: it says 1099511627776 rows, but the file has only"):
        opened_with(b"\x80\x80\x80\x80\x80\x40")
