from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mxnet_support import DIALECTS, image, write

from facedata.dataset import Sample


@pytest.fixture(params=DIALECTS)
def record_set(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[Sample]]:
    """A record set of each dialect in turn: its folder, and its images in the order of their keys."""
    folder = tmp_path / request.param
    folder.mkdir()
    labels = [label for label, images in enumerate([3, 1, 9, 4, 12, 2, 5]) for _ in range(images)]
    records = DIALECTS[request.param]([(label, image(number)) for number, label in enumerate(labels)])
    write(folder, records)
    if request.param == "rec_builder":
        (folder / "train.meta").write_bytes(b"\x80\x04]\x94.")
        (folder / "property").write_text(f"7,112,112\n{len(records)}\n")
    elif request.param == "dataset_merge":
        (folder / "property").write_text("7,112,112")
    samples = []
    for key, label, data, _ in sorted(records):
        first, *others = [label] if isinstance(label, float) else label
        if data:
            samples.append(
                Sample(str(key), int(first), data, None, tuple(np.array(others, np.float32).tolist()) or None)
            )
    return folder, samples
