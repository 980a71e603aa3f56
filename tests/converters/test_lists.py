from __future__ import annotations

import os
import pickle
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from support import jpeg

from facedata.converters.class_names import write_class_names
from facedata.converters.convert import ConversionOptions, convert_dataset
from facedata.converters.lists import ListSource
from facedata.dataset import open_dataset
from facedata.errors import EmptyDatasetError, FormatError, InputNotFoundError, OptionError, SampleError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images in the folder ``root``."""
    for path in ("root/a/1.jpg", "root/b/2.jpg"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(jpeg(path))
    return tmp_path / "root"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_images_come_in_the_order_of_the_lines(images: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "train.txt", "b/2.jpg 3\na/1.jpg 0\nb/2.jpg 4")
    source = open_dataset(f"list:{path}@{images}")
    assert isinstance(source, ListSource)
    lines = [("b/2.jpg", 3), ("a/1.jpg", 0), ("b/2.jpg", 4)]
    expected = [(key, label, jpeg(f"root/{key}")) for key, label in lines]
    assert [tuple(sample)[:3] for sample in source] == expected
    assert [tuple(sample)[:3] for sample in pickle.loads(pickle.dumps(source[1:]))] == expected[1:]  # noqa: S301
    assert [tuple(sample)[:3] for sample in source.take(np.array([2, 0]))] == [expected[2], expected[0]]
    assert source.labels().tolist() == [3, 0, 4]
    assert source.declared_classes() == 5
    assert source.locate(1) == (f"{images}/a/1.jpg", None)
    assert source.sizes().tolist() == [len(image) for _, _, image in expected]


def test_paths_start_from_the_folder_of_the_list_where_no_other_is_named(images: Path) -> None:
    write(images / "train.txt", "a/1.jpg 0\n")
    assert len(list(open_dataset(f"list:{images}/train.txt"))) == 1
    assert isinstance(open_dataset(f"{images}/train.txt"), ListSource)


def test_lines_may_end_as_on_windows_and_paths_may_hold_any_letter(images: Path, tmp_path: Path) -> None:
    (images / "ä").mkdir()
    (images / "ä" / "ü@.jpg").write_bytes(jpeg("x"))
    path = tmp_path / "train.txt"
    path.write_bytes("ä/ü@.jpg 7\r\n".encode())
    assert [(sample.key, sample.label) for sample in open_dataset(f"list:{path}@{images}")] == [("ä/ü@.jpg", 7)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a/1.jpg", "does not fit the lines before it"),
        (" 0", "does not fit the lines before it"),
        ("", "is blank"),
        ("a/1.jpg x", "the label is not an integer"),
        ("a/1.jpg 1.5", "the label is not an integer"),
        ("a/1.jpg 2147483648", "the label is not an integer from 0 to 2147483647"),
        ("../secret.jpg 0", "the path leaves the folder"),
        ("a/../../secret.jpg 0", "the path leaves the folder"),
        ("/etc/passwd 0", "the path leaves the folder"),
        ("a/.. 0", "the path leaves the folder"),
        ("x" * 20000 + " 0", "longer"),
    ],
)
def test_a_bad_line_is_refused_by_number(images: Path, tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "train.txt", f"a/1.jpg 0\n{line}\nb/2.jpg 0\n")
    with pytest.raises(FormatError, match=rf"train\.txt: line 2.*({message})"):
        open_dataset(f"list:{path}@{images}")


def test_an_image_that_is_missing_or_no_file_fails_by_name(images: Path, tmp_path: Path) -> None:
    os.mkfifo(images / "pipe.jpg")
    path = write(
        tmp_path / "train.txt", "a/1.jpg 0\nmissing.jpg 0\nno/folder.jpg 0\npipe.jpg 0\na 0\na/1.jpg/x 0\nb/2.jpg 1\n"
    )
    items = list(open_dataset(f"list:{path}@{images}").read())
    reasons = {item.key: item.reason for item in items if isinstance(item, SampleError)}
    assert reasons == {
        "missing.jpg": "no such file",
        "no/folder.jpg": "no such file",
        "pipe.jpg": "cannot be read: it is not a regular file",
        "a": "cannot be read: it is not a regular file",
        "a/1.jpg/x": "cannot be read: Not a directory",
    }
    assert len(items) == 7


def test_lists_and_folders_that_are_not_there(images: Path, tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match=r"train\.txt: no such file"):
        open_dataset(f"list:{tmp_path}/train.txt@{images}")
    path = write(tmp_path / "train.txt", "a/1.jpg 0\n")
    with pytest.raises(InputNotFoundError, match="nowhere: no such folder; the paths of"):
        open_dataset(f"list:{path}@{tmp_path}/nowhere")
    write(path, "")
    with pytest.raises(EmptyDatasetError, match="is empty"):
        open_dataset(f"list:{path}@{images}")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(FormatError, match="not a regular file"):
        open_dataset(f"list:{tmp_path}/pipe.txt@{images}")


def test_a_list_that_changes_while_it_is_read_is_noticed(images: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "train.txt", "a/1.jpg 10\nb/2.jpg 11\n")
    source = open_dataset(f"list:{path}@{images}")
    write(path, "a/1.jpg 20\nb/2.jpg 11\n")
    with pytest.raises(FormatError, match="changed while it was being read"):
        list(source)


@pytest.mark.parametrize("labels", [(" 3", " 0"), ("", ""), (" 3", " -1")], ids=["labelled", "unlabelled", "some"])
def test_a_list_that_was_written_is_read(images: Path, tmp_path: Path, labels: tuple[str, str]) -> None:
    path = write(tmp_path / "in.txt", f"b/2.jpg{labels[0]}\na/1.jpg{labels[1]}\n")
    convert_dataset([f"list:{path}@{images}"], f"list:{tmp_path}/out.txt@{tmp_path}/out")
    again = open_dataset(f"list:{tmp_path}/out.txt@{tmp_path}/out")
    assert [(sample.label, sample.image) for sample in again] == [
        (int(label or -1), jpeg(f"root/{name}")) for label, name in zip(labels, ("b/2.jpg", "a/1.jpg"), strict=True)
    ]


@pytest.mark.parametrize(("label", "refused"), [(" 0", True), ("", False)], ids=["labelled", "unlabelled"])
def test_a_path_with_a_space_is_written_only_without_a_label(
    images: Path, tmp_path: Path, label: str, refused: bool
) -> None:
    (images / "a" / "x y.jpg").write_bytes(jpeg("x y"))
    path = write(tmp_path / "in.txt", f"a/x y.jpg{label}\n")
    options = ConversionOptions(writing={"layout": "source"})
    with pytest.raises(OptionError, match=r"'a/x y.jpg' has a space") if refused else nullcontext():
        convert_dataset([f"list:{path}@{images}"], f"list:{tmp_path}/out.txt@{tmp_path}/out", options)
    assert (tmp_path / "out.txt").exists() is not refused


def test_the_names_beside_a_list_are_its_own_if_its_labels_are_the_numbers_of_the_folders(tmp_path: Path) -> None:
    write_class_names(tmp_path / "classes.txt", {0: "Ada", 1: "Bo"})
    for label in (0, 1):
        (tmp_path / f"id_{label}").mkdir()
        (tmp_path / f"id_{label}" / "x.jpg").write_bytes(jpeg(label))
    for first, names in ((0, {0: "Ada", 1: "Bo"}), (1, None)):
        path = write(tmp_path / "list.txt", f"id_0/x.jpg {first}\nid_1/x.jpg {1 - first}\n")
        assert open_dataset(f"list:{path}@{tmp_path}").class_names() == names
    assert repr(open_dataset(str(tmp_path))[0]) == f"Sample(key='id_0/x.jpg', label=0, image=<{len(jpeg(0))} bytes>)"
