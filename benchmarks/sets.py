"""The dataset that the benchmarks convert: 60,000 JPEG images of about 4.4 KB, 1,500 people."""

from __future__ import annotations

from pathlib import Path

IDENTITIES, IMAGES = 1500, 40
_DIFFERENT = 3000


def different_jpegs(count: int = _DIFFERENT) -> list[bytes]:
    """Real JPEG files of 112 x 112 pixels, 3.8 to 5.4 KB, as aligned faces are."""
    import cv2
    import numpy as np

    generator = np.random.default_rng(0)
    images = []
    for _ in range(count):
        coarse = generator.integers(0, 256, (28, 28, 3), dtype=np.uint8)
        smooth = cv2.resize(coarse, (112, 112), interpolation=cv2.INTER_CUBIC)
        quality = int(generator.integers(62, 84))
        images.append(bytes(cv2.imencode(".jpg", smooth, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]))
    return images


def make_set(folder: Path, identities: int = IDENTITIES, images: int = IMAGES) -> None:
    """Write it as a record set."""
    from facedata.converters.rec.writer import InsightFaceWriter

    folder.mkdir()
    jpegs = different_jpegs()
    with InsightFaceWriter(folder, (112, 112)) as writer:
        for label in range(identities):
            for image in range(images):
                writer.write(label, jpegs[(label * 7919 + image) % len(jpegs)])
