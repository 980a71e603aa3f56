"""Lists as people write them: each is read with its labels, or refused with a way out."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from support import jpeg

from facedata.dataset import open_dataset
from facedata.errors import InputError

TWO = [("a/1.jpg", 0), ("b/2.jpg", 1)]
NAMED = {0: "Ann", 1: "Bob"}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images in the folder ``r`` of the working folder."""
    for path in ("a/1.jpg", "b/2.jpg", "c/3.jpg", "A B/x 1.jpg", "C,D/y.jpg", "e/noext"):
        (tmp_path / "r" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "r" / path).write_bytes(jpeg(path))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "r"


READ = {
    "path and label": ("a/1.jpg 0\nb/2.jpg 1\n", TWO),
    "BOM, CRLF and tabs": ("\ufeffa/1.jpg\t0\r\nb/2.jpg\t1\r\n", TWO),
    "blanks at the ends": (" a/1.jpg   0  \n b/2.jpg\t 1\n\n", TWO),
    "no newline at the end, dots before": ("./a/1.jpg 0\n./b/2.jpg 1", TWO),
    "paths with spaces": ("A B/x 1.jpg 4\na/1.jpg 0\n", [("A B/x 1.jpg", 4), ("a/1.jpg", 0)]),
    "spaces and tab": ("A B/x 1.jpg\t4\na/1.jpg\t0\n", [("A B/x 1.jpg", 4), ("a/1.jpg", 0)]),
    "paths alone": ("A B/x 1.jpg\nC,D/y.jpg\n", [("A B/x 1.jpg", -1), ("C,D/y.jpg", -1)]),
    "one path without an extension": ("e/noext\n", [("e/noext", -1)]),
    "label -1 is none": ("a/1.jpg 5\nb/2.jpg -1\n", [("a/1.jpg", 5), ("b/2.jpg", -1)]),
    "names": ("b/2.jpg Bob\na/1.jpg Ann\n", TWO[::-1], NAMED),
    "names in natural order": ("a/1.jpg n10\nb/2.jpg n9\n", [("a/1.jpg", 1), ("b/2.jpg", 0)], {0: "n9", 1: "n10"}),
    "the same line twice": ("a/1.jpg 0\na/1.jpg 0\n", [TWO[0]] * 2),
    "whole floats": ("a/1.jpg 0.0\nb/2.jpg 1.000e+00\n", TWO),
    "im2rec": ("7\t0.000000\ta/1.jpg\n8\t1.000000\tb/2.jpg\n", TWO),
    "im2rec with two labels": ("7\t0.0\t35.5\ta/1.jpg\n8\t1.0\t20\tb/2.jpg\n", TWO),
    "im2rec, paths with spaces": ("0\t4.000000\tA B/x 1.jpg\n", [("A B/x 1.jpg", 4)]),
    "InsightFace": ("1\ta/1.jpg\t0\n1\tb/2.jpg\t1\n", TWO),
    "InsightFace with boxes": ("0\ta/1.jpg\t0\t1\t2\t3\t4\n0\tb/2.jpg\t1\t1\t2\t3\t4\n", TWO),
    "CSV": ("path,label\na/1.jpg,0\nb/2.jpg,1\n", TWO),
    "CSV of pandas": (",Image Path,Person ID\n0,a/1.jpg,0\n1,b/2.jpg,1.0\n", TWO),
    "CSV, quotes and blanks": ('"file_name", "label"\n"C,D/y.jpg", "0"\n', [("C,D/y.jpg", 0)]),
    "CSV with semicolons": ("label;filename\r\n0;a/1.jpg\r\n1;b/2.jpg\r\n", TWO),
    "CSV without a header": ("a/1.jpg,0\nb/2.jpg,1\n", TWO),
    "CSV without a header, names": ("a/1.jpg,Ann\nb/2.jpg,Bob\n", TWO, NAMED),
    "CSV with an empty label": ("path,label\na/1.jpg,0\nb/2.jpg,\n", [TWO[0], ("b/2.jpg", -1)]),
    "CSV without a label": ("file_name,text\na/1.jpg,x\nb/2.jpg,y\n", [("a/1.jpg", -1), ("b/2.jpg", -1)]),
    "CelebA": ("image_id,identity\na/1.jpg,0\nb/2.jpg,1\n", TWO),
    "Hugging Face": ("file_name,label,label_name\na/1.jpg,0,Ann\nb/2.jpg,1,Bob\n", TWO, NAMED),
    "a name of each image": ("path,label,name\na/1.jpg,0,x\nc/3.jpg,0,y\n", [TWO[0], ("c/3.jpg", 0)]),
    "TSV with a header": ("name\tpath\nBob\tb/2.jpg\nAnn\ta/1.jpg\n", TWO[::-1], NAMED),
    "Products": (
        "image_id class_id super_class_id path\n1 0 1 a/1.jpg\n2 1 1 A B/x 1.jpg\n",
        [TWO[0], ("A B/x 1.jpg", 1)],
    ),
    "In-Shop": ("2\nimage_name item_id status\na/1.jpg id_1 train\nb/2.jpg id_2 train\n", TWO, {0: "id_1", 1: "id_2"}),
    "a header of one column": ("filename\na/1.jpg\n", [("a/1.jpg", -1)]),
    "JSON lines": ('{"file_name": "a/1.jpg", "label": 0}\n{"file_name": "b/2.jpg", "label": 1.0}\n', TWO),
    "JSON lines, null": ('{"path": "a/1.jpg", "label": null}\n', [("a/1.jpg", -1)]),
    "backslashes": ("a\\1.jpg 0\r\nb\\2.jpg 1\r\n", TWO),
    "absolute": ("ROOT/a/1.jpg 0\nROOT/b/2.jpg 1\n", TWO),
    "absolute, of another computer": ("/home/x/faces/a/1.jpg 0\n/home/x/faces/b/2.jpg 1\n", TWO),
    "of Windows": ("C:\\faces\\a\\1.jpg,0\r\nC:\\faces\\b\\2.jpg,1\r\n", TWO),
    "a folder before": ("data/faces/a/1.jpg 0\ndata/faces/b/2.jpg 1\n", TWO),
}


