from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from facedata.download.archives import Extraction, extract_archive, group_archives


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory if there is room: each archive is forced to the disk, with all else that is written there."""
    memory = "/dev/shm"
    if not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free < 1 << 30:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Extraction]:
    """Unpack files that belong together into ``out`` in the current folder."""
    monkeypatch.chdir(tmp_path)

    def run(*paths: str | Path, output: str | Path = "out", **options: Any) -> Extraction:
        (archive,) = group_archives([Path(path) for path in paths])
        return extract_archive(archive, output, **options)

    return run
