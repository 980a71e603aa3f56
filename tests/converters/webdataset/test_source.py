"""Which tars a name stands for, which members are samples, under which key and label, and what is wrong with others."""

from __future__ import annotations

import gzip
import json
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from archive_support import tar_bytes, write_tar
from format_support import assert_same, check_parts
from hypothesis import given, settings
from hypothesis import strategies as st
from support import file_of, jpeg

from facedata.converters.webdataset import open_source, recognises
from facedata.converters.webdataset import source as source_module
from facedata.converters.webdataset.source import NumberedNames, find_tars, parse_numbered
from facedata.dataset import Sample, open_dataset
from facedata.errors import EmptyDatasetError, FormatError, InputNotFoundError, SampleError
from facedata.images import LARGEST_IMAGE


def error_of(members: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> SampleError:
    """The error in the place of the first sample; the others are fine."""
    items = list(members.items() if isinstance(members, Mapping) else members)
    with file_of(tar_bytes([*items, ("good.jpg", jpeg("good")), ("good.cls", b"1")]), "x.tar") as path:
        source = open_source(str(path))
        error, sample = source.read()
        assert isinstance(error, SampleError)
        assert isinstance(sample, Sample)
        assert list(source.keys()) == [error.key, "good"]
        assert source.labels().tolist()[1:] == [1]
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
    write_tar(tmp_path / "1.tar", members)
    write_tar(tmp_path / "2.tar", {"c.2/1.jpg": jpeg(4), "c.2/1.cls": b"2147483647"})  # a sample ends with its tar
    extensions = ("jpg", "jpeg", "png", "bmp", "webp", "gif", "tif", "tiff", "bin", "PNG")
    images = [[(f"{extension}.{extension}", b"image"), (f"{extension}.cls", b"0")] for extension in extensions]
    write_tar(tmp_path / "3.tar", [member for sample in images for member in sample])
    keys = [("a/1", 5), ("b/1", 6), ("c.2/1", 7), ("c.2/1", 2147483647)]
    samples = [Sample(*key, jpeg(number)) for number, key in enumerate(keys, 1)]
    assert list(open_source(str(tmp_path))) == [*samples, *(Sample(extension, 0, b"image") for extension in extensions)]
    assert open_source(str(tmp_path)).declared_classes() == 1 << 31


def test_samples_without_an_image_and_more_images_of_a_sample_are_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    skipped = {"c.txt": b"", "README": b"", ".d.jpg": b"", "__e__": b""}
    members = {"a.cls": b"0", "b.png": b"first", "b.jpg": b"second", "b.cls": b"1", **skipped}
    assert list(open_source(str(write_tar(tmp_path / "x.tar", members)))) == [Sample("b", 1, b"first")]
    assert f"skipped 2 samples without an image; the first is {tmp_path}/x.tar: a" in caplog.text
    assert "read the first image of each sample, and skipped 1 others" in caplog.text


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "d/a", "d.e/a", "__x", "__meta__", "__meta__/a", "./a", ".h", "a b"]),
            st.sampled_from([".jpg", ".cls", ".txt", ".png", ".seg.txt", "", ".JPG", "."]),
        ),
        max_size=12,
        unique_by=lambda name: "".join(name).lower(),  # the library gives up a whole tar where a name is repeated
    )
)
def test_samples_are_those_of_the_webdataset_library(names: list[tuple[str, str]]) -> None:
    webdataset = pytest.importorskip("webdataset")
    members = [(f"{key}{extension}", f"{number}".encode()) for number, (key, extension) in enumerate(names)]
    with file_of(tar_bytes([("first.jpg", b"0"), ("first.cls", b"0"), *members]), "x.tar") as path:
        expected, keys = [], []
        for sample in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False):
            keys.append(sample["__key__"])
            images = [sample[name] for name in sample if name in ("jpg", "png")]
            if images:
                expected.append((sample["__key__"], images[0], int(sample.get("cls", b"-1"))))
        try:
            source = open_source(str(path))
        except FormatError:  # members of a sample are not adjacent
            assert len(set(keys)) < len(keys)
            return
        labels = source.labels().tolist()
        items = [sample.image for sample in source]
        assert list(zip(source.keys(), labels, strict=True)) == [(key, label) for key, _, label in expected]
        assert items == [image for _, image, _ in expected]


