"""The dataset that the benchmarks convert: 60,000 JPEG images of about 4.4 KB, 1,500 people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.dataset import Sample, Source
from facedata.errors import SampleError
from facedata.jobs.job import JobOptions

IDENTITIES, IMAGES = 1500, 40
_DIFFERENT = 3000


def different_jpegs(count: int = _DIFFERENT) -> list[bytes]:
    """Real JPEG files of 112 x 112 pixels, 3.8 to 5.4 KB, as aligned faces are."""
    import cv2

    generator = np.random.default_rng(0)
    images = []
    for _ in range(count):
        coarse = generator.integers(0, 256, (28, 28, 3), dtype=np.uint8)
        smooth = cv2.resize(coarse, (112, 112), interpolation=cv2.INTER_CUBIC)
        quality = int(generator.integers(62, 84))
        images.append(bytes(cv2.imencode(".jpg", smooth, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]))
    return images


class MadeSource(Source):
    """Images that a function makes: label and bytes of each place."""

    def __init__(self, places: NDArray[np.int64], make: Callable[[int], tuple[int, bytes]]) -> None:
        self._places, self._make = places, make

    def __len__(self) -> int:
        return len(self._places)

    def take(self, positions: NDArray[np.int64]) -> MadeSource:
        return MadeSource(self._places[positions], self._make)

    def read(self) -> Iterator[Sample | SampleError]:
        for place in self._places.tolist():
            yield Sample(str(place), *self._make(place))

    def identity(self) -> Mapping[str, Any]:
        return {"images": len(self)}

    def places(self) -> Mapping[str, bool]:
        return {}


def make_set(folder: Path, identities: int = IDENTITIES, images: int = IMAGES) -> None:
    """Write it as a record set."""
    jpegs = different_jpegs()

    def make(place: int) -> tuple[int, bytes]:
        label, image = divmod(place, images)
        return label, jpegs[(label * 7919 + image) % len(jpegs)]

    write_set(folder, identities * images, make)


def write_set(folder: Path, count: int, make: Callable[[int], tuple[int, bytes]]) -> None:
    """Write a record set of `count` images, of which `make` gives label and bytes."""
    from facedata.converters.convert import plan_conversion, run_conversion
    from facedata.dataset import create_dataset

    source = MadeSource(np.arange(count), make)
    conversion = plan_conversion("make-set", source, create_dataset(f"rec:{folder}"))
    run_conversion(conversion, JobOptions(workers=1, executor_factory=ThreadPoolExecutor))
