"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support import FACEDATA, Ran, RecordSetMaker


@pytest.fixture
def record_set(tmp_path: Path) -> Callable[[str], RecordSetMaker]:
    """A maker of record sets in a folder of that name."""
    return lambda name="set": RecordSetMaker(tmp_path / name)  # type: ignore[misc]


@pytest.fixture
def facedata(tmp_path: Path) -> Callable[..., Ran]:
    """Run the command line in the test's folder, as a user's shell would."""

    def run(*arguments: object, timeout: float = 60, **environment: str) -> Ran:
        command = [*FACEDATA, *map(str, arguments)]
        done = subprocess.run(
            command,
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