def test_a_folder_without_an_image_says_what_was_found(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"a.cls": b"1", "b.txt": b""})
    with pytest.raises(EmptyDatasetError, match=r"no sample with an image \(avif, bin, .*\); 2 samples without one"):
        open_source(str(tmp_path))
    write_tar(tmp_path / "x.tar", {})
    with pytest.raises(EmptyDatasetError, match=r"there is no sample with an image \([a-z0-9, ]+\)$"):
        open_source(str(tmp_path))


CLASS_FOLDERS = ["set/id_3/b.c.jpg", "set/Zoe/1/a.png", "set/Zoe/b.jpg", "set/Anna/a.jpg"]
DOTS = ["J.K._Row_9.cls=1", "J.K._Row_9.jpg", "J.cls=2", "J.jpg", "22.05.png", "22.05.cls=3", "P.X.JPG", "P.X.json={}"]


@pytest.mark.parametrize(
    ("names", "expected", "labels", "said"),
    [
        (DOTS, "J.K._Row_9:1 J:2 22.05:3 P.X:-1", None, "1 of 4 samples have no label"),
        (["i.1.jpg", "i.1.cls=4", "i.2.cls=5", "i.2.jpg", "i.txt"], "i.1:4 i.2:5", None, ""),
        (["x.cls=7", "x.input.jpg", "x.target.jpg"], "x.input:7", None, "first of these is .*x.target.jpg"),
        (["x.input.jpg", "x.json=7", "x.jpg"], "x:-1", None, "skipped 1 others"),
        (["J.K.jpg", "J.jpg", "J.L.png"], "J.K:-1 J:-1 J.L:-1", None, "3 images, without labels and class folders"),
        (["p/1.jpg", "p/2.jpg", "p/2.cls=-1"], "p/1:-1 p/2:-1", None, "2 images, without labels and class folders"),
        (["p/1.jpg", "p/2.jpg"], "p/1:0 p/2:0", "folders", "labels from 1 folder: 'p'"),
        (
            CLASS_FOLDERS,
            "set/id_3/b.c:3 set/Zoe/1/a:5 set/Zoe/b:5 set/Anna/a:4",
            None,
            "4 images, labels from 3 folders: 'Anna', 'Zoe', 'id_3'",
        ),
        (["./b/1.jpg", "./a/1.jpg", "./0.jpg"], "./b/1:1 ./a/1:0 ./0:-1", None, "1 image outside of the class folders"),
        (["train/1.jpg", "val/1.jpg"], "train/1:0 val/1:1", "folders", "labels from 2 folders"),
        (["a/1.jpg", "b/2.jpg", "a/1.cls=9", "b/2.cls=0"], "a/1:-1 b/2:-1", "none", ""),
        (["a/1.jpg", "a/1.cls=9", "b/2.jpg"], "a/1:0 b/2:1", "folders", "labels from 2 folders"),
    ],
)
def test_no_image_is_lost_whatever_its_name_and_wherever_its_label(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: list[str], expected: str, labels: str | None, said: str
) -> None:
    caplog.set_level("INFO")
    members = {name: text.encode() or jpeg(name) for name, _, text in (name.partition("=") for name in names)}
    source = open_source(str(write_tar(tmp_path / "x.tar", members)), labels=labels)
    assert " ".join(f"{sample.key}:{sample.label}" for sample in source) == expected
    assert {sample.image for sample in source} <= {jpeg(name) for name in members}
    assert list(source.keys()) == [sample.key for sample in source]
    assert source.labelled == any(label >= 0 for label in source.labels())
    assert re.search(said, caplog.text)
    if labels == "folders":
        assert set((source.class_names() or {}).values()) <= {name.split("/")[0] for name in names}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (["a.jpg", "b.jpg", "a.cls", "b.cls"], "the members of the sample 'a' are not adjacent: .*tar --sort=name -cf"),
        (["x.y.cls", "a.jpg", "a.cls", "x.y.jpg"], "the members of the sample 'x.y' are not adjacent"),
        (["train/a.jpg", "val/b.jpg"], "the folders 'train', 'val' in it are not classes, but parts of a dataset"),
    ],
)
def test_tars_that_would_give_wrong_labels_are_refused(tmp_path: Path, members: list[str], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        open_source(str(write_tar(tmp_path / "x.tar", dict.fromkeys(members, b"1"))))


def test_a_group_of_many_members_is_read_in_bounded_memory(tmp_path: Path) -> None:
    members = [(f"i.{number}{extension}", b"1") for number in range(5000) for extension in (".jpg", ".cls")]
    path = write_tar(tmp_path / "x.tar", members)
    assert open_source(str(path)).labels().tolist() == [1] * 5000


def test_labels_without_end_are_not_held(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.json", bytes(1 << 20))] * 40)
    with pytest.raises(FormatError, match=r"the sample 'a' has more than 33,554,432 bytes of labels and \.json files"):
        open_source(str(path))


def test_tars_of_several_parts_of_a_dataset_are_not_mixed(tmp_path: Path) -> None:
    for name in ("set-train-0.tar", "set-train-1.tar", "set-val-0.tar"):
        write_tar(tmp_path / name, {f"{name[:-4]}.jpg": b"1"})
    with pytest.raises(FormatError, match=r"train \(2: set-train-0.tar\), val \(1: .*name one of them .*\*train\*.tar"):
        open_dataset(str(tmp_path))
    assert len(open_dataset(f"webdataset:{tmp_path}/*train*.tar")) == 2
    assert len(open_dataset(f"webdataset:{tmp_path}/*.tar")) == 3


# What the json says


def test_the_json_gives_the_key_the_landmarks_and_without_a_cls_the_label(tmp_path: Path) -> None:
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
    source = open_source(str(write_tar(tmp_path / "x.tar", members)))
    first = Sample("k", 4, jpeg("a"), np.array(points, np.float32))
    assert_same(source, [first, Sample("b", 5, jpeg("b")), Sample("c", 6, jpeg("c"))])
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
    b'{"key": "k' + b"x" * (1 << 20) + b'"}',
]
BAD_POINTS = [b"[9]", b"[9, NaN]", b"[9, 1e39]", b"[9, true]", b'[9, "1"]', b"[9, 1" + b"0" * 400 + b"]", b"9"]


def test_a_json_without_anything_of_use_is_ignored(tmp_path: Path) -> None:
    texts = [*USELESS, *(b'{"landmarks": [[1, 2], [3, 4], [5, 6], [7, 8], %b]}' % point for point in BAD_POINTS)]
    members: list[tuple[str, bytes]] = []
    for n, text in enumerate(texts):
        members += [(f"{n}.jpg", jpeg("a")), (f"{n}.cls", b"1"), (f"{n}.json", text)]
    samples = list(open_source(str(write_tar(tmp_path / "x.tar", members))))
    assert samples == [Sample(str(n), 1, jpeg("a"), None) for n in range(len(texts))]


# Samples that fail, alone


def test_a_label_that_is_not_an_integer_from_0() -> None:
    for text in (b"", b"cat", b"-2", b"1.0", b"2147483648", b"9" * 5000, b"1 2", b"1_0", b"\xff", b"\xd9\xa1"):
        reason = error_of({"a.jpg": jpeg("a"), "a.cls": text, "a.json": b'{"label": 3}'}).reason
        assert reason.startswith(f"the label in a.cls is {repr(os.fsdecode(text[:30]))[:-1]}")
        assert reason.endswith("expected an integer from 0 to 2147483647")
    for number in ("-2", "1.5", "true", '"3"', "[1]", "2147483648", "1" + "0" * 100):
        error = error_of({"a.json": f'{{"label": {number}}}'.encode(), "a.jpg": jpeg("a")})
        assert error.reason.startswith("the label in a.json is ")


def test_a_bad_sample_fails_alone() -> None:
    bad: list[tuple[list[tuple[str, bytes]], str]] = [
        ([("a.jpg", b""), ("a.cls", b"0")], "the image is empty (0 bytes)"),
    ]
    for second in ("a.jpg", "a.cls", "a.json", "a.JPG"):
        members = [("a.jpg", jpeg("a")), ("a.cls", b"1"), ("a.json", b"{}"), (second, b"2")]
        bad.append((members, f"the sample has a second {second}: it is not clear which one to read"))
    for members, reason in bad:
        error = error_of(members)
        assert (error.key, error.reason) == ("a", reason)


def test_an_image_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    size = LARGEST_IMAGE + 1
    with (tmp_path / "x.tar").open("wb") as file:  # sparse, so that it takes no room on the disk
        info = tarfile.TarInfo("a.jpg")
        info.size = size
        file.write(info.tobuf())
        file.seek(512 + (size + 511) // 512 * 512)
        file.write(tar_bytes({"a.cls": b"0", "b.jpg": jpeg("b"), "b.cls": b"1"}))
    source = open_source(str(tmp_path / "x.tar"))
    error, sample = source.read()
    assert isinstance(error, SampleError)
    assert error.reason == f"the image has more than {LARGEST_IMAGE} bytes, too many for a face"
    assert isinstance(sample, Sample)
    assert list(source.keys()) == ["a", "b"]


def tars(folder: Path, counts: Sequence[int], size: int = 2000) -> Path:
    """Tars with so many samples each."""
    folder.mkdir(exist_ok=True)
    for tar, count in enumerate(counts):
        first, members = sum(counts[:tar]), dict[str, bytes]()
        for number in range(first, first + count):
            members |= {f"{number}.jpg": jpeg(number).ljust(size, b"."), f"{number}.cls": b"%d" % (number % 3)}
        write_tar(folder / f"s-{tar}.tar", members)
    return folder


def test_a_tar_that_changed_since_the_opening_is_noticed(tmp_path: Path) -> None:
    path = tars(tmp_path, [4]) / "s-0.tar"
    source = open_source(str(tmp_path))
    os.truncate(path, 3584 * 2 + 700)
    items = list(source.read())
    assert [isinstance(item, Sample) for item in items] == [True, True, False, False]
    assert str(items[2]).startswith(f"{path}: key 2, byte {3584 * 2 + 512}: the tar has changed since it was opened")
    assert list(source.keys()) == ["0", "1", "2", f"at byte {3584 * 3 + 512}"]
    tars(tmp_path, [5], size=2600)
    another = list(source.read())[1]
    assert isinstance(another, SampleError)
    assert "the tar has changed since it was opened" in another.reason
    path.unlink()
    with pytest.raises(InputNotFoundError, match=r"s-0\.tar: no such file"):
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


# The source


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_keys_in_any_letters_and_of_any_length(tmp_path: Path, form: int) -> None:
    keys = ["ü/日本", "a b", "folder/" * 20 + "x" * 90]
    parts = ((".jpg", b"\xff\xd8\xff"), (".cls", b"1"), (".json", b'{"landmarks": 0}'))
    members = [(f"{key}{extension}", data) for key in keys for extension, data in parts]
    source = open_source(str(write_tar(tmp_path / "x.tar", members, form)))
    assert list(source) == [Sample(key, 1, b"\xff\xd8\xff", None) for key in keys]
    assert list(source.keys()) == keys


@settings(max_examples=20)
@given(data=st.data(), block=st.integers(1, 5))
def test_samples_are_read_in_any_order_and_in_parts(data: st.DataObject, block: int) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_module, "_BLOCK", block)
        source = open_source(str(tars(Path(folder), [2, 5, 4, 1], size=40)))
        assert [(sample.key, sample.label) for sample in source] == [(str(n), n % 3) for n in range(12)]
        assert source.sizes().tolist() == [40] * 12
        assert source.locate(2) == (f"{folder}/s-1.tar", 512)
        check_parts(source, data)


def test_class_names_that_others_wrote_are_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(str(tars(tmp_path, [3])))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert source.class_names() is None
    assert "classes.txt: line 1: expected 'label<TAB>name'" in caplog.text
    (tmp_path / "classes.txt").unlink()
    os.mkfifo(tmp_path / "classes.txt")
    assert source.class_names() is None


def test_tars_are_recognised_by_name_pattern_and_content(tmp_path: Path) -> None:
    folder = tars(tmp_path / "set", [3, 1, 4])
    for path in (folder, folder / "s-0.tar"):
        assert open_dataset(str(path)).identity() == open_source(str(path)).identity()
    for name in ("s-{0..2}.tar", "s-%d.tar", "s-*.tar"):
        assert len(open_dataset(f"webdataset:{folder / name}")) == 8
        assert recognises(str(folder / name))
    (folder / "s-0.tar").rename(tmp_path / "unnamed")
    for name in ("cut.tar", "set.tgz"):  # so that opening them reports what is wrong
        (tmp_path / name).write_bytes(b"\x1f\x8b")
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(bytes(9999)))
    for name in ("unnamed", "cut.tar", "set.tgz", "x.tar.gz"):
        assert recognises(str(tmp_path / name))
    for name in ("empty", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "other" / "x.tar").write_bytes(b"no tar" * 200)
    os.mkfifo(tmp_path / "pipe")
    for name in ("empty", "other", "pipe", "nowhere", "t-{0..1}.tar", "t-%d.tar"):
        assert not recognises(str(tmp_path / name))
    with pytest.raises(FormatError, match=r"x\.tar\.gz: byte 0: .*compressed \(gzip\).*decompress it to a plain \.tar"):
        open_dataset(str(tmp_path / "x.tar.gz"))


