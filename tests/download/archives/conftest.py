from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from facedata.download.archives import Extraction, extract_archive, group_archives


@pytest.fixture
def unpack(tmp_path: Path) -> Callable[..., Extraction]:
    """Unpack files that belong together into ``out``."""

    def run(*paths: Path, **options: Any) -> Extraction:
        (archive,) = group_archives(paths)
        return extract_archive(archive, tmp_path / "out", **options)

    return run
