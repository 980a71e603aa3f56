"""`WebDatasetSource`: which members are samples, under which key and label, and what becomes of bad ones."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import file_of, jpeg

from facedata.converters.webdataset import open_source, recognises
from facedata.converters.webdataset import source as source_module
from facedata.dataset import Sample, open_dataset
from facedata.errors import EmptyDatasetError, FormatError, InputNotFoundError, SampleError
from facedata.images import LARGEST_IMAGE


def make_tar(path: Path, members: Mapping[str, bytes] | Sequence[tuple[str, bytes]], **options: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def read(path: Path) -> list[tuple[str, int, bytes]]:
    return [(sample.key, sample.label, sample.image) for sample in open_source(str(path))]


def error_of(members: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> SampleError:
    """The error in the place of the first sample; the others are fine."""
    good = [("good.jpg", jpeg("good")), ("good.cls", b"1")]
    items = list(members.items() if isinstance(members, Mapping) else members)
    with file_of(b"", "x.tar") as path:
        source = open_source(str(make_tar(path, [*items, *good])))
        error, sample = source.read()
        assert isinstance(error, SampleError)
        assert isinstance(sample, Sample)
        assert list(source.keys()) == [error.key, "good"]
        assert np.concatenate(list(source.labels())).tolist()[1:] == [1]
        assert (error.dataset, error.offset) == source.locate(0)
    return error


# Which members are samples


def test_members_in_a_row_with_the_same_path_up_to_the_first_dot_are_a_sample(tmp_path: Path) -> None:
    members = {
        "a/1.cls": b"5",
        "a/1.jpg": jpeg(1),
        "b/1.jpg": jpeg(2),
        "b/1.cls": b" 6\n",
        "b/1.seg.png": b"mask",
        "c.2/1.JPEG": jpeg(3),
        "c.2/1.CLS": b"007",
        "c.2/1.txt": b"words",
    }
    assert read(make_tar(tmp_path / "x.tar", members)) == [
        ("a/1", 5, jpeg(1)),
        ("b/1", 6, jpeg(2)),
        ("c.2/1", 7, jpeg(3)),
    ]


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "png", "bmp", "webp", "gif", "tif", "tiff", "bin", "PNG"])
def test_images_are_known_by_their_extension(tmp_path: Path, extension: str) -> None:
    path = make_tar(tmp_path / "x.tar", {f"a.{extension}": b"image", "a.cls": b"0"})
    assert read(path) == [("a", 0, b"image")]


def test_samples_without_an_image_are_passed_over_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = {
        "a.cls": b"0",
        "b.jpg": jpeg("b"),
        "b.cls": b"1",
        "c.txt": b"",
        "README": b"",
        ".d.jpg": b"",
        "__e__": b"",
    }
    with caplog.at_level(logging.WARNING, logger="facedata"):
        assert read(make_tar(tmp_path / "x.tar", members)) == [("b", 1, jpeg("b"))]
    assert "skipped 2 samples without an image" in caplog.text
    assert f"the first is {tmp_path}/x.tar: a" in caplog.text


def test_of_several_images_the_first_is_taken_and_the_others_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="facedata"):
        path = make_tar(tmp_path / "x.tar", {"a.png": b"first", "a.jpg": b"second", "a.cls": b"3"})
        assert read(path) == [("a", 3, b"first")]
    assert "read the first image of each sample, and skipped 1 others" in caplog.text


def test_a_sample_does_not_go_on_in_the_next_tar(tmp_path: Path) -> None:
    make_tar(tmp_path / "1.tar", {"a.jpg": jpeg(1), "a.cls": b"1"})
    make_tar(tmp_path / "2.tar", {"a.jpg": jpeg(2), "a.cls": b"2"})
    assert read(tmp_path) == [("a", 1, jpeg(1)), ("a", 2, jpeg(2))]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "d/a", "d.e/a", "__x", "__meta__", "__meta__/a", "./a", ".h", "a b"]),
            st.sampled_from([".jpg", ".cls", ".txt", ".png", ".seg.png", "", ".JPG", "."]),
        ),
        max_size=12,
        unique_by=lambda name: "".join(name).lower(),  # the library gives up a whole tar where a name is repeated
    )
)
def test_samples_are_those_of_the_webdataset_library(names: list[tuple[str, str]]) -> None:
    webdataset = pytest.importorskip("webdataset")
    members = [(f"{key}{extension}", f"{number}".encode()) for number, (key, extension) in enumerate(names)]
    with file_of(b"", "x.tar") as path:
        make_tar(path, [("first.jpg", b"0"), ("first.cls", b"0"), *members])
        theirs = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False))
        expected = []
        for sample in theirs:
            images = [sample[name] for name in sample if name in ("jpg", "png")]
            if images:
                expected.append((sample["__key__"], images[0], int(sample.get("cls", b"-1"))))
        source = open_source(str(path))
        labels = np.concatenate(list(source.labels())).tolist()
        items = [item.image if isinstance(item, Sample) else None for item in source.read()]
        assert list(zip(source.keys(), labels, strict=True)) == [(key, label) for key, _, label in expected]
        assert items == [image if label >= 0 else None for _, image, label in expected]


def test_a_folder_without_an_image_says_what_was_found(tmp_path: Path) -> None:
    make_tar(tmp_path / "x.tar", {"a.cls": b"1", "b.txt": b""})
    with pytest.raises(EmptyDatasetError, match=r"no sample with an image \(bin, bmp, .*\); 2 samples have none"):
        open_source(str(tmp_path))
    make_tar(tmp_path / "x.tar", {})
    with pytest.raises(EmptyDatasetError, match=r"there is no sample with an image \([a-z, ]+\)$"):
        open_source(str(tmp_path))


# What the json says


def test_the_json_gives_the_key_the_landmarks_and_where_there_is_no_cls_the_label(tmp_path: Path) -> None:
    points = [[1, 2], [3.5, 4], [5, 6], [7, 8], [9, 10]]
    members = {
        "a.jpg": jpeg("a"),
        "a.json": json.dumps({"label": 4, "key": "k", "landmarks": points}).encode(),
        "b.json": b'{"cls": 5}',
        "b.jpg": jpeg("b"),
        "c.json": b'{"label": 9}',
        "c.jpg": jpeg("c"),
        "c.cls": b"6",
    }
    source = open_source(str(make_tar(tmp_path / "x.tar", members)))
    samples = list(source)
    assert [(one.key, one.label, one.image) for one in samples] == [
        ("k", 4, jpeg("a")),
        ("b", 5, jpeg("b")),
        ("c", 6, jpeg("c")),
    ]
    assert samples[0].landmarks is not None
    assert samples[0].landmarks.dtype == np.float32
    assert samples[0].landmarks.tolist() == points
    assert samples[1].landmarks is None
    assert list(source.keys()) == ["k", "b", "c"]


USELESS = [
    b"",
    b"{",
    b"[]",
    b'"key"',
    b"[" * 100_000,
    b"\xff\xfe",
    b'{"key": 5, "landmarks": 7}',
    b'{"landmarks": [[1, 2], [3, 4], [5, 6], [7, 8]]}',
    b'{"landmarks": [[1, 2], [3, 4], [5, 6], [7, 8], [9]]}',
    b'{"landmarks": [[1, 2], [3, 4], [5, 6], [7, 8], [9, NaN]]}',
    b'{"landmarks": [[1, 2], [3, 4], [5, 6], [7, 8], [9, 1e39]]}',
    b'{"landmarks": [[1, 2], [3, 4], [5, 6], [7, 8], [9, true]]}',
    b'{"landmarks": [[1, 2], [3, 4], [5, 6], [7, 8], [9, "1"]]}',
    b'{"landmarks": [[1, 2], [3, 4], [5, 6], [7, 8], [9, 1' + b"0" * 400 + b"]]}",
    b'{"key": "k' + b"x" * (1 << 20) + b'"}',
]


def test_a_json_without_anything_of_use_is_ignored(tmp_path: Path) -> None:
    members: list[tuple[str, bytes]] = []
    for n, text in enumerate(USELESS):
        members += [(f"{n}.jpg", jpeg("a")), (f"{n}.cls", b"1"), (f"{n}.json", text)]
    samples = list(open_source(str(make_tar(tmp_path / "x.tar", members))))
    assert [(sample.key, sample.label, sample.landmarks) for sample in samples] == [
        (str(n), 1, None) for n in range(len(USELESS))
    ]


# Samples that fail, alone


CLS = [b"", b"cat", b"-1", b"1.0", b"2147483648", b"9" * 5000, b"1 2", b"1_0", b"\xff", b"\xd9\xa1"]
JSON = ["-1", "1.5", "true", '"3"', "[1]", "2147483648", "1" + "0" * 100]


def test_a_label_that_is_not_an_integer_from_0() -> None:
    for text in CLS:
        reason = error_of({"a.jpg": jpeg("a"), "a.cls": text, "a.json": b'{"label": 3}'}).reason
        assert reason.startswith(f"the label in a.cls is {repr(os.fsdecode(text[:30]))[:-1]}")
        assert reason.endswith("expected an integer from 0 to 2147483647")
    for number in JSON:
        error = error_of([("a.json", f'{{"label": {number}}}'.encode()), ("a.jpg", jpeg("a"))])
        assert error.reason.startswith("the label in a.json is ")


BAD: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    "no label": (
        [("a.jpg", jpeg("a")), ("a.json", b"{}")],
        "no label: there is neither a.cls beside the image, nor a 'label' in a.json",
    ),
    "an empty image": ([("a.jpg", b""), ("a.cls", b"0")], "the image is empty (0 bytes)"),
    **{
        f"a second {again}": (
            [("a.jpg", jpeg("a")), ("a.cls", b"1"), ("a.json", b"{}"), (again, b"2")],
            f"the sample has a second {again}: it is not clear which one to read",
        )
        for again in ("a.jpg", "a.cls", "a.json", "a.JPG")
    },
}


@pytest.mark.parametrize(("members", "reason"), BAD.values(), ids=BAD)
def test_a_bad_sample_fails_alone(members: list[tuple[str, bytes]], reason: str) -> None:
    error = error_of(members)
    assert (error.key, error.reason) == ("a", reason)


def test_the_largest_label(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "x.tar", {"a.jpg": jpeg("a"), "a.cls": b"2147483647"})
    assert read(path) == [("a", 2147483647, jpeg("a"))]
    assert open_source(str(path)).declared_classes() == 1 << 31


def test_an_image_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path, size = tmp_path / "x.tar", LARGEST_IMAGE + 1
    with path.open("wb") as file:  # sparse, so that it takes no room on the disk
        info = tarfile.TarInfo("a.jpg")
        info.size = size
        file.write(info.tobuf())
        file.seek(512 + (size + 511) // 512 * 512)
        with tarfile.open(fileobj=file, mode="w") as tar:
            tar.offset = file.tell()
            for name, data in (("a.cls", b"0"), ("b.jpg", jpeg("b")), ("b.cls", b"1")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    source = open_source(str(path))
    error, sample = source.read()
    assert isinstance(error, SampleError)
    assert error.reason == f"the image has more than {LARGEST_IMAGE} bytes, too many for a face"
    assert isinstance(sample, Sample)
    assert list(source.keys()) == ["a", "b"]


def tars(folder: Path, counts: Sequence[int] = (3, 1, 4), size: int = 2000, **options: Any) -> Path:
    """Tars with so many samples each."""
    number = 0
    for tar, count in enumerate(counts):
        members: list[tuple[str, bytes]] = []
        for _ in range(count):
            members += [(f"{number}.jpg", jpeg(number).ljust(size, b".")), (f"{number}.cls", b"%d" % (number % 3))]
            number += 1
        make_tar(folder / f"s-{tar}.tar", members, **options)
    return folder


def test_what_was_cut_off_since_the_opening_fails_alone(tmp_path: Path) -> None:
    folder = tars(tmp_path, [4])
    source = open_source(str(folder))
    os.truncate(folder / "s-0.tar", 3584 * 2 + 700)
    items = list(source.read())
    assert [isinstance(item, Sample) for item in items] == [True, True, False, False]
    assert str(items[2]).startswith(
        f"{folder}/s-0.tar: key 2, byte {3584 * 2 + 512}: the tar has changed since it was opened"
    )
    assert list(source.keys()) == ["0", "1", "2", f"at byte {3584 * 3 + 512}"]


def test_another_tar_in_the_same_place_is_noticed(tmp_path: Path) -> None:
    folder = tars(tmp_path, [4])
    source = open_source(str(folder))
    tars(tmp_path, [5], size=2600)
    items = list(source.read())
    assert isinstance(items[1], SampleError)
    assert "the tar has changed since it was opened" in items[1].reason


def test_a_tar_that_is_gone_is_named(tmp_path: Path) -> None:
    source = open_source(str(tars(tmp_path)))
    (tmp_path / "s-1.tar").unlink()
    with pytest.raises(InputNotFoundError, match=r"s-1\.tar: no such file"):
        list(source)


def test_a_bad_spot_of_the_disk_fails_only_the_samples_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, real = open_source(str(tars(tmp_path, [40]))), os.pread
    bad = 3584 * 20 + 1000

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        if offset <= bad < offset + length:
            raise OSError(5, "Input/output error")
        return real(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", pread)
    failed = [item for item in source.read() if isinstance(item, SampleError)]
    assert [error.key for error in failed] == ["20"]
    assert "cannot be read: Input/output error" in failed[0].reason


# The source's own promises


@pytest.mark.parametrize("options", [{"format": tarfile.USTAR_FORMAT}, {"format": tarfile.GNU_FORMAT}])
def test_long_names_are_keys(tmp_path: Path, options: dict[str, Any]) -> None:
    key = "folder/" * 20 + "x" * 90
    members = [
        (f"{key}.jpg", jpeg("a")),
        (f"{key}.cls", b"1"),
        (f"{key}.json", b'{"landmarks": 0}'),
        ("b.jpg", jpeg("b")),
    ]
    source = open_source(str(make_tar(tmp_path / "x.tar", [*members, ("b.cls", b"2")], **options)))
    assert [(one.key, one.label, one.image) for one in source] == [(key, 1, jpeg("a")), ("b", 2, jpeg("b"))]
    assert list(source.keys()) == [key, "b"]


def test_keys_in_any_letters(tmp_path: Path) -> None:
    keys = ["ü/日本", "a b", "x" * 120]
    members = [(f"{key}{e}", data) for key in keys for e, data in ((".jpg", jpeg(key)), (".cls", b"0"))]
    source = open_source(str(make_tar(tmp_path / "x.tar", members, format=tarfile.PAX_FORMAT)))
    assert list(source.keys()) == keys == [sample.key for sample in source]


def test_samples_are_read_in_any_order_and_in_parts(tmp_path: Path) -> None:
    source = open_source(str(tars(tmp_path)))
    every = [sample.image for sample in source]
    assert [int(image[4:].rstrip(b".")) for image in every] == list(range(8))
    positions = np.array([7, 0, 3, 3, 4, 2, 6])
    taken = source.take(positions)
    assert [sample.image for sample in taken] == [every[position] for position in positions]
    assert np.concatenate(list(taken.labels())).tolist() == [position % 3 for position in positions]
    assert [sample.image for sample in taken[2:5][1:]] == [every[3], every[4]]
    assert [taken.locate(place) for place in range(7)] == [source.locate(int(one)) for one in positions]
    assert source.locate(4) == (str(tmp_path / "s-2.tar"), 512)
    assert list(source[2:2]) == []


@settings(max_examples=20)
@given(st.lists(st.integers(0, 11), max_size=12), st.integers(1, 5))
def test_parts_of_parts_are_the_same_samples(positions: list[int], block: int) -> None:
    with file_of(b"", "marker") as marker, pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_module, "_BLOCK", block)
        source = open_source(str(tars(marker.parent, [2, 5, 4, 1], size=40)))
        taken = source.take(np.array(positions, np.int64))
        assert [sample.key for sample in taken] == list(taken.keys()) == [str(one) for one in positions]
        assert taken.sizes().tolist() == [40] * len(positions)
        assert sum(map(len, taken.labels())) == len(taken) == len(positions)


def test_a_part_takes_its_own_tars_alone_to_a_worker(tmp_path: Path) -> None:
    source = open_source(str(tars(tmp_path, [2] * 30)))
    part = source[10:12]
    assert part.paths == (str(tmp_path / "s-5.tar"),)
    assert len(pickle.dumps(part)) < len(pickle.dumps(source)) / 3
    again = pickle.loads(pickle.dumps(part))  # noqa: S301, our own bytes
    assert [sample.key for sample in again] == ["10", "11"]
    assert again.identity() == source.identity()


def test_sizes_are_those_of_the_images(tmp_path: Path) -> None:
    source = open_source(
        str(make_tar(tmp_path / "x.tar", {"a.jpg": bytes(5), "a.cls": b"0", "b.jpg": bytes(700), "b.cls": b"0"}))
    )
    assert source.sizes().tolist() == [5, 700]
    assert source.size() == 705


def test_the_identity_tells_inputs_apart_and_does_not_know_where_they_lie(tmp_path: Path) -> None:
    one = open_source(str(tars(tmp_path / "a"))).identity()
    assert open_source(str(tars(tmp_path / "b"))).identity() == one
    assert json.loads(json.dumps(one)) == one
    assert open_source(str(tars(tmp_path / "c", [3, 1, 3]))).identity() != one
    assert open_source(str(tars(tmp_path / "d", [1, 3, 4]))).identity() != one
    assert open_source(str(tmp_path / "a" / "s-{1..2}.tar")).identity() != one


def test_class_names_that_others_wrote_are_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(str(tars(tmp_path)))
    assert source.class_names() is None
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with caplog.at_level(logging.WARNING, logger="facedata"):
        assert source.class_names() is None
    assert "classes.txt: line 1: expected 'label<TAB>name'" in caplog.text
    (tmp_path / "classes.txt").write_text("0\tcat\n")
    assert source.class_names() == {0: "cat"}
    (tmp_path / "classes.txt").unlink()
    os.mkfifo(tmp_path / "classes.txt")
    assert source.class_names() is None


def test_it_is_opened_by_name_pattern_and_content(tmp_path: Path) -> None:
    folder = tars(tmp_path / "set")
    for path in (folder, folder / "s-0.tar"):
        assert open_dataset(str(path)).identity() == open_source(str(path)).identity()
    for name in ("s-{0..2}.tar", "s-%d.tar", "s-*.tar"):
        assert len(open_dataset(f"webdataset:{folder / name}")) == 8
        assert recognises(str(folder / name))


def test_what_it_recognises(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.tar").write_bytes(b"no tar" * 200)
    os.mkfifo(tmp_path / "pipe")
    for name in ("empty", "other", "pipe", "nowhere", "s-{0..1}.tar", "s-%d.tar"):
        assert not recognises(str(tmp_path / name))
    for name in ("cut.tar", "set.tar.gz", "set.tgz"):  # so that opening them says what is wrong
        (tmp_path / name).write_bytes(b"\x1f\x8b")
        assert recognises(str(tmp_path / name))
    tars(tmp_path, [1])
    (tmp_path / "s-0.tar").rename(tmp_path / "unnamed")
    assert recognises(str(tmp_path / "unnamed"))


def test_a_compressed_tar_is_refused_by_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(
        FormatError, match=r"x\.tar\.gz: byte 0: .*it is compressed \(gzip\).*decompress it to a plain \.tar first"
    ):
        open_dataset(str(tmp_path / "x.tar.gz"))