# Names of tars


def found(folder: Path, spec: str, *names: str) -> list[str]:
    """The names that a spec stands for, in a folder with these files too."""
    for name in names:
        (folder / name).touch()
    return [str(Path(path).relative_to(folder)) for path in find_tars(str(folder / spec))]


@given(st.sampled_from(["s-%06d.tar", "%d.tar", "a%%b%03d-%%.tar"]), st.integers(0, 10**10))
def test_a_number_is_found_again_in_the_name_that_it_gave(pattern: str, number: int) -> None:
    names = parse_numbered(pattern)
    assert names is not None
    assert str(names) == pattern
    assert names.name(number) == pattern % number
    assert names.number(names.name(number)) == number


def test_other_names_have_no_number_and_other_patterns_are_none() -> None:
    arabic = "s-\u0660\u0660\u0660\u0660\u0660\u0661.tar"
    for name in ("s-00001.tar", "s-0000010.tar", "s-+00001.tar", arabic, "s-.tar", "s-000001.tar2"):
        assert NumberedNames("s-", 6, ".tar").number(name) is None
    for pattern in ("a.tar", "%s.tar", "%06d-%06d.tar", "%6d.tar", "100%.tar", "%x.tar"):
        assert parse_numbered(pattern) is None


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (".", ["a.tar", "b-9.tar", "b-10.tar"]),
        ("b-*.tar", ["b-9.tar", "b-10.tar"]),
        ("s-%d.tar", ["s-9.tar", "s-10.tar", "s-11.tar"]),
        ("s-{8..10}.tar", ["s-8.tar", "s-9.tar", "s-10.tar"]),
        ("s-{08..10}.tar", ["s-08.tar", "s-09.tar", "s-10.tar"]),
        ("s-{2..1}.tar", ["s-2.tar", "s-1.tar"]),
        ("{a,b}-{0..1}.tar", ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]),
        ("{x}-{0..1}.tar", ["{x}-0.tar", "{x}-1.tar"]),
        *((name, [name]) for name in ("{0..1}.tar", "%d.tar", "[ab].tar", "*.tar")),  # the files of these names
    ],
)
def test_a_spec_stands_for_tars_in_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spec: str, expected: list[str]
) -> None:
    others = [] if spec == "." else ["0.tar", "1.tar", "a.tar", "other.tar", "s-x.tar", "s-09.tar"]
    assert found(tmp_path, spec, *expected, *others, ".hidden.tar", "notes.txt", "x.tar.gz") == expected
    assert caplog.text == ""


