"""Published models: fetched once, checked each time; and the user's own, which are only read."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from align.detectors.conftest import Model
from http_server import Server

from facedata.align.detectors import DETECTORS, DetectorOptions, Fetching, model_folder, models, prepare_detector
from facedata.align.detectors.models import ModelFile, cached_model, read_model
from facedata.errors import ChecksumError, InputError, InterruptedJobError, ModelError, OptionError, TransferError
from facedata.jobs.signals import StopRequest

Publish = Callable[..., ModelFile]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "_TRANSFER", replace(models._TRANSFER, first_wait=0.01, retries=1))
    monkeypatch.setattr(models, "_TICK", 0.02)


@pytest.fixture
def publish(server: Server, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Serve a file as YuNet's model."""

    def serve(data: bytes, sha256: str | None = None, **options: object) -> ModelFile:
        server.add("/spots.onnx", data, **options)
        digest = sha256 or hashlib.sha256(data).hexdigest()
        model = ModelFile("spots.onnx", (server.url("/spots.onnx"),), digest)
        monkeypatch.setitem(DETECTORS, "yunet", replace(DETECTORS["yunet"], weights=model))
        return model

    return serve


def test_a_model_is_fetched_once(server: Server, publish: Publish, model: Model) -> None:
    data = model("yunet").read_bytes()
    publish(data)
    first = prepare_detector(DetectorOptions("yunet"))
    assert Path(first.files[0]) == model_folder() / "spots.onnx"
    assert Path(first.files[0]).read_bytes() == data
    assert prepare_detector(DetectorOptions("yunet")) == first
    assert server.served["/spots.onnx"].requests == 1


def test_a_damaged_model_is_noticed_and_fetched_anew(
    server: Server, publish: Publish, caplog: pytest.LogCaptureFixture
) -> None:
    published = publish(b"a model" * 1000)
    path = cached_model(published)
    path.write_bytes(b"a Model" + b"a model" * 999)
    with caplog.at_level(logging.WARNING):
        assert cached_model(published).read_bytes() == b"a model" * 1000
    assert f"{path}: is damaged: expected sha256 {published.sha256}, found " in caplog.text
    path.write_bytes(b"")
    assert cached_model(published).read_bytes() == b"a model" * 1000
    assert server.served["/spots.onnx"].requests == 3


def test_a_transfer_that_broke_off_is_gone_on_with(server: Server, publish: Publish) -> None:
    published = publish(b"0123456789" * 50_000, cut_at=[200_000, None])
    assert cached_model(published).stat().st_size == 500_000
    assert server.served["/spots.onnx"].bytes_served < 600_000


def test_another_file_at_the_url_is_refused(publish: Publish) -> None:
    published = publish(b"another model", sha256="0" * 64)
    with pytest.raises(ChecksumError, match=r"0000.*name the file with --model"):
        cached_model(published)
    assert not (model_folder() / "spots.onnx").exists()


def test_without_a_network_it_says_what_to_fetch_and_where_to_put_it(server: Server, publish: Publish) -> None:
    published = publish(b"a model", status=503)
    with pytest.raises(TransferError) as raised:
        cached_model(published)
    message = str(raised.value)
    for part in (published.urls[0], str(model_folder() / "spots.onnx"), "--model"):
        assert part in message
    model_folder().mkdir(parents=True, exist_ok=True)
    (model_folder() / "spots.onnx").write_bytes(b"a model")  # as told
    assert cached_model(published) == model_folder() / "spots.onnx"


def test_two_runs_at_once_fetch_it_once(server: Server, publish: Publish) -> None:
    published = publish(b"0123456789" * 50_000, rate=1_000_000)
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(cached_model(published))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [model_folder() / "spots.onnx"] * 3
    assert server.served["/spots.onnx"].requests == 1


def test_a_stop_is_heard(publish: Publish) -> None:
    published = publish(b"0123456789" * 50_000, silent=True)
    stop = StopRequest()
    timer = threading.Timer(0.3, lambda: setattr(stop, "count", 1))
    timer.start()
    with pytest.raises(InterruptedJobError):
        cached_model(published, Fetching(stop=stop))
    timer.join()


def test_nowhere_to_keep_it(publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    published = publish(b"a model")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(OptionError, match="XDG_CACHE_HOME"):
        cached_model(published)


def test_the_checksum_of_ones_own_model(model: Model) -> None:
    path = model("yunet")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    options = DetectorOptions("yunet", model=str(path), model_checksum=digest.upper())
    assert prepare_detector(options).sha256 == (digest,)
    with pytest.raises(ChecksumError, match=f"{path}: expected sha256 {'0' * 64}, found {digest}"):
        prepare_detector(replace(options, model_checksum="0" * 64))
    with pytest.raises(OptionError, match="expected 64 digits"):
        prepare_detector(replace(options, model_checksum="abc"))


def test_a_model_that_changes_after_it_was_checked(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "mine.onnx"
    path.write_bytes(model("yunet").read_bytes())
    prepared = prepare_detector(DetectorOptions("yunet", model=str(path)))
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ChecksumError, match="another file"):
        prepared.load()


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty, pipe, large = tmp_path / "empty.onnx", tmp_path / "pipe.onnx", tmp_path / "large.onnx"
    empty.touch()
    os.mkfifo(pipe)
    large.write_bytes(b"123")
    monkeypatch.setattr(models, "LARGEST_MODEL", 2)
    for path, kind, reason in (
        (empty, ModelError, "empty file"),
        (pipe, InputError, "named pipe"),
        (tmp_path, InputError, "folder"),
        (tmp_path / "none.onnx", InputError, "no such file"),
        (large, ModelError, "at most 2 bytes"),
    ):
        with pytest.raises(kind, match=reason) as raised:
            prepare_detector(DetectorOptions("yunet", model=str(path)))
        assert str(path) in str(raised.value)
        with pytest.raises(kind, match=reason):
            read_model(path)


def test_the_published_models_are_those_of_uniface() -> None:
    from uniface import constants

    registry = {info.sha256: (weights, info) for weights, info in constants.MODEL_REGISTRY.items()}
    for name, family in DETECTORS.items():
        if family.runs_on == "uniface":
            assert family.weights is not None
            weights, info = registry[family.weights.sha256]
            assert family.weights.urls == (info.url, f"{constants.HF_MIRROR_URL}/{weights.value}.onnx"), name
