"""Labels that the user gives: for all samples, or from a file, in the order of the samples or by their keys."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from support import jpeg

from facedata.converters.convert import ConversionOptions, LabelOptions, convert_dataset
from facedata.converters.folder import FORMAT
from facedata.converters.labels import labels_from
from facedata.dataset import Source, open_dataset
from facedata.errors import FormatError, InputError, OptionError


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """Photos in the working folder's folder ``p``: 1.jpg, 2.png and c/3.jpg."""
    monkeypatch.chdir(tmp_path)
    for name in ("1.jpg", "2.png", "c/3.jpg"):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_bytes(jpeg(name))
    assert FORMAT.open_source is not None
    return FORMAT.open_source("p", labels="none")


KEYS = ["c/3.jpg", "1.jpg", "2.png"]
FILES = {
    "meta": ("x.meta", b"4\n0\n-1\n", [4, 0, -1]),
    "one": ("x.txt", b"-1\n0\n0", [-1, 0, 0]),
    "list": ("x.txt", b"c/3.jpg 0\n2.png 1\n1.jpg 1\n", [0, 1, 1]),
    "keys without extensions, in part": ("x.txt", b"1 7\nc/3 5\nother 9\n", [5, 7, -1]),
    "names": ("x.csv", b"key,person\n1,Ann\n2,Bob\nc/3,Ann\n", [0, 0, 1]),
    "JSON lines": ("x.jsonl", b'{"path": "1.jpg", "label": 3}\n{"path": "2.png", "label": null}\n', [-1, 3, -1]),
    "the same twice": ("x.txt", b"1 7\n1 7\n", [-1, 7, -1]),
    "both extensions": ("x.txt", b"1.jpg 7\n1.png 8\n2.png 9\n", [-1, 7, 9]),
    "a folder before": ("x.csv", b"key,person\nd/p/1.jpg,Ann\nd/p/2.png,Bob\nd/p/c/3.jpg,Bob\n", [1, 0, 1]),
    "absolute": ("x.txt", b"CWD/p/1.jpg 7\n", [-1, 7, -1]),
    "InsightFace": ("x.lst", b"1\tc/3.jpg\t6\n1\t2.png\t2\n", [6, -1, 2]),
}


@pytest.mark.parametrize("case", FILES.values(), ids=FILES)
def test_labels_come_from_a_file(photos: Source, case: tuple[str, bytes, list[int]]) -> None:
    name, data, expected = case
    Path(name).write_bytes(data.replace(b"CWD", str(Path.cwd()).encode()))
    source = labels_from(photos, name)
    assert [(sample.key, sample.label) for sample in source] == list(zip(KEYS, expected, strict=True))
    assert [sample.label for sample in source.take(np.array([2, 0]))] == [expected[2], expected[0]]
    assert source[1:].labels().tolist() == expected[1:]
    assert source.identity() != photos.identity()
    assert (source.class_names() or {}) == ({0: "Ann", 1: "Bob"} if name.endswith("csv") else {})


