from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Ran

from facedata.cli import COMMANDS

HEAVY = ("numpy", "cv2", "mxnet", "tqdm", "multiprocessing")


HELP = "from facedata.cli import facedata; facedata({} + ['--help'])"


def loaded(program: str) -> set[str]:
    """The heavy modules that a program has loaded when it ends."""
    check = f"""
import contextlib, sys
with contextlib.suppress(SystemExit):
    exec({program!r})
print(*sys.modules, file=sys.stderr)
"""
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    return set(ran.stderr.split()) & set(HEAVY)


@pytest.mark.parametrize("program", ["import facedata", "import facedata.cli", HELP.format([])])
def test_importing_facedata_and_its_help_load_nothing_heavy(program: str) -> None:
    assert loaded(program) == set()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_help_of_a_command_loads_nothing_heavy(name: str) -> None:
    assert loaded(HELP.format([name])) == set()


def test_an_unknown_command_is_wrong_usage(facedata: Callable[..., Ran]) -> None:
    ran = facedata("unpack")
    assert ran.status == 2
    assert "unpack" in ran.stderr


def test_the_version_is_told(facedata: Callable[..., Ran]) -> None:
    assert facedata("--version").stdout.startswith("facedata, version 0.")


def test_status_of_no_job(facedata: Callable[..., Ran], tmp_path: Path) -> None:
    assert facedata("status", "nowhere").status == 1
    ran = facedata("status", tmp_path)
    assert ran.status == 1
    assert "is not the output of a facedata job" in ran.stderr
