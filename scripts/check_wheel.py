"""Build a wheel, install it in an empty environment, and use it there."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Raise where the wheel lacks something or does not work on its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", ROOT)
        wheel = next((folder / "dist").glob("facedata-*.whl"))
        venv.create(folder / "venv", with_pip=True)
        run(folder / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
        facedata = folder / "venv/bin/facedata"
        run(facedata, "--version", cwd=folder)
        run(facedata, "make-sample", "sample", "--identities", "3", "--images", "2", cwd=folder)
        run(facedata, "unpack-rec", "--include", "sample", "--output", "out", cwd=folder)
        run(facedata, "status", "out", cwd=folder)
        assert len(list((folder / "out").glob("id_*/*.jpg"))) == 6
        assert (Path(wheel).stat().st_size) < 1 << 20
    print("the wheel installs and works in an empty environment")


def run(*command: object, cwd: Path | None = None) -> None:
    """Run a command; its failure is ours."""
    subprocess.run([str(part) for part in command], cwd=cwd, check=True)


if __name__ == "__main__":
    main()
