from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from support import Ran, tree

from facedata import contact_sheet
from facedata.dataset import open_dataset
from facedata.errors import OutputError
from facedata.synthetic.sample_set import DrawnFaces, SampleOptions

Facedata = Callable[..., Ran]
SMALL = ("--identities", 3, "--images", 2, "--size", 64)


def test_a_sample_can_be_read_and_its_landmarks_belong_to_its_images(inline_facedata: Facedata, tmp_path: Path) -> None:
    ran = inline_facedata("make-sample", "sample", *SMALL, "--preview", "sample.png")
    assert ran.stdout.startswith("sample: 6 images of 3 identities, ")
    assert ran.stdout.endswith("kB; preview: sample.png\n")
    samples = list(open_dataset(f"rec:{tmp_path / 'sample'}"))
    lines = [json.loads(line) for line in (tmp_path / "sample" / "landmarks.jsonl").read_text().splitlines()]
    assert [(line["key"], line["label"]) for line in lines] == [(str(n + 1), n // 2) for n in range(6)]
    assert [(sample.key, sample.label) for sample in samples] == [(line["key"], line["label"]) for line in lines]
    drawn = DrawnFaces(SampleOptions(identities=3, images=2, size=64))
    assert [sample.image for sample in samples] == [sample.image for sample in drawn]
    for sample, line in zip(samples, lines, strict=True):
        image = cv2.imdecode(np.frombuffer(sample.image, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        assert image.shape == (64, 64, 3)
        assert (np.shape(line["landmarks5"]), np.shape(line["landmarks68"])) == ((5, 2), (68, 2))
        assert np.all((np.array(line["landmarks5"]) > 0) & (np.array(line["landmarks5"]) < 64))
    assert cv2.imread(str(tmp_path / "sample.png")) is not None
    assert (tmp_path / "sample" / "property").read_text() == "3,64,64\n"


def test_nothing_is_overwritten_unasked(inline_facedata: Facedata, tmp_path: Path) -> None:
    inline_facedata("make-sample", "a", *SMALL)
    before = tree(tmp_path / "a")
    assert inline_facedata("make-sample", "a", *SMALL).status == 0  # all done before
    assert tree(tmp_path / "a") == before
    ran = inline_facedata("make-sample", "a", *SMALL, "--seed", 5)
    assert (ran.status, "belongs to a job that differs" in ran.stderr) == (1, True)
    (tmp_path / "photo.png").touch()
    ran = inline_facedata("make-sample", "b", *SMALL, "--preview", "photo.png", "--dry-run")
    assert (ran.status, "photo.png" in ran.stderr) == (1, True)
    for path in (tmp_path / "a").glob(".facedata-*"):  # as an earlier version left it
        path.unlink()
    ran = inline_facedata("make-sample", "a", *SMALL)
    assert (ran.status, "is not empty" in ran.stderr) == (1, True)
    assert tree(tmp_path / "a") == before
    assert inline_facedata("make-sample", "a", *SMALL, "--seed", 5, "--overwrite").status == 0
    assert tree(tmp_path / "a") != before


def test_what_is_gone_of_a_finished_set_is_drawn_again(inline_facedata: Facedata, tmp_path: Path) -> None:
    inline_facedata("make-sample", "a", *SMALL)
    before = tree(tmp_path / "a")
    for name in ("property", "landmarks.jsonl"):
        (tmp_path / "a" / name).unlink()
    ran = inline_facedata("make-sample", "a", *SMALL)
    assert (ran.status, "some of its files are gone" in ran.stderr) == (0, True)
    assert tree(tmp_path / "a") == before
    (tmp_path / "a" / "property").unlink()
    (tmp_path / "a" / "train.rec").write_text("mine")
    ran = inline_facedata("make-sample", "a", *SMALL)
    assert (ran.status, "property: this finished job wrote it" in ran.stderr) == (1, True)
    assert (tmp_path / "a" / "train.rec").read_text() == "mine"


def test_the_same_command_resumes(inline_facedata: Facedata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **keywords: object) -> None:
        raise OutputError("a.png: the disk is full")

    command = ("make-sample", "a", *SMALL, "--preview", "a.png")
    with monkeypatch.context() as context:
        context.setattr(contact_sheet, "write_contact_sheet", fail)
        assert inline_facedata(*command).status == 1
    assert inline_facedata(*command).status == 0
    value = json.loads(inline_facedata("make-sample", "b", *SMALL, "--json").stdout)
    assert value.pop("bytes") > 1000
    assert value == {"output": "b", "identities": 3, "images": 6, "preview": None}
    assert tree(tmp_path / "a") == tree(tmp_path / "b")  # the seed decides every byte
    assert (tmp_path / "a.png").exists()


def test_a_dry_run_writes_nothing(inline_facedata: Facedata, tmp_path: Path) -> None:
    command = ("make-sample", "a", *SMALL, "--dry-run")
    assert inline_facedata(*command).stdout == "would draw 6 images of 3 identities into a\n"
    value = json.loads(inline_facedata(*command, "--json").stdout)
    assert value == {"dry_run": True, "output": "a", "identities": 3, "images": 6}
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--size", 8), "16<=x<=1024"),
        (("--identities", 0), "1<=x"),
        (("--identities", 1_000_000, "--images", 100_000), "16,777,216 records"),
        (("--preview", "faces.gif"), "faces.gif: expected a name that ends in"),
    ],
)
def test_wrong_options_are_refused(
    options: tuple[object, ...], reason: str, inline_facedata: Facedata, tmp_path: Path
) -> None:
    ran = inline_facedata("make-sample", "a", *options)
    assert ran.status == 2
    assert reason in ran.stderr
    assert not (tmp_path / "a").exists()
