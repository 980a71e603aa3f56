"""Building an LMDB of 60,000 images of about 4.4 KB: facedata, the way of FFC's builder, and a bare putmulti.

    python benchmarks/build_lmdb.py [--folder DIR] [--repeats 3] [--workers 2]

FFC's builder walks a folder of images in the order of the directory, decodes and encodes each with OpenCV, and puts
it as a Datum into a map that begins at 500 MB. It cannot read record sets, so its time for them is that for the
unpacked folder, the unpacking left out. The bare loop puts the very values that facedata writes, from memory, a few
thousand at a time, and is timed without any start.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FROM_RECORDS, FROM_FOLDER, FFC, BARE = "facedata, from rec", "facedata, from folder", "the way of FFC", "bare putmulti"
_AT_A_TIME = 4096


def datum_class() -> Any:
    """The message as FFC has it, made from its field numbers."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="datum.proto", package="benchmark", syntax="proto2")
    message = file.message_type.add(name="Datum")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, number, kind in [
        ("channels", 1, kinds.TYPE_INT32),
        ("height", 2, kinds.TYPE_INT32),
        ("width", 3, kinds.TYPE_INT32),
        ("data", 4, kinds.TYPE_BYTES),
        ("label", 5, kinds.TYPE_INT32),
        ("encoded", 7, kinds.TYPE_BOOL),
    ]:
        message.field.add(name=name, number=number, type=kind, label=kinds.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("benchmark.Datum"))


def ffc_way(folder: str, output: str) -> None:
    """Decode, encode, put; commit and grow the map as needed."""
    import lmdb

    from facedata.images import import_opencv

    cv2: Any = import_opencv()
    datum_type = datum_class()
    size = 500 << 20
    environment = lmdb.open(output, map_size=size)
    waiting: list[tuple[bytes, bytes]] = []

    def commit() -> None:
        nonlocal size
        while True:
            try:
                with environment.begin(write=True) as transaction:
                    for key, value in waiting:
                        transaction.put(key, value)
                break
            except lmdb.MapFullError:
                size *= 2
                environment.set_mapsize(size)
        waiting.clear()

    with open(f"{output}_kv.txt", "w") as kv:
        for label, person in enumerate(os.listdir(folder)):
            if person.startswith("."):
                continue
            for name in os.listdir(os.path.join(folder, person)):
                image = cv2.imread(os.path.join(folder, person, name))
                data = cv2.imencode(".jpg", image)[1].tobytes()
                height, width, channels = image.shape
                datum = datum_type(channels=channels, height=height, width=width, data=data, label=label, encoded=True)
                key = f"{person}/{name}"
                waiting.append((key.encode(), datum.SerializeToString()))
                kv.write(f"{key} {label}\n")
                if len(waiting) >= 1000:
                    commit()
    commit()
    environment.sync()
    environment.close()


def bare_putmulti(database: str, output: str) -> None:
    """Put the same keys and values, in memory already, in the same order."""
    import lmdb

    kv = Path(database.removesuffix(".lmdb") + "_kv.txt").read_text().split("\n")[:-1]
    with lmdb.open(database, readonly=True, lock=False) as source, source.begin() as transaction:
        pairs = [(key, transaction.get(key, b"")) for key in (line.split(" ")[0].encode() for line in kv)]
        size = source.info()["map_size"]
    begin = time.perf_counter()
    environment = lmdb.open(output, map_size=size, lock=False)
    for first in range(0, len(pairs), _AT_A_TIME):
        with environment.begin(write=True) as transaction, transaction.cursor() as cursor:
            cursor.putmulti(pairs[first : first + _AT_A_TIME])
    environment.close()
    print(time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        compare(Path(name), options.workers, options.repeats)


def compare(folder: Path, workers: int, repeats: int) -> None:
    from measure import Measured, report, run
    from sets import make_set

    facedata = str(Path(sys.executable).with_name("facedata"))
    records, images = str(folder / "set"), str(folder / "images")
    make_set(folder / "set")
    subprocess.run([facedata, "unpack-rec", "--include", records, "--output", images, "--quiet"], check=True)
    ours = [facedata, "build-lmdb", "--workers", str(workers), "--quiet"]
    first = str(folder / "first.lmdb")
    subprocess.run([*ours, records, "--output", first], check=True)
    os.sync()
    commands: dict[str, Callable[[str], list[str]]] = {
        FROM_RECORDS: lambda output: [*ours, records, "--output", f"{output}.lmdb"],
        FROM_FOLDER: lambda output: [*ours, images, "--output", f"{output}.lmdb"],
        FFC: lambda output: [sys.executable, __file__, "ffc", images, output],
        BARE: lambda output: [sys.executable, __file__, "bare", first, output],
    }
    measured = {name: Measured() for name in commands}
    for repeat in range(repeats):
        for number, (name, command) in enumerate(commands.items()):
            seconds, peak, printed = run(command(str(folder / f"out-{repeat}-{number}")))
            measured[name].seconds.append(float(printed) if name == BARE else seconds)
            measured[name].peak_bytes.append(peak)
            os.sync()
    report(measured, FROM_RECORDS, memory=True)
    report({name: measured[name] for name in (FROM_FOLDER, FFC)}, FROM_FOLDER)


if __name__ == "__main__":
    if sys.argv[1:2] == ["ffc"]:
        ffc_way(sys.argv[2], sys.argv[3])
    elif sys.argv[1:2] == ["bare"]:
        bare_putmulti(sys.argv[2], sys.argv[3])
    else:
        main()
