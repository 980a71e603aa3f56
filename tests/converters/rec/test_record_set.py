"""Opening record sets: the dialect is found from the content, and what does not fit together is refused."""

from __future__ import annotations

import io
import os
import random
import re
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import RecordSetMaker, jpeg, raised_without_root

from facedata.converters.rec.record_set import find_dialect, find_record_files, float32_error, open_record_set
from facedata.converters.rec.recordio import (
    ADVICE,
    INSIGHTFACE,
    PLAIN,
    ImageRecord,
    RecordIndex,
    RecordReader,
    encode_record,
    pack_image_record,
)
from facedata.converters.rec.source import RecSource
from facedata.dataset import Sample
from facedata.errors import EmptyDatasetError, FormatError, InputNotFoundError

MakeSet = Callable[..., RecordSetMaker]
Options = dict[str, Any]
Change = Callable[[RecordSetMaker], None]
Record = tuple[int, Any, bool]
"""Key, label or labels, and whether there is an image."""
SALVAGE: Options = {"salvage": True}
REBUILD: Options = {"rebuild_index": True}
NOT_A_HEADER = struct.pack("<IfQQ", 2, 0.0, 0, 0)
"""A payload that announces two labels and ends: the chunk is complete, the image record is not."""
WITH_OR_WITHOUT_INDEX = pytest.mark.parametrize("index", [True, False], ids=["index", "no index"])


def keys_and_labels(source: RecSource) -> list[tuple[int, int]]:
    return [(int(sample.key), sample.label) for sample in source]


def delivered(source: RecSource) -> list[str]:
    return [item.key for item in source.read() if isinstance(item, Sample)]


def filled(maker: RecordSetMaker, *records: Record) -> RecordSetMaker:
    for key, labels, has_image in records:
        maker.add(key, labels, jpeg(key) if has_image else b"")
    return maker


def images(*labels: Any, first: int = 0) -> list[Record]:
    return [(key, label, True) for key, label in enumerate(labels, first)]


def identities(first: int, *ranges: tuple[float, float], meta: tuple[float, float] | None = None) -> list[Record]:
    """Identity records from a key on, and the meta record."""
    records: list[Record] = [(key, labels, False) for key, labels in enumerate(ranges, first)]
    return [*records, (0, meta or (float(first), float(first + len(ranges))), False)]


SHUFFLED = random.Random(0).choices(range(5), k=20)
ARRAYS = [(label, 0.5, float("nan")) for label in (3.0, 0.0, 3.0)]
# records, dialect, number of classes, and the images: key and label
DIALECTS: dict[str, tuple[list[Record], str, int | None, dict[int, int]]] = {
    "arrays of labels": (images((4, 1), (4, 1), first=1) + identities(3, (1, 3)), INSIGHTFACE, 1, {1: 4, 2: 4}),
    "insightface without identities": (images(0, 0, first=1) + identities(3), INSIGHTFACE, None, {1: 0, 2: 0}),
    "newer InsightFace or im2rec": (images(0, 2), PLAIN, None, {0: 0, 1: 2}),
    "any order of labels": (images(*SHUFFLED), PLAIN, None, dict(enumerate(SHUFFLED))),
    "label arrays": (images(*ARRAYS), PLAIN, None, {0: 3, 1: 0, 2: 3}),
    "any order of keys": ([(n, n, True) for n in (4, 2, 9, 0, 7)], PLAIN, None, {n: n for n in (0, 2, 4, 7, 9)}),
}


@WITH_OR_WITHOUT_INDEX
@pytest.mark.parametrize(("records", "dialect", "classes", "expected"), DIALECTS.values(), ids=DIALECTS)
def test_every_dialect_is_recognised(
    record_set: MakeSet, records: list[Any], dialect: str, classes: int | None, expected: dict[int, int], index: bool
) -> None:
    source = open_record_set(filled(record_set(), *records).write(index=index))
    assert (source.dialect, source.declared_classes()) == (dialect, classes)
    assert dict(keys_and_labels(source)) == expected
    assert [sample.image for sample in source] == [jpeg(key) for key in expected]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_the_boundary_of_the_identity_records_is_found_with_and_without_the_meta_record(counts: list[int]) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        maker = RecordSetMaker(Path(folder))
        for _ in range(2):
            maker.insightface(counts) if not maker.keys else maker.write()
            source = open_record_set(folder)
            assert (source.dialect, source.classes) == (INSIGHTFACE, len(counts))
            assert keys_and_labels(source) == list(enumerate(labels, 1))
            assert source.index.offsets.tolist() == maker.offsets[: len(labels)]
            del maker.data[maker.offsets[-1] :], maker.keys[-1], maker.offsets[-1]


