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

BEGINNINGS = {".png": b"\x89PNG", ".pdf": b"%PDF-", ".svg": b"<?xml"}


def report_of(folder: Path, rows: Array, labels: Array, name: str = "a") -> SetReport:
    return check_feature_set(write_set(folder, rows.astype(np.float32), labels, name), name)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> SetReport:
    random = np.random.default_rng(0)
    return report_of(tmp_path_factory.mktemp("set"), random.normal(size=(300, 8)), random.integers(0, 40, 300))


@pytest.mark.parametrize("extension", BEGINNINGS)
def test_the_same_set_gives_the_same_bytes(tmp_path: Path, report: SetReport, extension: str) -> None:
    for name in (f"1{extension}", f"2{extension.upper()}"):
        assert plot_report(tmp_path / name, report)
    data, again = (path.read_bytes() for path in tmp_path.iterdir())
    assert data == again
    assert data.startswith(BEGINNINGS[extension])
    if extension == ".svg":
        for words in ("Norms", "Class sizes", "Similarity of pairs", "same label", "other labels", "a: 300 rows of 8"):
            assert f"<!-- {words}" in data.decode()


def test_a_plot_shows_only_what_is_known_of_sets_of_any_name(tmp_path: Path, report: SetReport) -> None:
    plot_report(tmp_path / "alone.svg", check_matrix(report.path, CheckOptions(dimensions=8)))
    text = (tmp_path / "alone.svg").read_text()
    assert [f"<!-- {words}" in text for words in ("Norms", "Class sizes", "Similarity")] == [True, False, False]
    assert not plot_report(tmp_path / "a.png", report_of(tmp_path, np.zeros((3, 4)), np.full(3, -1)))
    assert not (tmp_path / "a.png").exists()
    for name, rows in (("a$b$c_{", np.ones((1, 4))), ("人脸" * 30, -np.ones((5, 4)) * 1e-6)):
        assert plot_report(tmp_path / f"{name[:2]}.png", report_of(tmp_path, rows, np.zeros(len(rows), int), name))


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
    with pytest.raises(MissingExtraError, match="needs the extra 'report'"):
        check_plot_name(tmp_path / "b.png")


def test_a_full_disk(small_disk: Path, report: SetReport) -> None:
    (small_disk / "filler").write_bytes(bytes(8_380_000))
    with pytest.raises(DiskFullError):
        plot_report(small_disk / "a.png", report)
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
