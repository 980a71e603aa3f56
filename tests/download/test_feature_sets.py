from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from facedata.download.feature_sets import look_into_feature_sets
from facedata.errors import InterruptedJobError
from facedata.features.checks.report import Observer
from facedata.jobs.signals import StopRequest

PLACED = ["features/a.bin", "labels/a.meta"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("features", "labels"):
        (tmp_path / folder).mkdir()
    np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32).tofile(tmp_path / "features/a.bin")
    (tmp_path / "labels/a.meta").write_text("".join(f"{row % 4}\n" for row in range(20)))
    return tmp_path


@pytest.mark.parametrize("placed", [PLACED, ["knns/a/faiss_k_80.npz"]])
def test_what_is_in_a_set_is_told(root: Path, caplog: pytest.LogCaptureFixture, placed: list[str]) -> None:
    with caplog.at_level(logging.INFO):
        look_into_feature_sets(root, [*placed, "pretrained_models/x.pth", "features/lists/b.bin"])
    assert [one.message for one in caplog.records] == ["a: 20 rows of 8 values, 4 classes: good"]


def test_what_is_wrong_is_a_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = np.fromfile(root / "features/a.bin", np.float32).reshape(20, 8)
    rows[3] = np.nan
    rows.tofile(root / "features/a.bin")
    look_into_feature_sets(root, PLACED)
    (warning,) = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert warning.message.endswith("features/a.bin: expected finite values, found NaN in 1: row 3")


def test_a_set_without_labels_or_with_broken_ones_stops_nothing(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "labels/a.meta").write_text("Anna\n")
    look_into_feature_sets(root, PLACED)
    assert "'Anna'" in caplog.text
    (root / "labels/a.meta").unlink()
    look_into_feature_sets(root, PLACED[:1])


def test_progress_and_a_stop(root: Path) -> None:
    seen: list[tuple[str, int, int]] = []

    @contextmanager
    def watch(what: str) -> Iterator[Observer]:
        yield lambda done, total: seen.append((what, done, total))

    stop = StopRequest()
    look_into_feature_sets(root, PLACED, watch=watch, stop=stop)
    assert seen == [("a: reading rows", 640, 640)]
    stop.count = 1
    with pytest.raises(InterruptedJobError):
        look_into_feature_sets(root, PLACED, stop=stop)