REFUSED = {
    "too few": (b"0\n1\n", r"has 2 labels, but the dataset has 3 samples; .* paste -d ' ' NAME\.keys\.txt x\.txt"),
    "too large": (b"0\n1\n2147483648\n", "expected labels from 0 to 2147483647, or -1"),
    "not integers": (b"0\n1\nx\n", "line 3 is 'x', expected an integer"),
    "no labels": (b"1.jpg\n2.png\n", "has no labels; expected one for each sample"),
    "other keys": (b"x/9.jpg 0\n", r"names none of the samples: their keys are like 'c/3\.jpg', the file has 'x/9"),
    "two labels": (b"1.jpg 0\n1.jpg 1\n", r"gives the sample 1\.jpg two different labels"),
    "floats": (b"1.jpg 0.5\n", "the label is not an integer"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_file_that_does_not_fit_is_refused(photos: Source, case: tuple[bytes, str]) -> None:
    Path("x.txt").write_bytes(case[0])
    with pytest.raises(InputError, match=case[1]):
        labels_from(photos, "x.txt")


def test_an_array_gives_labels_in_order(photos: Source) -> None:
    np.save("x.npy", np.array([2, 0, -1]))
    assert [sample.label for sample in labels_from(photos, "x.npy")] == [2, 0, -1]
    wrong = "expected integers of shape"
    arrays = ((np.zeros(3), wrong), (np.zeros((3, 1), int), wrong), (np.array(["a"] * 3), wrong))
    for array, said in (*arrays, (np.array([None] * 3), wrong), (np.array([0, -5, 1]), "found -5")):
        np.save("x.npy", array)
        with pytest.raises(FormatError, match=said):
            labels_from(photos, "x.npy")


@pytest.mark.parametrize(
    ("labels", "expected", "facts"),
    [
        (LabelOptions("none"), {"1.jpg", "2.png", "c/3.jpg"}, (0, -1)),
        (LabelOptions(constant=3), {"id_3/3_0.jpg", "id_3/3_1.jpg", "id_3/3_2.jpg"}, (3, 3)),
        (LabelOptions(file="x.csv"), {"id_0/0_1.jpg", "id_1/1_0.jpg", "unlabelled/2.jpg", "classes.txt"}, (0, 1)),
    ],
    ids=["none", "one for all", "from a file"],
)
def test_a_conversion_takes_the_labels(
    photos: Source, labels: LabelOptions, expected: set[str], facts: tuple[int, int]
) -> None:
    Path("x.csv").write_text("key,person\n1,Ann\nc/3,Bob\n")
    summary = convert_dataset(["p"], "folder:out", ConversionOptions(labels=labels))
    assert {str(p.relative_to("out")) for p in Path("out").rglob("[!.]*") if p.is_file()} == expected
    (facts_of_p,) = summary.facts["sets"]
    assert (facts_of_p["first_label"], facts_of_p["last_label"]) == facts
    again = {sample.image: sample.label for sample in open_dataset("out")}
    assert again == {jpeg(key): label for key, label in _labels(labels)}


def _labels(labels: LabelOptions) -> list[tuple[str, int]]:
    """The labels that the samples of `photos` get."""
    by_file = {"c/3.jpg": 1, "1.jpg": 0}
    constant = -1 if labels.constant is None else labels.constant
    return [(key, by_file.get(key, -1) if labels.file else constant) for key in KEYS]


@pytest.mark.parametrize("target", ["rec:out", "lmdb:out.lmdb"])
def test_formats_whose_readers_need_labels_refuse_samples_without(photos: Source, target: str) -> None:
    with pytest.raises(OptionError, match=r"p: its samples have no labels.*--labels-from FILE.*--label 0"):
        convert_dataset(["p"], target, ConversionOptions(labels=LabelOptions("none")))
    Path("x.txt").write_text("1 0\n2 1\n")
    summary = convert_dataset(["p"], target, ConversionOptions(labels=LabelOptions(file="x.txt")))
    assert (summary.samples, summary.failures) == (2, 1)
    assert '"key": "c/3.jpg"' in Path(summary.output, "failures.jsonl").read_text()


def test_labels_from_a_file_that_leave_gaps_are_reported(photos: Source, caplog: pytest.LogCaptureFixture) -> None:
    Path("x.txt").write_text("1 7\n2 5\nc/3 5\n")
    with caplog.at_level(logging.INFO, logger="facedata"):
        labels_from(photos, "x.txt")
    assert "x.txt: 2 different labels for the samples, by key" in caplog.text
    assert "x.txt: 6 labels below 7 without a sample; --relabel closes the gaps" in caplog.text


def test_labels_that_are_kept_and_mean_different_people_are_reported(
    photos: Source, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("Ann", "Bob"):
        Path(f"{name}.txt").write_text(f"1.jpg {name}\n")
    options = ConversionOptions(labels=LabelOptions("keep"))
    convert_dataset(["list:Ann.txt@p", "list:Bob.txt@p"], "folder:out", options)
    assert "label 0 is 'Ann' in one set, 'Bob' in another; with --labels keep they are one" in caplog.text
