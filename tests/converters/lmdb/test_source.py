"""Reading databases: built by LMDB itself, in every layout, with and without a key-label file, sound and damaged."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmdb_support import HEADER, as_protobuf, encode_datum
from support import peak_bytes

from facedata.converters.lmdb import open_source, recognises
from facedata.converters.lmdb.datum import LAYOUTS, MINIMAL, RAW
from facedata.dataset import Sample, Source, open_dataset
from facedata.errors import EmptyDatasetError, FormatError, InputError, InputNotFoundError, SampleError

MakeDatabase = Callable[..., Path]


def write(path: Path, records: Mapping[bytes, bytes], *, single: bool = False, **options: Any) -> Path:
    """A database made by LMDB alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        lmdb.open(str(path), subdir=not single, map_size=1 << 26, **options) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, data in records.items():
            transaction.put(key, data)
    return path


def value(label: int, content: object, layout: str = "caffe") -> bytes:
    return encode_datum(Sample("", label, HEADER + str(content).encode()), layout)


def people(count: int, layout: str = "caffe") -> dict[bytes, bytes]:
    return {b"person_%d_%d" % (n // 3, n): value(n // 3, n, layout) for n in range(count)}


def kv_of(records: Mapping[bytes, bytes]) -> str:
    return "".join(f"{key.decode()} {key.split(b'_')[1].decode()}\n" for key in records)


@pytest.fixture
def database(tmp_path: Path) -> MakeDatabase:
    """A database of so many people, with a key-label file beside it unless that is None."""

    def make(count: int = 10, layout: str = "caffe", kv: str | None = "", **options: Any) -> Path:
        records = people(count, layout)
        path = write(tmp_path / "people.lmdb", records, **options)
        if kv is not None:
            (tmp_path / "people_kv.txt").write_text(kv or kv_of(records))
        return path

    return make


def flat(source: Source) -> list[tuple[str, int, str] | str]:
    return [
        str(item) if isinstance(item, SampleError) else (item.key, item.label, item.image.decode("latin-1")[21:])
        for item in source.read()
    ]


def read(path: Path | str) -> list[tuple[str, int, str] | str]:
    return flat(open_source(str(path)))


def expected(numbers: Sequence[int]) -> list[tuple[str, int, str]]:
    return [(f"person_{n // 3}_{n}", n // 3, str(n)) for n in numbers]


@pytest.mark.parametrize("single", [False, True], ids=["folder", "single file"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_key_label_file_gives_the_order_and_the_labels(database: MakeDatabase, layout: str, single: bool) -> None:
    path = database(20, layout, single=single)
    for spec in (str(path), f"lmdb:{path}", f"lmdb:{path}@{path.with_name('people_kv.txt')}"):
        source = open_dataset(spec)
        assert flat(source) == expected(range(20))
        assert (len(source), source.declared_classes()) == (20, 7)
        assert source.labels().tolist() == [n // 3 for n in range(20)]
        assert list(source.keys()) == [key for key, _, _ in expected(range(20))]
        assert source.sizes().tolist() == [len(record) for record in people(20, layout).values()]
        assert source.locate(3) == (str(path if single else path / "data.mdb"), None)


def test_the_label_of_the_key_label_file_counts(database: MakeDatabase) -> None:
    path = database(3, kv="person_0_2 5\nperson_0_0 1\n")
    for spec in (path, path / "data.mdb"):
        assert flat(open_dataset(str(spec))) == [("person_0_2", 5, "2"), ("person_0_0", 1, "0")]


def test_without_a_key_label_file_the_order_is_that_of_the_keys(database: MakeDatabase) -> None:
    order = sorted(range(400), key=lambda n: f"person_{n // 3}_{n}")
    source = open_source(str(database(400, kv=None)))
    assert flat(source) == expected(order)
    assert source.declared_classes() is None
    assert list(source.keys()) == [key for key, _, _ in expected(order)]
    assert source.labels().tolist() == [n // 3 for n in order]


@pytest.mark.parametrize("layout", [MINIMAL, RAW])
def test_values_without_labels_need_a_key_label_file(database: MakeDatabase, layout: str) -> None:
    path = database(10, layout, kv=None)
    with pytest.raises(FormatError, match=f"no key-label file people_kv.txt beside it; .* lmdb:{path}@KEY_LABEL_FILE"):
        open_source(str(path))


def test_landmarks_are_read_and_a_lone_value_without_a_label_fails_by_name(tmp_path: Path) -> None:
    landmarks = np.arange(10, dtype=np.float32).reshape(5, 2)
    first = encode_datum(Sample("1", 4, HEADER + b"a", landmarks))
    path = write(tmp_path / "a.lmdb", {b"1": first, b"2": value(4, "b", MINIMAL), b"3": value(5, "c")})
    (sample,) = open_source(str(path))[:1]
    assert sample.landmarks is not None
    assert sample.landmarks.tolist() == landmarks.tolist()
    reason = "the value holds no label; name the key-label file: lmdb:PATH@KEY_LABEL_FILE"
    assert read(path) == [("1", 4, "a"), f"{path}/data.mdb: key 2: {reason}", ("3", 5, "c")]


@settings(max_examples=15)
@given(st.booleans(), st.data())
def test_any_part_in_any_order_is_read_the_same(listed: bool, data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        records = people(300)
        path = write(Path(folder, "people.lmdb"), records)
        if listed:
            Path(folder, "people_kv.txt").write_text(kv_of(records))
        source: Source = open_source(str(path))
        whole = flat(source)
        for _ in range(3):
            bounds = st.none() | st.integers(-len(whole) - 2, len(whole) + 2)
            part = slice(data.draw(bounds), data.draw(bounds))
            source, whole = source[part], whole[part]
            assert (len(source), flat(source)) == (len(whole), whole)
            wanted = data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=40) if whole else st.just([]))
            source, whole = source.take(np.array(wanted, np.int64)), [whole[position] for position in wanted]
            assert flat(pickle.loads(pickle.dumps(source))) == whole  # noqa: S301, our own bytes
            assert list(source.keys()) == [item[0] for item in whole]


def test_keys_are_found_in_a_large_tree_in_any_order(database: MakeDatabase) -> None:
    wanted = np.random.default_rng(0).integers(0, 20_000, 300).tolist()
    lines = [f"person_{n // 3}_{n} {n // 3}\n" if n % 9 else f"person_{n}_x 0\n" for n in wanted]
    for n, item in zip(wanted, read(database(20_000, kv="".join(lines))), strict=True):
        assert item == expected([n])[0] if n % 9 else "has no such key" in item


def test_a_slice_carries_only_its_own_part(database: MakeDatabase) -> None:
    path = database(20_000, kv=None)
    source = open_source(str(path))
    assert len(pickle.dumps(source)) < 20_000  # less than a byte a record
    assert len(pickle.dumps(source[10_000:11_000])) < 2_000
    assert peak_bytes(lambda: open_source(str(path))) < 1_000_000


def test_the_identity_knows_the_content_and_not_the_place(database: MakeDatabase, tmp_path: Path) -> None:
    first = open_source(str(database(10))).identity()
    shutil.move(tmp_path / "people.lmdb", tmp_path / "moved.lmdb")
    shutil.copy(tmp_path / "people_kv.txt", tmp_path / "moved_kv.txt")
    source = open_source(str(tmp_path / "moved.lmdb"))
    assert source.identity() == source[3:5].identity() == first
    (tmp_path / "moved_kv.txt").write_text("person_0_0 9\n")
    source = open_source(str(tmp_path / "moved.lmdb"))
    assert source.identity() != first
    assert source.size() > 0


# What does not fit together


@pytest.mark.parametrize(
    ("prefix", "what"), [(b"\x80\x04", "Python pickles"), (b"\0\0", "Python objects of pyarrow.serialize")]
)
def test_objects_of_folder2lmdb_are_named_and_never_loaded(tmp_path: Path, prefix: bytes, what: str) -> None:
    keys = [*(b"%d" % number for number in range(12)), b"__keys__", b"__len__"]
    path = write(tmp_path / "t.lmdb", dict.fromkeys(keys, prefix + HEADER), single=True)
    with pytest.raises(FormatError, match=rf"{what}, as folder2lmdb .* writes them"):
        open_source(str(path))


def test_a_key_that_is_not_in_the_database_fails_alone(database: MakeDatabase) -> None:
    path = database(3, kv=f"person_0_1 0\nnobody 1\n{'long' * 200} 1\nperson_0_2 0\n")
    reason = "the key-label file names it, but the database has no such key"
    missing = [f"{path}/data.mdb: key {key}: {reason}" for key in ("nobody", "long" * 200)]
    assert read(path) == [*expected([1]), *missing, *expected([2])]
    assert open_source(str(path)).sizes()[1] == 0


def test_a_key_label_file_that_cannot_be_read_is_told(database: MakeDatabase, tmp_path: Path) -> None:
    path = database(3, kv="person_0_0 0\nperson 0 1 0\n")
    (tmp_path / "empty.txt").touch()
    os.mkfifo(tmp_path / "pipe")
    for spec, error, message in (
        (path, FormatError, r"people_kv.txt: line 2: expected 'key label' .*, found 4 fields"),
        (f"{path}@{tmp_path}/empty.txt", EmptyDatasetError, "is empty"),
        (f"{path}@{tmp_path}/other.txt", InputNotFoundError, r"other\.txt: no such file"),
        (f"{path}@{tmp_path}/pipe", InputError, "pipe: is a named pipe"),
    ):
        with pytest.raises(error, match=message):
            open_source(str(spec))


def test_a_path_may_have_an_at_sign(tmp_path: Path) -> None:
    records = people(5)
    path = write(tmp_path / "a@b" / "people@home.lmdb", records)
    for name, spec in (("k@v.txt", f"{path}@{tmp_path}/a@b/k@v.txt"), ("people@home_kv.txt", path)):
        (tmp_path / "a@b" / name).write_text(kv_of(records))
        assert read(spec) == expected(range(5))
    with pytest.raises(InputNotFoundError, match="no such file"):
        open_source(str(tmp_path / "no@where"))


def test_names_that_are_not_utf_8_are_kept(tmp_path: Path) -> None:
    write(tmp_path / "a.lmdb", {b"a\xff": value(0, "x")})
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.lmdb"))
    (tmp_path / "a.lmdb").rename(path)
    assert read(path) == [("a\udcff", 0, "x")]
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff_kv.txt")).write_bytes(b"a\xff 0\n")
    assert read(path) == [("a\udcff", 0, "x")]


# Damage


def test_a_value_that_is_not_a_sample_fails_alone(tmp_path: Path) -> None:
    spoilt = {
        b"1": (b"no value at all", "Datum of a known layout"),
        b"2": (b"", "it is empty"),
        b"3": (as_protobuf(channels=3, height=2, width=2, data=bytes(12), label=1), "decoded pixels"),
        b"4": (as_protobuf(data=HEADER, label=-4, encoded=True), "the label is -4"),
    }
    records = {key: data for key, (data, _) in spoilt.items()} | {b"0": value(3, "a"), b"9": value(4, "b")}
    path = write(tmp_path / "a.lmdb", records)
    first, *items, last = read(path)
    assert (first, last) == (("0", 3, "a"), ("9", 4, "b"))
    for item, (key, (_, reason)) in zip(items, spoilt.items(), strict=True):
        assert str(item).startswith(f"{path}/data.mdb: key {key.decode()}: ")
        assert reason in item
    assert open_source(str(path)).labels().tolist() == [3, -1, -1, -1, -1, 4]


def test_a_truncated_file_is_refused(database: MakeDatabase) -> None:
    path = database(300) / "data.mdb"
    whole = path.read_bytes()
    for size in (0, 10, 100, 4096, 5000, 8192, 8193, len(whole) // 2, len(whole) - 4096, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError, match=r"truncated|ends inside the head"):
            open_source(str(path))
    path.write_bytes(whole + bytes(100))
    assert len(read(path)) == 300


def test_a_file_whose_last_pages_are_free_need_not_have_them(tmp_path: Path) -> None:
    """LMDB says of its head: the file may be shorter if the last pages are free."""
    for n in range(3):
        path = write(tmp_path / "a.lmdb", {b"%d" % n: value(n, n)})
    with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"large", bytes(1 << 20))
        transaction.delete(b"large")
    data = path / "data.mdb"
    assert data.stat().st_size < 1 << 20
    assert [sample.label for sample in open_source(str(path))] == [0, 1, 2]
    data.write_bytes(data.read_bytes()[: 6 << 12])
    with pytest.raises(FormatError, match="truncated"):
        open_source(str(path))


HEADS = {
    "another magic": (16, struct.pack("<I", 0xBEEFC0DF), "its mark is missing"),
    "another version": (20, struct.pack("<I", 3), "data format 3"),
    "an odd page size": (40, struct.pack("<I", 4095), "page size is 4095"),
    "a root past the end": (128, struct.pack("<Q", 1 << 40), "its root is page"),
    "free pages past the end": (80, struct.pack("<Q", 1 << 40), "its root is page"),
    "a last page past the end": (136, struct.pack("<Q", 1 << 50), "truncated"),
    "no records": (120, struct.pack("<Q", 0), "is empty"),
    "several values for a key": (92, struct.pack("<H", 4), "unusual kind .* DUPSORT"),
}


@pytest.mark.parametrize(("offset", "data", "message"), HEADS.values(), ids=HEADS)
def test_a_corrupt_head_is_refused(database: MakeDatabase, offset: int, data: bytes, message: str) -> None:
    path = database(20) / "data.mdb"
    content = bytearray(path.read_bytes())
    for page in (0, 4096):
        content[page + offset : page + offset + len(data)] = data
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message):
        open_source(str(path))


def test_a_database_of_lmdb_1_is_told(tmp_path: Path) -> None:
    if not hasattr(lmdb.Environment, "lib_version"):
        pytest.skip("this lmdb knows 0.9 alone")
    path = write(tmp_path / "a.lmdb", people(3), lib_version=1)
    assert recognises(str(path))
    with pytest.raises(FormatError, match=r"of data format 3; facedata reads 1, that of LMDB 0\.9"):
        open_source(str(path))


def test_what_is_not_a_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder.lmdb").mkdir()
    (tmp_path / "text").write_text("some text " * 1000)
    os.mkfifo(tmp_path / "pipe")
    assert not any(recognises(str(tmp_path / name)) for name in os.listdir(tmp_path))
    write(tmp_path / "empty.lmdb", {})
    for name, error, message in (
        ("folder.lmdb", InputNotFoundError, r"folder\.lmdb/data\.mdb: no such file"),
        ("nowhere", InputNotFoundError, r"nowhere: no such file"),
        ("text", FormatError, "not an LMDB database"),
        ("pipe", InputError, "is a named pipe"),
        ("empty.lmdb", FormatError, "the database is empty"),
    ):
        with pytest.raises(error, match=message):
            open_source(str(tmp_path / name))


@pytest.mark.parametrize("listed", [False, True], ids=["keys", "key-label file"])
def test_flipped_bits_are_errors_and_never_a_crash(tmp_path: Path, listed: bool) -> None:
    """LMDB itself would be ended by a signal for some of these."""
    records = {b"key_%d" % n: value(n, "x" * (n % 7 * 400)) for n in range(200)}
    path = write(tmp_path / "people.lmdb", records, single=True)
    whole = path.read_bytes()
    if listed:
        (tmp_path / "people_kv.txt").write_text(kv_of(records))
    generator = np.random.default_rng(listed)
    for _ in range(15):
        spoilt = bytearray(whole)
        for place in generator.integers(0, len(whole), int(generator.integers(1, 30))).tolist():
            spoilt[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(spoilt)
        try:
            source = open_source(str(path))
        except FormatError:
            continue
        assert len(list(source.read())) == len(list(source.keys())) == len(source.sizes()) == len(source)
        list(source.take(np.arange(len(source))[::-1]).read())


def test_a_value_whose_page_is_damaged_fails_alone(tmp_path: Path) -> None:
    records = {b"%d" % n: value(n, "x" * (5000 if n == 1 else 10)) for n in range(3)}
    path = write(tmp_path / "a.lmdb", records, single=True)
    whole = path.read_bytes()
    (overflow,) = (page for page in range(2 << 12, len(whole), 1 << 12) if whole[page + 10] == 4)
    for place in (overflow, overflow + 10):  # its number, its flags
        path.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        error = f"{path}: key 1: its value lies outside of the file, or its page is corrupt"
        assert read(path) == [("0", 0, "x" * 10), error, ("2", 2, "x" * 10)]


@pytest.mark.parametrize("kv", [None, ""], ids=["keys", "key-label file"])
def test_a_leaf_page_that_is_damaged_later_fails_its_records_alone(database: MakeDatabase, kv: str | None) -> None:
    path = database(3000, kv=kv) / "data.mdb"
    source, whole = open_source(str(path)), path.read_bytes()
    leaf = next(page for page in range(2 << 12, len(whole), 1 << 12) if whole[page + 10] == 2)
    path.write_bytes(whole[:leaf] + bytes(4096) + whole[leaf + 4096 :])
    items = flat(source)
    bad = [item for item in items if isinstance(item, str)]
    assert len(items) == 3000
    assert 0 < len(bad) < 200
    assert all("corrupt" in item for item in bad)


def test_databases_inside_the_database_are_not_images(tmp_path: Path) -> None:
    path = tmp_path / "a.lmdb"
    with lmdb.open(str(path), max_dbs=2) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"1", value(1, "a"))
        transaction.put(b"inner", value(1, "b"), db=environment.open_db(b"other", txn=transaction))
    error = f"{path}/data.mdb: key other: is a database inside the database; expected an image"
    assert read(path) == [("1", 1, "a"), error]


def test_a_file_that_is_gone_is_an_input_error(database: MakeDatabase) -> None:
    path = database(5)
    source = open_source(str(path))
    (path / "data.mdb").unlink()
    with pytest.raises(InputError, match="no such file"):
        list(source)