# Files


def test_the_files_of_a_folder_or_a_file_are_found(record_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = record_set().plain([0, 1], num_classes=7)
    (folder / "val.rec").write_bytes(b"")
    assert find_record_files(folder).records == str(folder / "train.rec")
    (folder / "val.rec").unlink()
    for old, new in (("train.rec", "faces.rec"), ("train.idx", "faces.idx")):
        (folder / old).rename(folder / new)
    monkeypatch.chdir(folder)
    for path in (folder / "faces.rec", folder, "faces.rec", "."):
        found = find_record_files(path)
        names = [os.path.abspath(str(name)) for name in (found.records, found.index, found.property)]
        assert names == [str(folder / name) for name in ("faces.rec", "faces.idx", "property")]
        assert (open_record_set(path).classes, len(open_record_set(path))) == (7, 2)


def test_missing_and_unsuitable_paths_are_refused(record_set: MakeSet, tmp_path: Path) -> None:
    folder = record_set("broken link").plain([0], index=False)
    (folder / "train.idx").symlink_to("gone.idx")
    index_folder = record_set("index folder").plain([0], index=False)
    (index_folder / "train.idx").mkdir()
    (tmp_path / "no rec").mkdir()
    (tmp_path / "no rec" / "train.idx").write_text("0\t0\n")
    (tmp_path / "train.tar").write_bytes(b"tar")
    (tmp_path / "records" / "train.rec").mkdir(parents=True)
    (tmp_path / "several").mkdir()
    for name in "badc":
        (tmp_path / "several" / f"{name}.rec").touch()
    for path, error, message in (
        ("nowhere", InputNotFoundError, r"nowhere: no such file or folder"),
        ("nowhere.rec", InputNotFoundError, r"nowhere\.rec: no such file or folder"),
        ("no rec", InputNotFoundError, r"no \.rec file in this folder; expected train\.rec, with train\.idx"),
        ("several", InputNotFoundError, r"4 other \.rec files \(a\.rec, b\.rec, c\.rec\): name the one"),
        ("train.tar", FormatError, r"train\.tar: is neither a set folder nor a \.rec file"),
        ("records", FormatError, r"train\.rec: is a folder, not a file"),
        ("index folder", FormatError, r"train\.idx: is a folder, not a file"),
        ("broken link", InputNotFoundError, r"train\.idx: no such file"),
    ):
        with pytest.raises(error, match=message):
            open_record_set(tmp_path / path)


@pytest.fixture
def public_set() -> Iterator[Path]:
    """A set that every user may read: pytest's own folders are for one user alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield RecordSetMaker(Path(folder, "set")).plain([0, 1], num_classes=2)


@pytest.mark.parametrize("name", [".", "train.rec", "train.idx", "property"])
def test_a_folder_or_file_without_read_permission_is_named(public_set: Path, name: str) -> None:
    (public_set / name).chmod(0o000)
    try:
        message = raised_without_root(lambda: open_record_set(public_set))
    finally:
        public_set.chmod(0o755)
    assert message == f"InputPermissionError: {public_set / name}: no permission to read it; check its mode and owner"


# Sets whose files do not fit together


def cut(at: int | None = None, missing: int = 0) -> Change:
    """Cut the record file at the record of a place, or bytes off its end."""

    def change(maker: RecordSetMaker) -> None:
        del maker.data[len(maker.data) - missing if at is None else maker.offsets[at] :]

    return change


def entry(place: int | None, key: int | None = None, offset: int | None = None) -> Change:
    """Change the entry of the index at a place, or append one."""

    def change(maker: RecordSetMaker) -> None:
        at = len(maker.keys) if place is None else place
        maker.keys[at : at + 1] = [maker.keys[at] if key is None else key]
        maker.offsets[at : at + 1] = [maker.offsets[at] if offset is None else offset]

    return change


def without(*places: int) -> Change:
    """Remove entries of the index."""

    def change(maker: RecordSetMaker) -> None:
        for place in sorted(places, reverse=True):
            del maker.keys[place], maker.offsets[place]

    return change


def swap_keys(maker: RecordSetMaker) -> None:
    maker.keys[5], maker.keys[6] = maker.keys[6], maker.keys[5]  # the last image and the first identity


def page(maker: RecordSetMaker) -> None:
    maker.data[:] = b"<!DOCTYPE html>" + b" " * 5000


TRUNCATED = r"train\.idx: {} of {} entries point past the end of .*train\.rec \(\d+ bytes\), the first with key {}, "
MISSING = r"train\.idx: has 8 records, but its meta record counts 9 \(6 images, 2 people and itself\): lines are miss"
# the kind of set, the change, the message, and what is delivered by ways that are told in it
CONTRADICTIONS: dict[str, tuple[str, Change, str, list[Options], str]] = {
    "records cut": (INSIGHTFACE, cut(4), TRUNCATED.format(5, 9, 0) + "offset .*--salvage", [SALVAGE], "1234"),
    "last record cut": (PLAIN, cut(missing=4), r"its last record \(key 2, byte \d+\) cannot be read", [SALVAGE], "01"),
    "index too short": (INSIGHTFACE, without(7, 8), f"lists 7 records.* bytes more: .*{ADVICE}", [REBUILD], "123456"),
    "index of a longer file": (PLAIN, entry(None, 3, 1 << 40), TRUNCATED.format(1, 4, 3), [SALVAGE], "012"),
    "line missing": (INSIGHTFACE, without(2), MISSING + f".*{ADVICE}", [REBUILD, SALVAGE], "123456"),
    "line too many": (INSIGHTFACE, entry(None, 99, 4), f"has 10 records, .* counts 9 .*{ADVICE}", [REBUILD], "123456"),
    "another key": (INSIGHTFACE, entry(2, 99), f"key 3 is missing, .* counts it; {ADVICE}", [REBUILD], "123456"),
    "other records": (INSIGHTFACE, swap_keys, f"begin at key 7, but the records .*{ADVICE}", [REBUILD], "123456"),
    "a web page": (PLAIN, page, r"train\.rec: its last record .* no record begins at byte", [], ""),
}


@pytest.mark.parametrize(("kind", "change", "message", "ways", "kept"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_what_does_not_fit_together_is_refused_with_a_way_that_works(
    record_set: MakeSet, kind: str, change: Change, message: str, ways: list[Options], kept: str
) -> None:
    maker = record_set()
    maker.insightface([3, 3]) if kind == INSIGHTFACE else maker.plain([0, 1, 2])
    change(maker)
    folder = maker.write()
    with pytest.raises(FormatError, match=message):
        open_record_set(folder)
    for options in ways:
        assert delivered(open_record_set(folder, **options)) == list(kept)


@pytest.mark.parametrize("twice", [(0, 1), (0, 4), (3, 4), (1, 3)])
def test_two_keys_with_one_offset_are_refused(record_set: MakeSet, twice: tuple[int, int]) -> None:
    maker = record_set()
    maker.plain(range(6))
    before = list(maker.offsets)
    for order in ([0, 1, 2, 3, 4], [4, 0, 1, 2, 3], [3, 1, 4, 0, 2]):
        offsets = [before[place] for place in order]
        offsets[twice[0]] = offsets[twice[1]]
        maker.offsets[:5] = offsets
        with pytest.raises(FormatError, match=rf"train\.idx: two keys have the same offset.*{ADVICE}"):
            open_record_set(maker.write())


@pytest.mark.parametrize("meta", [(np.nan, 6), (4, np.inf), (6, 5), (0, 6), (-1, 6), (1e30, 2e30), (5, 5)])
def test_an_impossible_meta_record_is_refused(record_set: MakeSet, meta: tuple[float, float]) -> None:
    folder = filled(record_set(), *images(0, 0, 0, first=1), *identities(4, (1, 4), meta=meta)).write()
    possible = meta == (5, 5)  # but the last record contradicts it
    message = r"its meta record (counts|says)" if possible else r"train\.rec: key 0 is .*, which is impossible"
    with pytest.raises(FormatError, match=message):
        open_record_set(folder)
    source = open_record_set(folder, **SALVAGE)
    assert possible or (source.dialect, delivered(source)) == (INSIGHTFACE, ["1", "2", "3"])


def test_without_a_meta_record_identities_are_searched(record_set: MakeSet, caplog: pytest.LogCaptureFixture) -> None:
    maker = filled(record_set(), *images(0, 0, 0, 1, 1, first=1), *identities(6, (1, 4), (4, 6))[:-1])
    maker.add_payload(0, NOT_A_HEADER)
    for options in ({}, SALVAGE):
        caplog.clear()
        source = open_record_set(maker.write(), **options)
        assert (source.dialect, source.classes) == (INSIGHTFACE, 2)
        assert keys_and_labels(source) == [(1, 0), (2, 0), (3, 0), (4, 1), (5, 1)]
        assert re.search(r"train\.idx: .*key 0.* missing or corrupt", caplog.text)


FLIPS = st.integers(1, 255) | st.sampled_from([4, 8, 16, 32, 64, 128])


@given(st.sampled_from([INSIGHTFACE, PLAIN]), st.sampled_from([{}, REBUILD, SALVAGE]), FLIPS, st.integers(0, 471))
@example(INSIGHTFACE, REBUILD, 212, 212)  # a length that reaches to the end of the file
@example(PLAIN, REBUILD, 116, 56)  # a length that reaches to another record
def test_a_flipped_byte_is_refused_or_costs_one_image(dialect: str, options: Options, flip: int, place: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        maker = RecordSetMaker(Path(folder))
        maker.insightface([2, 3, 1]) if dialect == INSIGHTFACE else maker.plain([2, 0, 1, 1, 0, 2])
        whole = {sample.image: sample.label for sample in open_record_set(folder)}
        place %= len(maker.data)
        maker.data[place] ^= flip
        maker.write()
        touched = sum(offset <= place for offset in maker.offsets) - 1
        try:
            samples = list(open_record_set(folder, **options).read())
            found = {item.image: item.label for item in samples if isinstance(item, Sample)}
        except FormatError:
            assert not options.get("salvage")
            return
    untouched = list(whole)[:touched] + list(whole)[touched + 1 :]
    assert {image: found.get(image) for image in untouched} == {image: whole[image] for image in untouched}


@pytest.mark.parametrize("payload", [NOT_A_HEADER, b"short", b""])
def test_a_damaged_first_image_does_not_change_the_dialect(record_set: MakeSet, payload: bytes) -> None:
    maker = record_set()
    maker.add_payload(0, payload)
    source = open_record_set(filled(maker, (1, 3.0, True), (2, 4.0, True)).write())
    assert (source.dialect, len(source), delivered(source)) == (PLAIN, 3, ["1", "2"])


EMPTY = {
    "no bytes": ([], r"train\.rec: is empty \(0 bytes\)"),
    "meta and identities": (identities(1, (1, 1)), "holds no image, only meta and"),
    "identities": (identities(1, *[(1, 1)] * 3)[:-1], r"train\.rec: holds no image"),
}


@pytest.mark.parametrize(("records", "message"), EMPTY.values(), ids=EMPTY)
def test_a_set_without_an_image_is_empty(record_set: MakeSet, records: list[Record], message: str) -> None:
    with pytest.raises(EmptyDatasetError, match=message):
        open_record_set(filled(record_set(), *records).write())
    folder = record_set("indexed").plain([0])
    (folder / "train.idx").write_text("")
    with pytest.raises(EmptyDatasetError, match=r"train\.idx: lists no record"):
        open_record_set(folder)


# The property file


@pytest.mark.parametrize("content", [b"", b"classes\n", b"-3,112", b"0,112", b"1.5,2", b"\xff" * 1000, b"9" * 1000])
def test_a_bad_property_file_is_ignored(record_set: MakeSet, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    folder = record_set().insightface([2, 2])
    for text in (b"7,112,112\n", b"7", b" 7 ,112,112\r\n"):
        (folder / "property").write_bytes(text)
        assert open_record_set(folder).classes == 7
    (folder / "property").write_bytes(content)
    assert open_record_set(folder).classes == 2  # by the identity records
    assert "property: its first line is not num_classes,height,width; the file is ignored" in caplog.text


# A rebuilt index


def cached(record_set: MakeSet, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A set without an index, the folder of cached indexes, and the file of this one."""
    folder, cache = record_set().plain([0, 0, 1], index=False), tmp_path / "cache"
    cache.mkdir()
    open_record_set(folder, cache_folder=cache).save_cache()
    (file,) = cache.iterdir()
    return folder, cache, file


def test_a_rebuilt_index_is_used_again_except_for_another_file_or_a_salvage(
    record_set: MakeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache, _ = cached(record_set, tmp_path)
    expected = keys_and_labels(open_record_set(folder))
    with monkeypatch.context() as patch:
        patch.setattr("facedata.converters.rec.walk.walk_records", lambda *_, **__: pytest.fail("walked again"))
        source = open_record_set(folder, cache_folder=cache)
    assert keys_and_labels(source) == expected
    assert (source.sliced(slice(1)).rebuilt, source.take(np.array([0])).rebuilt) == (None, None)
    with open(folder / "train.rec", "ab") as records:
        records.write(encode_record(pack_image_record(ImageRecord(0, (9.0,), 9, 0, jpeg(9)))))
    for options in ({}, SALVAGE):
        source = open_record_set(folder, cache_folder=cache, **options)
        assert len(source) == 4
        source.save_cache()
    open_record_set(record_set("indexed").plain([0, 1]), cache_folder=cache).save_cache()
    assert len([path for path in cache.iterdir() if path.name.startswith(".facedata-")]) == 3
    assert [path.name for path in folder.iterdir()] == ["train.rec"]


def npz(**arrays: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


BAD_INDEXES = {
    "empty": b"",
    "garbage": b"not numpy at all",
    "cut": npz(keys=[0, 1], offsets=[0, 52])[:-30],
    "lengths differ": npz(keys=[0, 1, 2], offsets=[0, 52]),
    "not integers": npz(keys=[0, 1], offsets=[0.0, 52.0]),
    "more than the records": npz(keys=np.arange(1 << 20), offsets=np.arange(1 << 20)),
}


def test_a_corrupt_rebuilt_index_is_refused_with_what_to_do(record_set: MakeSet, tmp_path: Path) -> None:
    folder, cache, file = cached(record_set, tmp_path)
    for content in BAD_INDEXES.values():
        file.write_bytes(content)
        with pytest.raises(FormatError, match="this rebuilt index of an earlier run is corrupt; remove it") as caught:
            open_record_set(folder, cache_folder=cache)
        assert str(caught.value).startswith(f"{file}: ")


# Counts above 2**24, which the meta record rounds: a set of 17 million records, of which the file has one of each kind

LIMIT = 1 << 24


@pytest.mark.parametrize(
    ("images", "people"),
    [
        (17_091_657, 360_232),  # Glint360K itself
        *[(LIMIT + more, people) for more in range(-3, 4) for people in (1, 2, 5)],
        *[(17_000_000 + more, 360_000 + person) for more in range(2) for person in range(2)],
        *[(2 * LIMIT + more, 3) for more in range(-2, 6)],
    ],
)
def test_identity_records_are_found_if_the_meta_record_is_rounded(tmp_path: Path, images: int, people: int) -> None:
    maker = RecordSetMaker(tmp_path)
    image, person = maker.add(1, 0.0, b""), maker.add(2, (1.0, 2.0), b"")
    meta = maker.add(0, (float(images + 1), float(images + 1 + people)), b"")
    maker.write(index=False)
    offsets = np.repeat(np.array([meta, image, person], np.uint8), [1, images, people])
    index = RecordIndex(range(len(offsets)), offsets)  # type: ignore[arg-type]
    with RecordReader(tmp_path / "train.rec") as reader:
        dialect, found, classes = find_dialect(reader, index, "train.idx", salvage=False)
    assert (dialect, classes) == (INSIGHTFACE, people)
    assert found.keys == range(1, images + 1)


@given(st.integers(1, 1 << 40))
def test_the_rounding_allowed_is_that_of_float32_and_little_more(number: int) -> None:
    error = abs(int(np.float32(number)) - number)
    allowed = float32_error(int(np.float32(number)))
    assert error <= allowed <= max(number >> 23, 1)
    assert allowed == 0 or number >= LIMIT - 1
