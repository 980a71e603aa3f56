from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from features.sets import Array, write_set

from facedata.errors import DiskFullError, MissingExtraError, OptionError, OutputError, OutputExistsError
from facedata.features.checks import CheckOptions, check_feature_set, check_matrix
from facedata.features.checks.report import SetReport
from facedata.features.plots import check_plot_name, plot_report

pytest.importorskip("matplotlib")

BEGINNINGS = {".png": b"\x89PNG", ".pdf": b"%PDF-", ".svg": b"<?xml"}


def report_of(folder: Path, rows: Array, labels: Array, name: str = "a") -> SetReport:
    return check_feature_set(write_set(folder, rows.astype(np.float32), labels, name), name)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> SetReport:
    random = np.random.default_rng(0)
    return report_of(tmp_path_factory.mktemp("set"), random.normal(size=(300, 8)), random.integers(0, 40, 300))


@pytest.mark.parametrize("extension", BEGINNINGS)
def test_the_same_set_gives_the_same_bytes(tmp_path: Path, report: SetReport, extension: str) -> None:
    first, second = tmp_path / f"1{extension}", tmp_path / f"2{extension.upper()}"
    assert plot_report(first, report)
    assert plot_report(second, report)
    data = first.read_bytes()
    assert data == second.read_bytes()
    assert data.startswith(BEGINNINGS[extension])
    if extension == ".svg":
        texts = ("Norms", "Class sizes", "Similarity of pairs", "same label", "other labels", "a: 300 rows of 8 values")
        for words in texts:
            assert f"<!-- {words}" in data.decode()


@pytest.mark.parametrize(
    ("name", "rows"), [("a$b$c_{", np.ones((1, 4))), ("人脸" * 100, -np.ones((5, 4)) * 1e-6)], ids=["math", "long"]
)
def test_odd_names_and_sets_can_be_drawn(tmp_path: Path, name: str, rows: Array) -> None:
    assert plot_report(tmp_path / "a.png", report_of(tmp_path, rows, np.zeros(len(rows), int), name[:60]))


def test_a_plot_shows_only_what_is_known(tmp_path: Path, report: SetReport) -> None:
    plot_report(tmp_path / "alone.svg", check_matrix(report.path, CheckOptions(dimensions=8)))
    text = (tmp_path / "alone.svg").read_text()
    assert [f"<!-- {words}" in text for words in ("Norms", "Class sizes", "Similarity")] == [True, False, False]
    assert not plot_report(tmp_path / "a.png", report_of(tmp_path, np.zeros((3, 4)), np.full(3, -1)))
    assert not (tmp_path / "a.png").exists()


def test_a_plot_that_cannot_be_written_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"mine")
    for name, error, said in (
        ("a.jpg", OptionError, r"ends in \.png, \.pdf, \.svg"),
        ("none/a.png", OutputError, "no such folder"),
        ("a.png", OutputExistsError, "already exists"),
    ):
        with pytest.raises(error, match=said):
            check_plot_name(tmp_path / name)
    check_plot_name(tmp_path / "a.png", overwrite=True)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"facedata\[report\]"):
        check_plot_name(tmp_path / "b.png")


def test_a_full_disk(small_disk: Path, report: SetReport) -> None:
    (small_disk / "filler").write_bytes(bytes(8_380_000))
    with pytest.raises(DiskFullError):
        plot_report(small_disk / "a.png", report)
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