def test_braces_agree_with_the_webdataset_library(tmp_path: Path) -> None:
    braceexpand = pytest.importorskip("braceexpand").braceexpand
    for spec in ("s-{0..11}", "s-{00..11}", "s-{098..101}-{a,b}", "{b,a}{3..1}"):
        assert found(tmp_path, spec, *braceexpand(spec)) == list(braceexpand(spec))


def test_a_gap_in_the_numbers_of_a_pattern_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert found(tmp_path, "s-%d.tar", "s-9.tar", "s-11.tar") == ["s-9.tar", "s-11.tar"]
    assert "there is no s-10.tar; continuing without it" in caplog.text


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        *((spec, InputNotFoundError, "no such file or folder") for spec in ("n.tar", "n-%06d.tar", "n-*.tar")),
        *((spec, InputNotFoundError, "no such file or folder") for spec in ("no/s-%d.tar", "no/*.tar")),
        ("s-{0..2}.tar", InputNotFoundError, r"s-1\.tar: no such file; .*s-\{0\.\.2\}\.tar names 3 tars"),
        ("{0..99999999999999999}.tar", FormatError, "stands for more than 1048576 names"),
        ("{0..1023}-{0..1024}.tar", FormatError, "stands for more than 1048576 names"),
        ("empty", EmptyDatasetError, r"there is no \.tar in this folder$"),
        ("compressed", EmptyDatasetError, r"x\.tar\.gz is compressed: decompress it to a plain \.tar first"),
    ],
)
def test_tars_that_are_missing_are_named(tmp_path: Path, spec: str, error: type[Exception], message: str) -> None:
    for folder in ("empty", "compressed"):
        (tmp_path / folder).mkdir()
    with pytest.raises(error, match=message):
        found(tmp_path, spec, "s-0.tar", "s-2.tar", "compressed/x.tar.gz")