@pytest.mark.parametrize("case", READ.values(), ids=READ)
@pytest.mark.parametrize("named", [True, False], ids=["@ROOT", "beside"])
def test_a_list_is_read(root: Path, case: tuple[Any, ...], named: bool) -> None:
    text, expected, *names = case
    path = Path("list.txt") if named else root / "list.txt"
    path.write_bytes(text.replace("ROOT", str(root)).encode())
    source = open_dataset(f"list:{path}@{root}" if named else f"list:{path}")
    assert [(sample.key, sample.label) for sample in source] == expected
    assert [sample.image for sample in source] == [jpeg(key) for key, _ in expected]
    assert source.labels().tolist() == [label for _, label in expected]
    assert source.labelled is any(label >= 0 for _, label in expected)
    assert (source.class_names() or {}) == (names[0] if names else {})


def test_the_pair_of_files_of_cub_is_read(root: Path) -> None:
    (root / "images.txt").write_text("1 a/1.jpg\n2 b/2.jpg\n3 A B/x 1.jpg\n")
    (root / "image_class_labels.txt").write_text("1 2\r\n2 1\r\n3 2\r\n")
    (root / "classes.txt").write_text("1 001.Albatross\n2 002.Finch\n")
    source = open_dataset(f"list:{root}/images.txt")
    assert [(sample.key, sample.label) for sample in source] == [("a/1.jpg", 2), ("b/2.jpg", 1), ("A B/x 1.jpg", 2)]
    assert source.class_names() == {1: "001.Albatross", 2: "002.Finch"}
    (root / "image_class_labels.txt").write_text("1 2\n2 1\n")
    with pytest.raises(InputError, match=r"line 3: the image A B/x 1\.jpg has no line in image_class_labels\.txt"):
        open_dataset(f"list:{root}/images.txt")


