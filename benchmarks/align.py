"""Aligning 2,000 faces of 250 x 250 pixels from a folder to a folder: facedata, the way of FaceX-Zoo, and a bare loop.

    python benchmarks/align.py [--folder DIR] [--repeats 5] [--images 2000]

The landmarks come from a FaceX-Zoo info file, 106 points a face. FaceX-Zoo's way, in one process: read the line,
imread, scikit-image's similarity transform, warpAffine, imwrite. The bare loop is what no program that writes the same
bytes can do without: the file read, decoded, warped by a matrix that is known beforehand, encoded as facedata encodes
it, and written. Both run in one process and are timed twice: as a whole, and without the start of Python and its
modules.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import Measured, report, run

THEIRS, BARE, TWO, ONE = "the way of FaceX-Zoo", "bare loop", "facedata, 2 workers", "facedata, 1 worker"
_PEOPLE, _DIFFERENT, _SIZE = 100, 250, 250
_SEED_OF_NOISE = 5


def make_images(folder: Path, images: int) -> None:
    """Drawn faces with the grain and the file size of photos, 100 people, and their info file."""
    from facedata.images import import_opencv
    from facedata.synthetic.faces import draw_face
    from facedata.synthetic.people import identity_from_seed, view_from_seed

    cv2: Any = import_opencv()
    generator = np.random.default_rng(_SEED_OF_NOISE)
    different = []
    for number in range(min(_DIFFERENT, images)):
        face = draw_face(identity_from_seed(1, number), view_from_seed(1, number, 0), _SIZE)
        grain = generator.normal(0.0, 6.0, face.image.shape)
        image = np.clip(face.image + grain, 0, 255).astype(np.uint8)
        encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
        different.append((encoded, face.landmarks5))
    with open(folder / "info.txt", "w") as info:
        for number in range(images):
            encoded, five = different[number % len(different)]
            person = f"person_{number * _PEOPLE // images:04d}"
            (folder / "raw" / person).mkdir(parents=True, exist_ok=True)
            name = f"{person}/{person}_{number:06d}.jpg"
            (folder / "raw" / name).write_bytes(encoded)
            points = np.zeros((106, 2))
            points[[104, 105, 54, 84, 90]] = five
            box = ",".join(str(round(float(x))) for x in (*five.min(axis=0), *five.max(axis=0)))
            info.write(f"{name} {box} {','.join(f'{x:.3f}' for x in points.ravel())}\n")


def facexzoo(folder: Path, output: Path) -> float:
    """Seconds that their way takes."""
    from skimage.transform import SimilarityTransform

    from facedata.images import import_opencv

    cv2: Any = import_opencv()
    template = _template()
    begin = time.perf_counter()
    with open(folder / "info.txt") as info:
        for line in info:
            name, _, numbers = line.strip().split(" ")
            values = [float(number) for number in numbers.split(",")]
            points = np.array([[values[2 * n], values[2 * n + 1]] for n in (104, 105, 54, 84, 90)])
            image = cv2.imread(str(folder / "raw" / name))
            transform = SimilarityTransform.from_estimate(points, template)
            crop = cv2.warpAffine(image, transform.params[:2], (112, 112), borderValue=0.0)
            target = output / name
            target.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(target), crop)
    return time.perf_counter() - begin


def bare(folder: Path, output: Path) -> float:
    """Seconds of what cannot be left out."""
    from facedata.align.codec import Encoding
    from facedata.align.similarity import similarity_transforms
    from facedata.images import import_opencv

    cv2: Any = import_opencv()

    names, points = [], []
    with open(folder / "info.txt") as info:
        for line in info:
            name, _, numbers = line.strip().split(" ")
            names.append(name)
            points.append(np.array(numbers.split(","), float).reshape(106, 2)[[104, 105, 54, 84, 90]])
    matrices = similarity_transforms(np.stack(points), _template()).matrices
    encoding = Encoding()
    for name in names:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(1)
    begin = time.perf_counter()
    for name, matrix in zip(names, matrices, strict=True):
        with open(folder / "raw" / name, "rb") as file:
            data = np.frombuffer(file.read(), np.uint8)
        crop = cv2.warpAffine(cv2.imdecode(data, cv2.IMREAD_COLOR), matrix, (112, 112), borderValue=0.0)
        encoded = encoding.encode(crop)
        with open(output / name, "wb") as file:
            file.write(encoded)
    return time.perf_counter() - begin


def _template() -> Any:
    from facedata.align.templates import load_template

    return load_template("arcface", 112).points[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where to work; a local disk or a tmpfs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--way", choices=["theirs", "bare"], help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        way = facexzoo if arguments.way == "theirs" else bare
        print(way(*map(Path, arguments.paths)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        make_images(Path(folder), arguments.images)
        compare(Path(folder), arguments.repeats, arguments.images)


def compare(folder: Path, repeats: int, images: int) -> None:
    """Run all in turn."""
    size = sum(path.stat().st_size for path in (folder / "raw").rglob("*.jpg")) / images
    print(f"{images:,} images of {_SIZE} x {_SIZE}, {size / 1000:.1f} KB each")
    whole = {name: Measured() for name in (THEIRS, BARE, TWO, ONE)}
    inside = {name: Measured() for name in whole}
    for repeat in range(repeats):
        for name in whole:
            output = folder / f"{name.replace(' ', '-')}-{repeat}"
            seconds, peak, text = run(_command(name, folder, output), memory=False)
            whole[name].seconds.append(seconds)
            whole[name].peak_bytes.append(peak)
            inside[name].seconds.append(json.loads(text)["seconds"] if name in (ONE, TWO) else float(text))
            assert sum(len(files) for _, _, files in os.walk(output)) >= images
    print("\nwhole commands, from the shell and back")
    _show(whole, images)
    print("\nwithout the start of Python and its modules, and planning")
    _show(inside, images)


def _show(measured: dict[str, Measured], images: int) -> None:
    report(measured, TWO)
    report({ONE: measured[ONE], **measured}, ONE)
    for name, one in measured.items():
        print(f"{name:28s} {images / one.median:8,.0f} images/s")


def _command(name: str, folder: Path, output: Path) -> list[str]:
    if name in (THEIRS, BARE):
        output.mkdir()
        way = "theirs" if name == THEIRS else "bare"
        return [sys.executable, __file__, "--way", way, str(folder), str(output)]
    facedata = str(Path(sys.executable).with_name("facedata"))
    options = ["--landmarks", str(folder / "info.txt"), "--output", str(output), "--quiet", "--json"]
    return [facedata, "align", str(folder / "raw"), *options, "--workers", "2" if name == TWO else "1"]


if __name__ == "__main__":
    main()
