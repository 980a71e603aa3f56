from __future__ import annotations

import logging
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from format_support import check_parts
from hypothesis import given, settings
from hypothesis import strategies as st
from support import jpeg, raised_without_root

from facedata.converters.folder.source import FolderSource
from facedata.dataset import Sample, Source, open_dataset
from facedata.errors import EmptyDatasetError, FormatError, InputError, InputNotFoundError, SampleError


def make(root: Path, *paths: str) -> Path:
    """A folder of images that hold their own path."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(jpeg(path))
    return root


def opened(root: Path) -> Source:
    return open_dataset(f"folder:{root}")


def listed(source: Source) -> list[tuple[str, int]]:
    return [(sample.key, sample.label) for sample in source]


def test_classes_and_files_come_in_natural_order(tmp_path: Path) -> None:
    source = opened(make(tmp_path, "id_10/b.jpg", "id_2/10.jpg", "id_2/9.jpg", "id_2/x.PNG", "id_1/a.webp"))
    assert listed(source) == [
        ("id_1/a.webp", 1),
        ("id_2/9.jpg", 2),
        ("id_2/10.jpg", 2),
        ("id_2/x.PNG", 2),
        ("id_10/b.jpg", 10),
    ]
    assert [sample.image for sample in source] == [jpeg(sample.key) for sample in source]
    assert source.locate(2) == (f"{tmp_path}/id_2/10.jpg", None)
    assert source.class_names() == {1: "id_1", 2: "id_2", 10: "id_10"}
    assert source[2:].class_names() == {2: "id_2", 10: "id_10"}


@pytest.mark.parametrize(
    ("folders", "labels"),
    [
        (["0000045", "7", "id_3"], {"id_3": 3, "7": 7, "0000045": 45}),
        (["bob", "Al", "carl10", "carl9"], {"Al": 0, "bob": 1, "carl9": 2, "carl10": 3}),
        (["id_5", "bob", "al"], {"id_5": 5, "al": 6, "bob": 7}),
        (["20231011123456", "x"], {"20231011123456": 0, "x": 1}),
        (["id_2x", "id_"], {"id_": 0, "id_2x": 1}),
    ],
)
def test_numbers_in_folder_names_are_labels_and_other_names_are_numbered(
    tmp_path: Path, folders: list[str], labels: dict[str, int]
) -> None:
    source = opened(make(tmp_path, *(f"{folder}/a.jpg" for folder in folders)))
    assert {key.split("/")[0]: label for key, label in listed(source)} == labels


@pytest.mark.parametrize(
    ("folders", "error", "message"),
    [
        (["id_7", "7"], FormatError, "the folders '(id_7|7)' and '(id_7|7)' both have the label 7"),
        (["07", "7"], FormatError, "the folders '(07|7)' and '(07|7)' both have the label 7"),
        (["id_2147483647", "zed"], FormatError, "the folder 'zed' would get the label 2147483648"),
        ([".hidden"], EmptyDatasetError, "holds no image; expected images, or one folder of images for each class"),
        ([], InputNotFoundError, "set: no such file or folder"),
    ],
)
def test_folders_that_give_no_labels_are_refused(
    tmp_path: Path, folders: list[str], error: type[InputError], message: str
) -> None:
    with pytest.raises(error, match=message):
        opened(make(tmp_path / "set", *(f"{folder}/a.jpg" for folder in folders)))


def test_what_is_no_image_is_passed_over_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "a/1.jpg", "a/.hidden.jpg", "a/noext", "a/deep/2.jpg", ".git/3.jpg", "lone.jpg", "b/deep/.4.jpg")
    for name in ("a/notes.txt", "a/more.txt", "b/readme", "failures.jsonl"):
        (tmp_path / name).write_text("text")
    with caplog.at_level(logging.INFO, logger="facedata"):
        assert listed(opened(tmp_path)) == [("a/1.jpg", 0), ("a/noext", 0), ("a/deep/2.jpg", 0)]
    for part in (
        "skipped 3 files that are not images: 2 .txt, 1 without an extension",
        "3 hidden entries",
        ".git: hidden folder, whose images are not read",
        "skipped 1 image outside of the class folders: 'lone.jpg'; --labels none takes all",
    ):
        assert part in caplog.text
    assert "no image in the class folders 'b'; they get no label" in caplog.text


@pytest.mark.parametrize(
    ("paths", "expected", "said"),
    [
        (["2.jpg", "10.jpg", "x.PNG"], {"2.jpg": -1, "10.jpg": -1, "x.PNG": -1}, "3 images, no class folders: unlab"),
        (
            ["1.jpg", "2.jpg", "raw/3.jpg"],
            {"raw/3.jpg": -1, "1.jpg": -1, "2.jpg": -1},
            "most of them outside of",
        ),
        (["a/1.jpg", "b/2.jpg"], {"a/1.jpg": 0, "b/2.jpg": 1}, "2 images in 2 class folders"),
        (["Al/0/1.jpg", "Al/0/2.jpg", "Al/t.jpg"], {"Al/t.jpg": 0, "Al/0/1.jpg": 0, "Al/0/2.jpg": 0}, "the folders in"),
        (["id_4/1.jpg", "unlabelled/2.jpg"], {"id_4/1.jpg": 4, "unlabelled/2.jpg": -1}, "2 images in 1 class folder"),
    ],
    ids=["flat", "most of it flat", "classes", "YouTube Faces", "some without label"],
)
def test_the_content_decides_about_labels_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, paths: list[str], expected: dict[str, int], said: str
) -> None:
    make(tmp_path, *paths)
    with caplog.at_level(logging.INFO, logger="facedata"):
        source = open_dataset(str(tmp_path))
    assert dict(listed(source)) == expected
    assert source.labelled is any(label >= 0 for label in expected.values())
    assert said in caplog.text
    unlabelled = open_dataset(f"folder:{tmp_path}", labels="none")
    assert dict(listed(unlabelled)) == dict.fromkeys(paths, -1)
    assert not unlabelled.labelled


def test_one_image_is_a_dataset(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "2.jpg")
    for spec in (f"{tmp_path}/1.jpg", f"folder:{tmp_path}/1.jpg"):
        source = open_dataset(spec)
        assert listed(source) == [("1.jpg", -1)]
        assert source.places() == {f"{tmp_path}/1.jpg": False}


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (
            ["train/a/1.jpg", "val/a/2.jpg"],
            r"holds 'train', 'val', not classes, but parts of a dataset; .*t/train .*val",
        ),
        (
            ["lfw/a/1.jpg", "lfw/b/2.jpg"],
            r"holds 'lfw', which looks like a folder of class folders; name it \(.*lfw\)",
        ),
    ],
)
def test_the_folder_above_the_classes_is_refused_with_theirs(tmp_path: Path, paths: list[str], message: str) -> None:
    root = make(tmp_path / "t", *paths)
    with pytest.raises(FormatError, match=message):
        open_dataset(str(root))
    assert len(open_dataset(f"folder:{root}", labels="folders")) == 2


def test_links_that_lead_nowhere_or_round_are_refused_by_name(tmp_path: Path) -> None:
    root = make(tmp_path / "t", "a/1.jpg", "b/2.jpg")
    (root / "c").symlink_to("a")
    assert [key for key, _ in listed(opened(root))] == ["a/1.jpg", "b/2.jpg", "c/1.jpg"]
    (root / "b" / "y").symlink_to("../a")  # no loop before there is a/x
    for link, target, message in (
        ("gone", "nowhere", "t/gone: is a link to nowhere, which does not exist"),
        ("a/up", "..", "t/a/up: is a link to .*/t, in which it lies itself"),
        ("a/x", "../b", "t/a/x/y: is a link to .*/t/a, in which it lies itself"),
    ):
        (root / link).symlink_to(target)
        with pytest.raises(InputError, match=message):
            opened(root)
        (root / link).unlink()


def test_a_list_in_the_folder_that_has_its_labels_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "bicycle/1.jpg", "bicycle/x/2.jpg", "chair/3.jpg")
    (tmp_path / "same.txt").write_text("bicycle/1.jpg 5\nbicycle/x/2.jpg 5\nchair/3.jpg 6\n")  # the class folders' own
    (tmp_path / "points.csv").write_text("path,x1,y1\nbicycle/1.jpg,1,2\n")
    opened(tmp_path)
    assert "its labels" not in caplog.text
    (tmp_path / "Ebay_train.txt").write_text("image_id class_id path\n1 1 bicycle/1.jpg\n2 2 bicycle/x/2.jpg\n")
    opened(tmp_path)
    assert f"'{tmp_path}/Ebay_train.txt' may have its labels; to take them, name list:{tmp_path}/Eb" in caplog.text


def test_names_that_differ_in_case_are_kept_apart_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(opened(make(tmp_path, "a/x.jpg", "a/X.jpg", "B/1.jpg", "b/1.jpg"))) == 4
    assert "differ only in case: 'B, b', 'a/X.jpg, x.jpg'" in caplog.text


def test_a_file_that_cannot_be_read_fails_by_name(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jpg", "a/2.jpg")
    (tmp_path / "a" / "3.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "a" / "4.jpg")
    (tmp_path / "a" / "5.jpg").touch()
    with open(tmp_path / "a" / "6.jpg", "wb") as file:
        file.truncate(1 << 33)
    source = opened(tmp_path)
    (tmp_path / "a" / "2.jpg").unlink()
    items = list(source.read())
    assert isinstance(items[0], Sample)
    assert [(item.key, item.reason[:29]) for item in items[1:] if isinstance(item, SampleError)] == [
        ("a/2.jpg", "no such file"),
        ("a/3.jpg", "no such file"),
        ("a/4.jpg", "cannot be read: it is not a r"),
        ("a/5.jpg", "cannot be read: it is empty"),
        ("a/6.jpg", "cannot be read: it has 8,589,"),
    ]


def test_a_name_that_is_not_utf8_survives(tmp_path: Path) -> None:
    (make(tmp_path, "a/1.jpg") / "a/1.jpg").rename(tmp_path / os.fsdecode(b"a/\xff.jpg"))
    (sample,) = opened(tmp_path)
    assert (os.fsencode(sample.key), sample.image) == (b"a/\xff.jpg", jpeg("a/1.jpg"))


NAMES = st.sets(st.text("0123ab", min_size=1, max_size=4), min_size=1, max_size=90)


@settings(max_examples=20)
@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), NAMES, min_size=1, max_size=4), st.data())
def test_parts_are_the_same_as_the_whole(tree: dict[str, set[str]], data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        paths = [f"{name}/{file}.jpg" for name, files in tree.items() for file in files]
        source = opened(make(Path(folder), *paths))
        assert {sample.key: sample.image for sample in source} == {path: jpeg(path) for path in paths}
        assert source.sizes().tolist() == [len(sample.image) for sample in source]
        check_parts(source, data)


def test_a_folder_is_recognised_by_what_is_in_it(tmp_path: Path) -> None:
    make(tmp_path, "set/a/1.jpg")
    assert isinstance(open_dataset(str(tmp_path / "set")), FolderSource)
    make(tmp_path, "set/x.rec")
    with pytest.raises(FormatError, match=r"set: it could be any of: rec, folder; name the format"):
        open_dataset(str(tmp_path / "set"))


def test_numbers_too_large_for_a_label_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = opened(make(tmp_path, "id_2147483648/a.jpg", "id_3/a.jpg", "99999999999999999999999/a.jpg"))
    assert source.class_names() == {3: "id_3", 4: "99999999999999999999999", 5: "id_2147483648"}
    assert "'99999999999999999999999', 'id_2147483648': these numbers are too large for a label" in caplog.text


def test_an_image_that_may_not_be_read_fails_alone() -> None:
    with TemporaryDirectory() as folder:
        root = make(Path(folder), "a/1.jpg", "a/2.jpg")
        root.chmod(0o755)
        (root / "a" / "1.jpg").chmod(0)

        def check() -> None:
            one, two = opened(root).read()
            assert isinstance(one, SampleError)
            assert "Permission denied" in one.reason
            assert isinstance(two, Sample)

        assert raised_without_root(check) == "nothing was raised"
