"""``make demo``: from drawn photos to feature sets; prints each command."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from demo_model import write_model

from facedata.contact_sheet import write_contact_sheet
from facedata.images import import_opencv

FOLDER = Path("demo")
SAMPLE, OUTPUT, SHEET = FOLDER / "sample", FOLDER / "out", FOLDER / "contact-sheet.png"
MODEL, PLOT = FOLDER / "model.onnx", FOLDER / "features.png"
PHOTOS, ALIGNED = FOLDER / "photos", FOLDER / "aligned.png"
PEOPLE_SHOWN, IMAGES_SHOWN = 10, 8


def main() -> None:
    """Run the demo; what an earlier one left is used again where it is whole."""
    if (SAMPLE / "property").exists():  # the file that make-sample writes last
        print(f"{SAMPLE}: drawn before")
    else:
        facedata("make-sample", str(SAMPLE), "--identities", "36", "--images", "8", "--overwrite")
    check_sums()
    facedata("unpack-rec", "--include", str(SAMPLE), "--output", str(OUTPUT), "--list", str(FOLDER / "list.txt"))
    facedata("status", str(OUTPUT))
    show_tree()
    draw_sheet()
    facedata("build-lmdb", str(OUTPUT), "--output", str(FOLDER / "people.lmdb"))
    facedata(
        "convert", f"lmdb:{FOLDER}/people.lmdb", f"webdataset:{FOLDER}/tars/people-%04d.tar", "--shard-samples", "100"
    )
    facedata("pack-rec", f"webdataset:{FOLDER}/tars", "--output", str(FOLDER / "packed"))
    align()
    extract()
    print(f"\nLook at {SHEET}, the people, one a row; at {ALIGNED}, photos and the faces cut out of them;")
    print(f"and at {PLOT}, what the features of a network with random weights are worth.")


def align() -> None:
    """Cut the faces out of larger pictures, by their landmarks."""
    if not (PHOTOS / "property").exists():
        facedata("make-sample", str(PHOTOS), "--size", "250", "--identities", "24", "--images", "6", "--overwrite")
    faces = ["--landmarks", str(PHOTOS / "landmarks.jsonl"), "--output", f"rec:{FOLDER}/aligned"]
    facedata("align", str(PHOTOS), *faces, "--preview", str(ALIGNED))


def extract() -> None:
    """Embed the aligned faces with a network of random weights, find neighbours, and look at what it is worth."""
    if not MODEL.exists():
        write_model(MODEL)
    data = str(FOLDER / "data")
    facedata("extract-features", f"rec:{FOLDER}/aligned", "--model", str(MODEL), "--output", data, "--name", "drawn")
    facedata("build-knn", data, "--name", "drawn", "--k", "6")
    facedata("check-features", data, "--name", "drawn", "--plot", str(PLOT), "--overwrite")


def facedata(*arguments: str) -> None:
    """Show a command and run it."""
    print(f"\n$ {shlex.join(['facedata', *arguments])}", flush=True)
    subprocess.run([str(Path(sys.executable).with_name("facedata")), *arguments], check=True)


def check_sums() -> None:
    """List the checksums of the sample, and check them, as a user does after moving files."""
    sums = FOLDER / "MD5SUMS"
    command = ["facedata", "verify-md5", "--create", str(SAMPLE)]
    print(f"\n$ {shlex.join(command)} > {sums}", flush=True)
    with open(sums, "wb") as file:
        subprocess.run([str(Path(sys.executable).with_name("facedata")), *command[1:]], check=True, stdout=file)
    facedata("verify-md5", "--manifest", str(sums), "--root", str(SAMPLE))


def people() -> list[Path]:
    """The identity folders, by number."""
    return sorted(OUTPUT.glob("id_*"), key=lambda path: int(path.name.removeprefix("id_")))


def show_tree() -> None:
    """The first entries of the output."""
    print(f"\n{OUTPUT}/")
    for person in people()[:3]:
        names = sorted((path.name for path in person.iterdir()), key=lambda name: int(name.split("_")[1].split(".")[0]))
        print(f"  {person.name}/")
        print(f"    {'  '.join(names[:3])}  ... {len(names)} images")
    print(f"  ... {len(people())} identities")


def draw_sheet() -> None:
    """A contact sheet of the images that were unpacked."""
    cv2 = import_opencv()
    shown = people()[:PEOPLE_SHOWN]
    rows = [[cv2.imread(str(path)) for path in sorted(person.iterdir())[:IMAGES_SHOWN]] for person in shown]
    write_contact_sheet(SHEET, rows, labels=[person.name for person in shown], overwrite=True)


if __name__ == "__main__":
    main()
