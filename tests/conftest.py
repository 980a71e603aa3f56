"""Fixtures that several test modules share."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from http_server import Server
from hypothesis import settings
from support import FACEDATA, Ran, RecordSetMaker

from facedata import cli

settings.register_profile("quick", max_examples=40, deadline=None)
settings.register_profile("thorough", max_examples=500, deadline=None)
settings.load_profile("quick")


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither read the catalogue of whoever runs the tests, nor remember files in their cache."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "configuration"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("MPLCONFIGDIR", os.path.join(tempfile.gettempdir(), "facedata-tests-matplotlib"))  # slow to fill


@pytest.fixture
def record_set(tmp_path: Path) -> Callable[[str], RecordSetMaker]:
    """A maker of record sets in a folder of that name."""
    return lambda name="set": RecordSetMaker(tmp_path / name)  # type: ignore[misc]


@pytest.fixture
def facedata(tmp_path: Path) -> Callable[..., Ran]:
    """Run the command line in the test's folder, as a user's shell would."""

    def run(*arguments: object, timeout: float = 60, **environment: str) -> Ran:
        done = subprocess.run(
            [*FACEDATA, *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **environment},
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def inline_facedata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Ran]]:
    """Run the command line in this process and in the test's folder: many times as fast as `facedata`."""
    monkeypatch.chdir(tmp_path)
    log = logging.getLogger("facedata")
    before = log.handlers[:], log.propagate, log.level

    def run(*arguments: object) -> Ran:
        words = list(map(str, arguments))
        monkeypatch.setattr(sys, "argv", ["facedata", *words])
        result = CliRunner().invoke(cli.facedata, words, prog_name="facedata", standalone_mode=False)
        if isinstance(result.exception, click.ClickException):
            return Ran(result.exception.exit_code, result.stdout, result.stderr + result.exception.format_message())
        if result.exception is not None:
            raise result.exception
        return Ran(result.return_value or 0, result.stdout, result.stderr)

    yield run
    log.handlers[:], log.propagate = before[:2]
    log.setLevel(before[2])


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