REFUSED = {
    "a float": ("a/1.jpg 3.5\nb/2.jpg 0\n", "line 1: the label is not an integer from 0 to 2147483647, or -1"),
    "floats": ("a/1.jpg 3.5\nb/2.jpg 2.5\n", "line 1: the label is not an integer"),
    "too large": ("a/1.jpg 0\nb/2.jpg 2147483648\n", "line 2: the label is not an integer from 0"),
    "below -1": ("a/1.jpg -2\n", "line 1: the label is not an integer"),
    "a word among numbers": ("path,label\na/1.jpg,0\nb/2.jpg,1\nc/3.jpg,x\n", "line 4: the label is not an integer"),
    "no label in one line": ("path,label\na/1.jpg,0\nb/2.jpg\n", r"line 3: 'b/2\.jpg' does not fit"),
    "a blank line": ("a/1.jpg\t0\n\nb/2.jpg\t1\n", "line 2 is blank, and lines follow it; remove it"),
    "empty": ("\n\n", "is empty; expected 'path label'"),
    "a header alone": ("path,label\n", "has no line after its header"),
    "a JSON array": ('[{"path": "a/1.jpg"}]', "is a JSON array; write one object a line: jq"),
    "JSON within JSON": ("[" * 9000, "is a JSON array"),
    "UTF-16": ("a/1.jpg 0\n".encode("utf-16"), "is in UTF-16; write it in UTF-8: iconv"),
    "no list": ("hello world\n", "'hello world' is not a line of a list; expected 'path label'"),
    "out of the folder": ("a/1.jpg,0\n../r/b/2.jpg,1\n", "line 2: the path leaves the folder"),
    "absolute after relative": ("a/1.jpg,0\n/etc/passwd,1\n", "line 2: the path leaves the folder"),
    "down and up": ("ROOT/a/1.jpg 0\nROOT/../../x.jpg 0\n", "the path leaves the folder"),
    "a zero byte": ("a\0b.jpg 0\n", "none of its images is in"),
    "no such images": ("x/1.jpg 0\n", r"x/1\.jpg' is not; name the folder that its paths start from: list:.*@FOLDER"),
    "another folder": ("1.jpg 0\n", "its paths start from .*r/a: list:.*list.txt@.*r/a"),
    "another computer": ("/home/x/1.jpg 0\n/home/y/2.jpg 0\n", "its paths begin with /home/, and .* does not hold"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_list_is_refused_with_the_line_or_a_way_out(root: Path, case: tuple[str | bytes, str]) -> None:
    text, message = case
    data = text if isinstance(text, bytes) else text.replace("ROOT", str(root)).encode()
    (root / "list.txt").write_bytes(data)
    with pytest.raises(InputError, match=message):
        open_dataset(f"list:{root}/list.txt")


def test_paths_that_begin_with_dots_start_from_the_folder_that_they_share(root: Path) -> None:
    (root / "lists").mkdir()
    (root / "lists" / "all.txt").write_text("../a/1.jpg 0\n../b/2.jpg 1\n")
    assert [(sample.key, sample.label) for sample in open_dataset(f"list:{root}/lists/all.txt")] == TWO


@pytest.mark.parametrize("separator", [b"\n", b"\0"], ids=["find", "find -print0"])
def test_a_list_comes_from_stdin(root: Path, monkeypatch: pytest.MonkeyPatch, separator: bytes) -> None:
    def opened(*paths: str) -> list[tuple[str, int]]:
        data = b"".join(path.encode() + separator for path in paths)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        return [(sample.key, sample.label) for sample in open_dataset("-")]

    assert opened("./r/a/1.jpg", "./r/A B/x 1.jpg") == [("r/a/1.jpg", -1), ("r/A B/x 1.jpg", -1)]
    assert opened(f"{root}/a/1.jpg", f"{root}/b/2.jpg") == [("a/1.jpg", -1), ("b/2.jpg", -1)]
    monkeypatch.chdir(root / "A B")
    assert opened("../a/1.jpg", "../b/2.jpg") == [("a/1.jpg", -1), ("b/2.jpg", -1)]
    with pytest.raises(InputError, match=r"^stdin: is empty"):
        opened()
    with pytest.raises(InputError, match=r"^stdin: none of its images is in \.: .*list:-@FOLDER"):
        opened("x.jpg")
