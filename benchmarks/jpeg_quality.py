"""What each encoding of 112 x 112 crops loses, weighs and costs: behind the defaults of `facedata.align.codec`.

python benchmarks/jpeg_quality.py [--quick]

The loss is against the crop itself, as PNG keeps it: mean absolute error and the worst error of any channel, in levels,
the PSNR of all crops together, in dB, and the mean error of colour (Cr and Cb of BT.601). Times are of one thread, the
least of several rounds, with all encodings in turn; bytes and microseconds are per crop.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from facedata.synthetic.faces import draw_face, identity_from_seed, view_from_seed

SAMPLINGS = {"4:2:0": 0x221111, "4:2:2": 0x211111, "4:4:4": 0x111111}
ASTRONAUT_EYES = (
    (202.0, 106.0),
    (244.0, 106.0),
)  # in scikit-image's astronaut photo, by eye; on the image's left first
TEMPLATE_EYES = ((38.2946, 51.6963), (73.5318, 51.5014))

Image = NDArray[Any]


class Encoding(NamedTuple):
    name: str
    extension: str
    options: tuple[int, ...]


class Loss(NamedTuple):
    mean: float
    psnr: float
    worst: int
    colour: float
    size: float


def encodings(quick: bool) -> list[Encoding]:
    found = []
    for quality in (90, 95, 100) if quick else (90, 92, 95, 98, 100):
        for name, sampling in SAMPLINGS.items():
            found.append(jpeg(f"jpg {quality} {name}", quality, sampling))
    found.append(jpeg("jpg 95 4:2:0 optimised", 95, 0x221111, cv2.IMWRITE_JPEG_OPTIMIZE, 1))
    found.append(jpeg("jpg 95 4:4:4 optimised", 95, 0x111111, cv2.IMWRITE_JPEG_OPTIMIZE, 1))
    found.append(jpeg("jpg 95 4:2:0 progressive", 95, 0x221111, cv2.IMWRITE_JPEG_PROGRESSIVE, 1))
    found += [Encoding(f"webp {quality}", ".webp", (cv2.IMWRITE_WEBP_QUALITY, quality)) for quality in (90, 95, 100)]
    found.append(Encoding("webp lossless", ".webp", (cv2.IMWRITE_WEBP_QUALITY, 101)))
    found.append(Encoding("png as OpenCV does", ".png", ()))
    run_lengths = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)
    found.append(Encoding("png 1, run lengths", ".png", run_lengths))
    for level in (1, 6) if quick else (1, 3, 6, 9):
        found.append(Encoding(f"png {level}", ".png", (cv2.IMWRITE_PNG_COMPRESSION, level)))
    return found


def jpeg(name: str, quality: int, sampling: int, *more: int) -> Encoding:
    options = (cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling, *more)
    return Encoding(name, ".jpg", options)


def drawn_crops(count: int) -> list[Image]:
    return [draw_face(identity_from_seed(0, n), view_from_seed(0, n, 0)).image for n in range(count)]


def astronaut_crops() -> list[Image]:
    """The astronaut's face, aligned, and turned, shifted and scaled about that."""
    photo = _photo("astronaut")
    crops = []
    for turn in (-20, -8, 0, 8, 20):
        for scale in (0.8, 0.9, 1.0, 1.15):
            matrix = _onto(ASTRONAUT_EYES, TEMPLATE_EYES)
            around = np.vstack([cv2.getRotationMatrix2D((56.0, 60.0), turn, scale), [0.0, 0.0, 1.0]])
            matrix = (around @ np.vstack([matrix, [0.0, 0.0, 1.0]]))[:2]
            crops.append(cv2.warpAffine(photo, matrix, (112, 112), flags=cv2.INTER_LINEAR))
    return crops


def photo_crops(count: int) -> list[Image]:
    """Pieces of public photographs, people or not, at the scales at which faces are cropped."""
    random, crops = np.random.default_rng(5), []
    photos = [_photo(name) for name in ("astronaut", "coffee", "chelsea")]
    for index in range(count):
        photo = photos[index % len(photos)]
        matrix = cv2.getRotationMatrix2D((0.0, 0.0), random.uniform(-30, 30), random.uniform(0.4, 1.5))
        centre = random.uniform(0.3, 0.7, 2) * photo.shape[1::-1]
        matrix[:, 2] = 55.5 - matrix[:, :2] @ centre
        crops.append(cv2.warpAffine(photo, matrix, (112, 112), flags=cv2.INTER_LINEAR))
    return crops


def _photo(name: str) -> Image:
    data: Any = importlib.import_module("skimage.data")
    return np.ascontiguousarray(getattr(data, name)()[..., ::-1])


def _onto(source: Sequence[Sequence[float]], target: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    (a, b), (c, d) = (complex(*source[0]), complex(*source[1])), (complex(*target[0]), complex(*target[1]))
    factor = (d - c) / (b - a)
    shift = c - factor * a
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def loss(crops: list[Image], encoding: Encoding) -> Loss:
    files = [cv2.imencode(encoding.extension, crop, encoding.options)[1] for crop in crops]
    decoded: Image = np.stack([np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR)) for file in files])
    errors = np.abs(decoded.astype(np.int16) - np.stack(crops))
    colour = np.mean([np.abs(_colour(one) - _colour(crop)) for one, crop in zip(decoded, crops, strict=True)])
    square = float(np.square(errors.astype(np.float64)).mean())
    psnr = 10 * np.log10(255.0**2 / square) if square else float("inf")
    return Loss(errors.mean(), psnr, int(errors.max()), float(colour), float(np.mean([len(file) for file in files])))


def _colour(image: Image) -> Image:
    converted: Image = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_BGR2YCrCb)[..., 1:] * 255
    return converted


def times(crops: list[Image], tried: list[Encoding], rounds: int) -> NDArray[np.float64]:
    """Least microseconds per crop, to encode and to decode, of each encoding."""
    least = np.full((len(tried), 2), np.inf)
    for _ in range(rounds):
        for index, encoding in enumerate(tried):
            begin = time.perf_counter()
            files = [cv2.imencode(encoding.extension, crop, encoding.options)[1] for crop in crops]
            middle = time.perf_counter()
            for file in files:
                cv2.imdecode(file, cv2.IMREAD_COLOR)
            spent = np.array([middle - begin, time.perf_counter() - middle]) / len(crops) * 1e6
            least[index] = np.minimum(least[index], spent)
    return least


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    cv2.setNumThreads(1)
    sets = {
        "drawn faces": drawn_crops(12 if quick else 40),
        "the astronaut's face": astronaut_crops(),
        "pieces of photographs": photo_crops(12 if quick else 60),
    }
    print(f"OpenCV {cv2.__version__}")
    for name, crops in sets.items():
        print(f"\n{name}, {len(crops)} crops\n{'':26s}  mean   PSNR  worst  colour   bytes  us to encode, decode")
        tried = encodings(quick)
        for encoding, spent in zip(tried, times(crops, tried, 2 if quick else 7), strict=True):
            one = loss(crops, encoding)
            figures = f"{one.mean:6.2f} {one.psnr:6.1f} {one.worst:6d} {one.colour:7.2f} {one.size:7.0f}"
            print(f"{encoding.name:26s}{figures} {spent[0]:8.0f} {spent[1]:8.0f}")


if __name__ == "__main__":
    main()
